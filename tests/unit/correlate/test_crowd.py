"""A flood of keys: who was there stays, who comes often is found all the same, memory is bounded."""

import pytest

from kwsiem.correlate.crowd import Crowd, Sketch, network_of
from kwsiem.correlate.engine import Engine
from kwsiem.event import EventKind, event_class, parse_fields
from kwsiem.rules.model import Compare, Correlation, Number, Rule, RuleSet, Step

KIND = EventKind("t.e", parse_fields("source.ip:ip test.value:u32"))
EVENT = event_class(KIND, 1)
S = 10**9
ALL = Compare("test.value", "gte", 0)


def run(correlation: Correlation, *batches) -> tuple[Engine, set]:
    alerts: list = []
    engine = Engine(alerts.append, host="h")
    rule = Rule(
        id="r", title="t", level="low", events=("t.e",), predicate=ALL, correlation=correlation,
        suppress_ns=300 * S, fingerprint="r",
    )  # fmt: skip
    engine.set_rules(RuleSet(rules=(rule,)))
    engine.bind(EVENT)
    for batch in batches:
        engine.process(batch)
        engine.advance(batch[-1].ts_ns)
    return engine, {alert.identity["source.ip"] for alert in alerts if alert.state == "open"}


def address(number: int) -> str:
    return f"{10 + (number >> 16)}.{number >> 8 & 255}.{number & 255}.{number * 7 % 256}"


def flood(second: int, size: int = 2000) -> list:
    return [EVENT(address(second * size + n), n % 3, second * S + n) for n in range(size)]


def mixed(visits: dict[int, list], seconds: int = 60) -> list:
    """The flood of each second with the slow attacker's events in it."""
    return [[*flood(second), *visits.get(second, [])] for second in range(1, seconds)]


COUNT = Correlation("event_count", ("source.ip",), timespan_ns=300 * S, value=5)
DISTINCT = Correlation("value_count", ("source.ip",), timespan_ns=300 * S, field="test.value", value=5)
STEPS = Correlation(
    "sequence", ("source.ip",), timespan_ns=300 * S,
    steps=(Step("a", Number("test.value", (1,)), 2), Step("b", Number("test.value", (2,)))),
)  # fmt: skip


@pytest.mark.parametrize(
    ("correlation", "values"), [(COUNT, (1, 1, 1, 1, 1)), (DISTINCT, (1, 2, 3, 4, 5)), (STEPS, (1, 1, 2))]
)
@pytest.mark.parametrize("begins", [0, 30])
def test_a_slow_attacker_is_found_in_a_flood_whenever_he_begins(monkeypatch, correlation, values, begins):
    monkeypatch.setattr("kwsiem.correlate.window.MAX_KEYS", 4000)
    times = [begins + 1 + 5 * n for n in range(len(values))]
    visits = {at: [EVENT("198.51.100.7", v, (at + 1) * S - 1)] for at, v in zip(times, values, strict=True)}
    engine, found = run(correlation, *mixed(visits))
    assert found == {"198.51.100.7"}
    counters = engine.counters()
    assert counters["keys"] <= 4010
    assert counters["crowded"] > 60_000
    assert counters["evictions"] == 0


def test_the_same_value_again_and_again_is_not_many_values_in_a_flood(monkeypatch):
    monkeypatch.setattr("kwsiem.correlate.window.MAX_KEYS", 4000)
    visits = {30 + n: [EVENT("198.51.100.7", 9, (31 + n) * S - 1)] for n in range(20)}
    assert run(DISTINCT, *mixed(visits))[1] == set()


def test_a_network_gets_only_its_share_and_the_rest_of_the_world_its_places(monkeypatch):
    monkeypatch.setattr("kwsiem.correlate.window.MAX_KEYS", 4000)
    one_network = [EVENT(f"2001:db8::{n:x}", 1, S + n) for n in range(5000)]
    engine, _ = run(COUNT, one_network)
    assert engine.counters()["keys"] < 4000 // 2 // 4 + 4000 // 64 + 1
    others = [EVENT(address(n), 1, 2 * S + n) for n in range(1000)]
    engine.process(others)
    assert engine.counters()["keys"] > 1000


def test_networks():
    assert network_of("192.0.2.77") == network_of("192.0.2.1") != network_of("192.0.3.1")
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") != network_of("2001:db8:0:1::1")
    assert network_of("no address") == "no address"


def test_a_sketch_never_counts_too_little():
    sketch = Sketch()
    keys = [hash(f"k{n}") for n in range(20_000)]
    for repeat in range(3):
        for key in keys:
            assert sketch.add(key) >= repeat + 1
    assert sum(sketch.get(key) > 3 for key in keys) < 20


def test_sketches_are_bounded_and_what_not_even_they_can_take_is_counted(monkeypatch):
    monkeypatch.setattr("kwsiem.correlate.crowd.MAX_SKETCHES", len(Sketch.alive) + 1)
    first, second = Crowd(("source.ip",), 1), Crowd(("source.ip",), 1)
    assert (first.count("a"), first.count("a"), second.count("a")) == (1, 2, 0)
    assert (first.counted, first.uncounted, second.uncounted) == (2, 0, 1)
    first.turn()
    assert first.count("a") in (0, 3)
    first.turn()
    first.turn()
    assert second.count("a") == 1
