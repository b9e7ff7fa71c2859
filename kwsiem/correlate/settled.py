"""Rules that are decided in the order of time, once the lateness has passed.

What more events can undo cannot be decided at once: an event that is on its way may still change it. Such a
rule holds the events that concern it until nothing earlier can come, and then takes them, sorted, through
windows of its own: its correlation, and for a chain those below it, each incident that opens below being one
event above.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter, itemgetter
from typing import Any, Final, Union

import msgspec

from kwsiem.alert import Alert
from kwsiem.correlate.incident import LATENESS_NS, Incident, Incidents, Key
from kwsiem.correlate.window import EventReader, EventWriter, Window
from kwsiem.event import LOST_KIND, Event
from kwsiem.rules.model import Rule, Step

#: Events of one rule that wait to be decided; beyond, the oldest is decided early, and counted.
MAX_PENDING: Final = 200_000

MakeHandler = Callable[[type[Event], Sequence[Any]], Any]
MakeWindow = Callable[[Rule, Incidents], Window]


class Settled:
    """State of one such rule: events that wait, and the windows they go through, the rule's own the last."""

    def __init__(
        self, rule: Rule, incidents: Incidents, make_window: MakeWindow, make_handler: MakeHandler
    ) -> None:
        self.incidents = incidents
        self.late = 0
        self.hurried = 0
        self._make_handler = make_handler
        self._handlers: dict[type[Event], Callable[[Event], None]] = {}
        # Nearly all events come in the order of time; those that do not wait apart.
        self._ordered: deque[Event] = deque()
        self._newest_ns = 0
        self._stray: list[tuple[int, int, Event]] = []
        self._taken_back: dict[int, Event] = {}
        self._arrived = 0
        self._settled_ns = 0
        self._windows: list[Window] = []
        self._build(rule, incidents, make_window)
        self._rule = rule
        self._timers = [window for window in self._windows if hasattr(window, "due")]
        self.minds_losses = any(window.minds_losses for window in self._windows)

    def _build(self, rule: Rule, incidents: Incidents, make_window: MakeWindow) -> Window:
        """The window of a rule, after those of the correlations below it."""
        window = make_window(rule, incidents)
        for number, step in enumerate(rule.correlation.steps):
            if step.inner is not None:
                feed = Feed(step.inner, window, rule, step, number)
                self._build(step.inner, feed, make_window)
        self._windows.append(window)
        return window

    @property
    def rule(self) -> Rule:
        """The rule."""
        return self._rule

    @rule.setter
    def rule(self, rule: Rule) -> None:
        self._rule = self._windows[-1].rule = rule

    @property
    def keys(self) -> int:
        """How many keys are kept now, in all windows."""
        return sum(window.keys for window in self._windows)

    @property
    def evictions(self) -> int:
        """Keys let go before their time."""
        return sum(window.evictions for window in self._windows)

    @property
    def ungrouped(self) -> int:
        """Matches that belong to no group."""
        return sum(window.ungrouped for window in self._windows)

    @property
    def crowded(self) -> int:
        """Hits of keys that had no place of their own."""
        return sum(window.crowded for window in self._windows)

    def hold(self, event: Event) -> None:
        """An event that concerns the rule."""
        if event.ts_ns < self._settled_ns:
            self.late += 1  # what was before is decided: it counts as of now
            event = msgspec.structs.replace(event, ts_ns=self._settled_ns)
        if event.ts_ns >= self._newest_ns:
            self._newest_ns = event.ts_ns
            self._ordered.append(event)
        else:
            self._arrived += 1
            heapq.heappush(self._stray, (event.ts_ns, self._arrived, event))
        if len(self._ordered) + len(self._stray) > MAX_PENDING:
            self.hurried += 1
            self._take(self._next())

    def take_back(self, event: Event) -> None:
        """An event that never was; what is decided already stays."""
        if event.ts_ns >= self._settled_ns:
            self._taken_back[id(event)] = event

    def advance(self, now_ns: int) -> None:
        """Nothing earlier than the lateness before now can come any more: decide up to there."""
        self._settle(now_ns - LATENESS_NS)
        for window in self._windows:
            window.advance(now_ns)

    def finish(self, now_ns: int | None) -> None:
        """No more events will come: decide all that is there, and what time alone decides up to now."""
        last_ns = max((event.ts_ns for event in self._pending()), default=0)
        self._settle(max(last_ns, now_ns or 0))

    def _settle(self, until_ns: int) -> None:
        ordered, stray = self._ordered, self._stray
        while (ordered and ordered[0].ts_ns <= until_ns) or (stray and stray[0][0] <= until_ns):
            self._take(self._next() if stray else ordered.popleft())
        if until_ns > self._settled_ns:
            self._settled_ns = until_ns
            self._due(until_ns)
        if self._taken_back and not ordered and not stray:
            self._taken_back.clear()

    def _next(self) -> Event:
        """The earliest event that waits; of one instant a stray is the later one, for it came later."""
        ordered, stray = self._ordered, self._stray
        if stray and not (ordered and ordered[0].ts_ns <= stray[0][0]):
            return heapq.heappop(stray)[2]
        return ordered.popleft()

    def _pending(self) -> Iterator[Event]:
        """All events that wait, the earliest first."""
        stray = (event for _, _, event in sorted(self._stray, key=itemgetter(0, 1)))
        return heapq.merge(self._ordered, stray, key=attrgetter("ts_ns"))

    def _take(self, event: Event) -> None:
        """One event, in the order of time."""
        self._settled_ns = event.ts_ns
        if self._taken_back and self._taken_back.pop(id(event), None) is not None:
            return
        for window in self._timers:
            due_ns = window.next_due_ns  # type: ignore[attr-defined]
            if due_ns is not None and due_ns <= event.ts_ns:
                self._due(event.ts_ns)
                break
        cls = event.__class__
        handler = self._handlers.get(cls)
        if handler is None:
            looking = [window for window in self._windows if concerns(window, cls.KIND.name)]
            handler = self._handlers[cls] = self._make_handler(cls, looking).one
        handler(event)

    def _due(self, until_ns: int) -> None:
        """What time alone decides, in its order."""
        while True:
            due = [w.next_due_ns for w in self._timers if w.next_due_ns is not None]  # type: ignore[attr-defined]
            if not due or min(due) > until_ns:
                return
            for window in self._timers:
                window.due(min(due))

    def forget(self, cls: type[Event]) -> None:
        """No more events of this class will come."""
        if not any(event.__class__ is cls for event in self._pending()):
            self._handlers.pop(cls, None)

    def save(self, writer: EventWriter) -> dict[str, Any]:
        """Everything but the rule's own incidents, as plain data."""
        return {
            "pending": [
                writer.event(event) for event in self._pending() if id(event) not in self._taken_back
            ],
            "settled_ns": self._settled_ns,
            "counts": [self.late, self.hurried],
            "windows": [window.save(writer) for window in self._windows],
            "inner": [writer.incidents(window.incidents) for window in self._windows[:-1]],
        }

    def load(self, saved: Any, reader: EventReader) -> None:
        """Take what :meth:`save` gave; the rule's own incidents have been taken before."""
        for window, plain in zip(self._windows[:-1], saved["inner"], strict=True):
            reader.incidents(window.incidents, plain)
        for window, plain in zip(self._windows, saved["windows"], strict=True):
            window.load(plain, reader)
        for plain in saved["pending"]:
            self.hold(reader.event(plain))
        self._settled_ns = int(saved["settled_ns"])
        self.late, self.hurried = map(int, saved["counts"])


