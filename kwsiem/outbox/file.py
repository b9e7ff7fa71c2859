"""The database file: connections to it, what its errors mean, and reading it beside a running courier."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from kwsiem.database import BUSY_S, open_to_read
from kwsiem.outbox import frame, tables
from kwsiem.outbox.tables import Ledger, Letter

#: Pages of the log that SQLite folds into the file by itself; the outbox does it before.
_CHECKPOINT_PAGES: Final = 4096
#: SQLite cuts its log to this when it begins it anew.
_LOG_MOST_BYTES: Final = 16 * 2**20

T = TypeVar("T")


class Page(NamedTuple):
    """Alerts, oldest first, each with its id; damaged ones are left out.

    ``last`` is the number of the last one read, ``head`` that of the latest of all: below what it was when
    the file was begun anew.
    """

    head: int
    last: int
    alerts: list[tuple[str, dict[str, Any]]]


def recent_alerts(path: Path, limit: int) -> list[dict[str, Any]]:
    """The documents of the latest alerts in an outbox that another process may be using, newest first.

    Empty when there is no such file. Raises sqlite3.DatabaseError when it cannot be read.
    """
    return _reading(path, lambda db: recent(db, limit)) or []


def read_behind(path: Path, after: int, limit: int) -> Page:
    """Alerts behind number ``after`` in an outbox that another process may be using, at most ``limit``.

    Empty when there is no such file. Raises sqlite3.DatabaseError when it cannot be read.
    """

    def work(db: sqlite3.Connection) -> Page:
        rows = db.execute(
            "SELECT seq, frame FROM alerts WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit)
        ).fetchall()
        (head,) = db.execute("SELECT max(seq) FROM alerts").fetchone()
        found = (frame.decode(data) for _, data in rows)
        alerts = [(alert.key, msgspec.json.decode(alert.body)) for alert in found if alert]
        return Page(head or 0, rows[-1][0] if rows else after, alerts)

    return _reading(path, work) or Page(0, after, [])


def read_ledger(path: Path) -> dict[str, Ledger]:
    """The accounts in an outbox that another process may be using, of all outputs it has ever had.

    Empty when there is no such file. Raises sqlite3.DatabaseError when it cannot be read.
    """

    def work(db: sqlite3.Connection) -> dict[str, Ledger]:
        totals, accounts = tables.accounts_of(db)
        return {name: account.ledger(totals.head) for name, account in sorted(accounts.items())}

    return _reading(path, work) or {}


def read_dead(path: Path, output: str, limit: int) -> list[Letter]:
    """The latest dead letters of an output in an outbox that another process may be using, newest first.

    Empty when there is no such file. Raises sqlite3.DatabaseError when it cannot be read.
    """

    def work(db: sqlite3.Connection) -> list[Letter]:
        rows = db.execute(
            "SELECT reason, at_ns, frame FROM dead_letters WHERE output = ? AND again = 0"
            " ORDER BY number DESC LIMIT ?",
            (output, limit),
        ).fetchall()
        found = ((frame.decode(data), reason, at_ns) for reason, at_ns, data in rows)
        return [Letter(alert.key if alert else "", reason, at_ns, output) for alert, reason, at_ns in found]

    return _reading(path, work) or []


def _reading(path: Path, work: Callable[[sqlite3.Connection], T]) -> T | None:
    if not path.exists():
        return None
    db = open_to_read(path)
    try:
        return work(db)
    finally:
        db.close()


def recent(db: sqlite3.Connection, limit: int) -> list[dict[str, Any]]:
    """The documents of the latest alerts, newest first; damaged ones are left out."""
    rows = db.execute("SELECT frame FROM alerts ORDER BY seq DESC LIMIT ?", (limit,)).fetchall()
    found = (frame.decode(row[0]) for row in rows)
    return [msgspec.json.decode(alert.body) for alert in found if alert]


def connect(path: Path, synchronous: str) -> sqlite3.Connection:
    """A connection that reads and writes; ``synchronous`` FULL waits for the disk at each commit."""
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        db.execute(f"PRAGMA page_size = {tables.PAGE_BYTES}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {synchronous}")
        db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        db.execute(f"PRAGMA journal_size_limit = {_LOG_MOST_BYTES}")
        db.execute("PRAGMA cell_size_check = ON")
    except sqlite3.DatabaseError:
        db.close()
        raise
    return db


def connect_to_read(path: Path) -> sqlite3.Connection | None:
    """A connection that only reads; closing it leaves file and log as they are. None when SQLite cannot."""
    if not path.exists() or not path.stat().st_size:
        return None
    db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_S, isolation_level=None)
    try:
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        db.close()
        return None
    return db
