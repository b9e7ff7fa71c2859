"""The compiled rule set: typed, frozen, serialisable; all that the engine knows about rules.

The rule files are loaded in a child process without rights, and the engine reads what that child wrote:
:func:`decode_ruleset` therefore checks every type and every bound again and builds no code from text.

A predicate is a tree of :data:`Expr`. Its logic has three values: a test of an unknown field (an address
that is not known) is neither true nor false, and its negation is not true either. Text fields are always
known; an empty one is simply empty.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Union

import msgspec
from msgspec import Meta

from kwsiem.errors import ConfigError
from kwsiem.rules.duration import MAX_DURATION_NS

MODEL_VERSION: Final = 2
#: Windows keep about twice the threshold of time stamps for each busy key.
MAX_THRESHOLD: Final = 200_000
MAX_STEPS: Final = 16
#: Events of a sequence, the counts of its steps together.
MAX_PLACES: Final = 1000
MAX_GROUP_BY: Final = 8
#: Failures in a row that a sequential test may need: a group's contacts are so many at least.
MAX_FAILURES: Final = 32
MAX_RULES: Final = 5_000
#: Rules that cover one rule.
MAX_COVERS: Final = 16
#: Correlations over correlations over …
MAX_CHAIN: Final = 8
#: Nesting of And, Or and Not; Python's own parser stops at about 200 parentheses.
MAX_DEPTH: Final = 40
#: Values in the tests of one rule, lists expanded.
MAX_VALUES: Final = 20_000

FieldName = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z@_][A-Za-z0-9@_.\-]*$")]
ShortText = Annotated[str, Meta(max_length=4096)]
Nanoseconds = Annotated[int, Meta(ge=0, le=MAX_DURATION_NS)]


class _Node(msgspec.Struct, frozen=True, tag_field="is", forbid_unknown_fields=True):
    pass


class And(_Node, frozen=True, tag="and"):
    """All of them."""

    items: tuple[Expr, ...]


class Or(_Node, frozen=True, tag="or"):
    """At least one of them."""

    items: tuple[Expr, ...]


class Not(_Node, frozen=True, tag="not"):
    """The opposite; unknown stays unknown."""

    item: Expr


class Constant(_Node, frozen=True, tag="constant"):
    """Always or never: what a test of an empty list comes down to."""

    value: bool


class Number(_Node, frozen=True, tag="number"):
    """An integer field equals one of the values."""

    field: FieldName
    values: tuple[int, ...]


class Truth(_Node, frozen=True, tag="truth"):
    """A yes-or-no field has this value."""

    field: FieldName
    value: bool


class Compare(_Node, frozen=True, tag="compare"):
    """An integer field compared with a number."""

    field: FieldName
    op: Literal["gt", "gte", "lt", "lte"]
    value: int


class Text(_Node, frozen=True, tag="text"):
    """A text or address field matches one of the values; lower case is stored when case does not matter."""

    field: FieldName
    match: Literal["equals", "contains", "startswith", "endswith"]
    values: tuple[ShortText, ...]
    cased: bool = False


class Regex(_Node, frozen=True, tag="regex"):
    """A regular expression (re2 syntax, flags inline) is found in a text field."""

    field: FieldName
    pattern: ShortText


class Cidr(_Node, frozen=True, tag="cidr"):
    """An address field lies in one of the networks."""

    field: FieldName
    networks: tuple[ShortText, ...]


class FieldRef(_Node, frozen=True, tag="fieldref"):
    """A field compared with another field of the same event (Sigma's ``fieldref``)."""

    field: FieldName
    match: Literal["equals", "contains", "startswith", "endswith"]
    other: FieldName
    cased: bool = False


class TimePart(_Node, frozen=True, tag="timepart"):
    """A part of the event's wall-clock time in UTC is one of the values; ``week`` is ISO 8601's."""

    part: Literal["minute", "hour", "day", "week", "month", "year"]
    values: tuple[int, ...]


class Exists(_Node, frozen=True, tag="exists"):
    """A field is known and not empty (or is not)."""

    field: FieldName
    present: bool = True


class Keyword(_Node, frozen=True, tag="keyword"):
    """A regular expression is found in any of the event's text fields (Sigma's keywords)."""

    pattern: ShortText


Expr = Union[
    And, Or, Not, Constant, Number, Truth, Compare, Text, Regex, Cidr, FieldRef, TimePart, Exists, Keyword
]


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the things that a correlation looks at: a selection, a rule, or another correlation.

    Sequence: ``count`` events that match, each step strictly later than the one before. ``events`` are the
    kinds the step looks at, those of its rule when empty. ``group_by`` and ``field`` are this step's own
    fields in place of the correlation's (Sigma's aliases), when not empty. With ``inner`` the step is not
    met by an event but by an incident of that rule that opens; ``group_by`` and ``field`` then name fields of
    the inner rule's group.
    """

    name: ShortText
    predicate: Expr = Constant(True)
    count: Annotated[int, Meta(ge=1, le=MAX_THRESHOLD)] = 1
    events: Annotated[tuple[ShortText, ...], Meta(max_length=64)] = ()
    group_by: Annotated[tuple[FieldName, ...], Meta(max_length=64)] = ()
    field: Annotated[str, Meta(max_length=128)] = ""
    inner: Rule | None = None


class Sequential(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a sequential test of first contacts assumes (Jung et al. 2004).

    A new value of the fields ``contact`` within a group is a first contact; one that nothing answers within
    ``wait_ns`` has failed. ``benign`` and ``scanner`` are how likely the first contact of such a source
    succeeds, ``false_alarm`` and ``missed`` the errors that are allowed.
    """

    contact: Annotated[tuple[FieldName, ...], Meta(min_length=1, max_length=MAX_GROUP_BY)]
    wait_ns: Annotated[int, Meta(gt=0, le=MAX_DURATION_NS)]
    benign: float = 0.8
    scanner: float = 0.2
    false_alarm: float = 0.001
    missed: float = 0.01

    @property
    def weights(self) -> tuple[float, float]:
        """What a failure and a success add to the logarithm of the likelihood ratio."""
        return math.log((1 - self.scanner) / (1 - self.benign)), math.log(self.scanner / self.benign)

    @property
    def bounds(self) -> tuple[float, float]:
        """The logarithm of the ratio at which the source is a scanner, and at which it is benign."""
        upper = math.log((1 - self.missed) / self.false_alarm)
        return upper, math.log(self.missed / (1 - self.false_alarm))

    @property
    def needed(self) -> int:
        """How many failures in a row make a scanner."""
        return math.ceil(self.bounds[0] / self.weights[0] - 1e-9)

    @property
    def problem(self) -> str:
        """Why it is no test, or an empty text."""
        if not 0 < self.scanner < self.benign < 1:
            return f"needs 0 < scanner < benign < 1, got {self.scanner:g} and {self.benign:g}"
        for name, value in (("false_alarm", self.false_alarm), ("missed", self.missed)):
            if not 0 < value < 0.5:
                return f"{name} must lie between 0 and 0.5, got {value:g}"
        if self.needed > MAX_FAILURES:
            return f"needs {self.needed} failures in a row, at most {MAX_FAILURES} are kept"
        return ""


