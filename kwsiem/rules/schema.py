"""The JSON Schema of ``rules.yaml``, made from the loader's own tables, for editors that complete and check.

It accepts whatever the loader accepts. The loader refuses more: what needs two places of the file (a
selection that a condition names, a list that ``expand`` names), a regular expression, a test that fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from collections.abc import Mapping as MappingType
from typing import Any, Final

from kwsiem.alert import LEVELS
from kwsiem.event import INTEGER_BOUNDS, EventKind
from kwsiem.rules.correlation import OPERATORS, TYPES
from kwsiem.rules.detection import MODIFIERS, family
from kwsiem.rules.load import FILE_KEYS, FILE_VERSION, MAX_LIST_VALUES, RULE_KEYS
from kwsiem.rules.model import MAX_GROUP_BY, MAX_RULES, MAX_STEPS, MAX_THRESHOLD
from kwsiem.rules.testing import EVENT_KEYS, MAX_EVENTS, MAX_TESTS, TEST_KEYS

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
            "test": _test(kinds),
            "values": _one_or_some(_SCALAR, least=1),
            "duration": _DURATION,
            "field": {"enum": sorted({field.name for kind in kinds.values() for field in kind.fields})},
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


def _texts(item: Schema | None = None, **bounds: Any) -> Schema:
    """One text or a list of different ones."""
    return _one_or_some(item or {"type": "string", "minLength": 1}, uniqueItems=True, **bounds)


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
        ("id", "title", "level", "event", "detection"),
        id={"type": "string", "pattern": r"^\s*[A-Za-z0-9][A-Za-z0-9._-]{0,127}\s*$"},
        title={**_TEXT, "maxLength": 256},
        description={**_TEXT, "maxLength": 4096},
        level={"enum": list(LEVELS)},
        tags=_texts({"type": "string", "pattern": r"^[a-z0-9_-]+(\.[a-z0-9_.-]+)?$"}),
        event=_texts({"enum": sorted(kinds)}),
        detection=_ref("detection"),
        correlation=_ref("correlation"),
        sequence=_ref("sequence"),
        suppress=_ref("duration"),
        block=False,  # type: ignore[arg-type] # a schema too: nothing is right
        falsepositives=_texts(),
        tests={"type": "array", "maxItems": MAX_TESTS, "items": _ref("test")},
    )
    rule["not"] = {"required": ["correlation", "sequence"]}
    rule["allOf"] = [_looks_at(kind) for kind in kinds.values()]
    return rule


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
    modifiers = f"(\\|({'|'.join(sorted(MODIFIERS))}))"
    return {
        "type": "object",
        "minProperties": 1,
        "properties": {field.name: _plain_values(family(field.type)) for field in kind.fields},
        "patternProperties": {f"^(({names}){modifiers}+|{modifiers}*)$": _ref("values")},
        "additionalProperties": False,
    }


def _plain_values(field_family: str) -> Schema:
    """What a field is compared with when there is no modifier."""
    types = {"number": "integer", "truth": "boolean"}
    return _one_or_some({"type": [types.get(field_family, "string"), "null"]}, least=1)


# -- correlation -------------------------------------------------------------------------------------


def _correlation() -> Schema:
    value = {"type": "integer", "minimum": 0, "maximum": MAX_THRESHOLD}
    return {
        **_object(
            ("type", "field", "group-by", "timespan", "condition"),
            ("type", "timespan", "condition"),
            type={"enum": sorted(TYPES)},
            field=_ref("field"),
            group_by=_group_by(),
            timespan=_ref("duration"),
            condition=_object(OPERATORS, (), **dict.fromkeys(OPERATORS, value)),
        ),
    }


def _group_by() -> Schema:
    return _texts(_ref("field"), maxItems=MAX_GROUP_BY)


def _sequence() -> Schema:
    step = _object(
        ("selection", "count"),
        ("selection",),
        selection=_TEXT,
        count={"type": "integer", "minimum": 1, "maximum": MAX_THRESHOLD},
    )
    return _object(
        ("group-by", "timespan", "steps"),
        ("timespan", "steps"),
        group_by=_group_by(),
        timespan=_ref("duration"),
        steps={"type": "array", "minItems": 2, "maxItems": MAX_STEPS, "items": step},
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
        TEST_KEYS,
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
    if field_type not in INTEGER_BOUNDS:
        return {"type": "boolean" if family(field_type) == "truth" else "string"}
    low, high = INTEGER_BOUNDS[field_type]
    number = {"type": "integer", "minimum": low, "maximum": high}
    return {"anyOf": [number, {"type": "string", "pattern": _RANGE, "description": "20..24: one event each"}]}
