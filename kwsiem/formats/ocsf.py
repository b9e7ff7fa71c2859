"""OCSF: Detection Finding (class 2004) of the Open Cybersecurity Schema Framework, one JSON object.

An incident is one finding: opening it is Create, growth Update, its end Close, always with the same
``finding_info.uid``; ``metadata.uid`` is the alert. Each event kept as evidence stands in ``evidences``,
with the record of its own class (4001 Network Activity, 3002 Authentication, 1007 Process Activity) under
``data`` when it has what that class requires. What the schema has no place for is under ``unmapped``.
Times are milliseconds. All of :data:`VERSIONS` have the attributes used; 1.3.0 lacks ``is_alert`` and the
action Observed, and gets Unknown for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from kwsiem.alert import nest
from kwsiem.attack import TACTICS, TECHNIQUES
from kwsiem.derive import as_ip
from kwsiem.formats.facts import fact, labels, milliseconds, texts, whole
from kwsiem.formats.fields import ACTIONS, BY_NAME, DETECTED, EVIDENCE, FACTS, INT, LONG, PORT, severity

VERSIONS: Final = ("1.8.0", "1.3.0")
_OLD: Final = "1.3.0"
_OBSERVED: Final = 3

Object = dict[str, Any]


@dataclass(frozen=True)
class _Class:
    """An OCSF class for events, with the attributes a record of it takes from its evidence."""

    uid: int
    category: int
    attributes: tuple[str, ...]
    required: tuple[str, ...]


_NETWORK: Final = _Class(
    4001, 4, ("src_endpoint", "dst_endpoint", "connection_info", "traffic"), ("dst_endpoint",)
)
_AUTHENTICATION: Final = _Class(
    3002, 3, ("user", "service", "src_endpoint", "dst_endpoint"), ("user", "service")
)
_PROCESS: Final = _Class(1007, 1, ("process", "actor"), ("process", "actor"))
#: Class by the first word of an event's kind.
_CLASSES: Final[Mapping[str, _Class]] = {
    **dict.fromkeys(("tcp", "udp", "icmp", "flow", "dns", "http", "socket"), _NETWORK),
    "auth": _AUTHENTICATION,
    **dict.fromkeys(("process", "signal", "cred"), _PROCESS),
}
#: Activity by kind; a kind that is not here is the class's Traffic, Logon or (process) Other.
_ACTIVITIES: Final[Mapping[str, int]] = {
    "tcp.open": 1,
    "tcp.connect": 1,
    "tcp.refused": 5,
    "udp.unreachable": 5,
    "socket.listen": 7,
    "process.exec": 1,
    "process.exit": 2,
    "process.ptrace": 3,
    "cred.change": 5,
}
_OTHER: Final = 99
_DEFAULT_ACTIVITY: Final = {4001: 6, 3002: 1, 1007: _OTHER}
_INBOUND_KINDS: Final = frozenset({"tcp.syn", "tcp.probe", "tcp.open", "tcp.refused", "icmp.echo"})
_DIRECTIONS: Final[Mapping[str, int]] = {"ingress": 1, "inbound": 1, "egress": 2, "outbound": 2}
_PROTOCOLS: Final[Mapping[str, int]] = {"icmp": 1, "tcp": 6, "udp": 17, "ipv6-icmp": 58}
_STATUSES: Final[Mapping[str, int]] = {"success": 1, "failure": 2}
#: State of the incident -> activity_id, status_id (New, In Progress, Resolved).
_STATES: Final[Mapping[str, tuple[int, int]]] = {"open": (1, 1), "update": (2, 2), "close": (3, 4)}
_ENDS: Final = (("source", "src_endpoint"), ("destination", "dst_endpoint"))
#: What an evidence object may have; the rest of what the table maps belongs into its record.
_EVIDENCES: Final = (
    "src_endpoint",
    "dst_endpoint",
    "connection_info",
    "process",
    "user",
    "file",
    "url",
    "query",
)
#: observable type_id -> the places in an evidence where such a value stands.
_OBSERVABLES: Final[Mapping[int, tuple[str, ...]]] = {
    2: ("src_endpoint.ip", "dst_endpoint.ip"),
    4: ("user.name", "process.user.name"),
}
_RELATED: Final[Mapping[int, str]] = {2: "related.ip", 4: "related.user"}
_MAX_OBSERVABLES: Final = 32

_PLAIN: Final = tuple(row for row in FACTS if row.ocsf and not row.ocsf.startswith(("(", EVIDENCE)))
_FROM_EVENT: Final = {
    row.name: row.ocsf.removeprefix(EVIDENCE) for row in FACTS if row.ocsf.startswith(EVIDENCE)
}
#: The largest number of a type that is not a long.
_TOPS: Final[Mapping[str, int]] = {
    "source.port": PORT,
    "destination.port": PORT,
    "process.pid": INT,
    "process.parent.pid": INT,
    "kwsiem.alert.count": INT,
    "event.risk_score": INT,
}
_TACTIC_NAMES: Final = dict(TACTICS.values())
#: Own facts that the finding has elsewhere.
_CARRIED: Final = frozenset({"id", "incident_id", "state", "level", "count", "evidence"})
_ENCODER: Final = msgspec.json.Encoder()


def render(document: Mapping[str, Any], version: str = VERSIONS[0]) -> str:
    """One Detection Finding as one JSON object on one line."""
    return _ENCODER.encode(finding(document, version)).decode()


def finding(document: Mapping[str, Any], version: str = VERSIONS[0]) -> Object:
    """The Detection Finding of a document."""
    state = fact(document, "kwsiem.alert.state")
    activity, status = _STATES.get(state, (1, 1)) if isinstance(state, str) else (1, 1)
    decision = fact(document, "kwsiem.alert.block.decision")
    action = ACTIONS.get(decision, DETECTED) if isinstance(decision, str) else DETECTED
    duration_ns = whole(fact(document, "event.duration"), LONG)
    evidences = list(_evidences(document, version))
    found: Object = {
        **_base(2, 2004, activity),
        "severity_id": severity(fact(document, "event.severity")).ocsf,
        "status_id": status,
        "is_alert": None if version == _OLD else activity != 3,
        "action_id": 0 if version == _OLD and action.ocsf_action == _OBSERVED else action.ocsf_action,
        "disposition_id": action.ocsf_disposition,
        "time": 0,
        "duration": None if duration_ns is None else duration_ns // 1_000_000,
        **_plain(document),
        "evidences": evidences,
        "observables": _observables(document, evidences),
        "unmapped": _unmapped(document),
    }
    found["device"] = _device(document)
    _metadata(found, document, version, ["host", "security_control"])
    _finding_info(found, document, activity)
    return {name: value for name, value in found.items() if value not in (None, "", [], {})}


def _plain(document: Mapping[str, Any]) -> Object:
    """What the table copies from the document to one place of the finding."""
    flat = {row.ocsf: _typed(row.name, _clamped(row.name, fact(document, row.name))) for row in _PLAIN}
    return nest({path: value for path, value in flat.items() if value not in (None, "", [])})


def _clamped(name: str, value: Any) -> Any:
    number = whole(value, _TOPS.get(name, LONG))
    return value if number is None else number


def _typed(name: str, value: Any) -> Any:
    """A value in OCSF's type, or None when it cannot be that: evidence is as the probe gave it."""
    kind = BY_NAME[name].type
    if kind == "time":
        return milliseconds(value)
    if kind in {"number", "port"}:
        number = int(value) if isinstance(value, float) and math.isfinite(value) else value
        return number if type(number) is int and 0 <= number <= _TOPS.get(name, LONG) else None
    if kind == "ip":
        return as_ip(value.partition("%")[0]) if isinstance(value, str) else None
    if kind == "list":
        return value if isinstance(value, list) else None
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None


