"""Derived fields: what follows from other fields, in rules, in tests of rules, and in evidence."""

import json
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwsiem.correlate.engine import Engine
from kwsiem.decode import LineDecoder
from kwsiem.derive import entropy, question
from kwsiem.document import document
from kwsiem.errors import ConfigError
from kwsiem.event import OWN_KINDS, EventKind, event_class, event_fields, event_from_fields, parse_fields
from kwsiem.messages import ProbeKinds
from kwsiem.rules.load import Source, load_rules

DNS = EventKind(
    "dns.query",
    parse_fields(
        "source.ip:ip dns.question.wire:bytes dns.question.number:u16"
        " observer.ingress.interface.name:str observer.egress.interface.name:str"
    ),
)
HTTP = EventKind("http.request", parse_fields("source.ip:ip http.request.line:str"), proof=())
FLOW = EventKind("flow.rate", parse_fields("flow.class:u8 observer.ingress.interface.name:str"))
RESET = EventKind("tcp.refused", parse_fields("source.ip:ip observer.egress.interface.name:str"))
KINDS = {kind.name: kind for kind in (DNS, HTTP, FLOW, RESET)}


def made(kind: EventKind, **values):
    named = {name.replace("__", "."): value for name, value in values.items()}
    return event_from_fields(event_class(kind, 1), kind, named, 5)


def fields(kind: EventKind, **values):
    return event_fields(made(kind, **values))


def wire(*labels: bytes) -> str:
    return b"".join(bytes([len(label)]) + label for label in (*labels, b"")).decode("latin-1")


@pytest.mark.parametrize(
    ("name", "registered", "subdomain"),
    [
        (wire(b"a", b"B", b"Example", b"com"), "example.com", "a.b"),
        (wire(b"www", b"example", b"co", b"uk"), "example.co.uk", "www"),
        (wire(b"co", b"uk"), "co.uk", ""),
        (wire(b"localhost"), "", "localhost"),
        (wire(b"7", b"113", b"0", b"203", b"in-addr", b"arpa"), "in-addr.arpa", "7.113.0.203"),
        (wire(), "", ""),
        ("", "", ""),
        (wire(b"a", b"example", b"com")[:-1], "example.com", "a"),  # str() leaves out the zero
        (wire(b"abc", b"example", b"com")[:-3], "", "abc.example.c"),  # cut in the last label
        (
            wire(b"k" * 63, b"t", b"example", b"com")[20:],
            "example.com",
            "k" * 44 + ".t",
        ),  # the end of a long one
        (wire(b"0" * 63, b"example", b"com")[20:], "example.com", "0" * 44),  # a digit is a length, too
        ("\x03abc\xc0\x0c", "", "abc"),  # a compression pointer
        (wire(b"a.b", b"c\\\x00\xff d", b"example", b"com"), "example.com", "a\\x2eb.c\\x5c\\x00\\xff\\x20d"),
    ],
)
def test_a_name_on_the_wire_has_a_registered_domain_and_a_subdomain(name, registered, subdomain):
    found = question(name)
    assert (found.registered_domain, found.subdomain) == (registered, subdomain)
    assert found.name == ("." if name == "\0" else ".".join(part for part in (subdomain, registered) if part))


@given(st.text(st.characters(max_codepoint=255), max_size=400))
def test_any_bytes_make_a_bounded_printable_name(text):
    found = question(text)
    assert len(found.name) <= 4 * 255
    assert found.name.isascii()
    assert found.name.isprintable()
    assert found.length <= 255


@given(st.lists(st.binary(min_size=1, max_size=63).map(bytes.lower), min_size=1, max_size=3))
def test_a_name_goes_to_the_wire_and_back(labels):
    event = made(DNS, dns__question__name=question(wire(*labels)).name)
    assert event.dns_question_wire == wire(*labels)


