"""A rule whose names are known is made a :class:`~kwsiem.rules.model.Rule`.

A :class:`Draft` is a rule as it was read. What its correlation looks at are :class:`Part` objects: selections
of its own, other rules, correlations below it. :func:`make_rule` puts them together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as SequenceType
from dataclasses import dataclass, field
from typing import Final

import msgspec

from kwsiem.event import FIELD_TYPES, INTEGER_BOUNDS, EventKind
from kwsiem.rules.correlation import Spec, UnfitError
from kwsiem.rules.detection import Detection
from kwsiem.rules.model import (
    COUNT_TYPES,
    MAX_CHAIN,
    MAX_DEPTH,
    MAX_VALUES,
    STEP_TYPES,
    And,
    Block,
    Constant,
    Correlation,
    Expr,
    Rule,
    Sequential,
    Skipped,
    Step,
    depth,
    fingerprint,
    size,
)
from kwsiem.rules.report import Report, nearest
from kwsiem.rules.values import common_field, family
from kwsiem.yamltree import Mapping, Place, Scalar

#: What a correlation and all those below it look at, together.
MAX_LEAVES: Final = 256


@dataclass(slots=True)
class Column:
    """One field of a compiled group: as it was written, as it is called in alerts, and its type."""

    written: str
    name: str
    type: str


def verbatim(name: str) -> tuple[str, ...]:
    """The fields that a name may mean in our own files: the one of that name."""
    return (name,)


@dataclass(slots=True, eq=False)
class Draft:
    """A rule as it was read, and, once :func:`resolve` has been through, what became of it.

    ``candidates`` are the fields of ours that a field name of this rule may mean, the first one that is there
    is meant. ``item`` is the entry in a file of ours. ``broken`` has been told in the report; ``skipped`` is
    a Sigma rule that is right but not for here.
    """

    report: Report
    where: str
    place: Place
    id: str = ""
    title: str = ""
    level: str = "medium"
    name: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    falsepositives: tuple[str, ...] = ()
    sigma: bool = False
    kinds: tuple[EventKind, ...] = ()
    predicate: Expr | None = None
    detection: Detection | None = None
    spec: Spec | None = None
    suppress_ns: int = 0
    candidates: Callable[[str], tuple[str, ...]] = verbatim
    item: Mapping | None = None
    block: Block | None = None
    covered_by: list[Scalar] = field(default_factory=list)
    broken: bool = False
    skipped: Skipped | None = None
    rule: Rule | None = None
    columns: list[Column] = field(default_factory=list)
    chain: int = 0
    leaves: int = 1

    def refuse(self, place: Place, path: str, message: str) -> None:
        """Note a problem of this rule."""
        self.broken = True
        self.report.where = self.where
        self.report.add(place, path, message)

    def unfit(self, place: Place, path: str, message: str) -> None:
        """What only Sigma's own files may say without its being a mistake."""
        if self.sigma:
            raise UnfitError(place, f"{path}: {message}")
        self.refuse(place, path, message)

    def skip(self, place: Place, reason: str) -> None:
        """The rule is not evaluated here."""
        where = f"{self.report.file}:{place.line}:{place.column}"
        self.skipped = Skipped(where[:4096], (self.id or self.title)[:4096], reason[:4096])


@dataclass(slots=True)
class Part:
    """One thing that a correlation looks at: a selection of its own, or a rule with its own draft."""

    name: str
    place: Place
    count: int
    kinds: tuple[EventKind, ...]
    predicate: Expr
    draft: Draft | None = None

    @property
    def inner(self) -> Rule | None:
        """The rule below in a chain."""
        return self.draft.rule if self.draft and self.draft.spec else None

    @property
    def names(self) -> set[str]:
        """What aliases may call it."""
        return {self.name, self.draft.id, self.draft.name} - {""} if self.draft else {self.name}

    def find(self, names: SequenceType[str]) -> tuple[str, str]:
        """Name and type of the first of these fields that it has. Raises ValueError when it has none."""
        problem = ""
        for name in names:
            try:
                return self._find(name)
            except ValueError as error:
                problem = problem or str(error)
        raise ValueError(problem)

    def _find(self, name: str) -> tuple[str, str]:
        if self.draft is None or self.draft.spec is None:
            return name, common_field(name, self.kinds).type
        for column in self.draft.columns:
            if name in (column.written, column.name):
                return column.name, column.type
        known = list(dict.fromkeys(column.name for column in self.draft.columns))
        groups = ", ".join(known) or "nothing"
        raise ValueError(f"rule {self.draft.id} groups by {groups}, not by {name!r}{nearest(name, known)}")


