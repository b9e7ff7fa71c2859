"""Sliding windows in event time: exact, bounded for each key by the threshold, bounded in keys by a cap.

"At least T within W" needs only about the newest 2 T time stamps of a key, "T distinct values within W" only
about the 2 T values seen last: both are exact, whatever the order within the lateness. Windows are half-open:
an event at t counts what lies in (t - W, t]. Keys live in two generations; what was not touched for a whole W
(and the lateness) goes with the older one.

Memory for each key (measured, 64-bit): 31 bytes with one hit, 162 with T = 5, the key itself apart.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from kwsiem.correlate.crowd import Crowd
from kwsiem.correlate.incident import LATENESS_NS, Incident, Incidents, Key
from kwsiem.event import Event
from kwsiem.rules.duration import format_duration
from kwsiem.rules.model import Rule

if TYPE_CHECKING:
    from kwsiem.correlate.retract import Journal

MAX_KEYS: Final = 200_000
#: Time stamps kept for a key at the very most, whatever timespan and threshold.
MAX_STAMPS: Final = 600_000
#: Time stamps (40 bytes each) that the busy keys of one generation of a rule may need together.
MAX_RULE_STAMPS: Final = 4_000_000
#: What a key is reckoned to need at its second hit; when it comes to have so many, all that it may ever need.
LIGHT: Final = 64
#: Past times kept of one value; more only matter when the timespan is a small part of the lateness.
MAX_TIMES: Final = 64
#: From this threshold on values are kept in an OrderedDict (887 against 2,082 ns at 1,000, measured).
ORDERED_FROM: Final = 100


class EventWriter(Protocol):
    """What makes plain data of an event for a snapshot."""

    def event(self, event: Event) -> Any:
        """One event as plain data."""

    def incidents(self, incidents: Incidents) -> Any:
        """The open incidents of a rule as plain data."""


class EventReader(Protocol):
    """What makes events again."""

    def event(self, plain: Any) -> Event:
        """One event."""

    def incidents(self, incidents: Incidents, plain: Any) -> None:
        """Open again what was open."""


class Window:
    """State of one rule: keys in two generations, and its incidents. Subclasses say what a hit does.

    Who has no place any more (:class:`~kwsiem.correlate.crowd.Crowd`) is counted in a sketch until it has
    come often enough to be worth one: those who were there first are not driven out.
    """

    #: Whether it wants to know when events were lost (its method ``lost``).
    minds_losses: ClassVar[bool] = False

    def __init__(self, rule: Rule, incidents: Incidents) -> None:
        self.rule = rule
        self.incidents = incidents
        #: Set where events may be taken back: takes the matches in place of ``hit``.
        self.journal: Journal | None = None
        self._evicted = 0
        self.late = 0
        self.ungrouped = 0
        self._timespan_ns = rule.correlation.timespan_ns
        self._threshold = rule.correlation.threshold
        self._young: dict[Key, Any] = {}
        self._old: dict[Key, Any] = {}
        self._turn_ns = 0
        self._weight = 0
        # Steps may group by a field of their own under one common name (aliases).
        own = next((step.group_by for step in rule.correlation.steps if step.group_by), ())
        self._crowd = Crowd(own or rule.correlation.group_by, MAX_KEYS // 2)
        # A window that has not fired holds at most T - 1 events; the lateness may span several windows.
        windows = 1 + -(-LATENESS_NS // max(1, self._timespan_ns))
        self._keep = min(MAX_STAMPS, (self._threshold - 1) * windows + self._threshold)
        self._keep_most = self._keep + self._keep // 8  # let go of in one piece, not one by one

    @property
    def rule(self) -> Rule:
        """The rule; what gives the state its meaning never changes, its quiet time and its texts may."""
        return self._rule

    @rule.setter
    def rule(self, rule: Rule) -> None:
        self._rule = rule
        self._suppress_ns = rule.suppress_ns

    @property
    def keys(self) -> int:
        """How many keys are kept now."""
        return len(self._young) + len(self._old)

    def state_of(self, key: Key) -> Any:
        """The state of a key, an open incident being one; None when it has none."""
        for states in (self._young, self._old, self.incidents.open):
            if key in states:
                return states[key]
        return None

    def put(self, key: Key, state: Any) -> None:
        """Give a key another state, or with None take the one it has."""
        self._young.pop(key, None)
        self._old.pop(key, None)
        if state is not None:
            self._young[key] = state

    @property
    def evictions(self) -> int:
        """Keys let go before their time, and hits that not even a sketch could take."""
        return self._evicted + self._crowd.uncounted

    @property
    def crowded(self) -> int:
        """Hits of keys that had no place of their own and were counted in the sketch."""
        return self._crowd.counted

    def advance(self, now_ns: int) -> None:
        """Let go of keys that no window can need any more, close incidents that are quiet."""
        if now_ns >= self._turn_ns:
            self._turn_ns = now_ns + self._timespan_ns + LATENESS_NS
            self._turn()
            self._crowd.turn()
        self.incidents.advance(now_ns)

    def count_ungrouped(self) -> None:
        """A match whose group-by field is not known: it belongs to no key."""
        self.ungrouped += 1

    def _turn(self) -> None:
        self._old = self._young
        self._young = {}
        self._weight = 0

    def _promote(self, key: Key, state: Any) -> None:
        """A key has come so often without a place that it gets one; a bound holds for these too."""
        if len(self._young) >= MAX_KEYS:
            self._evicted += len(self._old)
            self._turn()
        self._young[key] = state
        self._weigh(self._stamps_of(state))

    def _weigh(self, stamps: int) -> None:
        """A key has become busy and may come to need so many time stamps; bounded like the keys."""
        self._weight += stamps
        if self._weight > MAX_RULE_STAMPS:
            self._evicted += len(self._old)
            self._turn()

    def _find(self, key: Key) -> Any:
        """The state of a key that is not in the young generation, brought there; None when it has none.

        An open incident stands in its key's place, so that the busiest keys cost one look-up.
        """
        state = self._old.pop(key, None) if self._old else None
        if state is None and self.incidents.open:
            state = self.incidents.open.get(key)
        if state is not None:
            self._young[key] = state
            self._weight += self._stamps_of(state)
        return state

    def _stamps_of(self, state: Any) -> int:
        """How many time stamps the state of a key may come to need; 0 for one that is not busy."""
        if state.__class__ in (int, tuple, Incident):
            return 0
        return self._keep if len(state) >= LIGHT else min(self._keep, LIGHT)

    def _begin(
        self, key: Key, event: Event, first_ns: int, count: int, reason: str, values: list[Any] | None = None
    ) -> None:
        """The condition is met: the incident takes the place of the window."""
        incident = self.incidents.begin(key, event, event.ts_ns, first_ns, count, reason, values)
        if incident is None:
            self._young.pop(key, None)
            self._old.pop(key, None)
        else:
            self._young[key] = incident

    # -- snapshots: the states of a key as plain data and back -----------------------------------------

    def save(self, _writer: EventWriter) -> dict[str, Any]:
        """Everything but the incidents, as plain data; what :meth:`load` of the same rule takes."""
        return {
            "turn_ns": self._turn_ns,
            "weight": self._weight,
            "counts": [self._evicted, self.late, self.ungrouped],
            "young": [(key, self._plain(state)) for key, state in self._young.items()],
            "old": [(key, self._plain(state)) for key, state in self._old.items()],
        }

    def load(self, saved: Any, _reader: EventReader) -> None:
        """Take what :meth:`save` gave; the incidents have been taken before."""
        self._turn_ns, self._weight = int(saved["turn_ns"]), int(saved["weight"])
        self._evicted, self.late, self.ungrouped = map(int, saved["counts"])
        for generation, name in ((self._young, "young"), (self._old, "old")):
            for plain_key, plain in saved[name]:
                key = hashable(plain_key)
                state = self.incidents.open.get(key) if plain is None else self._state(plain)
                if state is not None:
                    generation[key] = state

    def _plain(self, state: Any) -> Any:
        """The state of one key as plain data; None for an incident, which is saved as such."""
        return None if state.__class__ is Incident else state

    def _state(self, plain: Any) -> Any:
        """The state of one key from plain data."""
        return plain


def hashable(plain: Any) -> Any:
    """A key as it was: lists of a snapshot are tuples."""
    return tuple(plain) if isinstance(plain, list) else plain


class Any_(Window):  # noqa: N801 - "any" is the word in the rule set
    """No correlation: every match fires, or counts in its open incident."""

    def hit(self, key: Key, event: Event) -> None:
        """One match."""
        incident = self.incidents.open.get(key)
        if incident is None or not self.incidents.continues(key, incident, event, event.ts_ns):
            self.incidents.begin(key, event, event.ts_ns, event.ts_ns, 1, "matched")


class EventCount(Window):
    """``event_count``: so many matches of a key within the timespan."""

    def __init__(self, rule: Rule, incidents: Incidents) -> None:
        super().__init__(rule, incidents)
        self._reason = (
            f"{self._threshold} events in {format_duration(self._timespan_ns)} (at least {self._threshold})"
        )

    def hit(self, key: Key, event: Event) -> None:
        """One match."""
        ts_ns = event.ts_ns
        young = self._young
        stamps = young[key] if key in young else self._find(key)
        if stamps.__class__ is Incident:
            if 0 <= ts_ns - stamps.last_ns <= self._suppress_ns:  # as in Incidents.continues, without a call
                stamps.last_ns = ts_ns
                stamps.count += 1
                stamps.last = event
                if stamps.count >= stamps.look_again:
                    self.incidents.grown(key, stamps, event, ts_ns)
                return
            if self.incidents.continues(key, stamps, event, ts_ns):
                return
            del young[key]
            stamps = None
        if stamps is None:
            self._first(key, event, ts_ns)
            return
        if stamps.__class__ is int:
            stamps = young[key] = [stamps]
            self._weigh(min(self._keep, LIGHT))
        if ts_ns >= stamps[-1]:
            stamps.append(ts_ns)
            if len(stamps) >= self._threshold and ts_ns - stamps[-self._threshold] < self._timespan_ns:
                self._begin(key, event, stamps[-self._threshold], self._threshold, self._reason)
                return
        elif self._hit_late(key, event, stamps):
            return
        if len(stamps) >= LIGHT:
            if len(stamps) == LIGHT:
                self._weigh(self._keep - LIGHT)
            elif len(stamps) > self._keep_most:
                del stamps[: -self._keep]

    def _first(self, key: Key, event: Event, ts_ns: int) -> None:
        """A key's first hit: a bare number until the second, since most keys never get one."""
        if self._threshold <= 1:
            self._begin(key, event, ts_ns, 1, self._reason)
        elif self._crowd.admits(key, len(self._young)):
            self._young[key] = ts_ns
        elif self._crowd.count(key) >= max(2, self._threshold - 1):
            # It has come often enough: from now on it is counted exactly, its past hits taken as of now.
            self._promote(key, [ts_ns] * (self._threshold - 1))

    def _hit_late(self, key: Key, event: Event, stamps: list[int]) -> bool:
        """An event older than the newest of its key: it may complete a window that ends after it."""
        self.late += 1
        ts_ns, need = event.ts_ns, self._threshold
        insort(stamps, ts_ns)
        for first in range(len(stamps) - need + 1):
            last_ns = stamps[first + need - 1]
            if stamps[first] <= ts_ns <= last_ns and last_ns - stamps[first] < self._timespan_ns:
                self._begin(key, event, stamps[first], need, self._reason)
                return True
        return False


