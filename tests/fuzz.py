"""``make fuzz``: random streams through the engine and the oracle, until they differ or enough have been seen.

.venv/bin/python tests/fuzz.py [--streams 100000] [--seed 0] [--type sequence]

The rules are those of ``streams.py`` and, for types called ``wide-…``, wider ones: steps whose group-by and value
fields have names of their own, two addresses in one event, fields that are not known, nested conditions, huge
numbers, events dated in the future. All that an alert says is compared: group, time, first time, both counts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import traceback
from random import Random
from typing import Any, NamedTuple

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import oracle
import streams

from kwsiem.correlate.engine import Engine
from kwsiem.event import Event, EventKind, event_class, event_from_fields, parse_fields
from kwsiem.rules.model import (
    And,
    Compare,
    Constant,
    Correlation,
    Expr,
    Not,
    Number,
    Or,
    Rule,
    RuleSet,
    Step,
    Text,
)

CHUNK = 200
S, QUARTER = 10**9, 10**9 // 4
LOGIN = EventKind(
    "w.a", parse_fields("source.address:str destination.ip:ip user.name:str test.value:u64 test.other:i64")
)
SUDO = EventKind("w.b", parse_fields("client.ip:ip process.name:str test.size:u64"))
KINDS = {kind.name: kind for kind in (LOGIN, SUDO)}
CLASSES = {name: event_class(kind, number) for number, (name, kind) in enumerate(KINDS.items(), 11)}
#: Names of an address, a text and numbers in each kind.
ADDRESSES = {"w.a": ("source.ip", "destination.ip"), "w.b": ("client.ip",)}
TEXTS = {"w.a": "user.name", "w.b": "process.name"}
NUMBERS = {"w.a": ("test.value", "test.other"), "w.b": ("test.size",)}
#: A sequential test has steps of one kind of group alone.
WIDE_TYPES = tuple(kind for kind in streams.TYPES if kind != "sequential_test")
WIDE = tuple(f"wide-{kind}" for kind in WIDE_TYPES)
TYPES = (*streams.TYPES, *WIDE)


class Arrival(NamedTuple):
    """An event as it comes: fields as given, its date and when it arrives in quarters of a second."""

    kind: str
    fields: dict[str, Any]
    at: int
    arrives: int

    def event(self) -> Event:
        """As the engine sees it."""
        return event_from_fields(CLASSES[self.kind], KINDS[self.kind], self.fields, self.at * QUARTER)

    def happening(self) -> oracle.Happening:
        """As the oracle sees it: what is dated more than a second later than now is of now."""
        fields = dict(self.fields)
        for name in ("source.ip", "destination.ip", "client.ip"):
            text = fields.pop("source.address", "") if name == "source.ip" else fields.get(name, "")
            fields[name] = text if text.startswith("192.0.2.") else None
        at = self.arrives if self.future else self.at
        return oracle.Happening(self.kind, fields, at * QUARTER)

    @property
    def future(self) -> bool:
        """Whether it is dated too far ahead."""
        return self.at > self.arrives + 4


class Case(NamedTuple):
    """A rule and a stream: each arrival is (event, the same for the oracle, when it arrives in ns)."""

    rule: Rule
    stream: list[tuple[Event, oracle.Happening, int]]
    classes: tuple[type[Event], ...]
    tells_time: bool
    future: int = 0


class Found(NamedTuple):
    """An incident as both tell it."""

    group: tuple[Any, ...]
    opened_ns: int
    first_ns: int
    count: int
    total: int


# -- wide rules and streams


def wide_events(rng: Random, in_order: bool) -> list[Arrival]:
    """Bursts, gaps, same instants, duplicates, unknown fields, dates ahead; two seconds of disorder at most."""
    now, made = streams.BEGIN, []
    hosts = rng.choice((1, 1, 2, 6, 40))
    huge = rng.random() < 0.1
    late = 0 if in_order else rng.choice((4, 8))
    ahead = 0.15 if rng.random() < 0.3 else 0.0
    for _ in range(rng.randrange(2, 36)):
        now += rng.choice((0, 0, 1, 1, 2, 3, rng.randrange(30)))
        kind = rng.choices(("w.a", "w.b"), (70, 30))[0]
        fields: dict[str, Any] = {TEXTS[kind]: rng.choice(("", "a", "A", "b", "c"))}
        for name in NUMBERS[kind]:
            fields[name] = rng.randrange(4) + (2**62 if huge else 0) - (2 if name == "test.other" else 0)
        for name in ADDRESSES[kind]:
            known = f"192.0.2.{rng.randrange(1, hosts + 1)}"
            if name == "source.ip":
                fields["source.address"] = known if rng.random() > 0.06 else rng.choice(("", "gw.example"))
            else:
                fields[name] = known if rng.random() > 0.05 else ""
        at = now - rng.randrange(late + 1)
        if rng.random() < ahead:
            # Up to a second ahead keeps its date, more does not.
            at = now + rng.choice((5, 9, 400_000) if in_order or late == 8 else (1, 4, 5, 400_000))
        made += [Arrival(kind, fields, at, now)] * (2 if rng.random() < 0.1 else 1)
    return made


def wide_test(rng: Random, kind: str, depth: int = 2) -> Expr:
    """A test of fields of this kind: not known, text, numbers, nested."""
    if depth and rng.random() < 0.35:
        parts = tuple(wide_test(rng, kind, depth - 1) for _ in range(rng.randrange(1, 4)))
        return rng.choice((And(parts), Or(parts), Or(parts), Not(parts[0])))
    number = rng.choice(NUMBERS[kind])
    return rng.choice(
        (
            Constant(True),
            Constant(True),
            Constant(rng.random() < 0.9),
            Compare(number, rng.choice(("gt", "gte", "lt", "lte")), rng.randrange(-1, 4)),
            Number(number, tuple(rng.sample(range(4), rng.randrange(1, 4)))),
            Text(TEXTS[kind], "equals", tuple(rng.sample(("a", "b", "c", ""), 2))),
            Text(TEXTS[kind], "equals", tuple(rng.sample(("a", "A", "b", ""), 2)), cased=True),
            Text(rng.choice(ADDRESSES[kind]), "equals", ("192.0.2.1", "192.0.2.3")),
        )
    )


def wide_rule(rng: Random, kind: str, name: str = "r", level: int = 0) -> Rule:
    """A rule with steps that have names of their own, whatever its type."""
    if kind == "chain":
        return _wide_chain(rng, name, level)
    keys = rng.choice((1, 1, 1, 2)) if level else rng.choice((0, 1, 1, 1, 2))
    group_by = ("address", "text")[:keys]
    counts = kind in ("event_count", "value_count", "temporal")
    values = kind.startswith("value_")
    text = kind == "value_count" and rng.random() < 0.5
    stepped = kind in ("temporal", "sequence", "absent") or (kind != "any" and rng.random() < 0.6)
    steps: list[Step] = []
    most = 3 if kind == "sequence" else 4
    number_of_steps = 2 if kind == "absent" else rng.randrange(2, most + 1) if stepped else 0
    # One event meets all steps that are of its kind: its value must not depend on the step (rules.md is silent).
    of_kind = {k: TEXTS[k] if text else rng.choice(NUMBERS[k]) for k in KINDS}
    for n in range(number_of_steps):
        of = rng.choice(("w.a", "w.a", "w.b"))
        own = (rng.choice(ADDRESSES[of]), TEXTS[of])[:keys]
        count = rng.choice((1, 1, 1, 2, 3)) if kind == "sequence" else 1
        field = of_kind[of] if values else ""
        # A sequence of narrow steps is hardly ever met.
        test = Constant(True) if kind == "sequence" and rng.random() < 0.5 else wide_test(rng, of)
        steps.append(Step(f"s{n}", test, count, events=(of,), group_by=own, field=field))
    of, predicate, events, field = "w.a", Constant(True), ("w.a", "w.b"), "value" if values else ""
    if not stepped:
        of = rng.choice(("w.a", "w.b"))
        predicate, events, field = wide_test(rng, of), (of,), of_kind[of] if values else ""
        group_by = (rng.choice(ADDRESSES[of]), TEXTS[of])[:keys]
    value: float = rng.randrange(1, 5)
    if values and not counts:
        value = rng.choice((rng.randrange(-2, 9), rng.randrange(4), 0.5, 1.5, 2**62 + 1))
    correlation = Correlation(
        kind,  # type: ignore[arg-type]
        group_by,
        timespan_ns=0 if kind == "any" else rng.randrange(1, 60 if kind == "sequence" else 30) * QUARTER,
        field=field,
        op=rng.choice(("gte", "gt", *streams.OPERATORS)) if counts or values else "gte",
        value=value,
        steps=tuple(steps),
        percentile=rng.choice((0, 1, 33, 50, 67, 95, 99, 100)),
    )
    return _rule(name, events, predicate, correlation, rng.choice((0, 1, 4, 12, 60)) * QUARTER)


def _wide_chain(rng: Random, name: str, level: int) -> Rule:
    """Correlations and events side by side; two levels, now and then three."""
    kind = rng.choice(("event_count", "value_count", "temporal", "sequence", "absent"))
    deeper = [k for k in WIDE_TYPES if k != "chain"] + (["chain"] if level < 1 else [])
    steps: list[Step] = []
    for n in range(2 if kind == "absent" else rng.randrange(1 + (kind == "sequence"), 4)):
        if n == 0 or rng.random() < 0.4:
            inner = wide_rule(rng, rng.choice(deeper), f"{name}{n}", level + 1)
            known = inner.correlation.group_by
            steps.append(Step(f"s{n}", inner=inner, group_by=known[:1], field=_field(kind, known)))
        else:
            of = rng.choice(("w.a", "w.b"))
            own = (rng.choice(ADDRESSES[of]),)
            field = TEXTS[of] if kind == "value_count" else ""
            steps.append(Step(f"s{n}", wide_test(rng, of), events=(of,), group_by=own, field=field))
    correlation = Correlation(
        kind,  # type: ignore[arg-type]
        ("address",),
        timespan_ns=rng.randrange(4, 60) * QUARTER,
        field="value" if kind == "value_count" else "",
        op=rng.choice(("gte", "gte", *streams.OPERATORS)) if kind.endswith("_count") else "gte",
        value=len(steps) if kind == "temporal" else rng.randrange(1, 4),
        steps=tuple(steps),
    )
    return _rule(name, ("w.a", "w.b"), Constant(True), correlation, rng.choice((0, 4, 12, 60)) * QUARTER)


def _field(kind: str, known: tuple[str, ...]) -> str:
    """What an upper value_count counts of the lower one's group."""
    return known[-1] if kind == "value_count" else ""


