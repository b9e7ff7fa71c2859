import csv
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from py_ocsf_models.events.findings.detection_finding import DetectionFinding

from kwsiem.document import document
from kwsiem.formats import FORMATS, OCSF_VERSIONS, make
from kwsiem.formats.ocsf import finding

#: The attributes that we use, of the schema's own files in both versions (OCSF schema, Apache-2.0). The
#: row without an attribute names those of which an object needs at least one.
with (Path(__file__).parent / "ocsf_schema.csv").open() as table:
    ROWS = list(csv.DictReader(table))
SCHEMA: dict = {}
AT_LEAST_ONE: dict = {}
for row in ROWS:
    place = (row["version"], row["object"])
    if row["attribute"]:
        SCHEMA.setdefault(place, {})[row["attribute"]] = row
    else:
        AT_LEAST_ONE[place] = set(row["values"].split())
WHOLE = {"integer_t": 2**31 - 1, "long_t": 2**63 - 1, "timestamp_t": 2**63 - 1, "port_t": 65535}
CATEGORIES = {2004: 2, 4001: 4, 3002: 3, 1007: 1}


def check_object(version, name, node, path=""):
    """Everything is in the schema, has its type, and nothing that the schema requires is missing."""
    rows = SCHEMA[version, name]
    for key, value in node.items():
        where = f"{path}.{key}"
        assert key in rows, f"{where} is not in OCSF {version}"
        row = rows[key]
        assert isinstance(value, list) == (row["array"] == "yes"), where
        for item in value if isinstance(value, list) else [value]:
            check_value(version, row, item, where)
    missing = {key for key, row in rows.items() if row["required"] == "yes"} - node.keys()
    assert not missing, f"{path} lacks {missing}"
    if (version, name) in AT_LEAST_ONE:
        assert AT_LEAST_ONE[version, name] & node.keys(), f"{path} has none of what it needs: {node}"


def check_value(version, row, item, where):
    assert item not in ("", None, [], {}), where
    kind = row["type"]
    if kind in WHOLE:
        assert type(item) is int and 0 <= item <= WHOLE[kind], where
        if row["values"]:
            assert item in map(int, row["values"].split()), f"{where}: {item}"
    elif kind == "boolean_t":
        assert type(item) is bool, where
    elif kind in {"json_t", "object"}:
        assert isinstance(item, dict), where
        if "class_uid" in item:
            check_class(version, item, where)
    elif kind.endswith("_t"):
        assert isinstance(item, str), where
    else:
        check_object(version, kind, item, where)


def check_class(version, found, path=""):
    uid = found["class_uid"]
    assert found["type_uid"] == uid * 100 + found["activity_id"]
    assert found["category_uid"] == CATEGORIES[uid]
    assert found["metadata"]["version"] == version
    assert ("host" in found["metadata"]["profiles"]) >= ("device" in found or "actor" in found)
    assert ("security_control" in found["metadata"]["profiles"]) == ("action_id" in found)
    if found["activity_id"] == 99:
        assert found["activity_name"]
    check_object(version, str(uid), found, path)


def at(node, path):
    """The value at an attribute path with indexes."""
    for part in path.replace("]", "").replace("[", ".").split("."):
        node = node[int(part)] if part.isdigit() else node[part]
    return node