def _base(category: int, class_uid: int, activity: int) -> Object:
    return {
        "activity_id": activity,
        "category_uid": category,
        "class_uid": class_uid,
        "type_uid": class_uid * 100 + activity,
    }


def _metadata(found: Object, document: Mapping[str, Any], version: str, profiles: list[str]) -> None:
    metadata = found.setdefault("metadata", {})
    product = {"name": "kwsiem", "vendor_name": "KernelWatch", **metadata.get("product", {})}
    found["metadata"] = {"version": version, **metadata, "product": product, "profiles": profiles}
    added = [f"{name}:{value}" for name, value in labels(document).items()]
    if added:
        found["metadata"]["labels"] = added


def _device(document: Mapping[str, Any]) -> Object:
    """The sensor's host; whether it is a server or something else is not known (type 0)."""
    host = fact(document, "host.name")
    name = host if isinstance(host, str) and host else "unknown"
    device: Object = {"type_id": 0, "hostname": name}
    if fact(document, "host.os.type") == "linux":
        device["os"] = {"name": "Linux", "type_id": 200}
    return device


def _finding_info(found: Object, document: Mapping[str, Any], activity: int) -> None:
    """A Create says when the finding was made, what follows when it was changed."""
    info = found.setdefault("finding_info", {})
    info.setdefault("uid", "unknown")
    info.setdefault("title", "alert")
    info["created_time" if activity == 1 else "modified_time"] = found["time"]
    for name, source in (("first_seen_time", "start_time"), ("last_seen_time", "end_time")):
        if source in found:
            info[name] = found[source]
    info.setdefault("analytic", {"uid": "unknown"}).update(type_id=1, name=info["title"])
    attacks = _attacks(document)
    if attacks:
        info["attacks"] = attacks