def _rule(
    name: str, events: tuple[str, ...], predicate: Expr, correlation: Correlation, suppress_ns: int
) -> Rule:
    return Rule(
        id=name, title="t", level="low", events=events, predicate=predicate, correlation=correlation,
        suppress_ns=suppress_ns, fingerprint=name,
    )  # fmt: skip


# -- through both


def case(kind: str, rng: Random) -> tuple[Case, bool]:
    """A rule of this type with a stream, and whether all of it can be compared."""
    if kind in WIDE:
        made = wide_rule(rng, kind.removeprefix("wide-"))
        in_order = not made.correlation.settled and rng.random() < 0.5
        wide = wide_events(rng, in_order)
        rows = [(each.event(), each.happening(), each.arrives * QUARTER) for each in wide]
        future = sum(each.future for each in wide)
        return Case(made, rows, tuple(CLASSES.values()), True, future), in_order or made.correlation.settled
    made = streams.rule(rng, kind)
    in_order = not made.correlation.settled and rng.random() < 0.5
    plain = streams.events(rng, 0 if in_order else streams.LATENESS)
    rows = [(each.event(), each.happening(), each.arrives * QUARTER) for each in plain]
    classes = (streams.EVENT, streams.OTHER_EVENT, streams.TWIN_EVENT)
    return Case(made, rows, classes, rng.random() < 0.5), in_order or made.correlation.settled


