"""Reading a document: one value by its dotted name, whatever is missing on the way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from kwsiem.text import clean, cut_bytes

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{3})Z\Z", re.ASCII)


def fact(document: Mapping[str, Any], name: str) -> Any:
    """The value at a dotted name of a nested document, or None."""
    node: Any = document
    for part in name.split("."):
        if not isinstance(node, (dict, Mapping)):  # dict first: the check of an abstract class is slow
            return None
        node = node.get(part)
    return node


def texts(document: Mapping[str, Any], name: str) -> list[str]:
    """The list of texts at a dotted name, empty when there is none."""
    value = fact(document, name)
    return [str(item) for item in value] if isinstance(value, list) else []


def whole(value: Any, top: int) -> int | None:
    """A whole number clamped to 0 … top, or None when it is none."""
    return max(0, min(value, top)) if type(value) is int else None


def line_text(value: Any, most_bytes: int) -> str:
    """A value as text on one line, cut to so many bytes of UTF-8, without spaces at its ends.

    Cutting in bytes satisfies both readings of a format's length; no code point is cut in half.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        return cut_bytes(str(value), most_bytes).strip()
    return cut_bytes(clean(value, max(1, len(value))), most_bytes).strip()


def milliseconds(value: Any) -> int | None:
    """Milliseconds since 1970 of a document's time, or None when it is no time."""
    found = _TIME.match(value) if isinstance(value, str) else None
    if not found:
        return None
    try:
        moment = datetime.fromisoformat(found[1]).replace(tzinfo=timezone.utc)
    except ValueError:
        return None
    return (moment - _EPOCH) // timedelta(milliseconds=1) + int(found[2])


def attack_ids(document: Mapping[str, Any]) -> list[str]:
    """The ids of ATT&CK techniques, then of sub-techniques."""
    return texts(document, "threat.technique.id") + texts(document, "threat.technique.subtechnique.id")


def port(document: Mapping[str, Any], side: str) -> int | None:
    """The port of a side; None when it is one of many counted values, which says nothing."""
    number = whole(fact(document, f"{side}.port"), 65535)
    values = texts(document, "kwsiem.alert.values")
    return None if len(values) > 1 and str(number) in values else number


def labels(document: Mapping[str, Any]) -> dict[str, str]:
    """The operator's constant fields (ECS ``labels``)."""
    found = fact(document, "labels")
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, Mapping) else {}
