"""What the engine tells of each rule and of losses, against plain counts of what it was given."""

import pytest

from kwsiem.alert import raised_ns_of
from kwsiem.correlate.engine import MAX_LOST, Engine
from kwsiem.event import OWN_KINDS, EventKind, event_class, event_from_fields, parse_fields
from kwsiem.rule_figures import RuleCounts
from kwsiem.rules.model import Compare, Correlation, Rule, RuleSet

KIND = EventKind("t.e", parse_fields("source.ip:ip test.value:u32"))
OTHER = EventKind("t.o", parse_fields("test.value:u32"))
EVENT, OTHER_EVENT = event_class(KIND, 1), event_class(OTHER, 2)
LOST = event_class(OWN_KINDS["sensor.lost"], 0)


def rule(name: str, *kinds: str, fingerprint: str = "") -> Rule:
    return Rule(
        id=name,
        title="t",
        level="low",
        events=kinds,
        predicate=Compare("test.value", "gte", 5),
        correlation=Correlation("event_count", ("test.value",), timespan_ns=10**9, value=100),
        suppress_ns=10**9,
        fingerprint=fingerprint or name,
    )


@pytest.fixture
def engine():
    made = Engine(lambda _: None, host="h")
    for cls in (EVENT, OTHER_EVENT, LOST):
        made.bind(cls)
    return made


def evaluations(engine: Engine) -> dict[str, int]:
    return {name: counts.evaluations for name, counts in engine.rule_counts(0, 100).items()}


def test_evaluations_are_the_events_of_a_rules_kinds_since_it_runs(engine):
    engine.process([EVENT("a", 1, 1)] * 3)
    engine.set_rules(RuleSet(rules=(rule("one", "t.e"), rule("both", "t.e", "t.o"))))
    engine.process([EVENT("a", 1, 2)] * 4 + [OTHER_EVENT(1, 3)])
    assert evaluations(engine) == {"one": 4, "both": 5}
    engine.set_rules(RuleSet(rules=(rule("one", "t.e"), rule("both", "t.e", "t.o", fingerprint="new"))))
    engine.process([EVENT("a", 1, 4)])
    assert evaluations(engine) == {"one": 5, "both": 1}, "a rule that has changed begins anew"
    engine.unbind(EVENT)
    assert evaluations(engine) == {"one": 5, "both": 1}


def test_rules_are_told_a_part_at_a_time(engine):
    engine.set_rules(RuleSet(rules=tuple(rule(f"r{number}", "t.e") for number in range(5))))
    parts = [engine.rule_counts(start, 2) for start in (0, 2, 4, 6)]
    assert [len(part) for part in parts] == [2, 2, 1, 0]
    assert {name for part in parts for name in part} == {f"r{number}" for number in range(5)}
    assert parts[0]["r0"] == RuleCounts()


def test_losses_are_counted_by_probe_and_reason_and_bounded(engine):
    def lost(reason: str, count: int):
        fields = {"probe.name": "net", "event.reason": reason, "event.count": count}
        return event_from_fields(LOST, LOST.KIND, fields, 1)

    engine.process([lost("budget", 2), EVENT("a", 1, 1), lost("budget", 3)])
    engine.process([lost("map_full", 7)])
    assert engine.counters()["lost"] == {"net": {"budget": 5, "map_full": 7}}
    engine.process([lost(f"forged-{number}", 1) for number in range(MAX_LOST * 2)])
    assert len(engine.counters()["lost"]["net"]) == MAX_LOST


def test_an_id_of_an_alert_tells_when_it_was_raised(make_alert):
    alert = make_alert()
    assert raised_ns_of(alert.id) == alert.raised_ns // 10**6 * 10**6
    assert raised_ns_of("no such id") > alert.raised_ns, "now: it has not waited"
