import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsiem.document import document
from kwsiem.formats import cef, make

ANY = st.text(st.one_of(st.characters(exclude_categories=[]), st.sampled_from('=|\\\n\r "')), max_size=80)


def parse(line):
    """A strict reader of CEF, written from the standard alone: header fields and extension pairs."""
    assert line.startswith(("CEF:0|", "CEF:1|"))
    header, i, field = [], 6, ""
    while len(header) < 6:
        if line[i] == "\\":
            assert line[i + 1] in "\\|", "only backslash and pipe are escaped in the header"
            field += line[i + 1]
            i += 2
        elif line[i] == "|":
            header.append(field)
            field = ""
            i += 1
        else:
            field += line[i]
            i += 1
    pairs = {}
    extension = line[i:]
    starts = [(m.start(1), m.end()) for m in re.finditer(r"(?:^| )([A-Za-z0-9_]+)=", extension)]
    # A backslash before an equals sign: then it belongs to a value. A key has none before it by its pattern.
    for (start, end), following in zip(
        starts, [s for s, _ in starts[1:]] + [len(extension) + 1], strict=True
    ):
        key, raw = extension[start : end - 1], extension[end : following - 1]
        assert key not in pairs, f"{key} twice"
        assert not re.search(r"(?<!\\)(?:\\\\)*=", raw), "an equals sign that is not escaped"
        assert not re.search(r"(?<!\\)(?:\\\\)*\\(?![\\=nr])", raw), "an escape that does not exist"
        pairs[key] = re.sub(r"\\(.)", lambda m: {"n": "\n", "r": "\r"}.get(m[1], m[1]), raw)
    return header, pairs


def test_a_scan(scan):
    scan["observer"]["version"] = "1.0.0"
    header, pairs = parse(cef.render(scan))
    assert header == ["KernelWatch", "kwsiem", "1.0.0", "tcp-port-scan", "TCP port scan", "8"]
    assert pairs == {
        "rt": "1767323046123",
        "start": "1767323045123",
        "end": "1767323046123",
        "type": "2",
        "dvchost": "gw01.example.net",
        "externalId": scan["event"]["id"],
        "cat": "/intrusion_detection/network",
        "src": "198.51.100.7",
        "dst": "192.0.2.1",
        "proto": "TCP",
        "cnt": "5",
        "act": "detected",
        "reason": "5 different destination.port in 3s",
        "cs1": "tcp-port-scan",
        "cs1Label": "RuleId",
        "cs2": "T1046",
        "cs2Label": "MitreTechnique",
        "cs3": "20,21,22,23,24",
        "cs3Label": "SampleValues",
        "cs5": scan["kwsiem"]["alert"]["incident_id"],
        "cs5Label": "IncidentId",
        "cs6": "open",
        "cs6Label": "IncidentState",
        "cn1": "5",
        "cn1Label": "EventCount",
        "msg": "TCP port scan: 5 different destination.port in 3s",
    }


def test_the_port_stands_when_it_is_not_one_of_many(make_alert):
    _, pairs = parse(cef.render(document(make_alert(values=[]))))
    assert pairs["dpt"] == "24"


def test_ipv6_goes_to_the_slots_with_their_prescribed_labels(hostile):
    _, pairs = parse(cef.render(hostile))
    assert pairs["c6a2"] == "2001:db8::bad:1"
    assert pairs["c6a2Label"] == "Source IPv6 Address"
    assert pairs["c6a3"] == "2001:db8::10"
    assert pairs["c6a3Label"] == "Destination IPv6 Address"
    assert not {"src", "dst"} & set(pairs)


def test_the_attacked_and_the_acting_account_are_told_apart(make_alert):
    local = {"user.name": "joe", "process.name": "nmap", "process.pid": 5}
    _, pairs = parse(cef.render(document(make_alert(fields=local, evidence=[{"kind": "process.exec"}]))))
    assert (pairs["suser"], pairs["sproc"], pairs["spid"]) == ("joe", "nmap", "5")
    remote = {**local, "source.ip": "192.0.2.7"}
    _, pairs = parse(cef.render(document(make_alert(fields=remote, evidence=[{"kind": "auth.attempt"}]))))
    assert (pairs["duser"], pairs["dproc"], pairs["dpid"]) == ("joe", "nmap", "5")


def test_the_escaping_of_the_header_and_of_the_extension_differ(make_alert):
    line = cef.render(document(make_alert(title="a|b=c\\d", reason="a|b=c\\d")))
    assert "|a\\|b=c\\\\d|8|" in line
    assert "reason=a|b\\=c\\\\d " in line


