"""GELF 1.1: Graylog's Extended Log Format, one JSON object of strings and numbers.

Lists are texts joined by commas; names have underscores, since dots turn into conflicting fields
downstream. ``level`` is always sent: without it Graylog takes 1 (alert). ``_id`` is Graylog's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from kwsiem.formats.facts import fact, labels, milliseconds
from kwsiem.formats.fields import FACTS, severity

VERSION: Final = "1.1"
#: Additional field -> the fact it carries.
KEYS: Final[Mapping[str, str]] = {row.gelf: row.name for row in FACTS if row.gelf.startswith("_")}
#: Names that Graylog has for itself, or that a field of ours would hide.
RESERVED: Final = frozenset(
    {"_id", "_source", "_message", "_full_message", "_timestamp", "_host", "_level", "_version", "_streams"}
)
_ENCODER: Final = msgspec.json.Encoder()


def render(document: Mapping[str, Any]) -> str:
    """One JSON object on one line; the mandatory fields have a text whatever the document lacks."""
    time_ms = milliseconds(fact(document, "@timestamp"))
    line: dict[str, Any] = {
        "version": VERSION,
        "host": _text(fact(document, "host.name")) or "unknown",
        "short_message": _text(fact(document, "message")) or "alert",
        "timestamp": None if time_ms is None else time_ms / 1000,
        "level": severity(fact(document, "event.severity")).syslog,
        **{key: _plain(fact(document, name)) for key, name in KEYS.items()},
    }
    for side in ("source", "destination"):
        if line[f"_{side}_address"] == line[f"_{side}_ip"]:
            line[f"_{side}_address"] = None
    line |= {f"_{name}": value for name, value in labels(document).items()}
    return _ENCODER.encode({key: value for key, value in line.items() if value not in (None, "")}).decode()


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _plain(value: Any) -> str | int | float | None:
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, (str, int, float)) else None
