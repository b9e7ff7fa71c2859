"""Alert to ECS document (Elastic Common Schema 9.4.0): what is stored, and what every format renders.

The document is a plain nested dictionary: arrays where ECS wants arrays, absent instead of empty, only
valid addresses in ``ip`` fields. Own facts stand under ``kwsiem.alert``, fields of the event that ECS does
not know under ``kwsiem.event``. An alert's values may come from an attacker: everything is bounded here, so
that no later stage meets a control character or a document of more than MAX_DOCUMENT_BYTES.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from kwsiem import __version__
from kwsiem.alert import (
    ECS_VERSION,
    LEVELS,
    MAX_DOCUMENT_BYTES,
    MAX_EVIDENCE_EVENTS,
    MAX_TEXT,
    Alert,
    nest,
    put,
)
from kwsiem.attack import threat
from kwsiem.clock import iso
from kwsiem.derive import as_ip
from kwsiem.text import clean

VENDOR: Final = "KernelWatch"
PRODUCT: Final = "kwsiem"

MAX_FIELDS: Final = 64
MAX_VALUES: Final = 64
MAX_TAGS: Final = 32
MAX_IDENTITY: Final = 16
MAX_RELATED: Final = 32
#: Text of an alert whose document is too large even without evidence, in code points.
_SHORT_TEXT: Final = 64
#: A level that is not Sigma's must not slip under an output's minimum.
_UNKNOWN_LEVEL: Final = "high"
_LONG: Final = 2**63 - 1
_NAME: Final = re.compile(r"[A-Za-z0-9_@-]+(?:\.[A-Za-z0-9_@-]+)*\Z", re.ASCII)
_MAX_NAME: Final = 128

#: The ECS fields that an event may bring, with their type; a list type is an array in ECS.
ECS_FIELDS: Final[Mapping[str, str]] = {
    "container.id": "keyword",
    "container.name": "keyword",
    "destination.address": "keyword",
    "destination.bytes": "long",
    "destination.domain": "keyword",
    "destination.ip": "ip",
    "destination.packets": "long",
    "destination.port": "port",
    "dns.id": "keyword",
    "dns.question.name": "keyword",
    "dns.question.registered_domain": "keyword",
    "dns.question.subdomain": "keyword",
    "dns.question.type": "keyword",
    "dns.response_code": "keyword",
    "error.message": "keyword",
    "event.outcome": "outcome",
    "file.directory": "keyword",
    "file.extension": "keyword",
    "file.gid": "keyword",
    "file.inode": "keyword",
    "file.mode": "keyword",
    "file.name": "keyword",
    "file.owner": "keyword",
    "file.path": "keyword",
    "file.size": "long",
    "file.target_path": "keyword",
    "file.uid": "keyword",
    "group.id": "keyword",
    "group.name": "keyword",
    "http.request.method": "keyword",
    "http.request.referrer": "keyword",
    "http.response.status_code": "long",
    "http.version": "keyword",
    "network.bytes": "long",
    "network.direction": "keyword",
    "network.packets": "long",
    "network.protocol": "keyword",
    "network.transport": "keyword",
    "network.type": "keyword",
    "observer.ingress.interface.name": "keyword",
    "observer.egress.interface.name": "keyword",
    "process.args": "keyword[]",
    "process.args_count": "long",
    "process.command_line": "keyword",
    "process.entity_id": "keyword",
    "process.executable": "keyword",
    "process.exit_code": "long",
    "process.name": "keyword",
    "process.parent.command_line": "keyword",
    "process.parent.entity_id": "keyword",
    "process.parent.executable": "keyword",
    "process.parent.name": "keyword",
    "process.parent.pid": "long",
    "process.pid": "long",
    "process.thread.id": "long",
    "process.title": "keyword",
    "process.user.id": "keyword",
    "process.user.name": "keyword",
    "process.working_directory": "keyword",
    "service.name": "keyword",
    "service.type": "keyword",
    "source.address": "keyword",
    "source.bytes": "long",
    "source.domain": "keyword",
    "source.ip": "ip",
    "source.packets": "long",
    "source.port": "port",
    "url.domain": "keyword",
    "url.original": "keyword",
    "url.path": "keyword",
    "url.query": "keyword",
    "user.domain": "keyword",
    "user.effective.id": "keyword",
    "user.effective.name": "keyword",
    "user.id": "keyword",
    "user.name": "keyword",
    "user.target.id": "keyword",
    "user.target.name": "keyword",
    "user_agent.original": "keyword",
}
#: What an event kind's first word says in ECS: ``event.category``; ``info`` is a type of all of them.
_CATEGORIES: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(
        ("tcp", "udp", "icmp", "flow", "dns", "http", "socket"), ("intrusion_detection", "network")
    ),
    "auth": ("intrusion_detection", "authentication"),
    **dict.fromkeys(("process", "signal", "ns"), ("intrusion_detection", "process")),
    "file": ("intrusion_detection", "file"),
    "cred": ("intrusion_detection", "iam"),
    **dict.fromkeys(("module", "bpf"), ("intrusion_detection", "driver")),
    "mount": ("intrusion_detection", "configuration"),
    **dict.fromkeys(("sensor", "output"), ("host",)),
    "rules": ("configuration",),
}
_TRANSPORTS: Final = frozenset({"tcp", "udp", "icmp"})
_OUTCOMES: Final = frozenset({"success", "failure", "unknown"})
_ADDRESSES: Final = ("source.ip", "destination.ip")
_USERS: Final = ("user.name", "user.target.name", "user.effective.name", "process.user.name")


def document(alert: Alert) -> dict[str, Any]:
    """The ECS document of an alert, at most MAX_DOCUMENT_BYTES as JSON; never raises for its values.

    When it would be larger, evidence goes first (from the middle: the first and the last event say most),
    then counted values, then every text is cut short.
    """
    result = _document(alert, MAX_TEXT)
    facts = result["kwsiem"]["alert"]
    while "evidence" in facts and _size(result) > MAX_DOCUMENT_BYTES:
        del facts["evidence"][len(facts["evidence"]) // 2]
        if not facts["evidence"]:
            del facts["evidence"]
    if _size(result) > MAX_DOCUMENT_BYTES:
        facts.pop("values", None)
    if _size(result) > MAX_DOCUMENT_BYTES:
        result = _document(alert, _SHORT_TEXT)
        result["kwsiem"]["alert"].pop("evidence", None)
        result["kwsiem"]["alert"].pop("values", None)
    return result


def severity_of(level: str) -> int:
    """The number of a level, 0 to 10 (``alert.LEVELS``); an unknown level counts as high."""
    return LEVELS.get(level, LEVELS[_UNKNOWN_LEVEL])


def _size(result: dict[str, Any]) -> int:
    return len(msgspec.json.encode(result))


def _document(alert: Alert, limit: int) -> dict[str, Any]:
    known, own = _sorted_out(alert.fields, limit)
    kind = _kind(alert)
    _complete(known, kind)
    rule = _rule_facts(
        alert.rule_id, alert.title, alert.description, alert.level, tuple(alert.tags[:MAX_TAGS]), limit
    )
    host = _host_facts(alert.host, limit)
    identifier = alert.id
    reason = clean(alert.reason, limit).strip()
    root: dict[str, Any] = {
        "@timestamp": _time(alert.raised_ns),
        "ecs": {"version": ECS_VERSION},
        "message": f"{rule.title}: {reason}" if reason else rule.title,
        "tags": list(rule.tags),
        "event": _event_facts(alert, rule, kind, reason, identifier),
    }
    for name, value in known.items():
        put(root, name, value)
    for section, facts in (("rule", rule.rule), ("host", host.host), ("observer", host.observer)):
        root[section] = {**root.get(section, {}), **facts}
    related = {
        "ip": _related(alert, _ADDRESSES, _ip),
        "user": _related(alert, _USERS, lambda value: _keyword(value, limit)),
        "hosts": list(host.hosts),
    }
    root["threat"] = rule.threat
    root["related"] = {name: values for name, values in related.items() if values}
    root["kwsiem"] = {"alert": _own_facts(alert, identifier, limit), "event": nest(own)}
    if not own:
        del root["kwsiem"]["event"]
    return {name: value for name, value in root.items() if value}


class _RuleFacts(NamedTuple):
    """What is the same in every alert of a rule."""

    title: str
    tags: tuple[str, ...]
    severity: int
    action: str
    rule: dict[str, Any]
    threat: dict[str, Any]


class _HostFacts(NamedTuple):
    """What is the same in every alert of a host."""

    host: dict[str, Any]
    observer: dict[str, Any]
    hosts: tuple[str, ...]


@functools.lru_cache(maxsize=256)
def _rule_facts(
    rule_id: str, title: str, description: str, level: str, tags: tuple[str, ...], limit: int
) -> _RuleFacts:
    identifier = clean(rule_id, limit) or "unknown"
    name = clean(title, limit).strip() or clean(rule_id, limit).strip() or "alert"
    facts = {"id": identifier, "name": name, "description": clean(description, limit)}
    return _RuleFacts(
        title=name,
        tags=tuple(_texts(tags, limit, MAX_TAGS)),
        severity=severity_of(level),
        action=re.sub(r"[^a-z0-9]+", "_", clean(rule_id, limit).lower()).strip("_") or "alert",
        rule={key: value for key, value in facts.items() if value},
        threat=threat(tags),
    )


@functools.lru_cache(maxsize=16)
def _host_facts(host: str, limit: int) -> _HostFacts:
    name = clean(host, limit)
    hosts = tuple(_texts([host], limit, 1))
    observer = {"vendor": VENDOR, "product": PRODUCT, "version": __version__, "type": "ids"}
    if not name:
        return _HostFacts({"os": {"type": "linux"}}, observer, hosts)
    return _HostFacts(
        {"name": name, "hostname": name, "os": {"type": "linux"}}, {**observer, "hostname": name}, hosts
    )


def _event_facts(alert: Alert, rule: _RuleFacts, kind: str, reason: str, identifier: str) -> dict[str, Any]:
    raised = _time(alert.raised_ns)
    facts: dict[str, Any] = {
        "kind": "alert",
        "category": list(_CATEGORIES.get(kind.partition(".")[0], ("intrusion_detection",))),
        "type": ["info"],
        "action": f"{rule.action}_detected",
        "severity": rule.severity,
        "risk_score": float(rule.severity * 10),
        "id": identifier,
        "code": rule.rule["id"],
        "module": PRODUCT,
        "dataset": f"{PRODUCT}.alert",
        "provider": PRODUCT,
        "reason": reason,
        "created": raised,
        "start": _time(alert.first_ns),
        "end": _time(alert.last_ns),
        "duration": max(0, min(alert.last_ns - alert.first_ns, _LONG)),
    }
    if not reason:
        del facts["reason"]
    return facts


def _own_facts(alert: Alert, identifier: str, limit: int) -> dict[str, Any]:
    """``kwsiem.alert``: identity and counted values as text, so that one index holds those of all rules."""
    identity = list(alert.identity.items())[:MAX_IDENTITY]
    facts = {
        "id": identifier,
        "incident_id": alert.incident_id,
        "state": clean(alert.state, limit),
        "count": max(0, min(alert.count, _LONG)),
        "level": alert.level if alert.level in LEVELS else _UNKNOWN_LEVEL,
        "identity": {name: _keyword(value, limit) or "" for name, value in identity if _is_name(name)},
        "values": _texts(alert.values, limit, MAX_VALUES),
        "evidence": [_evidence(event, limit) for event in _ends(alert.evidence)],
        "falsepositives": _texts(alert.falsepositives, limit, MAX_TAGS),
        "block": _block(alert),
    }
    return {name: value for name, value in facts.items() if value not in ("", [], {})}


def _block(alert: Alert) -> dict[str, Any]:
    """What the rule asks to block. The guard's answer comes after the alert: an event ``block.decision``."""
    address = _ip(alert.block.get("value"))
    if address is None:
        return {}
    for_s = alert.block.get("for_s")
    return {"value": address, "for_s": for_s if type(for_s) is int else 0, "decision": "requested"}


