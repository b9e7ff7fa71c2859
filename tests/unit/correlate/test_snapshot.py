"""The state of an engine that was killed goes on in the next one, as if nothing had been."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsiem.correlate.engine import Engine
from kwsiem.event import EventKind, event_class, parse_fields
from kwsiem.rules.model import Compare, Constant, Correlation, Number, Rule, RuleSet, Step

KIND = EventKind("t.e", parse_fields("source.ip:ip test.value:u32 user.name:str"))
EVENT = event_class(KIND, 1)
S = 10**9
ALL = Compare("test.value", "gte", 0)
IP = ("source.ip",)
A, B = Number("test.value", (1,)), Number("test.value", (2,))
STEPS = (Step("a", A), Step("b", B))


def rule(name: str, correlation: Correlation, predicate=ALL, suppress_s: int = 20) -> Rule:
    return Rule(
        id=name, title="t", level="low", events=("t.e",), predicate=predicate, correlation=correlation,
        suppress_ns=suppress_s * S, fingerprint=name,
    )  # fmt: skip


INNER = rule("inner", Correlation("event_count", IP, timespan_ns=5 * S, value=3))
RULES = RuleSet(
    rules=(
        rule("any", Correlation("any", IP), A),
        rule("count", Correlation("event_count", IP, timespan_ns=10 * S, value=4)),
        rule("pairs", Correlation("event_count", ("source.ip", "test.value"), timespan_ns=10 * S, value=3)),
        rule("distinct", Correlation("value_count", IP, timespan_ns=10 * S, field="test.value", value=3)),
        rule("sequence", Correlation("sequence", IP, timespan_ns=10 * S, steps=STEPS)),
        rule("temporal", Correlation("temporal", IP, timespan_ns=10 * S, steps=STEPS, value=2)),
        rule("absent", Correlation("absent", IP, timespan_ns=5 * S, steps=STEPS)),
        rule("sum", Correlation("value_sum", IP, timespan_ns=10 * S, field="test.value", value=9)),
        rule("median", Correlation("value_median", IP, timespan_ns=10 * S, field="test.value", op="eq", value=2)),
        rule("exactly", Correlation("event_count", IP, timespan_ns=10 * S, op="eq", value=2)),
        rule("few", Correlation("value_count", IP, timespan_ns=10 * S, field="test.value", op="lt", value=2)),
        rule(
            "chain",
            Correlation("event_count", IP, timespan_ns=60 * S, steps=(Step("inner", inner=INNER),), value=2),
            Constant(True),
        ),
    )
)  # fmt: skip


def started(saved: bytes | None = None) -> tuple[Engine, list]:
    alerts: list = []
    engine = Engine(alerts.append, host="h")
    if saved is not None:
        engine.offer(saved)
    engine.set_rules(RULES)
    engine.bind(EVENT)
    return engine, alerts


def play(engine: Engine, events: list) -> None:
    for event in events:
        engine.process([event])
        engine.advance(event.ts_ns - S)


STREAM = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 3), st.integers(0, 2), st.integers(-6, 0)), min_size=4, max_size=40
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(STREAM, st.integers(0, 39))
def test_a_run_with_a_snapshot_in_it_says_what_an_uninterrupted_one_says(stream, cut):
    now, events = 0, []
    for gap, value, host, late in stream:
        now += gap * S // 4
        events.append(EVENT(f"192.0.2.{host}", value, "", 10 * S + now + late * S // 4))
    whole, expected = started()
    play(whole, events)
    whole.finish(10**12)
    first, said = started()
    play(first, events[:cut])
    second, rest = started(first.save())
    assert second.restored == len(RULES.rules)
    play(second, events[cut:])
    second.finish(10**12)
    assert said + rest == expected


def test_a_changed_rule_does_not_get_the_state_of_the_old_one():
    engine, _ = started()
    engine.process([EVENT("192.0.2.1", 1, "", n * S) for n in (1, 2, 3)])
    other = msgspec.structs.replace(RULES.rules[1], fingerprint="changed")
    alerts: list = []
    after = Engine(alerts.append, host="h")
    after.offer(engine.save())
    after.set_rules(RuleSet(rules=(other,)))
    after.bind(EVENT)
    after.process([EVENT("192.0.2.1", 1, "", 4 * S)])
    assert (after.restored, alerts) == (0, [])


def test_bytes_that_are_no_snapshot_are_refused():
    engine, _ = started()
    for data in (b"", b"\xc1", msgspec.msgpack.encode({"version": 1})):
        with pytest.raises(msgspec.DecodeError):
            engine.offer(data)


def test_a_state_that_does_not_fit_is_counted_and_the_rule_begins_anew():
    engine, _ = started()
    saved = msgspec.msgpack.decode(engine.save())
    for part in saved["rules"]:
        part["state"] = {"incidents": {"open": [[1]], "counts": []}, "state": 7}
    broken, alerts = started(msgspec.msgpack.encode(saved))
    assert broken.restored == 0
    assert broken.counters()["errors"] == {"snapshot": len(RULES.rules)}
    broken.process([EVENT("192.0.2.1", 1, "", n * S) for n in range(1, 5)])
    assert any(alert.rule_id == "count" for alert in alerts)


def test_text_that_cannot_be_written_costs_only_its_rule():
    engine, _ = started()
    engine.process([EVENT("192.0.2.1", 1, "\udc80", S)])
    again, _ = started(engine.save())
    assert 0 < again.restored < len(RULES.rules)