def _found(alert: Any, total: int) -> Found:
    return Found(tuple(alert.identity.values()), alert.opened_ts_ns, alert.first_ns, alert.count, total)


def run_engine(given: Case, rng: Random, until_ns: int | None = None) -> list[Found]:
    """All incidents, as the alerts of the engine tell them; up to a moment: without the total."""
    alerts: list[Any] = []
    engine = Engine(alerts.append, host="h")
    engine.set_rules(RuleSet(rules=(given.rule,)))
    for cls in given.classes:
        engine.bind(cls)
    rest = given.stream
    while rest:
        now_ns = rest[0][2]
        size = rng.choice((1, 1, 3, 10))
        if given.tells_time:  # What comes together has one now.
            size = min(size, sum(1 for row in rest if row[2] == now_ns))
        batch, rest = rest[:size], rest[size:]
        rows = [event for event, _, _ in batch]
        if given.tells_time:
            engine.process(rows, now_ns)
        else:
            engine.process(rows)
        if rng.random() < 0.5:
            engine.advance(batch[-1][2])
    if until_ns is not None:
        engine.finish(until_ns)
        return [_found(alert, 0) for alert in alerts if alert.state == "open"]
    engine.finish(streams.END_NS)
    counters = engine.counters()
    assert counters["errors"] == {}, counters
    assert counters["future"] == given.future, counters
    if not given.rule.correlation.steps:
        happenings = [happening for _, happening, _ in given.stream]
        assert counters["ungrouped"] == oracle.ungrouped(given.rule, happenings), counters
    closed = {alert.incident_id: alert.count for alert in alerts if alert.state == "close"}
    return [
        _found(alert, closed.get(alert.incident_id, alert.count)) for alert in alerts if alert.state == "open"
    ]


