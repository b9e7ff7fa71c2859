"""Correlations that are decided in the order of time: sums, means, percentiles, lt and eq, absent, chains."""

import pytest

from kwsiem.correlate.engine import Engine
from kwsiem.event import EventKind, event_class, parse_fields
from kwsiem.rules.model import Compare, Constant, Correlation, Number, Rule, RuleSet, Step

KIND = EventKind("t.e", parse_fields("source.ip:ip test.value:u32 user.name:str"))
OTHER = EventKind("t.f", parse_fields("client.ip:ip test.value:u32"))
EVENT, OTHER_EVENT = event_class(KIND, 1), event_class(OTHER, 2)
S = 10**9
ALL = Compare("test.value", "gte", 0)
A, B, C = (Number("test.value", (n,)) for n in (1, 2, 3))
IP = ("source.ip",)


def rule(correlation: Correlation, name: str = "r", suppress_s: int = 60, **changes) -> Rule:
    settings = {"predicate": ALL, "events": ("t.e", "t.f"), **changes}
    return Rule(
        id=name, title="t", level="low", correlation=correlation,
        suppress_ns=suppress_s * S, fingerprint=name, **settings,
    )  # fmt: skip


class Run:
    """A rule with what it says; times in seconds."""

    def __init__(self, *rules: Rule) -> None:
        self.alerts: list = []
        self.engine = Engine(self.alerts.append, host="h")
        self.engine.set_rules(RuleSet(rules=rules))
        self.engine.bind(EVENT)
        self.engine.bind(OTHER_EVENT)

    def send(self, *events: tuple[float, int], source: str = "192.0.2.1") -> "Run":
        self.engine.process([EVENT(source, value, "", int(at * S)) for at, value in events])
        return self

    def opened(self, now_s: float | None = None) -> list[tuple[float, int]]:
        """When each incident opened, and with what count, once all is decided."""
        self.engine.finish(None if now_s is None else int(now_s * S))
        return [(a.opened_ts_ns / S, a.count) for a in self.alerts if a.state == "open"]


def measured(kind: str, op: str, value: float, field: str = "test.value", **more) -> Rule:
    return rule(Correlation(kind, IP, timespan_ns=10 * S, field=field, op=op, value=value, **more))


@pytest.mark.parametrize(
    ("op", "value", "expected"),
    [
        ("lt", 2, [(1, 1)]), ("lte", 1, [(1, 1)]), ("eq", 3, [(3, 3)]), ("neq", 1, [(2, 2)]), ("eq", 9, []),
    ],
)  # fmt: skip
def test_the_number_of_events_compares(op, value, expected):
    run = Run(measured("event_count", op, value, field=""))
    assert run.send((1, 0), (2, 0), (3, 0), (4, 0)).opened() == expected


@pytest.mark.parametrize(
    ("op", "value", "expected"), [("eq", 2, [(3, 2)]), ("lt", 2, [(1, 1)]), ("neq", 1, [(3, 2)])]
)
def test_the_number_of_distinct_values_compares(op, value, expected):
    run = Run(measured("value_count", op, value))
    assert run.send((1, 7), (2, 7), (3, 8), (4, 9)).opened() == expected


def test_a_sum_within_the_timespan():
    run = Run(measured("value_sum", "gte", 100))
    assert run.send((0, 60), (10, 30), (11, 30), (12, 40)).opened() == [(12, 3)]


def test_a_mean_within_the_timespan():
    run = Run(measured("value_avg", "gt", 10.5))
    assert run.send((1, 10), (2, 11), (3, 11)).opened() == [(3, 3)]


def test_a_percentile_is_of_the_nearest_rank():
    run = Run(measured("value_percentile", "gte", 9, percentile=50))
    assert run.send((1, 1), (2, 9), (3, 1), (4, 9), (5, 9)).opened() == [(5, 5)]


def test_a_median_of_an_even_number_is_the_mean_of_the_middle():
    run = Run(measured("value_median", "eq", 5))
    assert run.send((1, 1), (2, 9)).opened() == [(2, 2)]


def test_what_comes_late_takes_its_place_before_it_is_decided():
    run = Run(measured("event_count", "eq", 2, field=""))
    run.send((1, 0), (3, 0))
    run.engine.advance(4 * S)  # up to 2 s
    run.send((2.5, 0))
    assert run.opened() == [(2.5, 2)]


def test_what_comes_too_late_counts_as_of_now_and_is_counted():
    run = Run(measured("value_sum", "gte", 2))
    run.send((1, 1))
    run.engine.advance(9 * S)
    run.send((2, 1))
    assert run.opened() == [(7, 2)]
    assert run.engine.counters()["late"] == 1


