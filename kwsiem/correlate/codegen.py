"""One Python function for each event class, made of the rules' predicates.

Source is put together from attribute names of the class, ``repr`` of numbers and names of constants in
the function's own namespace; nothing is pasted from a rule. Compared with evaluating the trees, this takes
a quarter of the time with 10 rules and a tenth with 100 (measured).

Logic has three values. Of each expression two texts are made, one that holds when it is true and one that
holds when it is false: for an unknown address neither does, so that no negation is met by what is unknown.
"""

from __future__ import annotations

import keyword
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

import re2
from msgspec.structs import replace

from kwsiem.correlate.settled import Settled, State
from kwsiem.correlate.window import Window
from kwsiem.event import LOSSES, LOST_KIND, TEXT_TYPES, Event, EventKind, Field
from kwsiem.rules.model import (
    STEP_TYPES,
    And,
    Cidr,
    Compare,
    Constant,
    Correlation,
    Exists,
    Expr,
    FieldRef,
    Keyword,
    Not,
    Number,
    Or,
    Regex,
    Rule,
    Step,
    Text,
    TimePart,
    Truth,
)

Take = Callable[[Event], None]
#: From this many rules that test one field for equality, a dictionary picks those that can match.
MIN_GROUP: Final = 4
MAX_REMEMBERED: Final = 10_000
#: Up to so many lines a function is made a second time, with the loop over events in it.
MAX_UNROLLED: Final = 100
_OPERATORS: Final = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
#: The parts of a time as :func:`_parts_of` gives them.
TIME_PARTS: Final = ("minute", "hour", "day", "week", "month", "year")
_MINUTE_NS: Final = 60 * 10**9
#: UTC, like all times here.
_EPOCH: Final = datetime(1970, 1, 1)
_LAST_MINUTE: Final = (datetime.max - _EPOCH) // timedelta(minutes=1)


#: A rule and the predicate that is left of it.
Member = tuple[State, Expr]


class Code(NamedTuple):
    """Two expressions: one holds when the predicate is true, the other when it is false."""

    true: str
    false: str


class Handler(NamedTuple):
    """Takes events of a class through the rules that look at its kind: one, or all of an iterator.

    The loop is part of the generated code: a call for each event is a tenth of what one rule costs
    (measured).
    """

    one: Take
    all: Callable[[Iterator[Event]], None]


def make_handler(
    cls: type[Event],
    states: Sequence[State],
    offset: Callable[[], int] = lambda: 0,
    *,
    undo: bool = False,
) -> Handler:
    """The functions that take events of a class through the rules that look at its kind.

    ``offset`` says what to add to an event's time, now, to get wall time (nanoseconds). With ``undo`` they
    take events back that went through the others before.
    """
    return _FunctionMaker(cls.KIND, offset, undo).function(list(states))


class _Groups(dict[Any, "Take | None"]):
    """The rules of each value of a field: text without regard to case, the values seen last remembered.

    A function is made when its value first comes: a thousand rules are taken over without a pause.
    """

    def __init__(self, table: dict[Any, list[Member]], make: Callable[[list[Member]], Take], *, folded: bool):
        super().__init__()
        self._table = table
        self._make = make
        self._made: dict[Any, Take] = {}
        self._folded = folded

    def __missing__(self, value: Any) -> Take | None:
        key = value.lower() if self._folded else value
        found = self._made.get(key)
        if found is None and key in self._table:
            found = self._made[key] = self._make(self._table[key])
        if len(self) >= MAX_REMEMBERED:
            self.clear()
        self[value] = found
        return found


class UnknownFieldError(Exception):
    """A rule names a field that this class does not have: the rule does not apply to it."""


