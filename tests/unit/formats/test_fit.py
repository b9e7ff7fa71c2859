import copy
import json

import pytest

from kwsiem.document import ECS_FIELDS, document
from kwsiem.formats import FORMATS
from kwsiem.formats.fit import fit

IDENTIFYING = ("id", "rule", "level", "source.ip")


@pytest.fixture
def large(make_alert):
    text = 'é"\\=|' * 200
    fields = {name: text for name in ECS_FIELDS if name != "event.outcome"} | {
        f"own.{n}": text for n in range(50)
    }
    fields |= {"source.ip": "198.51.100.7", "destination.ip": "2001:db8::1", "source.port": 7}
    return document(
        make_alert(fields=fields, title=text, reason=text, description=text, values=[f"{n}{text}" for n in range(64)],
                   evidence=[fields] * 10, tags=["attack.t1110.001", "attack.discovery", text])
    )  # fmt: skip


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("size", [48_000, 8000, 2048])
def test_a_line_fits_and_still_says_who_and_what(name, size, large):
    before = copy.deepcopy(large)
    line = fit(FORMATS[name], large, size)
    assert line is not None
    assert len(line.encode()) <= size
    assert large == before, "the document stays as it is"
    assert large["event"]["id"] in line
    assert "tcp-port-scan" in line
    if name in {"ecs", "json"}:
        found = json.loads(line)
        assert (found["source"]["ip"] if name == "ecs" else found["source.ip"]) == "198.51.100.7"


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_an_alert_of_the_shipped_rules_fits_a_udp_datagram(name, scan, hostile):
    for found in (scan, hostile):
        line = fit(FORMATS[name], found, 1024 - 110)
        assert line is not None
        assert found["event"]["id"] in line


def test_what_fits_is_not_touched(scan):
    for render in FORMATS.values():
        assert fit(render, scan, 8000) == render(scan)


def test_what_cannot_fit_is_said_so(scan):
    assert fit(FORMATS["ecs"], scan, 100) is None