def test_a_sum_of_very_many_values_stays_right_though_they_are_put_together(monkeypatch):
    monkeypatch.setattr("kwsiem.correlate.measured.MAX_SAMPLES", 100)
    run = Run(measured("value_sum", "gte", 5000))
    # The first thousand leave the window before the last come.
    early, late = [(1 + n / 1000, 1) for n in range(1000)], [(20 + n / 10000, 1) for n in range(6000)]
    assert run.send(*early, *late).opened() == [(20.4999, 5000)]


def temporal(op: str = "gte", value: int = 3) -> Rule:
    steps = tuple(Step(name, predicate) for name, predicate in (("a", A), ("b", B), ("c", C)))
    return rule(Correlation("temporal", IP, timespan_ns=10 * S, steps=steps, op=op, value=value))


def test_temporal_needs_all_in_any_order():
    assert Run(temporal()).send((1, 3), (2, 1), (3, 1), (4, 2), (5, 1)).opened() == [(4, 3)]
    assert Run(temporal()).send((1, 3), (2, 1), (11, 2)).opened() == []
    assert Run(temporal(value=2)).send((1, 3), (2, 1)).opened() == [(2, 2)]
    assert Run(temporal("eq", 2)).send((1, 3), (2, 1)).opened() == [(2, 2)]


def test_one_event_may_meet_several_rules_of_temporal():
    steps = (Step("a", A), Step("small", Compare("test.value", "lt", 3)))
    both = rule(Correlation("temporal", IP, timespan_ns=10 * S, steps=steps, value=2))
    run = Run(both).send((1, 1), (2, 1))
    assert run.opened() == [(1, 2)]
    run.engine.finish(10**12)
    assert [a.count for a in run.alerts if a.state == "close"] == [3]


def test_steps_of_other_kinds_have_group_fields_of_their_own():
    steps = (
        Step("a", A, events=("t.e",), group_by=("source.ip",)),
        Step("b", B, events=("t.f",), group_by=("client.ip",)),
    )
    both = rule(
        Correlation("temporal", ("ip",), timespan_ns=10 * S, steps=steps, value=2), predicate=Constant(True)
    )
    run = Run(both)
    run.send((1, 1)).engine.process([OTHER_EVENT("192.0.2.1", 2, 2 * S), OTHER_EVENT("192.0.2.9", 2, 3 * S)])
    assert run.opened() == [(2, 2)]
    assert run.alerts[0].identity == {"ip": "192.0.2.1"}


def absent(suppress_s: int = 60) -> Rule:
    steps = (Step("started", A), Step("answered", B))
    return rule(Correlation("absent", IP, timespan_ns=5 * S, steps=steps), suppress_s=suppress_s)


def test_absent_fires_when_time_has_passed_without_any_event():
    run = Run(absent()).send((1, 1))
    assert run.opened(5.9) == []
    assert run.opened(6) == [(6, 1)]
    assert run.alerts[0].raised_ns == 6 * S


def test_absent_is_quiet_when_the_second_came_in_time():
    assert Run(absent()).send((1, 1), (5.9, 2)).opened(100) == []
    assert Run(absent()).send((1, 1), (6, 2)).opened(100) == [(6, 1)]  # the window is half-open
    assert Run(absent()).send((1, 1), (1, 2)).opened(100) == [(6, 1)]  # strictly later
    assert Run(absent()).send((1, 2), (2, 1)).opened(100) == [(7, 1)]


def test_absent_counts_each_first_of_an_open_incident():
    run = Run(absent()).send((1, 1), (2, 1), (3, 1))
    run.engine.finish(10**12)
    assert [(a.state, a.count) for a in run.alerts] == [("open", 1), ("close", 3)]


def test_absent_fires_in_the_order_of_time_between_events():
    run = Run(absent(suppress_s=1)).send((1, 1), (20, 1), (22, 2))
    assert run.opened(100) == [(6, 1)]


def spray_then_login() -> Rule:
    """A chain: distinct values of one source, then a 3 of it."""
    inner = rule(Correlation("value_count", IP, timespan_ns=10 * S, field="user.name", value=2), "spray")
    steps = (Step("spray", inner=inner), Step("login", C, events=("t.e",)))
    return rule(
        Correlation("sequence", IP, timespan_ns=30 * S, steps=steps), "chain", predicate=Constant(True)
    )


