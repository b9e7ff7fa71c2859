"""One ``field|modifier: value`` line of a detection: which modifiers go together, and the test of each value.

pySigma reads what is in a text (wildcards and their escapes). What the modifiers make of a value is done
here: its versions differ in the encodings, it reads numbers as floats, and only here an error can be told
with the place of the one value that is wrong.
"""

from __future__ import annotations

import codecs
import ipaddress
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceType
from itertools import product
from typing import Any, Final

import re2
from sigma.types import SigmaString, SpecialChars

from kwsiem.derive import as_ip
from kwsiem.event import INTEGER_BOUNDS, TEXT_TYPES, EventKind, Field
from kwsiem.rules.model import (
    And,
    Cidr,
    Compare,
    Constant,
    Exists,
    Expr,
    FieldRef,
    Keyword,
    Not,
    Number,
    Or,
    Regex,
    Text,
    TimePart,
    Truth,
)
from kwsiem.rules.report import nearest

PARTS: Final = frozenset({"contains", "startswith", "endswith"})
COMPARISONS: Final = frozenset({"gt", "gte", "lt", "lte"})
#: What to encode a text with before base64: the encoding, and the mark that stands before it.
WIDE: Final[Mapping[str, tuple[str, bytes]]] = {
    "wide": ("utf-16-le", b""),
    "utf16le": ("utf-16-le", b""),
    "utf16be": ("utf-16-be", b""),
    "utf16": ("utf-16-le", codecs.BOM_UTF16_LE),
}
BASE64: Final = frozenset({"base64", "base64offset"})
#: Sub-modifiers of ``re`` and their letter in re2.
FLAGS: Final = {"i": "i", "ignorecase": "i", "m": "m", "multiline": "m", "s": "s", "dotall": "s"}
#: Parts of the time and their bounds; a kernel time of 64 bits ends in 2554.
TIME_PARTS: Final = {
    "minute": (0, 59),
    "hour": (0, 23),
    "day": (1, 31),
    "week": (1, 53),
    "month": (1, 12),
    "year": (1970, 2554),
}
#: The event's time, a field of every kind that only the time modifiers can ask for.
TIMESTAMP: Final = "@timestamp"
#: Beyond, one value would stand for more than 5 ** 3 texts. Sigma has the same bound.
MAX_DASHES: Final = 3
MAX_TEXT: Final = 4096

_LINKS: Final = frozenset({"all", "expand"})
_FREE: Final = _LINKS | {"neq"}
_TEXT: Final = PARTS | BASE64 | WIDE.keys() | {"windash", "cased"}
#: What may stand beside each modifier; looked up both ways.
_COMPANIONS: Final[Mapping[str, frozenset[str]]] = {
    **dict.fromkeys(COMPARISONS, _LINKS | TIME_PARTS.keys()),
    **dict.fromkeys(TIME_PARTS, _FREE | COMPARISONS),
    **dict.fromkeys(PARTS, _FREE | {"fieldref", "cased", "windash"} | BASE64 | WIDE.keys()),
    **dict.fromkeys(BASE64, _FREE | PARTS | {"cased", "windash"} | WIDE.keys()),
    **dict.fromkeys(WIDE, _FREE | PARTS | {"cased", "windash"} | BASE64),
    **dict.fromkeys(FLAGS, _FREE | {"re"} | FLAGS.keys()),
    "cased": _FREE | _TEXT | {"fieldref"},
    "windash": _FREE | _TEXT,
    "fieldref": _FREE | PARTS | {"cased"},
    "re": _FREE | FLAGS.keys(),
    "cidr": _FREE,
    "exists": _LINKS,
    "neq": _LINKS | _TEXT | TIME_PARTS.keys() | FLAGS.keys() | {"re", "cidr", "fieldref"},
}
MODIFIERS: Final = frozenset(_COMPANIONS) | _LINKS
#: One of the first group comes before one of the second: what is encoded cannot be changed any more.
_ORDER: Final = (
    (frozenset({"windash"}), BASE64 | WIDE.keys()),
    (frozenset(WIDE), BASE64),
    (BASE64, PARTS),
    (frozenset({"re"}), frozenset(FLAGS)),
    (frozenset(TIME_PARTS), COMPARISONS),
)
#: What can be asked of each family of fields, apart from ``exists`` and what goes with everything.
_APPLIES: Final[Mapping[str, frozenset[str]]] = {
    "number": COMPARISONS | {"fieldref"},
    "truth": frozenset({"fieldref"}),
    "address": frozenset({"cidr", "fieldref"}),
    "text": _TEXT | FLAGS.keys() | {"re", "fieldref"},
}
_DASHES: Final = "-/\u2013\u2014\u2015"
_DASH: Final = re.compile(rf"\B[{_DASHES}]\b")
#: What a model and its encoding can carry.
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1


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


