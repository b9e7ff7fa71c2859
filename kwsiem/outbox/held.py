"""Alerts in memory while the disk takes nothing, with the accounts going on from where the disk has them.

The same tables in a database in memory: it begins with a copy of the accounts, takes new alerts under the
numbers that follow, and counts what outputs settle, of the alerts on disk too. When the disk takes data
again :meth:`Held.write_to` brings all of it there in one transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

from kwsiem.database import transaction
from kwsiem.outbox import frame, tables
from kwsiem.outbox.tables import Item

#: Alerts in memory at most. The engine keeps them too until they are on disk (20,000 at most).
HELD_ALERTS: Final = 10_000
HELD_BYTES: Final = 16 * 2**20
#: Rows of alerts that were settled out of their order, of one output; with more, high ones wait their turn.
AHEAD_MOST: Final = 200_000


class Held:
    """What is in memory; made from the open file ``disk``. Raises sqlite3.Error when that cannot be read."""

    def __init__(self, disk: sqlite3.Connection, names: Sequence[str]) -> None:
        self.alerts = 0
        self.bytes = 0
        self.begun_at = tables.totals_of(disk).head
        self._names = names
        self._released: list[str] = []
        self.db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        try:
            self.db.executescript(tables.SCHEMA)
            with transaction(self.db) as db:
                for table, marks in (("accounts", "?, ?"), ("ahead", "?, ?, ?, ?")):
                    rows = disk.execute(f"SELECT * FROM {table}")  # noqa: S608
                    db.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)  # noqa: S608
                # Dead letters that wait again stay on disk until it takes data again.
        except BaseException:
            self.db.close()
            raise

    def close(self) -> None:
        """Let go of what is in memory."""
        self.db.close()

    def put(self, disk: sqlite3.Connection, items: Sequence[Item]) -> bool:
        """Take a group; False, and nothing is taken, when there is no room.

        Of an alert that is on disk already :meth:`released` tells.
        """
        size = sum(len(item.document) for item in items)
        if self.alerts and (self.alerts + len(items) > HELD_ALERTS or self.bytes + size > HELD_BYTES):
            return False
        known = {
            item.id
            for item in items
            if disk.execute("SELECT 1 FROM alerts WHERE id = ?", (item.id,)).fetchone()
        }
        with transaction(self.db) as db:
            _, new = tables.insert(db, [item for item in items if item.id not in known])
            if known:
                totals = tables.totals_of(db)
                totals.duplicates += sum(item.id in known for item in items)
                tables.save_totals(db, totals)
        self._released += known
        self.alerts += new
        self.bytes += size
        return True

    def release(self) -> None:
        """Forget alerts that all outputs have settled: they need no disk any more."""
        accounts = [tables.account_of(self.db, name) for name in self._names]
        floor = min((account.cursor for account in accounts), default=0)
        if floor <= self.begun_at:
            return
        rows = self.db.execute(
            "SELECT seq, id, length(frame) FROM alerts WHERE seq <= ?", (floor,)
        ).fetchall()
        if not rows:
            return
        # A dead letter is on no disk yet, so the alert is not to be called safe.
        letters = {seq for (seq,) in self._letter_numbers()}
        self.db.execute("DELETE FROM alerts WHERE seq <= ?", (floor,))
        self._released += [key for seq, key, _ in rows if seq not in letters]
        self.alerts = self.db.execute("SELECT count(*) FROM alerts").fetchone()[0]
        self.bytes = max(0, self.bytes - sum(size for _, _, size in rows)) if self.alerts else 0

    def _letter_numbers(self) -> Iterable[tuple[int]]:
        for (data,) in self.db.execute("SELECT frame FROM dead_letters"):
            found = frame.decode(data)
            if found:
                yield (found.number,)

    def released(self) -> list[str]:
        """Ids of alerts that every output has, or that are on disk; each is told once."""
        told, self._released = self._released, []
        return told

    def write_to(self, disk: sqlite3.Connection) -> None:
        """Bring everything to disk, all or nothing; raises sqlite3.OperationalError when it does not fit."""
        with transaction(disk) as db:
            totals = tables.totals_of(self.db)
            before = tables.totals_of(db)
            totals.revision = max(totals.revision, before.revision)
            totals.repaired = before.repaired
            _, on_disk = tables.accounts_of(db)
            db.execute("DELETE FROM ahead")
            db.executemany("INSERT INTO ahead VALUES (?, ?, ?, ?)", self.db.execute("SELECT * FROM ahead"))
            for name, account in tables.accounts_of(self.db)[1].items():
                account.revision = max(account.revision, on_disk[name].revision if name in on_disk else 0)
                tables.save_account(db, name, account)
            db.executemany("INSERT INTO alerts VALUES (?, ?, ?, ?)", self.db.execute("SELECT * FROM alerts"))
            columns = "output, again, reason, at_ns, bytes, frame"
            db.executemany(
                f"INSERT INTO dead_letters ({columns}) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608
                self.db.execute(f"SELECT {columns} FROM dead_letters ORDER BY number"),  # noqa: S608
            )
            tables.trim_letters(db)
            for row in self.db.execute("SELECT output, boot, at_s, seq FROM sendings"):
                db.execute("INSERT OR REPLACE INTO sendings VALUES (?, ?, ?, ?)", row)
            for row in self.db.execute("SELECT output, key, value FROM notes ORDER BY number"):
                tables.write_note(db, *row)
            tables.save_totals(db, totals)


def letter_frame(seq: int, data: bytes | None) -> bytes | None:
    """The frame of a dead letter, from that of its alert."""
    found = frame.decode(data) if data else None
    if found is None:
        return None
    return frame.encode(frame.LETTER, seq, found.severity, found.key, found.body)