class ValueCount(Window):
    """``value_count``: so many distinct values of a field for a key within the timespan.

    One hit is a bare pair; from the second on a key has a :class:`Values`.
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
        young = self._young
        seen = young[key] if key in young else self._find(key)
        if seen.__class__ is Incident:
            if self.incidents.continues(key, seen, event, ts_ns):
                seen.add_value(value)
                return
            del self._young[key]
            seen = None
        if seen is None:
            self._first(key, event, value, ts_ns)
            return
        if seen.__class__ is tuple:
            seen = self._young[key] = Values(seen[0], seen[1], self._threshold > ORDERED_FROM)
            self._weigh(min(self._keep, LIGHT))
        if ts_ns >= seen.newest_ns:
            count = seen.add(value, ts_ns, self._timespan_ns, self._keep)
            if count >= self._threshold:
                live = seen.live
                self._fire(key, event, live[next(iter(live))], list(live))
            elif count >= LIGHT and not seen.heavy:
                seen.heavy = True
                self._weigh(self._keep - LIGHT)
        else:
            self._hit_late(key, event, value, seen)

    def _first(self, key: Key, event: Event, value: Any, ts_ns: int) -> None:
        """A key's first value: a bare pair until the second."""
        if self._threshold <= 1:
            self._fire(key, event, ts_ns, [value])
        elif self._crowd.admits(key, len(self._young)):
            self._young[key] = (value, ts_ns)
        elif self._crowd.count_value(key, value) >= max(2, self._threshold - 1):
            # Enough distinct values: exact from now on, those before it stand for themselves unnamed.
            seen = Values(value, ts_ns, self._threshold > ORDERED_FROM)
            for number in range(self._threshold - 2):
                seen.add(f"(earlier {number + 1})", ts_ns, self._timespan_ns, self._keep)
            self._promote(key, seen)

    def _hit_late(self, key: Key, event: Event, value: Any, seen: Values) -> None:
        """An event older than the newest of its key takes its place in time; it may complete a window."""
        self.late += 1
        found = seen.add_late(value, event.ts_ns, self._timespan_ns, self._threshold)
        if found:
            self._fire(key, event, *found)
        else:
            seen.trim(self._timespan_ns, self._keep)

    def _fire(self, key: Key, event: Event, first_ns: int, values: list[Any]) -> None:
        more = " …" if len(values) > 10 else ""
        shown = ", ".join(str(value)[:64] for value in values[:10]) + more
        reason = f"{len(values)} {self._reason}: {shown}"
        self._begin(key, event, first_ns, len(values), reason, values)

    def _plain(self, state: Any) -> Any:
        if isinstance(state, Values):
            return {
                "live": list(state.live.items()),
                "newest": state.newest_ns,
                "past": list(state.past.items()),
            }
        return super()._plain(state)

    def _state(self, plain: Any) -> Any:
        if isinstance(plain, list):
            return (plain[0], int(plain[1]))
        seen = Values(None, int(plain["newest"]), self._threshold > ORDERED_FROM)
        del seen.live[None]
        seen.live.update((value, int(ts_ns)) for value, ts_ns in plain["live"])
        seen.past = {value: list(map(int, times)) for value, times in plain["past"]}
        return seen


