"""What is taken back has never been: state, alerts and blocks are those of a stream without it."""

import gc
import random
import sys
import weakref
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

import oracle
import streams
from msgspec.structs import replace

from kwsiem.correlate.engine import Engine
from kwsiem.event import EventKind, event_class, parse_fields
from kwsiem.rules.model import Block, Compare, Constant, Correlation, Number, Rule, RuleSet, Step

S = 10**9
TRY = EventKind("t.try", parse_fields("source.ip:ip test.value:u32 process.pid:u32"))
BACK = EventKind("t.back", parse_fields("process.pid:u32 event.retracted_ns:ts"), retracts="t.try")
TRY_EVENT, BACK_EVENT = event_class(TRY, 1), event_class(BACK, 2)
IP = "192.0.2.1"


def rule(kind="event_count", value=3, *, timespan_s=10, suppress_s=60, **more) -> Rule:
    correlation = Correlation(
        kind, ("source.ip",), timespan_ns=timespan_s * S, op="gte", value=value,
        field="test.value" if kind == "value_count" else "", steps=more.get("steps", ()),
    )  # fmt: skip
    return Rule(
        id="r", title="t", level="low", events=("t.try",), predicate=more.get("predicate", Constant(True)),
        correlation=correlation, suppress_ns=suppress_s * S, fingerprint="r", block=Block("source.ip", 60 * S),
    )  # fmt: skip


class Desk:
    """An engine with one rule, and what it said; tries are named by their pid."""

    def __init__(self, *rules: Rule) -> None:
        self.alerts: list = []
        self.withdrawn: list = []
        self.engine = Engine(
            lambda alert: self.alerts.append(replace(alert)),
            host="h",
            withdraw=lambda *what: self.withdrawn.append(what),
        )
        self.engine.set_rules(RuleSet(rules=rules))
        self.engine.bind(TRY_EVENT)
        self.engine.bind(BACK_EVENT)
        self.times: dict[int, int] = {}

    def attempt(self, pid: int, at_s: float, value: int = 0, ip: str = IP) -> None:
        self.times[pid] = int(at_s * S)
        self.engine.process([TRY_EVENT(ip, value, pid, self.times[pid])])

    def back(self, pid: int, at_s: float) -> None:
        self.engine.process([BACK_EVENT(pid, self.times[pid], int(at_s * S))])

    @property
    def said(self) -> list[tuple[str, int]]:
        assert self.engine.counters()["errors"] == {}, self.engine.counters()
        return [(alert.state, alert.count) for alert in self.alerts]


def test_a_count_forgets_what_is_taken_back():
    desk = Desk(rule())
    desk.attempt(1, 100)
    desk.attempt(2, 101)
    desk.back(2, 101.1)
    desk.attempt(3, 102)
    assert desk.said == []
    desk.attempt(4, 103)
    assert desk.said == [("open", 3)]
    assert desk.engine.counters()["taken_back"] == 1


def test_an_incident_below_its_threshold_is_over_and_its_block_withdrawn():
    desk = Desk(rule())
    for pid in (1, 2, 3):
        desk.attempt(pid, 100 + pid)
    desk.back(3, 103.5)
    assert desk.said == [("open", 3), ("close", 2)]
    assert desk.alerts[1].incident_id == desk.alerts[0].incident_id
    assert "taken back" in desk.alerts[1].reason
    assert desk.withdrawn == [(desk.alerts[0].id, "r", IP)]
    desk.attempt(4, 104)  # and it counts on from there: the next real one opens, and asks, again
    assert desk.said[2:] == [("open", 3)]
    assert desk.alerts[2].block["value"] == IP
    assert desk.alerts[2].incident_id != desk.alerts[0].incident_id


def test_an_incident_that_stands_without_it_counts_one_less_and_keeps_its_block():
    desk = Desk(rule())
    for pid in (1, 2, 3, 4):
        desk.attempt(pid, 100 + pid)
    desk.back(2, 104.5)
    desk.engine.finish(10**15)
    assert desk.said == [("open", 3), ("close", 3)]
    assert desk.withdrawn == []