@given(st.text("abcdef0123456789", min_size=1, max_size=200))
def test_entropy_is_shannons_in_hundredths(text):
    exact = -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())
    assert abs(entropy(text) - 100 * exact) <= 1
    assert (entropy("aaaa"), entropy("ab"), entropy("abcdabcd"), entropy("")) == (0, 100, 200, 0)


def test_the_direction_is_told_by_the_interface():
    names = ("observer__ingress__interface__name", "observer__egress__interface__name")
    assert fields(DNS, **{names[0]: "eth0"})["network.direction"] == "ingress"
    assert fields(DNS, **{names[1]: "eth0"})["network.direction"] == "egress"
    assert fields(DNS, **{names[0]: "lo"})["network.direction"] == "internal"
    assert fields(RESET, **{names[1]: "eth0"})["network.direction"] == "egress"
    assert fields(RESET, **{names[1]: "lo"})["network.direction"] == "internal"
    assert fields(FLOW, **{names[0]: "eth0"})["network.direction"] == "ingress"
    assert "network.direction" not in fields(FLOW)  # it arrived, but nobody said where


@pytest.mark.parametrize(
    ("line", "method", "url"),
    [
        ("GET /a?b=c HTTP/1.1", "GET", "/a?b=c"),
        ("POST /cut-in-the-middle", "POST", "/cut-in-the-middle"),
        ("GET /a b HTTP/1.0\r", "GET", "/a b"),
        ("\x16\x03\x01 x", None, None),
        ("GET", None, None),
        ("", None, None),
    ],
)
def test_a_request_line_has_a_method_and_a_target(line, method, url):
    found = fields(HTTP, http__request__line=line)
    assert (found.get("http.request.method"), found.get("url.original")) == (method, url)


def test_numbers_have_names_and_go_back():
    assert fields(FLOW, flow__class=5)["flow.kind"] == "dns.query"
    assert "flow.kind" not in fields(FLOW, flow__class=77)
    assert made(FLOW, flow__kind="icmp.echo").flow_class == 4
    assert fields(DNS, dns__question__number=16)["dns.question.type"] == "TXT"
    assert fields(DNS, dns__question__number=999)["dns.question.type"] == "TYPE999"
    assert made(DNS, dns__question__type="TYPE999").dns_question_number == 999


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (DNS, {"network.direction": "ingress"}, "network.direction cannot be set: it follows from"),
        (DNS, {"dns.question.length": 7}, "dns.question.length cannot be set"),
        (DNS, {"dns.question.name": "a" * 64 + ".com"}, "labels of 1 to 63 bytes"),
        (DNS, {"dns.question.name": "a." * 140}, "at most 255 bytes"),
        (DNS, {"dns.question.name": 7}, "expected str"),
        (DNS, {"dns.question.wire": "\u20ac"}, "one character for each byte"),
        (FLOW, {"flow.kind": "tcp"}, "expected one of tcp.syn"),
    ],
)
def test_a_derived_value_that_nothing_gives_is_an_error(kind, values, said):
    with pytest.raises(ValueError, match=said):
        event_from_fields(event_class(kind, 1), kind, values, 5)


def test_the_fields_of_an_event_make_the_same_event_again():
    event = made(
        DNS,
        dns__question__name="x.example.com",
        dns__question__number=1,
        observer__ingress__interface__name="lo",
    )
    assert event_from_fields(type(event), DNS, event_fields(event), 5) == event


@pytest.mark.parametrize(
    "printed",
    [
        [3, 97, 32, -1, 2, 92, 120, 0],
        "\\x03a \\xff\\x02\\x5cx\\x00",  # buf() up to 0.23
        "\x03a \uffffffff\x02\\x\x00",  # str(): control characters as they are, bytes >= 0x80 one by one
    ],
)
def test_bytes_are_one_text_in_every_version(printed):
    kinds = ProbeKinds("p", {1: EventKind("k", parse_fields("a:bytes b:str"))})
    decoder = LineDecoder(kinds)
    line = json.dumps({"type": "value", "data": [1, printed, "x\uffffffe9\\x41", 5]}).encode() + b"\n"
    (event,) = decoder.feed(line)
    assert event.a == "\x03a \xff\x02\\x\0"
    assert event.b == "x\\xe9\\x41"


