"""Events that are taken back: a probe told a fact before it was final, and what rules made of it is undone.

A kind whose header says ``retracts`` names single events of another kind (:class:`~kwsiem.event.EventKind`).
Rules that look at that other kind keep a journal: for each key the matches its state was made of. When one
of them is taken back, the state of its key is made again of the others, by the very code that made it, so
that it is as if that event had never come. An incident that would then not have opened is closed, and a
block it asked for is withdrawn; its alert cannot be unsaid.

Rules and kinds that nothing is taken back from have none of this, and pay nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final

from kwsiem.alert import Alert
from kwsiem.correlate.codegen import Handler, Take
from kwsiem.correlate.incident import LATENESS_NS, Incident, Incidents, Key
from kwsiem.correlate.window import Window
from kwsiem.event import Event, EventKind
from kwsiem.rules.model import Rule

#: Events of one kind that can still be taken back; the oldest beyond cannot.
MAX_SEEN: Final = 20_000
#: Retractions that came before their event, as records of two processors may.
MAX_AHEAD: Final = 1_000
#: Matches in the journal of one key and of one rule. Beyond, state stays and only incidents count one less.
MAX_KEY_MATCHES: Final = 512
MAX_MATCHES: Final = 40_000
#: Fewer are not looked through for those that are too old.
FEW_MATCHES: Final = 32

MakeWindow = Callable[[Rule, Incidents], Window]


class Retractions:
    """The events of one kind that came last, to find again the one that is taken back."""

    def __init__(self, kind: EventKind) -> None:
        shared = [field.attribute for field in kind.wire_fields if field.type != "ts"]
        (time,) = [field.attribute for field in kind.wire_fields if field.type == "ts"]
        self._of_event = attrgetter("ts_ns", *shared)
        self._of_retraction = attrgetter(time, *shared)
        self._seen: dict[Any, Event] = {}
        self._ahead: dict[Any, None] = {}
        self._undo: dict[type[Event], Take] = {}
        self.taken_back = 0

    def remembering(self, cls: type[Event], handler: Handler, undo: Take) -> Handler:
        """The handler of a class whose events may be taken back; ``undo`` takes one back from the rules."""
        self._undo[cls] = undo
        seen, ahead, identify, take = self._seen, self._ahead, self._of_event, handler.one

        def one(event: Event) -> None:
            identity = identify(event)
            if ahead and identity in ahead:
                del ahead[identity]
                self.taken_back += 1
                return
            if len(seen) >= MAX_SEEN:
                del seen[next(iter(seen))]
            seen[identity] = event
            take(event)

        return _handler(one)

    def retracting(self, handler: Handler) -> Handler:
        """The handler of a class whose events take others back: that comes before the rules on itself."""
        take = handler.one

        def one(event: Event) -> None:
            identity = self._of_retraction(event)
            found = self._seen.pop(identity, None)
            if found is not None:
                self.taken_back += 1
                undo = self._undo.get(found.__class__)
                if undo is not None:
                    undo(found)
            else:
                if len(self._ahead) >= MAX_AHEAD:
                    del self._ahead[next(iter(self._ahead))]
                self._ahead[identity] = None
            take(event)

        return _handler(one)

    def forget(self, cls: type[Event]) -> None:
        """No more events of this class will come, and none that takes them back."""
        self._undo.pop(cls, None)


def _handler(one: Take) -> Handler:
    def take_all(events: Any) -> None:
        for event in events:
            one(event)

    return Handler(one, take_all)


class _Story:
    """What the state of one key was made of, in the order of arrival."""

    __slots__ = ("cut", "incident", "look_again", "matches")

    def __init__(self, cut: bool) -> None:
        self.matches: list[tuple[Event, tuple[Any, ...]]] = []
        self.incident: Incident | None = None
        self.look_again = FEW_MATCHES
        #: Whether matches are missing that the state was made of too.
        self.cut = cut


class Journal:
    """Takes the matches of a window's rule, and takes them back."""

    def __init__(self, window: Window, make_window: MakeWindow) -> None:
        self._window = window
        self._make_window = make_window
        self._stories: OrderedDict[Key, _Story] = OrderedDict()
        self._matches = 0

    def hit(self, key: Key, event: Event, *extra: Any) -> None:
        """One match: the window takes it, and it is noted."""
        window = self._window
        story = self._stories.pop(key, None)
        unknown = story is None and window.state_of(key) is not None
        crowded = window.crowded
        window.hit(key, event, *extra)  # type: ignore[attr-defined]
        if story is not None and story.incident is not None and story.incident.closed:
            self._matches -= len(story.matches)
            story = None
        if window.state_of(key) is None:
            # Said and over, or without a place: there is nothing to take back.
            self._matches -= len(story.matches) if story else 0
            return
        if story is None:
            story = _Story(cut=unknown)
        story.cut |= window.crowded != crowded  # what the sketch knew came in
        story.incident = window.incidents.open.get(key)
        story.matches.append((event, extra))
        self._matches += 1
        self._stories[key] = story
        if len(story.matches) >= story.look_again:
            self._trim(story, event.ts_ns)
        while self._matches > MAX_MATCHES:
            self._matches -= len(self._stories.popitem(last=False)[1].matches)

    def _trim(self, story: _Story, now_ns: int) -> None:
        """Let go of what no window can need any more; what is too much is cut."""
        kept = story.matches
        if story.incident is None:
            horizon_ns = now_ns - self._window.rule.correlation.timespan_ns - LATENESS_NS
            kept = [match for match in kept if match[0].ts_ns > horizon_ns]
        if len(kept) > MAX_KEY_MATCHES:
            story.cut = True
            kept = kept[-MAX_KEY_MATCHES // 2 :]
        self._matches -= len(story.matches) - len(kept)
        story.matches = kept
        story.look_again = max(FEW_MATCHES, min(2 * len(kept), MAX_KEY_MATCHES + 1))

    def take_back(self, key: Key, event: Event, *_extra: Any) -> None:
        """One match that never was; nothing happens when it has no part in the state as it is now."""
        story = self._stories.get(key)
        if story is None or (story.incident is not None and story.incident.closed):
            return
        rest = [match for match in story.matches if match[0] is not event]
        gone = len(story.matches) - len(rest)
        if not gone:
            return
        story.matches = rest
        self._matches -= gone
        if story.cut:
            self._count_less(key, story, gone)
        else:
            self._again(key, story)

    def _count_less(self, key: Key, story: _Story, gone: int) -> None:
        """Not all is known that the state was made of: only an open incident counts less."""
        incident = story.incident
        if incident is None:
            return
        incident.count -= gone
        if incident.count < self._window.rule.correlation.threshold:
            self._window.incidents.take_back(key, incident)
            self._window.put(key, None)

    def _again(self, key: Key, story: _Story) -> None:
        """The state of the key, made again of what is left."""
        window, incidents = self._window, self._window.incidents
        said: list[Alert] = []
        again = self._make_window(window.rule, Incidents(window.rule, said.append))
        begin = 0
        for number, (event, extra) in enumerate(story.matches):
            before = len(said)
            again.hit(key, event, *extra)  # type: ignore[attr-defined]
            if any(alert.state == "close" for alert in said[before:]):
                begin = number  # the quiet time was over: this one is the first of what came then
        old, new = story.incident, again.incidents.open.get(key)
        opened = [alert for alert in said if alert.state == "open"]
        if old is None:
            window.put(key, again.state_of(key))
            return
        if new is not None and len(opened) == 1:
            old.go_on_as(new)
            return
        if opened:
            old.count = next(alert.count for alert in said if alert.state == "close")
            incidents.close(key, old)
        else:
            old.count = len(story.matches)
            incidents.take_back(key, old)
        self._matches -= begin
        del story.matches[:begin]
        story.incident = new
        if new is not None:
            incidents.reopen(key, new)
        window.put(key, again.state_of(key))