def check_modifiers(modifiers: SequenceType[str]) -> None:
    """Raise ValueError for a modifier that is unknown, stands twice, or does not go with another one."""
    for number, modifier in enumerate(modifiers):
        if modifier not in MODIFIERS:
            raise ValueError(f"unknown modifier {modifier!r}{nearest(modifier, MODIFIERS)}")
        for other in modifiers[:number]:
            if other == modifier:
                raise ValueError(f"modifier {modifier!r} stands twice")
            if other in FLAGS and FLAGS[other] == FLAGS.get(modifier):
                raise ValueError(f"modifiers {other!r} and {modifier!r} say the same")
            if not _go_together(other, modifier):
                raise ValueError(f"modifiers {other!r} and {modifier!r} exclude each other")
            if any(other in later and modifier in earlier for earlier, later in _ORDER):
                raise ValueError(f"modifier {modifier!r} must stand before {other!r}")
    for modifier in modifiers:
        if modifier in FLAGS and "re" not in modifiers:
            raise ValueError(f"modifier {modifier!r} needs 're' before it")
        if modifier in WIDE and not BASE64.intersection(modifiers):
            raise ValueError(f"modifier {modifier!r} needs 'base64' or 'base64offset' after it")
        if modifier == "base64offset" and not PARTS.intersection(modifiers):
            raise ValueError("modifier 'base64offset' finds a part of a text and needs 'contains' after it")


def _go_together(one: str, other: str) -> bool:
    if one in _LINKS or other in _LINKS:
        return True
    return other in _COMPANIONS[one] and one in _COMPANIONS[other]