def _ends(evidence: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most MAX_EVIDENCE_EVENTS events, the first and the last ones."""
    half = MAX_EVIDENCE_EVENTS // 2
    return evidence if len(evidence) <= MAX_EVIDENCE_EVENTS else evidence[:half] + evidence[-half:]


def _evidence(event: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """One event as a flat object of ECS names, numbers kept and everything else as text."""
    items = [(name, value) for name, value in event.items() if _is_name(name)][:MAX_FIELDS]
    cleaned = {name: _plain(value, limit) for name, value in items}
    return {name: value for name, value in cleaned.items() if value is not None and value != ""}


def _sorted_out(fields: Mapping[str, Any], limit: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of an event apart: those of ECS (of the type ECS asks for), and all others."""
    known: dict[str, Any] = {}
    own: dict[str, Any] = {}
    names = [name for name in fields if _is_name(name)]
    for name in names[:MAX_FIELDS]:
        typed = _typed(ECS_FIELDS.get(name, ""), fields[name], limit)
        if typed is not None:
            known[name] = typed
            continue
        value = _plain(fields[name], limit)
        if value is not None and value != "":
            own[name.removeprefix("event.")] = value
    return known, own


def _complete(known: dict[str, Any], kind: str) -> None:
    """What ECS asks for beside a field: an address beside each ip, the network's type and transport."""
    for side in ("source", "destination"):
        if f"{side}.ip" in known:
            known.setdefault(f"{side}.address", known[f"{side}.ip"])
        elif address := _ip(known.get(f"{side}.address")):
            known[f"{side}.ip"] = address
    address = known.get("source.ip") or known.get("destination.ip")
    if address:
        known.setdefault("network.type", "ipv6" if ":" in address else "ipv4")
    transport = kind.partition(".")[0]
    if transport in _TRANSPORTS:
        known.setdefault("network.transport", transport)


def _time(ns: int) -> str:
    return iso(max(0, min(ns, _LONG)))


def _kind(alert: Alert) -> str:
    """The kind of the alert's latest event, as far as its evidence tells."""
    kind = alert.evidence[-1].get("kind", "") if alert.evidence else ""
    return kind if isinstance(kind, str) and _is_name(kind) else ""


def _related(alert: Alert, names: Iterable[str], convert: Callable[[Any], str | None]) -> list[str]:
    """Every value that these fields have in the alert, each once, at most MAX_RELATED."""
    sources = [alert.fields, alert.identity, *_ends(alert.evidence)]
    found: list[Any] = [value for name in names for source in sources if (value := source.get(name))]
    if names is _ADDRESSES:
        found += alert.values[:MAX_VALUES]
    # Most of them are the same few: only different ones are converted.
    plain = dict.fromkeys(value for value in found if isinstance(value, (str, int)))
    values = (convert(value) for value in plain)
    return list(dict.fromkeys(value for value in values if value))[:MAX_RELATED]


def _typed(kind: str, value: Any, limit: int) -> Any:
    """The value as the ECS type asks for it, or None when it cannot be that."""
    if kind == "ip":
        return _ip(value)
    if kind in {"long", "port"}:
        top = 65535 if kind == "port" else _LONG
        bottom = 0 if kind == "port" else -_LONG
        return value if type(value) is int and bottom <= value <= top else None
    if kind == "outcome":
        return value if isinstance(value, str) and value in _OUTCOMES else None
    if kind == "keyword[]":
        return _texts(value if isinstance(value, list) else [value], limit, MAX_VALUES) or None
    return (_keyword(value, limit) or None) if kind else None


def _ip(value: Any) -> str | None:
    """The address in canonical form without a zone (``fe80::1%eth0``: the ip type refuses it), or None."""
    if not isinstance(value, str) or len(value) > _MAX_NAME:
        return None
    return as_ip(value.partition("%")[0])


def _keyword(value: Any, limit: int) -> str | None:
    """A text or a number as text; None for anything else."""
    plain = _plain(value, limit)
    return None if plain is None else str(plain).lower() if isinstance(plain, bool) else str(plain)


def _plain(value: Any, limit: int) -> str | int | float | bool | None:
    """A value that JSON and every index can hold: text cleaned, numbers within their range, else None."""
    if isinstance(value, str):
        return clean(value, limit)
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -_LONG <= value <= _LONG else str(value) if value.bit_length() <= 256 else None
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (list, tuple)):
        return clean(", ".join(_texts(value, limit, MAX_VALUES)), limit)
    return None


def _texts(values: Iterable[Any], limit: int, most: int) -> list[str]:
    """The values as texts, each once, empty and unreadable ones left out, at most ``most``."""
    found: dict[str, None] = {}
    for value in values:
        text = _keyword(value, limit) if not isinstance(value, (list, tuple)) else None
        if text:
            found[text] = None
        if len(found) >= most:
            break
    return list(found)


@functools.lru_cache(maxsize=4096)
def _is_name(name: Any) -> bool:
    return isinstance(name, str) and len(name) <= _MAX_NAME and _NAME.match(name) is not None
