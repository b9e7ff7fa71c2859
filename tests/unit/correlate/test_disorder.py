"""Events out of order, dated wrongly or of a class nobody knows: the result stands, and memory is bounded."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsiem.correlate.engine import Engine
from kwsiem.event import EventKind, event_class, parse_fields
from kwsiem.rules.model import (
    And,
    Cidr,
    Compare,
    Constant,
    Correlation,
    Not,
    Number,
    Regex,
    Rule,
    RuleSet,
    Step,
    Text,
    decode_ruleset,
)

KIND = EventKind("t.e", parse_fields("source.ip:ip test.value:u32 user.name:str"))
EVENT = event_class(KIND, 1)
S = 10**9
QUARTER = S // 4
ALL = Compare("test.value", "gte", 0)
FAIL, OK = Number("test.value", (0,)), Number("test.value", (1,))


def rule(correlation: Correlation, predicate=ALL, number: int = 0, suppress_s: int = 10**7) -> Rule:
    return Rule(
        id=f"r{number}", title="t", level="low", events=("t.e",), predicate=predicate, correlation=correlation,
        suppress_ns=suppress_s * S, fingerprint=f"{number} {hash(correlation)}",
    )  # fmt: skip


def started(*rules: Rule, cls=EVENT) -> tuple[Engine, list]:
    alerts: list = []
    engine = Engine(alerts.append, host="h")
    engine.set_rules(RuleSet(rules=rules))
    engine.bind(cls)
    return engine, alerts


def said(correlation: Correlation, *events: tuple[int, int], predicate=ALL) -> list:
    """Alerts for (value, time) of one source, in the order given."""
    engine, alerts = started(rule(correlation, predicate))
    engine.process([EVENT("192.0.2.1", value, "", ts_ns) for value, ts_ns in events])
    return alerts


def count(value: int, timespan_ns: int) -> Correlation:
    return Correlation("event_count", ("source.ip",), timespan_ns=timespan_ns, value=value)


def distinct(value: int, timespan_ns: int) -> Correlation:
    return Correlation(
        "value_count", ("source.ip",), timespan_ns=timespan_ns, field="test.value", value=value
    )


def sequence(*steps: Step, timespan_ns: int = 60 * S) -> Correlation:
    return Correlation("sequence", ("source.ip",), timespan_ns=timespan_ns, steps=steps)


# Times up to 10 s in quarters; each event arrives up to 2 s after its time: (value, time, delay).
STREAMS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(1, 40), st.integers(0, 8)), min_size=1, max_size=30
)


def arrive(stream: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """(value, ts_ns) in order of arrival."""
    return [(v, t * QUARTER) for v, t, d in sorted(stream, key=lambda e: e[1] + e[2])]


@settings(max_examples=400)
@given(STREAMS, st.integers(1, 5), st.integers(1, 24))
def test_event_count_does_not_depend_on_the_order_within_the_lateness(stream, threshold, window):
    times = [t for _, t, _ in stream]
    expected = any(sum(t - window < s <= t for s in times) >= threshold for t in times)
    assert bool(said(count(threshold, window * QUARTER), *arrive(stream))) is expected


@settings(max_examples=400)
@given(STREAMS, st.integers(1, 5), st.integers(1, 24))
def test_value_count_does_not_depend_on_the_order_within_the_lateness(stream, threshold, window):
    expected = any(len({v for v, s, _ in stream if t - window < s <= t}) >= threshold for _, t, _ in stream)
    assert bool(said(distinct(threshold, window * QUARTER), *arrive(stream))) is expected


def chain_exists(stream, steps, window) -> bool:
    """Whether there is a chain of the steps, shorter than the window: brute force from the definition."""

    def go(number, after, begun):
        if number == len(steps):
            return True
        values, need = steps[number]
        times = sorted(t for v, t, _ in stream if v in values and t > after)
        # Any `need` of them in a row will do; a chain through others is no shorter.
        return any(
            go(number + 1, times[i + need - 1], times[i] if begun is None else begun)
            for i in range(len(times) - need + 1)
            if times[i + need - 1] - (times[i] if begun is None else begun) < window
        )

    return go(0, 0, None)


@settings(max_examples=600)
@given(
    STREAMS,
    st.lists(
        st.tuples(st.frozensets(st.integers(0, 4), min_size=1, max_size=3), st.integers(1, 3)),
        min_size=2,
        max_size=3,
    ),
    st.integers(1, 30),
)
def test_a_sequence_does_not_depend_on_the_order_and_steps_may_overlap(stream, steps, window):
    made = [Step(f"s{n}", Number("test.value", tuple(v)), need) for n, (v, need) in enumerate(steps)]
    expected = chain_exists(stream, steps, window)
    assert bool(said(sequence(*made, timespan_ns=window * QUARTER), *arrive(stream))) is expected


def test_an_event_matches_a_sequence_only_if_it_meets_the_condition_too():
    not_two = Not(Number("test.value", (2,)))
    steps = sequence(Step("any", ALL), Step("ok", OK))
    assert said(steps, (2, S), (1, 2 * S), predicate=not_two) == []
    assert len(said(steps, (3, S), (1, 2 * S), predicate=not_two)) == 1


def test_one_event_counts_once_in_a_sequence_whatever_steps_it_matches():
    alerts = said(sequence(Step("a", ALL), Step("b", ALL)), (0, S), (0, 2 * S))
    assert [(a.state, a.count) for a in alerts] == [("open", 2)]


def test_a_flood_of_one_step_does_not_push_out_the_beginning_of_a_sequence():
    steps = sequence(Step("a", FAIL, 2), Step("b", OK), Step("c", Number("test.value", (2,))))
    flood = [(0, 10 * S + n * 10**6) for n in range(5000)]
    assert len(said(steps, (0, S), (0, 2 * S), (1, 3 * S), *flood, (2, 30 * S))) == 1


def test_a_rule_set_with_a_sequence_of_too_many_events_is_refused():
    steps = sequence(Step("a", FAIL, 1000), Step("b", OK))
    with pytest.raises(Exception, match="more than 1000 events"):
        decode_ruleset(RuleSet(rules=(rule(steps),)).encode())


# -- wrong dates ---------------------------------------------------------------------------------------

FUTURE = 90_000 * S


def test_an_event_from_the_future_hides_no_event_count():
    assert said(count(5, 60 * S), *((0, n * S) for n in (1, 2, 3, 4)), (0, FUTURE), (0, 5 * S))


def test_an_event_from_the_future_hides_no_value_count():
    assert said(distinct(5, 60 * S), *((n, n * S) for n in (1, 2, 3, 4)), (9, FUTURE), (5, 5 * S))


def test_an_event_from_the_future_hides_no_sequence():
    assert said(sequence(Step("f", FAIL), Step("ok", OK)), (0, S), (0, FUTURE), (1, 2 * S))


# -- what must not stop the rest -------------------------------------------------------------------------


def test_an_event_of_an_unbound_class_is_counted_and_stops_none():
    stranger = event_class(EventKind("x.y", parse_fields("a.b:u8")), 2)
    engine, alerts = started(rule(count(1, S)))
    engine.process([stranger(1, 1), EVENT("192.0.2.1", 0, "", S)])
    assert len(alerts) == 1
    assert engine.counters()["errors"] == {"x.y": 1}
    assert engine.counters()["events"] == {"x.y": 1, "t.e": 1}


def test_text_that_no_encoder_takes_is_counted_and_stops_none():
    engine, alerts = started(rule(Correlation(), Regex("user.name", "x")))
    engine.process([EVENT("192.0.2.1", 0, "\udc80", 1), EVENT("192.0.2.1", 0, "x", 2)])
    assert len(alerts) == 1
    assert engine.counters()["errors"] == {"t.e": 1}


def test_a_class_that_lacks_a_field_many_rules_test_can_be_bound():
    many = [rule(count(1, S), Text("user.name", "equals", ("root",)), n) for n in range(8)]
    small = event_class(EventKind("t.e", parse_fields("source.ip:ip test.value:u32")), 3)
    engine, alerts = started(*many, rule(count(1, S), ALL, 99))
    engine.bind(small)
    engine.process([small("192.0.2.1", 1, 1)])
    assert [a.rule_id for a in alerts] == ["r99"]


def test_a_value_that_stands_twice_in_a_rule_counts_once():
    twice = Text("user.name", "equals", ("root", "root"))
    engine, alerts = started(
        *(rule(count(5, S), And((twice, Compare("test.value", "gte", n))), n) for n in range(5))
    )
    engine.process([EVENT("192.0.2.1", 9, "root", n) for n in range(4)])
    assert alerts == []


def test_a_field_may_be_called_like_a_word_of_python():
    cls = event_class(EventKind("t.e", parse_fields("class:u32")), 4)
    engine, alerts = started(rule(Correlation(), Compare("class", "gt", 0)), cls=cls)
    engine.process([cls(1, 1)])
    assert len(alerts) == 1


def test_a_network_is_neither_met_nor_unmet_by_what_is_no_address():
    inside = Cidr("source.ip", ("192.0.2.0/24",))
    engine, alerts = started(rule(Correlation(), inside), rule(Correlation(), Not(inside), 1))
    engine.process([EVENT("garbage", 0, "", 1)])
    assert alerts == []


# -- bounds --------------------------------------------------------------------------------------------


def test_open_incidents_are_bounded_and_each_still_gets_its_close(monkeypatch):
    monkeypatch.setattr("kwsiem.correlate.incident.MAX_OPEN", 100)
    engine, alerts = started(rule(count(2, 60 * S)))
    engine.process([EVENT(f"host{n // 2}", 0, "", S + n) for n in range(2000)])
    counters = engine.counters()
    assert (counters["incidents"], counters["crowded_out"]) == (100, 900)
    assert sum(a.state == "open" for a in alerts) == 1000
    assert sum(a.state == "close" for a in alerts) == 900


@pytest.mark.parametrize("correlation", [count(50, 60 * S), distinct(50, 60 * S)])
def test_time_stamps_of_busy_keys_are_bounded_and_what_goes_is_counted(monkeypatch, correlation):
    monkeypatch.setattr("kwsiem.correlate.window.MAX_RULE_STAMPS", 10_000)
    engine, _ = started(rule(correlation))
    engine.process([EVENT(f"host{n % 1000}", n, "", S + n) for n in range(40_000)])
    counters = engine.counters()
    assert counters["evictions"] > 0
    assert counters["keys"] < 700


# -- incidents -----------------------------------------------------------------------------------------


def test_the_incidents_of_a_rule_that_ends_are_closed_with_their_totals():
    engine, alerts = started(rule(count(2, 60 * S)))
    engine.process([EVENT("192.0.2.1", 0, "", n) for n in (1, 2, 3)])
    engine.set_rules(RuleSet())
    assert [(a.state, a.count) for a in alerts] == [("open", 2), ("close", 3)]
    assert engine.counters()["alerts"] == 2


def test_all_messages_of_an_incident_have_its_id_though_the_clock_is_set_meanwhile():
    engine, alerts = started(rule(count(2, 60 * S), suppress_s=10))
    engine.process([EVENT("192.0.2.1", 0, "", n * S) for n in (1, 2)])
    engine.offset_ns = 7 * 10**6
    engine.advance(100 * S)
    assert [a.state for a in alerts] == ["open", "close"]
    assert len({a.incident_id for a in alerts}) == 1


def test_rules_that_cannot_be_made_leave_the_running_ones():
    engine, alerts = started(rule(count(2, 60 * S)))
    engine.process([EVENT("192.0.2.1", 0, "", 1)])
    with pytest.raises(OSError, match="illegal"):
        engine.set_rules(RuleSet(rules=(rule(Correlation(), Cidr("source.ip", ("nonsense",)), 5),)))
    engine.process([EVENT("192.0.2.1", 0, "", 2)])
    assert [a.rule_id for a in alerts] == ["r0"]


def test_constants_hold_and_do_not_hold():
    assert said(count(1, S), (0, 1), predicate=Constant(True))
    assert not said(count(1, S), (0, 1), predicate=Not(Constant(True)))
