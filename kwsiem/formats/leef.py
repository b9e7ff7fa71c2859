"""LEEF: QRadar's Log Event Extended Format, version 2.0 with ``^`` between attributes, or 1.0 with TAB.

LEEF has no escape at all: what separates (the delimiter; in the header the pipe) becomes a space in every
value, as do line ends. An equals sign in a value is harmless, only the first one of an attribute splits.
Version 2.0 is the default because rsyslog rewrites TAB to ``#011`` on reception (measured). A key stands
once; keys are letters and digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kwsiem.formats.facts import attack_ids, fact, labels, line_text, milliseconds, port, texts, whole
from kwsiem.formats.fields import ACTIONS, BY_NAME, DETECTED, FACTS, Fact, Key

#: The keys that IBM defined; an operator's own field may not have such a name.
PREDEFINED: Final = frozenset((
    "cat", "devTime", "devTimeFormat", "proto", "sev", "src", "dst", "srcPort", "dstPort", "srcPreNAT",
    "dstPreNAT", "srcPostNAT", "dstPostNAT", "usrName", "srcMAC", "dstMAC", "srcPreNATPort",
    "dstPreNATPort", "srcPostNATPort", "dstPostNATPort", "identSrc", "identHostName", "identNetBios",
    "identGrpName", "identMAC", "vSrc", "vSrcName", "accountName", "srcBytes", "dstBytes", "srcPackets",
    "dstPackets", "totalPackets", "role", "realm", "policy", "resource", "url", "groupID", "domain",
    "isLoginEvent", "isLogoutEvent", "identSecondlp", "calLanguage", "calCountryOrRegion",
))  # fmt: skip
#: The keys of this format, in the order of the line.
KEYS: Final[Mapping[str, tuple[Key, Fact]]] = {
    key.name: (key, row) for row in FACTS for key in row.leef if key.name != "(header)"
}
_HEADER: Final = (
    ("observer.vendor", "KernelWatch"),
    ("observer.product", "kwsiem"),
    ("observer.version", "0"),
    ("rule.id", "unknown"),
)
#: QRadar reads milliseconds by their 13 digits.
_MIN_TIME: Final = 10**12
_MAX_TIME: Final = 10**13


def render(document: Mapping[str, Any], version: str = "2.0") -> str:
    """``LEEF:2.0|vendor|product|version|event id|^|key=value^…`` of a document, on one line."""
    delimiter = "^" if version == "2.0" else "\t"
    header = [
        line_text(_without(fact(document, name), "|"), BY_NAME[name].leef[0].limit) or other
        for name, other in _HEADER
    ]
    head = "|".join([f"LEEF:{version}", *header, *("^" for _ in range(version == "2.0"))])
    pairs = _attributes(document, delimiter)
    return f"{head}|{delimiter.join(f'{key}={value}' for key, value in pairs.items())}"


def label_key(name: str) -> str:
    """The key of an operator's own field: ``data_center`` is ``dataCenter``."""
    first, *rest = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


def _attributes(document: Mapping[str, Any], delimiter: str) -> dict[str, str]:
    computed = _computed(document)
    pairs: dict[str, str] = {}
    for name, (key, row) in KEYS.items():
        value = computed.get(name) if key.computed else _plain(fact(document, row.name), key, row)
        if text := line_text(_without(value, delimiter), key.limit):
            pairs[name] = text
    for name, label in labels(document).items():
        if text := line_text(_without(label, delimiter), 1023):
            pairs[label_key(name)] = text
    return pairs


def _plain(value: Any, key: Key, row: Fact) -> Any:
    if row.type == "time":
        time_ms = milliseconds(value) or 0
        return str(time_ms) if _MIN_TIME <= time_ms < _MAX_TIME else None
    if row.type == "number":
        number = whole(value, key.limit)
        return None if number is None else str(number)
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _computed(document: Mapping[str, Any]) -> dict[str, Any]:
    transport = fact(document, "network.transport")
    decision = fact(document, "kwsiem.alert.block.decision")
    return {
        "sev": max(1, whole(fact(document, "event.severity"), 10) or 0),
        "cat": "/".join(texts(document, "event.category")),
        "srcName": _name(document, "source"),
        "dstName": _name(document, "destination"),
        "srcPort": port(document, "source"),
        "dstPort": port(document, "destination"),
        "proto": transport.upper() if isinstance(transport, str) else None,
        "mitre": ",".join(attack_ids(document)),
        "action": (ACTIONS.get(decision, DETECTED) if isinstance(decision, str) else DETECTED).word,
    }


def _name(document: Mapping[str, Any], side: str) -> Any:
    address = fact(document, f"{side}.address")
    return None if address == fact(document, f"{side}.ip") else address


def _without(value: Any, separator: str) -> Any:
    return value.replace(separator, " ") if isinstance(value, str) else value
