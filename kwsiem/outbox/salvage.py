"""What is done with a damaged file, or one of an older version: a new one is built from all that is found.

The old file and its log are read raw, as bytes, for frames; so it does not matter what is left of the
database around them. Everything that an output has still to get keeps its sequence number; what cannot be
found is counted as dropped. The new file is complete before it takes the place of the old one, and a kill
at any point leaves either the old one to be salvaged again or the swap to be finished.

Bounds: a few MiB of memory beside 40 bytes for each page of the log, REPAIRS damaged frames looked at
closely; alerts that nobody waits for are taken over up to the history. Two passes over the file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from kwsiem.clock import NS_PER_S, wall_ns
from kwsiem.outbox import frame, tables
from kwsiem.outbox.tables import Account, Totals

log = logging.getLogger("kwsiem.outbox")

#: A damaged frame takes a millisecond for each 2 KB; the courier must not seem to hang.
REPAIRS: Final = 2000
#: Damaged files that are kept aside, the oldest go.
KEEP_ASIDE: Final = 2
#: Frames without a place, from transactions that were never committed: one group is 500.
_MAX_STRAYS: Final = 10_000
#: SQLite's file format, sections 1.3 and 4 (sqlite.org/fileformat2.html).
_HEADER_BYTES: Final = 100
_WAL_HEADER_BYTES: Final = 32
_SLOT: Final = struct.Struct(">IIII")  # page number, pages after commit or 0, two salts
_SLOT_HEADER_BYTES: Final = 24
#: The first salt grows by one with each new beginning of the log.
_SALTS_BACK: Final = 1_000_000
_BATCH: Final = 10_000


class Salvaged(msgspec.Struct):
    """What came of it: alerts in the new file, those mended, and by output those that are lost."""

    aside: Path
    alerts: int = 0
    repaired: int = 0
    lost: dict[str, int] = {}


def suffixed(path: Path, suffix: str) -> Path:
    """The file beside a database: ``-wal``, ``-shm``, ``.new``, ``.cursors``."""
    return Path(f"{path}{suffix}")


def refused_before_opening(path: Path) -> str:
    """Why a file must not be shown to SQLite, empty when it may.

    SQLite removes the log beside an empty file, and believes a header that it can read.
    """
    try:
        head = path.read_bytes()[:_HEADER_BYTES] if path.stat().st_size < 2**16 else _first_bytes(path)
    except FileNotFoundError:
        head = b""
    if not head:
        wal = suffixed(path, "-wal")
        return "the file is gone, its log is there" if wal.exists() and wal.stat().st_size else ""
    if len(head) < _HEADER_BYTES or not head.startswith(b"SQLite format 3\0"):
        return "not a database"
    version = int.from_bytes(head[60:64], "big")
    page = int.from_bytes(head[16:18], "big")
    if head[18] != head[19] or head[18] not in {1, 2} or head[20] or head[21:24] != b"\x40\x20\x20":
        return "its header is damaged"
    if version not in {0, 1, tables.VERSION} or (version == tables.VERSION and page != tables.PAGE_BYTES):
        return f"version {version} of the tables with pages of {page} bytes"
    return "" if int.from_bytes(head[56:60], "big") in {0, 1} else "its header is damaged"


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEADER_BYTES)


def check_log(path: Path, totals: Totals, accounts: dict[str, Account]) -> None:
    """Raises sqlite3.DatabaseError when the log holds what was committed and SQLite does not see.

    SQLite ends its reading of the log, without a word, where a checksum in it is wrong. Of a log that is
    gone altogether the cursors beside the file tell: every alert was on disk before it was counted there.
    """
    for found in frame.Finder(0).in_bytes(_read_beside(path)):
        if not found.key and tables.decode_account(found, Totals).head > totals.head:
            raise sqlite3.DatabaseError("its log is gone: there were more alerts")
    with _opened(suffixed(path, "-wal")) as fd:
        if fd < 0:
            return
        wal = _Wal(fd)
        for offset, found in frame.Finder(0).in_file(fd):
            if not wal.is_sure(offset):
                continue
            if found.kind == frame.ALERT and found.number > totals.head:
                raise sqlite3.DatabaseError(f"its log is damaged: alert {found.number} is not to be seen")
            known = totals if not found.key else accounts.get(found.key)
            if found.kind == frame.ACCOUNT and (known is None or found.number > known.revision):
                raise sqlite3.DatabaseError(f"its log is damaged: account {found.key!r} is not up to date")


def finish_swap(path: Path) -> None:
    """Go on where a kill interrupted the exchange of the files; a new file that is not complete goes."""
    new = suffixed(path, ".new")
    try:
        complete = int.from_bytes(_first_bytes(new)[60:64], "big") == tables.VERSION
    except FileNotFoundError:
        return
    if complete:
        swap(path, aside_name(path))
    else:
        remove_new(path)


def aside_name(path: Path) -> Path:
    """A name for the damaged file that is not taken."""
    second = wall_ns() // NS_PER_S
    while (aside := path.with_name(f"{path.name}.corrupt-{second}")).exists():
        second += 1
    return aside


def swap(path: Path, aside: Path) -> None:
    """Put the new file in the place of the old one; the old log goes first: it must not meet the new file."""
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            suffixed(path, suffix).rename(suffixed(aside, suffix))
    _sync(path.parent)
    suffixed(path, ".new").rename(path)
    _sync(path.parent)


def remove_new(path: Path) -> None:
    """Remove a new file that is not complete."""
    for suffix in (".new", ".new-journal", ".new-wal", ".new-shm"):
        suffixed(path, suffix).unlink(missing_ok=True)


def remove_oldest_aside(path: Path) -> None:
    """Keep the latest KEEP_ASIDE damaged files."""
    found = sorted(
        (p for p in path.parent.glob(f"{path.name}.corrupt-*") if not p.name.endswith(("-wal", "-shm"))),
        key=lambda p: (len(p.name), p.name),
    )
    for old in found[:-KEEP_ASIDE]:
        for suffix in ("", "-wal", "-shm"):
            suffixed(old, suffix).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def building(path: Path) -> Iterator[sqlite3.Connection]:
    """A new file beside ``path``; complete and on disk when the block ends well, removed when it does not."""
    remove_new(path)
    new = suffixed(path, ".new")
    try:
        db = sqlite3.connect(new, isolation_level=None)
        try:
            db.execute(f"PRAGMA page_size = {tables.PAGE_BYTES}")
            db.execute("PRAGMA journal_mode = OFF")
            db.execute("PRAGMA synchronous = OFF")
            db.executescript(tables.SCHEMA)
            db.execute("BEGIN")
            yield db
            db.execute("COMMIT")
            _sync(new)
            db.execute(f"PRAGMA user_version = {tables.VERSION}")  # only now it is complete
        finally:
            db.close()
        _sync(new)
        _sync(path.parent)
    except BaseException:
        remove_new(path)
        raise


def salvage(
    path: Path,
    names: Sequence[str],
    history: int,
    old: sqlite3.Connection | None,
    alive: Callable[[], None],
) -> Salvaged:
    """Build the new file beside the damaged one. ``old`` is a connection that reads it, if SQLite can.

    ``alive`` is called now and then. Raises sqlite3.OperationalError or OSError when the disk does not take
    it; the old file is then as before.
    """
    report = Salvaged(aside_name(path))
    with building(path) as db, _opened(path) as main, _opened(suffixed(path, "-wal")) as log_fd:
        raw = _Raw(main, log_fd, alive)
        totals, accounts = _accounts(raw, _read_beside(path))
        head = max([totals.head, *(account.cursor for account in accounts.values())])
        needed = min([head, *(accounts[name].cursor for name in names if name in accounts)])
        if any(name not in accounts for name in names):
            needed = 0
        head = max(head, _take_alerts(db, raw, min(needed, head - history), head))
        lowest = db.execute("SELECT min(seq) FROM alerts").fetchone()[0] or head + 1
        for name in names:
            # Its account is lost: all that is found is sent again, for loss cannot be recognised by others.
            accounts.setdefault(name, Account(base=lowest - 1, cursor=lowest - 1))
        totals.head = head
        totals.repaired += raw.finder.repaired
        report.repaired = raw.finder.repaired
        tables.save_totals(db, totals)
        _copy_tables(db, old)
        for name, account in accounts.items():
            report.lost[name] = _settle_up(db, old, name, account, head)
        tables.trim_letters(db)
        report.alerts = db.execute("SELECT count(*) FROM alerts").fetchone()[0]
    return report


def _accounts(raw: _Raw, beside: bytes) -> tuple[Totals, dict[str, Account]]:
    """The latest of all copies of each account."""
    latest: dict[str, frame.Frame] = {}

    def take(found: frame.Frame) -> None:
        if found.kind == frame.ACCOUNT:
            before = latest.get(found.key)
            if before is None or before.number < found.number:
                latest[found.key] = found

    for found in frame.Finder(100).in_bytes(beside):
        take(found)
    for sure, found in raw.frames():
        # Totals that were never committed would tell of alerts that the engine will send again.
        if sure or found.key:
            take(found)
    totals = latest.pop("", None)
    return (
        tables.decode_account(totals, Totals) if totals else Totals(),
        {name: tables.decode_account(found, Account) for name, found in latest.items()},
    )


def _take_alerts(db: sqlite3.Connection, raw: _Raw, floor: int, head: int) -> int:
    """Take over the alerts behind ``floor``; gives the newest sequence number, at least ``head``.

    An alert found under two numbers counts under the later one: the first was never committed. Alerts that
    find their number taken, or were perhaps never committed, are put behind all others.
    """
    strays: list[tuple[int, frame.Frame]] = []
    for sure, found in raw.frames():
        if found.kind != frame.ALERT or found.number <= floor:
            continue
        if (not sure and found.number > head) or not _place(db, found):
            if len(strays) < _MAX_STRAYS:
                strays.append((found.number, found))
        elif sure:
            head = max(head, found.number)
    for seq, stray in sorted(strays, key=lambda pair: pair[0]):
        if db.execute("SELECT 1 FROM alerts WHERE id = ?", (stray.key,)).fetchone():
            continue
        if seq <= head and not db.execute("SELECT 1 FROM alerts WHERE seq = ?", (seq,)).fetchone():
            _place(db, stray)
            continue
        head += 1
        moved = frame.Frame(stray.kind, head, stray.severity, stray.key, stray.body)
        _place(db, moved)
    return head


def _place(db: sqlite3.Connection, found: frame.Frame) -> bool:
    data = frame.encode(found.kind, found.number, found.severity, found.key, found.body)
    try:
        db.execute(
            "INSERT INTO alerts VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE"
            " SET seq = excluded.seq, severity = excluded.severity, frame = excluded.frame"
            " WHERE excluded.seq > alerts.seq",
            (found.number, found.key, found.severity, data),
        )
    except sqlite3.IntegrityError:
        return False
    return True


def _settle_up(
    db: sqlite3.Connection, old: sqlite3.Connection | None, name: str, account: Account, head: int
) -> int:
    """Write an account in which each alert waits, is settled or counted as lost; gives how many are lost."""
    if any(account.ahead) and not _copy_ahead(db, old, name, account):
        account.ahead = [0] * len(account.ahead)
    (again,) = db.execute(
        "SELECT count(*) FROM dead_letters WHERE output = ? AND again = 1", (name,)
    ).fetchone()
    lost = int(max(0, account.again - again))
    account.settled[tables.CORRUPT] += lost
    # Letters that were tried again after their account was written are dead letters as before.
    excess = max(0, again - account.again)
    db.execute(
        "UPDATE dead_letters SET again = 0 WHERE number IN"
        " (SELECT number FROM dead_letters WHERE output = ? AND again = 1 ORDER BY number DESC LIMIT ?)",
        (name, excess),
    )
    account.again -= lost
    tables.save_account(db, name, account)
    return lost + drop_missing(db, name, account, head)


def drop_missing(db: sqlite3.Connection, name: str, account: Account, head: int) -> int:
    """Count as lost what should wait for an output and is not there; gives how many."""
    lost = 0
    for first, last in list(_missing(db, name, account.cursor, head)):
        if first == account.cursor + 1:
            lost += tables.drop_through(db, name, account, last, tables.CORRUPT)
            continue
        for begin in range(first, last + 1, _BATCH):
            seqs = range(begin, min(begin + _BATCH, last + 1))
            lost += tables.drop_each(db, name, account, seqs, tables.CORRUPT)
    return lost


def _missing(db: sqlite3.Connection, name: str, cursor: int, head: int) -> Iterator[tuple[int, int]]:
    expected = cursor + 1
    for (seq,) in db.execute(
        "SELECT seq FROM alerts WHERE seq > ?1 UNION SELECT seq FROM ahead WHERE output = ?2 AND seq > ?1"
        " ORDER BY 1",
        (cursor, name),
    ):
        if seq > expected:
            yield expected, seq - 1
        expected = seq + 1
    if expected <= head:
        yield expected, head


def _copy_ahead(db: sqlite3.Connection, old: sqlite3.Connection | None, name: str, account: Account) -> bool:
    """Take over what was settled ahead of the cursor, when the old file still tells and agrees."""
    if old is None:
        return False
    try:
        rows = old.execute(
            "SELECT output, seq, fate, mark FROM ahead WHERE output = ? AND seq > ?", (name, account.cursor)
        ).fetchall()
    except sqlite3.Error:
        return False
    counted = [0] * len(account.ahead)
    for _, seq, fate, mark in rows:
        if mark != tables.ahead_mark(name, seq, fate):
            return False
        counted[fate] += 1
    if counted != account.ahead:
        return False
    db.executemany("INSERT INTO ahead VALUES (?, ?, ?, ?)", rows)
    return True


_COPIED: Final = {
    "dead_letters": "output, again, reason, at_ns, bytes, frame",
    "sendings": "output, boot, at_s, seq",
    "arrivals": "boot, at_s, wall_s, seq",
    "notes": "output, key, value",
}


def _copy_tables(db: sqlite3.Connection, old: sqlite3.Connection | None) -> None:
    """What else SQLite can still read of the old file: worth having, and no alert depends on it."""
    if old is None:
        return
    for table, columns in _COPIED.items():
        marks = ", ".join("?" * len(columns.split(",")))
        try:
            for row in old.execute(f"SELECT {columns} FROM {table}"):  # noqa: S608 - names of ours
                db.execute(f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})", row)  # noqa: S608
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise
        except sqlite3.Error as error:
            log.warning("table %s of the damaged outbox cannot be read to its end: %s", table, error)
    db.execute("DELETE FROM dead_letters WHERE typeof(frame) != 'blob' OR again NOT IN (0, 1)")


# raw bytes --------------------------------------------------------------------------------------------


class _Wal:
    """The pages in a log: where they are, and which of them were surely committed."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        size = os.fstat(fd).st_size
        self.pages: dict[int, list[int]] = {}
        headers: list[tuple[int, int, int, int]] = []
        step = _SLOT_HEADER_BYTES + tables.PAGE_BYTES
        for offset in range(_WAL_HEADER_BYTES, size - _SLOT_HEADER_BYTES + 1, step):
            headers.append(_SLOT.unpack(_pread(fd, _SLOT.size, offset)))
            self.pages.setdefault(headers[-1][0], []).append(offset + _SLOT_HEADER_BYTES)
        salts = self._salts(headers)
        current = [n for n, header in enumerate(headers) if header[2:] == salts]
        # Salts of neither this nor an earlier beginning of the log: something wrote over it.
        damaged = any(any(header) and not 0 <= salts[0] - header[2] <= _SALTS_BACK for header in headers)
        whole = (size - _WAL_HEADER_BYTES) // step  # a commit counts when all of it is there
        last_commit = max((n for n in current if headers[n][1] and n < whole), default=-1)
        self._unsure = set() if damaged else {n for n in current if n > last_commit}

    def _salts(self, headers: Sequence[tuple[int, int, int, int]]) -> tuple[int, int]:
        said = struct.unpack(">II", _pread(self._fd, 8, 16)) if headers else (0, 0)
        if headers and all(header[2:] != said for header in headers):
            return headers[0][2:]  # the header of the log itself is damaged
        return (said[0], said[1])

    def is_sure(self, offset: int) -> bool:
        """Whether what lies there was committed, as far as one can tell."""
        return (offset - _WAL_HEADER_BYTES) // (_SLOT_HEADER_BYTES + tables.PAGE_BYTES) not in self._unsure


