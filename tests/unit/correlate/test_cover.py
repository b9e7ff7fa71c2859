"""A rule that others cover is silent while one of them tells of the same source."""

import msgspec
import pytest

from kwsiem.correlate.engine import Engine
from kwsiem.errors import ConfigError
from kwsiem.event import OWN_KINDS, EventKind, event_class, parse_fields
from kwsiem.rules.load import Source, load_rules
from kwsiem.rules.model import RuleSet, decode_ruleset

KIND = EventKind("tcp.syn", parse_fields("source.ip:ip destination.ip:ip destination.port:port"))
SYN = event_class(KIND, 1)
KINDS = {"tcp.syn": KIND, **OWN_KINDS}
S = 10**9
RULE = """
  - id: {id}
    title: t
    level: low
    event: tcp.syn
    detection: {{any_port: {{destination.port|gt: 0}}, condition: any_port}}
    correlation:
      type: value_count
      field: destination.port
      group-by: [{group}]
      timespan: {span}
      condition: {{{op}: {value}}}
    suppress: {suppress}
"""
SINGLE = """
  - id: b
    title: t
    level: low
    event: tcp.syn
    detection: {any_port: {destination.port|gt: 0}, condition: any_port}
"""
BOTH = "source.ip, destination.ip"


def rule(
    name: str, value: int, *covers: str, group="source.ip", span="1m", op="gte", suppress="1m", more=""
) -> str:
    made = RULE.format(id=name, value=value, group=group, span=span, op=op, suppress=suppress)
    return made + (f"    covered-by: [{', '.join(covers)}]\n" if covers else "") + more


def rules(*parts: str) -> RuleSet:
    return load_rules([Source("r.yaml", ("version: 1\nrules:" + "".join(parts)).encode())], KINDS)


class Run:
    def __init__(self, *parts: str) -> None:
        self.alerts: list = []
        self.ruleset = decode_ruleset(rules(*parts).encode())
        self.start()

    def start(self, saved: bytes = b"") -> None:
        self.engine = Engine(self.alerts.append, host="h")
        if saved:
            self.engine.offer(saved)
        self.engine.set_rules(self.ruleset)
        self.engine.bind(SYN)

    def scan(self, at_s: float, ports, source="198.51.100.7", target="192.0.2.1", batch=1) -> "Run":
        events = [SYN(source, target, port, int((at_s + n / 10) * S)) for n, port in enumerate(ports)]
        while events:
            self.engine.process(events[:batch])
            self.engine.advance(events[min(batch, len(events)) - 1].ts_ns)
            del events[:batch]
        return self

    def said(self) -> list:
        self.engine.finish(10**18)
        assert self.engine.counters()["errors"] == {}
        return [alert.rule_id for alert in self.alerts if alert.state == "open"]


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_one_scan_is_one_alert(batch):
    """Whatever the order in the file, and though both open at the very same event."""
    run = Run(rule("slow", 5, "fast", span="10m"), rule("fast", 5, span="3s", group=BOTH))
    assert run.scan(100, range(1, 30), batch=batch).said() == ["fast"]
    assert run.engine.counters()["covered"] == 1
    assert run.engine.counters()["alerts"] == len(run.alerts)
    assert {alert.rule_id for alert in run.alerts} == {"fast"}  # no update and no close of the other either


def test_only_the_same_source_is_covered_and_only_while_it_lasts():
    run = Run(rule("fast", 5, span="3s", group=BOTH), rule("slow", 5, "fast", suppress="10s"))
    run.scan(100, range(1, 6)).scan(101, range(1, 4), source="203.0.113.9").scan(
        120, (4, 5), source="203.0.113.9"
    )
    assert run.said() == ["fast", "slow"]
    assert run.alerts[-1].identity == {"source.ip": "203.0.113.9"}
    run = Run(rule("fast", 5, span="3s", suppress="20s"), rule("slow", 5, "fast", suppress="10s"))
    run.scan(100, range(1, 6)).scan(200, (1, 2, 3)).scan(230, (4, 5))
    assert run.said() == ["fast", "slow"]


def test_an_incident_that_began_before_is_told_to_its_end():
    run = Run(rule("fast", 9, span="3s"), rule("slow", 5, "fast"))
    run.scan(100, range(1, 30))
    assert run.said() == ["slow", "fast"]
    assert [a.rule_id for a in run.alerts if a.state == "close"] == ["fast", "slow"]