WEB = {
    "source.ip": "198.51.100.7",
    "source.port": 4,
    "destination.ip": "192.0.2.1",
    "destination.port": 80,
    "url.original": "/a?b=c",
    "http.request.method": "GET",
    "user_agent.original": "curl",
}
OTHERS = {
    "http": {"kind": "http.request", **WEB},
    "dns": {"kind": "dns.query", **WEB, "dns.question.name": "example.org", "dns.question.type": "TXT"},
    "file": {"kind": "file.change", "file.path": "/etc/shadow", "process.pid": 3, "process.name": "vi"},
    "ports-alone": {"kind": "tcp.syn", "source.port": 1, "destination.port": 2},
    "connect": {"kind": "tcp.connect", **WEB, "process.name": "nc", "network.direction": "egress"},
    "nobody": {"kind": "auth.attempt", "event.outcome": "success", "service.name": "sshd"},
    "named": {"kind": "auth.attempt", "source.address": "a.example", "user.name": "a", "service.name": "x"},
    "memfd": {"kind": "process.memfd", "process.pid": 9, "user.id": 0},
    "parent": {"kind": "process.exec", "process.pid": 9, "process.parent.name": "sh"},
    "query": {"kind": "dns.query", "dns.question.type": "A", "destination.ip": "192.0.2.53"},
    "own": {"kind": "sensor.lost", "event.reason": "budget", "event.count": 7},
    "none": {},
}


@pytest.fixture(params=OTHERS)
def other(request, make_alert):
    flat = OTHERS[request.param]
    fields = {name: value for name, value in flat.items() if name != "kind"}
    return document(make_alert(fields=fields, evidence=[{**flat, "ts_ns": 5}] if flat else [], values=[]))


@pytest.mark.parametrize("version", OCSF_VERSIONS)
def test_findings_are_what_the_schema_says(version, documents):
    for found in documents.values():
        check_class(version, finding(found, version))


@pytest.mark.parametrize("version", OCSF_VERSIONS)
def test_findings_of_every_kind_of_event_are_what_the_schema_says(version, other):
    check_class(version, finding(other, version))


def test_an_independent_model_takes_them(documents, other):
    for found in [*documents.values(), other]:
        line = json.loads(FORMATS["ocsf"](found))
        for attack in line["finding_info"].get("attacks", []):
            if "technique" in attack:  # the model wants a name, the schema a name or a uid
                attack["technique"].setdefault("name", "?")
        model = DetectionFinding.model_validate(line)
        assert model.type_uid.value == line["type_uid"]
        assert model.finding_info.uid == found["kwsiem"]["alert"]["incident_id"]
        assert model.metadata.uid == found["event"]["id"]
        assert model.time == line["time"]


def test_an_incident_is_one_finding(make_alert):
    lines = {
        state: finding(document(make_alert(state=state, count=n)))
        for n, state in enumerate(("open", "update", "close"))
    }
    assert [line["type_uid"] for line in lines.values()] == [200401, 200402, 200403]
    assert [line["status_id"] for line in lines.values()] == [1, 2, 4]
    assert [line["is_alert"] for line in lines.values()] == [True, True, False]
    assert len({line["finding_info"]["uid"] for line in lines.values()}) == 1
    assert len({line["metadata"]["uid"] for line in lines.values()}) == 3
    assert "created_time" not in lines["close"]["finding_info"]


def test_each_kind_of_evidence_brings_the_record_of_its_class(ipv6, auth, process):
    record = finding(ipv6)["evidences"][0]["data"]
    assert (record["type_uid"], record["traffic"]["bytes_out"]) == (400101, 5_000_000_000)
    records = [evidence["data"] for evidence in finding(auth)["evidences"]]
    assert [record["type_uid"] for record in records] == [300201] * 3
    assert {record["status_id"] for record in records} == {2}
    assert [record["time"] for record in records] == [1767323045123, 1767323045623, 1767323046123]
    record = finding(process)["evidences"][0]["data"]
    assert record["type_uid"] == 100701
    assert record["actor"] == {
        "process": {"pid": 4242, "name": "bash"},
        "user": {"name": "joe", "uid": "1000"},
    }
    assert record["unmapped"]["cgroup.id"] == 77


def test_evidence_without_what_its_class_requires_keeps_its_facts(make_alert):
    flat = OTHERS["nobody"]
    found = finding(document(make_alert(fields={}, evidence=[{**flat, "ts_ns": 1}])))
    data = found["evidences"][0]["data"]
    assert data == {
        "kind": "auth.attempt",
        "service": {"name": "sshd"},
        "status_id": 1,
        "time": 1767323046123,
    }


