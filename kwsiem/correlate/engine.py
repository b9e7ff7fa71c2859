"""Stage 3, event to alert: events through the functions of their kind. No I/O, no clock, no thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from kwsiem.alert import Alert
from kwsiem.correlate.codegen import Handler, make_handler
from kwsiem.correlate.incident import Incidents
from kwsiem.correlate.kinds import KINDS
from kwsiem.correlate.window import Window
from kwsiem.event import Event
from kwsiem.rules.model import Rule, RuleSet


class Engine:
    """The rules that run now and their state; calls ``emit`` for each alert, in the order of events.

    ``host`` is the name in alerts; ``offset_ns`` is what to add to an event's time to get wall time.
    """

    def __init__(self, emit: Callable[[Alert], None], *, host: str, offset_ns: int = 0) -> None:
        self._emit = emit
        self._host = host
        self._offset_ns = offset_ns
        self._states: list[Window] = []
        self._handlers: dict[type[Event], Handler] = {}
        self._seen: Counter[type[Event]] = Counter()
        self._counted: dict[str, int] = {}
        self._alerts_before = 0
        self._errors: Counter[str] = Counter()
        self._last_error = ""
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
        for rule in ruleset.rules:
            state = kept.pop((rule.id, rule.fingerprint), None)
            if state is None:
                state = self._new_state(rule)
            else:
                state.rule = state.incidents.rule = rule
            states.append(state)
        handlers = {cls: make_handler(cls, _looking_at(states, cls)) for cls in self._handlers}
        self._states, self._handlers = states, handlers
        self.sha256 = ruleset.sha256
        for state in kept.values():
            state.incidents.close_all()
            self._alerts_before += state.incidents.alerts

    def _new_state(self, rule: Rule) -> Window:
        incidents = Incidents(rule, self._emit)
        incidents.offset_ns, incidents.host = self._offset_ns, self._host
        return KINDS[rule.correlation.type](rule, incidents)

    def bind(self, cls: type[Event]) -> None:
        """Events of this class may come from now on; several classes may share a kind."""
        self._handlers[cls] = make_handler(cls, _looking_at(self._states, cls))

    def unbind(self, cls: type[Event]) -> None:
        """No more events of this class will come."""
        self._handlers.pop(cls, None)
        name = cls.KIND.name
        self._counted[name] = self._counted.get(name, 0) + self._seen.pop(cls, 0)

    def process(self, events: Sequence[Event]) -> None:
        """Take events through the rules, in their order; one that fails is counted in ``errors``."""
        handlers = self._handlers
        rest = iter(events)
        event: Event | None = None
        while True:
            try:
                for event in rest:
                    handlers[event.__class__](event)
                break
            except Exception as error:  # noqa: BLE001 - the edge of the stage: the events after it must be seen
                name = event.KIND.name if event is not None else ""
                self._errors[name] += 1
                self._last_error = f"{name}: {type(error).__name__}: {error}"[:300]
        self._seen.update(map(type, events))

    def advance(self, now_ts_ns: int) -> None:
        """The clock of events has come this far: let go of what is over, close quiet incidents."""
        for state in self._states:
            state.advance(now_ts_ns)

    def counters(self) -> dict[str, Any]:
        """Events by kind; alerts, keys, evictions, late and ungrouped events, open incidents of all rules."""
        events = dict(self._counted)
        for cls, count in self._seen.items():
            events[cls.KIND.name] = events.get(cls.KIND.name, 0) + count
        return {
            "rules": len(self._states),
            "rules_sha256": self.sha256,
            "events": events,
            "alerts": self._alerts_before + sum(state.incidents.alerts for state in self._states),
            "keys": sum(state.keys for state in self._states),
            "evictions": sum(state.evictions for state in self._states),
            "late": sum(state.late for state in self._states),
            "ungrouped": sum(state.ungrouped for state in self._states),
            "incidents": sum(len(state.incidents.open) for state in self._states),
            "crowded_out": sum(state.incidents.crowded_out for state in self._states),
            "errors": dict(self._errors),
            "last_error": self._last_error,
        }


def _looking_at(states: list[Window], cls: type[Event]) -> list[Window]:
    return [state for state in states if cls.KIND.name in state.rule.events]
