"""``sequence``: steps that come one after the other for a key within the timespan.

A step that needs n events is n places in a row. For each place only the latest beginning of a chain that
has come this far is kept: a later beginning is never worse. An event costs one pass over the places.
"""

from __future__ import annotations

from typing import Final

from kwsiem.correlate.incident import Incident, Incidents, Key
from kwsiem.correlate.window import Window
from kwsiem.event import Event
from kwsiem.rules.duration import format_duration
from kwsiem.rules.model import Rule

#: Places of one rule, all counts together.
MAX_PLACES: Final = 1000
_NOTHING: Final = (-1, -1)


class Sequence(Window):
    """State of a sequence rule: for each key, per place, the beginning and the end of the best chain."""

    def __init__(self, rule: Rule, incidents: Incidents) -> None:
        super().__init__(rule, incidents)
        steps = rule.correlation.steps
        self._step_of: list[int] = []
        for number, step in enumerate(steps):
            self._step_of += [number] * step.count
        del self._step_of[MAX_PLACES:]
        words = " then ".join(f"{s.count} {s.name}" if s.count > 1 else s.name for s in steps)
        self._reason = f"{words} in {format_duration(self._timespan_ns)}"

    def hit(self, key: Key, event: Event, step: int) -> None:
        """One match of one step."""
        chains = self._young.get(key) or self._find(key)
        if chains.__class__ is Incident:
            if self.incidents.continues(key, chains, event):
                return
            del self._young[key]
            chains = None
        if chains is None:
            if step != self._step_of[0]:
                return
            chains = [_NOTHING] * len(self._step_of)
            self._admit(key, chains)
        if self._extend(chains, event.ts_ns, step):
            self._begin(key, event, chains[-1][0], len(self._step_of), self._reason)

    def _extend(self, chains: list[tuple[int, int]], ts_ns: int, step: int) -> bool:
        """Put the event at every place it fits, the last first so that it is used once; True at the end."""
        for place in range(len(chains) - 1, -1, -1):
            if self._step_of[place] != step:
                continue
            if place == 0:
                chains[0] = (ts_ns, ts_ns)
                continue
            begun_ns, ended_ns = chains[place - 1]
            if 0 <= ended_ns < ts_ns and ts_ns - begun_ns < self._timespan_ns:
                chains[place] = (begun_ns, ts_ns)
                if place == len(chains) - 1:
                    return True
        return False
