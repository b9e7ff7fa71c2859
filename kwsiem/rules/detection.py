"""A Sigma ``detection`` block becomes a predicate.

pySigma parses the items, their modifiers and the condition; before that every item is checked against the
fields of the event kinds, because only here the place in the file and the type of the field are known.

======================================  ==========================================================
``field: value``                        equals; ``*`` and ``?`` are wildcards in text; ``null`` is empty
``contains startswith endswith``        part of a text; without regard to case unless ``cased``
``re``                                  regular expression in re2's syntax, with regard to case
``cidr``                                address in a network
``gt gte lt lte``                       number compared
``exists``                              true or false: known and not empty
``all``                                 all values instead of any
``expand``                              ``'%name%'`` stands for the values of a list of the file
======================================  ==========================================================
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping as MappingType
from collections.abc import Sequence as SequenceType
from typing import Any, Final

import re2
from sigma.conditions import (
    ConditionAND,
    ConditionFieldEqualsValueExpression,
    ConditionNOT,
    ConditionOR,
    ConditionValueExpression,
    SigmaCondition,
)
from sigma.exceptions import SigmaError
from sigma.rule.detection import SigmaDetection, SigmaDetectionItem, SigmaDetections
from sigma.types import (
    SigmaBool,
    SigmaCasedString,
    SigmaCIDRExpression,
    SigmaCompareExpression,
    SigmaExists,
    SigmaNull,
    SigmaNumber,
    SigmaRegularExpression,
    SigmaString,
    SpecialChars,
)

from kwsiem.event import INTEGER_BOUNDS, TEXT_TYPES, EventKind, Field, as_ip
from kwsiem.rules.model import (
    MAX_DEPTH,
    MAX_VALUES,
    And,
    Cidr,
    Compare,
    Constant,
    Exists,
    Expr,
    Keyword,
    Not,
    Number,
    Or,
    Regex,
    Text,
    Truth,
    depth,
    size,
)
from kwsiem.rules.report import Report, nearest
from kwsiem.yamltree import Mapping, Node, Place, Scalar, Sequence, kind_of

PARTS: Final = frozenset({"contains", "startswith", "endswith"})
COMPARISONS: Final = frozenset({"gt", "gte", "lt", "lte"})
#: The modifiers of this version; at most one of the first group stands on a field.
TESTS: Final = PARTS | COMPARISONS | {"re", "cidr", "exists"}
MODIFIERS: Final = TESTS | {"all", "cased", "expand"}
#: Sigma's other modifiers: known words, refused with a sentence of their own.
LATER: Final = frozenset(
    {"base64", "base64offset", "day", "dotall", "fieldref", "hour", "i", "ignorecase", "m", "minute"}
    | {"month", "multiline", "neq", "s", "utf16", "utf16be", "week", "wide", "windash", "year"}
)
MAX_CONDITION: Final = 4096
MAX_PARENTHESES: Final = 16
#: Stands for an item that can never match; NUL cannot occur in a YAML file.
_NEVER: Final = "\0never"

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)
_RESERVED: Final = frozenset({"and", "or", "not", "of", "all", "any", "1", "them", "condition"})
_PLACEHOLDER: Final = re.compile(r"%([A-Za-z0-9_-]{1,64})%", re.ASCII)
_UNKNOWN_DETECTION: Final = re.compile(r"Detection '([^']*)' not defined")

Lists = MappingType[str, SequenceType[Any]]


def family(field_type: str) -> str:
    """What can be asked of a field: ``number``, ``truth``, ``text`` or ``address``."""
    if field_type in INTEGER_BOUNDS:
        return "number"
    if field_type in TEXT_TYPES:
        return "text"
    return "address" if field_type == "ip" else "truth"


def common_field(name: str, kinds: SequenceType[EventKind]) -> Field:
    """The field of that name, which every kind must have with one meaning.

    Raises ValueError that names the kind which lacks it and the nearest field.
    """
    found: Field | None = None
    for kind in kinds:
        field = kind.field(name)
        if field is None:
            hint = nearest(name, [f.name for f in kind.fields])
            raise ValueError(f"event kind {kind.name} has no field {name!r}{hint}")
        if found is not None and family(found.type) != family(field.type):
            raise ValueError(
                f"field {name!r} is {found.type} in {kinds[0].name} and {field.type} in {kind.name}"
            )
        found = found or field
    assert found is not None
    return found


class Detection:
    """One ``detection`` block: its selections, parsed and translated."""

    def __init__(self, report: Report, block: Mapping, kinds: SequenceType[EventKind], lists: Lists) -> None:
        self._report = report
        self._block = block
        self._kinds = kinds
        self._lists = lists
        self._selections: dict[str, Any] = {}
        self._broken = False
        self._read()

    def _refuse(self, place: Place, path: str, message: str) -> None:
        self._broken = True
        self._report.add(place, f"detection.{path}" if path else "detection", message)

    @property
    def names(self) -> list[str]:
        """The names of the selections that could be read."""
        return list(self._selections)

    def condition(self) -> Expr | None:
        """The predicate of the block's condition, or None after a problem."""
        node = self._block.items.get("condition")
        if node is None:
            self._refuse(self._block, "", "key 'condition' is missing")
            return None
        place = self._block.keys["condition"]
        value = node.value if isinstance(node, Scalar) else None
        if not isinstance(value, str) or not value.strip():
            self._refuse(place, "condition", f"expected text, got {kind_of(node)}")
            return None
        if len(value) > MAX_CONDITION or value.count("(") > MAX_PARENTHESES:
            limits = f"{MAX_CONDITION} characters and {MAX_PARENTHESES} parentheses"
            self._refuse(place, "condition", f"longer than {limits}")
            return None
        return self._parse(value, place, "condition")

    def selection(self, name: str) -> Expr | None:
        """The predicate of one selection, or None when it could not be read."""
        if name not in self._selections or self._broken:
            return None
        return self._parse(name, self._block.keys[name], name)

    def _parse(self, condition: str, place: Place, path: str) -> Expr | None:
        if self._broken or not self._selections:
            return None
        detections = SigmaDetections(detections=dict(self._selections), condition=[condition])
        try:
            tree = SigmaCondition(condition, detections).parse()
            expr = translate(tree)
        except SigmaError as error:
            self._refuse(place, path, self._condition_message(str(error), condition))
            return None
        except RecursionError:
            self._refuse(place, path, "nested too deep")
            return None
        if depth(expr) > MAX_DEPTH or size(expr) > MAX_VALUES:
            self._refuse(place, path, f"deeper than {MAX_DEPTH} levels or more than {MAX_VALUES} values")
            return None
        return expr

    def _condition_message(self, message: str, condition: str) -> str:
        unknown = _UNKNOWN_DETECTION.search(message)
        if unknown:
            return f"no selection is called {unknown[1]!r}{nearest(unknown[1], self._selections)}"
        return f"{' '.join(message.split())[:300]}, got {condition[:200]!r}"

    # Selections ------------------------------------------------------------------------------------

    def _read(self) -> None:
        for name, node in self._block.items.items():
            if name == "condition":
                continue
            if not _NAME.fullmatch(name) or name in _RESERVED:
                self._refuse(self._block.keys[name], "", f"{name!r} cannot be the name of a selection")
                continue
            made = self._selection(node, self._block.keys[name], name)
            if made is not None:
                self._selections[name] = made
        if not self._selections and not self._broken:
            self._refuse(self._block, "", "there is no selection")

    def _selection(self, node: Node, place: Place, path: str) -> Any:
        """A SigmaDetection of a mapping, of a list of mappings (any of them), or of keywords."""
        if isinstance(node, Mapping):
            items = [self._item(key, value, node.keys[key], path) for key, value in node.items.items()]
            if not items:
                self._refuse(place, path, "the selection is empty")
            return SigmaDetection([item for item in items if item]) if all(items) and items else None
        if isinstance(node, Sequence) and any(isinstance(item, Mapping) for item in node.items):
            parts = [self._alternative(item, path) for item in node.items]
            return SigmaDetection([part for part in parts if part]) if all(parts) else None
        item = self._item("", node, place, path)
        return SigmaDetection([item]) if item else None

    def _alternative(self, node: Node, path: str) -> Any:
        if isinstance(node, Mapping):
            return self._selection(node, node, path)
        self._refuse(node, path, f"a list holds mappings or keywords, not both, got {kind_of(node)}")
        return None

    def _item(self, key: str, node: Node, place: Place, path: str) -> Any:
        """One ``field|modifier: value`` line as pySigma's item, or None after a problem."""
        name, *modifiers = key.split("|")
        path = f"{path}.{key}" if key else path
        if not self._check_modifiers(modifiers, place, path):
            return None
        values = self._values(node, place, path, "expand" in modifiers)
        if values is None:
            return None
        test = next((modifier for modifier in modifiers if modifier in TESTS), "")
        if not self._check_values(name, test, modifiers, values, path):
            return None
        plain = [value for value, _ in values]
        kept = "|".join([name, *(modifier for modifier in modifiers if modifier != "expand")])
        try:
            if not plain:
                return SigmaDetectionItem.from_mapping(f"{name}|cased", _NEVER)
            return SigmaDetectionItem.from_mapping(kept or None, plain)
        except SigmaError as error:
            self._refuse(place, path, " ".join(str(error).split())[:300])
            return None

    def _check_modifiers(self, modifiers: list[str], place: Place, path: str) -> bool:
        for modifier in modifiers:
            if modifier in LATER:
                self._refuse(place, path, f"modifier {modifier!r} is not supported yet")
                return False
            if modifier not in MODIFIERS:
                hint = nearest(modifier, MODIFIERS | LATER)
                self._refuse(place, path, f"unknown modifier {modifier!r}{hint}")
                return False
        tests = [modifier for modifier in modifiers if modifier in TESTS]
        if len(tests) > 1 or len(set(modifiers)) != len(modifiers):
            self._refuse(place, path, f"modifiers {' and '.join(modifiers)} exclude each other")
            return False
        if "cased" in modifiers and tests and tests[0] not in PARTS:
            self._refuse(place, path, f"'cased' says nothing together with {tests[0]!r}")
            return False
        return True

    def _values(self, node: Node, place: Place, path: str, expand: bool) -> list[tuple[Any, Place]] | None:
        """The values with their places, lists put in for their placeholders; None after a problem."""
        nodes = node.items if isinstance(node, Sequence) else [node]
        if not nodes:
            self._refuse(place, path, "the list of values is empty")
            return None
        values: list[tuple[Any, Place]] = []
        for item in nodes:
            where = item if isinstance(node, Sequence) else place
            if not isinstance(item, Scalar):
                self._refuse(where, path, f"expected a value, got {kind_of(item)}")
                return None
            listed = self._expanded(item.value, where, path) if expand else [item.value]
            if listed is None:
                return None
            values.extend((value, where) for value in listed)
        return values

    def _expanded(self, value: Any, place: Place, path: str) -> SequenceType[Any] | None:
        form = _PLACEHOLDER.fullmatch(value) if isinstance(value, str) else None
        if form is None:
            self._refuse(place, path, f"'expand' needs the name of a list such as '%name%', got {value!r}")
            return None
        if form[1] not in self._lists:
            hint = nearest(form[1], self._lists)
            self._refuse(place, path, f"there is no list called {form[1]!r}{hint}")
            return None
        return self._lists[form[1]]

    # Values against types --------------------------------------------------------------------------

    def _check_values(
        self, name: str, test: str, modifiers: list[str], values: list[tuple[Any, Place]], path: str
    ) -> bool:
        """Whether the values fit the field's type and the test; problems are noted."""
        first = values[0][1] if values else self._block
        if not name:
            return self._check_keywords(test, modifiers, values, path)
        try:
            field = common_field(name, self._kinds)
        except ValueError as error:
            self._refuse(first, path, str(error))
            return False
        good = True
        for value, place in values:
            message = _value_problem(field, test, value, cased="cased" in modifiers)
            if message:
                self._refuse(place, path, message)
                good = False
        return good

    def _check_keywords(
        self, test: str, modifiers: list[str], values: list[tuple[Any, Place]], path: str
    ) -> bool:
        if test or "cased" in modifiers:
            self._refuse(self._block, path, "keywords take no modifier but 'all' and 'expand'")
            return False
        for value, place in values:
            if not isinstance(value, str) or not value.strip("*"):
                self._refuse(place, path, f"a keyword is text, quote it, got {value!r}")
                return False
        if not any(family(f.type) == "text" for kind in self._kinds for f in kind.fields):
            self._refuse(self._block, path, "the event kind has no text for a keyword to be found in")
            return False
        return True