def _attacks(document: Mapping[str, Any]) -> list[Object]:
    """Tactics and techniques apart: the tags of a rule do not say which belongs to which."""
    subs = texts(document, "threat.technique.subtechnique.id")
    parents = {sub.partition(".")[0] for sub in subs}
    alone = [item for item in texts(document, "threat.technique.id") if item not in parents]
    return [
        *({"tactic": _named(item, _TACTIC_NAMES)} for item in texts(document, "threat.tactic.id")),
        *({"technique": _named(item, TECHNIQUES)} for item in alone),
        *(
            {"technique": _named(sub.partition(".")[0], TECHNIQUES), "sub_technique": _named(sub, TECHNIQUES)}
            for sub in subs
        ),
    ]


def _named(uid: str, names: Mapping[str, str]) -> Object:
    return {"uid": uid, **({"name": names[uid]} if names.get(uid) else {})}


# Evidence -----------------------------------------------------------------------------------------------


def _evidences(document: Mapping[str, Any], version: str) -> Iterator[Object]:
    """One object for each event kept; of an alert without any, one of what the alert says itself."""
    events = fact(document, "kwsiem.alert.evidence")
    kept = [event for event in events if isinstance(event, Mapping)] if isinstance(events, list) else []
    if not kept:
        names = [*_FROM_EVENT, "source.address", "destination.address", "network.direction"]
        flat = {name: value for name in names if (value := fact(document, name)) is not None}
        parts, _ = _parts(flat, "")
        evidence: Object = {name: parts[name] for name in _EVIDENCES if name in parts}
        if evidence:
            yield evidence
        return
    for event, time_ms in zip(kept, _times(document, kept), strict=True):
        yield _evidence(document, event, time_ms, version)


