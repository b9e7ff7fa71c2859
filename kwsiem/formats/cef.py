"""CEF: ArcSight's Common Event Format ("CEF Implementation Standard", document version 27).

Header and extension have two different escapings; text is cut (in bytes of UTF-8, which satisfies both
readings of the standard's "length") before it is escaped, so that no escape is ever cut in half. No empty
value, no empty header field: pycef and jc drop the event, liblognorm the line (measured).

Version 0 is the default because liblognorm takes no other; it has no IPv6 in ``src`` and ``dst``, so these
go to ``c6a2`` and ``c6a3``. Version 1 has them in ``src`` and ``dst``, 64 bits in ``in`` and ``out``, and
the keys "since 1.2".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kwsiem.formats.facts import attack_ids, fact, labels, line_text, milliseconds, port, texts, whole
from kwsiem.formats.fields import ACTIONS, BY_NAME, DETECTED, FACTS, LONG, TEXT, Fact, Key

#: The standard asks for single words that are not in its dictionary and suggests vendor, product and name.
LABEL_PREFIX: Final = "KernelWatchKwsiem"
#: The order of the line. Every slot is followed by its label.
ORDER: Final = (
    "rt", "start", "end", "reportedDuration", "type", "dvchost", "externalId", "cat", "src", "c6a2",
    "shost", "spt", "dst", "c6a3", "dhost", "dpt", "proto", "in", "out", "deviceDirection", "duser",
    "suser", "duid", "suid", "dproc", "sproc", "dpid", "spid", "cnt", "act", "app", "outcome",
    "destinationServiceName", "deviceInboundInterface", "requestMethod", "request",
    "requestClientApplication", "filePath", "fname", "reason", "frameworkName", "threatAttackID", "cs1",
    "cs2", "cs3", "cs4", "cs5", "cs6", "cn1", "cn2",
)  # fmt: skip
#: The last key; what an operator added stands before it.
LAST: Final = "msg"

_KEYS: Final[Mapping[str, tuple[Key, Fact]]] = {
    key.name: (key, row) for row in FACTS for key in row.cef if key.name != "(header)"
}
_PLAIN: Final = tuple((key, row) for key, row in _KEYS.values() if not key.computed)
#: Most bytes of a value. A number has been clamped to its type instead, and is never cut.
_LIMITS: Final[Mapping[str, int]] = {
    name: key.limit for name, (key, row) in _KEYS.items() if row.type not in {"number", "port", "time"}
}
_LABELS: Final[Mapping[str, Mapping[str, str]]] = {
    name: {f"{name}Label": key.label} for name, (key, _) in _KEYS.items() if key.label
}
_HEADER: Final = (
    ("observer.vendor", "KernelWatch"),
    ("observer.product", "kwsiem"),
    ("observer.version", "0"),
    ("rule.id", "unknown"),
    ("rule.name", "alert"),
)
_INBOUND: Final = frozenset({"ingress", "inbound"})
_OUTBOUND: Final = frozenset({"egress", "outbound"})


def render(document: Mapping[str, Any], version: int = 0) -> str:
    """``CEF:0|vendor|product|version|class|name|severity|extension`` of a document, on one line."""
    header = [_header(fact(document, name), BY_NAME[name].cef[0].limit, other) for name, other in _HEADER]
    severity = whole(fact(document, "event.severity"), 10) or 0
    pairs = _extension(document, version)
    extension = " ".join(f"{key}={value}" for key, value in pairs.items())
    return f"CEF:{version}|{'|'.join(header)}|{severity}|{extension}"


def label_key(name: str) -> str:
    """The key of an operator's own field: ``data_center`` is ``KernelWatchKwsiemDataCenter``."""
    return LABEL_PREFIX + "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def _extension(document: Mapping[str, Any], version: int) -> dict[str, str]:
    """Key and escaped value in the order of the line; only what the alert has."""
    found: dict[str, Any] = {key.name: _plain(fact(document, row.name), key, row) for key, row in _PLAIN}
    found |= _addresses(document, version)
    found |= _actors(document)
    found |= _flow(document, version)
    found |= _whats(document)
    if version:
        found |= _since_1_2(document)
    pairs: dict[str, str] = {}
    for name in ORDER:
        value = _value(found.get(name), _LIMITS.get(name, TEXT))
        if value:
            pairs[name] = value
            pairs |= _LABELS.get(name, {})
    pairs |= {label_key(name): value for name, text in labels(document).items() if (value := _value(text))}
    message = _value(found.get(LAST))
    return {**pairs, LAST: message} if message else pairs