CorrelationType = Literal[
    "any",
    "event_count",
    "value_count",
    "temporal",
    "sequence",
    "absent",
    "sequential_test",
    "value_sum",
    "value_avg",
    "value_percentile",
    "value_median",
]
Operator = Literal["gte", "gt", "lt", "lte", "eq", "neq"]
#: Types whose condition looks at the values of a field.
VALUE_TYPES: Final = frozenset({"value_count", "value_sum", "value_avg", "value_percentile", "value_median"})
#: Types that consist of steps; the counting types have steps only when they look at several rules.
STEP_TYPES: Final = frozenset({"temporal", "sequence", "absent", "sequential_test"})
COUNT_TYPES: Final = frozenset({"event_count", "value_count", "temporal"})


class Correlation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What has to come together before a rule fires.

    ``type`` is a key of ``correlate.kinds``; ``any`` fires on each match and uses only ``group_by``.
    ``sequence`` is Sigma's temporal_ordered; ``absent`` has two steps: the first not followed by the second.
    ``sequential_test`` has three, an attempt, a success and a failure, and needs ``sequential``.
    Windows are half-open: an event at time t counts those in (t - timespan, t]. With ``require_group``
    an event whose group-by field is unknown or empty never matches (and is counted).
    """

    type: CorrelationType = "any"
    group_by: Annotated[tuple[FieldName, ...], Meta(max_length=64)] = ()
    require_group: bool = True
    timespan_ns: Nanoseconds = 0
    field: Annotated[str, Meta(max_length=128)] = ""
    op: Operator = "gte"
    value: Union[Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)], float] = 1
    steps: Annotated[tuple[Step, ...], Meta(max_length=MAX_STEPS)] = ()
    percentile: Annotated[int, Meta(ge=0, le=100)] = 50
    sequential: Union[Sequential, None] = None

    @property
    def threshold(self) -> int:
        """The smallest count that meets a condition of gte or gt."""
        return int(self.value) + (self.op == "gt")

    @property
    def settled(self) -> bool:
        """Whether it can only be decided when no earlier event can come any more (after the lateness).

        Counts that grow (gte, gt), temporal and sequences are decided at once: more events never undo them.
        """
        if any(step.inner for step in self.steps):
            return True
        if self.type in ("any", "sequence"):
            return False
        return self.type not in COUNT_TYPES or self.op not in ("gte", "gt")


class Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a rule asks the firewall's guard for: block the address in a field for so long.

    ``spoofable`` says that evidence which can be forged (a lone SYN) may do; the guard decides.
    """

    field: FieldName
    for_ns: Annotated[int, Meta(gt=0, le=MAX_DURATION_NS)]
    spoofable: bool = False


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule; ``events`` are the kinds it looks at, ``suppress_ns`` the quiet time that ends an incident.

    ``fingerprint`` covers everything that gives the rule's state its meaning: a rule with the same id and
    fingerprint keeps its windows and incidents when the rule set is replaced. ``covered_by`` are the ids of
    rules whose open incidents make those of this one silent; it is no part of the fingerprint.
    """

    id: Annotated[str, Meta(min_length=1, max_length=128)]
    title: ShortText
    level: Literal["informational", "low", "medium", "high", "critical"]
    events: Annotated[tuple[ShortText, ...], Meta(min_length=1, max_length=64)]
    predicate: Expr
    correlation: Correlation
    suppress_ns: Nanoseconds
    fingerprint: Annotated[str, Meta(max_length=64)]
    description: ShortText = ""
    tags: tuple[ShortText, ...] = ()
    falsepositives: tuple[ShortText, ...] = ()
    block: Block | None = None
    covered_by: Annotated[tuple[ShortText, ...], Meta(max_length=MAX_COVERS)] = ()


class Skipped(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Sigma rule that is not evaluated here, and why."""

    place: ShortText
    rule: ShortText
    reason: ShortText


class RuleSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All rules that run together; ``sha256`` is of the files they came from.

    ``skipped`` are the Sigma rules that this host cannot evaluate, each with the place and the reason.
    """

    version: Literal[1] = 1
    sha256: Annotated[str, Meta(max_length=64)] = ""
    files: tuple[ShortText, ...] = ()
    rules: Annotated[tuple[Rule, ...], Meta(max_length=MAX_RULES)] = ()
    skipped: tuple[Skipped, ...] = ()

    def encode(self) -> bytes:
        """The rule set as msgpack, for :func:`decode_ruleset`."""
        return msgspec.msgpack.encode(self)


def decode_ruleset(data: bytes) -> RuleSet:
    """The rule set of bytes that a less trusted process wrote.

    Raises ConfigError for anything that is not a rule set within its bounds: types, thresholds, depth,
    a correlation that lacks what its type needs, an id that stands twice.
    """
    try:
        ruleset = msgspec.msgpack.decode(data, type=RuleSet)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"compiled rules cannot be read: {error}") from None
    seen: set[str] = set()
    known = {rule.id: rule for rule in ruleset.rules}
    depth = cover_depths(ruleset.rules)
    if max(depth.values(), default=0) > MAX_CHAIN:
        raise ConfigError("compiled rules: rules cover each other in a circle")
    for rule in ruleset.rules:
        if rule.id in seen:
            raise ConfigError(f"compiled rules: rule {rule.id!r} stands twice")
        seen.add(rule.id)
        problem = _problem(rule) or _cover_problem(rule, known)
        if problem:
            raise ConfigError(f"compiled rules: rule {rule.id!r}: {problem}")
    return ruleset


def _problem(rule: Rule, level: int = 0) -> str:
    """What the types cannot say about a rule, or an empty text."""
    correlation = rule.correlation
    if correlation.type != "any" and not correlation.timespan_ns > 0:
        return "a correlation needs a timespan"
    needs_field = correlation.type in VALUE_TYPES
    if needs_field != bool(correlation.field):
        return f"{correlation.type} {'needs a' if needs_field else 'takes no'} field"
    if correlation.type in STEP_TYPES and len(correlation.steps) < 2 - (correlation.type == "temporal"):
        return f"{correlation.type} needs at least two steps"
    if correlation.type == "any" and correlation.steps:
        return "a rule without a correlation has no steps"
    if correlation.type == "absent" and len(correlation.steps) != 2:
        return "absent has two steps"
    if problem := _sequential_problem(correlation):
        return problem
    if sum(step.count for step in correlation.steps) > MAX_PLACES:
        return f"a sequence of more than {MAX_PLACES} events"
    if correlation.type in COUNT_TYPES:
        if not isinstance(correlation.value, int) or not 0 <= correlation.value <= MAX_THRESHOLD:
            return f"a count is a whole number from 0 to {MAX_THRESHOLD}"
        if not correlation.settled and correlation.threshold < 1:
            return "the condition is always true"
    for step in correlation.steps:
        own = step.group_by or correlation.group_by
        if len(own) != len(correlation.group_by):
            return "a step groups by as many fields as its correlation"
        if step.inner is not None:
            problem = "nested too deep" if level >= MAX_CHAIN else _problem(step.inner, level + 1)
            if problem:
                return problem
            known = step.inner.correlation.group_by
            if any(name and name not in known for name in (*own, step.field or correlation.field)):
                return "a correlation groups by fields that the one below it groups by"
    for predicate in (rule.predicate, *(step.predicate for step in correlation.steps)):
        if depth(predicate) > MAX_DEPTH:
            return f"conditions are nested deeper than {MAX_DEPTH}"
        if size(predicate) > MAX_VALUES:
            return f"more than {MAX_VALUES} values"
    return ""


def cover_depths(rules: Sequence[Rule]) -> dict[str, int]:
    """How many rules cover each other in a row above each, by id; more than MAX_CHAIN stands for a circle."""
    depth = {rule.id: 0 for rule in rules}
    covered = [rule for rule in rules if rule.covered_by]
    for _ in range(MAX_CHAIN + 1):
        for rule in covered:
            above = [depth[name] + 1 for name in rule.covered_by if name in depth]
            depth[rule.id] = min(MAX_CHAIN + 1, max([depth[rule.id], *above]))
    return depth


def _cover_problem(rule: Rule, known: Mapping[str, Rule]) -> str:
    """What is wrong with the rules that cover a rule, or an empty text."""
    for name in rule.covered_by:
        other = known.get(name)
        if other is None:
            return f"is covered by {name!r}, which is not there"
        if not set(rule.correlation.group_by) & set(other.correlation.group_by):
            return f"shares no group with {name!r}"
        if other.correlation.settled and not rule.correlation.settled:
            return f"is decided before {name!r}"
    return ""


def _sequential_problem(correlation: Correlation) -> str:
    """What is wrong with a sequential test, or an empty text."""
    test = correlation.sequential
    if (test is not None) != (correlation.type == "sequential_test"):
        return f"{correlation.type} {'takes no' if test else 'needs a'} test of contacts"
    if test is None:
        return ""
    if len(correlation.steps) != 3 or any(step.inner or step.group_by for step in correlation.steps):
        return "a sequential test has three steps of its own"
    return test.problem or ("" if test.wait_ns < correlation.timespan_ns else "waits as long as its timespan")


def children(expr: Expr) -> tuple[Expr, ...]:
    """The parts of And, Or and Not; nothing for a test of a field."""
    if isinstance(expr, (And, Or)):
        return expr.items
    return (expr.item,) if isinstance(expr, Not) else ()


def depth(expr: Expr) -> int:
    """How deep a tree is nested; a single test is 1."""
    return 1 + max(map(depth, children(expr)), default=0)


def size(expr: Expr) -> int:
    """How many values a tree compares with."""
    own = getattr(expr, "values", None) or getattr(expr, "networks", None) or ("",)
    return sum(map(size, children(expr))) if children(expr) else len(own)


def fingerprint(rule_id: str, events: tuple[str, ...], predicate: Expr, correlation: Correlation) -> str:
    """A hash of everything that gives a rule's state its meaning (32 hex digits)."""
    content = msgspec.msgpack.encode((MODEL_VERSION, rule_id, events, predicate, correlation))
    return hashlib.blake2b(content, digest_size=16).hexdigest()


