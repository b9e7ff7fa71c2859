"""Incidents: a met condition opens one, growth updates it, quiet closes it; nothing in it is uncounted.

While an incident is open, further matches of its key only count: they open no second one. It is updated
when its count has grown tenfold, and closes with its totals after ``suppress_ns`` without a match. A rule
that alerts without end (it matches everything) is held back; what it would have said is counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, Final, NamedTuple, Protocol

from kwsiem.alert import MAX_EVIDENCE_EVENTS, Alert
from kwsiem.event import Event, event_fields
from kwsiem.rules.model import Rule

#: Events of one probe may arrive this much out of order; an incident is not closed earlier than that.
LATENESS_NS: Final = 2_000_000_000
MAX_VALUES: Final = 50
#: Open incidents of one rule; beyond, the one that opened first is closed before its time (and says so).
MAX_OPEN: Final = 20_000
GROWTH: Final = 10
#: What a rule may say: this many alerts at once, then so many a second of event time.
BURST: Final = 10_000
ALERTS_PER_S: Final = 100
_CLOSED_NS: Final = -(2**62)

Key = Hashable
Raise = Callable[[Alert], None]


class Incident:
    """One open incident: what has happened since its condition was met."""

    __slots__ = (
        "block",
        "count",
        "early",
        "first_ns",
        "last",
        "last_ns",
        "look_again",
        "next_count",
        "offset_ns",
        "opened",
        "opened_ns",
        "reason",
        "said",
        "values",
    )

    def __init__(
        self,
        opened: Event,
        opened_ns: int,
        first_ns: int,
        count: int,
        reason: str,
        values: list[Any],
        offset_ns: int,
    ) -> None:
        self.opened = opened
        self.opened_ns = opened_ns
        self.first_ns = first_ns
        self.last_ns = opened_ns  # far in the past once it is closed: then no event continues it
        self.offset_ns = offset_ns  # kept to the end: all messages of an incident share its first time
        self.count = count
        self.next_count = count * GROWTH
        self.reason = reason
        self.said = True
        self.values: dict[Any, None] = dict.fromkeys(values[:MAX_VALUES]) if values else {}
        # Evidence: the events right after the opening, and the last one.
        self.early: list[Event] = []
        #: The count from which on :meth:`Incidents.grown` has something to do.
        self.look_again = 0
        self.last: Event | None = None
        #: What its alert asked to block: the alert's id and the value.
        self.block: tuple[str, str] | None = None

    @property
    def closed(self) -> bool:
        """Whether it is over."""
        return self.last_ns == _CLOSED_NS

    def go_on_as(self, other: Incident) -> None:
        """Have counted what another one has; it stays the incident that was told."""
        self.count, self.last_ns, self.values = other.count, other.last_ns, other.values
        self.early, self.last, self.look_again = other.early, other.last, 0

    def events(self) -> list[Event]:
        """The first events and the last one, at most MAX_EVIDENCE_EVENTS."""
        found = [self.opened, *self.early]
        if self.last is not None and self.last is not found[-1]:
            found.append(self.last)
        return found

    def add_value(self, value: Any) -> None:
        """A value of a value_count rule; the first MAX_VALUES are kept."""
        if len(self.values) < MAX_VALUES:
            self.values[value] = None


class Span(NamedTuple):
    """When an incident was open that is closed."""

    opened_ns: int
    ended_ns: int


class Watcher(Protocol):
    """What is told of the incidents of a rule (see :class:`kwsiem.correlate.cover.Cover`)."""

    def opened(self, key: Key, incident: Incident | Span) -> None:
        """An incident has opened."""

    def closed(self, key: Key, incident: Incident | Span, span: Span | None) -> None:
        """One has closed; without a span it is as if it had never been."""

    def holds(self, key: Key, at_ns: int) -> bool:
        """Whether an incident covers those of this key then."""


class Incidents:
    """The open incidents of one rule by key, at most MAX_OPEN."""

    def __init__(self, rule: Rule, emit: Raise) -> None:
        self.rule = rule
        self.open: dict[Key, Incident] = {}
        self.alerts = 0
        self.crowded_out = 0
        self.held_back = 0
        self.offset_ns = 0
        self.host = ""
        #: Called with an incident's block (the alert's id and the value) when it is not wanted any more.
        self.withdraw: Callable[[str, str], None] = _nothing
        #: Those that cover incidents of this rule, and those that cover others with them.
        self.covers: list[Watcher] = []
        self.watchers: list[Watcher] = []
        #: How many were counted but not told, since another rule told of them.
        self.covered = 0
        #: What closed and may still be asked for, while anybody watches.
        self.closed: deque[tuple[Key, Span]] = deque()
        self._asked_ns = -(2**62)
        self._emit = emit
        self._allowance = BURST
        self._refilled_ns = 0

    @property
    def rule(self) -> Rule:
        """The rule, whose texts may change while its state stays."""
        return self._rule

    @rule.setter
    def rule(self, rule: Rule) -> None:
        self._rule = rule
        self._template = _template(rule)  # a copy costs half of a new alert (measured)

    def begin(
        self,
        key: Key,
        event: Event,
        at_ns: int,
        first_ns: int,
        count: int,
        reason: str,
        values: list[Any] | None = None,
    ) -> Incident | None:
        """The condition is met: open an incident and say so; without a quiet time it is said and over."""
        incident = Incident(event, at_ns, first_ns, count, reason, values or [], self.offset_ns)
        if self.rule.suppress_ns:
            if len(self.open) >= MAX_OPEN:
                self.crowded_out += 1
                first = next(iter(self.open))
                self._close(first, self.open[first])
            self.open[key] = incident
            for watcher in self.watchers:
                watcher.opened(key, incident)
        if self.covers and self._is_covered(key, at_ns):
            incident.said = False
            self.covered += 1
        elif self._allowance <= 0 and not self._refill(at_ns):
            incident.said = False
            self.held_back += 1
        else:
            self._allowance -= 1
            self._say(incident, key, "open", at_ns)
        return incident if self.rule.suppress_ns else None

    def _is_covered(self, key: Key, at_ns: int) -> bool:
        return any(cover.holds(key, at_ns) for cover in self.covers)

    def continues(self, key: Key, incident: Incident, event: Event, at_ns: int) -> bool:
        """Count an event in the open incident of its key; False when it comes too late for it.

        An event after the quiet time closes the incident, whether or not :meth:`advance` came by before.
        """
        if incident.last_ns == _CLOSED_NS:
            return False
        if at_ns > incident.last_ns:
            if at_ns - incident.last_ns > self.rule.suppress_ns:
                self._close(key, incident)
                return False
            incident.last_ns = at_ns
        incident.count += 1
        incident.last = event
        if incident.count >= incident.look_again:
            self.grown(key, incident, event, at_ns)
        return True

    def grown(self, key: Key, incident: Incident, event: Event, at_ns: int) -> None:
        """The count has come to where there is something to do: keep evidence, say that it grew tenfold."""
        if len(incident.early) < MAX_EVIDENCE_EVENTS - 2:
            incident.early.append(event)
        else:
            incident.look_again = incident.next_count
        if incident.count >= incident.next_count:
            incident.next_count *= GROWTH
            self._say(incident, key, "update", at_ns)

    def advance(self, now_ns: int) -> None:
        """Close what has been quiet long enough."""
        self._refill(now_ns)
        self._forget_closed(now_ns)
        horizon_ns = now_ns - self.rule.suppress_ns - LATENESS_NS
        quiet = [(key, incident) for key, incident in self.open.items() if incident.last_ns < horizon_ns]
        for key, incident in quiet:
            self._close(key, incident)

    def close_all(self) -> None:
        """The rule ends: each open incident is closed with its totals."""
        for key, incident in list(self.open.items()):
            self._close(key, incident)

    def close(self, key: Key, incident: Incident) -> None:
        """Close one that is open."""
        self._close(key, incident)

    def take_back(self, key: Key, incident: Incident) -> None:
        """Without what was taken back it would not have opened: it is over, its block not wanted."""
        incident.reason += " (taken back)"
        block = incident.block
        self._close(key, incident)
        if block is not None:
            self.withdraw(*block)

    def reopen(self, key: Key, incident: Incident) -> None:
        """Open one that was made elsewhere, and say so."""
        self.open[key] = incident
        incident.offset_ns = self.offset_ns
        for watcher in self.watchers:
            watcher.opened(key, incident)
        if self.covers and self._is_covered(key, incident.opened_ns):
            incident.said = False
            self.covered += 1
        self._say(incident, key, "open", incident.opened_ns)

    def _close(self, key: Key, incident: Incident) -> None:
        del self.open[key]
        ended_ns = incident.last_ns + self.rule.suppress_ns
        self._say(incident, key, "close", ended_ns)
        incident.last_ns = _CLOSED_NS
        if self.watchers:
            span = Span(incident.opened_ns, ended_ns)
            self.closed.append((key, span))
            for watcher in self.watchers:
                watcher.closed(key, incident, span)

    def _forget_closed(self, now_ns: int) -> None:
        """Let go of what nobody asks for any more: up to the lateness before now all is decided."""
        while self.closed and self.closed[0][1].ended_ns < self._asked_ns:
            key, span = self.closed.popleft()
            for watcher in self.watchers:
                watcher.closed(key, span, None)
        self._asked_ns = now_ns - LATENESS_NS

    def _refill(self, now_ns: int) -> bool:
        """Let the allowance grow with time; whether there is any."""
        if not self._refilled_ns:
            self._refilled_ns = now_ns
        grown = (now_ns - self._refilled_ns) * ALERTS_PER_S // 10**9
        if grown > 0:
            self._allowance = min(BURST, self._allowance + grown)
            self._refilled_ns = now_ns
        return self._allowance > 0

    def _say(self, incident: Incident, key: Key, state: str, at_ns: int) -> None:
        """Raise an alert; its times are those of events, so that a replay says the very same."""
        if not incident.said:
            return
        opened = incident.opened
        fields = event_fields(opened)
        evidence = [_with_grade(opened, fields)]
        if incident.last is not None:
            evidence += map(evidence_of, incident.events()[1:])
        self.alerts += 1
        offset_ns = incident.offset_ns
        alert: Alert = self._template.__copy__()  # type: ignore[attr-defined]
        alert.state = state
        alert.identity = self._identity(key)
        alert.count = incident.count
        alert.first_ns = incident.first_ns + offset_ns
        alert.last_ns = incident.last_ns + offset_ns
        alert.raised_ns = at_ns + offset_ns
        alert.opened_ts_ns = incident.opened_ns
        alert.reason = incident.reason
        alert.fields = fields
        alert.values = list(incident.values)
        alert.evidence = evidence
        alert.host = self.host
        rule = self.rule
        if rule.block is not None and state != "close":
            address = alert.identity.get(rule.block.field) or fields.get(rule.block.field)
            if address:
                seconds = rule.block.for_ns // 10**9 or 1
                alert.block = {
                    "value": address,
                    "for_s": seconds,
                    "spoofable": rule.block.spoofable,
                    "evidence": _grade(opened, incident.last),
                }
                incident.block = (alert.id, address)
        self._emit(alert)

    def _identity(self, key: Key) -> dict[str, Any]:
        names = self.rule.correlation.group_by
        if len(names) == 1:
            return {names[0]: key}
        return dict(zip(names, key, strict=True)) if isinstance(key, tuple) and names else {}


def _nothing(_alert_id: str, _value: str) -> None:
    """Nobody blocks."""


def _grade(*events: Event | None) -> str:
    """``proven`` when each of the events proves its source, else ``spoofable``."""
    return "proven" if all(e.KIND.proven(e) for e in events if e is not None) else "spoofable"


def _template(rule: Rule) -> Alert:
    """An alert of a rule with everything that is the same in all of them; its lists are never changed."""
    return Alert(
        rule_id=rule.id,
        title=rule.title,
        level=rule.level,
        state="",
        identity={},
        count=0,
        first_ns=0,
        last_ns=0,
        raised_ns=0,
        opened_ts_ns=0,
        description=rule.description,
        tags=list(rule.tags),
        falsepositives=list(rule.falsepositives),
    )


def evidence_of(event: Event) -> dict[str, Any]:
    """An event as the flat ECS fields of an alert's evidence, with ``kind``, ``ts_ns`` and ``grade``."""
    return _with_grade(event, event_fields(event))


def _with_grade(event: Event, fields: dict[str, Any]) -> dict[str, Any]:
    return {"kind": event.KIND.name, "ts_ns": event.ts_ns, "grade": _grade(event), **fields}