class Line:
    """One ``field|modifier`` key of a selection, which makes a test of each value; keywords have no field.

    Every method raises ValueError, with a sentence for the user, for what cannot be tested.
    """

    def __init__(self, name: str, modifiers: SequenceType[str], kinds: SequenceType[EventKind]) -> None:
        check_modifiers(modifiers)
        self._name = name
        self._kinds = kinds
        self._modifiers = frozenset(modifiers)
        self._part = next((m for m in modifiers if m in PARTS), "equals")
        self._compare = next((m for m in modifiers if m in COMPARISONS), "")
        self._time = next((m for m in modifiers if m in TIME_PARTS), "")
        self._wide = next((m for m in modifiers if m in WIDE), "")
        self._flags = "".join(sorted(FLAGS[m] for m in modifiers if m in FLAGS))
        self._field = Field(name, "")
        if not name:
            self._check_keywords(modifiers)
        elif name == TIMESTAMP or self._time:
            self._check_time()
        else:
            self._field = common_field(name, kinds)
            self._check_family(modifiers)

    def _check_keywords(self, modifiers: SequenceType[str]) -> None:
        if set(modifiers) - _LINKS:
            raise ValueError("keywords take no modifier but 'all' and 'expand'")
        if not any(family(f.type) == "text" for kind in self._kinds for f in kind.fields):
            raise ValueError("the event kind has no text for a keyword to be found in")

    def _check_time(self) -> None:
        if not self._time:
            raise ValueError(f"{TIMESTAMP} needs one of the modifiers {', '.join(TIME_PARTS)}")
        if self._name != TIMESTAMP:
            raise ValueError(f"modifier {self._time!r} is for {TIMESTAMP} only, got {self._name!r}")

    def _check_family(self, modifiers: SequenceType[str]) -> None:
        kind = family(self._field.type)
        for modifier in modifiers:
            if modifier in _APPLIES[kind] or modifier in _FREE or modifier == "exists":
                continue
            if kind == "address":
                raise ValueError(f"{self._name} is an address, use 'cidr' instead of {modifier!r}")
            raise ValueError(f"{self._name} is {_named(self._field)}, {modifier!r} does not apply")

    # -- values

    def together(self, tests: SequenceType[Expr]) -> Expr:
        """The test of all values: any of them, or all with ``all``; its opposite with ``neq``."""
        if not tests:
            whole: Expr = Constant(value=False)  # an empty list: nothing is in it
        elif "all" in self._modifiers and len(tests) > 1:
            whole = And(tuple(tests))
        else:
            whole = merged(tests)
        return Not(whole) if "neq" in self._modifiers else whole

    def test(self, value: Any) -> Expr:
        """The test of one value, without regard to ``all`` and ``neq``."""
        if not self._name:
            return _keyword_test(value)
        if self._time:
            return self._time_test(value)
        if "exists" in self._modifiers:
            if not isinstance(value, bool):
                raise ValueError(f"'exists' is true or false, got {value!r}")
            return Exists(self._name, value)
        if "fieldref" in self._modifiers:
            return self._reference(value)
        if value is None:
            alone = self._modifiers - _FREE
            if alone:
                raise ValueError(f"null goes with no modifier, got it with {min(alone)!r}")
            return Exists(self._name, present=False)
        kind = family(self._field.type)
        if kind == "text":
            return self._text(value)
        return {"number": self._number, "truth": self._truth, "address": self._address}[kind](value)

    def _truth(self, value: Any) -> Expr:
        if not isinstance(value, bool):
            raise ValueError(f"{self._name} is true or false, got {value!r}")
        return Truth(self._name, value)

    def _number(self, value: Any) -> Expr:
        if type(value) is not int:
            raise ValueError(f"{self._name} is {_named(self._field)}, got {value!r}")
        low, high = INTEGER_BOUNDS[self._field.type]
        if self._compare:
            if not _SMALLEST <= value <= _LARGEST:
                raise ValueError(f"{self._name} ({self._field.type}) is {low} to {high}, got {value}")
            return Compare(self._name, self._compare, value)  # type: ignore[arg-type]
        if not low <= value <= high:
            raise ValueError(f"{self._name} ({self._field.type}) is {low} to {high}, never {value}")
        return Number(self._name, (value,))

    def _address(self, value: Any) -> Expr:
        if not isinstance(value, str):
            raise ValueError(f"{self._name} is an address, got {value!r}")
        if "cidr" in self._modifiers:
            try:
                network = ipaddress.ip_network(value)
            except ValueError as error:
                raise ValueError(f"not a network: {error}") from None
            if "%" in value:
                raise ValueError(f"a network has no zone, remove it, got {value!r}")
            return Cidr(self._name, (str(network),))
        address = as_ip(value)
        if address is None:
            hint = ", use 'cidr' for networks" if "/" in value or "*" in value else ""
            raise ValueError(f"{self._name} is an address, got {value!r}{hint}")
        return Text(self._name, "equals", (address,))

    def _reference(self, value: Any) -> Expr:
        if not isinstance(value, str):
            raise ValueError(f"'fieldref' needs the name of a field, got {value!r}")
        if value == self._name:
            raise ValueError(f"'fieldref' compares {value} with itself")
        other = common_field(value, self._kinds)
        if family(other.type) != family(self._field.type):
            raise ValueError(f"{self._name} is {_named(self._field)}, {value} is {_named(other)}")
        return FieldRef(self._name, self._part, value, "cased" in self._modifiers)  # type: ignore[arg-type]

    def _time_test(self, value: Any) -> Expr:
        low, high = TIME_PARTS[self._time]
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{self._time!r} is {low} to {high}, got {value!r}")
        if not self._compare:
            return TimePart(self._time, (value,))  # type: ignore[arg-type]
        start = value + (self._compare == "gt") if self._compare in ("gt", "gte") else low
        end = value - (self._compare == "lt") if self._compare in ("lt", "lte") else high
        if start > end:
            raise ValueError(f"{self._time!r} is {low} to {high}, none is {self._compare} {value}")
        return TimePart(self._time, tuple(range(start, end + 1)))  # type: ignore[arg-type]

    # -- text

    def _text(self, value: Any) -> Expr:
        """A text as the modifiers change it, in their order: dashes, encoding, part."""
        if not isinstance(value, str):
            raise ValueError(f"{self._name} is text, quote the value, got {value!r}")
        if len(value) > MAX_TEXT:
            raise ValueError(f"at most {MAX_TEXT} characters, got {len(value)}")
        coded = BASE64 & self._modifiers
        if not value:
            for modifier in (self._part, *coded, "re"):
                if modifier in self._modifiers:
                    raise ValueError(f"an empty value with {modifier!r} matches everything")
        if "re" in self._modifiers:
            return Regex(self._name, _checked_pattern((f"(?{self._flags})" if self._flags else "") + value))
        variants: list[list[Any]] = [SigmaString(value).s]
        if "windash" in self._modifiers:
            variants = list(_dashed(variants[0]))
        if coded:
            variants = [[text] for parts in variants for text in self._encoded(parts)]
        many = SpecialChars.WILDCARD_MULTI
        before = [many] if self._part in ("contains", "endswith") else []
        after = [many] if self._part in ("contains", "startswith") else []
        cased = "cased" in self._modifiers
        return merged([text_test(self._name, [*before, *parts, *after], cased=cased) for parts in variants])

    def _encoded(self, parts: SequenceType[Any]) -> list[str]:
        """A text in base64: as it looks alone, or at each of the three offsets within a longer one."""
        if any(not isinstance(part, str) for part in parts):
            raise ValueError("a value with wildcards cannot be encoded, write \\* and \\? for the characters")
        encoding, mark = WIDE.get(self._wide, ("utf-8", b""))
        data = mark + "".join(parts).encode(encoding)
        if "base64" in self._modifiers:
            return [b64encode(data).decode()]
        found = []
        for offset in range(3):
            # The characters that also carry bits of what stands before or after can be anything.
            end = (None, -3, -2)[(len(data) + offset) % 3]
            found.append(b64encode(bytes(offset) + data).decode()[(0, 2, 3)[offset] : end])
        return found