def test_only_the_very_event_is_taken_back():
    desk = Desk(rule())
    desk.attempt(1, 100)
    desk.attempt(2, 101)
    desk.engine.process([BACK_EVENT(9, 101 * S, 102 * S), BACK_EVENT(2, 101 * S + 1, 102 * S)])
    desk.attempt(3, 102)
    assert desk.said == [("open", 3)]


def test_taken_back_twice_is_taken_back_once():
    desk = Desk(rule())
    for pid in (1, 2):
        desk.attempt(pid, 100 + pid)
    desk.back(2, 102.1)
    desk.back(2, 102.2)
    desk.attempt(3, 103)
    desk.attempt(4, 104)
    assert desk.said == [("open", 3)]


def test_a_retraction_that_comes_before_its_event():
    desk = Desk(rule())
    desk.times[2] = 101 * S
    desk.attempt(1, 100)
    desk.back(2, 102)
    desk.attempt(2, 101)
    desk.attempt(3, 102)
    assert desk.said == []


def test_values_are_forgotten_and_earlier_times_of_a_value_count_again():
    desk = Desk(rule("value_count", 3))
    desk.attempt(1, 100, 7)
    desk.attempt(2, 108, 7)
    desk.attempt(3, 109, 7)
    desk.attempt(4, 109.5, 8)
    desk.back(3, 109.6)
    desk.back(4, 109.7)
    desk.attempt(5, 117, 8)
    desk.attempt(6, 117.5, 9)  # 7 at 108, 8 at 117, 9: three within ten seconds
    assert [(a.state, a.count, a.values) for a in desk.alerts] == [("open", 3, [7, 8, 9])]


def test_a_sequence_does_not_follow_from_what_was_taken_back():
    failed, accepted = Number("test.value", (0,)), Number("test.value", (1,))
    steps = (Step("failure", failed, 3), Step("success", accepted))
    desk = Desk(rule("sequence", 1, steps=steps))
    for pid in (1, 2, 3):
        desk.attempt(pid, 100 + pid, 0)
    desk.back(3, 103.4)
    desk.attempt(4, 103.5, 1)
    assert desk.said == []
    desk.attempt(5, 104, 0)
    desk.attempt(6, 105, 1)
    assert [state for state, _ in desk.said] == ["open"]


def test_a_rule_without_correlation_closes_what_it_opened():
    desk = Desk(rule("any", 1, timespan_s=0))
    desk.attempt(1, 100)
    desk.back(1, 100.5)
    assert desk.said == [("open", 1), ("close", 0)]
    assert len(desk.withdrawn) == 1


def test_a_rule_that_waits_takes_back_what_is_not_yet_decided():
    """Fewer than two tries is decided after the lateness; the event is gone by then."""
    few = replace(rule(), correlation=replace(rule().correlation, op="eq", value=1))
    desk = Desk(few)
    desk.attempt(1, 100)
    desk.back(1, 100.5)
    desk.engine.advance(200 * S)
    assert desk.said == []
    desk.attempt(2, 300)
    desk.engine.advance(400 * S)
    assert desk.said[0] == ("open", 1)


def test_what_a_rule_did_not_look_at_is_not_taken_from_it():
    desk = Desk(rule(predicate=Compare("test.value", "lt", 5)))
    for pid, value in ((1, 0), (2, 9), (3, 0)):
        desk.attempt(pid, 100 + pid, value)
    desk.back(2, 103.5)
    desk.attempt(4, 104, 0)
    assert desk.said == [("open", 3)]


def test_a_kind_bound_later_than_the_rules_had_events_takes_nothing_wrong_back():
    """A restart: the state comes from a snapshot without a journal, so that only incidents count less."""
    desk = Desk(rule())
    for pid in (1, 2):
        desk.attempt(pid, 100 + pid)
    after = Desk()
    after.engine.offer(desk.engine.save())
    after.engine.set_rules(RuleSet(rules=(rule(),)))
    after.attempt(3, 103)
    assert after.said == [("open", 3)]
    after.back(3, 103.5)
    assert after.said == [("open", 3), ("close", 2)]
    assert [value for _, _, value in after.withdrawn] == [IP]