def test_observables_stand_where_they_say(documents):
    for found in documents.values():
        line = finding(found)
        for observable in line.get("observables", []):
            assert at(line, observable["name"]) == observable["value"]
            assert observable["type_id"] == {"ip": 2, "name": 4}[observable["name"].rpartition(".")[2]]
    assert {o["value"] for o in finding(documents["auth"])["observables"]} == {"198.51.100.23", "root"}


@pytest.mark.parametrize(
    ("decision", "expected"),
    [("off", (3, 15)), ("dry-run", (3, 15)), ("blocked", (2, 2)), ("failed", (3, 27)), ("released", (1, 1)), (7, (3, 15))],
)  # fmt: skip
def test_block_decisions(close, decision, expected):
    close["kwsiem"]["alert"]["block"]["decision"] = decision
    line = finding(close)
    assert (line["action_id"], line["disposition_id"]) == expected


@pytest.mark.parametrize(("severity", "expected"), [(0, 1), (1, 2), (3, 2), (5, 3), (8, 4), (10, 5)])
def test_severity(scan, severity, expected):
    scan["event"]["severity"] = severity
    assert finding(scan)["severity_id"] == expected


def test_labels(scan):
    line = json.loads(make("ocsf", extra={"environment": "prod"})(scan))
    assert line["metadata"]["labels"] == ["environment:prod"]
    check_class("1.8.0", line)


def test_an_empty_document_is_a_finding_too():
    check_class("1.8.0", finding({}))


PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(exclude_categories=[]), max_size=20),
    st.lists(st.integers(), max_size=2), st.sampled_from(["192.0.2.1", "fe80::1%eth0", "a.example", "/a/b", "/"]),
)  # fmt: skip
NAMES = st.sampled_from(sorted({name for flat in OTHERS.values() for name in flat} | {
    "source.address", "source.bytes", "destination.packets", "network.transport", "process.executable", "process.entity_id",
    "process.command_line", "process.parent.pid", "process.user.name", "file.name", "time", "data", "observer.ingress.interface.name",
})).filter("kind".__ne__)  # fmt: skip
KINDS = st.sampled_from(
    [
        "tcp.syn",
        "auth.attempt",
        "process.exec",
        "dns.query",
        "process.x",
        "odd",
        "",
        "icmp.echo",
        "cred.change",
    ]
)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(KINDS, st.dictionaries(NAMES, PLAIN), st.integers(0, 2**63)), max_size=3),
    st.sampled_from(OCSF_VERSIONS),
)
def test_whatever_an_event_holds_the_finding_stays_valid(make_alert, events, version):
    evidence = [{**flat, "kind": kind, "ts_ns": ts} for kind, flat, ts in events]
    found = document(make_alert(fields=events[-1][1] if events else {}, evidence=evidence))
    line = make("ocsf", ocsf_version=version)(found)
    assert len(line.splitlines()) == 1
    check_class(version, json.loads(line))


@given(
    st.text(st.characters(exclude_categories=[]), max_size=50),
    st.text(st.characters(exclude_categories=[]), max_size=50),
)
def test_what_is_in_the_alert_is_read_back(make_alert, user, command):
    fields = {"user.name": user, "process.pid": 7, "process.command_line": command}
    found = document(make_alert(fields=fields, evidence=[{"kind": "process.exec", "ts_ns": 1, **fields}]))
    line = json.loads(FORMATS["ocsf"](found))
    event = found["kwsiem"]["alert"]["evidence"][0]
    evidence = line["evidences"][0]
    assert evidence.get("user", {}).get("name", "") == event.get("user.name", "")
    assert evidence["process"].get("cmd_line", "") == event.get("process.command_line", "")
    assert line["metadata"]["uid"] == found["event"]["id"]
