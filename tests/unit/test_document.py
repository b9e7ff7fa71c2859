import csv
import ipaddress
import unicodedata
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsiem.alert import MAX_DOCUMENT_BYTES, MAX_EVIDENCE_EVENTS, MAX_TEXT, Alert
from kwsiem.document import ECS_FIELDS, document
from kwsiem.event import OWN_KINDS

#: Field, type and array-ness of ECS, for the fields that we use (ECS field list, Apache-2.0).
with (Path(__file__).parent / "ecs_fields.csv").open() as table:
    ECS = {row["field"]: (row["type"], row["array"] == "yes") for row in csv.DictReader(table)}

HOSTILE = ["a\nb", 'x","y":1,"z":"', "\x00\x1b[2J", "\udc80", "=|\\", "é" * 5000, "\u2028", ""]


def leaves(node, prefix=""):
    for name, value in node.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from leaves(value, path + ".")
        else:
            yield path, value


def check_against_ecs(found):
    """Every field outside our namespace is ECS's, has its type, and is an array where ECS wants one."""
    for path, value in leaves({name: node for name, node in found.items() if name != "kwsiem"}):
        assert path in ECS, path
        kind, is_array = ECS[path]
        assert isinstance(value, list) == is_array, path
        for item in value if is_array else [value]:
            assert item not in ("", None), path
            if kind == "ip":
                assert str(ipaddress.ip_address(item)) == item
                assert "%" not in item
            elif kind == "long":
                assert type(item) is int and abs(item) < 2**63, path
            elif kind == "float":
                assert isinstance(item, float), path
            else:
                assert isinstance(item, str) and len(item) <= MAX_TEXT * 2 + 2, path


def check_safe(found):
    encoded = msgspec.json.encode(found)
    assert len(encoded) <= MAX_DOCUMENT_BYTES
    assert msgspec.json.decode(encoded) == found
    for _, value in leaves(found):
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                assert not any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} for c in text)


def test_the_document_of_a_scan(make_alert):
    found = document(make_alert())
    check_against_ecs(found)
    check_safe(found)
    assert found["@timestamp"] == "2026-01-02T03:04:06.123Z"
    assert found["ecs"] == {"version": "9.4.0"}
    assert found["message"] == "TCP port scan: 5 different destination.port in 3s"
    event = found["event"]
    assert event["kind"] == "alert"
    assert event["category"] == ["intrusion_detection", "network"]
    assert event["type"] == ["info"]
    assert event["action"] == "tcp_port_scan_detected"
    assert (event["severity"], event["risk_score"]) == (8, 80.0)
    assert event["id"] == make_alert().id
    assert event["code"] == "tcp-port-scan"
    assert event["duration"] == 1_000_000_000
    assert found["source"] == {"ip": "198.51.100.7", "address": "198.51.100.7"}
    assert found["network"] == {"type": "ipv4", "transport": "tcp"}
    assert found["threat"]["technique"]["id"] == ["T1046"]
    assert found["related"]["ip"] == ["198.51.100.7", "192.0.2.1"]
    assert found["kwsiem"]["event"] == {"tcp": {"flags": 2}}
    facts = found["kwsiem"]["alert"]
    assert facts["id"] == event["id"]
    assert facts["state"] == "open"
    assert facts["count"] == 5
    assert facts["identity"] == {"source.ip": "198.51.100.7", "destination.ip": "192.0.2.1"}
    assert facts["values"] == ["20", "21", "22", "23", "24"]
    assert [e["destination.port"] for e in facts["evidence"]] == [20, 24]


def test_a_password_attack_has_user_service_process_and_outcome(make_alert):
    fields = {
        "event.outcome": "failure",
        "service.name": "sshd",
        "user.name": "root",
        "user.id": 0,
        "source.address": "2001:db8::bad:1",
        "source.ip": "2001:db8::bad:1",
        "process.pid": 2211,
        "pam.result": 7,
    }
    evidence = [{"kind": "auth.attempt", "ts_ns": 1, **fields}]
    found = document(make_alert(fields=fields, evidence=evidence, values=["root", "admin"]))
    check_against_ecs(found)
    assert found["event"]["category"] == ["intrusion_detection", "authentication"]
    assert found["event"]["outcome"] == "failure"
    assert found["user"] == {"name": "root", "id": "0"}
    assert found["process"] == {"pid": 2211}
    assert found["related"]["user"] == ["root"]
    assert found["network"]["type"] == "ipv6"
    assert found["kwsiem"]["event"] == {"pam": {"result": 7}}


@pytest.mark.parametrize("kind", sorted(OWN_KINDS))
def test_alerts_about_ourselves_are_ecs_too(make_alert, kind):
    fields = {field.name: 3 if field.type == "u64" else "text" for field in OWN_KINDS[kind].fields}
    evidence = [{"kind": kind, "ts_ns": 1, **fields}]
    found = document(make_alert(identity={}, fields=fields, evidence=evidence, values=[]))
    check_against_ecs(found)
    own = dict(leaves(found["kwsiem"]["event"]))
    expected = {
        n.removeprefix("event."): v for n, v in fields.items() if n not in ECS_FIELDS and n != "event.outcome"
    }
    assert {name: own.get(name) for name in expected} == expected
    assert "outcome" not in found["event"], "text is no outcome"