def test_a_block_asked_for_before_a_restart_can_be_withdrawn():
    desk = Desk(rule())
    for pid in (1, 2, 3):
        desk.attempt(pid, 100 + pid)
    after = Desk()
    after.engine.offer(desk.engine.save())
    after.engine.set_rules(RuleSet(rules=(rule(),)))
    after.attempt(4, 104)
    after.back(4, 104.5)
    assert after.withdrawn == []
    after.attempt(5, 105)
    after.engine.finish(10**15)
    assert after.said == [("close", 4)]


def test_a_probe_that_comes_again_takes_back_with_classes_of_its_own():
    desk = Desk(rule())
    desk.attempt(1, 100)
    desk.engine.unbind(TRY_EVENT)
    desk.engine.unbind(BACK_EVENT)
    again, back = event_class(TRY, 1), event_class(BACK, 2)
    desk.engine.bind(again)
    desk.engine.bind(back)
    desk.engine.process([again(IP, 0, 2, 101 * S)])
    desk.engine.process([back(2, 101 * S, 102 * S)])
    desk.engine.process([again(IP, 0, 3, 102 * S)])
    assert desk.said == []


def test_memory_is_bounded_and_a_long_incident_still_counts_less(monkeypatch):
    from kwsiem.correlate import retract

    monkeypatch.setattr(retract, "MAX_SEEN", 300)
    monkeypatch.setattr(retract, "MAX_AHEAD", 10)
    monkeypatch.setattr(retract, "MAX_MATCHES", 900)
    desk = Desk(rule(timespan_s=1000, suppress_s=1000))
    for pid in range(2000):
        desk.attempt(pid, 100 + pid / 100)
    for pid in range(1990, 2000):
        desk.back(pid, 121)
    for host in range(3000):
        desk.attempt(5000 + host, 122, ip=f"10.0.{host >> 8}.{host & 255}")
        desk.engine.process([BACK_EVENT(host, 5, 122 * S)])
    retractions = desk.engine._retractions["t.try"]
    (state,) = desk.engine._states
    assert len(retractions._seen) <= 300
    assert len(retractions._ahead) <= 10
    assert state.journal._matches == sum(len(s.matches) for s in state.journal._stories.values()) <= 900
    desk.engine.finish(10**15)
    assert [alert.count for alert in desk.alerts if alert.state == "close"] == [1990]


def test_rules_of_other_kinds_keep_no_journal():
    other = replace(rule(), id="o", fingerprint="o", events=("t.e",))
    desk = Desk(rule(), other)
    assert [state.journal is not None for state in desk.engine._states] == [True, False]


# -- against the oracle


def _random_rule(rng: random.Random, kind: str) -> Rule:
    steps = ()
    if kind in ("sequence", "temporal"):
        steps = tuple(Step(f"s{n}", Number("test.value", (n,)), rng.choice((1, 2))) for n in range(2))
        if kind == "temporal":
            steps = tuple(replace(step, count=1) for step in steps)
    value = {"event_count": rng.randrange(1, 6), "value_count": rng.randrange(1, 4), "temporal": 2}.get(
        kind, 1
    )
    made = rule(kind, value, timespan_s=0 if kind == "any" else rng.randrange(1, 12), steps=steps)
    return replace(made, suppress_ns=rng.choice((3, 15, 200)) * S)


def _random_stream(rng: random.Random) -> list[tuple[int, str, tuple]]:
    """(time, what, event) in the order of time: tries, some of which are taken back within two seconds."""
    at_ns, stream = 400 * S, []
    for pid in range(rng.randrange(4, 40)):
        at_ns += rng.choice((1, 2, 3, 4, 8, rng.randrange(1, 40))) * streams.QUARTER + rng.randrange(1000)
        event = (f"192.0.2.{rng.randrange(1, 3)}", rng.randrange(4), pid)
        gone = rng.random() < 0.3
        stream.append((at_ns, "gone" if gone else "try", event))
        if gone:
            stream.append((at_ns + rng.randrange(1, 2 * S), "back", (pid, at_ns)))
    return sorted(stream)