class _FunctionMaker:
    """Gathers the constants and the field loads of one function."""

    def __init__(self, kind: EventKind, offset: Callable[[], int], undo: bool) -> None:
        self._kind = kind
        self._derivations = kind.derivations
        self._undo = undo
        self._offset = offset
        self._names: dict[str, Any] = {}
        self._loads: dict[str, str] = {}

    def function(self, states: list[State]) -> Handler:
        """The whole function, rules with a common equality behind a dictionary."""
        # A rule that others cover comes after them, and _group changes the order.
        plain = [state for state in states if not state.rule.covered_by]
        covered = [state for state in states if state.rule.covered_by]
        field, groups, rest = _group(plain, self._kind)
        lines = [line for state in rest for line in self._rule(state, state.rule.predicate)]
        if field is not None:
            folded = self._field(field).type in TEXT_TYPES
            found = self._constant("group", _Groups(groups, self._group_function, folded=folded))
            lines += [f"chosen = {found}[{self._load(field)}]", "if chosen is not None: chosen(e)"]
        lines += [line for state in covered for line in self._rule(state, state.rule.predicate)]
        return self._compile(lines)

    def _group_function(self, members: list[Member]) -> Take:
        """A function of rules whose predicates have been shortened."""
        maker = _FunctionMaker(self._kind, self._offset, self._undo)
        return maker._compile([line for state, expr in members for line in maker._rule(state, expr)]).one

    def _compile(self, lines: list[str]) -> Handler:
        body = [*self._loads.values(), *lines] or ["pass"]
        source = "def one(e):\n" + "".join(f"    {line}\n" for line in body)
        if len(body) <= MAX_UNROLLED:
            source += "def all(events):\n    for e in events:\n" + "".join(
                f"        {line}\n" for line in body
            )
        else:  # the call costs little beside so many rules, making it twice would cost more
            source += "def all(events, one=one):\n    for e in events: one(e)\n"
        namespace: dict[str, Any] = dict(self._names)
        exec(compile(source, f"<rules for {self._kind.name}>", "exec"), namespace)  # noqa: S102 - see module
        # Taken out, for a function must not hold itself: nothing collects cycles in the engine.
        return Handler(namespace.pop("one"), namespace.pop("all"))

    # -- rules

    def _rule(self, state: State, predicate: Expr) -> list[str]:
        """The lines of one rule: test, key, hit. A rule that names an unknown field gives none."""
        if isinstance(state, Settled):
            tests = [test for kinds, expr in leaves(state.rule) if (test := self._test_of(kinds, expr))]
            if state.minds_losses and self._kind.name == LOST_KIND:
                tests.append(self._is_loss())
            hold = self._constant("hold", state.take_back if self._undo else state.hold)
            return [f"if {' or '.join(tests)}: {hold}(e)"] if tests else []
        if state.minds_losses and self._kind.name == LOST_KIND:
            lost = self._constant("lost", state.lost)  # type: ignore[attr-defined]
            return [f"if {self._is_loss()}: {lost}(e)"]
        if not state.rule.correlation.steps:
            return self._attempt(
                lambda: self._hit(state, state.rule.correlation, self._code(predicate).true, "")
            )
        return self._steps(state)

    def _is_loss(self) -> str:
        """The test of an event that says others were lost."""
        return f"({self._load('event.reason')} in {self._constant('losses', LOSSES)})"

    def _steps(self, state: Window) -> list[str]:
        """The lines of a rule with steps: those with the same key and field are one hit."""
        correlation = state.rule.correlation
        groups: dict[tuple[tuple[str, ...], str], list[tuple[int, str]]] = {}
        for number, step in enumerate(correlation.steps):
            kinds, expr = _own_leaf(state.rule, step)
            test = "" if step.inner else self._test_of(kinds, expr)
            if test:
                own = (step.group_by or correlation.group_by, step.field or correlation.field)
                groups.setdefault(own, []).append((number, test))
        # An event whose two fields are the same is one in that group: counts once, meets its steps at once.
        several = len(groups) > 1
        gathers = several and correlation.type in STEP_TYPES
        lines = ["met = {}" if gathers else "done = ()"] if several else []
        for (group_by, field), members in groups.items():
            grouped = replace(correlation, group_by=group_by, field=field)
            lines += self._attempt(partial(self._step_group, state, grouped, members, several))
        if gathers:
            lines.append(f"for key, steps in met.items(): {self._taker(state)}(key, e, steps)")
        return lines

    def _step_group(
        self, state: Window, grouped: Correlation, members: list[tuple[int, str]], several: bool
    ) -> list[str]:
        """Steps with one key: a hit with the bits of those that match, or, where events count, one hit.

        Where there are several such keys, bits are gathered for each group in ``met`` instead.
        """
        if grouped.type not in STEP_TYPES:
            test = " or ".join(test for _, test in members)
            if not several:
                return self._hit(state, grouped, test, "")
            parts = [self._key(grouped), *map(self._load, filter(None, (grouped.field,)))]
            what = f"({', '.join(parts)},)"
            lines = self._hit(state, grouped, f"({test}) and {what} not in done", "")
            return [*lines, f"if {test}: done += ({what},)"]
        bits = " | ".join(f"({1 << number} if {test} else 0)" for number, test in members)
        if not several:
            return [f"steps = {bits}", *self._hit(state, grouped, "steps", "steps")]
        key = self._key(grouped)
        gather = f"met[{key}] = met.get({key}, 0) | steps"
        return [f"steps = {bits}", *self._known(state, grouped, "steps", gather)]

    def _test_of(self, kinds: tuple[str, ...], expr: Expr) -> str:
        """The test of a leaf on this kind; empty when it is not for this kind or names a field it lacks."""
        if self._kind.name not in kinds:
            return ""
        lines = self._attempt(lambda: [self._code(expr).true])
        return lines[0] if lines else ""

    def _attempt(self, make: Callable[[], list[str]]) -> list[str]:
        """Lines that may name a field this class does not have: then there are none."""
        before = dict(self._loads)
        try:
            return make()
        except UnknownFieldError:
            self._loads = before
            return []

    def _hit(self, state: Window, correlation: Correlation, test: str, steps: str) -> list[str]:
        """Key and hit, behind the test; ``steps`` is the variable with the bits of the steps that match."""
        key = self._key(correlation)
        extra = steps or (self._load(correlation.field) if correlation.field else "")
        if correlation.sequential:
            extra += f", ({', '.join(map(self._load, correlation.sequential.contact))},)"
        call = f"{self._taker(state)}({key}, e{', ' + extra if extra else ''})"
        return self._known(state, correlation, test, call)

    def _taker(self, state: Window) -> str:
        if state.journal is not None:
            return self._constant("hit", state.journal.take_back if self._undo else state.journal.hit)
        return self._constant("hit", state.hit)  # type: ignore[attr-defined]

    def _known(self, state: Window, correlation: Correlation, test: str, call: str) -> list[str]:
        """The call behind the test, where group and value are known."""
        known = [self._load(n) for n in correlation.group_by if self._may_be_unknown(n)]
        fields = correlation.sequential.contact if correlation.sequential else (correlation.field,)
        known += [self._load(field) for field in fields if field and self._may_be_unknown(field)]
        if not (correlation.require_group and known):
            return [f"if {test}: {call}"]
        missing = self._constant("missing", state.count_ungrouped)
        return [
            f"if {test}:",
            f"    if {' and '.join(dict.fromkeys(known))}: {call}",
            f"    else: {missing}()",
        ]

    def _key(self, correlation: Correlation) -> str:
        """What an event's group is: the one field, or a tuple of several."""
        names = [self._load(name) for name in correlation.group_by]
        return names[0] if len(names) == 1 else f"({', '.join(names)}{',' if names else ''})"

    # -- expressions

    def _code(self, expr: Expr) -> Code:
        if isinstance(expr, Not):
            inner = self._code(expr.item)
            return Code(inner.false, inner.true)
        if isinstance(expr, (And, Or)):
            parts = [self._code(item) for item in expr.items]
            words = (" and ", " or ") if isinstance(expr, And) else (" or ", " and ")
            return Code(
                "(" + words[0].join(p.true for p in parts) + ")",
                "(" + words[1].join(p.false for p in parts) + ")",
            )
        if isinstance(expr, Constant):
            return Code(repr(expr.value), repr(not expr.value))
        if isinstance(expr, Keyword):
            test = self._keyword(expr)
            return Code(test, f"not {test}")
        if isinstance(expr, Exists):
            name = self._load(expr.field)
            present = f"bool({name})" if self._may_be_unknown(expr.field) else "True"
            return Code(present, f"not {present}") if expr.present else Code(f"not {present}", present)
        if isinstance(expr, TimePart):
            test = self._time(expr)
            return Code(test, f"not {test}")
        if isinstance(expr, FieldRef):
            return self._reference(expr)
        test = self._test(expr)
        if isinstance(expr, Cidr):
            return Code(test, f"({test} is False)")  # None for what is no address
        if self._field(expr.field).type != "ip":
            return Code(test, f"not {test}")
        name = self._load(expr.field)
        return Code(f"({name} and {test})", f"({name} and not {test})")

    def _test(self, expr: Number | Truth | Compare | Text | Regex | Cidr) -> str:
        name = self._load(expr.field)
        if isinstance(expr, Compare):
            return f"({name} {_OPERATORS[expr.op]} {expr.value!r})"
        if isinstance(expr, Truth):
            return f"({name} is {expr.value!r})"
        if isinstance(expr, Number):
            if len(expr.values) == 1:
                return f"({name} == {expr.values[0]!r})"
            return f"({name} in {self._constant('numbers', frozenset(expr.values))})"
        if isinstance(expr, Cidr):
            return f"{self._constant('within', networks(expr.networks))}({name})"
        if isinstance(expr, Regex):
            return f"({self._constant('search', re2.compile(expr.pattern).search)}({name}) is not None)"
        return self._text(expr, name)

    def _text(self, expr: Text, name: str) -> str:
        subject = name if expr.cased else f"{name}.lower()"
        if expr.match == "equals":
            if len(expr.values) == 1:
                return f"({subject} == {self._constant('text', expr.values[0])})"
            return f"({subject} in {self._constant('texts', frozenset(expr.values))})"
        if expr.match == "contains":
            parts = [f"{self._constant('text', value)} in {subject}" for value in expr.values]
            return f"({' or '.join(parts)})"
        return f"{subject}.{expr.match}({self._constant('texts', expr.values)})"

    def _reference(self, expr: FieldRef) -> Code:
        """One field against another; with an unknown address neither true nor false."""
        one, other = self._load(expr.field), self._load(expr.other)
        types = {self._field(expr.field).type, self._field(expr.other).type}
        if "ip" in types:
            known = f"{one} and {other} and {one}"
            return Code(f"({known} == {other})", f"({known} != {other})")
        if types <= TEXT_TYPES and not expr.cased:
            left, right = f"{one}.lower()", f"{other}.lower()"
        else:
            left, right = one, other
        if expr.match == "equals":
            return Code(f"({left} == {right})", f"({left} != {right})")
        found = f"{right} in {left}" if expr.match == "contains" else f"{left}.{expr.match}({right})"
        # Empty text is part of every text: that says nothing, and no rule means it.
        test = f"({other} != '' and {found})"
        return Code(test, f"not {test}")

    def _time(self, expr: TimePart) -> str:
        parts = self._constant("parts", _clock(self._offset))
        wanted = self._constant("numbers", frozenset(expr.values))
        return f"({parts}(e.ts_ns)[{TIME_PARTS.index(expr.part)}] in {wanted})"

    def _keyword(self, expr: Keyword) -> str:
        search = self._constant("search", re2.compile(expr.pattern).search)
        names = [self._load(field.name) for field in self._kind.fields if field.type in TEXT_TYPES]
        return "(" + (" or ".join(f"{search}({name}) is not None" for name in names) or "False") + ")"

    # -- fields and constants

    def _field(self, name: str) -> Field:
        field = self._kind.field(name)
        if field is None or (field.derived_from and name not in self._derivations):
            raise UnknownFieldError(name)
        return field

    def _may_be_unknown(self, name: str) -> bool:
        return self._field(name).type in ("ip", "str", "bytes")

    def _load(self, name: str) -> str:
        """The local variable of a field; derived fields are computed once, at the top."""
        field = self._field(name)
        variable = f"f_{field.attribute}"
        if name not in self._loads:
            if field.derived_from:
                derivation = self._derivations[name]
                derive = self._constant("derive", derivation.get)
                source = Field(derivation.source, "").attribute
                self._loads[name] = f"{variable} = {derive}(e.{source})"
            else:
                keyed = keyword.iskeyword(field.attribute)
                load = f"getattr(e, {field.attribute!r})" if keyed else f"e.{field.attribute}"
                self._loads[name] = f"{variable} = {load}"
        return variable

    def _constant(self, word: str, value: Any) -> str:
        name = f"c_{word}_{len(self._names)}"
        self._names[name] = value
        return name


