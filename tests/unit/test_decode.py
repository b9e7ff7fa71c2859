"""Lines become events; what is wrong is counted, never raised."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwsiem.decode import MAX_LINE_BYTES, LineDecoder
from kwsiem.event import EventKind, parse_fields
from kwsiem.messages import ProbeKinds

KINDS = ProbeKinds(
    "p",
    {
        0: EventKind("sensor.heartbeat", ()),
        1: EventKind("tcp.syn", parse_fields("source.ip:ip destination.port:port process.name:str")),
    },
)
GOOD = b'{"type": "value", "data": [1,"198.51.100.7",22,"nc",5]}\n'


def line(*data: object, kind: str = "value") -> bytes:
    return json.dumps({"type": kind, "data": list(data)}).encode() + b"\n"


def balanced(decoder: LineDecoder) -> bool:
    return decoder.received == decoder.accepted + sum(decoder.rejected.values())


def test_a_line_becomes_an_event_with_the_fields_of_the_contract():
    (event,) = LineDecoder(KINDS).feed(GOOD)
    assert (event.source_ip, event.destination_port, event.process_name, event.ts_ns) == (
        "198.51.100.7",
        22,
        "nc",
        5,
    )
    assert event.KIND.name == "tcp.syn"


@pytest.mark.parametrize("size", [1, 7, 30, 57, 1000])
def test_lines_may_be_cut_anywhere(size):
    decoder = LineDecoder(KINDS)
    data = GOOD * 20
    events = [e for start in range(0, len(data), size) for e in decoder.feed(data[start : start + size])]
    assert len(events) == 20
    assert balanced(decoder)


def test_heartbeats_are_taken_out_and_remembered():
    decoder = LineDecoder(KINDS)
    assert decoder.feed(line(0, 77)) == []
    assert decoder.heartbeat_ns == 77
    assert len(decoder.feed(GOOD + line(0, 99) + GOOD)) == 2
    assert decoder.heartbeat_ns == 99
    assert balanced(decoder)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"Attaching 3 probes...\n", "plain_text"),
        (b"\xff\xfe\x00 no text\n", "plain_text"),
        (b'{"type": "value", "data": [1,"198.51\n', "not_json"),
        (line(7, "x", 5), "unknown_kind"),
        (line(1, "198.51.100.7", 22, 5), "wrong_arity"),
        (line(1, "198.51.100.7", 22, "nc", 5, 6), "wrong_arity"),
        (line(1, "198.51.100.7", "ssh", "nc", 5), "wrong_type"),
        (line(1, None, 22, "nc", 5), "wrong_type"),
        (b'{"type": "value", "data": "text"}\n', "wrong_type"),
        (b'{"type": "value"}\n', "wrong_type"),
        (b'{"type": "printf", "data": "forged"}\n', "record_printf"),
        (b'{"type": "kwsiem", "data": 1}\n', "unknown_type"),
        (b"[1, 2]\n", "unknown_type"),
        (b"[" * 5000 + b"\n", "not_json"),
        (b'{"type": "value", "data": [1,"\xff' + b"x" * MAX_LINE_BYTES + b'",22,"nc",5]}\n', "too_long"),
    ],
)
def test_a_bad_line_is_counted_with_its_reason_and_harms_no_other(bad, reason):
    decoder = LineDecoder(KINDS)
    events = decoder.feed(GOOD + bad + GOOD)
    assert len(events) == 2
    assert decoder.rejected == {reason: 1}
    assert decoder.received == 3
    assert balanced(decoder)


def test_a_line_without_end_is_dropped_to_its_end_and_bounded():
    decoder = LineDecoder(KINDS)
    for _ in range(20):
        assert decoder.feed(b"x" * 65536) == []
    assert len(decoder._tail) <= MAX_LINE_BYTES
    assert len(decoder.feed(b"end\n" + GOOD)) == 1
    assert decoder.rejected == {"too_long": 1}
    assert balanced(decoder)


def test_a_line_cut_by_the_end_of_the_pipe_is_rejected():
    decoder = LineDecoder(KINDS)
    decoder.feed(GOOD[:-10])
    decoder.finish()
    assert decoder.rejected == {"cut_line": 1}
    assert balanced(decoder)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (b'{"type": "lost_events", "data": {"events": 77}}\n', 77),
        (b'{"type": "lost_events", "data": {"events": 77, "count": 77}}\n', 77),
        (b'{"type": "lost_events", "data": {"events": 6007b}}\n', 0x6007B),
    ],
)
def test_losses_are_added_up_in_decimal_and_in_the_hexadecimal_of_0_24(text, count):
    decoder = LineDecoder(KINDS)
    assert decoder.feed(text + text) == []
    assert decoder.lost == 2 * count
    assert balanced(decoder)


def test_what_bpftrace_writes_by_itself_is_accepted_and_no_event():
    decoder = LineDecoder(KINDS)
    assert (
        decoder.feed(
            b'{"type": "attached_probes", "data": {"probes": 3}}\n{"type": "map", "data": {"@x": 1}}\n'
        )
        == []
    )
    assert (decoder.accepted, decoder.rejected) == (2, {})


def test_integers_may_come_as_text():
    (event,) = LineDecoder(KINDS).feed(b'{"type": "value", "data": [1,"::1",22,"nc","9007199254740993"]}\n')
    assert event.ts_ns == 9007199254740993


@given(st.binary(max_size=60).filter(lambda b: b"\0" not in b))
def test_bytes_escaped_one_by_one_come_back_as_text(data):
    """As bpftrace 0.17 and later writes a byte >= 0x80: U+FFFF, then ff and the byte in hexadecimal."""
    escaped = "".join(f"\uffffff{b:02x}" if b >= 0x80 else chr(b) for b in data)
    (event,) = LineDecoder(KINDS).feed(line(1, "::1", 1, escaped, 5))
    assert event.process_name == data.decode("utf-8", "backslashreplace")
    event.process_name.encode("utf-8")


def test_raw_bytes_of_0_14_are_kept_visible():
    decoder = LineDecoder(KINDS)
    raw = b'{"type": "value", "data": [1,"::1",1,"caf\xc3\xa9 \xff \\\\x41",5]}\n'
    (event,) = decoder.feed(raw)
    assert event.process_name == "café \\xff \\x41"
    assert decoder.rejected == {}


@given(st.lists(st.one_of(st.just(GOOD), st.binary(max_size=80)), max_size=20), st.integers(1, 50))
def test_no_bytes_at_all_raise_and_the_ledger_balances(parts, size):
    decoder = LineDecoder(KINDS)
    data = b"\n".join(parts)
    for start in range(0, len(data), size):
        decoder.feed(data[start : start + size])
    decoder.finish()
    assert balanced(decoder)


def test_hostile_text_stays_in_its_field():
    name = 'x",1]}\n{"type": "value", "data": [1,"6.6.6.6",1,"forged",1]}'
    (event,) = LineDecoder(KINDS).feed(line(1, "::1", 1, name, 5))
    assert event.process_name == name