@settings(max_examples=300)
@given(ANY, ANY, ANY, ANY)
def test_whatever_is_in_the_alert_can_be_read_back_and_forges_nothing(make_alert, title, reason, user, path):
    found = document(
        make_alert(
            title=title,
            reason=reason,
            fields={"user.name": user, "file.path": path, "source.ip": "192.0.2.7"},
        )
    )
    line = cef.render(found)
    assert len(line.splitlines()) == 1
    header, pairs = parse(line)
    assert header[4] == found["rule"]["name"].strip()
    assert pairs.get("duser", "") == found.get("user", {}).get("name", "").strip()
    assert pairs.get("filePath", "") == found.get("file", {}).get("path", "").strip()
    assert pairs.get("reason", "") == found["event"].get("reason", "").strip()
    assert pairs["msg"] == found["message"].strip()
    assert pairs["src"] == "192.0.2.7"
    assert pairs["externalId"] == found["event"]["id"]
    clean = document(
        make_alert(
            title="t", reason="r", fields={"user.name": "u", "file.path": "p", "source.ip": "192.0.2.7"}
        )
    )
    assert set(pairs) <= set(parse(cef.render(clean))[1])


@pytest.mark.parametrize(
    ("key", "limit"), [("dvchost", 100), ("duser", 1023), ("msg", 1023), ("filePath", 1023)]
)
def test_limits_count_bytes_and_no_escape_or_code_point_is_cut(make_alert, key, limit):
    for text in ("é=" * 2000, "\\" * 4000, "x" + "🦊" * 2000):
        found = document(
            make_alert(
                host=text, title=text, fields={"user.name": text, "file.path": text, "source.ip": "192.0.2.7"}
            )
        )
        _, pairs = parse(cef.render(found))
        assert limit - 4 < len(pairs[key].encode()) <= limit


def test_numbers_are_clamped_to_their_types(make_alert):
    _, pairs = parse(cef.render(document(make_alert(count=2**63))))
    assert pairs["cnt"] == str(2**31 - 1)
    assert pairs["cn1"] == str(2**63 - 1)


def test_a_document_without_anything_still_has_a_full_header():
    header, pairs = parse(cef.render({}))
    assert all(header)
    assert pairs == {"type": "2", "cat": "/", "act": "detected"}


def test_a_time_that_is_none_is_left_out(scan):
    scan["@timestamp"] = "2026-13-02T03:04:05.123Z"
    assert "rt" not in parse(cef.render(scan))[1]


def test_version_1_has_ipv6_in_its_place_and_64_bits(ipv6):
    _, old = parse(cef.render(ipv6))
    assert (old["in"], old["out"], old["deviceDirection"]) == (str(2**31 - 1), "12", "0")
    assert (old["c6a2"], old["c6a3"]) == ("2001:db8::bad:1", "2001:db8::10")
    line = make("cef", cef_version=1)(ipv6)
    assert line.startswith("CEF:1|KernelWatch|")
    _, new = parse(line)
    assert (new["in"], new["src"], new["dst"]) == ("5000000000", "2001:db8::bad:1", "2001:db8::10")
    assert (new["threatAttackID"], new["frameworkName"]) == ("T1048.003", "MITRE ATT&CK")
    assert new["reportedDuration"] == "1000"
    assert not {"c6a2", "c6a2Label", "c6a3", "c6a3Label"} & new.keys()
    newer = {"src", "dst", "threatAttackID", "frameworkName", "reportedDuration"}
    assert set(new) - newer == set(old) - {"c6a2", "c6a2Label", "c6a3", "c6a3Label"}


@pytest.mark.parametrize(
    ("direction", "expected"), [("egress", "1"), ("outbound", "1"), ("inbound", "0"), ("internal", None)]
)
def test_direction(ipv6, direction, expected):
    ipv6["network"]["direction"] = direction
    assert parse(cef.render(ipv6))[1].get("deviceDirection") == expected


@pytest.mark.parametrize(
    ("decision", "expected"),
    [("off", "detected"), ("dry-run", "detected"), ("blocked", "blocked"), ("failed", "block_failed"), ("released", "unblocked")],
)  # fmt: skip
def test_block_decisions(close, decision, expected):
    close["kwsiem"]["alert"]["block"]["decision"] = decision
    assert parse(cef.render(close))[1]["act"] == expected


def test_every_slot_has_its_label(documents):
    for found in documents.values():
        for line in (cef.render(found), cef.render(found, 1)):
            _, pairs = parse(line)
            slots = {key for key in pairs if re.fullmatch(r"(cs|cn|c6a)\d", key)}
            assert {f"{slot}Label" for slot in slots} == {key for key in pairs if key.endswith("Label")}


def test_the_count_of_a_digest_has_a_slot_of_its_own(digested):
    _, pairs = parse(cef.render(digested))
    assert (pairs["cn2"], pairs["cn2Label"]) == ("6", "DigestCount")