def _value_problem(field: Field, test: str, value: Any, *, cased: bool) -> str:
    """Why a value cannot be compared with a field, or an empty text."""
    kind = family(field.type)
    if test == "exists":
        return "" if isinstance(value, bool) else f"'exists' is true or false, got {value!r}"
    if value is None:
        return f"null goes with no modifier, got it with {test!r}" if test else ""
    if kind == "number":
        return _number_problem(field, test, value, cased)
    if kind == "truth":
        if test or cased:
            return f"{field.name} is true or false, {test or 'cased'!r} does not apply"
        return "" if isinstance(value, bool) else f"{field.name} is true or false, got {value!r}"
    if kind == "address":
        return _address_problem(field, test, value)
    return _text_problem(field, test, value)


def _number_problem(field: Field, test: str, value: Any, cased: bool) -> str:
    if (test and test not in COMPARISONS) or cased:
        return f"{field.name} is a number ({field.type}), {test or 'cased'!r} does not apply"
    if type(value) is not int:
        return f"{field.name} is a number ({field.type}), got {value!r}"
    low, high = INTEGER_BOUNDS[field.type]
    if not test and not low <= value <= high:
        return f"{field.name} ({field.type}) is {low} to {high}, never {value}"
    # pySigma reads larger numbers as floats, which are not exact.
    return "" if abs(value) <= 2**53 else f"numbers beyond 2**53 cannot be compared exactly, got {value}"


