"""Lines for receivers with a size limit: facts are left out in a fixed order until the line fits.

What goes first is what is long and least missed (evidence, command lines); ids, addresses, the rule and
the level are never left out. Cutting the finished line instead would leave a half value, and a receiver
that cuts by itself turns the rest into a second, bogus message (measured with rsyslog 8.2302 over TCP).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from kwsiem.alert import nest
from kwsiem.formats.facts import fact
from kwsiem.text import clean

#: Shortened from first to last; a number is the most code points or list items that are kept.
STEPS: Final[tuple[tuple[str, int], ...]] = (
    ("kwsiem.alert.evidence", 0),
    ("kwsiem.digest.ids", 100),
    ("kwsiem.digest.ids", 0),
    ("kwsiem.alert.falsepositives", 0),
    ("rule.description", 0),
    ("process.args", 0),
    ("process.parent", 0),
    ("process.command_line", 128),
    ("message", 256),
    ("event.reason", 256),
    ("kwsiem.alert.values", 10),
    ("kwsiem.event", 0),
    ("tags", 0),
    ("user_agent", 0),
    ("url.original", 128),
    ("url.query", 0),
    ("url.path", 0),
    ("http", 0),
    ("error", 0),
    ("dns", 0),
    ("file.path", 128),
    ("process.command_line", 0),
    ("kwsiem.digest.rules", 5),
    ("kwsiem.digest.sources", 5),
    ("related", 0),
    ("threat.tactic", 0),
    ("kwsiem.alert.values", 0),
    ("event.reason", 0),
)
#: The last resort: nothing but these, the texts among them at most _CORE_TEXT code points.
CORE: Final = (
    "@timestamp",
    "ecs.version",
    "event.kind",
    "event.category",
    "event.type",
    "event.severity",
    "event.id",
    "rule.id",
    "rule.name",
    "host.name",
    "source.ip",
    "source.address",
    "source.port",
    "destination.ip",
    "destination.port",
    "network.transport",
    "user.name",
    "threat.technique.id",
    "observer.product",
    "observer.version",
    "kwsiem.alert.incident_id",
    "kwsiem.alert.state",
    "kwsiem.alert.count",
    "kwsiem.alert.level",
    "message",
)
_CORE_TEXT: Final = 48
#: Left out of that for the wordiest formats: what the rule's id stands for anyway.
_SPARE: Final = frozenset({"message", "threat.technique.id"})


def fit(
    render: Callable[[Mapping[str, Any]], str], document: Mapping[str, Any], max_bytes: int
) -> str | None:
    """The line of a document in at most ``max_bytes`` bytes of UTF-8, or None when that cannot be.

    The document itself stays as it is.
    """
    line = render(document)
    reduced = document
    for name, keep in STEPS:
        if len(line.encode()) <= max_bytes:
            return line
        value = fact(reduced, name)
        if value is not None:
            reduced = _replaced(reduced, name.split("."), _shortened(value, keep))
            line = render(reduced)
    for names in (CORE, tuple(name for name in CORE if name not in _SPARE)):
        if len(line.encode()) > max_bytes:
            line = render(_core(document, names))
    return line if len(line.encode()) <= max_bytes else None


def _core(document: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    found = {name: fact(document, name) for name in names}
    if found["source.ip"]:
        del found["source.address"]
    return nest({name: _shortened(value, _CORE_TEXT) for name, value in found.items() if value is not None})


def _shortened(value: Any, keep: int) -> Any:
    if not keep:
        return None
    if isinstance(value, str):
        return clean(value, keep)
    return value[:keep] if isinstance(value, list) else value


def _replaced(node: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """A copy of a document with one value exchanged, or taken out when it is None."""
    copy = dict(node)
    name, *rest = path
    new = _replaced(copy[name], rest, value) if rest else value
    if new is None or new == {}:
        copy.pop(name, None)
    else:
        copy[name] = new
    return copy
