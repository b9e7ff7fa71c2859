"""The ``correlation``, ``sequence`` and ``absent`` blocks of a rule, and the rules that they name.

A correlation may name rules that stand later or in another file. So each rule is first read to a
:class:`Draft`, and when all are there, :func:`resolve` makes :class:`~kwsiem.rules.model.Rule` of them, those
that are named before those that name them.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as SequenceType
from dataclasses import dataclass, field
from typing import Final

import msgspec

from kwsiem.event import FIELD_TYPES, INTEGER_BOUNDS, EventKind
from kwsiem.rules.detection import Detection
from kwsiem.rules.duration import UNITS_NS
from kwsiem.rules.model import (
    COUNT_TYPES,
    MAX_CHAIN,
    MAX_DEPTH,
    MAX_GROUP_BY,
    MAX_PLACES,
    MAX_STEPS,
    MAX_THRESHOLD,
    MAX_VALUES,
    STEP_TYPES,
    VALUE_TYPES,
    And,
    Constant,
    Correlation,
    Expr,
    Rule,
    Skipped,
    Step,
    depth,
    fingerprint,
    size,
)
from kwsiem.rules.report import Report, nearest
from kwsiem.rules.values import common_field, family
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
#: The keys of a rule that say what has to come together; a rule has one of them at most.
BLOCKS: Final = ("correlation", "sequence", "absent")
#: What a correlation and all those below it look at, together.
MAX_LEAVES: Final = 256
DEFAULT_TIMESPAN_NS: Final = 60 * UNITS_NS["s"]
#: Quiet time that ends an incident when a rule says nothing; longer for a longer timespan.
DEFAULT_SUPPRESS_NS: Final = 60 * UNITS_NS["s"]
_ALIAS: Final = re.compile(r"[A-Za-z@_][A-Za-z0-9@_.-]{0,127}", re.ASCII)


class UnfitError(Exception):
    """A Sigma rule that is right, but cannot be evaluated here; the message says why."""

    def __init__(self, place: Place, reason: str) -> None:
        self.place = place
        super().__init__(reason)


# Blocks -----------------------------------------------------------------------------------------------


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
    spec = {"correlation": reader.correlation, "sequence": reader.sequence, "absent": reader.absent}[
        present[0]
    ]()
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

    # -- the three blocks

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


# Drafts -----------------------------------------------------------------------------------------------


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
class _Part:
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
class _Found:
    """A field that is looked for in all parts: its name in each, the common one, and the types."""

    name: str
    names: list[str]
    types: list[str]


# Names ------------------------------------------------------------------------------------------------


def resolve(drafts: SequenceType[Draft]) -> list[Rule]:
    """Make rules of drafts, each named one before those that name it; the rules that may alert.

    A rule that others name alerts only when one of them says ``generate``. Problems go into the report of the
    draft's file.
    """
    resolver = _Resolver(drafts)
    for draft in resolver.order():
        if draft.skipped is None:
            draft.report.where = draft.where
            try:
                resolver.compile(draft)
            except UnfitError as error:
                draft.skip(error.place, str(error))
    return [draft.rule for draft in drafts if draft.rule and not draft.skipped and not resolver.silent(draft)]


class _Resolver:
    """Knows all drafts by id and name."""

    def __init__(self, drafts: SequenceType[Draft]) -> None:
        self._drafts = drafts
        self._known: dict[str, list[Draft]] = {}
        for draft in drafts:
            for name in {draft.id, draft.name} - {""}:
                self._known.setdefault(name, []).append(draft)
        self._links: dict[int, list[Draft | None]] = {}
        self._named: set[int] = set()
        loud: set[int] = set()
        for draft in drafts:
            self._links[id(draft)] = [] if draft.skipped else self._link(draft)
            named = self._of_skipped(draft) if draft.skipped else self._links[id(draft)]
            found = {id(link) for link in named if link}
            self._named |= found
            if draft.spec and draft.spec.generate:
                loud |= found
        self._named -= loud

    def silent(self, draft: Draft) -> bool:
        """Whether others name it, and none says that it alerts all the same."""
        return id(draft) in self._named

    def _link(self, draft: Draft) -> list[Draft | None]:
        """The rules that a draft names; None stands for a selection of its own, or after a problem."""
        spec = draft.spec
        links: list[Draft | None] = []
        own = draft.detection.names if draft.detection else []
        for named in spec.named if spec else ():
            assert spec is not None
            if named.name in own or (draft.broken and named.name not in self._known):
                links.append(None)
                continue
            if spec.path == "sequence":
                draft.report.where = draft.where
                draft.report.choice(named.name, own, named.place, f"{spec.path}.steps", "selection")
                draft.broken = True
                links.append(None)
                continue
            found = self._lookup(draft, named, spec, own)
            if found is not None and found in links and spec.type != "sequence":
                draft.refuse(
                    named.place, _path_of(spec), f"{named.name!r} stands twice: it is rule {found.id}"
                )
            links.append(found)
        if links and draft.detection and None not in links:
            place = draft.item.keys["detection"] if draft.item else draft.place
            draft.refuse(place, "detection", "is not used: the correlation names other rules only")
        return links

    def _of_skipped(self, draft: Draft) -> list[Draft]:
        """The rules that a skipped draft names; they are its parts and say nothing by themselves."""
        return [
            other
            for named in (draft.spec.named if draft.spec else ())
            for other in self._called(draft, named)
        ]

    def _called(self, draft: Draft, named: Named) -> list[Draft]:
        """The rules of that id or name, those of the same file before others."""
        found = self._known.get(named.name, [])
        return [other for other in found if other.report is draft.report] or found

    def _lookup(self, draft: Draft, named: Named, spec: Spec, own: SequenceType[str]) -> Draft | None:
        """The one rule of that id or name."""
        found = self._called(draft, named)
        path = _path_of(spec)
        if not found:
            what = "no rule" if draft.sigma else "no selection and no rule"
            message = f"{what} is called {named.name!r}{nearest(named.name, (*own, *self._known))}"
            draft.refuse(named.place, path, message)
        elif len(found) > 1:
            ids = " and ".join(other.id for other in found[:2])
            draft.refuse(named.place, path, f"{named.name!r} is the name of {ids}, use an id")
        elif found[0] is draft:
            draft.refuse(named.place, path, "a rule cannot name itself")
        else:
            return found[0]
        return None

    # -- order

    def order(self) -> Iterator[Draft]:
        """The drafts, each after all that it names; those in a circle are told and left out."""
        waits = {
            id(draft): sum(link is not None for link in self._links[id(draft)]) for draft in self._drafts
        }
        users: dict[int, list[Draft]] = {}
        for draft in self._drafts:
            for link in self._links[id(draft)]:
                if link is not None:
                    users.setdefault(id(link), []).append(draft)
        ready = deque(draft for draft in self._drafts if not waits[id(draft)])
        while ready:
            draft = ready.popleft()
            yield draft
            for user in users.get(id(draft), ()):
                waits[id(user)] -= 1
                if not waits[id(user)]:
                    ready.append(user)
        self._tell_circles([draft for draft in self._drafts if waits[id(draft)]])

    def _tell_circles(self, rest: list[Draft]) -> None:
        told: set[int] = set()
        for draft in rest:
            way = [] if id(draft) in told else self._way_back(draft)
            if way:
                told.update(map(id, way))
                named = self._reference(draft, way[1] if len(way) > 1 else draft)
                circle = " -> ".join(other.id for other in (*way, draft))
                assert draft.spec is not None
                draft.refuse(
                    named.place, _path_of(draft.spec), f"rules name each other in a circle: {circle}"
                )
            draft.broken = True

    def _way_back(self, draft: Draft) -> list[Draft]:
        """The drafts on the shortest way from one back to itself, itself first."""
        came: dict[int, Draft] = {}
        queue = deque([draft])
        while queue:
            here = queue.popleft()
            for link in self._links[id(here)]:
                if link is draft:
                    way = [here]
                    while way[0] is not draft:
                        way.insert(0, came[id(way[0])])
                    return way
                if link is not None and id(link) not in came:
                    came[id(link)] = here
                    queue.append(link)
        return []

    def _reference(self, draft: Draft, other: Draft) -> Named:
        assert draft.spec is not None
        pairs = zip(draft.spec.named, self._links[id(draft)], strict=True)
        return next(named for named, link in pairs if link is other)

    # -- rules

    def compile(self, draft: Draft) -> None:
        """Make the rule of a draft whose named rules are made."""
        spec = draft.spec
        if spec is None:
            if not draft.broken and draft.predicate is not None:
                events = tuple(kind.name for kind in draft.kinds)
                draft.rule = _rule(draft, events, draft.predicate, Correlation())
            return
        parts = self._parts(draft, spec)
        if parts is None:
            draft.broken = True
            return
        maker = _Maker(draft, spec, parts)
        made = maker.make()
        if made is not None and not draft.broken:
            draft.rule = made

    def _parts(self, draft: Draft, spec: Spec) -> list[_Part] | None:
        """What a correlation looks at; None after a problem (that has been told)."""
        always = Constant(value=True)
        if not spec.named:
            return (
                [_Part(draft.id, spec.place, 1, draft.kinds, draft.predicate or always)]
                if draft.kinds
                else None
            )
        parts = []
        for named, link in zip(spec.named, self._links[id(draft)], strict=True):
            if link is None:
                if draft.detection is None or not draft.kinds:
                    return None
                predicate = draft.detection.selection(named.name)
                draft.broken = draft.broken or predicate is None
                parts.append(_Part(named.name, named.place, named.count, draft.kinds, predicate or always))
                continue
            if link.skipped:
                reason = f"names rule {link.id}, which is skipped: {link.skipped.reason}"
                raise UnfitError(named.place, f"{_path_of(spec)}: {reason}")
            if link.rule is None:
                return None
            parts.append(
                _Part(_name_of(link, named), named.place, named.count, link.kinds, link.rule.predicate, link)
            )
        return _told_apart(parts)


def _path_of(spec: Spec) -> str:
    return f"{spec.path}.rules" if spec.path == "correlation" else spec.path


def _name_of(draft: Draft, named: Named) -> str:
    """What a step is called in reasons: a Sigma id says nothing to a reader, its name or title does."""
    return (draft.name or draft.title) if draft.sigma else named.name


def _told_apart(parts: list[_Part]) -> list[_Part]:
    """The same parts, those of one title called by their ids."""
    names = [part.name for part in parts]
    for part in parts:
        if names.count(part.name) > 1 and part.draft:
            part.name = part.draft.id
    return parts


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
    )


class _Maker:
    """Makes the rule of one correlation whose parts are known."""

    def __init__(self, draft: Draft, spec: Spec, parts: list[_Part]) -> None:
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
        )
        rule = _rule(draft, self._events(), self._predicate(), correlation)
        return rule if self._is_bounded(rule) else None

    # -- fields

    def _everywhere(self, written: Scalar, path: str) -> _Found | None:
        """A field by the name it has in each part, or None after a problem."""
        found = _Found("", [], [])
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

    def _is_comparable(self, found: _Found, written: Scalar, path: str) -> bool:
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

    def _check_type(self, counted: _Found) -> None:
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

    def _check_condition(self, counted: _Found | None) -> None:
        """A condition must be one that can be met and can be missed."""
        spec = self._spec
        if spec.condition is None or spec.type in ("sequence", "absent"):
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

    def _range(self, counted: _Found | None) -> tuple[float, float, str]:
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

    def _gated(self, part: _Part) -> Expr:
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

    def _steps(self, groups: list[_Found], counted: _Found | None) -> tuple[Step, ...]:
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
            draft.unfit(spec.place, _path_of(spec), said)
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