def _address_problem(field: Field, test: str, value: Any) -> str:
    if test not in ("", "cidr"):
        return f"{field.name} is an address, use 'cidr' instead of {test!r}"
    if not isinstance(value, str):
        return f"{field.name} is an address, got {value!r}"
    if test == "cidr":
        try:
            ipaddress.ip_network(value)
        except ValueError as error:
            return f"not a network: {error}"
        return ""
    if as_ip(value) is None:
        hint = ", use 'cidr' for networks" if "/" in value or "*" in value else ""
        return f"{field.name} is an address, got {value!r}{hint}"
    return ""


def _text_problem(field: Field, test: str, value: Any) -> str:
    if test in COMPARISONS or test == "cidr":
        return f"{field.name} is text, {test!r} does not apply"
    if not isinstance(value, str):
        return f"{field.name} is text, quote the value, got {value!r}"
    if test and not value:
        return f"an empty value with {test!r} matches everything"
    if len(value) > 4096:
        return f"at most 4096 characters, got {len(value)}"
    return regex_problem(value) if test == "re" else ""


def _re2_options() -> Any:
    options = re2.Options()
    options.log_errors = False
    return options


def regex_problem(pattern: str) -> str:
    """Why re2 cannot compile a pattern, or an empty text."""
    try:
        re2.compile(pattern, _re2_options())
    except (re2.error, UnicodeEncodeError) as error:
        said = error.args[0] if error.args else error
        said = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        return f"not a regular expression that runs in linear time (re2): {said}, got {pattern[:200]!r}"
    return ""


