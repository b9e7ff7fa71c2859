import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwsiem.document import ECS_FIELDS, document
from kwsiem.formats import gelf, make

ANY = st.text(st.characters(exclude_categories=[]), max_size=60)


def check(line):
    """GELF 1.1 by its specification: mandatory fields, names, strings and numbers alone."""
    assert len(line.splitlines()) == 1
    assert "\0" not in line
    found = json.loads(line)
    assert found["version"] == "1.1"
    for name in ("host", "short_message"):
        assert isinstance(found[name], str) and found[name].strip()
    assert type(found["level"]) is int and 1 <= found["level"] <= 7
    assert isinstance(found.get("timestamp", 0), (int, float))
    for name, value in found.items():
        if name not in {"version", "host", "short_message", "full_message", "timestamp", "level"}:
            assert re.fullmatch(r"_[A-Za-z0-9_]+", name), name
            assert name != "_id"
        assert type(value) in {str, int, float}, name
        assert value != ""
    return found


def test_a_scan(scan):
    found = check(gelf.render(scan))
    assert found["timestamp"] == 1767323046.123
    assert found["level"] == 3
    assert found["short_message"] == scan["message"]
    assert found["_alert_id"] == scan["event"]["id"]
    assert (found["_source_ip"], found["_destination_port"]) == ("198.51.100.7", 24)
    assert found["_values"] == "20,21,22,23,24"
    assert found["_count"] == 5
    assert '"timestamp":1767323046.123,' in gelf.render(scan), "a number with three decimals"


def test_all_documents_are_gelf(documents):
    for found in documents.values():
        check(gelf.render(found))


def test_every_field_of_an_event_whatever_its_type(make_alert):
    fields = dict.fromkeys(ECS_FIELDS, "x") | {
        "source.port": 1,
        "process.args": ["a", "b"],
        "source.bytes": 2**63 - 1,
    }
    found = check(gelf.render(document(make_alert(fields=fields))))
    assert found["_source_bytes"] == 2**63 - 1


@given(ANY, ANY, ANY)
def test_what_is_in_the_alert_is_read_back(make_alert, user, reason, host):
    given_document = document(make_alert(fields={"user.name": user}, reason=reason, host=host))
    found = check(gelf.render(given_document))
    assert found.get("_user_name", "") == given_document.get("user", {}).get("name", "")
    assert found.get("_reason", "") == given_document["event"].get("reason", "")
    assert found["_alert_id"] == given_document["event"]["id"]


@pytest.mark.parametrize(("severity", "level"), [(0, 6), (3, 5), (5, 4), (8, 3), (10, 1)])
def test_severity(scan, severity, level):
    scan["event"]["severity"] = severity
    assert check(gelf.render(scan))["level"] == level


def test_an_address_stands_beside_the_ip_only_when_it_says_more(scan):
    assert "_source_address" not in check(gelf.render(scan))
    scan["source"]["address"] = "scanner.example"
    assert check(gelf.render(scan))["_source_address"] == "scanner.example"


def test_labels(scan):
    assert check(make("gelf", extra={"environment": "prod"})(scan))["_environment"] == "prod"


def test_an_empty_document():
    assert check(gelf.render({})) == {
        "version": "1.1",
        "host": "unknown",
        "short_message": "alert",
        "level": 6,
    }