def _run(made: Rule, stream: list[tuple[int, str, tuple]], rng: random.Random) -> list[tuple]:
    """(group, opened, count at the opening, total) of each incident that was not taken back."""
    desk = Desk(made)
    for at_ns, what, event in stream:
        desk.engine.process([(BACK_EVENT if what == "back" else TRY_EVENT)(*event, at_ns)])
        if rng.random() < 0.3:
            desk.engine.advance(at_ns)
    desk.engine.finish(streams.END_NS)
    assert desk.said is not None
    closed = {a.incident_id: a for a in desk.alerts if a.state == "close"}
    found = []
    for alert in desk.alerts:
        if alert.state == "open" and "taken back" not in closed[alert.incident_id].reason:
            ip = alert.identity["source.ip"]
            found.append((ip, alert.opened_ts_ns, alert.count, closed[alert.incident_id].count))
    return found


@pytest.mark.parametrize("kind", ["event_count", "value_count", "sequence", "temporal", "any"])
def test_a_stream_with_retractions_is_the_stream_without_what_they_take_back(kind):
    """All incidents with their totals; those that opened after the last retraction in everything."""
    compared = told_later = 0
    for seed in range(400):
        rng = random.Random(f"{kind} {seed}")
        made, stream = _random_rule(rng, kind), _random_stream(rng)
        clean = [
            oracle.Happening("t.try", {"source.ip": e[0], "test.value": e[1]}, at_ns)
            for at_ns, what, e in stream
            if what == "try"
        ]
        expected = [
            (i.group[0], i.opened_ns, i.count, i.total) for i in oracle.incidents(made, clean, streams.END_NS)
        ]
        got = _run(made, stream, rng)
        last_ns = max((at_ns for at_ns, what, _ in stream if what == "back"), default=0)
        totals = [sorted((ip, total) for ip, _, _, total in each) for each in (expected, got)]
        assert totals[0] == totals[1], f"{kind} {seed}\n{made}\n{stream}\n{expected}\n{got}"
        late = [sorted(i for i in each if i[1] > last_ns) for each in (expected, got)]
        assert late[0] == late[1], f"{kind} {seed}"
        compared += len(expected)
        told_later += len(late[0])
    assert compared > 100
    assert told_later > 10


def test_rules_behind_a_dictionary_take_back_too():
    """Many rules that test one field for equality share a look-up; each keeps a journal of its own."""
    many = [
        replace(
            rule(predicate=Number("test.value", (number % 3,))), id=f"r{number}", fingerprint=f"r{number}"
        )
        for number in range(6)
    ]
    desk = Desk(*many)
    for pid in (1, 2, 3):
        desk.attempt(pid, 100 + pid, 1)
    desk.back(2, 103.5)
    assert sorted(alert.rule_id for alert in desk.alerts if alert.state == "open") == ["r1", "r4"]
    assert sorted(rule_id for _, rule_id, _ in desk.withdrawn) == ["r1", "r4"]
    desk.attempt(4, 104, 2)
    assert len(desk.alerts) == 4


@pytest.mark.parametrize("others", [0, 120])
def test_replaced_rules_leave_nothing_behind_without_a_garbage_collector(others):
    """The engine runs without one: no state may hold itself."""
    more = [replace(rule(predicate=Compare("test.value", "lt", n)), id=f"o{n}") for n in range(others)]
    desk = Desk(rule(), *more)
    desk.attempt(1, 100)
    gc.collect()
    gc.disable()
    try:
        old = weakref.ref(desk.engine._states[0])
        desk.engine.set_rules(RuleSet(rules=(replace(rule(), fingerprint="new"), *more)))
        desk.attempt(2, 101)
        assert old() is None
    finally:
        gc.enable()