# pySigma's tree -> our tree -------------------------------------------------------------------------


def translate(node: Any) -> Expr:
    """Our predicate for a tree that pySigma parsed. Raises SigmaError for what this version lacks."""
    if isinstance(node, ConditionAND):
        return And(tuple(translate(item) for item in node.args))
    if isinstance(node, ConditionOR):
        return _merged(tuple(translate(item) for item in node.args))
    if isinstance(node, ConditionNOT):
        return Not(translate(node.args[0]))
    if isinstance(node, ConditionFieldEqualsValueExpression):
        return _test(node.field, node.value)
    if isinstance(node, ConditionValueExpression):
        return Keyword("(?is)" + _wildcard_pattern(node.value.s))
    raise SigmaError(f"{type(node).__name__} is not supported yet")


def _test(field: str, value: Any) -> Expr:
    """The test of one field for one value."""
    if isinstance(value, SigmaString):
        return _text_test(field, value)
    if isinstance(value, SigmaBool):
        return Truth(field, value.boolean)
    if isinstance(value, SigmaNumber):
        return Number(field, (int(value.number),))
    if isinstance(value, SigmaCompareExpression):
        return Compare(field, value.op.name.lower(), int(value.number.number))
    if isinstance(value, SigmaCIDRExpression):
        return Cidr(field, (str(value.network),))
    if isinstance(value, SigmaRegularExpression):
        return Regex(field, value.regexp.original)
    if isinstance(value, SigmaExists):
        return Exists(field, value.exists)
    if isinstance(value, SigmaNull):
        return Exists(field, present=False)
    raise SigmaError(f"{type(value).__name__} is not supported yet")