class _Raw:
    """The damaged file and its log as bytes."""

    def __init__(self, main: int, log_fd: int, alive: Callable[[], None]) -> None:
        self.finder = frame.Finder(REPAIRS)
        self._main = main
        self._log = log_fd
        self._wal = _Wal(log_fd) if log_fd >= 0 else None
        self._alive = alive
        self._passes = 0

    def frames(self) -> Iterator[tuple[bool, frame.Frame]]:
        """All frames, those of the file first; with whether they were surely committed."""
        self._passes += 1
        # The first pass looks for the accounts, the second for the alerts.
        finder = self.finder if self._passes == 2 else frame.Finder(REPAIRS // 4, skip=frame.ALERT)
        for number, (_, found) in enumerate(
            finder.in_file(self._main, self._chained) if self._main >= 0 else ()
        ):
            if number % 1000 == 0:
                self._alive()
            yield True, found
        if self._wal:
            for offset, found in finder.in_file(self._log, self._chained):
                yield self._wal.is_sure(offset), found

    def _chained(self, data: bytes) -> bytes | None:
        """A frame of ``alerts`` that goes on in overflow pages (file format, section 1.6), put together."""
        length = frame.stated_length(data, 0)
        found = frame.peek(data)
        if length <= tables.PAGE_BYTES - 64 or found is None:
            return None
        key_len, severity = found
        prefix = 1 + 1 + (1 if 13 + 2 * key_len < 128 else 2) + 1 + 3 + key_len + (severity > 1)
        local = _local_bytes(prefix + length) - prefix
        pieces = [data[:local]]
        left, page = length - local, int.from_bytes(data[local : local + 4], "big")
        while left > 0 and len(pieces) < 2 + frame.MAX_BYTES // tables.PAGE_BYTES:
            content = self._page(page)
            pieces.append(content[4 : 4 + left])
            left -= tables.PAGE_BYTES - 4
            page = int.from_bytes(content[:4], "big")
        return b"".join(pieces)

    def _page(self, number: int) -> bytes:
        if self._wal and number in self._wal.pages:
            return _pread(self._log, tables.PAGE_BYTES, self._wal.pages[number][-1])
        if self._main < 0 or number < 1:
            return b""
        return _pread(self._main, tables.PAGE_BYTES, (number - 1) * tables.PAGE_BYTES)


def _local_bytes(payload: int) -> int:
    """How much of a record stays in the leaf page when the rest goes to overflow pages."""
    usable = tables.PAGE_BYTES
    least = (usable - 12) * 32 // 255 - 23
    local = least + (payload - least) % (usable - 4)
    return local if local <= usable - 35 else least


def _pread(fd: int, length: int, offset: int) -> bytes:
    try:
        data = os.pread(fd, length, offset)
    except OSError:
        data = b""
    return data + bytes(length - len(data))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor to read a file, -1 when there is none.

    Not for a database that is in use by this process: closing the descriptor would give up SQLite's locks
    on it (fcntl(2)). The log has none.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield -1
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _read_beside(path: Path) -> bytes:
    try:
        with suffixed(path, ".cursors").open("rb") as file:
            return file.read(frame.MAX_BYTES)
    except OSError:
        return b""


# migration --------------------------------------------------------------------------------------------


def migrate_1(path: Path, old: sqlite3.Connection) -> Path:
    """Build a file of version 2 from one of version 1, which had no frames and no fates."""
    rows: Any
    with building(path) as db:
        counters = dict(old.execute("SELECT name, value FROM counters").fetchall())
        totals = Totals(head=counters.get("head", 0), duplicates=counters.get("duplicates", 0))
        tables.save_totals(db, totals)
        for seq, key, severity, document in old.execute("SELECT seq, id, severity, document FROM alerts"):
            data = frame.encode(frame.ALERT, seq, severity, key, document)
            db.execute("INSERT INTO alerts VALUES (?, ?, ?, ?)", (seq, key, severity, data))
        rows = old.execute(
            "SELECT name, base, cursor, delivered, dead, dropped, filtered FROM outputs"
        ).fetchall()
        for name, base, cursor, delivered, dead, dropped, filtered in rows:
            account = Account(base=base, cursor=cursor)
            account.settled[tables.DEAD] = dead
            account.settled[tables.FILTERED] = filtered
            account.settled[tables.SIZE] = dropped
            account.settled[tables.DELIVERED] = delivered
            seqs = old.execute("SELECT seq FROM ahead WHERE output = ?", (name,)).fetchall()
            for (seq,) in seqs:
                fate = tables.DELIVERED if account.settled[tables.DELIVERED] else tables.DEAD
                account.settled[fate] -= 1
                account.ahead[fate] += 1
                row = (name, seq, fate, tables.ahead_mark(name, seq, fate))
                db.execute("INSERT INTO ahead VALUES (?, ?, ?, ?)", row)
            tables.save_account(db, name, account)
            drop_missing(db, name, account, totals.head)
        for output, seq, key, reason, at_ns, document in old.execute(
            "SELECT output, seq, id, reason, at_ns, document FROM dead_letters ORDER BY number"
        ):
            data = frame.encode(frame.LETTER, seq, 0, key, document)
            db.execute(
                "INSERT INTO dead_letters (output, again, reason, at_ns, bytes, frame)"
                " VALUES (?, 0, ?, ?, ?, ?)",
                (output, reason, at_ns, len(data), data),
            )
        db.executemany("INSERT INTO sendings VALUES (?, ?, ?, ?)", old.execute("SELECT * FROM sendings"))
        db.executemany(
            "INSERT INTO notes (output, key, value) VALUES (?, ?, ?)",
            old.execute("SELECT output, key, value FROM notes ORDER BY number"),
        )
    return path.with_name(f"{path.name}.version-1")
