"""The document as it is sent, against the published list of ECS fields and of allowed values."""

import csv
import json
from pathlib import Path

import pytest

from kwsiem.document import document
from kwsiem.formats import FORMATS, make
from kwsiem.formats.fit import fit

with (Path(__file__).parents[1] / "ecs_fields.csv").open() as table:
    FIELDS = {row["field"]: (row["type"], row["array"] == "yes") for row in csv.DictReader(table)}
#: ECS: event.category -> the values of event.type that go with it.
TYPES = {
    "authentication": "start end info",
    "configuration": "access change creation deletion info",
    "driver": "change end info start",
    "file": "access change creation deletion info",
    "host": "access change end info start",
    "iam": "admin change creation deletion group info user",
    "intrusion_detection": "allowed denied info",
    "network": "access allowed connection denied end info protocol start",
    "process": "access change end info start",
}


def leaves(node, prefix=""):
    for name, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def check(line):
    found = json.loads(line)
    for path, value in leaves(
        {name: node for name, node in found.items() if name not in {"kwsiem", "labels"}}
    ):
        assert path in FIELDS, path
        kind, is_array = FIELDS[path]
        assert isinstance(value, list) == is_array, path
        for item in value if is_array else [value]:
            assert item not in ("", None), path
            assert type(item) is {"long": int, "float": float}.get(kind, str), path
    assert {"@timestamp", "ecs", "event"} <= found.keys()
    assert found["event"]["kind"] == "alert"
    for category in found["event"]["category"]:
        assert set(found["event"]["type"]) <= set(TYPES[category].split()), category
    return found


def test_documents(documents):
    for found in documents.values():
        assert check(FORMATS["ecs"](found)) == found


@pytest.mark.parametrize("size", [8000, 2048, 1024])
def test_documents_that_were_made_to_fit(documents, size):
    for found in documents.values():
        check(fit(FORMATS["ecs"], found, size))


def test_labels_are_flat_texts(scan):
    found = check(make("ecs", extra={"data_center": "fra1", "environment": "prod"})(scan))
    assert found["labels"] == {"data_center": "fra1", "environment": "prod"}
    assert "labels" not in scan


@pytest.mark.parametrize(
    "kind",
    ["tcp.syn", "udp.unreachable", "dns.query", "http.request", "auth.attempt", "process.exec", "ns.change", "file.open",
     "cred.change", "module.load", "bpf.load", "mount.change", "sensor.lost", "output.state", "rules.reload", "of.no.kind", ""],
)  # fmt: skip
def test_the_category_of_every_kind_of_event_allows_its_type(make_alert, kind):
    check(FORMATS["ecs"](document(make_alert(evidence=[{"kind": kind, "ts_ns": 1}]))))