@dataclass(slots=True)
class Found:
    """A field that is looked for in all parts: its name in each, the common one, and the types."""

    name: str
    names: list[str]
    types: list[str]


def make_rule(draft: Draft, parts: list[Part]) -> Rule | None:
    """The rule of a draft; ``parts`` are what its correlation looks at. None after a problem."""
    if draft.spec is not None:
        return _Maker(draft, draft.spec, parts).make()
    if draft.predicate is None:
        return None
    return _rule(draft, tuple(kind.name for kind in draft.kinds), draft.predicate, Correlation())


def _rule(draft: Draft, events: tuple[str, ...], predicate: Expr, correlation: Correlation) -> Rule:
    return Rule(
        id=draft.id,
        title=draft.title,
        level=draft.level,  # type: ignore[arg-type]
        events=events,
        predicate=predicate,
        correlation=correlation,
        suppress_ns=draft.suppress_ns,
        fingerprint=fingerprint(draft.id, events, predicate, correlation),
        description=draft.description,
        tags=draft.tags,
        falsepositives=draft.falsepositives,
        block=_block(draft, correlation),
    )


def _block(draft: Draft, correlation: Correlation) -> Block | None:
    """What the rule asks to block, if that is an address that its alerts are about."""
    if draft.block is None or draft.item is None:
        return None
    place, name = draft.item.keys["block"], draft.block.field
    if correlation.type != "any":
        if name not in correlation.group_by:
            groups = ", ".join(correlation.group_by) or "nothing"
            draft.refuse(place, "block.field", f"a rule blocks what it groups by ({groups}), got {name!r}")
        elif not name.endswith((".ip", ".address")) and name != "ip":
            draft.refuse(place, "block.field", f"expected a field that holds an address, got {name!r}")
        return draft.block
    try:
        if common_field(name, draft.kinds).type != "ip":
            draft.refuse(place, "block.field", f"expected a field that holds an address, got {name!r}")
    except ValueError as error:
        draft.refuse(place, "block.field", str(error))
    return draft.block


