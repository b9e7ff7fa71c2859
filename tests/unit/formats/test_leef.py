import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsiem.document import document
from kwsiem.formats import leef, make

ANY = st.text(st.one_of(st.characters(exclude_categories=[]), st.sampled_from('^|=\\\t\n\r "')), max_size=80)


def parse(line):
    """A strict reader of LEEF, written from QRadar's rules alone: header fields, and attributes once each."""
    version, *header = line.split("|")
    assert version in {"LEEF:1.0", "LEEF:2.0"}
    if version == "LEEF:2.0":
        vendor, product, release, event, sign, *rest = header
        if re.fullmatch(r"0?x[0-9A-Fa-f]{1,4}", sign):
            sign = chr(int(sign.rpartition("x")[2], 16))
        assert len(sign) == 1
    else:
        (vendor, product, release, event, *rest), sign = header, "\t"
    assert all((vendor, product, release, event)), "no field of the header is empty"
    assert len(event.encode()) <= 255
    attributes = {}
    for pair in "|".join(rest).split(sign):
        key, equals, value = pair.partition("=")
        assert equals, pair
        assert re.fullmatch(r"[A-Za-z0-9]+", key), key
        assert value, f"{key} is empty"
        assert key not in attributes, f"{key} twice"
        attributes[key] = value
    for name in ("srcPort", "dstPort"):
        assert name not in attributes or 0 <= int(attributes[name]) <= 65535
    assert 1 <= int(attributes["sev"]) <= 10
    assert "devTime" not in attributes or re.fullmatch(r"\d{13}", attributes["devTime"])
    return (vendor, product, release, event), attributes


def test_a_scan(scan):
    scan["observer"]["version"] = "1.0.0"
    line = leef.render(scan)
    assert line.startswith("LEEF:2.0|KernelWatch|kwsiem|1.0.0|tcp-port-scan|^|devTime=1767323046123^")
    _, found = parse(line)
    assert found == {
        "devTime": "1767323046123",
        "sensorHost": "gw01.example.net",
        "alertId": scan["event"]["id"],
        "incidentId": scan["kwsiem"]["alert"]["incident_id"],
        "state": "open",
        "level": "high",
        "sev": "8",
        "ruleId": "tcp-port-scan",
        "ruleName": "TCP port scan",
        "msg": "TCP port scan: 5 different destination.port in 3s",
        "reason": "5 different destination.port in 3s",
        "cat": "intrusion_detection/network",
        "count": "5",
        "startTime": "1767323045123",
        "endTime": "1767323046123",
        "src": "198.51.100.7",
        "dst": "192.0.2.1",
        "proto": "TCP",
        "mitreTactic": "TA0007",
        "mitre": "T1046",
        "values": "20,21,22,23,24",
        "action": "detected",
    }


def test_both_versions_say_the_same(documents):
    for found in documents.values():
        tabs = make("leef", leef_version="1.0")(found)
        assert tabs.startswith("LEEF:1.0|")
        assert parse(tabs) == parse(leef.render(found))


def test_ipv6_and_the_port_that_is_one_alone(ipv6):
    _, found = parse(leef.render(ipv6))
    assert (found["src"], found["srcPort"]) == ("2001:db8::bad:1", "51514")
    assert (found["dst"], found["dstPort"]) == ("2001:db8::10", "443")
    assert found["srcBytes"] == "5000000000"
    assert not {"srcName", "dstName"} & found.keys()


def test_a_name_stands_where_there_is_no_address(make_alert):
    _, found = parse(
        leef.render(document(make_alert(fields={"source.address": "scanner.example"}, identity={})))
    )
    assert found["srcName"] == "scanner.example"
    assert "src" not in found


@settings(max_examples=300)
@given(ANY, ANY, ANY, ANY, st.sampled_from(["1.0", "2.0"]))
def test_whatever_is_in_the_alert_can_be_read_back_and_forges_nothing(
    make_alert, rule, reason, user, path, version
):
    render = make("leef", leef_version=version)
    sign = "^" if version == "2.0" else "\t"
    fields = {"user.name": user, "file.path": path, "source.ip": "192.0.2.7"}
    found = document(make_alert(rule_id=rule, reason=reason, fields=fields))
    line = render(found)
    assert len(line.splitlines()) == 1
    header, pairs = parse(line)
    assert header[3] == (found["rule"]["id"].replace("|", " ").strip() or "unknown")
    assert pairs.get("usrName", "") == found.get("user", {}).get("name", "").replace(sign, " ").strip()
    assert pairs.get("filePath", "") == found.get("file", {}).get("path", "").replace(sign, " ").strip()
    assert pairs.get("reason", "") == found["event"].get("reason", "").replace(sign, " ").strip()
    assert pairs["src"] == "192.0.2.7"
    assert pairs["alertId"] == found["event"]["id"]
    plain = document(
        make_alert(reason="r", fields={"user.name": "u", "file.path": "p", "source.ip": "192.0.2.7"})
    )
    assert set(pairs) <= set(parse(render(plain))[1])


def test_limits_count_bytes(make_alert):
    text = "🦊" * 1000
    _, found = parse(leef.render(document(make_alert(rule_id=text, fields={"user.name": text}))))
    assert found["usrName"] == "🦊" * 63
    assert len(found["msg"].encode()) <= 1023


@pytest.mark.parametrize("time", ["1970-01-01T00:00:01.000Z", "2001-01-01T00:00:00.000Z", "nonsense", None])
def test_a_time_that_qradar_would_misread_is_left_out(scan, time):
    scan["@timestamp"] = time
    assert "devTime" not in parse(leef.render(scan))[1]


@pytest.mark.parametrize(
    ("decision", "expected"),
    [("off", "detected"), ("dry-run", "detected"), ("blocked", "blocked"), ("failed", "block_failed"), ("?", "detected")],
)  # fmt: skip
def test_block_decisions(close, decision, expected):
    close["kwsiem"]["alert"]["block"]["decision"] = decision
    _, found = parse(leef.render(close))
    assert found["action"] == expected
    assert (found["blockValue"], found["blockSeconds"]) == ("198.51.100.7", "600")


def test_a_document_without_anything_still_has_a_full_header():
    header, found = parse(leef.render({}))
    assert header == ("KernelWatch", "kwsiem", "0", "unknown")
    assert found == {"sev": "1", "action": "detected"}