def _text_test(field: str, value: Any) -> Expr:
    """Text with wildcards: the simplest test that says the same."""
    cased = isinstance(value, SigmaCasedString)
    parts = _joined(value.s)
    words = [part for part in parts if isinstance(part, str)]
    if words == [_NEVER]:
        return Constant(value=False)
    many = SpecialChars.WILDCARD_MULTI
    if parts == [many]:
        return Exists(field)
    if len(words) <= 1 and all(part is many for part in parts if not isinstance(part, str)):
        word = words[0] if words else ""
        open_start, open_end = bool(parts) and parts[0] is many, bool(parts) and parts[-1] is many
        match = {(0, 0): "equals", (1, 1): "contains", (0, 1): "startswith", (1, 0): "endswith"}
        text = word if cased else word.lower()
        return Text(field, match[open_start, open_end], (text,), cased)  # type: ignore[arg-type]
    return Regex(field, ("(?s)" if cased else "(?is)") + rf"\A{_wildcard_pattern(parts)}\z")


def _joined(parts: SequenceType[Any]) -> list[Any]:
    """Wildcard parts with runs of ``*`` made one."""
    joined: list[Any] = []
    for part in parts:
        if part is SpecialChars.WILDCARD_MULTI and joined and joined[-1] is part:
            continue
        joined.append(part)
    return joined


def _wildcard_pattern(parts: SequenceType[Any]) -> str:
    signs = {SpecialChars.WILDCARD_MULTI: ".*", SpecialChars.WILDCARD_SINGLE: "."}
    return "".join(re2.escape(part) if isinstance(part, str) else signs[part] for part in parts)


def _merged(items: tuple[Expr, ...]) -> Expr:
    """An Or in which tests of one field that differ only in the value are one test."""
    merged: dict[Any, Expr] = {}
    for item in items:
        if isinstance(item, Number):
            key: Any = (Number, item.field)
            old = merged.get(key)
            merged[key] = Number(item.field, (*old.values, *item.values)) if isinstance(old, Number) else item
        elif isinstance(item, Text):
            key = (Text, item.field, item.match, item.cased)
            old = merged.get(key)
            if isinstance(old, Text):
                item = Text(item.field, item.match, (*old.values, *item.values), item.cased)  # noqa: PLW2901
            merged[key] = item
        elif isinstance(item, Cidr):
            key = (Cidr, item.field)
            old = merged.get(key)
            merged[key] = Cidr(item.field, (*old.networks, *item.networks)) if isinstance(old, Cidr) else item
        else:
            merged[len(merged), id(item)] = item
    return next(iter(merged.values())) if len(merged) == 1 else Or(tuple(merged.values()))
