"""``sequential_test``: whether the first contacts of a group fail as those of a scanner do.

The sequential hypothesis test of Jung, Paxson, Berger and Balakrishnan, "Fast portscan detection using
sequential hypothesis testing" (IEEE Symposium on Security and Privacy 2004): each outcome of a first contact
moves the likelihood ratio of "scanner" against "benign" up or down; the rule fires when it reaches the upper
threshold, and the test begins anew when it reaches the lower one.

Given events in the order of time only (:mod:`kwsiem.correlate.settled`). An attempt that nothing answered
fails at its deadline, whether or not an event comes then.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import Any, Final

from kwsiem.correlate.incident import Incidents, Key
from kwsiem.correlate.window import EventReader, EventWriter, Window, hashable
from kwsiem.event import Event
from kwsiem.rules.duration import format_duration
from kwsiem.rules.model import Rule

#: Contacts of one group; beyond, its oldest decided one is forgotten.
MAX_OF_GROUP: Final = 64
#: Contacts of the groups with several in one generation; beyond, a group keeps only PRESSED_OF_GROUP.
MAX_CONTACTS: Final = 500_000
PRESSED_OF_GROUP: Final = 8
#: Attempts that wait for their outcome; beyond, only of groups that wait for none, and never twice as many.
MAX_WAITING: Final = 100_000

_ATTEMPT: Final = 1
_SUCCESS: Final = 2
#: What is known of a contact, in the two low bits below the time it was first tried.
_OPEN, _GOOD, _BAD, _KNOWN = range(4)
_CODE: Final = 3
#: So that a ratio which is the threshold itself counts as reached.
_TIE: Final = 1e-9


class Track:
    """The contacts of a group, the oldest first, and how many good and bad ones the test counts."""

    __slots__ = ("bad", "contacts", "good")

    def __init__(self) -> None:
        self.contacts: dict[str, int] = {}
        self.good = 0
        self.bad = 0

    def put(self, name: str, entry: int) -> None:
        """A contact, or another state of one that is there."""
        code = entry & _CODE
        self.contacts[name] = entry
        self.good += code == _GOOD
        self.bad += code == _BAD

    def forget(self, name: str) -> None:
        """Forget a contact and its outcome."""
        code = self.contacts.pop(name) & _CODE
        self.good -= code == _GOOD
        self.bad -= code == _BAD

    def expire(self, horizon_ns: int) -> None:
        """Forget what was first tried at the horizon or before."""
        horizon = horizon_ns << 2 | _CODE
        old = []
        for name, entry in self.contacts.items():
            if entry > horizon:
                break
            old.append(name)
        for name in old:
            self.forget(name)

    def renew(self) -> None:
        """The test begins anew; contacts stay known."""
        self.good = self.bad = 0
        for name, entry in self.contacts.items():
            if entry & _CODE:
                self.contacts[name] = entry | _KNOWN


class SequentialTest(Window):
    """State of one such rule: for each group its only contact as a pair, or a :class:`Track`."""

    minds_losses = True

    def __init__(self, rule: Rule, incidents: Incidents) -> None:
        super().__init__(rule, incidents)
        test = rule.correlation.sequential
        assert test is not None
        self._wait_ns = test.wait_ns
        self._failure, self._success = test.weights
        self._upper, self._lower = test.bounds
        self._needed = test.needed
        #: Whether one outcome alone decides nothing, so that a pair will do for it.
        self._patient = self._needed > 1 and self._success > self._lower + _TIE
        self._pressed_of_group = max(PRESSED_OF_GROUP, self._needed + 3)
        self._deadlines: deque[tuple[int, Key, str, Event]] = deque()
        self._lost_ns = -1

    @property
    def next_due_ns(self) -> int | None:
        """The next time at which something may fail without an event."""
        return self._deadlines[0][0] if self._deadlines else None

    def hit(self, key: Key, event: Event, steps: int, contact: tuple[Any, ...]) -> None:
        """An attempt, a success or a failure of a contact; of several at once a success, then a failure."""
        name = _words(contact)
        ts_ns = event.ts_ns
        state = self._young[key] if key in self._young else self._find(key)
        if state is None:
            state = self._place(key, name, steps)
            if state is None:
                return
            self._young[key] = state  # it has its place whatever becomes of this contact
        entry = self._entry(key, state, name, ts_ns)
        if entry is not None:
            if not entry & _CODE and steps != _ATTEMPT:
                self._decide(key, event, ts_ns, name, entry, bad=not steps & _SUCCESS)
        elif steps != _ATTEMPT:
            if self._add(key, name, ts_ns << 2):
                self._decide(key, event, ts_ns, name, ts_ns << 2, bad=not steps & _SUCCESS)
        elif self._may_wait(key) and self._add(key, name, ts_ns << 2):
            self._deadlines.append((ts_ns + self._wait_ns, key, name, event))

    def lost(self, event: Event) -> None:
        """Events were lost: what nobody answered until now may have been answered."""
        self._lost_ns = event.ts_ns

    def due(self, now_ns: int) -> None:
        """Time has come this far: what nothing answered in time has failed."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now_ns:
            due_ns, key, name, event = deadlines.popleft()
            begun_ns = due_ns - self._wait_ns
            state = self._young[key] if key in self._young else self._find(key)
            if state is None or self._entry(key, state, name, due_ns) != begun_ns << 2:
                continue
            if self._lost_ns >= begun_ns:
                self._forget(key, name)
            else:
                self._decide(key, event, due_ns, name, begun_ns << 2, bad=True)

    # -- places and contacts

    def _find(self, key: Key) -> Any:
        """The state of a group that is not in the young generation, brought there; None for no state.

        An open incident stands beside it: the contacts stay known.
        """
        state = self._old.pop(key, None) if self._old else None
        if state is not None:
            self._young[key] = state
            self._weight += self._stamps_of(state)
        return state

    def _place(self, key: Key, name: str, steps: int) -> Any:
        """An empty state for a new group; None when it has no place.

        Without one its contacts are counted in the sketch, those apart that succeed: who has tried almost as
        many as would have to fail gets a place, and its test begins then.
        """
        if self._crowd.admits(key, len(self._young)):
            return ()
        if steps & _SUCCESS or self._crowd.count_value(key, name) < max(2, self._needed - 1):
            return None
        self._promote(key, Track())
        return self._young[key]

    def _entry(self, key: Key, state: Any, name: str, ts_ns: int) -> int | None:
        """What is known of a contact now; what is older than the timespan is forgotten."""
        horizon_ns = ts_ns - self._timespan_ns
        if state.__class__ is Track:
            state.expire(horizon_ns)
            found: int | None = state.contacts.get(name)
            return found
        if not state:
            return None
        if state[1] >> 2 <= horizon_ns:
            self._young[key] = ()
            return None
        return state[1] if state[0] == name else None

    def _add(self, key: Key, name: str, entry: int) -> bool:
        """Give a group one more contact; whether there was room for it."""
        state = self._young.get(key, ())
        if not state and state.__class__ is tuple:
            self._young[key] = (name, entry)
            return True
        track = self._track(key)
        limit = MAX_OF_GROUP if self._weight < MAX_CONTACTS else self._pressed_of_group
        while len(track.contacts) >= limit:
            self._evicted += 1
            decided = next((known for known, code in track.contacts.items() if code & _CODE), None)
            if decided is None:
                return False
            track.forget(decided)
            self._weight -= 1
        track.put(name, entry)
        self._weigh(1)
        return True

    def _may_wait(self, key: Key) -> bool:
        """Whether an attempt of a group can be followed; who waits for nothing is always heard longest."""
        waiting = len(self._deadlines)
        if waiting < MAX_WAITING:
            return True
        state = self._young.get(key, ())
        entries = state.contacts.values() if state.__class__ is Track else state[1:]
        if waiting < 2 * MAX_WAITING and all(entry & _CODE for entry in entries):
            return True
        self._evicted += 1
        return False

    def _track(self, key: Key) -> Track:
        """The contacts of a group that has or will have several."""
        state = self._young[key]
        if state.__class__ is Track:
            return state
        track = self._young[key] = Track()
        if state:
            track.put(*state)
        self._weigh(1)
        return track

    def _forget(self, key: Key, name: str) -> None:
        state = self._young[key]
        if state.__class__ is Track:
            state.forget(name)
        else:
            self._young[key] = ()

    # -- the test

    def _decide(self, key: Key, event: Event, at_ns: int, name: str, entry: int, *, bad: bool) -> None:
        """A first contact has its outcome: it counts in the open incident, or in the test."""
        known = self._counts_elsewhere(key, event, at_ns, name, bad=bad)
        decided = entry | (_KNOWN if known else _BAD if bad else _GOOD)
        if self._young[key].__class__ is tuple and (known or self._patient):
            self._young[key] = (name, decided)
            return
        track = self._track(key)
        track.put(name, decided)
        if known:
            return
        ratio = track.bad * self._failure + track.good * self._success
        if bad and ratio >= self._upper - _TIE:
            self._fire(key, event, at_ns, track)
        elif not bad and ratio <= self._lower + _TIE:
            track.renew()

    def _counts_elsewhere(self, key: Key, event: Event, at_ns: int, name: str, *, bad: bool) -> bool:
        """Whether an incident is open: then a failure is one more of it, and a success says nothing."""
        incident = self.incidents.open.get(key)
        if incident is None:
            return False
        if not bad:
            return at_ns - incident.last_ns <= self._suppress_ns
        if not self.incidents.continues(key, incident, event, at_ns):
            return False
        incident.add_value(name)
        return True

    def _fire(self, key: Key, event: Event, at_ns: int, track: Track) -> None:
        counted = [(name, entry) for name, entry in track.contacts.items() if entry & _CODE in (_GOOD, _BAD)]
        failed = [name for name, entry in counted if entry & _CODE == _BAD]
        span = format_duration(self._timespan_ns)
        shown = ", ".join(name[:64] for name in failed[:10]) + (" …" if len(failed) > 10 else "")
        reason = f"{len(failed)} of {len(counted)} first contacts failed in {span}: {shown}"
        first_ns = counted[0][1] >> 2
        self.incidents.begin(key, event, at_ns, first_ns, len(failed), reason, failed)
        track.renew()

    # -- snapshots

    def _stamps_of(self, state: Any) -> int:
        return len(state.contacts) if state.__class__ is Track else 0

    def save(self, writer: EventWriter) -> dict[str, Any]:
        """As plain data."""
        waiting = [(due_ns, key, name, writer.event(event)) for due_ns, key, name, event in self._deadlines]
        return {**super().save(writer), "waiting": waiting, "lost_ns": self._lost_ns}

    def load(self, saved: Any, reader: EventReader) -> None:
        """Take what :meth:`save` gave."""
        super().load(saved, reader)
        self._lost_ns = int(saved["lost_ns"])
        for due_ns, key, name, event in saved["waiting"]:
            self._deadlines.append((int(due_ns), hashable(key), str(name), reader.event(event)))

    def _plain(self, state: Any) -> Any:
        return {"contacts": list(state.contacts.items())} if state.__class__ is Track else state

    def _state(self, plain: Any) -> Any:
        if isinstance(plain, list):
            return (str(plain[0]), int(plain[1])) if plain else ()
        track = Track()
        for name, entry in plain["contacts"]:
            track.put(str(name), int(entry))
        return track


@lru_cache(maxsize=65536)
def _words(contact: tuple[Any, ...]) -> str:
    """A contact as one text, the same object for all groups that make it."""
    return " ".join(map(str, contact))
