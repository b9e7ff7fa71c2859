"""What engine, sensor and courier each gather for the history of figures until it is told."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from kwsiem import clock
from kwsiem.messages import JournalEntry, SeriesTold
from kwsiem.text import clean

MAX_LABELS: Final = 200
#: Our own events that go to the journal in a second; and those that wait while the courier is away.
JOURNAL_PER_S: Final = 50
JOURNAL_WAITING: Final = 1000
#: Entries of one message, which is below link.MAX_MESSAGE_BYTES with these bounds.
JOURNAL_AT_ONCE: Final = 10
_MAX_FIELDS: Final = 32
_MAX_TEXT: Final = 256


def next_due(due_s: float, now_s: float, every_s: float) -> float:
    """When what is looked at once a second is due next: the grid is kept, so that no turn is lost."""
    return due_s + every_s if due_s + every_s > now_s else now_s + every_s


class Deltas:
    """What counters that only grow have grown by since the call before; of MAX_LABELS labels each."""

    def __init__(self) -> None:
        self._before: dict[str, dict[str, float]] = {}

    def of(self, name: str, counts: Mapping[str, float]) -> dict[str, int]:
        """The growth of each label, whole; what is left of a fraction counts the next time.

        A count that is lower than before has begun anew.
        """
        before = self._before.setdefault(name, {})
        found = {}
        for label, count in list(counts.items())[:MAX_LABELS]:
            last = before.get(label, 0)
            grown = int(count - last if count >= last else count)
            before[label] = count if count < last else last + grown
            if grown:
                found[label] = grown
        for label in before.keys() - counts.keys():
            del before[label]
        return found


class Uptime:
    """Seconds that each of some things was up, by what is so whenever :meth:`see` is called."""

    def __init__(self) -> None:
        self._up_s: dict[str, float] = {}
        self._seen_s = clock.monotonic_s()
        self._deltas = Deltas()

    def see(self, up: Iterable[str]) -> None:
        """These are up, and were since the call before."""
        now_s = clock.monotonic_s()
        for name in up:
            if name in self._up_s or len(self._up_s) < MAX_LABELS:
                self._up_s[name] = self._up_s.get(name, 0.0) + now_s - self._seen_s
        self._seen_s = now_s

    def take(self) -> dict[str, int]:
        """Whole seconds since the call before."""
        return self._deltas.of("up_s", self._up_s)


class Feed:
    """Figures and journal entries on their way to the courier.

    ``send`` sends a message or says that it cannot be sent now. Then figures wait, until the next ones take
    their place; entries wait up to JOURNAL_WAITING. All that is given up is counted in ``lost``.
    """

    def __init__(self, send: Callable[[SeriesTold], bool]) -> None:
        self._send = send
        self._figures: SeriesTold | None = None
        self._journal: deque[JournalEntry] = deque()
        self._room = JOURNAL_PER_S
        self.lost = 0

    def note(self, kind: str, fields: Mapping[str, Any], at_ns: int) -> None:
        """An event of ours, for the journal; ``at_ns`` is wall time."""
        if self._room <= 0 or len(self._journal) >= JOURNAL_WAITING:
            self.lost += 1
            return
        self._room -= 1
        bounded = {
            clean(str(name), _MAX_TEXT): value if isinstance(value, int) else clean(str(value), _MAX_TEXT)
            for name, value in list(fields.items())[:_MAX_FIELDS]
        }
        self._journal.append(JournalEntry(at_ns, kind, bounded))

    def tell(self, figures: Mapping[str, Mapping[str, int]]) -> None:
        """Figures of the time since the call before."""
        if self._figures is not None:
            self.lost += 1
        told = {name: dict(list(values.items())[:MAX_LABELS]) for name, values in figures.items() if values}
        self._figures = SeriesTold(at_s=clock.wall_ns() // clock.NS_PER_S, figures=told) if told else None
        self._flush()

    def tick(self) -> None:
        """Once a second: send what waits."""
        self._room = JOURNAL_PER_S
        self._flush()

    def _flush(self) -> None:
        if self._figures is not None and self._send(self._figures):
            self._figures = None
        while self._journal:
            some = [self._journal[n] for n in range(min(JOURNAL_AT_ONCE, len(self._journal)))]
            if not self._send(SeriesTold(at_s=0, journal=some)):
                return
            for _ in some:
                self._journal.popleft()


class SensorFigures:
    """What the sensor tells the courier: blocks, uptime of probes, processor time and memory of processes."""

    def __init__(self, every_s: float, send: Callable[[SeriesTold], bool]) -> None:
        self._every_s = every_s
        self._feed = Feed(send)
        self._probes = Uptime()
        self._deltas = Deltas()
        self._look_s = 0.0
        self._due_s = clock.monotonic_s() + every_s

    @property
    def lost(self) -> int:
        """How many times the courier did not take the figures."""
        return self._feed.lost

    def tick(
        self,
        probes: Callable[[], Iterable[str]],
        blocks: Callable[[], Mapping[str, int]],
        usages: Callable[[], Iterable[Mapping[str, Any]]],
    ) -> None:
        """To be called often. ``probes`` names those that run now, ``usages`` are as in the metrics."""
        now_s = clock.monotonic_s()
        if now_s < self._look_s:
            return
        self._look_s = now_s + 1.0
        self._probes.see(probes())
        self._feed.tick()
        if now_s < self._due_s:
            return
        self._due_s = next_due(self._due_s, now_s, self._every_s)
        cpu_ms: dict[str, float] = {}
        memory: dict[str, int] = {}
        grown: dict[str, int] = {}
        for usage in usages():
            name = f"{usage['process']}:{usage['probe']}" if usage["probe"] else str(usage["process"])
            cpu_ms[f"{name} {usage['pid']}"] = usage["cpu_s"] * 1000
            memory[name] = usage["resident_bytes"]
        for key, count in self._deltas.of("cpu_ms", cpu_ms).items():
            name = key.rpartition(" ")[0]
            grown[name] = grown.get(name, 0) + count
        figures = {"blocks": blocks(), "probe_up_s": self._probes.take(), "cpu_ms": grown}
        self._feed.tell(figures | {"memory_bytes": memory})
