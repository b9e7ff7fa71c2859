"""What has to come together before a rule fires, one of :data:`BLOCKS`, is read to a :class:`Spec`.

What the names in it mean is looked up when all rules are read (:mod:`kwsiem.rules.resolve`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from kwsiem.rules.duration import UNITS_NS
from kwsiem.rules.model import (
    COUNT_TYPES,
    MAX_GROUP_BY,
    MAX_PLACES,
    MAX_STEPS,
    MAX_THRESHOLD,
    VALUE_TYPES,
    Sequential,
)
from kwsiem.rules.report import Report, nearest
from kwsiem.yamltree import Mapping, Node, Place, Scalar, Sequence, kind_of

#: Sigma's words for the types; its temporal_ordered is the model's sequence.
TYPES: Final = (
    "event_count", "value_count", "value_sum", "value_avg", "value_percentile", "value_median", "temporal",
    "temporal_ordered",
)  # fmt: skip
OPERATORS: Final = ("gte", "gt", "lt", "lte", "eq", "neq")
CORRELATION_KEYS: Final = (
    "type", "rules", "field", "group-by", "aliases", "timespan", "condition", "generate",
)  # fmt: skip
CONDITION_KEYS: Final = (*OPERATORS, "field", "percentile")
SEQUENCE_KEYS: Final = ("group-by", "timespan", "steps")
ABSENT_KEYS: Final = ("group-by", "aliases", "timespan", "first", "then", "generate")
#: The parts of a first contact, each a selection or another rule, in the order of the steps.
CONTACT_PARTS: Final = ("attempt", "success", "failure")
#: What a sequential test assumes, and the default of each.
ODDS: Final = {"benign": 0.8, "scanner": 0.2, "false_alarm": 0.001, "missed": 0.01}
SEQUENTIAL_KEYS: Final = ("group-by", "field", "timespan", *CONTACT_PARTS, "wait", *ODDS)
SEQUENTIAL_NEEDED: Final = ("field", "timespan", *CONTACT_PARTS, "wait")
#: The keys of a rule that say what has to come together; a rule has one of them at most.
BLOCKS: Final = ("correlation", "sequence", "absent", "sequential_test")
DEFAULT_TIMESPAN_NS: Final = 60 * UNITS_NS["s"]
#: Quiet time that ends an incident when a rule says nothing; longer for a longer timespan.
DEFAULT_SUPPRESS_NS: Final = 60 * UNITS_NS["s"]
_ALIAS: Final = re.compile(r"[A-Za-z@_][A-Za-z0-9@_.-]{0,127}", re.ASCII)


class UnfitError(Exception):
    """A Sigma rule that is right, but cannot be evaluated here; the message says why."""

    def __init__(self, place: Place, reason: str) -> None:
        self.place = place
        super().__init__(reason)


@dataclass(slots=True)
class Named:
    """A selection or a rule that a correlation names, where, and how many of its events it takes."""

    name: str
    place: Place
    count: int = 1


@dataclass(slots=True)
class Spec:
    """A block as it was read: what the names in it mean is not known yet.

    ``named`` is empty when the rule's own detection is what is counted. ``counted`` is the field whose values
    are looked at.
    """

    path: str
    place: Place
    type: str
    timespan_ns: int = DEFAULT_TIMESPAN_NS
    group_by: list[Scalar] = field(default_factory=list)
    named: list[Named] = field(default_factory=list)
    aliases: Mapping | None = None
    counted: Scalar | None = None
    condition: Place | None = None
    op: str = "gte"
    value: int | float = 1
    percentile: int = 50
    generate: bool = False
    contact: list[Scalar] = field(default_factory=list)
    wait_ns: int = 0
    odds: dict[str, float] = field(default_factory=dict)

    @property
    def names_path(self) -> str:
        """Where the names of rules stand, for messages."""
        return f"{self.path}.rules" if self.path == "correlation" else self.path


def read_block(report: Report, item: Mapping, *, sigma: bool = False) -> Spec | None:
    """The one block of :data:`BLOCKS` that a rule has; None when there is none, or after a problem.

    Raises UnfitError for what a Sigma correlation may say and this version cannot do.
    """
    present = [name for name in BLOCKS if name in item.items]
    if len(present) > 1:
        message = f"a rule has one of {', '.join(BLOCKS)}, not both {present[0]} and {present[1]}"
        report.add(item.keys[present[1]], present[1], message)
    if not present:
        return None
    block = report.mapping(item.items[present[0]], item.keys[present[0]], present[0])
    if block is None or len(present) > 1:
        return None
    before = len(report.problems)
    reader = _BlockReader(report, block, present[0], item.keys[present[0]], sigma)
    spec = {
        "correlation": reader.correlation,
        "sequence": reader.sequence,
        "absent": reader.absent,
        "sequential_test": reader.sequential_test,
    }[present[0]]()
    return spec if len(report.problems) == before else None


def named_in(item: Mapping) -> Spec | None:
    """What a Sigma correlation names, and no more: that is silent even when it cannot be evaluated."""
    block = item.items.get("correlation")
    if not isinstance(block, Mapping):
        return None
    node, generate = block.items.get("rules"), block.items.get("generate")
    items = node.items if isinstance(node, Sequence) else [node]
    named = [Named(n.value, n) for n in items if isinstance(n, Scalar) and isinstance(n.value, str)]
    says = isinstance(generate, Scalar) and generate.value is True
    return Spec("correlation", item.keys["correlation"], "event_count", named=named, generate=says)


class _BlockReader:
    """Reads one block; what is wrong goes into the report."""

    def __init__(self, report: Report, block: Mapping, path: str, place: Place, sigma: bool) -> None:
        self._report = report
        self._block = block
        self._path = path
        self._place = place
        self._sigma = sigma

    def _refuse(self, place: Place, part: str, message: str) -> None:
        self._report.add(place, f"{self._path}.{part}" if part else self._path, message)

    def _unfit(self, place: Place, part: str, message: str) -> None:
        """What Sigma allows and this version lacks: a mistake in our files, no more than a gap in Sigma's."""
        if self._sigma:
            raise UnfitError(place, f"{self._path}.{part}: {message}" if part else f"{self._path}: {message}")
        self._refuse(place, part, message)

    def _keys(self, known: Iterable[str], required: Iterable[str]) -> None:
        if self._sigma:
            for name, key in self._block.keys.items():
                if name not in known:
                    raise UnfitError(key, f"{self._path}: unknown key {name!r}{nearest(name, known)}")
        self._report.check_keys(self._block, self._path, known, required)

    # -- the four blocks

    def correlation(self) -> Spec:
        """Sigma's correlation, folded into a rule or in a document of its own."""
        kind = self._type()
        ordered = kind in ("temporal", "temporal_ordered")
        required = ["type", "timespan"]
        required += ["rules"] if ordered or self._sigma else []
        self._keys(CORRELATION_KEYS, required if ordered else [*required, "condition"])
        spec = self._common(kind)
        spec.named = self._rules(kind)
        spec.value = len(spec.named) or 1
        spec.counted = self._name(self._block, "field", "field")
        self._condition(spec)
        if kind in VALUE_TYPES and spec.counted is None and kind in TYPES:
            self._refuse(self._block, "", f"type {kind} needs the key 'field'")
        elif spec.counted is not None and kind not in VALUE_TYPES:
            self._refuse(spec.counted, "field", f"type {kind} counts events and takes no field")
        if kind == "temporal_ordered":
            self._all_of_them(spec)
            spec.type, spec.op, spec.value = "sequence", "gte", 1
        return spec

    def sequence(self) -> Spec:
        """Steps one after the other, each some events of a selection of the rule's detection."""
        self._keys(SEQUENCE_KEYS, ("timespan", "steps"))
        spec = self._common("sequence")
        node = self._block.items.get("steps")
        if isinstance(node, Sequence) and 2 <= len(node.items) <= MAX_STEPS:
            for index, item in enumerate(node.items):
                step = self._step(item, f"steps.{index}")
                if step:
                    spec.named.append(step)
        elif node is not None:
            self._refuse(self._block.keys["steps"], "steps", f"expected a list of 2 to {MAX_STEPS} steps")
        if (places := sum(step.count for step in spec.named)) > MAX_PLACES:
            message = f"at most {MAX_PLACES} events, all counts together, got {places}"
            self._refuse(self._block.keys["steps"], "steps", message)
        return spec

    def absent(self) -> Spec:
        """Something that something else does not follow."""
        self._keys(ABSENT_KEYS, ("timespan", "first", "then"))
        spec = self._common("absent")
        for part in ("first", "then"):
            name = self._name(self._block, part, part)
            if name is not None:
                spec.named.append(Named(name.value, name))
        if len({named.name for named in spec.named}) == 1 == len(spec.named) - 1:
            self._refuse(spec.named[1].place, "then", "'first' and 'then' are the same")
        return spec

    def sequential_test(self) -> Spec:
        """First contacts whose outcomes tell a scanner from everybody else."""
        self._keys(SEQUENTIAL_KEYS, SEQUENTIAL_NEEDED)
        spec = self._common("sequential_test")
        spec.contact = self._report.texts(self._block, "field", f"{self._path}.field")
        if "field" in self._block.items and not 1 <= len(spec.contact) <= MAX_GROUP_BY:
            message = f"expected 1 to {MAX_GROUP_BY} fields, got {len(spec.contact)}"
            self._refuse(self._block.keys["field"], "field", message)
        for part in CONTACT_PARTS:
            name = self._name(self._block, part, part)
            if name is not None and any(name.value == other.name for other in spec.named):
                self._refuse(name, part, f"selection {name.value!r} stands twice")
            elif name is not None:
                spec.named.append(Named(name.value, name))
        spec.wait_ns = self._report.duration(self._block, "wait", f"{self._path}.wait", 1)
        if not 0 < spec.wait_ns < spec.timespan_ns and "wait" in self._block.items:
            self._refuse(self._block.keys["wait"], "wait", "must be more than 0 and less than the timespan")
        spec.odds = {name: self._chance(name, default) for name, default in ODDS.items()}
        test = Sequential(("x",), 1, **spec.odds)
        if problem := test.problem:
            self._refuse(self._place, "", problem)
        return spec

    def _chance(self, name: str, default: float) -> float:
        """The probability under a key."""
        node = self._block.items.get(name)
        value = node.value if isinstance(node, Scalar) else None
        if node is None:
            return default
        if isinstance(value, float) and 0 < value < 1:
            return value
        self._refuse(self._block.keys[name], name, f"expected a number between 0 and 1, got {kind_of(node)}")
        return default

    # -- their parts

    def _common(self, kind: str) -> Spec:
        names = self._report.texts(self._block, "group-by", f"{self._path}.group-by")
        if len(names) > MAX_GROUP_BY:
            message = f"at most {MAX_GROUP_BY} fields, got {len(names)}"
            self._unfit(names[MAX_GROUP_BY], "group-by", message)
        timespan_ns = self._report.duration(
            self._block, "timespan", f"{self._path}.timespan", DEFAULT_TIMESPAN_NS
        )
        node = self._block.items.get("generate")
        generate = node.value if isinstance(node, Scalar) else None
        if node is not None and not isinstance(generate, bool):
            self._refuse(
                self._block.keys["generate"], "generate", f"expected true or false, got {kind_of(node)}"
            )
        return Spec(
            path=self._path,
            place=self._place,
            type=kind,
            timespan_ns=timespan_ns,
            group_by=names,
            aliases=self._aliases(),
            generate=generate is True,
        )

    def _type(self) -> str:
        node = self._block.items.get("type")
        if node is None:
            return "event_count"
        value = node.value if isinstance(node, Scalar) else None
        place = self._block.keys["type"]
        if self._sigma and isinstance(value, str) and value not in TYPES:
            raise UnfitError(place, f"{self._path}.type: unknown type {value!r}{nearest(value, TYPES)}")
        if self._report.choice(value, TYPES, place, f"{self._path}.type", "type"):
            return str(value)
        return "event_count"

    def _name(self, mapping: Mapping, name: str, part: str) -> Scalar | None:
        """The text under a key, at the place of the key."""
        if self._sigma and isinstance(mapping.items.get(name), Sequence):
            raise UnfitError(mapping.keys[name], f"{self._path}.{part}: expected one text, got a list")
        text = self._report.text(mapping, name, f"{self._path}.{part}", limit=128)
        return Scalar(text, mapping.keys[name].line, mapping.keys[name].column) if text else None

    def _rules(self, kind: str) -> list[Named]:
        """The names of ``rules``; only what is ordered may name one twice."""
        node = self._block.items.get("rules")
        if node is None:
            return []
        items: list[Node] = node.items if isinstance(node, Sequence) else [node]
        found: list[Named] = []
        for item in items:
            place = item if isinstance(node, Sequence) else self._block.keys["rules"]
            if not isinstance(item, Scalar) or not isinstance(item.value, str) or not item.value:
                self._refuse(place, "rules", f"expected the name of a rule, got {kind_of(item)}")
            elif kind != "temporal_ordered" and any(item.value == other.name for other in found):
                self._refuse(place, "rules", f"{item.value!r} stands twice")
            else:
                found.append(Named(item.value, place))
        if len(items) > MAX_STEPS:
            self._unfit(items[MAX_STEPS], "rules", f"at most {MAX_STEPS} rules, got {len(items)}")
        least = 2 if kind == "temporal_ordered" else 1
        if len(items) < least:
            self._refuse(
                self._block.keys["rules"], "rules", f"expected at least {least} names, got {len(items)}"
            )
        return found

    def _step(self, node: Node, part: str) -> Named | None:
        if not isinstance(node, Mapping):
            message = f"expected a step such as {{selection: name, count: 3}}, got {kind_of(node)}"
            self._refuse(node, part, message)
            return None
        path = f"{self._path}.{part}"
        self._report.check_keys(node, path, ("selection", "count"), ("selection",))
        name = self._name(node, "selection", f"{part}.selection")
        count = self._report.integer(node, "count", f"{path}.count", 1, MAX_THRESHOLD, 1)
        return Named(name.value, name, count) if name else None

    def _aliases(self) -> Mapping | None:
        """``aliases: {name: {rule: field}}``, checked for its form."""
        node = self._block.items.get("aliases")
        block = self._report.mapping(
            node, self._block.keys.get("aliases", self._block), f"{self._path}.aliases"
        )
        for name, mapping in block.items.items() if block else ():
            assert block is not None
            path = f"{self._path}.aliases.{name}"
            if not _ALIAS.fullmatch(name):
                self._report.add(block.keys[name], path, f"{name!r} cannot be the name of an alias")
            fields = self._report.mapping(mapping, block.keys[name], path)
            for rule in fields.items if fields else ():
                assert fields is not None
                self._report.text(fields, rule, f"{path}.{rule}", limit=128)
        return block

    def _condition(self, spec: Spec) -> None:
        node = self._block.items.get("condition")
        if node is None:
            return
        place = spec.condition = self._block.keys["condition"]
        operators = [name for name in node.items if name in OPERATORS] if isinstance(node, Mapping) else []
        if not isinstance(node, Mapping) or len(operators) > 1:
            message = f"expected one comparison such as {{gte: 5}}, got {kind_of(node)}"
            self._unfit(place, "condition", message)
            return
        for name, key in node.keys.items():
            if name not in CONDITION_KEYS:
                hint = nearest(name, OPERATORS) or f", expected one of {', '.join(OPERATORS)}"
                self._refuse(key, "condition", f"unknown comparison {name!r}{hint}")
                return
        if not operators:
            self._refuse(place, "condition", "expected one comparison such as {gte: 5}, got none")
            return
        spec.op = operators[0]
        spec.value = self._number(node, spec.op, spec.type)
        within = self._name(node, "field", "condition.field")
        if within is not None and spec.counted is not None:
            self._refuse(within, "condition.field", "'field' stands in the correlation already")
        spec.counted = spec.counted or within
        self._percentile(node, spec)

    def _percentile(self, node: Mapping, spec: Spec) -> None:
        if spec.type == "value_percentile":
            spec.percentile = self._report.integer(
                node, "percentile", f"{self._path}.condition.percentile", 0, 100, 50
            )
            if "percentile" not in node.items:
                self._refuse(node, "condition", "type value_percentile needs the key 'percentile'")
        elif "percentile" in node.items:
            message = f"type {spec.type} takes no percentile"
            self._refuse(node.keys["percentile"], "condition.percentile", message)

    def _number(self, node: Mapping, op: str, kind: str) -> int | float:
        """What is compared with: a whole number for what is counted, any number else."""
        value = item.value if isinstance(item := node.items[op], Scalar) else None
        place, part = node.keys[op], f"condition.{op}"
        if kind in COUNT_TYPES or kind == "temporal_ordered":
            low = int(op == "gte")
            if type(value) is not int or not low <= value <= MAX_THRESHOLD:
                message = f"expected a whole number from {low} to {MAX_THRESHOLD}, got {kind_of(item)}"
                (self._unfit if type(value) is int and value > low else self._refuse)(place, part, message)
                return 1
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**63:
            return value
        self._refuse(place, part, f"expected a number of at most 63 bits, got {kind_of(item)}")
        return 1

    def _all_of_them(self, spec: Spec) -> None:
        """What is ordered is all of its rules: a condition may say so, but nothing else."""
        number = len(spec.named)
        if spec.condition is None or (spec.op, spec.value) in (
            ("gte", number),
            ("gt", number - 1),
            ("eq", number),
        ):
            return
        message = f"type temporal_ordered needs all of its {number} rules, write {{gte: {number}}} or nothing"
        self._unfit(spec.condition, "condition", message)