def test_a_chain_takes_an_incident_below_as_one_event():
    run = Run(spray_then_login())
    run.engine.process([EVENT("192.0.2.1", 1, user, at * S) for at, user in ((1, "a"), (2, "b"), (3, "c"))])
    run.engine.process([EVENT("192.0.2.9", 3, "x", 5 * S), EVENT("192.0.2.1", 3, "x", 6 * S)])
    assert run.opened() == [(6, 2)]
    assert run.alerts[0].first_ns == 2 * S


def test_a_chain_counts_incidents_below_not_events():
    inner = rule(Correlation("event_count", IP, timespan_ns=S, value=2), "burst", suppress_s=5)
    steps = (Step("burst", inner=inner),)
    outer = rule(Correlation("event_count", IP, timespan_ns=60 * S, steps=steps, value=2), "again")
    burst = [(at + n / 10, 1) for at in (1, 2, 20) for n in range(5)]
    assert Run(outer).send(*burst).opened() == [(20.1, 2)]


def test_a_chain_of_three():
    first = rule(Correlation("event_count", IP, timespan_ns=S, value=2), "one", suppress_s=1)
    second = rule(
        Correlation("event_count", IP, timespan_ns=20 * S, steps=(Step("one", inner=first),), value=2),
        "two", suppress_s=1,
    )  # fmt: skip
    third = rule(
        Correlation("event_count", (), timespan_ns=60 * S, steps=(Step("two", inner=second),), value=1),
        "three",
    )
    assert Run(third).send((1, 1), (1.1, 1), (5, 1), (5.1, 1)).opened() == [(5.1, 1)]


def test_events_that_wait_are_bounded_and_the_oldest_is_decided_early(monkeypatch):
    monkeypatch.setattr("kwsiem.correlate.settled.MAX_PENDING", 10)
    run = Run(measured("value_sum", "gte", 15)).send(*((n / 10, 1) for n in range(20)))
    assert run.opened() == [(1.4, 15)]
    assert run.engine.counters()["hurried"] == 10


def test_a_rule_that_says_too_much_is_held_back_and_counted(monkeypatch):
    monkeypatch.setattr("kwsiem.correlate.incident.BURST", 50)
    run = Run(rule(Correlation(), suppress_s=0))
    run.send(*((1, 0) for _ in range(200)))
    assert len(run.alerts) == 50
    assert run.engine.held_back() == [("r", 150)]
    assert run.engine.held_back() == []
    run.send((2, 0))  # a second later there is some allowance again
    assert len(run.alerts) == 51


def test_an_event_dated_later_than_now_is_taken_as_of_now_and_counted():
    run = Run(rule(Correlation("event_count", IP, timespan_ns=60 * S, value=3)))
    run.engine.process([EVENT("192.0.2.1", 0, "", at * S) for at in (1, 90_000, 3)], 2 * S)
    assert run.opened() == [(3, 3)]
    assert run.engine.counters()["future"] == 1


BOTH = EventKind("t.b", parse_fields("source.ip:ip destination.ip:ip test.value:u32"))


@pytest.mark.parametrize(("kind", "field", "value"), [("event_count", "", 2), ("value_sum", "test.value", 2)])
def test_an_event_whose_two_addresses_are_the_same_counts_once(kind, field, value):
    steps = tuple(
        Step(name, ALL, events=("t.b",), group_by=(name,)) for name in ("source.ip", "destination.ip")
    )
    both = rule(
        Correlation(kind, ("ip",), timespan_ns=10 * S, steps=steps, field=field, value=value),
        predicate=Constant(True), events=("t.b",),
    )  # fmt: skip
    run = Run(both)
    cls = event_class(BOTH, 3)
    run.engine.bind(cls)
    run.engine.process([cls("192.0.2.1", "192.0.2.1", 1, S)])
    assert run.opened() == []
    run.engine.process([cls("192.0.2.9", "192.0.2.1", 1, 2 * S)])
    assert run.opened() == [(2, 2)]


def test_means_and_medians_of_huge_numbers_are_exact():
    kind = EventKind("t.h", parse_fields("source.ip:ip test.value:u64"))
    cls = event_class(kind, 4)
    for name in ("value_avg", "value_median"):
        huge = rule(
            Correlation(name, IP, timespan_ns=10 * S, field="test.value", op="gt", value=2**63 - 1),
            predicate=Constant(True), events=("t.h",),
        )  # fmt: skip
        run = Run(huge)
        run.engine.bind(cls)
        run.engine.process([cls("192.0.2.1", 2**63 - 1, n * S) for n in (1, 2, 3)])
        assert run.opened() == []
        run.engine.process([cls("192.0.2.2", 2**63, n * S) for n in (14, 15)])
        assert run.opened() == [(14, 1)]
