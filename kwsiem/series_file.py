"""The history of figures as the courier writes it; :mod:`kwsiem.series` says what is in it and reads it.

Nothing here may stop the courier: what cannot be written is counted in ``lost`` and let go, and a damaged
file is put aside and begun anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sqlite3
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from kwsiem import clock
from kwsiem.clock import NS_PER_S
from kwsiem.database import BUSY_S, is_corrupt, transaction, used_bytes
from kwsiem.series import (
    GAUGES,
    MAX_FIELDS_BYTES,
    MAX_ID,
    MAX_LABEL,
    MAX_WHO,
    MINUTE_S,
    NAMES,
    OTHER,
    SCHEMA,
    VERSION,
    Acknowledged,
    Journal,
)
from kwsiem.text import clean, harmless

#: Labels of one figure in one minute while it lasts; with more the smaller half is added to ``other``.
MINUTE_LABELS: Final = 200
#: Labels that stay once the minute is over: the largest; the rest is added to ``other``.
TOP: Final[Mapping[str, int]] = {"ports": 20, "sources": 50}
#: Above any count of a minute, and low enough that sums of years of them are exact.
MAX_VALUE: Final = 2**46
JOURNAL_A_MINUTE: Final = 3000
JOURNAL_ROWS: Final = 1_000_000
JOURNAL_FIELDS: Final = 32
JOURNAL_TEXT: Final = 256
ACKNOWLEDGEMENTS: Final = 100_000
#: Damaged files that are kept.
KEPT_ASIDE: Final = 2
#: Rows that one call of prune removes at most from each table.
_PRUNE_ROWS: Final = 20_000
_PAGE_BYTES: Final = 4096
#: Calls that wait for the disk, acknowledgements that do; and how often the file is kept within its bounds.
WAITING: Final = 100
ACKNOWLEDGEMENTS_WAITING: Final = 1000
PRUNE_S: Final = 30.0
_LOG_MOST_BYTES: Final = 4 * 2**20

log = logging.getLogger("kwsiem.series")


class SeriesFile:
    """The file; safe to use from several threads of one process. No method raises for disk or damage.

    ``max_age_s`` and ``max_bytes`` are what :meth:`prune` keeps it within. ``lost`` counts figures and
    journal entries that were not written, and acknowledgements that nobody tries again, by reason;
    ``damaged`` how often the file was begun anew.
    """

    def __init__(self, path: Path, *, max_age_s: float, max_bytes: int) -> None:
        self.path = path
        self.lost: Counter[str] = Counter()
        self.damaged = 0
        self.error = ""
        self._max_age_s = max_age_s
        self._max_bytes = max_bytes
        self._wall = clock.SteadyWall()
        self._lock = threading.RLock()
        self._lost_lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._bytes = 0
        #: The minute being written, the labels it has by figure, and how many journal entries.
        self._minute = -1
        self._labels: dict[str, set[str]] = {}
        self._entries = (-1, 0)
        self._do(0, lambda _: None)

    def lose(self, reason: str, rows: int) -> None:
        """Count what is not written. Never waits for the disk."""
        with self._lost_lock:
            self.lost[reason] += rows

    def close(self) -> None:
        """Close the file; SQLite then folds its log into it."""
        with self._lock:
            self._close()

    def add(self, at_s: int, figures: Mapping[str, Mapping[str, int]]) -> None:
        """Add to the figures of the minute of ``at_s`` (seconds since 1970): by name and label.

        Gauges stay at the highest value. Names that are none are left out, and values below 1; labels are
        cleaned and cut.
        """
        wanted = [
            (name, clean(label, MAX_LABEL), min(value, MAX_VALUE))
            for name, values in figures.items()
            if name in NAMES
            for label, value in values.items()
            if value > 0
        ]
        if wanted:
            self._do(len(wanted), lambda db: self._add(db, int(at_s) // MINUTE_S, wanted))

    def _add(self, db: sqlite3.Connection, minute: int, wanted: list[tuple[str, str, int]]) -> None:
        with transaction(db):
            if minute != self._minute:
                self._turn(db, minute)
            for name, label, value in wanted:
                known = self._labels.setdefault(name, set())
                if label not in known and len(known) >= MINUTE_LABELS:
                    _keep_top(db, name, minute, MINUTE_LABELS // 2)
                    self._read_labels(db)
                self._labels.setdefault(name, set()).add(label)
                _put(db, name, minute, label, value)

    def _turn(self, db: sqlite3.Connection, minute: int) -> None:
        """Another minute begins: that before keeps its largest labels; this one may have some already."""
        for name, top in TOP.items():
            last = self._minute
            if last < 0:  # we begin; who wrote before may have been killed
                (last,) = db.execute("SELECT max(minute) FROM minutes WHERE name = ?", (name,)).fetchone()
            if last is not None and last != minute:
                _keep_top(db, name, last, top)
        self._minute = minute
        self._read_labels(db)

    def _read_labels(self, db: sqlite3.Connection) -> None:
        self._labels = {}
        for name, label in db.execute(
            f"SELECT name, label FROM minutes WHERE minute = ? AND name IN ({', '.join('?' * len(NAMES))})",  # noqa: S608 - no text of others
            (self._minute, *NAMES),
        ):
            self._labels.setdefault(name, set()).add(label)

    def note(self, entries: Iterable[Journal]) -> None:
        """Write our own events down; beyond JOURNAL_A_MINUTE they are counted only."""
        wanted = list(entries)
        minute = clock.wall_ns() // NS_PER_S // MINUTE_S
        with self._lock:
            if self._entries[0] != minute:
                self._entries = (minute, 0)
            room = JOURNAL_A_MINUTE - self._entries[1]
            if len(wanted) > room:
                self.lose("many", len(wanted) - room)
                wanted = wanted[:room]
            self._entries = (minute, self._entries[1] + len(wanted))
        rows = [(_time(each.at_ns), clean(each.kind, MAX_LABEL), _fields(each.fields)) for each in wanted]
        if rows:
            self._do(len(rows), lambda db: _insert(db, rows))

    def acknowledge(self, incident_id: str, said: Acknowledged) -> Acknowledged | None:
        """Write down who acknowledged an incident; who was first stays.

        Gives who it was then, None when it could not be written: that is not counted, it can be tried again.
        """
        key = clean(incident_id, MAX_ID)
        who = cleaned_who(said.who)
        found: list[Acknowledged] = []

        def work(db: sqlite3.Connection) -> None:
            with transaction(db):
                db.execute(
                    "INSERT INTO acknowledgements VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                    (key, _time(said.at_ns), who),
                )
                row = db.execute(
                    "SELECT at_ns, who FROM acknowledgements WHERE incident_id = ?", (key,)
                ).fetchone()
            found.append(Acknowledged(*row))

        self._do(0, work)
        return found[0] if found else None

    def prune(self) -> None:
        """Remove what is too old by a steady clock; beyond the size the oldest.

        To be called now and then: a call is short.
        """
        now_ns = self._wall.now_ns()
        oldest_ns = now_ns - int(self._max_age_s * NS_PER_S) if now_ns and self._max_age_s else 0

        def work(db: sqlite3.Connection) -> None:
            with transaction(db):
                _remove_before(db, oldest_ns)
                _remove_beyond(db)
                if used_bytes(db) > self._max_bytes:
                    _remove_before(db, _a_part(db, now_ns))
            self._bytes = used_bytes(db)
            db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

        self._do(0, work)

    def counters(self) -> dict[str, Any]:
        """What is lost by reason, how often the file was damaged, its bytes in use, what is wrong now.

        Never waits for the disk.
        """
        return {
            "lost": dict(self.lost),
            "damaged": self.damaged,
            "bytes": self._bytes,
            "error": self.error[:200],
        }

    # -- the file --------------------------------------------------------------------------------------

    def _do(self, rows: int, work: Callable[[sqlite3.Connection], None]) -> None:
        """Do it with the open file; a damaged one is begun anew first. What fails is counted and let go."""
        with self._lock:
            try:
                self._try(work)
            except sqlite3.DatabaseError as error:
                if not is_corrupt(error):
                    self._failed(rows, str(error))
                    return
                try:
                    self._begin_anew(str(error))
                    self._try(work)
                except (sqlite3.Error, OSError) as again:
                    self._failed(rows, f"{error}; {again}")
            except (sqlite3.Error, OSError) as error:
                self._failed(rows, str(error))

    def _try(self, work: Callable[[sqlite3.Connection], None]) -> None:
        self._db = self._db or _open(self.path)
        work(self._db)
        if self.error:
            log.warning("figures can be written again")
        self.error = ""

    def _failed(self, rows: int, reason: str) -> None:
        """Nothing of it was written; the file is opened again the next time."""
        if rows:
            self.lose("disk", rows)
        if not self.error:
            log.error("figures cannot be written", extra={"file": str(self.path), "error": reason})
        self.error = reason
        self._close()

    def _close(self) -> None:
        if self._db:
            try:
                self._db.close()
            except sqlite3.Error as error:
                log.debug("closing the series: %s", error)
        self._db = None
        self._minute = -1
        self._labels = {}

    def _begin_anew(self, reason: str) -> None:
        """Put the damaged file aside; the last KEPT_ASIDE of them are kept. Raises OSError when it stays."""
        self._close()
        aside = self.path.with_name(f"{self.path.name}.corrupt-{clock.wall_ns()}")
        for suffix in ("", "-wal", "-shm"):
            old = self.path.with_name(self.path.name + suffix)
            if old.exists():
                old.rename(aside.with_name(aside.name + suffix))
        self.damaged += 1
        log.error("series are damaged, a new file is begun", extra={"file": str(self.path), "error": reason})
        for old in _asides(self.path)[:-KEPT_ASIDE]:
            for suffix in ("", "-wal", "-shm"):
                old.with_name(old.name + suffix).unlink(missing_ok=True)


def cleaned_who(who: str) -> str:
    """A name as the file keeps it."""
    return harmless(who, MAX_WHO)


class SeriesWriter:
    """Writes the file in a thread of its own: who tells something never waits for the disk.

    What does not fit behind WAITING calls is counted in the file's ``lost``. Acknowledgements, which a person
    was told of, have ACKNOWLEDGEMENTS_WAITING places of their own and are tried until they are written.
    """

    def __init__(self, file: SeriesFile) -> None:
        self.file = file
        self._calls: queue.Queue[tuple[int, Callable[[], object]] | None] = queue.Queue(WAITING)
        self._acknowledged: deque[tuple[str, Acknowledged]] = deque()
        self._thread = threading.Thread(target=self._run, name="series", daemon=True)
        self._thread.start()

    def add(self, at_s: int, figures: Mapping[str, Mapping[str, int]]) -> None:
        """As that of the file."""
        self._put(sum(map(len, figures.values())), lambda: self.file.add(at_s, figures))

    def note(self, entries: list[Journal]) -> None:
        """As that of the file."""
        self._put(len(entries), lambda: self.file.note(entries))

    def acknowledge(self, incident_id: str, said: Acknowledged) -> None:
        """As that of the file, and again with each later call until it is written."""
        if len(self._acknowledged) >= ACKNOWLEDGEMENTS_WAITING:
            self.file.lose("busy", 1)
            return
        self._acknowledged.append((incident_id, said))
        with contextlib.suppress(queue.Full):  # then the thread comes by anyway
            self._calls.put_nowait((0, lambda: None))

    def acknowledge_now(self, incident_id: str, said: Acknowledged) -> Acknowledged | None:
        """As that of the file, in the caller's thread; what cannot be written is tried again."""
        found = self.file.acknowledge(incident_id, said)
        if found is None:
            self.acknowledge(incident_id, said)
        return found

    def _put(self, rows: int, call: Callable[[], object]) -> None:
        try:
            self._calls.put_nowait((rows, call))
        except queue.Full:
            self.file.lose("busy", rows)

    def _run(self) -> None:
        prune_s = 0.0
        while (taken := self._calls.get()) is not None:
            self._guarded(1, self._write_acknowledged)
            self._guarded(*taken)
            if clock.monotonic_s() >= prune_s:
                prune_s = clock.monotonic_s() + PRUNE_S
                self._guarded(0, self.file.prune)
        self._guarded(1, self._write_acknowledged)
        if self._acknowledged:
            self.file.lose("disk", len(self._acknowledged))

    def _write_acknowledged(self) -> None:
        while self._acknowledged:
            first = self._acknowledged.popleft()
            if self.file.acknowledge(*first) is None:
                self._acknowledged.appendleft(first)
                return

    def _guarded(self, rows: int, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception:
            # The edge of the stage: figures must not end the courier.
            log.exception("figures cannot be written")
            self.file.lose("failed", rows)

    def close(self, wait_s: float) -> None:
        """Write what waits, close the file; a disk that takes longer is left alone."""
        try:
            self._calls.put(None, timeout=wait_s)
        except queue.Full:
            return
        self._thread.join(wait_s)
        if not self._thread.is_alive():
            self.file.close()


def _asides(path: Path) -> list[Path]:
    """Damaged files that were put aside, the oldest first."""
    found = [each for each in path.parent.glob(f"{path.name}.corrupt-*") if each.name[-1].isdigit()]
    return sorted(found, key=lambda each: int("0" + each.name.rpartition("-")[2]))


def _open(path: Path) -> sqlite3.Connection:
    """The file for writing, made when it is not there; only its owner (and root) reads it."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        db.execute("PRAGMA journal_mode = WAL")
        # Figures of the last seconds may go with a loss of power; the file stays whole.
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA journal_size_limit = {_LOG_MOST_BYTES}")
        db.execute("PRAGMA cell_size_check = ON")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        elif version != VERSION:
            raise sqlite3.DatabaseError(f"version {version} is not known")
    except BaseException:
        db.close()
        raise
    return db


def _put(db: sqlite3.Connection, name: str, minute: int, label: str, value: int) -> None:
    """Add to a value, or raise a gauge."""
    join = "max(value, excluded.value)" if name in GAUGES else "value + excluded.value"
    db.execute(
        "INSERT INTO minutes VALUES (?, ?, ?, ?) ON CONFLICT (name, minute, label)"  # noqa: S608 - no text of others
        f" DO UPDATE SET value = min({join}, {MAX_VALUE})",
        (name, minute, label, value),
    )


def _keep_top(db: sqlite3.Connection, name: str, minute: int, top: int) -> None:
    """Add all but the largest labels of a minute to ``other``."""
    rows = db.execute(
        "SELECT label, value FROM minutes WHERE name = ? AND minute = ? AND label <> ?"
        " ORDER BY value DESC, label LIMIT -1 OFFSET ?",
        (name, minute, OTHER, top),
    ).fetchall()
    if not rows:
        return
    db.executemany(
        "DELETE FROM minutes WHERE name = ? AND minute = ? AND label = ?",
        [(name, minute, label) for label, _ in rows],
    )
    _put(db, name, minute, OTHER, min(sum(value for _, value in rows), MAX_VALUE))


def _time(at_ns: int) -> int:
    """What SQLite takes as a number."""
    return max(0, min(at_ns, 2**62))


def _insert(db: sqlite3.Connection, rows: list[tuple[int, str, str]]) -> None:
    with transaction(db):
        db.executemany("INSERT INTO journal (at_ns, kind, fields) VALUES (?, ?, ?)", rows)


def _fields(fields: Mapping[str, Any]) -> str:
    """Bounded JSON of an event's fields: numbers as they are, all else as cleaned text."""
    found: dict[str, Any] = {}
    for name, value in list(fields.items())[:JOURNAL_FIELDS]:
        plain = isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 2**63)
        found[clean(str(name), MAX_LABEL)] = value if plain else clean(str(value), JOURNAL_TEXT)
    text = msgspec.json.encode(found)
    while len(text) > MAX_FIELDS_BYTES:
        found.popitem()
        text = msgspec.json.encode(found)
    return text.decode()