def _group(states: list[State], kind: EventKind) -> tuple[str | None, dict[Any, list[Member]], list[State]]:
    """The field that most rules test for equality, those rules by value (without that test), the others."""
    counts = Counter(
        name
        for state in states
        for name in _equalities(state.rule.predicate)
        if _plain(state) and kind.field(name) is not None
    )
    field = max(counts, key=counts.__getitem__, default="")
    if counts[field] < MIN_GROUP:
        return None, {}, states
    groups: dict[Any, list[Member]] = {}
    rest = []
    for state in states:
        test = None if not _plain(state) else _equalities(state.rule.predicate).get(field)
        if test is None:
            rest.append(state)
            continue
        for value in dict.fromkeys(test.values):
            groups.setdefault(value, []).append((state, _without(state.rule.predicate, test)))
    return field, groups, rest


def _plain(state: State) -> bool:
    """Whether the rule is one predicate and one hit."""
    return not isinstance(state, Settled) and not state.rule.correlation.steps


def leaves(rule: Rule) -> list[tuple[tuple[str, ...], Expr]]:
    """All that a rule looks at, those below a chain too: event kinds and predicate."""
    found: list[tuple[tuple[str, ...], Expr]] = []
    for step in rule.correlation.steps:
        found += leaves(step.inner) if step.inner else [_own_leaf(rule, step)]
    return found or [(rule.events, rule.predicate)]


