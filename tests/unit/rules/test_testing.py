"""A rule's own tests: pauses, time that goes on for ever after the last event, outcomes instead of problems."""

import pytest

from kwsiem.errors import RuleFileError
from kwsiem.event import OWN_KINDS, event_class, event_from_fields
from kwsiem.rules.load import load_rules
from kwsiem.rules.model import Constant, Correlation, Rule, Step, Text
from kwsiem.rules.source import Source
from kwsiem.rules.testing import BEGIN_NS, Collector, Outcome, RuleTest, outcomes
from kwsiem.yamltree import Mapping

S = 10**9
FILE = """version: 1
rules:
  - id: lost
    title: Lost
    level: low
    event: sensor.lost
    detection: {some: {event.count|gt: 0}, condition: some}
    correlation: {type: event_count, timespan: 3s, condition: {gte: 2}}
    tests:
"""
LOST = event_class(OWN_KINDS["sensor.lost"], 0)


def load(*tests, **options):
    text = FILE + "".join(f"      - {test}\n" for test in tests)
    return load_rules([Source("r.yaml", text.encode())], OWN_KINDS, **options)


def problems(*tests):
    with pytest.raises(RuleFileError) as error:
        load(*tests)
    return [str(problem) for problem in error.value.problems]


def event(entry):
    return "{kind: sensor.lost, event.count: 1, " + entry + "}"


def test_wait_is_a_pause_before_its_entry():
    near = f"{{name: near, events: [{event('wait: 1d')}, {event('wait: 2s')}], alerts: 1}}"
    far = f"{{name: far, events: [{event('wait: 1d')}, {event('wait: 4s')}], alerts: 0}}"
    assert load(near, far)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("wait: soon", "wait: expected a duration"),
        ("wait: 0s", "wait: must be > 0"),
        ("wiat: 1s", "event kind sensor.lost has no field 'wiat'"),
    ],
)
def test_a_wait_that_is_none_is_told(entry, says):
    (problem,) = problems(f"{{name: x, events: [{event(entry)}], alerts: 0}}")
    assert says in problem


def test_a_collector_lets_a_rule_pass_whose_test_fails():
    tests = (
        f"{{name: good, events: [{event('repeat: 2')}], alerts: 1}}",
        f"{{name: bad, events: [{event('repeat: 2')}], alerts: 7}}",
    )
    (problem,) = problems(*tests)
    assert problem == "r.yaml:11:9: rule lost: tests: test 'bad' failed: expected 7 alerts, got 1"
    collector = Collector()
    (rule,) = load(*tests, judge=collector).rules
    assert collector.rules[rule.id].file == "r.yaml"
    good, bad = collector.rules[rule.id].outcomes
    assert (good.passed, bad.passed) == (True, False)
    assert (bad.name, bad.line, bad.expected, bad.got) == ("bad", 11, 7, 1)


def test_what_is_wrong_with_a_test_itself_is_a_problem_for_a_collector_too():
    with pytest.raises(RuleFileError):
        load("{name: x, evnets: [], alerts: 0}", judge=Collector())


def lost(reason, at_s):
    values = {"event.reason": reason, "event.count": 1}
    return event_from_fields(LOST, LOST.KIND, values, BEGIN_NS + at_s * S)


def rule(correlation, rule_id="r"):
    return Rule(
        id=rule_id,
        title="t",
        level="low",
        events=("sensor.lost",),
        predicate=Constant(True),
        correlation=correlation,
        suppress_ns=60 * S,
        fingerprint=rule_id,
    )


def said(reason):
    return Text("event.reason", "equals", (reason,))


def run(correlation, *events):
    (outcome,) = outcomes(rule(correlation), [RuleTest("x", Mapping(1, 1), list(events), 1)])
    return outcome


def test_time_passes_after_the_last_event_so_that_what_stays_away_is_noticed():
    absent = Correlation(
        "absent", timespan_ns=30 * S, steps=(Step("asked", said("asked")), Step("answered", said("answered")))
    )
    assert run(absent, lost("asked", 0)).passed
    assert run(absent, lost("asked", 0), lost("answered", 1)).got == 0
    assert run(absent, lost("asked", 0), lost("answered", 31)).passed


def test_a_rule_over_a_rule_is_tested_alike_and_counts_its_own_alerts_alone():
    inner = rule(Correlation("event_count", ("event.reason",), timespan_ns=S, value=2), "inner")
    chain = Correlation("event_count", timespan_ns=600 * S, value=2, steps=(Step("inner", inner=inner),))
    twice = [lost(reason, at_s) for reason, at_s in (("a", 0), ("a", 0), ("b", 5), ("b", 5))]
    assert run(chain, *twice).passed
    assert run(chain, *twice[:3]).got == 0


def test_an_engine_that_fails_fails_the_test():
    assert not Outcome("x", 1, 0, 0, "sensor.lost: KeyError").passed
    assert "KeyError" in str(Outcome("x", 1, 0, 0, "sensor.lost: KeyError"))
    assert run(Correlation("event_count", timespan_ns=S, value=1), lost("a", 0)) == Outcome("x", 1, 1, 1)


NIGHT = """version: 1
rules:
  - id: night
    title: At night
    level: low
    event: sensor.lost
    detection: {night: {'@timestamp|hour': [0, 1, 2, 3]}, condition: night}
    tests:
      - {name: at night, at: '2026-01-02T03:59:59Z', events: [{kind: sensor.lost}], alerts: 1}
      - {name: in the morning, at: 2026-01-02T04:00:00Z, events: [{kind: sensor.lost}], alerts: 0}
      - {name: it gets late, at: 2026-01-02T23:59:59Z, events: [{kind: sensor.lost, repeat: 3, every: 1s}], alerts: 2}
"""


def test_a_test_may_say_when_it_begins():
    load_rules([Source("r.yaml", NIGHT.encode())], OWN_KINDS)


@pytest.mark.parametrize("at", ["2026-01-02", "2026-13-02T03:04:05Z", "2026-01-02T03:04:05+01:00", "noon"])
def test_a_beginning_that_is_no_time_is_told_with_its_place(at):
    text = NIGHT.replace("'2026-01-02T03:59:59Z'", f"'{at}'")
    with pytest.raises(
        RuleFileError, match=r"r\.yaml:9:26: rule night: tests\.0\.at: expected a time in UTC such as"
    ):
        load_rules([Source("r.yaml", text.encode())], OWN_KINDS)