def _remove_before(db: sqlite3.Connection, oldest_ns: int) -> None:
    """Remove what is older, _PRUNE_ROWS of each table at most."""
    minute = oldest_ns // NS_PER_S // MINUTE_S
    for name in NAMES:
        row = db.execute(
            "SELECT minute FROM minutes WHERE name = ? AND minute < ? ORDER BY minute LIMIT 1 OFFSET ?",
            (name, minute, _PRUNE_ROWS // len(NAMES)),
        ).fetchone()
        db.execute("DELETE FROM minutes WHERE name = ? AND minute < ?", (name, row[0] if row else minute))
    for table, key in (("journal", "number"), ("acknowledgements", "incident_id")):
        db.execute(
            f"DELETE FROM {table} WHERE {key} IN"  # noqa: S608 - no text of others
            f" (SELECT {key} FROM {table} WHERE at_ns < ? ORDER BY at_ns LIMIT {_PRUNE_ROWS})",
            (oldest_ns,),
        )


def _remove_beyond(db: sqlite3.Connection) -> None:
    """Remove the oldest rows of tables that have too many."""
    for table, key, most in (
        ("journal", "number", JOURNAL_ROWS),
        ("acknowledgements", "incident_id", ACKNOWLEDGEMENTS),
    ):
        db.execute(
            f"DELETE FROM {table} WHERE {key} IN"  # noqa: S608 - as above
            f" (SELECT {key} FROM {table} ORDER BY at_ns DESC LIMIT {_PRUNE_ROWS} OFFSET {most})"
        )


def _a_part(db: sqlite3.Connection, now_ns: int | None) -> int:
    """The time (ns) before which a twentieth of all figures and entries lies, an hour at least.

    An hour while the time is not known: after a step of years a twentieth would be all there is.
    """
    oldest = []
    for name in NAMES:
        (minute,) = db.execute("SELECT min(minute) FROM minutes WHERE name = ?", (name,)).fetchone()
        oldest += [minute * MINUTE_S * NS_PER_S] if minute is not None else []
    for table in ("journal", "acknowledgements"):
        (at_ns,) = db.execute(f"SELECT min(at_ns) FROM {table}").fetchone()  # noqa: S608 - as above
        oldest += [at_ns] if at_ns is not None else []
    first = min(oldest, default=0)
    return first + max(3600 * NS_PER_S, ((now_ns or first) - first) // 20)
