"""Random rules and random streams of events, for the engine and the oracle alike."""

from __future__ import annotations

import random
from typing import NamedTuple

import oracle

from kwsiem.event import Event, EventKind, event_class, parse_fields
from kwsiem.rules.model import Compare, Constant, Correlation, Expr, Not, Number, Rule, Sequential, Step, Text

KIND = EventKind("t.e", parse_fields("source.ip:ip test.value:u32 user.name:str"))
OTHER = EventKind("t.f", parse_fields("client.ip:ip test.value:u32"))
#: Differs from the first kind by its name alone: a rule that forgets to ask for the kind is found out.
TWIN = EventKind("t.g", KIND.fields)
EVENT, OTHER_EVENT, TWIN_EVENT = event_class(KIND, 1), event_class(OTHER, 2), event_class(TWIN, 3)
QUARTER = 10**9 // 4
LATENESS = 8  # quarters of a second
BEGIN = 400
END_NS = 10**15
TYPES = (
    "any", "event_count", "value_count", "temporal", "sequence", "absent", "value_sum", "value_avg",
    "value_percentile", "value_median", "sequential_test", "chain",
)  # fmt: skip
OPERATORS = ("gte", "gt", "lt", "lte", "eq", "neq")
IP = ("source.ip",)


class Arrival(NamedTuple):
    """An event in the order of arrival; times in quarters of a second."""

    kind: str
    host: int
    value: int
    user: str
    at: int
    arrives: int

    def event(self) -> Event:
        """As the engine sees it."""
        address = f"192.0.2.{self.host}" if self.host else ""
        if self.kind == "t.f":
            return OTHER_EVENT(address, self.value, self.at * QUARTER)
        cls = TWIN_EVENT if self.kind == "t.g" else EVENT
        return cls(address, self.value, self.user, self.at * QUARTER)

    def happening(self) -> oracle.Happening:
        """As the oracle sees it."""
        address = f"192.0.2.{self.host}" if self.host else ""
        fields = {"test.value": self.value}
        if self.kind == "t.f":
            fields["client.ip"] = address
        else:
            fields |= {"source.ip": address, "user.name": self.user}
        return oracle.Happening(self.kind, fields, self.at * QUARTER)


def events(rng: random.Random, late: int = LATENESS) -> list[Arrival]:
    """A stream in the order of arrival: bursts, gaps, same instants, duplicates; at most so late."""
    at, made = BEGIN, []
    hosts, values = rng.choice((1, 1, 2, 6)), rng.choice((2, 3, 6))
    for _ in range(rng.randrange(2, 32)):
        at += rng.choice((0, 0, 1, 1, 2, 3, rng.randrange(30)))
        kind = rng.choices(("t.e", "t.f", "t.g"), (76, 14, 10))[0]
        host = 0 if rng.random() < 0.04 else rng.randrange(1, hosts + 1)
        event = Arrival(
            kind, host, rng.randrange(values), rng.choice(("", "a", "b", "c", "c")), at, at + rng.randrange(late + 1)
        )  # fmt: skip
        made += [event] * (2 if rng.random() < 0.1 else 1)
    return sorted(made, key=lambda event: event.arrives)


def predicate(rng: random.Random) -> Expr:
    """A test of the value."""
    values = tuple(rng.sample(range(4), rng.randrange(1, 3)))
    return rng.choice(
        (
            Constant(True),
            Compare("test.value", rng.choice(("gte", "lt")), rng.randrange(3)),
            Number("test.value", values),
            Not(Number("test.value", values)),
        )
    )


