"""The JSON Schema of ``rules.yaml``, made from the loader's own tables, for editors that complete and check.

It accepts whatever the loader accepts (but for a quoted word with blanks around it). The loader refuses more:
what needs two places of the file (a selection that a condition names, a list that ``expand`` names), a
regular expression, a test that fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from collections.abc import Mapping as MappingType
from itertools import combinations
from typing import Any, Final

from kwsiem.alert import LEVELS
from kwsiem.event import INTEGER_BOUNDS, EventKind
from kwsiem.rules.correlation import (
    ABSENT_KEYS,
    BLOCKS,
    CONDITION_KEYS,
    CONTACT_PARTS,
    CORRELATION_KEYS,
    ODDS,
    OPERATORS,
    SEQUENCE_KEYS,
    SEQUENTIAL_KEYS,
    SEQUENTIAL_NEEDED,
    TYPES,
)
from kwsiem.rules.load import BLOCK_KEYS, FILE_KEYS, FILE_VERSION, MAX_LIST_VALUES, RULE_KEYS
from kwsiem.rules.model import (
    COUNT_TYPES,
    MAX_COVERS,
    MAX_GROUP_BY,
    MAX_RULES,
    MAX_STEPS,
    MAX_THRESHOLD,
    VALUE_TYPES,
)
from kwsiem.rules.testing import EVENT_KEYS, MAX_EVENTS, MAX_TESTS, TEST_KEYS
from kwsiem.rules.values import MODIFIERS, TIME_PARTS, TIMESTAMP, family

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]

_SCALAR: Final[Schema] = {"type": ["string", "number", "boolean", "null"]}
_TEXT: Final[Schema] = {"type": "string", "pattern": r"\S"}
_DURATION: Final[Schema] = {
    "type": "string",
    "pattern": r"^(?=.*[1-9])[0-9]{1,15}(ms|s|m|h|d)$",
    "description": "300ms, 3s, 5m, 12h, 1d",
    "examples": ["3s", "5m", "1h"],
}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": MAX_THRESHOLD}
_NUMBER: Final[Schema] = {"type": "number"}
_RANGE: Final = r"^[0-9]{1,10}\.\.[0-9]{1,10}$"


def rules_schema(kinds: MappingType[str, EventKind]) -> Schema:
    """The schema of a rule file whose rules look at these event kinds."""
    return {
        "$schema": DIALECT,
        "title": "kwsiem rules.yaml",
        **_object(
            FILE_KEYS,
            ("version", "rules"),
            version={"const": FILE_VERSION},
            lists=_lists(),
            rules={"type": "array", "maxItems": MAX_RULES, "items": _ref("rule")},
        ),
        "$defs": {
            "rule": _rule(kinds),
            "detection": _detection(_any_fields()),
            "correlation": _correlation(),
            "sequence": _sequence(),
            "absent": _absent(),
            "sequential_test": _sequential_test(),
            "test": _test(kinds),
            "values": _one_or_some(_SCALAR, least=1),
            "duration": _DURATION,
            "field": _field_name(kinds),
            **{f"detection of {kind.name}": _detection(_fields(kind)) for kind in kinds.values()},
            **{f"event {kind.name}": _event(kind) for kind in kinds.values()},
        },
    }


# -- building blocks ---------------------------------------------------------------------------------


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name.replace(' ', '%20')}"}


def _object(known: Iterable[str], required: Iterable[str], **properties: Schema) -> Schema:
    """A mapping of the known keys alone; one that has no schema here may hold anything."""
    return {
        "type": "object",
        "required": list(required),
        "properties": {name: properties.get(name.replace("-", "_"), {}) for name in known},
        "additionalProperties": False,
    }


def _one_or_some(item: Schema, *, least: int = 0, **bounds: Any) -> Schema:
    """One of these, or a list of them."""
    return {"anyOf": [item, {"type": "array", "items": item, "minItems": least, **bounds}]}


def _texts(item: Schema | None = None, *, least: int = 0, **bounds: Any) -> Schema:
    """One text or a list of different ones."""
    return _one_or_some(item or {"type": "string", "minLength": 1}, least=least, uniqueItems=True, **bounds)


def _lists() -> Schema:
    values = {"type": "array", "maxItems": MAX_LIST_VALUES, "items": _SCALAR}
    return {
        "type": "object",
        "additionalProperties": values,
        "description": "values by name; '%name%' with |expand stands for them",
    }


# -- rules -------------------------------------------------------------------------------------------


def _rule(kinds: MappingType[str, EventKind]) -> Schema:
    rule = _object(
        RULE_KEYS,
        ("id", "title", "level"),
        id={"type": "string", "pattern": r"^\s*[A-Za-z0-9][A-Za-z0-9._-]{0,127}\s*$"},
        name={**_TEXT, "maxLength": 128},
        title={**_TEXT, "maxLength": 256},
        description={**_TEXT, "maxLength": 4096},
        level={"enum": list(LEVELS)},
        tags=_texts({"type": "string", "pattern": r"^[a-z0-9_-]+(\.[a-z0-9_.-]+)?$"}),
        event=_texts({"enum": sorted(kinds)}, least=1),
        detection=_ref("detection"),
        correlation=_ref("correlation"),
        sequence=_ref("sequence"),
        absent=_ref("absent"),
        sequential_test=_ref("sequential_test"),
        suppress=_ref("duration"),
        covered_by=_texts(maxItems=MAX_COVERS),
        block=_block(),
        falsepositives=_texts(),
        tests={"type": "array", "maxItems": MAX_TESTS, "items": _ref("test")},
    )
    rule["allOf"] = [
        {"anyOf": [{"required": ["event", "detection"]}, _names_rules()]},
        *({"not": {"required": list(pair)}} for pair in combinations(BLOCKS, 2)),
        *map(_looks_at, kinds.values()),
    ]
    return rule


def _names_rules() -> Schema:
    """A rule that names others has no need of a detection, but half of one is a mistake."""
    correlation = {"required": ["correlation"], "properties": {"correlation": {"required": ["rules"]}}}
    return {
        "anyOf": [{"required": ["absent"]}, {"required": ["sequential_test"]}, correlation],
        "not": {"anyOf": [{"required": ["event"]}, {"required": ["detection"]}]},
    }


def _looks_at(kind: EventKind) -> Schema:
    """A rule that looks at this kind tests fields that the kind has."""
    this = {"const": kind.name}
    return {
        "if": {
            "required": ["event"],
            "properties": {"event": {"anyOf": [this, {"type": "array", "contains": this}]}},
        },
        "then": {"properties": {"detection": _ref(f"detection of {kind.name}")}},
    }


# -- detection ---------------------------------------------------------------------------------------


def _detection(mapping: Schema) -> Schema:
    """A condition and selections: a mapping, a list of mappings (any of them), or keywords."""
    keyword = {"type": "string"}
    return {
        "type": "object",
        "required": ["condition"],
        "minProperties": 2,
        "properties": {"condition": _TEXT},
        "additionalProperties": {
            "anyOf": [
                mapping,
                {"type": "array", "minItems": 1, "items": mapping},
                _one_or_some(keyword, least=1),
            ]
        },
    }


def _any_fields() -> Schema:
    return {"type": "object", "minProperties": 1, "additionalProperties": _ref("values")}


def _fields(kind: EventKind) -> Schema:
    """Tests of the fields of one kind, with modifiers; without a field the values are keywords."""
    names = "|".join(re.escape(field.name) for field in kind.fields)
    modifiers = f"(\\|({'|'.join(sorted(MODIFIERS - TIME_PARTS.keys()))}))"
    times = f"{TIMESTAMP}(\\|({'|'.join(sorted(MODIFIERS))}))+"
    return {
        "type": "object",
        "minProperties": 1,
        "properties": {field.name: _plain_values(family(field.type)) for field in kind.fields},
        "patternProperties": {f"^(({names}){modifiers}+|{times}|{modifiers}*)$": _ref("values")},
        "additionalProperties": False,
    }


def _plain_values(field_family: str) -> Schema:
    """What a field is compared with when there is no modifier."""
    types = {"number": "integer", "truth": "boolean"}
    return _one_or_some({"type": [types.get(field_family, "string"), "null"]}, least=1)


# -- correlation -------------------------------------------------------------------------------------


def _correlation() -> Schema:
    correlation = _object(
        CORRELATION_KEYS,
        ("type", "timespan"),
        type={"enum": list(TYPES)},
        rules=_one_or_some(_TEXT, least=1, maxItems=MAX_STEPS),  # what is ordered may name one twice
        field=_ref("field"),
        group_by=_group_by(),
        aliases=_aliases(),
        timespan=_ref("duration"),
        condition=_condition(),
        generate={"type": "boolean"},
    )
    in_condition = {"required": ["condition"], "properties": {"condition": {"required": ["field"]}}}
    has_field = {"anyOf": [{"required": ["field"]}, in_condition]}
    correlation["allOf"] = [
        _when(["temporal", "temporal_ordered"], {"required": ["rules"]}, {"required": ["condition"]}),
        _when(sorted(VALUE_TYPES), has_field, {"not": has_field}),
        _when([*sorted(COUNT_TYPES), "temporal_ordered"], _values(_COUNT), _values(_NUMBER)),
        _when(["value_percentile"], _percentile(needed=True), _percentile(needed=False)),
    ]
    return correlation


def _when(types: list[str], then: Schema, otherwise: Schema) -> Schema:
    """What holds for these types of correlation, and what for the others."""
    return {
        "if": {"required": ["type"], "properties": {"type": {"enum": types}}},
        "then": then,
        "else": otherwise,
    }


def _condition() -> Schema:
    condition = _object(CONDITION_KEYS, (), field=_ref("field"))
    condition["properties"]["percentile"] = {"type": "integer", "minimum": 0, "maximum": 100}
    condition["oneOf"] = [{"required": [operator]} for operator in OPERATORS]
    return condition


def _values(value: Schema) -> Schema:
    """The condition compares with such a value."""
    return {"properties": {"condition": {"properties": dict.fromkeys(OPERATORS, value)}}}


def _percentile(*, needed: bool) -> Schema:
    has = {"required": ["percentile"]}
    return {"properties": {"condition": has if needed else {"not": has}}}


def _field_name(kinds: MappingType[str, EventKind]) -> Schema:
    """The fields of the kinds, for completion; any other may be an alias, or one of a rule below."""
    names = sorted({field.name for kind in kinds.values() for field in kind.fields})
    return {"anyOf": [{"enum": names}, {"type": "string", "minLength": 1}]}


def _group_by() -> Schema:
    return _texts(_ref("field"), maxItems=MAX_GROUP_BY)


def _aliases() -> Schema:
    return {
        "type": "object",
        "additionalProperties": {"type": "object", "additionalProperties": _ref("field")},
        "description": "a group-by field that is called differently in each rule: {name: {rule: field}}",
    }


def _sequence() -> Schema:
    step = _object(
        ("selection", "count"),
        ("selection",),
        selection=_TEXT,
        count={"type": "integer", "minimum": 1, "maximum": MAX_THRESHOLD},
    )
    return _object(
        SEQUENCE_KEYS,
        ("timespan", "steps"),
        group_by=_group_by(),
        timespan=_ref("duration"),
        steps={"type": "array", "minItems": 2, "maxItems": MAX_STEPS, "items": step},
    )


def _block() -> Schema:
    return _object(
        BLOCK_KEYS, ("field", "for"), field=_TEXT, spoofable={"const": "allow"}, **{"for": _ref("duration")}
    )


def _absent() -> Schema:
    return _object(
        ABSENT_KEYS,
        ("timespan", "first", "then"),
        group_by=_group_by(),
        aliases=_aliases(),
        timespan=_ref("duration"),
        first=_TEXT,
        then=_TEXT,
        generate={"type": "boolean"},
    )


def _sequential_test() -> Schema:
    chance = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
    return _object(
        SEQUENTIAL_KEYS,
        SEQUENTIAL_NEEDED,
        group_by=_group_by(),
        field=_texts(_ref("field"), least=1, maxItems=MAX_GROUP_BY),
        timespan=_ref("duration"),
        wait=_ref("duration"),
        **dict.fromkeys(CONTACT_PARTS, _TEXT),
        **dict.fromkeys(ODDS, chance),
    )


# -- tests -------------------------------------------------------------------------------------------


def _test(kinds: MappingType[str, EventKind]) -> Schema:
    event = {
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"enum": sorted(kinds)}},
        "allOf": [
            {
                "if": {"properties": {"kind": {"const": kind.name}}, "required": ["kind"]},
                "then": _ref(f"event {kind.name}"),
            }
            for kind in kinds.values()
        ],
    }
    return _object(
        TEST_KEYS,
        ("name", "events", "alerts"),
        at={"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"},
        name={**_TEXT, "maxLength": 256},
        events={"type": "array", "maxItems": MAX_EVENTS, "items": event},
        alerts={"type": "integer", "minimum": 0, "maximum": MAX_EVENTS},
    )


def _event(kind: EventKind) -> Schema:
    """An event of a test: the fields of its kind, and how often and when it comes."""
    event = _object(
        EVENT_KEYS,
        ("kind",),
        kind={"type": "string"},
        every=_ref("duration"),
        repeat={"type": "integer", "minimum": 1, "maximum": MAX_EVENTS},
        wait=_ref("duration"),
    )
    event["properties"].update({field.name: _value(field.type) for field in kind.fields})
    return event


def _value(field_type: str) -> Schema:
    if field_type == "ts":
        return _ref("duration")
    if field_type not in INTEGER_BOUNDS:
        return {"type": "boolean" if family(field_type) == "truth" else "string"}
    low, high = INTEGER_BOUNDS[field_type]
    number = {"type": "integer", "minimum": low, "maximum": high}
    return {"anyOf": [number, {"type": "string", "pattern": _RANGE, "description": "20..24: one event each"}]}