def test_what_is_not_an_address_never_stands_in_an_ip_field(make_alert):
    fields = {
        "source.address": "scanner.example.org",
        "source.ip": "scanner.example.org",
        "destination.ip": "",
    }
    found = document(make_alert(fields=fields, identity={}, evidence=[{"kind": "auth.attempt"}], values=[]))
    assert found["source"] == {"address": "scanner.example.org"}
    assert "destination" not in found
    assert "ip" not in found["related"]
    assert found["kwsiem"]["event"] == {"source": {"ip": "scanner.example.org"}}


@pytest.mark.parametrize(
    ("given_ip", "expected"),
    [("fe80::1%eth0", "fe80::1"), ("::ffff:192.0.2.9", "192.0.2.9"), ("2001:DB8:0:0::1", "2001:db8::1")],
)
def test_addresses_are_canonical(make_alert, given_ip, expected):
    assert document(make_alert(fields={"source.ip": given_ip}))["source"]["ip"] == expected


def test_a_value_of_the_wrong_type_goes_under_our_namespace(make_alert):
    fields = {"process.pid": "12", "destination.port": 70000, "source.port": True}
    found = document(make_alert(fields=fields))
    check_against_ecs(found)
    assert "process" not in found
    assert found["kwsiem"]["event"] == {
        "process": {"pid": "12"},
        "destination": {"port": 70000},
        "source": {"port": True},
    }


def test_an_empty_alert_has_nothing_empty(make_alert):
    empty = make_alert(
        rule_id="",
        title="",
        reason="",
        tags=[],
        fields={},
        identity={},
        values=[],
        evidence=[],
        host="",
        level="?",
        state="",
    )
    found = document(empty)
    check_against_ecs(found)
    assert all(value not in ("", [], {}, None) for _, value in leaves(found))
    assert found["rule"] == {"id": "unknown", "name": "alert"}
    assert found["event"]["severity"] == 8, "an unknown level is not below any output's minimum but critical"


def test_evidence_goes_from_the_middle_when_the_document_is_too_large(make_alert):
    evidence = [
        {"kind": "tcp.syn", "ts_ns": n, **{f"x{i}": "y" * 1000 for i in range(12)}}
        for n in range(MAX_EVIDENCE_EVENTS)
    ]
    found = document(make_alert(evidence=evidence))
    check_safe(found)
    kept = [event["ts_ns"] for event in found["kwsiem"]["alert"]["evidence"]]
    assert 2 <= len(kept) < MAX_EVIDENCE_EVENTS
    assert kept[0] == 0
    assert kept[-1] == MAX_EVIDENCE_EVENTS - 1
    assert found["kwsiem"]["alert"]["values"]


def test_a_flood_of_long_hostile_fields_stays_within_the_bound(make_alert):
    text = '\U0001f98a"\\' * 1000
    fields = dict.fromkeys(ECS_FIELDS, text) | {f"own.{n}": text for n in range(200)}
    found = document(
        make_alert(
            fields=fields,
            title=text,
            reason=text,
            description=text,
            host=text,
            tags=[f"{n}{text}" for n in range(99)],
            identity={f"i{n}": text for n in range(99)},
            values=[f"{n}{text}" for n in range(999)],
            evidence=[fields] * 50,
            falsepositives=[f"{n}{text}" for n in range(99)],
        )
    )
    check_safe(found)
    check_against_ecs(found)
    assert found["event"]["id"]


PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(exclude_categories=[])),
    st.sampled_from(HOSTILE),
    st.binary(),
    st.lists(st.integers()),
    st.dictionaries(st.text(), st.text()),
)
NAMES = st.one_of(
    st.sampled_from([*ECS_FIELDS, "a.b", "a", "a.b.c", "event.kind", "kwsiem.alert.id", "event.id"]),
    st.text(),
)
NUMBERS = st.integers(-(2**63), 2**64 - 1)
TEXT = st.text(st.characters(exclude_categories=[]))


@settings(max_examples=300)
@given(
    st.builds(
        Alert, rule_id=TEXT, title=TEXT, level=TEXT, state=TEXT, identity=st.dictionaries(NAMES, PLAIN), count=NUMBERS,
        first_ns=NUMBERS, last_ns=NUMBERS, raised_ns=NUMBERS, opened_ts_ns=NUMBERS, description=TEXT, reason=TEXT,
        tags=st.lists(TEXT), fields=st.dictionaries(NAMES, PLAIN), values=st.lists(PLAIN),
        evidence=st.lists(st.dictionaries(NAMES, PLAIN), max_size=4), falsepositives=st.lists(TEXT), host=TEXT,
    )
)  # fmt: skip
def test_any_alert_whatever_becomes_a_safe_ecs_document(alert):
    found = document(alert)
    check_against_ecs(found)
    check_safe(found)
    assert found["event"]["kind"] == "alert"
    assert found["event"]["id"] == alert.id == found["kwsiem"]["alert"]["id"]