def rule(rng: random.Random, kind: str, name: str = "r", level: int = 0) -> Rule:
    """A rule of this type."""
    if kind == "chain":
        return _chain(rng, name, level)
    timespan_ns = rng.randrange(1, 30) * QUARTER
    group_by = rng.choice(
        (IP, IP, IP, ("source.ip", "test.value")) if level else (IP, IP, IP, ("source.ip", "user.name"), ())
    )
    events_of = rng.choice((("t.e",), ("t.e",), ("t.e", "t.g")))
    steps: tuple[Step, ...] = ()
    op, value, field, percentile, sequential = "gte", 1, "", 50, None
    if kind in ("event_count", "value_count"):
        op = rng.choice(("gte", "gte", "gt", *OPERATORS))
        value = rng.randrange(1, 6)
        field = rng.choice(("test.value", "user.name")) if kind == "value_count" else ""
    elif kind in ("temporal", "sequence", "absent"):
        number = 2 if kind == "absent" else rng.randrange(2, 4)
        counts = [rng.choice((1, 1, 2)) if kind == "sequence" else 1 for _ in range(number)]
        steps = tuple(Step(f"s{n}", predicate(rng), counts[n]) for n in range(number))
        value = rng.randrange(1, number + 1) if kind == "temporal" else 1
        op = rng.choice(("gte", "gte", *OPERATORS)) if kind == "temporal" else "gte"
    elif kind == "sequential_test":
        # What was tried meets the first part; who answers, the second or the third.
        names = rng.sample(("a", "b", "c"), 2)
        steps = (
            Step("s0", Constant(True) if rng.random() < 0.5 else predicate(rng)),
            *(Step(f"s{n}", Text("user.name", "equals", (name,))) for n, name in enumerate(names, 1)),
        )
        group_by = IP
        sequential = odds(rng, timespan_ns)
    elif kind.startswith("value_"):
        op, value, field = rng.choice(OPERATORS), rng.choice((rng.randrange(1, 12), 1.5)), "test.value"
        percentile = rng.choice((0, 10, 50, 90, 95, 100))
    if (
        group_by == IP
        and not level
        and kind in ("event_count", "temporal", "sequence", "absent")
        and rng.random() < 0.3
    ):
        group_by, steps, events_of = _of_two_kinds(rng, kind, steps)
    correlation = Correlation(
        kind, group_by, timespan_ns=0 if kind == "any" else timespan_ns, field=field, op=op, value=value,
        steps=steps, percentile=percentile, sequential=sequential,
    )  # fmt: skip
    gate = Constant(True) if "t.f" in events_of else predicate(rng)
    return _rule(name, events_of, gate, correlation, rng.choice((0, 1, 4, 12, 60)) * QUARTER)


def odds(rng: random.Random, timespan_ns: int) -> Sequential:
    """A sequential test that a few failures make fire, some of its bounds met exactly."""
    benign, scanner = rng.choice(((0.8, 0.2), (0.5, 0.25), (0.9, 0.3)))
    false_alarm = rng.choice((0.01, 0.05, 0.2, 0.3))
    missed = rng.choice((0.01, 0.2, 0.36))
    wait_ns = rng.randrange(1, max(2, timespan_ns // QUARTER)) * QUARTER // rng.choice((1, 1, 2))
    contact = rng.choice((("test.value",), ("test.value",), ("test.value", "user.name")))
    return Sequential(contact, min(wait_ns, timespan_ns - 1), benign, scanner, false_alarm, missed)


def _of_two_kinds(rng: random.Random, kind: str, steps: tuple[Step, ...]):
    """Steps that look at two kinds whose address has two names (aliases)."""
    made = [
        Step(
            step.name,
            step.predicate,
            step.count,
            events=("t.f",) if which else ("t.e",),
            group_by=("client.ip",) if which else IP,
        )
        for step in steps or (Step("a", predicate(rng)), Step("b", predicate(rng)))
        for which in (rng.random() < 0.5,)
    ]
    return ("ip",), tuple(made), ("t.e", "t.f")


def _chain(rng: random.Random, name: str, level: int) -> Rule:
    """A correlation over one or two others, perhaps with steps of its own."""
    kind = rng.choice(("event_count", "temporal", "sequence", "absent", "value_count"))
    number = 1 if kind in ("event_count", "value_count") else 2
    deeper = [k for k in TYPES if k not in ("any", "chain")] + (["chain"] if level < 1 else [])
    steps = []
    for n in range(number):
        if n == 0 or rng.random() < 0.5:
            inner = rule(rng, rng.choice(deeper), f"{name}{n}", level + 1)
            if kind == "value_count" and "test.value" not in inner.correlation.group_by:
                kind = "event_count"
            steps.append(Step(f"s{n}", inner=inner))
        else:
            kinds = rng.choice((("t.e",), ("t.g",), ("t.e", "t.g")))
            steps.append(Step(f"s{n}", predicate(rng), events=kinds))
    correlation = Correlation(
        kind, IP, timespan_ns=rng.randrange(4, 60) * QUARTER, steps=tuple(steps),
        field="test.value" if kind == "value_count" else "",
        op=rng.choice(("gte", "gte", *OPERATORS)) if kind in ("event_count", "value_count") else "gte",
        value=number if kind == "temporal" else rng.randrange(1, 4),
    )  # fmt: skip
    below = ("t.e", "t.f", "t.g")
    return _rule(name, below, Constant(True), correlation, rng.choice((0, 4, 12, 60)) * QUARTER)


def _rule(name, events_of, gate, correlation, suppress_ns) -> Rule:
    return Rule(
        id=name, title="t", level="low", events=events_of, predicate=gate, correlation=correlation,
        suppress_ns=suppress_ns, fingerprint=name,
    )  # fmt: skip
