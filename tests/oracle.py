"""A second evaluator of correlations, by brute force, written from docs/rules.md.

It shares no code with the engine. Everything is known beforehand: events are sorted by time (those of one instant
as they arrived), and each window is looked at whole, again for each event.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from kwsiem.rules.model import (
    And,
    Compare,
    Constant,
    Correlation,
    Exists,
    Expr,
    Not,
    Number,
    Or,
    Rule,
    Step,
    Text,
)

OPERATORS = {
    "gte": operator.ge, "gt": operator.gt, "lte": operator.le, "lt": operator.lt,
    "eq": operator.eq, "neq": operator.ne,
}  # fmt: skip


class Happening(NamedTuple):
    """One event: its kind, its fields (None: not known) and its time."""

    kind: str
    fields: dict[str, Any]
    ts_ns: int


class Hit(NamedTuple):
    """Something that concerns a group: when, the value it has, the steps it meets."""

    order: tuple[int, int, int]
    group: tuple[Any, ...]
    value: Any
    steps: frozenset[int]
    since_ns: int

    @property
    def ts_ns(self) -> int:
        return self.order[0]


@dataclass
class Incident:
    """What was found: group, when it opened, its first event's time, the count then and at the end."""

    group: tuple[Any, ...]
    order: tuple[int, int, int]
    first_ns: int
    count: int
    total: int

    @property
    def opened_ns(self) -> int:
        return self.order[0]


def incidents(rule: Rule, events: list[Happening], until_ns: int) -> list[Incident]:
    """All incidents of a rule in the order in which they open; time goes on until ``until_ns``."""
    hits = _hits(rule, sorted(events, key=lambda event: event.ts_ns), until_ns)
    found: list[Incident] = []
    for group in dict.fromkeys(hit.group for hit in hits):
        mine = [hit for hit in hits if hit.group == group]
        if rule.correlation.type == "sequential_test":
            found += _tested(rule, _outcomes(rule.correlation, mine, until_ns))
            continue
        if rule.correlation.type == "absent":
            mine = _unanswered(rule.correlation, mine, until_ns)
        found += _of_group(rule, mine)
    return sorted(found, key=lambda incident: incident.order)


def ungrouped(rule: Rule, events: list[Happening]) -> int:
    """How many events match a rule without steps but have no group, or no value."""
    own = (rule.correlation.group_by, rule.correlation.field)
    return sum(
        event.kind in rule.events
        and holds(rule.predicate, event.fields) is True
        and _hit(event, 0, own, frozenset()) is None
        for event in events
    )


def _of_group(rule: Rule, hits: list[Hit]) -> list[Incident]:
    """The incidents of one group, its hits in the order of time."""
    found: list[Incident] = []
    window: list[Hit] = []
    current: Incident | None = None
    last_ns = 0
    for hit in hits:
        if current is not None and hit.ts_ns - last_ns <= rule.suppress_ns:
            current.total += 1
            last_ns = hit.ts_ns
            continue
        if current is not None:
            current, window = None, []
        window.append(hit)
        live = [each for each in window if each.ts_ns > hit.ts_ns - rule.correlation.timespan_ns]
        count = _met(rule.correlation, live or [hit])
        if count is None:
            continue
        found.append(Incident(hit.group, hit.order, (live or [hit])[0].since_ns, count, count))
        if rule.suppress_ns:
            current, last_ns = found[-1], hit.ts_ns
        else:
            window = []
    return found


def _met(correlation: Correlation, live: list[Hit]) -> int | None:
    """How many events the window counts when its condition is met, else None."""
    kind = correlation.type
    if kind in ("any", "absent"):
        return 1
    if kind == "sequence":
        return _chain(correlation.steps, live)
    compares = OPERATORS[correlation.op]
    values = [hit.value for hit in live]
    if kind == "event_count":
        return len(live) if compares(len(live), correlation.value) else None
    if kind == "value_count":
        return len(set(values)) if compares(len(set(values)), correlation.value) else None
    if kind == "temporal":
        met = frozenset().union(*(hit.steps for hit in live))
        return len(met) if compares(len(met), correlation.value) else None
    return len(live) if compares(_measure(correlation, sorted(values)), correlation.value) else None


