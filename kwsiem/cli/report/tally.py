"""What a report says about alerts, counted in one pass over the history, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, Generic, TypeVar, Union

import msgspec

from kwsiem.alert import LEVELS, MAX_EVIDENCE_EVENTS, raised_ns_of
from kwsiem.clock import NS_PER_MS, NS_PER_S
from kwsiem.outbox.history import Endpoint, Entry, Summary
from kwsiem.text import harmless

#: So many are kept while counting; when there are twice as many, the lower half goes and is counted.
MAX_RULES: Final = 1000
MAX_SOURCES: Final = 20_000
MAX_INCIDENTS: Final = 60
_MAX_TEXT: Final = 300
_MAX_RULES_OF_SOURCE: Final = 4
#: A level that is not Sigma's counts as this, as in the documents themselves.
_UNKNOWN_LEVEL: Final = "high"


class Rule(msgspec.Struct):
    """The alerts of one rule; ``opened`` of them began an incident."""

    id: str
    title: str
    level: str
    tactics: list[str] = []
    techniques: list[str] = []
    alerts: int = 0
    opened: int = 0
    last_ns: int = 0


class Source(msgspec.Struct):
    """The alerts of one address; ``blocked`` says in words what became of it."""

    address: str
    level: str = "informational"
    alerts: int = 0
    first_ns: int = 0
    last_ns: int = 0
    rules: list[str] = []
    blocked: str = ""


class Incident(msgspec.Struct):
    """One incident as its latest message tells it; ``evidence`` has a line for each event."""

    id: str
    alert_id: str
    level: str
    state: str
    rule: str
    title: str
    reason: str
    source: str
    destination: str
    count: int
    first_ns: int
    last_ns: int
    acknowledged: str = ""
    evidence: list[str] = []


class _Names(msgspec.Struct):
    id: list[str] = []
    name: list[str] = []


class _Technique(_Names):
    subtechnique: _Names = msgspec.field(default_factory=_Names)


class _Threat(msgspec.Struct):
    tactic: _Names = msgspec.field(default_factory=_Names)
    technique: _Technique = msgspec.field(default_factory=_Technique)


class _Facts(msgspec.Struct):
    incident_id: str = ""
    evidence: msgspec.Raw = msgspec.Raw(b"[]")


class _Own(msgspec.Struct):
    alert: _Facts = msgspec.field(default_factory=_Facts)


class _Times(msgspec.Struct):
    start: Union[datetime, None] = None
    end: Union[datetime, None] = None


class _Document(msgspec.Struct):
    """What a line of a list does not show of an alert."""

    threat: _Threat = msgspec.field(default_factory=_Threat)
    event: _Times = msgspec.field(default_factory=_Times)
    kwsiem: _Own = msgspec.field(default_factory=_Own)


class _Kept(msgspec.Struct):
    """One incident while it is counted; its text is made only when it is shown."""

    key: str
    severity: int
    count: int
    at_ns: int
    summary: Summary
    document: _Document


T = TypeVar("T")


class Places(Generic[T]):
    """Things by name, no more than twice ``most``; what had to go, the lowest by ``rank``, is counted.

    Whoever went and comes again begins at nothing: below the first ``most`` figures are lower bounds.
    """

    def __init__(self, most: int, rank: Callable[[T], tuple[int, ...]]) -> None:
        self.left_out = 0
        self._most = most
        self._rank = rank
        self._found: dict[str, T] = {}

    def __len__(self) -> int:
        return len(self._found)

    def get(self, name: str) -> T | None:
        """What has this name, if it is kept."""
        return self._found.get(name)

    def add(self, name: str, thing: T) -> T:
        """Keep something new."""
        if len(self._found) >= 2 * self._most:
            best = sorted(self._found.items(), key=lambda item: self._rank(item[1]), reverse=True)
            self.left_out += len(best) - self._most
            self._found = dict(best[: self._most])
        self._found[name] = thing
        return thing

    def first(self, limit: int) -> list[T]:
        """The highest, in this order."""
        return sorted(self._found.values(), key=self._rank, reverse=True)[:limit]


_documents: Final = msgspec.json.Decoder(_Document)
_evidence: Final = msgspec.json.Decoder(list[dict[str, Any]])


class Tally:
    """Counts alerts, newest first, of a span and (by level alone) of as long a span before it.

    Times are wall time in nanoseconds. An alert whose document cannot be read is in ``unreadable``.
    """

    def __init__(self, since_ns: int, until_ns: int, step_ns: int) -> None:
        self.levels = dict.fromkeys(LEVELS, 0)
        self.before = dict.fromkeys(LEVELS, 0)
        self.opened = 0
        self.unreadable = 0
        steps = max(1, -(-(until_ns - since_ns) // step_ns))
        self.timeline = {level: [0] * steps for level in LEVELS}
        self.rules: Places[Rule] = Places(MAX_RULES, lambda rule: (_severity(rule.level), rule.alerts))
        self.sources: Places[Source] = Places(MAX_SOURCES, lambda one: (one.alerts, _severity(one.level)))
        self._kept: Places[_Kept] = Places(MAX_INCIDENTS, lambda one: (one.severity, one.count, one.at_ns))
        self._since_ns, self._until_ns, self._step_ns = since_ns, until_ns, step_ns

    @property
    def alerts(self) -> int:
        """All alerts of the span."""
        return sum(self.levels.values())

    def take(self, entry: Entry) -> None:
        """Count one alert; never raises for what stands in it."""
        summary = entry.summary
        at_ns = raised_ns_of(summary.event.id)
        level = summary.kwsiem.alert.level
        level = level if level in LEVELS else _UNKNOWN_LEVEL
        if at_ns < self._since_ns:
            self.before[level] += 1
            return
        try:
            document = _documents.decode(entry.document)
        except msgspec.DecodeError:
            self.unreadable += 1
            document = _Document()
        steps = self.timeline[level]
        steps[min(len(steps) - 1, (at_ns - self._since_ns) // self._step_ns)] += 1
        self.levels[level] += 1
        self.opened += summary.kwsiem.alert.state == "open"
        self._rule(summary, level, at_ns, document)
        self._source(summary, level, at_ns)
        self._incident(entry, level, at_ns, document)

    def _rule(self, summary: Summary, level: str, at_ns: int, document: _Document) -> None:
        name = summary.rule.id
        rule = self.rules.get(name) or self.rules.add(name, _rule_of(summary, level, document))
        rule.level = max(rule.level, level, key=_severity)
        rule.alerts += 1
        rule.opened += summary.kwsiem.alert.state == "open"
        rule.last_ns = max(rule.last_ns, at_ns)

    def _source(self, summary: Summary, level: str, at_ns: int) -> None:
        address = summary.source.ip or summary.source.address
        if not address:
            return
        source = self.sources.get(address) or self.sources.add(address, Source(safe(address)))
        source.level = max(source.level, level, key=_severity)
        source.alerts += 1
        source.first_ns = at_ns if not source.first_ns else min(source.first_ns, at_ns)
        source.last_ns = max(source.last_ns, at_ns)
        if len(source.rules) < _MAX_RULES_OF_SOURCE and (rule := safe(summary.rule.id)) not in source.rules:
            source.rules.append(rule)

    def _incident(self, entry: Entry, level: str, at_ns: int, document: _Document) -> None:
        """The first message seen of an incident is its latest, and says when it began."""
        key = document.kwsiem.alert.incident_id or entry.summary.event.id
        if not self._kept.get(key):
            count = entry.summary.kwsiem.alert.count
            self._kept.add(key, _Kept(key, _severity(level), count, at_ns, entry.summary, document))

    def incidents(self, limit: int) -> list[Incident]:
        """The most severe incidents, those of the highest count first; at most MAX_INCIDENTS."""
        return [_incident_of(kept) for kept in self._kept.first(min(limit, MAX_INCIDENTS))]


def safe(text: object) -> str:
    """Text from outside, short, on one line, and nothing in it that reorders or hides."""
    return harmless(str(text), _MAX_TEXT)


def _incident_of(kept: _Kept) -> Incident:
    summary, own, times = kept.summary, kept.summary.kwsiem.alert, kept.document.event
    return Incident(
        id=safe(kept.key),
        alert_id=safe(summary.event.id),
        level=own.level if own.level in LEVELS else _UNKNOWN_LEVEL,
        state=safe(own.state),
        rule=safe(summary.rule.id),
        title=safe(summary.rule.name or summary.rule.id),
        reason=safe(summary.event.reason),
        source=_end(summary.source),
        destination=_end(summary.destination),
        count=own.count,
        first_ns=_ns(times.start) or kept.at_ns,
        last_ns=_ns(times.end) or kept.at_ns,
        evidence=_lines(kept.document.kwsiem.alert.evidence),
    )


def _severity(level: str) -> int:
    return LEVELS.get(level, LEVELS[_UNKNOWN_LEVEL])


def _ns(moment: datetime | None) -> int:
    try:
        return int(moment.timestamp() * 1000) * NS_PER_MS if moment else 0
    except (OverflowError, ValueError, OSError):
        return 0


def _end(end: Endpoint) -> str:
    address = safe(end.ip or end.address)
    if not end.port or not address:
        return address
    return f"[{address}]:{end.port}" if ":" in address else f"{address}:{end.port}"


def _rule_of(summary: Summary, level: str, document: _Document) -> Rule:
    technique = document.threat.technique
    # A sub-technique says its technique too.
    finer = technique.subtechnique
    return Rule(
        id=safe(summary.rule.id),
        title=safe(summary.rule.name or summary.rule.id),
        level=level,
        tactics=_named(document.threat.tactic),
        techniques=_named(finer if finer.id else technique),
    )


def _named(names: _Names) -> list[str]:
    """``T1110 Brute Force``; the ids alone where some have no name, as nothing says which."""
    if len(names.id) != len(names.name):
        return [safe(one) for one in names.id[:4]]
    return [safe(f"{one} {name}") for one, name in zip(names.id[:4], names.name[:4], strict=True)]


def _lines(raw: msgspec.Raw) -> list[str]:
    """A line for each event kept: kind, distance from the first one, grade, fields."""
    try:
        events = _evidence.decode(raw)[:MAX_EVIDENCE_EVENTS]
    except msgspec.DecodeError:
        return []
    first_ns = next((event["ts_ns"] for event in events if type(event.get("ts_ns")) is int), 0)
    return [_line(event, first_ns) for event in events]


def _line(event: Mapping[str, Any], first_ns: int) -> str:
    ts_ns = event.get("ts_ns")
    distance_s = (ts_ns - first_ns) / NS_PER_S if type(ts_ns) is int else 0.0
    fields = "  ".join(f"{k}={v}" for k, v in event.items() if k not in ("kind", "ts_ns", "grade"))
    return safe(f"{event.get('kind', '')}  +{distance_s:.3f} s  {event.get('grade', '')}  {fields}")
