"""``absent``: a first event that no second one of its key follows within the timespan.

Given events in the order of time only (:mod:`kwsiem.correlate.settled`). The rule fires when time has passed
the timespan, whether or not an event comes then.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from kwsiem.correlate.incident import Incidents, Key
from kwsiem.correlate.window import EventReader, EventWriter, Window, hashable
from kwsiem.event import Event
from kwsiem.rules.duration import format_duration
from kwsiem.rules.model import Rule

#: First events that wait for their second, of all keys; beyond, the oldest is let go and counted.
MAX_WAITING: Final = 200_000
_FIRST: Final = 1
_SECOND: Final = 2


class Absent(Window):
    """State of one such rule: the first events by key, and all of them in the order of their deadlines."""

    def __init__(self, rule: Rule, incidents: Incidents) -> None:
        super().__init__(rule, incidents)
        first, second = rule.correlation.steps
        self._reason = f"{first.name} without {second.name} within {format_duration(self._timespan_ns)}"
        self._waiting: dict[Key, deque[Event]] = {}
        self._deadlines: deque[tuple[int, Key]] = deque()

    @property
    def keys(self) -> int:
        """How many keys wait for something."""
        return len(self._waiting)

    @property
    def next_due_ns(self) -> int | None:
        """The next time at which something may fire without an event."""
        return self._deadlines[0][0] if self._deadlines else None

    def hit(self, key: Key, event: Event, steps: int) -> None:
        """An event that is the first, the second, or both."""
        self.due(event.ts_ns)  # an incident below may come at the very deadline
        if steps & _SECOND:
            waiting = self._waiting.get(key)
            while waiting and waiting[0].ts_ns < event.ts_ns:
                waiting.popleft()
            if waiting is not None and not waiting:
                del self._waiting[key]
        if steps & _FIRST:
            self._waiting.setdefault(key, deque()).append(event)
            self._deadlines.append((event.ts_ns + self._timespan_ns, key))
            if len(self._deadlines) > MAX_WAITING:
                self._evicted += 1
                self._take(*self._deadlines.popleft())

    def due(self, now_ns: int) -> None:
        """Time has come this far: fire for what has waited in vain."""
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            due_ns, key = self._deadlines.popleft()
            event = self._take(due_ns, key)
            if event is not None:
                self._fire(key, event, due_ns)

    def _take(self, due_ns: int, key: Key) -> Event | None:
        """The first event of a deadline, if it still waits."""
        waiting = self._waiting.get(key)
        if not waiting or waiting[0].ts_ns + self._timespan_ns != due_ns:
            return None
        event = waiting.popleft()
        if not waiting:
            del self._waiting[key]
        return event

    def _fire(self, key: Key, event: Event, due_ns: int) -> None:
        incident = self.incidents.open.get(key)
        if incident is None or not self.incidents.continues(key, incident, event, due_ns):
            self.incidents.begin(key, event, due_ns, event.ts_ns, 1, self._reason)

    def save(self, writer: EventWriter) -> dict[str, Any]:
        """As plain data."""
        waiting = [(key, [writer.event(event) for event in events]) for key, events in self._waiting.items()]
        return {**super().save(writer), "waiting": waiting}

    def load(self, saved: Any, reader: EventReader) -> None:
        """Take what :meth:`save` gave."""
        super().load(saved, reader)
        for key, events in saved["waiting"]:
            self._waiting[hashable(key)] = deque(map(reader.event, events))
        self._deadlines = deque(
            sorted(
                (
                    (event.ts_ns + self._timespan_ns, key)
                    for key, events in self._waiting.items()
                    for event in events
                ),
                key=lambda pair: pair[0],
            )
        )
