"""json: the facts that a person or a script asks for first, as one flat JSON object with fixed key order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from kwsiem.formats.facts import fact

#: Key of the line -> dotted name in the document; own keys are short, ECS facts keep their ECS names.
KEYS: Final[Mapping[str, str]] = {
    "time": "@timestamp",
    "host": "host.name",
    "id": "event.id",
    "incident": "kwsiem.alert.incident_id",
    "state": "kwsiem.alert.state",
    "level": "kwsiem.alert.level",
    "severity": "event.severity",
    "rule": "rule.id",
    "title": "rule.name",
    "reason": "event.reason",
    "count": "kwsiem.alert.count",
    "start": "event.start",
    "end": "event.end",
    "source.ip": "source.ip",
    "source.address": "source.address",
    "source.port": "source.port",
    "destination.ip": "destination.ip",
    "destination.address": "destination.address",
    "destination.port": "destination.port",
    "network.transport": "network.transport",
    "user.name": "user.name",
    "service.name": "service.name",
    "process.pid": "process.pid",
    "process.name": "process.name",
    "process.executable": "process.executable",
    "process.command_line": "process.command_line",
    "file.path": "file.path",
    "event.outcome": "event.outcome",
    "techniques": "threat.technique.id",
    "values": "kwsiem.alert.values",
}
_ENCODER: Final = msgspec.json.Encoder()


def render(document: Mapping[str, Any]) -> str:
    """One flat JSON object on one line; facts that the alert does not have are absent."""
    flat = {key: value for key, name in KEYS.items() if (value := fact(document, name)) is not None}
    for side in ("source", "destination"):
        if flat.get(f"{side}.address") == flat.get(f"{side}.ip"):
            flat.pop(f"{side}.address", None)
    return _ENCODER.encode(flat).decode()