def _own_leaf(rule: Rule, step: Step) -> tuple[tuple[str, ...], Expr]:
    """Kinds and predicate of a step; one without kinds of its own must meet the rule's predicate too."""
    if step.events:
        return step.events, step.predicate
    if rule.predicate == Constant(True):
        return rule.events, step.predicate
    return rule.events, And((rule.predicate, step.predicate))


def _equalities(predicate: Expr) -> dict[str, Number | Text]:
    """Tests for equality that must hold for the predicate to hold, by field; text without regard to case."""
    items = predicate.items if isinstance(predicate, And) else (predicate,)
    return {
        item.field: item
        for item in items
        if isinstance(item, Number) or (isinstance(item, Text) and item.match == "equals" and not item.cased)
    }


def _without(predicate: Expr, test: Expr) -> Expr:
    if not isinstance(predicate, And):
        return Constant(True)
    rest = tuple(item for item in predicate.items if item is not test)
    return And(rest) if len(rest) > 1 else rest[0]


def _clock(offset: Callable[[], int]) -> Callable[[int], tuple[int, ...]]:
    """A function that tells the parts of the wall-clock time of an event, in UTC (see TIME_PARTS)."""
    return lambda ts_ns: _parts_of((ts_ns + offset()) // _MINUTE_NS)


@lru_cache(maxsize=4096)
def _parts_of(minute: int) -> tuple[int, ...]:
    """The parts of a minute since 1970; one that no calendar has is the first or the last."""
    when = _EPOCH + timedelta(minutes=min(max(minute, 0), _LAST_MINUTE))
    return when.minute, when.hour, when.day, when.isocalendar()[1], when.month, when.year


@lru_cache(maxsize=4096)
def networks(texts: tuple[str, ...]) -> Callable[[str], bool | None]:
    """A function that tells whether an address lies in one of the networks.

    For each prefix length one set of network numbers; results are cached for the addresses seen last (64 ns
    instead of 0.7 us, measured). None for text that is no address.
    """
    tables: dict[int, dict[int, set[int]]] = {4: {}, 16: {}}
    for text in texts:
        address, _, prefix = text.partition("/")
        packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
        shift = len(packed) * 8 - int(prefix or len(packed) * 8)
        tables[len(packed)].setdefault(shift, set()).add(int.from_bytes(packed, "big") >> shift)

    @lru_cache(maxsize=65536)
    def within(text: str) -> bool | None:
        try:
            packed = socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
        except (OSError, ValueError, TypeError):
            return None
        number = int.from_bytes(packed, "big")
        return any(number >> shift in numbers for shift, numbers in tables[len(packed)].items())

    return within