class Feed(Incidents):
    """The incidents of a correlation that another one looks at: who opens is an event for that one."""

    def __init__(self, rule: Rule, outer: Window, outer_rule: Rule, step: Step, number: int) -> None:
        super().__init__(rule, _nobody)
        self._outer = outer
        correlation = outer_rule.correlation
        known = rule.correlation.group_by
        self._key_of = [known.index(name) for name in step.group_by or correlation.group_by]
        field = step.field or correlation.field
        self._value_of = known.index(field) if field else -1
        self._bits = 1 << number if correlation.type in ("sequence", "temporal", "absent") else 0

    def _say(self, incident: Incident, key: Key, state: str, at_ns: int) -> None:
        if state != "open":
            return
        self.alerts += 1
        assert isinstance(incident.opened, Event)
        event = incident.opened
        if event.ts_ns != at_ns:
            event = msgspec.structs.replace(event, ts_ns=at_ns)
        parts = key if len(self.rule.correlation.group_by) != 1 else (key,)
        assert isinstance(parts, tuple)
        chosen = tuple(parts[position] for position in self._key_of)
        outer_key = chosen[0] if len(chosen) == 1 else chosen
        hit = self._outer.hit  # type: ignore[attr-defined]
        if self._bits:
            hit(outer_key, event, self._bits)
        elif self._value_of >= 0:
            hit(outer_key, event, parts[self._value_of])
        else:
            hit(outer_key, event)


def _nobody(_alert: Alert) -> None:
    """What goes on below is nobody's alert."""


State = Union[Window, Settled]


def concerns(state: State, kind: str) -> bool:
    """Whether a rule, or one of its windows, looks at events of a kind."""
    return kind in state.rule.events or (state.minds_losses and kind == LOST_KIND)