def _named(field: Field) -> str:
    """What a field is, for messages."""
    names = {"number": f"a number ({field.type})", "truth": "true or false", "address": "an address"}
    return names.get(family(field.type), "text")


def _dashed(parts: SequenceType[Any]) -> Iterator[list[Any]]:
    """The text with each dash that begins an option replaced by each of the others."""
    pieces: list[Any] = []
    for part in parts:
        if not isinstance(part, str):
            pieces.append((part,))
            continue
        start = 0
        for found in _DASH.finditer(part):
            pieces += [(part[start : found.start()],), tuple(_DASHES)]
            start = found.end()
        pieces.append((part[start:],))
    dashes = sum(len(piece) > 1 for piece in pieces)
    if dashes > MAX_DASHES:
        raise ValueError(f"'windash' stands for at most {MAX_DASHES} options in one value, got {dashes}")
    for chosen in product(*pieces):
        yield _joined(chosen)


def _joined(parts: SequenceType[Any]) -> list[Any]:
    """Parts of a text with neighbouring texts made one, and runs of ``*`` too."""
    joined: list[Any] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part and not (part is SpecialChars.WILDCARD_MULTI and joined and joined[-1] is part):
            joined.append(part)
    return joined


def text_test(field: str, parts: SequenceType[Any], *, cased: bool) -> Expr:
    """Text with wildcards: the simplest test that says the same."""
    parts = _joined(parts)
    words = [part for part in parts if isinstance(part, str)]
    many = SpecialChars.WILDCARD_MULTI
    if parts == [many]:
        return Exists(field)
    if len(words) <= 1 and all(part is many for part in parts if not isinstance(part, str)):
        word = words[0] if words else ""
        open_start, open_end = bool(parts) and parts[0] is many, bool(parts) and parts[-1] is many
        match = {(0, 0): "equals", (1, 1): "contains", (0, 1): "startswith", (1, 0): "endswith"}
        text = _bounded(word if cased else word.lower())
        return Text(field, match[open_start, open_end], (text,), cased)  # type: ignore[arg-type]
    return Regex(field, _checked_pattern(("(?s)" if cased else "(?is)") + rf"\A{_wildcard_pattern(parts)}\z"))


