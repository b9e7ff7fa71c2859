"""Incidents that are counted but not told, because an incident of another rule tells of the same source.

A :class:`Cover` joins the incidents of a covering rule to those of a covered one, by the fields that both
group by. It is asked for a time of events, not for now: rules that wait for the lateness ask late, so what
has just closed is kept until nobody asks for it any more (:attr:`Incidents.closed`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kwsiem.correlate.incident import Incident, Incidents, Key, Span
from kwsiem.rules.model import Rule

if TYPE_CHECKING:
    from kwsiem.correlate.settled import State


class Cover:
    """The incidents of a covering rule by what they share with those of a covered one."""

    def __init__(self, covering: Incidents, covered: Rule) -> None:
        fields, others = covering.rule.correlation.group_by, covered.correlation.group_by
        shared = [name for name in fields if name in others]
        self._covering = covering
        self._here = [fields.index(name) for name in shared]
        self._there = [others.index(name) for name in shared]
        self._widths = len(fields), len(others)
        self._spans: dict[tuple[Any, ...], dict[int, Incident | Span]] = {}
        for key, incident in covering.open.items():
            self.opened(key, incident)
        for key, span in covering.closed:
            self.opened(key, span)

    def opened(self, key: Key, incident: Incident | Span) -> None:
        """An incident of the covering rule has opened."""
        shared = _part(key, self._widths[0], self._here)
        self._spans.setdefault(shared, {})[id(incident)] = incident

    def closed(self, key: Key, incident: Incident | Span, span: Span | None) -> None:
        """One has closed: ``span`` is when it was open, None when nobody will ask for it any more."""
        shared = _part(key, self._widths[0], self._here)
        spans = self._spans.get(shared)
        if spans is None:
            return
        spans.pop(id(incident), None)
        if span is not None:
            spans[id(span)] = span
        elif not spans:
            del self._spans[shared]

    def holds(self, key: Key, at_ns: int) -> bool:
        """Whether an incident of the covering rule was open then for the same values."""
        spans = self._spans.get(_part(key, self._widths[1], self._there))
        if not spans:
            return False
        return any(span.opened_ns <= at_ns <= self._end_of(span) for span in spans.values())

    def _end_of(self, span: Incident | Span) -> int:
        if isinstance(span, Span):
            return span.ended_ns
        return span.last_ns + self._covering.rule.suppress_ns


def _part(key: Key, width: int, positions: list[int]) -> tuple[Any, ...]:
    """Some fields of a key; one of one field is the value itself."""
    parts = (key,) if width == 1 else key
    assert isinstance(parts, tuple)
    return tuple(parts[position] for position in positions)


def join_covers(states: Mapping[str, State]) -> None:
    """Join the incidents of all rules (by id) anew, those that are open now with them."""
    for state in states.values():
        state.incidents.watchers = []
        state.incidents.covers = []
    for state in states.values():
        for name in state.rule.covered_by:
            if name in states:
                covering = states[name].incidents
                cover = Cover(covering, state.rule)
                covering.watchers.append(cover)
                state.incidents.covers.append(cover)
    for state in states.values():
        if not state.incidents.watchers:
            state.incidents.closed.clear()
