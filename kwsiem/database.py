"""What every SQLite file of ours needs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

#: SQLite waits so long for another process that reads or copies a file.
BUSY_S: Final = 5.0


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All or nothing, committed at the end of the block; the connection is in autocommit mode."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def open_to_read(path: Path) -> sqlite3.Connection:
    """A connection that sees one state of the file for as long as it is open; the caller closes it.

    Raises sqlite3.OperationalError when there is no such file, or it must not be read.
    """
    db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_S, isolation_level=None)
    try:
        db.execute("BEGIN")
        return db
    except sqlite3.Error:
        db.close()
        raise


def used_bytes(db: sqlite3.Connection) -> int:
    """Bytes in use within the file: free pages are used again, so they do not count."""
    pages: dict[str, int] = {
        name: int(db.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    }
    return (pages["page_count"] - pages["freelist_count"]) * pages["page_size"]


def is_corrupt(error: sqlite3.DatabaseError) -> bool:
    """SQLITE_CORRUPT and SQLITE_NOTADB come as DatabaseError itself, all others as a class below it.

    But for a sequence number that is taken, a table that is not there any more, and a part of the file that
    the disk does not give back.
    """
    if type(error) is sqlite3.DatabaseError or isinstance(error, sqlite3.IntegrityError):
        return True
    name = getattr(error, "sqlite_errorname", "")  # from Python 3.11 on
    return str(error).startswith("no such ") or name in {
        "SQLITE_IOERR_READ", "SQLITE_IOERR_SHORT_READ", "SQLITE_IOERR_CORRUPTFS"
    }  # fmt: skip
