"""The alerts that ``kwsiem top`` shows, read from the outbox by a child that is not root.

Another user writes that file, and what stands in it came from attackers: root does not open it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sqlite3
from collections import OrderedDict, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from kwsiem import clock
from kwsiem.alert import LEVELS, raised_ns_of
from kwsiem.apart import spawn, words_of
from kwsiem.outbox import read_behind
from kwsiem.series import FILE_NAME, Series
from kwsiem.text import clean

MAX_INCIDENTS: Final = 20
MAX_SOURCES: Final = 50
#: So many alerts are remembered; of more within the hour the latest count.
MAX_ALERTS: Final = 20_000
HOUR_NS: Final = 3600 * clock.NS_PER_S
_MAX_TEXT: Final = 256
#: Alerts in memory at once: each may have 60 KiB.
_PAGE: Final = 200
#: The child's answer is never longer, and never later.
_MAX_ANSWER_BYTES: Final = 1 << 20
_ANSWER_S: Final = 15.0
_ENDED: Final = "the process that reads the history has ended"


class Incident(msgspec.Struct):
    """The latest message about one incident, and who acknowledged it."""

    id: str
    at_ns: int
    state: str
    level: str
    title: str
    source: str
    count: int
    acknowledged: str = ""


class Source(msgspec.Struct):
    """What one address did within the last hour: its alerts, the highest level among them, the latest."""

    address: str
    alerts: int
    level: str
    last_ns: int


class Digest(msgspec.Struct):
    """The latest incidents, newest first, and the sources of the last hour; or why there are none."""

    incidents: list[Incident] = []
    sources: list[Source] = []
    error: str = ""


class History:
    """What was read so far; each call of :meth:`update` reads only what is new."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._series = Series(path.with_name(FILE_NAME))
        self._begin()

    def _begin(self) -> None:
        self._after = 0
        self._incidents: OrderedDict[str, Incident] = OrderedDict()
        self._seen: deque[tuple[int, str, str]] = deque(maxlen=MAX_ALERTS)

    def update(self, now_ns: int) -> Digest:
        """The digest at ``now_ns`` (wall time); never raises, an error is part of the answer."""
        try:
            self._read()
            self._read_acknowledged()
        except (sqlite3.Error, OSError, msgspec.DecodeError) as error:
            return self._digest(f"the history cannot be read: {error}")
        while self._seen and self._seen[0][0] < now_ns - HOUR_NS:
            self._seen.popleft()
        return self._digest("")

    def _read(self) -> None:
        head = read_behind(self._path, self._after, 0).head
        if head < self._after:
            self._begin()
        self._after = max(self._after, head - MAX_ALERTS)
        while self._after < head:
            page = read_behind(self._path, self._after, _PAGE)
            if page.last <= self._after:
                break
            for key, document in page.alerts:
                self._take(key, document)
            self._after = page.last

    def _read_acknowledged(self) -> None:
        known = self._series.acknowledged(self._incidents.keys())
        for key, said in known.items():
            self._incidents[key].acknowledged = clean(said.who, _MAX_TEXT)

    def _take(self, key: str, document: Mapping[str, Any]) -> None:
        facts = _map(_map(document.get("kwsiem")).get("alert"))
        source = _map(document.get("source"))
        address = _text(source.get("ip") or source.get("address"))
        level = _text(facts.get("level"))
        at_ns = raised_ns_of(key)
        incident = Incident(
            _text(facts.get("incident_id")) or key,
            at_ns,
            _text(facts.get("state")),
            level,
            _text(_map(document.get("rule")).get("name") or document.get("message")),
            address or _identity(facts.get("identity")),
            facts["count"] if isinstance(facts.get("count"), int) else 0,
        )
        self._incidents[incident.id] = incident
        self._incidents.move_to_end(incident.id)
        if len(self._incidents) > MAX_INCIDENTS:
            self._incidents.popitem(last=False)
        if address:
            self._seen.append((at_ns, address, level))

    def _digest(self, error: str) -> Digest:
        sources: dict[str, Source] = {}
        for at_ns, address, level in self._seen:
            one = sources.setdefault(address, Source(address, 0, level, at_ns))
            one.alerts += 1
            one.last_ns = max(one.last_ns, at_ns)
            one.level = max(one.level, level, key=lambda name: LEVELS.get(name, 0))
        chosen: dict[str, Source] = {}
        for order in ORDERS.values():  # the first of each order are there, whichever is chosen
            chosen.update({s.address: s for s in sorted(sources.values(), key=order)[:MAX_SOURCES]})
        return Digest(list(reversed(self._incidents.values())), list(chosen.values()), error)


def _by_alerts(source: Source) -> tuple[int, int]:
    return -source.alerts, -source.last_ns


def _by_time(source: Source) -> tuple[int, int]:
    return -source.last_ns, -source.alerts


def _by_level(source: Source) -> tuple[int, int]:
    return -LEVELS.get(source.level, 0), -source.alerts


#: How sources can be sorted, by the word that is shown.
ORDERS: Final = {"alerts": _by_alerts, "latest": _by_time, "level": _by_level}


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return clean(value, _MAX_TEXT) if isinstance(value, str) else ""


def _identity(value: Any) -> str:
    return clean(" ".join(str(each) for each in _map(value).values()), _MAX_TEXT)


class HistoryReader:
    """A child process with the rights of ``user`` that reads the history when it is asked."""

    def __init__(self, path: Path, user: str) -> None:
        child_in, to_child = os.pipe()
        from_child, child_out = os.pipe()

        def failed(error: BaseException) -> None:
            _write(child_out, Digest(error=f"the history is not read any more: {words_of(error)}"))

        self._pid = spawn(
            user,
            lambda: _serve(path, child_in, child_out),
            keep=(child_in, child_out),
            is_silent=True,  # the screen is another's
            failed=failed,
        )
        os.close(child_in)
        os.close(child_out)
        self._to = os.fdopen(to_child, "wb", buffering=0)
        self._from = os.fdopen(from_child, "rb")
        self._last = Digest(error=_ENDED)

    def read(self) -> Digest:
        """The digest of now; waits for the child. Once it has ended, why it did if it said so."""
        with contextlib.suppress(BrokenPipeError):
            self._to.write(b"\n")
        try:
            if select.select([self._from], [], [], _ANSWER_S)[0]:
                found = msgspec.json.decode(self._from.readline(_MAX_ANSWER_BYTES), type=Digest)
                self._last = Digest(error=found.error or _ENDED)
                return found
            self._kill()  # a late answer would be taken for that to the next question
        except (OSError, ValueError):
            pass
        return self._last

    def close(self) -> None:
        """End the child: it stops when nobody can ask it any more."""
        self._kill()
        os.waitpid(self._pid, 0)
        self._to.close()
        self._from.close()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)


def _serve(path: Path, in_fd: int, out_fd: int) -> None:
    """The child's life."""
    history = History(path)
    while os.read(in_fd, 1):
        _write(out_fd, history.update(clock.wall_ns()))


def _write(fd: int, digest: Digest) -> None:
    answer = memoryview(msgspec.json.encode(digest) + b"\n")
    while answer:
        answer = answer[os.write(fd, answer) :]
