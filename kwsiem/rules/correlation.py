"""The ``correlation`` and ``sequence`` blocks of a rule become a :class:`~kwsiem.rules.model.Correlation`."""

from __future__ import annotations

from collections.abc import Sequence as SequenceType
from typing import Final

from sigma.correlations import SigmaCorrelationType

from kwsiem.event import EventKind
from kwsiem.rules.detection import Detection, common_field
from kwsiem.rules.model import MAX_GROUP_BY, MAX_PLACES, MAX_STEPS, MAX_THRESHOLD, Correlation, Step
from kwsiem.rules.report import Report
from kwsiem.yamltree import Mapping, Place, Scalar, Sequence, kind_of

TYPES: Final = ("event_count", "value_count")
OPERATORS: Final = ("gte", "gt")
#: The other operators of Sigma: known words, refused with a sentence of their own.
OPERATORS_LATER: Final = frozenset({"lt", "lte", "eq", "neq"})
DEFAULT_TIMESPAN_NS: Final = 60 * 10**9


def read_correlation(report: Report, block: Mapping, kinds: SequenceType[EventKind]) -> Correlation | None:
    """A Sigma correlation folded into its rule; None after a problem."""
    before = len(report.problems)
    report.check_keys(
        block,
        "correlation",
        ("type", "field", "group-by", "timespan", "condition"),
        ("type", "timespan", "condition"),
    )
    kind = _type(report, block)
    field = report.text(block, "field", "correlation.field", limit=128)
    if kind == "value_count":
        if field:
            _check_field(report, field, block.keys["field"], "correlation.field", kinds)
        else:
            report.add(block, "correlation", "type value_count needs the key 'field'")
    elif field:
        report.add(block.keys["field"], "correlation.field", f"type {kind} counts events and takes no field")
    group_by = _group_by(report, block, "correlation", kinds)
    timespan_ns = report.duration(block, "timespan", "correlation.timespan", DEFAULT_TIMESPAN_NS)
    op, value = _condition(report, block)
    if len(report.problems) > before:
        return None
    return Correlation(
        type=kind,  # type: ignore[arg-type]
        group_by=group_by,
        timespan_ns=timespan_ns,
        field=field,
        op=op,  # type: ignore[arg-type]
        value=value,
    )


def read_sequence(
    report: Report, block: Mapping, kinds: SequenceType[EventKind], detection: Detection
) -> Correlation | None:
    """Steps one after the other, each a selection of the rule's detection; None after a problem."""
    before = len(report.problems)
    report.check_keys(block, "sequence", ("group-by", "timespan", "steps"), ("timespan", "steps"))
    group_by = _group_by(report, block, "sequence", kinds)
    timespan_ns = report.duration(block, "timespan", "sequence.timespan", DEFAULT_TIMESPAN_NS)
    node = block.items.get("steps")
    steps: list[Step] = []
    if isinstance(node, Sequence) and 2 <= len(node.items) <= MAX_STEPS:
        for index, item in enumerate(node.items):
            step = _step(report, item, f"sequence.steps.{index}", detection)
            if step:
                steps.append(step)
    elif node is not None:
        report.add(block.keys["steps"], "sequence.steps", f"expected a list of 2 to {MAX_STEPS} steps")
    if (places := sum(step.count for step in steps)) > MAX_PLACES:
        message = f"at most {MAX_PLACES} events, all counts together, got {places}"
        report.add(block.keys["steps"], "sequence.steps", message)
    if len(report.problems) > before or len(steps) < 2:
        return None
    return Correlation(type="sequence", group_by=group_by, timespan_ns=timespan_ns, steps=tuple(steps))


def _step(report: Report, node: object, path: str, detection: Detection) -> Step | None:
    if not isinstance(node, Mapping):
        assert isinstance(node, (Scalar, Sequence))
        report.add(node, path, f"expected a step such as {{selection: name, count: 3}}, got {kind_of(node)}")
        return None
    report.check_keys(node, path, ("selection", "count"), ("selection",))
    name = report.text(node, "selection", f"{path}.selection", limit=128)
    count = report.integer(node, "count", f"{path}.count", 1, MAX_THRESHOLD, 1)
    if name and report.choice(
        name, detection.names, node.keys["selection"], f"{path}.selection", "selection"
    ):
        predicate = detection.selection(name)
        return Step(name, predicate, count) if predicate else None
    return None


def _type(report: Report, block: Mapping) -> str:
    node = block.items.get("type")
    value = node.value if isinstance(node, Scalar) else None
    if node is None:
        return "event_count"
    place = block.keys["type"]
    if isinstance(value, str) and value not in TYPES and value.upper() in SigmaCorrelationType.__members__:
        hint = ", write it as a 'sequence'" if value == "temporal_ordered" else ""
        report.add(place, "correlation.type", f"type {value!r} is not supported yet{hint}")
    elif report.choice(value, TYPES, place, "correlation.type", "type"):
        return str(value)
    return "event_count"


def _group_by(report: Report, block: Mapping, path: str, kinds: SequenceType[EventKind]) -> tuple[str, ...]:
    names = report.texts(block, "group-by", f"{path}.group-by")
    if len(names) > MAX_GROUP_BY:
        report.add(
            names[MAX_GROUP_BY], f"{path}.group-by", f"at most {MAX_GROUP_BY} fields, got {len(names)}"
        )
    for name in names:
        _check_field(report, name.value, name, f"{path}.group-by", kinds)
    return tuple(name.value for name in names)


def _check_field(report: Report, name: str, place: Place, path: str, kinds: SequenceType[EventKind]) -> None:
    try:
        common_field(name, kinds)
    except ValueError as error:
        report.add(place, path, str(error))


def _condition(report: Report, block: Mapping) -> tuple[str, int]:
    node = block.items.get("condition")
    if node is None:
        return "gte", 1
    place, path = block.keys["condition"], "correlation.condition"
    if not isinstance(node, Mapping) or len(node.items) != 1:
        report.add(place, path, f"expected one comparison such as {{gte: 5}}, got {kind_of(node)}")
        return "gte", 1
    op = next(iter(node.items))
    if op in OPERATORS_LATER:
        report.add(node.keys[op], path, f"{op!r} is not supported yet, expected gte or gt")
    elif report.choice(op, OPERATORS, node.keys[op], path, "comparison"):
        return op, report.integer(node, op, f"{path}.{op}", int(op == "gte"), MAX_THRESHOLD, 1)
    return "gte", 1