def _plain(value: Any, key: Key, row: Fact) -> Any:
    if row.type == "time":
        return milliseconds(value)
    if row.type == "number":
        return whole(value, key.limit)
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _addresses(document: Mapping[str, Any], version: int) -> dict[str, Any]:
    """Addresses and ports; a port that is one of many counted ones is left out."""
    found: dict[str, Any] = {}
    sides = (("source", "src", "spt", "shost", "c6a2"), ("destination", "dst", "dpt", "dhost", "c6a3"))
    for side, address_key, port_key, host_key, slot in sides:
        ip = line_text(fact(document, f"{side}.ip"), 45)
        if ip:
            found[slot if ":" in ip and not version else address_key] = ip
        else:
            found[host_key] = fact(document, f"{side}.address")
        found[port_key] = port(document, side)
    return found


def _actors(document: Mapping[str, Any]) -> dict[str, Any]:
    """User and process: the attacked ones (d…) when somebody came from outside, else the acting ones (s…)."""
    remote = "authentication" in texts(document, "event.category") or fact(document, "source.address")
    side = "d" if remote else "s"
    return {
        f"{side}user": fact(document, "user.name"),
        f"{side}uid": fact(document, "user.id"),
        f"{side}proc": fact(document, "process.name"),
        f"{side}pid": whole(fact(document, "process.pid"), _KEYS["dpid"][0].limit),
    }


def _flow(document: Mapping[str, Any], version: int) -> dict[str, Any]:
    """The connection: ``in`` is from source to destination; bytes have 32 bits in version 0."""
    transport = fact(document, "network.transport")
    direction = fact(document, "network.direction")
    return {
        "proto": transport.upper() if isinstance(transport, str) else None,
        "in": whole(fact(document, "source.bytes"), LONG if version else _KEYS["in"][0].limit),
        "out": whole(fact(document, "destination.bytes"), LONG if version else _KEYS["out"][0].limit),
        "deviceDirection": 0 if direction in _INBOUND else 1 if direction in _OUTBOUND else None,
    }


def _whats(document: Mapping[str, Any]) -> dict[str, Any]:
    """Type 2 is a correlated event."""
    decision = fact(document, "kwsiem.alert.block.decision")
    return {
        "type": 2,
        "cat": "/" + "/".join(texts(document, "event.category")),
        "act": (ACTIONS.get(decision, DETECTED) if isinstance(decision, str) else DETECTED).word,
        "cs2": ",".join(attack_ids(document)),
    }


def _since_1_2(document: Mapping[str, Any]) -> dict[str, Any]:
    techniques = attack_ids(document)
    duration_ns = whole(fact(document, "event.duration"), LONG)
    return {
        "frameworkName": "MITRE ATT&CK" if techniques else None,
        "threatAttackID": techniques[-1] if techniques else None,
        "reportedDuration": None if duration_ns is None else duration_ns // 1_000_000,
    }


def _header(value: Any, limit: int, default: str) -> str:
    """A header field: one line, cut to so many bytes, then backslash and pipe escaped."""
    text = line_text(value, limit) or default
    return text.replace("\\", "\\\\").replace("|", "\\|")


def _value(value: Any, limit: int = TEXT) -> str | None:
    """An extension value: cut to so many bytes, then backslash and equals escaped; None when empty.

    Spaces at both ends go: a parser takes them for the gap between two pairs. Line ends would be escaped
    as backslash-n; a document has none, and should there be one it becomes a space.
    """
    return line_text(value, limit).replace("\\", "\\\\").replace("=", "\\=") or None
