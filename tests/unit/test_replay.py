"""Recorded events in all three forms go through the rules; what cannot be used is counted."""

import json

from kwsiem.event import EventKind, parse_fields
from kwsiem.messages import ProbeKinds
from kwsiem.replay import Replay
from kwsiem.rules.model import Compare, Correlation, Rule, RuleSet

KIND = EventKind("tcp.syn", parse_fields("source.ip:ip destination.port:port"))
PROBE = ProbeKinds("net", {1: KIND})
RULES = RuleSet(
    rules=(
        Rule(
            id="scan", title="t", level="low", events=("tcp.syn",), predicate=Compare("destination.port", "gt", 0),
            correlation=Correlation("value_count", ("source.ip",), timespan_ns=10**9, field="destination.port", value=3),
            suppress_ns=10**9, fingerprint="f",
        ),
    )
)  # fmt: skip


def replay(lines, probe=None):
    alerts = []
    made = Replay(RULES, {"tcp.syn": KIND}, alerts.append, host="here", probe=probe)
    made.feed([line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines])
    return made, alerts


def objects(ts_ns=lambda n: n):
    return [
        {"kind": "tcp.syn", "ts_ns": 10**9 + ts_ns(n), "source.ip": "192.0.2.1", "destination.port": n}
        for n in (1, 2, 3)
    ]


def values():
    return [{"type": "value", "data": [1, "192.0.2.1", n, 10**9 + n]} for n in (1, 2, 3)]


def test_objects():
    made, alerts = replay(objects())
    assert [a.values for a in alerts] == [[1, 2, 3]]
    assert (made.events, made.rejected) == (3, {})


def test_bare_lines_of_a_named_probe():
    assert [a.values for a in replay(values(), PROBE)[1]] == [[1, 2, 3]]


def test_bare_lines_of_nobody_are_counted():
    assert replay(values())[0].rejected == {"no_probe": 3}


def test_a_recording_brings_its_contract_host_and_clock():
    marks = [
        b'{"type":"kwsiem_host","data":{"host":"there","offset_ns":5000}}\n',
        b'{"type":"kwsiem_contract","data":{"probe":"net","numbers":{"1":{"name":"tcp.syn","fields":'
        b'[{"name":"source.ip","type":"ip"},{"name":"destination.port","type":"port"}]}}}}\n',
        b'{"type":"kwsiem_probe","data":"net"}\n',
    ]
    (alert,) = replay([*marks, *values()])[1]
    assert (alert.host, alert.raised_ns) == ("there", 10**9 + 3 + 5000)


def test_what_cannot_be_used_is_counted_by_reason():
    bad = [
        {"kind": "no.kind", "ts_ns": 1},
        {"kind": "tcp.syn", "ts_ns": 1, "destination.port": "x"},
        {"kind": "tcp.syn", "ts_ns": 1, "destination.port": 99999},
        {"kind": "tcp.syn", "ts_ns": 1, "no.field": 1},
        {"kind": "tcp.syn"},
        b'{"kind": \n',
        b"\xff\n",
    ]
    made, _ = replay(bad)
    assert made.rejected == {
        "unknown_kind": 1,
        "wrong_type": 3,
        "without_ts_ns": 1,
        "not_json": 1,
        "no_probe": 1,
    }


def test_quiet_incidents_close_by_the_time_of_events():
    late = {"kind": "tcp.syn", "ts_ns": 10**10, "source.ip": "192.0.2.9", "destination.port": 1}
    assert [a.state for a in replay([*objects(), late])[1]] == ["open", "close"]
