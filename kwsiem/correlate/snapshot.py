"""The state of all rules as bytes and back, so that an engine that was killed goes on where it was.

Plain msgpack, each rule by itself: one that cannot be written or read costs no other. Events are written as
the number of their kind in a table and their values. States come back only to a rule of the same id and
fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from kwsiem.correlate.incident import Incident, Incidents, Span
from kwsiem.correlate.settled import State
from kwsiem.correlate.window import hashable
from kwsiem.event import Event, EventKind, event_class

VERSION: Final = 1

Restore = Callable[[State], None]


class _Rule(msgspec.Struct):
    id: str
    fingerprint: str
    state: msgspec.Raw


class _Snapshot(msgspec.Struct):
    version: int
    kinds: list[EventKind]
    rules: list[_Rule]


class Writer:
    """Writes events as (number of the kind, values …, time)."""

    def __init__(self) -> None:
        self.kinds: list[EventKind] = []
        self._numbers: dict[type[Event], int] = {}

    def event(self, event: Event) -> tuple[Any, ...]:
        """One event as plain data."""
        cls = event.__class__
        number = self._numbers.get(cls)
        if number is None:
            number = self._numbers[cls] = len(self.kinds)
            self.kinds.append(cls.KIND)
        return (number, *msgspec.structs.astuple(event))

    def incidents(self, incidents: Incidents) -> dict[str, Any]:
        """The open incidents of a rule and its counts."""
        open_now = [(key, self._incident(incident)) for key, incident in incidents.open.items()]
        counts = [incidents.alerts, incidents.crowded_out, incidents.held_back, incidents.covered]
        return {"open": open_now, "counts": counts, "closed": list(incidents.closed)}

    def _incident(self, incident: Incident) -> dict[str, Any]:
        plain = {name: getattr(incident, name) for name in _PLAIN}
        plain["opened"] = self.event(incident.opened)
        plain["early"] = [self.event(event) for event in incident.early]
        last = incident.last
        if last is not None and incident.early and last is incident.early[-1]:
            last = None  # it is there already
        plain["last"] = None if last is None else self.event(last)
        plain["values"] = list(incident.values)
        plain["block"] = incident.block
        return plain


_PLAIN: Final = (
    "opened_ns", "first_ns", "last_ns", "offset_ns", "count", "next_count", "look_again", "reason", "said",
)  # fmt: skip


class Reader:
    """Makes events again of what a :class:`Writer` wrote."""

    def __init__(self, kinds: list[EventKind]) -> None:
        self._classes = [event_class(kind, 0) for kind in kinds]

    def event(self, plain: Any) -> Event:
        """One event."""
        number, *values = plain
        made: Any = self._classes[number]
        event: Event = made(*values)
        return event

    def incidents(self, incidents: Incidents, plain: Any) -> None:
        """Open again what was open."""
        for key, saved in plain["open"]:
            opened = self.event(saved["opened"])
            incident = Incident(
                opened, saved["opened_ns"], saved["first_ns"], saved["count"], saved["reason"], [], 0
            )
            for name in _PLAIN:
                setattr(incident, name, saved[name])
            incident.values = dict.fromkeys(saved["values"])
            block = saved.get("block")  # not in a snapshot of an earlier version
            incident.block = (str(block[0]), str(block[1])) if block else None
            incident.early = [self.event(event) for event in saved["early"]]
            if saved["last"]:
                incident.last = self.event(saved["last"])
            elif incident.early:
                incident.last = incident.early[-1]
            incidents.open[hashable(key)] = incident
        counts = [*map(int, plain["counts"]), 0][:4]  # a snapshot of an earlier version has three
        incidents.alerts, incidents.crowded_out, incidents.held_back, incidents.covered = counts
        for key, (opened_ns, ended_ns) in plain.get("closed", ()):
            incidents.closed.append((hashable(key), Span(int(opened_ns), int(ended_ns))))


def save_states(states: list[State]) -> bytes:
    """The states of all rules; a rule whose state cannot be written is left out."""
    writer = Writer()
    rules = []
    for state in states:
        plain = {"incidents": writer.incidents(state.incidents), "state": state.save(writer)}
        try:
            encoded = msgspec.msgpack.encode(plain)
        except (UnicodeEncodeError, OverflowError, TypeError):
            continue
        rules.append(_Rule(state.rule.id, state.rule.fingerprint, msgspec.Raw(encoded)))
    return msgspec.msgpack.encode(_Snapshot(VERSION, writer.kinds, rules))


def restore_states(data: bytes) -> dict[tuple[str, str], Restore]:
    """What gives each rule (by id and fingerprint) its state back.

    Raises msgspec.DecodeError for bytes that are no snapshot; what it returns raises LookupError, TypeError
    or ValueError when the state of that rule does not fit.
    """
    snapshot = msgspec.msgpack.decode(data, type=_Snapshot)
    if snapshot.version != VERSION:
        return {}
    reader = Reader(snapshot.kinds)
    return {(rule.id, rule.fingerprint): _restorer(reader, bytes(rule.state)) for rule in snapshot.rules}


def _restorer(reader: Reader, encoded: bytes) -> Restore:
    def restore(state: State) -> None:
        plain = msgspec.msgpack.decode(encoded)
        reader.incidents(state.incidents, plain["incidents"])
        state.load(plain["state"], reader)

    return restore