class _Maker:
    """Makes the rule of one correlation whose parts are known."""

    def __init__(self, draft: Draft, spec: Spec, parts: list[Part]) -> None:
        self._draft = draft
        self._spec = spec
        self._parts = parts
        self._gate = draft.predicate or Constant(value=True)

    def make(self) -> Rule | None:
        """The rule, or None after a problem."""
        draft, spec = self._draft, self._spec
        columns = [self._everywhere(name, f"{spec.path}.group-by") for name in spec.group_by]
        counted = self._everywhere(spec.counted, f"{spec.path}.field") if spec.counted else None
        self._check_aliases()
        if counted:
            self._check_type(counted)
        self._check_condition(counted)
        if None in columns or (spec.counted and counted is None):
            return None
        groups = [found for found in columns if found]
        draft.columns = [
            Column(name.value, found.name, found.types[0])
            for name, found in zip(spec.group_by, groups, strict=True)
        ]
        contact = [self._everywhere(name, f"{spec.path}.field") for name in spec.contact]
        if None in contact:
            return None
        steps = self._steps(groups, counted)
        correlation = Correlation(
            type=spec.type,  # type: ignore[arg-type]
            group_by=tuple(found.name for found in groups),
            timespan_ns=spec.timespan_ns,
            field=counted.name if counted else "",
            op=spec.op,  # type: ignore[arg-type]
            value=spec.value,
            steps=steps,
            percentile=spec.percentile,
            sequential=Sequential(
                tuple(found.name for found in contact if found), wait_ns=spec.wait_ns, **spec.odds
            )
            if contact
            else None,
        )
        rule = _rule(draft, self._events(), self._predicate(), correlation)
        return rule if self._is_bounded(rule) else None

    # -- fields

    def _everywhere(self, written: Scalar, path: str) -> Found | None:
        """A field by the name it has in each part, or None after a problem."""
        found = Found("", [], [])
        alias = self._spec.aliases.items.get(written.value) if self._spec.aliases else None
        for part in self._parts:
            wanted = written
            if isinstance(alias, Mapping):
                entry = next((alias.items[name] for name in sorted(part.names) if name in alias.items), None)
                if not isinstance(entry, Scalar):
                    message = f"alias {written.value!r} has no field for {part.name}"
                    self._draft.unfit(written, path, message)
                    return None
                wanted = entry
            try:
                name, field_type = part.find(self._draft.candidates(str(wanted.value)))
            except ValueError as error:
                self._draft.unfit(wanted, path, str(error))
                return None
            found.names.append(name)
            found.types.append(field_type)
        if not self._is_comparable(found, written, path):
            return None
        same = len(set(found.names)) == 1
        found.name = found.names[0] if same or not isinstance(alias, Mapping) else written.value
        return found

    def _is_comparable(self, found: Found, written: Scalar, path: str) -> bool:
        """Whether the values of a field in one part can ever be those of it in another."""
        for part, name, field_type in zip(self._parts, found.names, found.types, strict=True):
            if FIELD_TYPES[field_type] is not FIELD_TYPES[found.types[0]]:
                first = f"{found.names[0]} ({found.types[0]}) of {self._parts[0].name}"
                message = f"{first} can never be {name} ({field_type}) of {part.name}"
                self._draft.unfit(written, path, message)
                return False
        return True

    def _check_aliases(self) -> None:
        """Every alias is used, and what it names is one of the rules."""
        spec, draft = self._spec, self._draft
        used = {name.value for name in spec.group_by} | ({spec.counted.value} if spec.counted else set())
        known = sorted({name for part in self._parts for name in part.names})
        for alias, fields in spec.aliases.items.items() if spec.aliases else ():
            assert spec.aliases is not None
            path = f"{spec.path}.aliases"
            if alias not in used and not draft.sigma:
                message = f"alias {alias!r} is used nowhere{nearest(alias, used)}"
                draft.refuse(spec.aliases.keys[alias], path, message)
            for name, key in fields.keys.items() if isinstance(fields, Mapping) else ():
                if name not in known:
                    message = f"{name!r} is none of the rules{nearest(name, known)}"
                    draft.refuse(key, f"{path}.{alias}", message)

    def _check_type(self, counted: Found) -> None:
        """Only numbers have a sum, a mean and percentiles."""
        spec = self._spec
        assert spec.counted is not None
        if spec.type == "value_count":
            return
        for part, name, field_type in zip(self._parts, counted.names, counted.types, strict=True):
            if family(field_type) != "number":
                of = f" of {part.name}" if len(self._parts) > 1 else ""
                message = f"type {spec.type} needs a number, {name}{of} is {field_type}"
                self._draft.unfit(spec.counted, f"{spec.path}.field", message)
                return

    def _check_condition(self, counted: Found | None) -> None:
        """A condition must be one that can be met and can be missed."""
        spec = self._spec
        if spec.condition is None or spec.type in ("sequence", "absent", "sequential_test"):
            return
        low, high, why = self._range(counted)
        least = 1 if spec.type in COUNT_TYPES else low
        said = ""
        if _never(spec.op, spec.value, least, high):
            said = f"{spec.op} {spec.value} is never true: {why}"
        elif _always(spec.op, spec.value, low, high):
            said = f"{spec.op} {spec.value} is always true: {why}"
        if said:
            self._draft.unfit(spec.condition, f"{spec.path}.condition", said)

    def _range(self, counted: Found | None) -> tuple[float, float, str]:
        """What is compared lies between these numbers, and why."""
        if self._spec.type == "temporal":
            return 0, len(self._parts), f"of the {len(self._parts)} rules at least one has matched"
        if counted is None or self._spec.type == "value_count":
            return 0, math.inf, "it is looked at when an event comes; what did not happen at all is 'absent'"
        bounds = [INTEGER_BOUNDS.get(field_type, (-math.inf, math.inf)) for field_type in counted.types]
        low, high = min(bound[0] for bound in bounds), max(bound[1] for bound in bounds)
        if self._spec.type == "value_sum":
            return (
                (0 if low >= 0 else -math.inf),
                math.inf,
                f"{counted.name} ({counted.types[0]}) is never below 0",
            )
        return low, high, f"{counted.name} ({counted.types[0]}) is {low} to {high}"

    # -- steps

    @property
    def _simple(self) -> bool:
        """Whether it is one rule that is counted: then there are no steps."""
        only = self._parts[0]
        return len(self._parts) == 1 and only.inner is None and self._spec.type not in STEP_TYPES

    @property
    def _own(self) -> bool:
        """Whether all parts are selections of the rule's own detection."""
        return all(part.draft is None for part in self._parts)

    def _gated(self, part: Part) -> Expr:
        """The whole predicate of a part: the rule's condition holds for its own selections too."""
        return part.predicate if part.draft else both(self._gate, part.predicate)

    def _predicate(self) -> Expr:
        if self._simple:
            return self._gated(self._parts[0])
        return self._gate if self._own else Constant(value=True)

    def _events(self) -> tuple[str, ...]:
        """The kinds of all that is looked at, below a chain too."""
        names: dict[str, None] = {}
        for part in self._parts:
            inner = part.inner
            names.update(dict.fromkeys(inner.events if inner else (kind.name for kind in part.kinds)))
        return tuple(names)

    def _steps(self, groups: list[Found], counted: Found | None) -> tuple[Step, ...]:
        if self._simple:
            return ()
        own = self._own
        common = tuple(found.name for found in groups)
        steps = []
        for number, part in enumerate(self._parts):
            group_by = tuple(found.names[number] for found in groups)
            name = counted.names[number] if counted else ""
            inner = part.inner
            whole = () if own or inner else tuple(kind.name for kind in part.kinds)
            steps.append(
                Step(
                    name=part.name,
                    predicate=Constant(value=True) if inner else part.predicate if own else self._gated(part),
                    count=part.count,
                    events=whole,
                    group_by=() if group_by == common else group_by,
                    field="" if counted is None or name == counted.name else name,
                    inner=_below(inner) if inner else None,
                )
            )
        return tuple(steps)

    def _is_bounded(self, rule: Rule) -> bool:
        """Whether chains, events and predicates stay within their bounds; problems are noted."""
        draft, spec = self._draft, self._spec
        below = [part.draft for part in self._parts if part.draft and part.inner]
        draft.chain = 1 + max(other.chain for other in below) if below else 0
        draft.leaves = sum(part.draft.leaves if part.draft else 1 for part in self._parts)
        said = ""
        if draft.chain > MAX_CHAIN:
            said = f"at most {MAX_CHAIN} correlations stand below another one"
        elif draft.leaves > MAX_LEAVES:
            said = f"a correlation and those below it look at {MAX_LEAVES} rules at most, got {draft.leaves}"
        elif len(rule.events) > 64:
            said = f"at most 64 event kinds, got {len(rule.events)}"
        for predicate in (rule.predicate, *(step.predicate for step in rule.correlation.steps)):
            if depth(predicate) > MAX_DEPTH or size(predicate) > MAX_VALUES:
                said = (
                    f"selection and condition together: more than {MAX_DEPTH} levels or {MAX_VALUES} values"
                )
        if said:
            draft.unfit(spec.place, spec.names_path, said)
        return not said


def _below(rule: Rule) -> Rule:
    """A rule as another one looks at it: it says nothing by itself, so what it would say is left out.

    Its title may then change without the state of the rules above being lost.
    """
    return msgspec.structs.replace(
        rule, title=rule.id, level="informational", description="", tags=(), falsepositives=()
    )


def both(one: Expr, other: Expr) -> Expr:
    """Both hold, as one flat And."""
    if one == other or one == Constant(value=True):
        return other
    items: tuple[Expr, ...] = ()
    for expr in (one, other):
        items += expr.items if isinstance(expr, And) else (expr,)
    return And(items)


def _never(op: str, value: float, low: float, high: float) -> bool:
    """Whether no number from low to high meets a condition."""
    return {
        "gte": value > high,
        "gt": value >= high,
        "lte": value < low,
        "lt": value <= low,
        "eq": not low <= value <= high,
        "neq": False,
    }[op]


def _always(op: str, value: float, low: float, high: float) -> bool:
    """Whether every number from low to high meets a condition."""
    return {
        "gte": value <= low,
        "gt": value < low,
        "lte": value >= high,
        "lt": value > high,
        "eq": False,
        "neq": not low <= value <= high,
    }[op]