def _measure(correlation: Correlation, values: list[int]) -> int | Fraction:
    """The sum, mean, median or percentile of sorted values; exact."""
    count = len(values)
    if correlation.type == "value_sum":
        return sum(values)
    if correlation.type == "value_avg":
        return Fraction(sum(values), count)
    if correlation.type == "value_median":
        return Fraction(values[(count - 1) // 2] + values[count // 2], 2)
    # Nearest rank: the smallest value such that at least the percentage of all is not above it.
    return next(v for n, v in enumerate(values, 1) if 100 * n >= correlation.percentile * count)


def _chain(steps: tuple[Step, ...], live: list[Hit]) -> int | None:
    """Whether the steps come one after the other; the earliest events that do are as good as any."""
    after_ns = -1
    for number, step in enumerate(steps):
        fitting = [hit.ts_ns for hit in live if number in hit.steps and hit.ts_ns > after_ns]
        if len(fitting) < step.count:
            return None
        after_ns = fitting[step.count - 1]
    return sum(step.count for step in steps)


def _unanswered(correlation: Correlation, hits: list[Hit], until_ns: int) -> list[Hit]:
    """A hit at the deadline of each first event that no second one followed in time."""
    span_ns = correlation.timespan_ns
    found = []
    for first in hits:
        if 0 not in first.steps:
            continue
        due_ns = first.ts_ns + span_ns
        answered = any(1 in hit.steps and first.ts_ns < hit.ts_ns < due_ns for hit in hits)
        if not answered and due_ns <= until_ns:
            # Before any event of that instant.
            order = (due_ns, -1, first.order[1])
            found.append(Hit(order, first.group, None, first.steps, first.since_ns))
    return found


class Outcome(NamedTuple):
    """A first contact: when its outcome was sure, when it was first tried, whether it failed."""

    hit: Hit
    begun_ns: int
    failed: bool


def _outcomes(correlation: Correlation, hits: list[Hit], until_ns: int) -> list[Outcome]:
    """The outcomes of the first contacts of one group, in the order in which they are sure."""
    assert correlation.sequential is not None
    found = []
    for contact in dict.fromkeys(hit.value for hit in hits):
        tries = [hit for hit in hits if hit.value == contact]
        while tries:
            first = tries[0]
            due_ns = first.ts_ns + correlation.sequential.wait_ns
            answers = [hit for hit in tries if hit.steps & {1, 2}]
            if answers and (answers[0] is first or answers[0].ts_ns < due_ns):
                found.append(Outcome(answers[0], first.ts_ns, 1 not in answers[0].steps))
            elif due_ns <= until_ns:
                found.append(Outcome(first._replace(order=(due_ns, -1, first.order[1])), first.ts_ns, True))
            tries = [hit for hit in tries if hit.ts_ns >= first.ts_ns + correlation.timespan_ns]
    return sorted(found, key=lambda outcome: outcome.hit.order)


def _tested(rule: Rule, outcomes: list[Outcome]) -> list[Incident]:
    """The incidents of one group: the likelihood ratio of Jung et al., in exact fractions."""
    test = rule.correlation.sequential
    assert test is not None
    benign, scanner = Fraction(str(test.benign)), Fraction(str(test.scanner))
    missed, alarm = Fraction(str(test.missed)), Fraction(str(test.false_alarm))
    found: list[Incident] = []
    counted: list[Outcome] = []
    quiet_ns: int | None = None
    for outcome in outcomes:
        now_ns = outcome.hit.ts_ns
        if quiet_ns is not None and now_ns <= quiet_ns:
            if outcome.failed:
                found[-1].total += 1
                quiet_ns = now_ns + rule.suppress_ns
            continue
        quiet_ns = None
        counted = [one for one in counted if one.begun_ns > now_ns - rule.correlation.timespan_ns]
        counted.append(outcome)
        bad = sum(one.failed for one in counted)
        good = len(counted) - bad
        ratio = ((1 - scanner) / (1 - benign)) ** bad * (scanner / benign) ** good
        if outcome.failed and ratio >= (1 - missed) / alarm:
            first_ns = min(one.begun_ns for one in counted)
            found.append(Incident(outcome.hit.group, outcome.hit.order, first_ns, bad, bad))
            quiet_ns = now_ns + rule.suppress_ns if rule.suppress_ns else None
            counted = []
        elif not outcome.failed and ratio <= missed / (1 - alarm):
            counted = []
    return found


# -- from events to hits


def _hits(rule: Rule, events: list[Happening], until_ns: int) -> list[Hit]:
    """Everything that concerns the rule, in the order of time."""
    correlation = rule.correlation
    found = []
    for number, step in enumerate(correlation.steps):
        if step.inner is not None:
            found += _inner_hits(correlation, number, step.inner, step, events, until_ns)
    for number, event in enumerate(events):
        met: dict[tuple[tuple[str, ...], str], set[int]] = {}
        plain = not correlation.steps and event.kind in rule.events
        if plain and holds(rule.predicate, event.fields) is True:
            met[correlation.group_by, correlation.field] = set()
        for place, step in enumerate(correlation.steps):
            if step.inner is None and _meets(rule, step, event):
                own = (step.group_by or correlation.group_by, step.field or correlation.field)
                met.setdefault(own, set()).add(place)
        if correlation.sequential:
            met = {(own[0], correlation.sequential.contact): places for own, places in met.items()}
        found += _once([_hit(event, number, own, frozenset(places)) for own, places in met.items()])
    return sorted(found, key=lambda hit: hit.order)


def _meets(rule: Rule, step: Step, event: Happening) -> bool:
    if step.events:
        return event.kind in step.events and holds(step.predicate, event.fields) is True
    return (
        event.kind in rule.events
        and holds(rule.predicate, event.fields) is True
        and holds(step.predicate, event.fields) is True
    )


def _hit(
    event: Happening, number: int, own: tuple[tuple[str, ...], str], steps: frozenset[int]
) -> Hit | None:
    """The hit of an event; none when its group or its value is not known."""
    group = tuple(event.fields.get(name) for name in own[0])
    value = event.fields.get(own[1]) if own[1] and isinstance(own[1], str) else 0
    parts: tuple[Any, ...] = (value,)
    if isinstance(own[1], tuple):
        value = parts = tuple(event.fields.get(name) for name in own[1])
    if any(part in (None, "") for part in (*group, *parts)):
        return None
    return Hit((event.ts_ns, number, 1), group, value, steps, event.ts_ns)


def _once(hits: list[Hit | None]) -> list[Hit]:
    """The hits of one event: for one group (and value) it counts once, whatever it meets."""
    merged: dict[tuple[Any, ...], Hit] = {}
    for hit in hits:
        if hit is not None:
            known = merged.get((hit.group, hit.value), hit)
            merged[hit.group, hit.value] = hit._replace(steps=known.steps | hit.steps)
    return list(merged.values())


def _inner_hits(
    correlation: Correlation, number: int, inner: Rule, step: Step, events: list[Happening], until_ns: int
) -> list[Hit]:
    """Each incident that opens below is one event, before what else that very event is."""
    known = inner.correlation.group_by
    field = step.field or correlation.field
    found = []
    for incident in incidents(inner, events, until_ns):
        group = tuple(incident.group[known.index(name)] for name in step.group_by or correlation.group_by)
        value = incident.group[known.index(field)] if field else 0
        ts_ns, place, _ = incident.order
        found.append(Hit((ts_ns, place, 0), group, value, frozenset((number,)), ts_ns))
    return found


def holds(expr: Expr, fields: dict[str, Any]) -> bool | None:
    """Whether a predicate holds; None where that is not known, because a field is not."""
    if isinstance(expr, (And, Or)):
        parts = [holds(item, fields) for item in expr.items]
        decides = isinstance(expr, Or)
        if decides in parts:
            return decides
        return None if None in parts else not decides
    if isinstance(expr, Not):
        inner = holds(expr.item, fields)
        return None if inner is None else not inner
    if isinstance(expr, Constant):
        return expr.value
    value = fields.get(expr.field)  # type: ignore[union-attr]
    if isinstance(expr, Exists):
        return (value not in (None, "")) == expr.present
    if value is None:
        return None
    if isinstance(expr, Compare):
        return OPERATORS[expr.op](value, expr.value)
    if isinstance(expr, Number):
        return value in expr.values
    assert isinstance(expr, Text) and expr.match == "equals"
    return (value if expr.cased else value.lower()) in expr.values
