"""Sliding windows in event time: exact, bounded for each key by the threshold, bounded in keys by a cap.

"At least T within W" needs only the newest T time stamps of a key, "T distinct values within W" only the T
values seen last: both are exact. Windows are half-open: an event at t counts what lies in (t - W, t]. Keys
live in two generations; what was not touched for a whole W (and the lateness) goes with the older one.

Memory for each key (measured, 64-bit): 31 bytes with one hit, 162 with T = 5, the key itself apart.
"""

from __future__ import annotations

from bisect import insort
from typing import Any, Final

from kwsiem.correlate.incident import LATENESS_NS, Incident, Incidents, Key
from kwsiem.event import Event
from kwsiem.rules.duration import format_duration
from kwsiem.rules.model import Rule

MAX_KEYS: Final = 200_000
#: Time stamps kept for a key at the very most, whatever timespan and threshold.
MAX_STAMPS: Final = 50_000


class Window:
    """State of one rule: keys in two generations, and its incidents. Subclasses say what a hit does."""

    def __init__(self, rule: Rule, incidents: Incidents) -> None:
        self.rule = rule
        self.incidents = incidents
        self.evictions = 0
        self.late = 0
        self.ungrouped = 0
        self._timespan_ns = rule.correlation.timespan_ns
        self._threshold = rule.correlation.threshold
        self._young: dict[Key, Any] = {}
        self._old: dict[Key, Any] = {}
        self._turn_ns = 0

    @property
    def keys(self) -> int:
        """How many keys are kept now."""
        return len(self._young) + len(self._old)

    def advance(self, now_ns: int) -> None:
        """Let go of keys that no window can need any more, close incidents that are quiet."""
        if now_ns >= self._turn_ns:
            self._turn_ns = now_ns + self._timespan_ns + LATENESS_NS
            self._old = self._young
            self._young = {}
        self.incidents.advance(now_ns)

    def count_ungrouped(self) -> None:
        """A match whose group-by field is not known: it belongs to no key."""
        self.ungrouped += 1

    def _admit(self, key: Key, state: Any) -> None:
        """A key's first hit; at the cap the older generation goes before its time, and that is counted."""
        self._young[key] = state
        if len(self._young) >= MAX_KEYS // 2:
            self.evictions += len(self._old)
            self._old = self._young
            self._young = {}

    def _find(self, key: Key) -> Any:
        """The state of a key that is not in the young generation, brought there; None when it has none.

        An open incident stands in its key's place, so that the busiest keys cost one look-up.
        """
        state = self._old.pop(key, None) if self._old else None
        if state is None and self.incidents.open:
            state = self.incidents.open.get(key)
        if state is not None:
            self._young[key] = state
        return state

    def _begin(
        self, key: Key, event: Event, first_ns: int, count: int, reason: str, values: list[Any] | None = None
    ) -> None:
        """The condition is met: the incident takes the place of the window."""
        incident = self.incidents.begin(key, event, first_ns, count, reason, values)
        if incident is None:
            self._young.pop(key, None)
            self._old.pop(key, None)
        else:
            self._young[key] = incident


class Any_(Window):  # noqa: N801 - "any" is the word in the rule set
    """No correlation: every match fires, or counts in its open incident."""

    def hit(self, key: Key, event: Event) -> None:
        """One match."""
        incident = self.incidents.open.get(key)
        if incident is None or not self.incidents.continues(key, incident, event):
            self.incidents.begin(key, event, event.ts_ns, 1, "matched")


