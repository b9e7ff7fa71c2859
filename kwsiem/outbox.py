"""Stage 6: where alerts wait, on disk, until every output has taken them; and the history of alerts.

SQLite in WAL mode with synchronous=FULL: :meth:`Outbox.put` commits a whole group of alerts at once and
returns when they are on disk (measured: 0.12 ms alone, 0.003 ms each in a group of 1,000). What outputs have
settled is committed without waiting for the disk (synchronous=NORMAL): a kill loses nothing of it, a power
cut at worst sends some alerts twice, with the same id.

The ledger of each output always balances: ``raised = delivered + waiting + dead + dropped + filtered``.
Sequence numbers have no gaps; an output's cursor moves over each alert exactly once, in the same
transaction that counts what became of it.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from kwsiem.alert import URGENT_SEVERITY
from kwsiem.clock import NS_PER_S, boot_id, boot_ns, wall_ns

log = logging.getLogger("kwsiem.outbox")

HISTORY_ALERTS: Final = 100_000
MAX_BYTES: Final = 1 << 30
MAX_DEAD_LETTERS: Final = 10_000
#: Notes that an output keeps (the message of an incident in a chat), the oldest go.
MAX_NOTES: Final = 10_000
#: What was sent over a connection without acknowledgement is sent again after a reconnect: so many alerts
#: at most, and none that was sent longer ago. A receiver that kept the connection for so long has read it.
REPLAY_ALERTS: Final = 50_000
REPLAY_S: Final = 600
#: Rows that one call removes at most: twice the largest group, so that removing keeps up with storing.
_PRUNE_ROWS: Final = 1_000
#: SQLite waits so long for another process that reads or copies the file.
_BUSY_S: Final = 5.0

#: Of the tables; a file of another version is moved aside like a corrupt one.
_VERSION: Final = 1
_SCHEMA: Final = f"""
PRAGMA user_version = {_VERSION};
CREATE TABLE IF NOT EXISTS alerts (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, severity INTEGER NOT NULL, document BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS outputs (
    name TEXT PRIMARY KEY, base INTEGER NOT NULL, cursor INTEGER NOT NULL,
    delivered INTEGER NOT NULL DEFAULT 0, dead INTEGER NOT NULL DEFAULT 0,
    dropped INTEGER NOT NULL DEFAULT 0, filtered INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS dead_letters (
    number INTEGER PRIMARY KEY, output TEXT NOT NULL, seq INTEGER NOT NULL, id TEXT NOT NULL,
    reason TEXT NOT NULL, at_ns INTEGER NOT NULL, document BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS ahead (
    output TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (output, seq)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sendings (
    output TEXT NOT NULL, boot TEXT NOT NULL, at_s INTEGER NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (output, boot, at_s)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (
    number INTEGER PRIMARY KEY, output TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
    UNIQUE (output, key)
);
CREATE INDEX IF NOT EXISTS urgent ON alerts (seq) WHERE severity >= {URGENT_SEVERITY};
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT OR IGNORE INTO counters VALUES ('head', 0), ('duplicates', 0);
"""  # noqa: S608 - a number of ours


class Item(msgspec.Struct, frozen=True):
    """One alert to be stored: its id, its severity (0 to 10) and its document as JSON."""

    id: str
    severity: int
    document: bytes


class Stored(msgspec.Struct, frozen=True):
    """One alert as it lies in the outbox."""

    seq: int
    id: str
    severity: int
    document: bytes


class Ledger(msgspec.Struct, frozen=True):
    """The account of one output since the outbox began."""

    raised: int
    delivered: int
    waiting: int
    dead: int
    dropped: int
    filtered: int

    @property
    def balanced(self) -> bool:
        """Whether every alert raised is accounted for."""
        return (
            self.raised == self.delivered + self.waiting + self.dead + self.dropped + self.filtered
            and self.waiting >= 0
        )


class Outbox:
    """The outbox in one database file; safe to use from several threads of one process.

    ``outputs`` are the configured ones: only they hold alerts back from removal. A new output begins
    with the next alert. An unusable file is moved aside (``corrupt_path`` names it then) and a new
    outbox begun. Raises sqlite3.OperationalError when the file cannot be opened for other reasons
    (no permission, disk full).
    """

    def __init__(
        self,
        path: Path,
        outputs: Sequence[str],
        *,
        history: int = HISTORY_ALERTS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.path = path
        self.corrupt_path: Path | None = None
        self._names = tuple(outputs)
        self._history = history
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._generation = 0
        self._is_open = False
        self._open_or_replace()

    def close(self) -> None:
        """Close the file; SQLite then folds its log into it."""
        with self._lock:
            self._quick.close()
            self._durable.close()

    # putting ------------------------------------------------------------------------------------

    def put(self, items: Sequence[Item]) -> int:
        """Store a group of alerts and return when they are on disk; gives how many were new.

        An alert whose id is known is counted as a duplicate and not stored again. Raises
        sqlite3.OperationalError when the disk does not take it: then nothing of the group is stored.
        A file found corrupt is replaced, and the group stored in the new one.
        """
        generation = self._generation
        try:
            return self._put(items)
        except sqlite3.DatabaseError as error:
            if not _is_corrupt(error):
                raise
            self._replace(error, generation)
            return self._put(items)

    def _put(self, items: Sequence[Item]) -> int:
        with self._lock:
            if not self._is_open:
                # An earlier replacement stopped half way, when the disk was full or the folder closed.
                self._open_or_replace()
            return self._insert(items)

    def _insert(self, items: Sequence[Item]) -> int:
        with _transaction(self._durable) as db:
            first = head = _counter(db, "head")
            for item in items:
                row = (head + 1, item.id, item.severity, item.document)
                head += db.execute("INSERT OR IGNORE INTO alerts VALUES (?, ?, ?, ?)", row).rowcount
            db.execute("UPDATE counters SET value = ? WHERE name = 'head'", (head,))
            known = len(items) - (head - first)
            if known:
                db.execute("UPDATE counters SET value = value + ? WHERE name = 'duplicates'", (known,))
        return head - first

    # taking -------------------------------------------------------------------------------------

    def waiting(self, output: str, limit: int) -> list[Stored]:
        """The next alerts that an output has not settled, oldest first, at most ``limit``."""
        return self._read(
            "SELECT seq, id, severity, document FROM alerts"
            " WHERE seq > (SELECT cursor FROM outputs WHERE name = :output)"
            " AND NOT EXISTS (SELECT 1 FROM ahead WHERE output = :output AND ahead.seq = alerts.seq)"
            " ORDER BY seq LIMIT :limit",
            output=output, limit=limit,
        )  # fmt: skip

    def urgent(self, output: str, after: int, limit: int) -> list[Stored]:
        """The oldest waiting alerts behind ``after`` whose severity is URGENT_SEVERITY or more."""
        return self._read(
            "SELECT seq, id, severity, document FROM alerts INDEXED BY urgent"  # noqa: S608 - a number of ours
            f" WHERE seq > :after AND severity >= {URGENT_SEVERITY}"
            " AND NOT EXISTS (SELECT 1 FROM ahead WHERE output = :output AND ahead.seq = alerts.seq)"
            " ORDER BY seq LIMIT :limit",
            output=output, after=after, limit=limit,
        )  # fmt: skip

    def sent(self, output: str, after: int, limit: int) -> list[Stored]:
        """Alerts behind ``after`` that an output has settled, oldest first, as far as they are there."""
        return self._read(
            "SELECT seq, id, severity, document FROM alerts WHERE seq > :after"
            " AND (seq <= (SELECT cursor FROM outputs WHERE name = :output)"
            " OR EXISTS (SELECT 1 FROM ahead WHERE output = :output AND ahead.seq = alerts.seq))"
            " ORDER BY seq LIMIT :limit",
            output=output, after=after, limit=limit,
        )  # fmt: skip

    def _read(self, query: str, **values: Any) -> list[Stored]:
        with self._guarded():
            rows = self._quick.execute(query, values).fetchall()
        return [Stored(*row) for row in rows]

    def settle(
        self,
        output: str,
        delivered: Sequence[int],
        filtered: Sequence[int],
        dead: Sequence[tuple[int, str]],
        *,
        replays: bool = False,
    ) -> None:
        """Count what became of waiting alerts of an output, each dead one with its reason.

        The cursor moves past them when they are the oldest; what is settled further on is remembered
        until the cursor gets there. What was settled or dropped in the meantime is passed over. With
        ``replays`` it is remembered for :meth:`replay_after` that they were sent now.
        """
        with self._guarded(), _transaction(self._quick) as db:
            (cursor,) = db.execute("SELECT cursor FROM outputs WHERE name = ?", (output,)).fetchone()
            last = max((*delivered, *filtered, *(seq for seq, _ in dead)), default=cursor)
            known = {
                seq
                for (seq,) in db.execute(
                    "SELECT seq FROM ahead WHERE output = ? AND seq <= ?", (output, last)
                )
            }
            done, below, buried = (
                [seq for seq in seqs if seq > cursor and seq not in known]
                for seqs in (delivered, filtered, [seq for seq, _ in dead])
            )
            _bury(db, output, [(seq, reason) for seq, reason in dead if seq in set(buried)])
            _advance(db, output, cursor, sorted({*done, *below, *buried}))
            db.execute(
                "UPDATE outputs SET delivered = delivered + ?, dead = dead + ?, filtered = filtered + ?"
                " WHERE name = ?",
                (len(done), len(buried), len(below), output),
            )
            if replays and done:
                _note_sending(db, output, min(done))

    def replay_after(self, output: str) -> int:
        """The sequence number behind which alerts were sent less than REPLAY_S ago, or before a reboot.

        At most REPLAY_ALERTS lie between it and the newest one; it is the newest itself when none does.
        """
        with self._guarded():
            head = _counter(self._quick, "head")
            (first,) = self._quick.execute(
                "SELECT min(seq) FROM sendings WHERE output = ? AND (boot != ? OR at_s >= ?)",
                (output, boot_id(), boot_ns() // NS_PER_S - REPLAY_S),
            ).fetchone()
            (cursor,) = self._quick.execute("SELECT cursor FROM outputs WHERE name = ?", (output,)).fetchone()
        return head if first is None else max(first - 1, cursor - REPLAY_ALERTS)

    # notes --------------------------------------------------------------------------------------

    def note(self, output: str, key: str) -> str | None:
        """What an output has noted under a key."""
        with self._guarded():
            row = self._quick.execute(
                "SELECT value FROM notes WHERE output = ? AND key = ?", (output, key)
            ).fetchone()
        return row[0] if row else None

    def set_note(self, output: str, key: str, value: str) -> None:
        """Note something for an output; it keeps the latest MAX_NOTES."""
        with self._guarded(), _transaction(self._quick) as db:
            db.execute(
                "INSERT OR REPLACE INTO notes (output, key, value) VALUES (?, ?, ?)", (output, key, value)
            )
            db.execute("DELETE FROM notes WHERE number <= (SELECT max(number) FROM notes) - ?", (MAX_NOTES,))

    # keeping within bounds ----------------------------------------------------------------------

    def prune(self) -> int:
        """Remove alerts beyond the history, and when the file is too large the oldest ones that wait.

        One short transaction for each call, to be called after each group. Gives how many alerts were
        dropped that an output still waited for (counted in its ledger).
        """
        with self._guarded(), _transaction(self._quick) as db:
            lowest = db.execute("SELECT min(seq) FROM alerts").fetchone()[0]
            if lowest is None:
                return 0
            head = _counter(db, "head")
            settled = self._settled_by_all(db, head)
            floor = min(settled, head - self._history)
            dropped = 0
            if _used_bytes(db) > self._max_bytes:
                floor = max(floor, lowest - 1 + _PRUNE_ROWS)
                dropped = _drop(db, self._names, min(floor, head))
            floor = min(floor, lowest - 1 + _PRUNE_ROWS, head)
            db.execute("DELETE FROM alerts WHERE seq <= ?", (floor,))
        if dropped:
            log.error("outbox is full, %d waiting alerts dropped", dropped)
        return dropped

    def _settled_by_all(self, db: sqlite3.Connection, head: int) -> int:
        cursors = dict(db.execute("SELECT name, cursor FROM outputs").fetchall())
        return min((cursors[name] for name in self._names), default=head)

    # reading ------------------------------------------------------------------------------------

    def ledger(self) -> dict[str, Ledger]:
        """The account of each configured output."""
        with self._guarded():
            head = _counter(self._quick, "head")
            rows = self._quick.execute(
                "SELECT name, base, cursor, delivered, dead, dropped, filtered,"
                " (SELECT count(*) FROM ahead WHERE output = name) FROM outputs"
            ).fetchall()
        return {
            name: Ledger(head - base, delivered, head - cursor - ahead, dead, dropped, filtered)
            for name, base, cursor, delivered, dead, dropped, filtered, ahead in rows
            if name in self._names
        }

    def duplicates(self) -> int:
        """How many alerts came again and were not stored twice."""
        with self._guarded():
            return _counter(self._quick, "duplicates")

    def recent(self, limit: int) -> list[dict[str, Any]]:
        """The documents of the latest alerts, newest first."""
        with self._guarded():
            return _recent(self._quick, limit)

    def dead_letters(self, output: str) -> list[tuple[str, str]]:
        """Id and reason of what an output refused for good, oldest first."""
        with self._guarded():
            return self._quick.execute(
                "SELECT id, reason FROM dead_letters WHERE output = ? ORDER BY number", (output,)
            ).fetchall()

    # opening ------------------------------------------------------------------------------------

    def _open_or_replace(self) -> None:
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if not _is_corrupt(error):
                raise
            self._move_aside(error)
            self._open()

    def _open(self) -> None:
        self._durable = _connect(self.path, "FULL")
        try:
            (version,) = self._durable.execute("PRAGMA user_version").fetchone()
            if version not in {0, _VERSION}:
                raise sqlite3.DatabaseError(f"version {version} of the tables, expected {_VERSION}")
            self._durable.executescript(_SCHEMA)
            with _transaction(self._durable) as db:
                _admit_outputs(db, self._names)
            self._quick = _connect(self.path, "NORMAL")
            self._is_open = True
        except sqlite3.DatabaseError:
            self._durable.close()
            raise

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """The lock; a file found corrupt meanwhile is replaced before the error goes on."""
        generation = self._generation
        try:
            with self._lock:
                yield
        except sqlite3.DatabaseError as error:
            if _is_corrupt(error):
                self._replace(error, generation)
            raise

    def _replace(self, error: sqlite3.DatabaseError, generation: int) -> None:
        """Begin a new file unless another thread has done so since ``generation``."""
        with self._lock:
            if generation != self._generation:
                return
            self._generation += 1
            self._is_open = False
            self._quick.close()
            self._durable.close()
            self._move_aside(error)
            self._open()

    def _move_aside(self, error: sqlite3.DatabaseError) -> None:
        self.corrupt_path = self.path.with_name(f"{self.path.name}.corrupt-{wall_ns() // 1_000_000_000}")
        log.error(
            "outbox %s is corrupt (%s), moved to %s, a new one begun", self.path, error, self.corrupt_path
        )
        for suffix in ("", "-wal", "-shm"):
            source = Path(f"{self.path}{suffix}")
            if source.exists():
                source.rename(f"{self.corrupt_path}{suffix}")


def recent_alerts(path: Path, limit: int) -> list[dict[str, Any]]:
    """The documents of the latest alerts in an outbox that another process may be using, newest first.

    Empty when there is no such file. Raises sqlite3.DatabaseError when it cannot be read.
    """
    if not path.exists():
        return []
    db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=_BUSY_S)
    try:
        return _recent(db, limit)
    finally:
        db.close()


def _recent(db: sqlite3.Connection, limit: int) -> list[dict[str, Any]]:
    rows = db.execute("SELECT document FROM alerts ORDER BY seq DESC LIMIT ?", (limit,)).fetchall()
    return [msgspec.json.decode(row[0]) for row in rows]


def _connect(path: Path, synchronous: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={synchronous}")
    except sqlite3.DatabaseError:
        db.close()
        raise
    return db


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All or nothing, committed at the end of the block."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _counter(db: sqlite3.Connection, name: str) -> int:
    row = db.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row else 0


def _admit_outputs(db: sqlite3.Connection, names: Sequence[str]) -> None:
    """Rows for new outputs; what is no longer there for one that was away is counted as dropped."""
    head = _counter(db, "head")
    for name in names:
        db.execute("INSERT OR IGNORE INTO outputs (name, base, cursor) VALUES (?, ?, ?)", (name, head, head))
    lowest = db.execute("SELECT min(seq) FROM alerts").fetchone()[0]
    _drop(db, names, head if lowest is None else lowest - 1)


def _drop(db: sqlite3.Connection, names: Sequence[str], floor: int) -> int:
    """Move every cursor to ``floor`` at least, what it passes over counted as dropped; gives how many."""
    dropped = 0
    for name in names:
        (cursor,) = db.execute("SELECT cursor FROM outputs WHERE name = ?", (name,)).fetchone()
        if cursor < floor:
            (settled,) = db.execute(
                "SELECT count(*) FROM ahead WHERE output = ? AND seq <= ?", (name, floor)
            ).fetchone()
            lost = floor - cursor - settled
            db.execute("UPDATE outputs SET dropped = dropped + ? WHERE name = ?", (lost, name))
            _advance(db, name, floor, [])
            dropped += lost
    return dropped


def _advance(db: sqlite3.Connection, output: str, cursor: int, settled: Sequence[int]) -> None:
    """Move an output's cursor from ``cursor`` over all that is settled without a gap; keep the rest.

    ``settled`` is sorted, above the cursor, and not in the table ``ahead``.
    """
    db.executemany("INSERT INTO ahead VALUES (?, ?)", [(output, seq) for seq in _behind_gap(cursor, settled)])
    cursor += len(settled) - len(_behind_gap(cursor, settled))
    for (seq,) in db.execute(
        "SELECT seq FROM ahead WHERE output = ? AND seq > ? ORDER BY seq", (output, cursor)
    ):
        if seq != cursor + 1:
            break
        cursor = seq
    db.execute("DELETE FROM ahead WHERE output = ? AND seq <= ?", (output, cursor))
    db.execute("UPDATE outputs SET cursor = ? WHERE name = ?", (cursor, output))


def _behind_gap(cursor: int, settled: Sequence[int]) -> Sequence[int]:
    """What of a sorted sequence does not follow the cursor without a gap."""
    for index, seq in enumerate(settled):
        if seq != cursor + 1 + index:
            return settled[index:]
    return ()


def _note_sending(db: sqlite3.Connection, output: str, first: int) -> None:
    """Remember that alerts from ``first`` on were sent now, and forget what was sent too long ago."""
    now_s = boot_ns() // NS_PER_S
    db.execute(
        "INSERT INTO sendings VALUES (?, ?, ?, ?)"
        " ON CONFLICT (output, boot, at_s) DO UPDATE SET seq = min(seq, excluded.seq)",
        (output, boot_id(), now_s, first),
    )
    db.execute(
        "DELETE FROM sendings WHERE output = ? AND (seq < ? OR (boot = ? AND at_s < ?))",
        (output, first - 2 * REPLAY_ALERTS, boot_id(), now_s - REPLAY_S),
    )


def _bury(db: sqlite3.Connection, output: str, dead: Sequence[tuple[int, str]]) -> None:
    """Dead letters with their documents; only the latest MAX_DEAD_LETTERS are kept."""
    if not dead:
        return
    db.executemany(
        "INSERT INTO dead_letters (output, seq, id, reason, at_ns, document)"
        " SELECT ?, seq, id, ?, ?, document FROM alerts WHERE seq = ?",
        [(output, reason[:1024], wall_ns(), seq) for seq, reason in dead],
    )
    db.execute(
        "DELETE FROM dead_letters WHERE number <= (SELECT max(number) FROM dead_letters) - ?",
        (MAX_DEAD_LETTERS,),
    )


def _used_bytes(db: sqlite3.Connection) -> int:
    """Bytes in use within the file: free pages are used again, so they do not count."""
    pages: dict[str, int] = {
        name: int(db.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    }
    return (pages["page_count"] - pages["freelist_count"]) * pages["page_size"]


def _is_corrupt(error: sqlite3.DatabaseError) -> bool:
    """SQLITE_CORRUPT and SQLITE_NOTADB come as DatabaseError itself, all others as a class below it."""
    return type(error) is sqlite3.DatabaseError


def balanced(ledgers: Mapping[str, Ledger]) -> bool:
    """Whether the accounts of all outputs balance."""
    return all(ledger.balanced for ledger in ledgers.values())