_COMPARE_WORDS: Final = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_MATCH_WORDS: Final = {
    "equals": "is",
    "contains": "contains",
    "startswith": "starts with",
    "endswith": "ends with",
}


def describe(expr: Expr) -> str:
    """A predicate in words: ``tcp.flags is 0 and source.ip is in 192.0.2.0/24``."""
    if isinstance(expr, (And, Or)):
        word = " and " if isinstance(expr, And) else " or "
        parts = (f"({describe(i)})" if isinstance(i, (And, Or)) else describe(i) for i in expr.items)
        return word.join(parts)
    if isinstance(expr, Not):
        inner = describe(expr.item)
        return f"not ({inner})" if isinstance(expr.item, (And, Or)) else f"not {inner}"
    return _describe_test(expr)


def _describe_test(expr: Any) -> str:
    if isinstance(expr, Constant):
        return "always" if expr.value else "never"
    if isinstance(expr, Keyword):
        return f"text matches {expr.pattern}"
    if isinstance(expr, Compare):
        return f"{expr.field} {_COMPARE_WORDS[expr.op]} {expr.value}"
    if isinstance(expr, Truth):
        return f"{expr.field} is {str(expr.value).lower()}"
    if isinstance(expr, FieldRef):
        return f"{expr.field} {_MATCH_WORDS[expr.match]} {expr.other}"
    if isinstance(expr, TimePart):
        return f"the {expr.part} (UTC) is {_listing(expr.values)}"
    if isinstance(expr, Exists):
        return f"{expr.field} {'exists' if expr.present else 'is empty'}"
    if isinstance(expr, Regex):
        return f"{expr.field} matches {expr.pattern}"
    if isinstance(expr, Cidr):
        return f"{expr.field} is in {_listing(expr.networks)}"
    word = _MATCH_WORDS[expr.match] if isinstance(expr, Text) else "is"
    return f"{expr.field} {word} {_listing(expr.values)}"


def _listing(values: tuple[Any, ...]) -> str:
    shown = ", ".join(map(str, values[:5]))
    more = f" … ({len(values)})" if len(values) > 5 else ""
    return shown + more if len(values) == 1 else f"one of {shown}{more}"