def run_oracle(given: Case, until_ns: int | None = None) -> list[Found]:
    """All incidents, as the oracle finds them; up to a moment: without the total."""
    happenings = [happening for _, happening, _ in given.stream]
    found = oracle.incidents(given.rule, happenings, until_ns or streams.END_NS)
    return [Found(i.group, i.opened_ns, i.first_ns, i.count, 0 if until_ns else i.total) for i in found]


def compared(kind: str, full: bool, found: list[Found]) -> Any:
    """What has to be the same.

    Decided at once: under disorder it is sure who is alerted, not with which of several windows. By which of
    several events a step is met, or a value seen, is left open, and with it the first time.
    """
    if not full:
        return {each.group for each in found}
    if kind in ("value_count", "temporal", "sequence", "absent"):
        found = [each._replace(first_ns=0) for each in found]
    return sorted(found, key=repr)


def compare(kind: str, seed: int) -> str:
    """One stream through both; what differs, or what failed, in words."""
    rng = Random(f"{kind} {seed}")
    given, full = case(kind, rng)
    until_ns = None
    if rng.random() < 0.2:  # What was there up to a moment after the last event, and not what becomes of it.
        until_ns = max(happening.ts_ns for _, happening, _ in given.stream) + rng.randrange(40) * QUARTER
    try:
        expected, got = run_oracle(given, until_ns), run_engine(given, rng, until_ns)
        what = given.rule.correlation.type
        if compared(what, full, expected) == compared(what, full, got):
            return ""
        result = [f"expected {expected}", f"got      {got}"]
    except Exception:  # noqa: BLE001 - whatever it is: a StopIteration would end the pool's loop in silence
        result = [traceback.format_exc()]
    lines = [f"type {kind}, seed {seed}, until {until_ns}", str(given.rule)]
    lines += [f"{happening} arrives {now_ns / S}" for _, happening, now_ns in given.stream]
    return "\n".join([*lines, *result])


def chunk(task: tuple[str, int, int]) -> tuple[int, str]:
    """Some streams of one type; how many there were, and the first difference."""
    kind, start, count = task
    for seed in range(start, start + count):
        difference = compare(kind, seed)
        if difference:
            return seed - start + 1, difference
    return count, ""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--type", choices=TYPES, action="append")
    options = parser.parse_args()
    kinds = options.type or TYPES
    each = -(-options.streams // len(kinds))
    size = min(CHUNK, each)
    tasks = [(kind, options.seed + n, min(size, each - n)) for n in range(0, each, size) for kind in kinds]
    begun = told = time.monotonic()
    done = 0
    with multiprocessing.Pool() as pool:
        for count, difference in pool.imap_unordered(chunk, tasks):
            done += count
            if difference:
                print(f"after {done:,} streams the engine differs from the oracle:\n{difference}")
                return 1
            if time.monotonic() - told > 3:
                told = time.monotonic()
                print(f"{done:,} streams, {done / (told - begun):,.0f} a second", flush=True)
    if done != each * len(kinds):
        print(f"only {done:,} of {each * len(kinds):,} streams were compared")
        return 1
    print(f"{done:,} streams of {len(kinds)} types in {time.monotonic() - begun:.0f} s: no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main())
