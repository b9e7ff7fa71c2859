"""``sequence``: steps that come one after the other for a key within the timespan.

A step that needs n events is n places in a row. For each place only the latest beginning of a chain that
has come this far is kept: a later beginning is never worse. An event costs one pass over the places.

Events of the last two seconds are kept beside the chains as they were before them, so that one that comes
late is put in its place and what followed is gone through again: the order of arrival does not matter.
"""

from __future__ import annotations

from bisect import bisect_right
from operator import itemgetter
from typing import Any, Final

from kwsiem.correlate.incident import LATENESS_NS, Incident, Incidents, Key
from kwsiem.correlate.window import Window
from kwsiem.event import Event
from kwsiem.rules.duration import format_duration
from kwsiem.rules.model import Rule

#: Events kept for a key to be gone through again; the oldest beyond are settled, late or not.
MAX_RECENT: Final = 64
_NOTHING: Final = -1
_TS: Final = itemgetter(0)


class Chains:
    """How far a key has come: for each place the best chain that ends there, and the one before that instant.

    ``begun`` is the latest beginning of a chain whose last event is not after ``ended``; ``before`` the same
    for chains that ended earlier than ``ended``, since the next step must be strictly later.
    """

    __slots__ = ("before", "begun", "ended")

    def __init__(self, places: int) -> None:
        self.begun = [_NOTHING] * places
        self.before = [_NOTHING] * places
        self.ended = [_NOTHING] * places

    def copy(self) -> Chains:
        """The same chains, to go on from."""
        made = Chains(0)
        made.begun, made.before, made.ended = self.begun[:], self.before[:], self.ended[:]
        return made

    def extend(self, step_of: list[int], timespan_ns: int, ts_ns: int, steps: int) -> int:
        """Take an event that matches these steps; where the chain it completes began, or -1.

        Within one step events of one instant may follow each other, from step to step they may not.
        """
        last = len(step_of) - 1
        for place in range(last, -1, -1):
            if not steps >> step_of[place] & 1:
                continue
            if place == 0:
                begun = ts_ns
            elif step_of[place] == step_of[place - 1] or self.ended[place - 1] < ts_ns:
                begun = self.begun[place - 1]
            else:
                begun = self.before[place - 1]
            if begun == _NOTHING or ts_ns - begun >= timespan_ns:
                continue
            if place == last:
                return begun
            if self.ended[place] < ts_ns:
                self.before[place], self.ended[place] = self.begun[place], ts_ns
            self.begun[place] = max(begun, self.begun[place])
        return _NOTHING


class Track:
    """One key: the chains now, those before the recent events, and these as (time, steps)."""

    __slots__ = ("now", "recent", "settled", "settled_ns")

    def __init__(self, places: int) -> None:
        self.now = Chains(places)
        self.settled: Chains | None = None
        self.settled_ns = _NOTHING
        self.recent: list[tuple[int, int]] = []

    def __len__(self) -> int:
        """How many events are kept one by one."""
        return len(self.recent)


class Sequence(Window):
    """State of a sequence rule: a :class:`Track` for each key."""

    def __init__(self, rule: Rule, incidents: Incidents) -> None:
        super().__init__(rule, incidents)
        steps = rule.correlation.steps
        self._step_of: list[int] = []
        for number, step in enumerate(steps):
            self._step_of += [number] * step.count
        words = " then ".join(f"{s.count} {s.name}" if s.count > 1 else s.name for s in steps)
        self._reason = f"{words} in {format_duration(self._timespan_ns)}"

    def hit(self, key: Key, event: Event, steps: int) -> None:
        """One event that matches the steps whose bits are set."""
        young = self._young
        track = young[key] if key in young else self._find(key)
        if track.__class__ is Incident:
            if self.incidents.continues(key, track, event, event.ts_ns):
                return
            del self._young[key]
            track = None
        ts_ns = event.ts_ns
        if track is None:
            if self._crowd.admits(key, len(self._young)):
                self._young[key] = (ts_ns, steps)  # until the second event; one alone cannot do two steps
                return
            done = self._crowd.mark(key, steps)
            if not done:
                return
            track = (ts_ns - 1, done)  # it has come before: exact from now on, its past taken as just now
        if track.__class__ is tuple:
            track = self._second(key, track)
        recent = track.recent
        if not recent or ts_ns >= recent[-1][0]:
            recent.append((ts_ns, steps))
            begun = track.now.extend(self._step_of, self._timespan_ns, ts_ns, steps)
        else:
            begun = self._extend_late(track, ts_ns, steps)
        if begun != _NOTHING:
            self._begin(key, event, begun, len(self._step_of), self._reason)
        elif len(recent) > MAX_RECENT // 2:
            self._settle(track)

    def _second(self, key: Key, first: tuple[int, int]) -> Track:
        """A key's second event: from now on it has a track, with the first event on it."""
        track = self._young[key] = Track(len(self._step_of))
        track.recent.append(first)
        track.now.extend(self._step_of, self._timespan_ns, *first)
        self._weigh(len(self._step_of))
        return track

    def _plain(self, state: Any) -> Any:
        if not isinstance(state, Track):
            return super()._plain(state)
        chains = [[c.begun, c.before, c.ended] for c in (state.now, state.settled) if c]
        return {"chains": chains, "settled": state.settled_ns, "recent": state.recent}

    def _state(self, plain: Any) -> Any:
        if isinstance(plain, list):
            return (int(plain[0]), int(plain[1]))
        track = Track(len(self._step_of))
        made = [Chains(0) for _ in plain["chains"]]
        for chains, parts in zip(made, plain["chains"], strict=True):
            chains.begun, chains.before, chains.ended = (list(map(int, part)) for part in parts)
        track.now, track.settled = made[0], made[1] if len(made) > 1 else None
        track.settled_ns = int(plain["settled"])
        track.recent = [(int(ts_ns), int(steps)) for ts_ns, steps in plain["recent"]]
        return track

    def _extend_late(self, track: Track, ts_ns: int, steps: int) -> int:
        """Put a late event in its place and go through all recent ones again."""
        self.late += 1
        if ts_ns < track.settled_ns:
            return _NOTHING  # later than the lateness allows
        track.recent.insert(bisect_right(track.recent, ts_ns, key=_TS), (ts_ns, steps))
        track.now = track.settled.copy() if track.settled else Chains(len(self._step_of))
        found = _NOTHING
        for at_ns, matched in track.recent:
            found = max(found, track.now.extend(self._step_of, self._timespan_ns, at_ns, matched))
        return found

    def _settle(self, track: Track) -> None:
        """Let go of recent events that nothing can come before any more, or that are too many."""
        recent = track.recent
        horizon_ns = recent[-1][0] - LATENESS_NS
        count = max(len(recent) - MAX_RECENT, bisect_right(recent, horizon_ns - 1, key=_TS))
        settled = track.settled = track.settled or Chains(len(self._step_of))
        for ts_ns, steps in recent[:count]:
            settled.extend(self._step_of, self._timespan_ns, ts_ns, steps)
            track.settled_ns = ts_ns
        del recent[:count]