def test_bytes_that_0_14_passed_through_are_bytes_too():
    kinds = ProbeKinds("p", {1: EventKind("k", parse_fields("a:bytes"))})
    (event,) = LineDecoder(kinds).feed(b'{"type": "value", "data": [1,"caf\xc3\xa9 \xff",5]}\n')
    assert event.a == "caf\xc3\xa9 \xff"


@pytest.mark.parametrize("printed", [7, None, [300], ["a"], [1.5], {"a": 1}])
def test_what_is_no_bytes_is_rejected(printed):
    decoder = LineDecoder(ProbeKinds("p", {1: EventKind("k", parse_fields("a:bytes"))}))
    assert decoder.feed(json.dumps({"type": "value", "data": [1, printed, 5]}).encode() + b"\n") == []
    assert decoder.rejected == {"wrong_type": 1}


RULES = """
version: 1
rules:
  - id: tunnel
    title: Many long names below one domain
    level: high
    event: dns.query
    detection:
      long: {dns.question.length|gte: 8, dns.question.entropy|gt: 200, dns.question.type: [TXT, 'NULL']}
      own: {network.direction: internal}
      condition: long and not own
    correlation:
      type: value_count
      field: dns.question.subdomain
      group-by: [source.ip, dns.question.registered_domain]
      timespan: 1m
      condition: {gte: 2}
    tests:
      - name: two
        events:
          - {kind: dns.query, source.ip: 192.0.2.7, dns.question.name: a1b2c3d4e5.t.example.com, dns.question.type: TXT}
          - {kind: dns.query, source.ip: 192.0.2.7, dns.question.name: f6g7h8i9j0.t.example.com, dns.question.number: 10}
        alerts: 1
      - name: not on loopback
        events:
          - {kind: dns.query, source.ip: 192.0.2.7, dns.question.name: a1b2c3d4e5.t.example.com, dns.question.type: TXT,
             observer.ingress.interface.name: lo}
          - {kind: dns.query, source.ip: 192.0.2.7, dns.question.name: f6g7h8i9j0.t.example.com, dns.question.number: 10}
        alerts: 0
"""


def test_rules_use_derived_fields_and_check_their_types():
    ruleset = load_rules([Source("r.yaml", RULES.encode())], KINDS)
    assert ruleset.rules[0].correlation.field == "dns.question.subdomain"
    with pytest.raises(ConfigError, match=r"dns\.question\.length"):
        load_rules([Source("r.yaml", RULES.replace("length|gte: 8", "length|contains: x").encode())], KINDS)


def test_every_event_in_evidence_says_whether_it_proves_its_source():
    alerts = []
    engine = Engine(alerts.append, host="h")
    text = """
version: 1
rules:
  - {id: a, title: a, level: low, event: [http.request, dns.query], detection: {one: {source.ip|exists: true}, condition: one},
     suppress: 1m}
  - {id: b, title: b, level: low, event: sensor.lost, detection: {one: {event.count|gte: 0}, condition: one}}
"""
    engine.set_rules(load_rules([Source("r.yaml", text.encode())], {**KINDS, **OWN_KINDS}))
    events = [
        made(DNS, source__ip="192.0.2.7"),
        made(HTTP, source__ip="192.0.2.7"),
        made(OWN_KINDS["sensor.lost"]),
    ]
    for event in events:
        engine.bind(type(event))
    engine.process(events)
    engine.finish(10**12)
    grades = [
        [event["grade"] for event in document(alert)["kwsiem"]["alert"]["evidence"]]
        for alert in alerts
        if alert.state != "update"
    ]
    assert ["proven"] in grades
    assert ["spoofable", "proven"] in grades
    assert OWN_KINDS["block.decision"].proof is None
