"""CEF: ArcSight's Common Event Format, version 0 ("CEF Implementation Standard", document version 27).

Header and extension have two different escapings; text is cut (in bytes of UTF-8, which satisfies both
readings of the standard's "length") before it is escaped, so that no escape is ever cut in half. No empty
value, no empty header field: pycef and jc drop the event, liblognorm the line (measured). Version 0 because
liblognorm takes no other; it has no IPv6 in ``src`` and ``dst``, so these go to ``c6a2`` and ``c6a3``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from kwsiem.formats.facts import fact, texts
from kwsiem.text import clean, cut_bytes

_INT: Final = 2**31 - 1
_LONG: Final = 2**63 - 1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{3})Z\Z", re.ASCII)
#: Text in the extension: key -> (dotted name, most bytes). The order of the line is that of _extension.
_TEXTS: Final[Mapping[str, tuple[str, int]]] = {
    "dvchost": ("host.name", 100),
    "externalId": ("event.id", 40),
    "app": ("network.protocol", 31),
    "outcome": ("event.outcome", 63),
    "destinationServiceName": ("service.name", 1023),
    "deviceInboundInterface": ("observer.ingress.interface.name", 128),
    "requestMethod": ("http.request.method", 1023),
    "request": ("url.original", 1023),
    "requestClientApplication": ("user_agent.original", 1023),
    "filePath": ("file.path", 1023),
    "fname": ("file.name", 1023),
    "reason": ("event.reason", 1023),
}
#: The six text slots mean the same in every alert: slot -> (label, dotted name, most bytes).
_SLOTS: Final[Mapping[str, tuple[str, str, int]]] = {
    "cs1": ("RuleId", "rule.id", 1023),
    "cs2": ("MitreTechnique", "", 1023),
    "cs3": ("SampleValues", "", 1023),
    "cs4": ("CommandLine", "process.command_line", 4000),
    "cs5": ("IncidentId", "kwsiem.alert.incident_id", 40),
    "cs6": ("IncidentState", "kwsiem.alert.state", 63),
}


def render(document: Mapping[str, Any]) -> str:
    """``CEF:0|vendor|product|version|class|name|severity|extension`` of a document, on one line."""
    header = (
        _header(fact(document, "observer.vendor"), 63, "KernelWatch"),
        _header(fact(document, "observer.product"), 63, "kwsiem"),
        _header(fact(document, "observer.version"), 31, "0"),
        _header(fact(document, "rule.id"), 1023, "unknown"),
        _header(fact(document, "rule.name"), 512, "alert"),
        str(max(0, min(_whole(fact(document, "event.severity")) or 0, 10))),
    )
    pairs = _extension(document)
    return f"CEF:0|{'|'.join(header)}|{' '.join(f'{key}={value}' for key, value in pairs.items())}"


def _extension(document: Mapping[str, Any]) -> dict[str, str]:
    """Key and escaped value in the order of the line; only what the alert has."""
    found = {key: _value(fact(document, name), limit) for key, (name, limit) in _TEXTS.items()}
    pairs: dict[str, str | None] = {
        "rt": _milliseconds(fact(document, "@timestamp")),
        "start": _milliseconds(fact(document, "event.start")),
        "end": _milliseconds(fact(document, "event.end")),
        "type": "2",
        "dvchost": found.pop("dvchost"),
        "externalId": found.pop("externalId"),
        "cat": _value("/" + "/".join(texts(document, "event.category")), 1023),
        **_endpoints(document),
        **_actors(document),
        "cnt": _number(fact(document, "kwsiem.alert.count"), _INT),
        "act": "detected",
        **found,
        **_slots(document),
        "msg": _value(fact(document, "message"), 1023),
    }
    return {key: value for key, value in pairs.items() if value}


def _endpoints(document: Mapping[str, Any]) -> dict[str, str | None]:
    """Addresses and ports; a port that is one of many counted ones is left out."""
    values = texts(document, "kwsiem.alert.values")
    pairs: dict[str, str | None] = {}
    sides = (("source", "src", "spt", "shost", "c6a2"), ("destination", "dst", "dpt", "dhost", "c6a3"))
    for side, address_key, port_key, host_key, slot in sides:
        ip = _value(fact(document, f"{side}.ip"), 45)
        if ip and ":" in ip:
            pairs[slot] = ip
            pairs[f"{slot}Label"] = f"{side.capitalize()} IPv6 Address"
        elif ip:
            pairs[address_key] = ip
        else:
            pairs[host_key] = _value(fact(document, f"{side}.address"), 1023)
        port = _number(fact(document, f"{side}.port"), 65535)
        pairs[port_key] = None if len(values) > 1 and port in values else port
    transport = fact(document, "network.transport")
    pairs["proto"] = _value(transport.upper() if isinstance(transport, str) else None, 31)
    return pairs


def _actors(document: Mapping[str, Any]) -> dict[str, str | None]:
    """User and process: the attacked ones (d…) when somebody came from outside, else the acting ones (s…)."""
    remote = "authentication" in texts(document, "event.category") or fact(document, "source.address")
    side = "d" if remote else "s"
    return {
        f"{side}user": _value(fact(document, "user.name"), 1023),
        f"{side}uid": _value(fact(document, "user.id"), 1023),
        f"{side}proc": _value(fact(document, "process.name"), 1023),
        f"{side}pid": _number(fact(document, "process.pid"), _INT),
    }


def _slots(document: Mapping[str, Any]) -> dict[str, str | None]:
    techniques = texts(document, "threat.technique.id") + texts(document, "threat.technique.subtechnique.id")
    lists = {"cs2": ",".join(techniques), "cs3": ",".join(texts(document, "kwsiem.alert.values"))}
    pairs: dict[str, str | None] = {}
    for slot, (label, name, limit) in _SLOTS.items():
        value = _value(lists[slot] if slot in lists else fact(document, name), limit)
        if value:
            pairs[slot] = value
            pairs[f"{slot}Label"] = label
    count = _number(fact(document, "kwsiem.alert.count"), _LONG)
    if count:
        pairs["cn1"] = count
        pairs["cn1Label"] = "EventCount"
    return pairs


def _header(value: Any, limit: int, default: str) -> str:
    """A header field: one line, cut to so many bytes, then backslash and pipe escaped."""
    text = cut_bytes(_one_line(value), limit).strip() or default
    return text.replace("\\", "\\\\").replace("|", "\\|")


def _value(value: Any, limit: int) -> str | None:
    """An extension value: cut to so many bytes, then backslash and equals escaped; None when empty.

    Spaces at both ends go: a parser takes them for the gap between two pairs. Line ends would be escaped
    as backslash-n; a document has none, and should there be one it becomes a space.
    """
    text = cut_bytes(_one_line(value), limit).strip()
    return text.replace("\\", "\\\\").replace("=", "\\=") or None


def _one_line(value: Any) -> str:
    if not isinstance(value, str):
        return "" if value is None else str(value)
    return clean(value, max(1, len(value)))


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any, top: int) -> str | None:
    """A number clamped to the key's type, or None."""
    number = _whole(value)
    return None if number is None else str(max(0, min(number, top)))


def _milliseconds(value: Any) -> str | None:
    """Milliseconds since 1970 of a document's time; CEF reads a 10-digit value as January 1970."""
    found = _TIME.match(value) if isinstance(value, str) else None
    if not found:
        return None
    try:
        moment = datetime.fromisoformat(found[1]).replace(tzinfo=timezone.utc)
    except ValueError:
        return None
    return str((moment - _EPOCH) // timedelta(milliseconds=1) + int(found[2]))