def _keyword_test(value: Any) -> Expr:
    if not isinstance(value, str) or not value.strip("*"):
        raise ValueError(f"a keyword is text, quote it, got {value!r}")
    return Keyword(_checked_pattern("(?is)" + _wildcard_pattern(SigmaString(value).s)))


def _wildcard_pattern(parts: SequenceType[Any]) -> str:
    signs = {SpecialChars.WILDCARD_MULTI: ".*", SpecialChars.WILDCARD_SINGLE: "."}
    return "".join(re2.escape(part) if isinstance(part, str) else signs[part] for part in parts)


def _bounded(text: str) -> str:
    if len(text) > MAX_TEXT:
        raise ValueError(f"at most {MAX_TEXT} characters, as a pattern or encoded it has {len(text)}")
    return text


def _re2_options() -> Any:
    options = re2.Options()
    options.log_errors = False
    return options


def _checked_pattern(pattern: str) -> str:
    """The pattern, when it is not too long and re2 can compile it."""
    try:
        re2.compile(pattern, _re2_options())
    except (re2.error, UnicodeEncodeError) as error:
        said = error.args[0] if error.args else error
        said = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        raise ValueError(
            f"not a regular expression that runs in linear time (re2): {said}, got {pattern[:200]!r}"
        ) from None
    return _bounded(pattern)


def merged(tests: SequenceType[Expr]) -> Expr:
    """Any of the tests, in which those of one field that differ only in the value are one test."""
    groups: dict[Any, list[Any]] = {}
    for number, test in enumerate(tests):
        groups.setdefault(_merge_key(test) or number, []).append(test)
    items = [_one_test(group) for group in groups.values()]
    return items[0] if len(items) == 1 else Or(tuple(items))


def _merge_key(test: Expr) -> tuple[Any, ...]:
    """What two tests have in common that can be one; empty for a test that stands alone."""
    if isinstance(test, Text):
        return Text, test.field, test.match, test.cased
    if isinstance(test, TimePart):
        return TimePart, test.part
    return (type(test), test.field) if isinstance(test, (Number, Cidr)) else ()


def _one_test(group: list[Any]) -> Expr:
    first: Expr = group[0]
    if len(group) == 1:
        return first
    if isinstance(first, Cidr):
        return Cidr(first.field, tuple(network for test in group for network in test.networks))
    values = tuple(value for test in group for value in test.values)
    if isinstance(first, Text):
        return Text(first.field, first.match, values, first.cased)
    if isinstance(first, TimePart):
        return TimePart(first.part, values)
    assert isinstance(first, Number)
    return Number(first.field, values)