def _times(document: Mapping[str, Any], events: list[Mapping[str, Any]]) -> list[int]:
    """When the events happened, ms: the last at ``event.end``, the others by the kernel's clock before it."""
    end_ms = milliseconds(fact(document, "event.end")) or milliseconds(fact(document, "@timestamp")) or 0
    clocks = [whole(event.get("ts_ns"), LONG) for event in events]
    last = clocks[-1]
    return [
        end_ms if clock is None or last is None else max(0, end_ms - (last - clock) // 1_000_000)
        for clock in clocks
    ]


def _evidence(document: Mapping[str, Any], event: Mapping[str, Any], time_ms: int, version: str) -> Object:
    kind = str(event.get("kind", ""))
    parts, rest = _parts(event, kind)
    evidence: Object = {name: parts[name] for name in _EVIDENCES if name in parts}
    record = _record(document, parts, kind, version) or {}
    left = {name: value for name, value in parts.get("data", {}).items() if name not in record}
    unmapped = {**rest, **left, "kind": kind}
    own = {"unmapped": unmapped} if record else unmapped
    evidence["data"] = {**record, **own, "time": time_ms}
    return evidence


def _record(document: Mapping[str, Any], parts: Object, kind: str, version: str) -> Object | None:
    """The event as a record of its own class, or None when it lacks what the class requires."""
    found = _CLASSES.get(kind.partition(".")[0])
    have = {**parts, **parts.get("data", {})}
    if found is None or not all(name in have for name in found.required):
        return None
    activity = _ACTIVITIES.get(kind, _DEFAULT_ACTIVITY[found.uid])
    record = {
        **_base(found.category, found.uid, activity),
        "severity_id": 1,
        "device": _device(document),
        **{name: have[name] for name in found.attributes if name in have},
    }
    if activity == _OTHER:
        record["activity_name"] = kind
    if found is _AUTHENTICATION:
        record["status_id"] = have.get("status_id", 0)
        record["is_remote"] = "src_endpoint" in have
    version_of = fact(document, "observer.version")
    if isinstance(version_of, str):
        record["metadata"] = {"product": {"version": version_of}}
    _metadata(record, {}, version, ["host"])
    return record


def _parts(flat: Mapping[str, Any], kind: str) -> tuple[Object, Object]:
    """The objects of OCSF that an event's flat fields make, and the fields that have no place in them."""
    flat = dict(flat)
    places: Object = {}
    for name, path in _FROM_EVENT.items():
        value = _typed(name, flat.get(name))
        if value not in (None, ""):
            places[path] = value
            del flat[name]
    for side, end in _ENDS:
        address = flat.pop(f"{side}.address", None)
        if address and address != places.get(f"{end}.ip"):
            places[f"{end}.hostname"] = str(address)
    if (outcome := flat.pop("event.outcome", None)) is not None:
        places["data.status_id"] = _STATUSES.get(str(outcome), 0)
    direction = _DIRECTIONS.get(str(flat.pop("network.direction", "")), int(kind in _INBOUND_KINDS))
    parts = nest(places)
    for side, end in _ENDS:
        if end in parts and parts[end].keys() == {"port"}:
            flat[f"{side}.port"] = parts.pop(end)["port"]
    _connection(parts, kind, direction)
    _complete(parts, flat)
    flat = {name: value for name, value in flat.items() if name not in {"kind", "ts_ns", "network.type"}}
    return parts, flat


def _connection(parts: Object, kind: str, direction: int) -> None:
    """``connection_info``: what carries it, of which version, and from where it was opened."""
    info = parts.get("connection_info", {})
    name = info.get("protocol_name") or (
        kind.partition(".")[0] if kind.startswith(("tcp.", "udp.", "icmp.")) else ""
    )
    address = parts.get("src_endpoint", {}).get("ip") or parts.get("dst_endpoint", {}).get("ip")
    if not name and not (direction and address):
        parts.pop("connection_info", None)
        return
    parts["connection_info"] = {"direction_id": 2 if kind == "tcp.connect" else direction}
    if name:
        parts["connection_info"]["protocol_name"] = name
    if name in _PROTOCOLS:
        parts["connection_info"]["protocol_num"] = _PROTOCOLS[name]
    if address:
        parts["connection_info"]["protocol_ver_id"] = 6 if ":" in address else 4


def _complete(parts: Object, rest: Object) -> None:
    """What OCSF requires inside objects; an object that cannot have it goes to the rest."""
    process = parts.get("process")
    if process is not None:
        if (program := process.get("file")) is not None:
            process["file"] = _file(program["path"], 1)
        parent = process.get("parent_process")
        if parent is not None and "pid" not in parent:
            rest["process.parent.name"] = process.pop("parent_process").get("name")
        if "pid" not in process:
            rest["process"] = parts.pop("process")
        actor = {"process": process.get("parent_process"), "user": parts.get("user") or process.get("user")}
        if any(actor.values()):
            parts["actor"] = {name: value for name, value in actor.items() if value}
    if (file := parts.get("file")) is not None:
        parts["file"] = {**(_file(file["path"], 0) if "path" in file else {"type_id": 0}), **file}
    if (query := parts.get("query")) is not None and "hostname" not in query:
        rest["query"] = parts.pop("query")


def _file(path: str, type_id: int) -> Object:
    """Type 1 is a regular file, 0 not known."""
    return {"name": path.rstrip("/").rpartition("/")[2] or path, "type_id": type_id, "path": path}


def _observables(document: Mapping[str, Any], evidences: list[Object]) -> list[Object]:
    """Where the values of ``related.*`` stand in the finding, each value once."""
    found: dict[tuple[int, str], Object] = {}
    for type_id, name in _RELATED.items():
        wanted = set(texts(document, name))
        for index, evidence in enumerate(evidences):
            for path in _OBSERVABLES[type_id]:
                value = fact(evidence, path)
                if value in wanted and len(found) < _MAX_OBSERVABLES:
                    place = f"evidences[{index}].{path}"
                    found.setdefault((type_id, value), {"name": place, "type_id": type_id, "value": value})
    return list(found.values())


def _unmapped(document: Mapping[str, Any]) -> Object:
    """Our own facts, as far as the finding does not carry them elsewhere."""
    own = fact(document, "kwsiem")
    if not isinstance(own, Mapping):
        return {}
    facts = own.get("alert")
    left = (
        {name: value for name, value in facts.items() if name not in _CARRIED}
        if isinstance(facts, Mapping)
        else {}
    )
    found = {name: value for name, value in {**own, "alert": left}.items() if value}
    return {"kwsiem": found} if found else {}