class EventCount(Window):
    """``event_count``: so many matches of a key within the timespan."""

    def __init__(self, rule: Rule, incidents: Incidents) -> None:
        super().__init__(rule, incidents)
        # A window that has not fired holds at most T - 1 events; the lateness may span several windows.
        windows = 1 + -(-LATENESS_NS // self._timespan_ns)
        self._keep = min(MAX_STAMPS, (self._threshold - 1) * windows + self._threshold)
        self._reason = f"events in {format_duration(self._timespan_ns)} (at least {self._threshold})"

    def hit(self, key: Key, event: Event) -> None:
        """One match."""
        ts_ns = event.ts_ns
        stamps = self._young.get(key) or self._find(key)
        if stamps.__class__ is Incident:
            if self.incidents.continues(key, stamps, event):
                return
            del self._young[key]
            stamps = None
        if stamps is None:
            if self._threshold > 1:
                self._admit(key, ts_ns)  # a bare number until the second hit: most keys never get one
            else:
                self._fire(key, event, ts_ns, 1)
            return
        if stamps.__class__ is int:
            stamps = self._young[key] = [stamps]
        if ts_ns >= stamps[-1]:
            stamps.append(ts_ns)
            if len(stamps) >= self._threshold and ts_ns - stamps[-self._threshold] < self._timespan_ns:
                self._fire(key, event, stamps[-self._threshold], self._threshold)
                return
        elif self._hit_late(key, event, stamps):
            return
        if len(stamps) > self._keep:
            del stamps[0]

    def _hit_late(self, key: Key, event: Event, stamps: list[int]) -> bool:
        """An event older than the newest of its key: it may complete a window that ends after it."""
        self.late += 1
        ts_ns, need = event.ts_ns, self._threshold
        insort(stamps, ts_ns)
        for first in range(len(stamps) - need + 1):
            last_ns = stamps[first + need - 1]
            if stamps[first] <= ts_ns <= last_ns and last_ns - stamps[first] < self._timespan_ns:
                self._fire(key, event, stamps[first], need)
                return True
        return False

    def _fire(self, key: Key, event: Event, first_ns: int, count: int) -> None:
        self._begin(key, event, first_ns, count, f"{count} {self._reason}")


class ValueCount(Window):
    """``value_count``: so many distinct values of a field for a key within the timespan.

    A key's values are kept in the order they were last seen; one hit is a bare pair until the second value.
    """

    def __init__(self, rule: Rule, incidents: Incidents) -> None:
        super().__init__(rule, incidents)
        field = rule.correlation.field
        self._reason = (
            f"distinct {field} in {format_duration(self._timespan_ns)} (at least {self._threshold})"
        )

    def hit(self, key: Key, event: Event, value: Any) -> None:
        """One match with its value."""
        ts_ns = event.ts_ns
        seen = self._young.get(key) or self._find(key)
        if seen.__class__ is Incident:
            if self.incidents.continues(key, seen, event):
                seen.add_value(value)
                return
            del self._young[key]
            seen = None
        if seen is None:
            if self._threshold > 1:
                self._admit(key, (value, ts_ns))
            else:
                self._fire(key, event, {value: ts_ns})
            return
        if seen.__class__ is tuple:
            if seen[0] == value:
                self._young[key] = (value, max(ts_ns, seen[1]))
                return
            seen = self._young[key] = {seen[0]: seen[1]}
        newest_ns = seen[next(reversed(seen))]
        if ts_ns >= newest_ns:
            seen.pop(value, None)
            seen[value] = ts_ns
            if len(seen) >= self._threshold:
                self._check(key, event, seen, ts_ns)
        else:
            self._hit_late(key, event, value, seen)

    def _check(self, key: Key, event: Event, seen: dict[Any, int], end_ns: int) -> None:
        """Drop what has left the window that ends now, fire when enough is left."""
        horizon_ns = end_ns - self._timespan_ns
        gone = []
        for value, ts_ns in seen.items():
            if ts_ns > horizon_ns:
                break
            gone.append(value)
        for value in gone:
            del seen[value]
        if len(seen) >= self._threshold:
            self._fire(key, event, seen)

    def _hit_late(self, key: Key, event: Event, value: Any, seen: dict[Any, int]) -> None:
        """An event older than the newest of its key takes its place in time, and may complete a window."""
        self.late += 1
        ts_ns = event.ts_ns
        if seen.get(value, -1) >= ts_ns:
            return
        seen[value] = ts_ns
        ordered = sorted(seen.items(), key=lambda item: item[1])
        seen.clear()
        seen.update(ordered)
        if len(seen) >= self._threshold:
            self._check(key, event, seen, ordered[-1][1])

    def _fire(self, key: Key, event: Event, seen: dict[Any, int]) -> None:
        values = list(seen)
        more = " …" if len(values) > 10 else ""
        shown = ", ".join(str(value)[:64] for value in values[:10]) + more
        reason = f"{len(values)} {self._reason}: {shown}"
        self._begin(key, event, min(seen.values()), len(values), reason, values)