def test_what_covers_may_be_covered_itself():
    parts = (rule("c", 5, "b"), rule("b", 5, "a"), rule("a", 5))
    assert Run(*parts).scan(100, range(1, 9)).said() == ["a"]


@pytest.mark.parametrize("gap", [0, 61, 3600])
def test_a_rule_that_is_decided_later_asks_for_the_time_of_its_events(gap):
    """Its incident began while the other one was open, though that may have closed before it is decided."""
    parts = (
        rule("fast", 5, span="3s", suppress="1s"),
        rule("exact", 5, "fast", op="eq", span="10s", suppress="1s"),
    )
    run = Run(*parts)
    run.scan(100, range(1, 6), batch=100)
    run.scan(103 + gap, (77,), source="203.0.113.9")
    assert run.said() == ["fast"]
    assert run.engine.counters()["covered"] == 1


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_run_that_was_cut_says_the_same(cut):
    parts = (
        rule("fast", 5, span="3s", suppress="2s"),
        rule("exact", 5, "fast", op="eq", span="10s"),
        rule("slow", 6, "fast"),
    )
    run = Run(*parts).scan(100, range(1, 1 + cut))
    run.start(run.engine.save())
    assert run.engine.restored == 3
    run.scan(100 + cut / 10, range(1 + cut, 9))
    assert run.said() == ["fast"]
    assert run.engine.counters()["covered"] == 2


def test_what_has_just_closed_is_kept_in_a_snapshot():
    parts = (
        rule("fast", 5, span="3s", suppress="1s"),
        rule("exact", 5, "fast", op="eq", span="10s", suppress="1s"),
    )
    run = Run(*parts).scan(100, range(1, 6), batch=100)
    run.scan(101.9, (7,))  # too late for the incident: it closes, and the other is not yet decided
    run.start(run.engine.save())
    assert run.said() == ["fast"]
    assert run.engine.counters()["covered"] == 1


def test_new_rules_are_joined_and_keep_their_state():
    run = Run(rule("fast", 5, span="3s"), rule("slow", 6))
    run.scan(100, range(1, 6))
    run.engine.set_rules(rules(rule("fast", 5, span="3s"), rule("slow", 6, "fast")))
    run.scan(100.5, range(6, 9))
    assert run.said() == ["fast"]


def test_many_rules_with_one_equality_do_not_change_the_order():
    def narrow(name, *covers):
        return rule(name, 1, *covers).replace("destination.port|gt: 0", "destination.port: 22")

    parts = [rule("z", 1, *(f"r{n}" for n in range(6))), *(narrow(f"r{n}") for n in range(6))]
    assert Run(*parts).scan(100, (22,)).said() == [f"r{n}" for n in range(6)]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            (rule("a", 5, "fats"), rule("fast", 5)),
            "covered-by: no rule is called 'fats', did you mean 'fast'",
        ),
        ((rule("a", 5, "a"),), "a rule cannot cover itself"),
        ((rule("a", 5, "b"), rule("b", 5, "c"), rule("c", 5, "a")), "in a circle: a -> b -> c -> a"),
        (
            (rule("a", 5, "b", group="destination.ip"), rule("b", 5)),
            "groups by source.ip, this rule by none of it",
        ),
        ((rule("a", 5, "b"), rule("b", 5, op="eq")), "is decided later"),
        ((rule("a", 5, "b"), SINGLE), "has no incidents that stay open"),
        (
            tuple(rule(f"r{n}", 5, f"r{n + 1}") for n in range(9)) + (rule("r9", 5),),
            "at most 8 rules cover each other in a row",
        ),
    ],
)
def test_mistakes_are_told(parts, said):
    with pytest.raises(ConfigError) as error:
        rules(*parts)
    assert said in str(error.value)


def test_compiled_rules_are_not_believed():
    made = rules(rule("a", 5), rule("b", 5, "a"))
    a, b = made.rules
    for forged in (
        msgspec.structs.replace(made, rules=(b,)),
        msgspec.structs.replace(made, rules=(msgspec.structs.replace(a, covered_by=("b",)), b)),
    ):
        with pytest.raises(ConfigError, match="compiled rules"):
            decode_ruleset(forged.encode())