class Temporal(ValueCount):
    """``temporal``: so many of the steps have been met by a key within the timespan, in any order."""

    def __init__(self, rule: Rule, incidents: Incidents) -> None:
        super().__init__(rule, incidents)
        self._names = [step.name for step in rule.correlation.steps]

    def hit(self, key: Key, event: Event, steps: int) -> None:
        """One event that meets the steps whose bits are set; all of them count before it is decided."""
        self._met: tuple[int, list[Any]] | None = None
        for number, name in enumerate(self._names):
            if steps >> number & 1:
                super().hit(key, event, name)
                if self._young.get(key).__class__ is Incident:
                    return  # one event counts once in it
        if self._met is not None:
            first_ns, values = self._met
            span = format_duration(self._timespan_ns)
            self._begin(key, event, first_ns, len(values), f"{' and '.join(values)} in {span}", values)

    def _fire(self, key: Key, event: Event, first_ns: int, values: list[Any]) -> None:  # noqa: ARG002
        before_ns, before = self._met or (first_ns, [])
        self._met = (min(before_ns, first_ns), list(dict.fromkeys([*before, *values])))


class Values:
    """The values of one key.

    ``live`` has the values of the window that ends with the newest event, with the time each was last seen,
    in that order: their number is the answer as long as events come in order. ``past`` has earlier times
    that a window which ends within the lateness may still need. Of three times of one value that lie
    within one timespan the middle one never matters, so at most a few are kept.
    """

    __slots__ = ("heavy", "live", "newest_ns", "past")

    def __init__(self, value: Any, ts_ns: int, ordered: bool) -> None:
        # A plain dict finds its first entry slowly once many before it are deleted.
        self.live: dict[Any, int] = OrderedDict() if ordered else {}
        self.live[value] = ts_ns
        self.newest_ns = ts_ns
        self.past: dict[Any, list[int]] = {}
        self.heavy = False  # whether it is reckoned with all that it may ever need

    def __len__(self) -> int:
        """How many values there are."""
        return len(self.live)

    def add(self, value: Any, ts_ns: int, timespan_ns: int, keep: int) -> int:
        """Take an event that is not older than any before; the number of distinct values in its window."""
        live = self.live
        seen_ns = live.pop(value, None)
        live[value] = self.newest_ns = ts_ns
        if seen_ns is not None and seen_ns != ts_ns:
            self._remember(value, seen_ns, ts_ns, timespan_ns)
        horizon_ns = ts_ns - timespan_ns
        while True:
            oldest = next(iter(live))
            oldest_ns = live[oldest]
            if oldest_ns > horizon_ns:
                break
            del live[oldest]
            self._remember(oldest, oldest_ns, None, timespan_ns)
        if len(self.past) > 2 * keep:
            self.trim(timespan_ns, keep)
        return len(live)

    def add_late(
        self, value: Any, ts_ns: int, timespan_ns: int, threshold: int
    ) -> tuple[int, list[Any]] | None:
        """Take an event older than the newest; first time and values of a window that it completes."""
        seen_ns = self.live.get(value)
        if ts_ns > self.newest_ns - timespan_ns and (seen_ns is None or seen_ns < ts_ns):
            if seen_ns is not None:
                del self.live[value]
                insort(self.past.setdefault(value, []), seen_ns)
            self._insert(value, ts_ns)
        elif seen_ns != ts_ns:
            insort(self.past.setdefault(value, []), ts_ns)
        if len(self.live.keys() | self.past.keys()) < threshold:
            return None
        return self._window_with(ts_ns, timespan_ns, threshold)

    def trim(self, timespan_ns: int, keep: int) -> None:
        """Let go of past times that no window can need, then of the values not seen for longest."""
        horizon_ns = self.newest_ns - timespan_ns - LATENESS_NS
        if len(self.past) > 2 * keep:
            recent = sorted(self.past.items(), key=lambda item: item[1][-1])[-keep:]
            self.past = {value: times for value, times in recent if times[-1] > horizon_ns}
        for value, times in self.past.items():
            if len(times) > 4:
                self.past[value] = _thinned(times, timespan_ns)[-MAX_TIMES:]

    def _remember(self, value: Any, ts_ns: int, next_ns: int | None, timespan_ns: int) -> None:
        """A time that is the newest of its value no more, unless its neighbours say all that it says."""
        times = self.past.get(value)
        if not times:
            self.past[value] = [ts_ns]
        elif next_ns is None or next_ns - times[-1] > timespan_ns:
            times.append(ts_ns)
            if len(times) > 4:
                del times[: bisect_right(times, self.newest_ns - timespan_ns - LATENESS_NS)]
                if len(times) > 4:
                    times[:] = _thinned(times, timespan_ns)[-MAX_TIMES:]

    def _insert(self, value: Any, ts_ns: int) -> None:
        """Put a value into ``live`` behind those not seen later: few are, since lateness is short."""
        later = []
        while self.live:
            last = self.live.popitem()
            if last[1] <= ts_ns:
                self.live[last[0]] = last[1]
                break
            later.append(last)
        self.live[value] = ts_ns
        self.live.update(reversed(later))

    def _times(self) -> Iterator[tuple[int, Any]]:
        for value, ts_ns in self.live.items():
            yield ts_ns, value
        for value, times in self.past.items():
            for ts_ns in times:
                yield ts_ns, value

    def _window_with(self, ts_ns: int, timespan_ns: int, threshold: int) -> tuple[int, list[Any]] | None:
        """First time and values of a window that holds ``ts_ns`` and enough values, or None."""
        near = sorted((t for t in self._times() if abs(t[0] - ts_ns) < timespan_ns), key=lambda t: t[0])
        inside: dict[Any, int] = {}
        start = 0
        for end_ns, value in near:
            inside[value] = inside.get(value, 0) + 1
            while near[start][0] <= end_ns - timespan_ns:
                left = near[start][1]
                inside[left] -= 1
                if not inside[left]:
                    del inside[left]
                start += 1
            if end_ns >= ts_ns and len(inside) >= threshold:
                return near[start][0], list(inside)
        return None


def _thinned(times: list[int], timespan_ns: int) -> list[int]:
    """Sorted times without those whose two neighbours lie within one timespan."""
    kept: list[int] = []
    for ts_ns in times:
        if len(kept) > 1 and ts_ns - kept[-2] <= timespan_ns:
            kept[-1] = ts_ns
        else:
            kept.append(ts_ns)
    return kept
