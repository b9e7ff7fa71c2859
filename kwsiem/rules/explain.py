"""A rule in words: what it looks at, and what has to come together before it fires."""

from __future__ import annotations

from typing import Final

from kwsiem.rules.duration import format_duration
from kwsiem.rules.model import Constant, Correlation, Rule, Step, describe

_OPERATORS: Final = {
    "gte": "at least",
    "gt": "more than",
    "lt": "less than",
    "lte": "at most",
    "eq": "exactly",
    "neq": "anything but",
}
_MEASURES: Final = {
    "value_sum": "a sum of {field}",
    "value_avg": "a mean of {field}",
    "value_median": "a median of {field}",
}


def sentence(rule: Rule) -> str:
    """One sentence: ``fires when one source.ip has at least 5 …; looks at tcp.syn where …``."""
    return f"{fires(rule)}; looks at {looks_at(rule)}"


def fires(rule: Rule) -> str:
    """What makes the rule fire."""
    correlation = rule.correlation
    groups = ", ".join(correlation.group_by)
    if correlation.type == "any":
        return "fires on each event that matches" + (f" (apart by {groups})" if groups else "")
    what = "" if correlation.sequential else _what(correlation)
    within = f"within {format_duration(correlation.timespan_ns)}"
    if correlation.type == "absent":
        first, then = correlation.steps
        return f"fires when {_for_one(groups, 'there is')} {first.name} and no {then.name} {within} after it"
    if correlation.sequential:
        return f"fires when {_for_one(groups, 'there are')} {_failures(correlation)} {within}"
    return f"fires when {_for_one(groups, 'there are')} {what} {within}"


def _failures(correlation: Correlation) -> str:
    """What a sequential test needs, in the numbers that it comes down to."""
    test = correlation.sequential
    assert test is not None
    attempt, success, failure = (step.name for step in correlation.steps)
    contact = " and ".join(test.contact)
    answer = f"{attempt} with {failure} or without {success} for {format_duration(test.wait_ns)}"
    odds = f"of {test.benign:g} for anybody and {test.scanner:g} for a scanner"
    errors = f"{test.false_alarm:g} false alarms, {test.missed:g} missed"
    return (
        f"first contacts (new {contact}) that fail ({answer}) as a scanner's do:"
        f" {test.needed} in a row, more when some succeed (odds of success {odds}; {errors})"
    )


def _for_one(groups: str, without: str) -> str:
    return f"one {groups} has" if groups else without


def _what(correlation: Correlation) -> str:
    """What one group must have within the timespan."""
    kind, steps = correlation.type, correlation.steps
    amount = f"{_OPERATORS[correlation.op]} {_number(correlation.value)}"
    if kind == "sequence":
        return ", then ".join(_counted(step) for step in steps)
    if kind == "temporal":
        names = _names(steps)
        met = correlation.value == len(steps) and correlation.op == "gte"
        return f"{'each' if met else amount} of {names} in any order"
    of_steps = f" of {_names(steps)}" if steps else ""
    if kind == "event_count":
        plural = "" if correlation.value == 1 else "s"
        return f"{amount} matching event{plural}{of_steps}"
    if kind == "value_count":
        return f"{amount} distinct {correlation.field}{of_steps}"
    if kind == "value_percentile":
        measure = f"a percentile {correlation.percentile} of {correlation.field}"
    else:
        measure = _MEASURES.get(kind, "{field}").format(field=correlation.field)
    return f"{measure}{of_steps} of {amount}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _counted(step: Step) -> str:
    return f"{step.count} times {step.name}" if step.count > 1 else step.name


def _names(steps: tuple[Step, ...]) -> str:
    return ", ".join(step.name for step in steps)


def looks_at(rule: Rule) -> str:
    """The kinds of events, and which of them."""
    kinds = ", ".join(rule.events)
    return kinds if rule.predicate == Constant(True) else f"{kinds} where {describe(rule.predicate)}"


def step_lines(rule: Rule, indent: str = "") -> list[str]:
    """What each step of the rule's correlation stands for, the rules below it and their steps included."""
    lines = []
    for step in rule.correlation.steps:
        if step.inner is not None:
            lines.append(f"{indent}{step.name}: an incident of {step.inner.id}, which {sentence(step.inner)}")
            lines += step_lines(step.inner, indent + "  ")
            continue
        kinds = ", ".join(step.events or rule.events)
        where = "" if step.predicate == Constant(True) else f" where {describe(step.predicate)}"
        own = f" by {', '.join(step.group_by)}" if step.group_by else ""
        lines.append(f"{indent}{step.name}: {kinds}{where}{own}")
    return lines
