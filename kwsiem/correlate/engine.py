"""Stage 3, event to alert: events through the functions of their kind. No I/O, no clock, no thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from kwsiem.alert import Alert
from kwsiem.correlate.codegen import Handler, make_handler
from kwsiem.correlate.cover import join_covers
from kwsiem.correlate.incident import Incidents
from kwsiem.correlate.kinds import make_state, make_window
from kwsiem.correlate.retract import Journal, Retractions
from kwsiem.correlate.settled import Settled, State, concerns
from kwsiem.correlate.snapshot import Restore, restore_states, save_states
from kwsiem.correlate.window import Window
from kwsiem.event import LOST_KIND, Event, event_fields
from kwsiem.rule_figures import RuleCounts
from kwsiem.rules.model import Rule, RuleSet, cover_depths

#: Clocks of two processors may differ by this; what is dated later still is taken as of now.
FUTURE_NS: Final = 1_000_000_000
MAX_LOST: Final = 200


class Engine:
    """The rules that run now and their state; calls ``emit`` for each alert, in the order of events.

    ``host`` is the name in alerts; ``offset_ns`` is what to add to an event's time to get wall time.
    ``withdraw`` is called with an alert's id, its rule's id and the value it asked to block, when events were
    taken back and that block is not wanted any more.
    """

    def __init__(
        self,
        emit: Callable[[Alert], None],
        *,
        host: str,
        offset_ns: int = 0,
        withdraw: Callable[[str, str, str], None] = lambda *_: None,
    ) -> None:
        self._emit = emit
        self._withdraw = withdraw
        #: By the name of the kind whose events may be taken back.
        self._retractions: dict[str, Retractions] = {}
        self._host = host
        self._offset_ns = offset_ns
        self._states: list[State] = []
        self._handlers: dict[type[Event], Handler] = {}
        self._seen: Counter[type[Event]] = Counter()
        self._looks: dict[type[Event], Callable[[Sequence[Event]], None]] = {}
        self._counted: dict[str, int] = {}
        self._alerts_before = 0
        self._errors: Counter[str] = Counter()
        self._last_error = ""
        self.future = 0
        self._held_told: dict[str, int] = {}
        self._saved: dict[tuple[str, str], Restore] = {}
        self.restored = 0
        #: What sensor.lost events told, by probe and reason; MAX_LOST pairs at most.
        self._lost: dict[tuple[str, str], int] = {}
        self._seen_before: dict[str, int] = {}
        self.sha256 = ""

    @property
    def offset_ns(self) -> int:
        """Nanoseconds from kernel time to wall time."""
        return self._offset_ns

    @offset_ns.setter
    def offset_ns(self, value: int) -> None:
        self._offset_ns = value
        for state in self._states:
            state.incidents.offset_ns = value

    def set_rules(self, ruleset: RuleSet) -> None:
        """Run these rules from the next event on; a rule whose fingerprint is unchanged keeps its state."""
        kept = {(state.rule.id, state.rule.fingerprint): state for state in self._states}
        states = []
        events = self._events()
        before, self._seen_before = self._seen_before, {}
        depth = cover_depths(ruleset.rules)
        for rule in sorted(ruleset.rules, key=lambda rule: depth[rule.id]):
            state = kept.pop((rule.id, rule.fingerprint), None)
            if state is None:
                state = self._restored(rule) or self._new_state(rule)
                self._seen_before[rule.id] = _of_kinds(events, state)
            else:
                self._seen_before[rule.id] = before.get(rule.id, 0)
                state.rule = state.incidents.rule = rule
            states.append(state)
        join_covers({state.rule.id: state for state in states})
        self._keep_journals(states)
        handlers = {cls: self._handler(cls, states) for cls in self._handlers}
        self._states, self._handlers = states, handlers
        self.sha256 = ruleset.sha256
        for state in kept.values():
            state.incidents.watchers, state.incidents.covers = [], []  # they hold each other, as below
            if isinstance(state, Window):
                state.journal = None  # they hold each other, and nothing collects cycles in this process
            state.incidents.close_all()
            self._alerts_before += state.incidents.alerts

    def _new_state(self, rule: Rule) -> State:
        incidents = Incidents(rule, self._emit)
        incidents.offset_ns, incidents.host = self._offset_ns, self._host
        incidents.withdraw = lambda alert_id, value: self._withdraw(alert_id, rule.id, value)
        return make_state(rule, incidents)

    def _handler(self, cls: type[Event], states: list[State]) -> Handler:
        kind = cls.KIND
        looking = [state for state in states if concerns(state, kind.name)]
        handler = make_handler(cls, looking, offset=lambda: self._offset_ns)
        if kind.name in self._retractions:
            undo = make_handler(cls, looking, offset=lambda: self._offset_ns, undo=True).one
            handler = self._retractions[kind.name].remembering(cls, handler, undo)
        if kind.retracts:
            handler = self._retractions[kind.retracts].retracting(handler)
        return handler

    def _keep_journals(self, states: list[State]) -> None:
        """Rules that look at what may be taken back keep a journal."""
        for state in states:
            if isinstance(state, Window) and not self._retractions.keys().isdisjoint(state.rule.events):
                state.journal = state.journal or Journal(state, make_window)

    def bind(self, cls: type[Event]) -> None:
        """Events of this class may come from now on; several classes may share a kind."""
        retracts = cls.KIND.retracts
        if retracts and retracts not in self._retractions:
            self._retractions[retracts] = Retractions(cls.KIND)
            self._keep_journals(self._states)
            self._handlers = {known: self._handler(known, self._states) for known in self._handlers}
        self._handlers[cls] = self._handler(cls, self._states)

    def look_at(self, cls: type[Event], look: Callable[[Sequence[Event]], None]) -> None:
        """Call ``look`` with the events of this class from now on, before the rules see them."""
        self._looks[cls] = look

    def unbind(self, cls: type[Event]) -> None:
        """No more events of this class will come."""
        self._handlers.pop(cls, None)
        self._looks.pop(cls, None)
        for state in self._states:
            if isinstance(state, Settled):
                state.forget(cls)
        for retractions in self._retractions.values():
            retractions.forget(cls)
        name = cls.KIND.name
        self._counted[name] = self._counted.get(name, 0) + self._seen.pop(cls, 0)

    def process(self, events: Sequence[Event], now_ns: int = 0) -> None:
        """Take events through the rules, in their order; one that fails is counted in ``errors``.

        With ``now_ns``, the clock of events, what is dated later is taken as of now, and counted.
        """
        if now_ns:
            limit_ns = now_ns + FUTURE_NS
            for early in [each for each in events if each.ts_ns > limit_ns]:
                early.ts_ns = now_ns
                self.future += 1
        counts: Counter[type[Event]] = Counter(map(type, events))
        self._seen.update(counts)
        for cls in counts:
            if cls.KIND.name == LOST_KIND:
                self._count_lost(event for event in events if event.__class__ is cls)
            if cls in self._looks:
                self._look(cls, events if len(counts) == 1 else [e for e in events if e.__class__ is cls])
        if len(counts) != 1:
            self._each(events)
            return
        # One class, as a probe under load sends them: one loop, without a call for each event.
        cls, rest = events[0].__class__, iter(events)
        handler = self._handlers.get(cls)
        if handler is None:
            self._each(events)
            return
        while True:
            try:
                handler.all(rest)
                break
            except Exception as error:  # noqa: BLE001 - the edge of the stage: the events after it must be seen
                self._note(cls, error)

    def _look(self, cls: type[Event], events: Sequence[Event]) -> None:
        try:
            self._looks[cls](events)
        except Exception as error:  # noqa: BLE001 - the edge of the stage: the rules must see the events
            self._note(cls, error)

    def _count_lost(self, events: Iterable[Event]) -> None:
        for event in events:
            fields = event_fields(event)
            pair = (str(fields.get("probe.name", "")), str(fields.get("event.reason", "")))
            if pair in self._lost or len(self._lost) < MAX_LOST:
                self._lost[pair] = self._lost.get(pair, 0) + int(fields.get("event.count", 0))

    def _each(self, events: Sequence[Event]) -> None:
        """Events of several classes."""
        handlers = self._handlers
        for event in events:
            try:
                handlers[event.__class__].one(event)
            except Exception as error:  # noqa: BLE001 - as above
                self._note(event.__class__, error)

    def _note(self, cls: type[Event], error: Exception) -> None:
        self._failed(cls.KIND.name, error)

    def _failed(self, name: str, error: Exception) -> None:
        self._errors[name] += 1
        self._last_error = f"{name}: {type(error).__name__}: {error}"[:300]

    def advance(self, now_ns: int) -> None:
        """Everything up to this time of events has come: decide what waits, let go of what is over."""
        for state in self._states:
            try:
                state.advance(now_ns)
            except Exception as error:  # noqa: BLE001 - as above: one rule must not stop the others
                self._failed(f"rule {state.rule.id}", error)

    def finish(self, now_ns: int | None = None) -> None:
        """No more events will come: decide all that waits; with ``now_ns`` time goes on until then."""
        for state in self._states:
            if isinstance(state, Settled):
                state.finish(now_ns)
        if now_ns is not None:
            self.advance(now_ns)

    def held_back(self) -> list[tuple[str, int]]:
        """Rules that alert too often, and how many alerts of each were held back since the last call."""
        found = []
        for state in self._states:
            name, held = state.rule.id, state.incidents.held_back
            if held > self._held_told.get(name, 0):
                found.append((name, held - self._held_told.get(name, 0)))
                self._held_told[name] = held
        return found

    # -- snapshots -------------------------------------------------------------------------------------

    def save(self) -> bytes:
        """The state of all rules as bytes for :meth:`offer`."""
        return save_states(self._states)

    def offer(self, data: bytes) -> None:
        """What :meth:`save` of an earlier run gave: rules set from now on that are in it go on from there.

        Raises msgspec.DecodeError for bytes that are no snapshot.
        """
        self._saved = restore_states(data)

    def _restored(self, rule: Rule) -> State | None:
        """The state of a rule from the snapshot; None when there is none or it does not fit."""
        restore = self._saved.pop((rule.id, rule.fingerprint), None)
        if restore is None:
            return None
        state = self._new_state(rule)
        try:
            restore(state)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            self._errors["snapshot"] += 1
            self._last_error = f"snapshot of {rule.id}: {type(error).__name__}: {error}"[:300]
            return None
        self.restored += 1
        return state

    def _events(self) -> dict[str, int]:
        """Events so far, by kind."""
        events = dict(self._counted)
        for cls, count in self._seen.items():
            events[cls.KIND.name] = events.get(cls.KIND.name, 0) + count
        return events

    def rule_counts(self, start: int, most: int) -> dict[str, RuleCounts]:
        """What ``most`` rules from number ``start`` on have done since they began to run."""
        events = self._events()
        return {
            state.rule.id: RuleCounts(
                evaluations=_of_kinds(events, state) - self._seen_before.get(state.rule.id, 0),
                keys=state.keys,
                evictions=state.evictions,
            )
            for state in self._states[start : start + most]
        }

    def counters(self) -> dict[str, Any]:
        """Events by kind; alerts, keys, evictions, late and ungrouped events, open incidents of all rules."""
        events = self._events()
        states = self._states
        lost: dict[str, dict[str, int]] = {}
        for (probe, reason), count in self._lost.items():
            lost.setdefault(probe, {})[reason] = count
        return {
            "rules": len(states),
            "rules_sha256": self.sha256,
            "events": events,
            "lost": lost,
            "alerts": self._alerts_before + sum(state.incidents.alerts for state in states),
            "keys": sum(state.keys for state in states),
            "evictions": sum(state.evictions for state in states),
            "crowded": sum(state.crowded for state in states),
            "late": sum(state.late for state in states),
            "future": self.future,
            "ungrouped": sum(state.ungrouped for state in states),
            "incidents": sum(len(state.incidents.open) for state in states),
            "crowded_out": sum(state.incidents.crowded_out for state in states),
            "covered": sum(state.incidents.covered for state in states),
            "held_back": sum(state.incidents.held_back for state in states),
            "hurried": sum(state.hurried for state in states if isinstance(state, Settled)),
            "restored": self.restored,
            "taken_back": sum(each.taken_back for each in self._retractions.values()),
            "errors": dict(self._errors),
            "last_error": self._last_error,
        }


def _of_kinds(events: Mapping[str, int], state: State) -> int:
    """Events of the kinds that a rule looks at."""
    return sum(events.get(kind, 0) for kind in set(state.rule.events))
