"""The outbox itself; see the package for what it promises."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from kwsiem import failpoint
from kwsiem.alert import URGENT_SEVERITY, raised_ns_of
from kwsiem.clock import NS_PER_S, SteadyWall, boot_ns, monotonic_s
from kwsiem.database import is_corrupt, transaction, used_bytes
from kwsiem.outbox import frame, tables
from kwsiem.outbox.file import connect, connect_to_read, recent
from kwsiem.outbox.held import AHEAD_MOST, Held, letter_frame
from kwsiem.outbox.salvage import (
    Salvaged,
    check_log,
    finish_swap,
    migrate_1,
    refused_before_opening,
    remove_oldest_aside,
    salvage,
    suffixed,
    swap,
)
from kwsiem.outbox.tables import Account, Item, Ledger, Letter, Stored, Totals

log = logging.getLogger("kwsiem.outbox")

HISTORY_ALERTS: Final = 100_000
MAX_BYTES: Final = 1 << 30
#: Rows that one call removes at most: twice the largest group, so that removing keeps up with storing.
_PRUNE_ROWS: Final = 1_000
#: The log is brought to the file when about so much was written, after a group and its acknowledgement.
_LOG_BYTES: Final = 4 * 2**20
#: How often the accounts are written a second time, beside the file.
_CURSORS_S: Final = 1.0
#: A file beside the outbox that is given up when there is no room to open it.
_RESERVE_BYTES: Final = 1 << 20

T = TypeVar("T")


class Outbox:
    """The outbox in one database file; safe to use from several threads of one process.

    ``outputs`` are the configured ones: only they hold alerts back from removal. A new output begins
    with the next alert. Settled alerts are kept up to ``history``, and for ``history_age_s`` by their ids
    and a wall clock that is steady (clock.SteadyWall; 0: no limit). ``max_age_s`` is for how long alerts
    wait for an output (0: for ever). A damaged file is salvaged, here or whenever it is found, and kept
    aside (``corrupt_path`` names it then); ``alive`` is called while that takes its time. Raises
    sqlite3.OperationalError when the file cannot be opened for other reasons (no permission, disk full).
    """

    def __init__(
        self,
        path: Path,
        outputs: Sequence[str],
        *,
        history: int = HISTORY_ALERTS,
        max_bytes: int = MAX_BYTES,
        history_age_s: float = 0.0,
        max_age_s: Mapping[str, float] | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = path
        self.corrupt_path: Path | None = None
        self.salvaged = 0
        self._names = tuple(outputs)
        self._history = history
        self._max_bytes = max_bytes
        self._history_age_s = history_age_s
        self._wall = SteadyWall()
        self._max_age_s = {name: age_s for name, age_s in (max_age_s or {}).items() if age_s > 0}
        self._alive = alive
        self._lock = threading.RLock()
        self._is_open = False
        self._held: Held | None = None
        self._held_reason = ""
        self._lost: Counter[tuple[str, str]] = Counter()
        self._spared = 0
        self._arrival_s = -1
        self._log_bytes = 0
        self._cursors_due_s = 0.0
        self._cursors_written = -1
        self._open_or_salvage()

    def close(self) -> None:
        """Close the file; SQLite then folds its log into it. What is held in memory is tried once more."""
        with self._lock:
            if self._held:
                self.heal()
            if self._held:
                self._held.close()
                self._held = None
            if self._is_open:
                self._write_cursors()
                self._close()

    # putting ------------------------------------------------------------------------------------

    def put(self, items: Sequence[Item]) -> int:
        """Store a group of alerts and return when they are on disk; gives how many were new.

        An alert whose id is known is counted as a duplicate and not stored again. Raises
        sqlite3.OperationalError when the disk does not take it, and while alerts are held in memory: then
        nothing of the group is stored. A damaged file is salvaged first.
        """

        def work() -> int:
            if self._held:
                raise sqlite3.OperationalError(self._held_reason)
            second = boot_ns() // NS_PER_S
            with transaction(self._durable) as db:
                first, new = tables.insert(db, items)
                if new and self._max_age_s and second != self._arrival_s:
                    tables.note_arrival(db, first)
                failpoint.reach("outbox.storing")
            failpoint.reach("outbox.stored")
            self._arrival_s = second if new else self._arrival_s
            self._log_bytes += 4 * tables.PAGE_BYTES + sum(len(item.document) for item in items)
            return new

        return self._do(work)

    def hold(self, items: Sequence[Item], reason: str = "") -> bool:
        """Take a group into memory while the disk does not; False when there is no room for it.

        Outputs get these alerts like any others. They are not durable: of those that need no disk any more
        :meth:`released` tells, of all others :meth:`heal`. Raises sqlite3.Error when the file cannot even
        be read.
        """

        def work() -> bool:
            return self._hold(reason).put(self._quick, items)

        return self._do(work)

    def heal(self) -> bool:
        """Bring to disk what is held in memory, all of it; True when nothing is held any more."""
        with self._lock:
            if not self._held:
                return True
            held = self._held
            try:
                self._do(lambda: held.write_to(self._durable))
            except (sqlite3.Error, OSError) as error:
                self._held_reason = str(error)
                return False
            self._held = None
            held.close()
            self._keep_reserve()
            return True

    @property
    def holding(self) -> str:
        """Why alerts are held in memory; empty when they are not."""
        return self._held_reason if self._held else ""

    def held(self) -> tuple[int, int]:
        """How many alerts are in memory only, and their bytes."""
        held = self._held
        return (held.alerts, held.bytes) if held else (0, 0)

    def released(self) -> list[str]:
        """Ids of held alerts that need no disk any more, each told once: all outputs have settled them."""
        with self._lock:
            return self._held.released() if self._held else []

    def _hold(self, reason: str) -> Held:
        if not self._held:
            self._held = Held(self._quick, self._names)
            self._held_reason = reason or "the disk takes nothing"
        return self._held

    # taking -------------------------------------------------------------------------------------

    def waiting(self, output: str, limit: int) -> list[Stored]:
        """The next alerts that an output has not settled, oldest first, at most ``limit``.

        Dead letters that are tried again come first.
        """

        def work() -> list[Stored]:
            account = tables.account_of(self._accounts_db, output)
            again = self._again(output, account, limit)
            return again + self._from(output, account, account.cursor, limit - len(again))

        return self._do(work)

    def _again(self, output: str, account: Account, limit: int) -> list[Stored]:
        if not account.again or self._held:
            return []
        found = []
        for number, data in tables.waiting_again(self._quick, output, limit):
            letter = self._mended(data)
            if letter is None:
                with transaction(self._quick) as db:
                    tables.settle(db, output, {number: tables.CORRUPT}, {}, None)
                self._count_lost(output, tables.CORRUPT, 1)
                continue
            found.append(Stored(number, letter.key, letter.severity, letter.body))
        return found

    def _from(self, output: str, account: Account, after: int, limit: int) -> list[Stored]:
        """Alerts behind ``after`` that are not settled, all of which must be there."""
        found: list[Stored] = []
        while len(found) < limit:
            room = limit - len(found)
            rows = self._rows(
                "SELECT seq, frame FROM alerts WHERE seq > ? ORDER BY seq LIMIT ?", (after, room)
            )
            if rows and rows[0][0] <= after:
                raise sqlite3.DatabaseError(f"row {rows[0][0]} was found behind row {after}")
            last = rows[-1][0] if len(rows) == room else tables.totals_of(self._accounts_db).head
            settled = self._settled(output, account, after, last)
            if len(rows) + len(settled - {seq for seq, _ in rows}) != last - after and not self._held:
                raise sqlite3.DatabaseError(f"alerts are missing between {after} and {last}")
            found += self._read([row for row in rows if row[0] not in settled])
            if len(rows) < room:
                break
            after = last
        return found

    def _settled(self, output: str, account: Account, after: int, last: int) -> set[int]:
        if not any(account.ahead):
            return set()
        rows = self._accounts_db.execute(
            "SELECT seq FROM ahead WHERE output = ? AND seq > ? AND seq <= ?", (output, after, last)
        )
        return {seq for (seq,) in rows}

    def urgent(self, output: str, after: int, limit: int) -> list[Stored]:
        """The oldest waiting alerts behind ``after`` whose severity is URGENT_SEVERITY or more."""

        def work() -> list[Stored]:
            account = tables.account_of(self._accounts_db, output)
            if sum(account.ahead) > AHEAD_MOST:
                return []
            found: list[Stored] = []
            behind = max(after, account.cursor)
            while len(found) < limit:
                rows = self._rows(
                    "SELECT seq, frame FROM alerts INDEXED BY urgent WHERE seq > ?"  # noqa: S608 - a number of ours
                    f" AND severity >= {URGENT_SEVERITY} ORDER BY seq LIMIT ?",
                    (behind, limit),
                )
                if not rows:
                    break
                settled = self._settled(output, account, behind, rows[-1][0])
                found += self._read([row for row in rows if row[0] not in settled])
                behind = rows[-1][0]
            return found[:limit]

        return self._do(work)

    def sent(self, output: str, after: int, limit: int) -> list[Stored]:
        """Alerts behind ``after`` that an output has settled, oldest first, as far as they are there."""

        def work() -> list[Stored]:
            account = tables.account_of(self._accounts_db, output)
            found = self._rows(
                "SELECT seq, frame FROM alerts WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
                (after, account.cursor, limit),
                (after, account.cursor, limit),
            )
            if len(found) < limit and any(account.ahead):
                ahead = self._accounts_db.execute(
                    "SELECT seq FROM ahead WHERE output = ? AND seq > ? ORDER BY seq LIMIT ?",
                    (output, max(after, account.cursor), limit - len(found)),
                ).fetchall()
                for row in ahead:
                    found += self._rows("SELECT seq, frame FROM alerts WHERE seq = ?", row, row)
            return self._read(found)

        return self._do(work)

    def _rows(
        self, query: str, values: Sequence[int], held_values: Sequence[int] = ()
    ) -> list[tuple[int, bytes]]:
        """Rows of the file, then those in memory; the last value is the limit."""
        rows: list[tuple[int, bytes]] = self._quick.execute(query, values).fetchall()
        if self._held and len(rows) < values[-1]:
            left = held_values or (*values[:-1], values[-1] - len(rows))
            rows += self._held.db.execute(query, left).fetchall()
        return rows

    def _read(self, rows: Sequence[tuple[int, bytes]]) -> list[Stored]:
        """Alerts of rows, each verified; what is damaged is mended, or counted as lost for whom it waits."""
        found = []
        before = 0
        for seq, data in rows:
            if seq <= before or not isinstance(data, bytes):
                raise sqlite3.DatabaseError(f"row {seq} behind row {before} is no row of ours")
            before = seq
            alert = frame.decode(data)
            if alert is None:
                alert = self._mend(seq, data)
                if alert is None:
                    continue
            if alert.number != seq or alert.kind != frame.ALERT:
                raise sqlite3.DatabaseError(f"row {seq} holds alert {alert.number}")
            found.append(Stored(seq, alert.key, alert.severity, alert.body))
        return found

    def _mended(self, data: Any) -> frame.Frame | None:
        if not isinstance(data, bytes):
            return None
        found = frame.decode(data)
        mended = None if found else frame.repair(data)
        return found or (frame.decode(mended) if mended else None)

    def _mend(self, seq: int, data: bytes) -> frame.Frame | None:
        mended = frame.repair(data)
        if self._held:
            return frame.decode(mended) if mended else None  # the disk is told when it takes data again
        with transaction(self._quick) as db:
            totals = tables.totals_of(db)
            if mended:
                db.execute("UPDATE alerts SET frame = ? WHERE seq = ?", (mended, seq))
                totals.repaired += 1
                tables.save_totals(db, totals)
                log.warning("alert %d of the outbox had a wrong bit and was mended", seq)
                return frame.decode(mended)
            db.execute("DELETE FROM alerts WHERE seq = ?", (seq,))
            for name, account in tables.accounts_of(db)[1].items():
                self._count_lost(
                    name, tables.CORRUPT, tables.drop_each(db, name, account, [seq], tables.CORRUPT)
                )
        log.error("alert %d of the outbox is damaged and lost", seq)
        return None

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
        ``replays`` it is remembered for :meth:`replay_after` that they were sent now. When the disk does
        not take that, it is held in memory until it does.
        """
        fates = dict.fromkeys(delivered, tables.DELIVERED)
        fates.update(dict.fromkeys(filtered, tables.FILTERED))
        fates.update((seq, tables.DEAD) for seq, _ in dead)
        if not fates:
            return
        reasons = dict(dead)

        def work() -> None:
            with transaction(self._accounts_db) as db:
                fresh = tables.settle(db, output, fates, reasons, self._letter)
                sent = next((seq for seq in fresh if fates[seq] == tables.DELIVERED), None)
                if replays and sent is not None:
                    tables.note_sending(db, output, sent)
                failpoint.reach("outbox.settling")
            failpoint.reach("outbox.settled")
            self._log_bytes += tables.PAGE_BYTES
            if self._held:
                self._held.release()

        self._do_or_hold(work)

    def _letter(self, seq: int) -> bytes | None:
        rows = self._rows("SELECT seq, frame FROM alerts WHERE seq = ?", (seq,), (seq,))
        return letter_frame(seq, rows[0][1]) if rows else None

    def replay_after(self, output: str) -> int:
        """The sequence number behind which alerts were sent less than REPLAY_S ago, or before a reboot.

        At most REPLAY_ALERTS lie between it and the newest one; it is the newest itself when none does.
        """

        def work() -> int:
            firsts = [tables.first_sent(db, output) for db in {self._quick, self._accounts_db}]
            first = min((seq for seq in firsts if seq is not None), default=None)
            if first is None:
                return tables.totals_of(self._accounts_db).head
            return max(first - 1, tables.account_of(self._accounts_db, output).cursor - tables.REPLAY_ALERTS)

        return self._do(work)

    # looking up ---------------------------------------------------------------------------------

    def document(self, key: str) -> bytes | None:
        """The document of an alert by its id; None when it is not there, or damaged."""

        def work() -> bytes | None:
            row = self._quick.execute("SELECT frame FROM alerts WHERE id = ?", (key,)).fetchone()
            alert = self._mended(row[0]) if row else None
            return alert.body if alert else None

        return self._do(work)

    def latest(self, limit: int) -> list[dict[str, Any]]:
        """The documents of the latest alerts on disk, newest first; damaged ones are left out."""
        return self._do(lambda: recent(self._quick, limit))

    # notes --------------------------------------------------------------------------------------

    def note(self, output: str, key: str) -> str | None:
        """What an output has noted under a key."""

        def work() -> str | None:
            for db in (self._accounts_db, self._quick):
                query = "SELECT value FROM notes WHERE output = ? AND key = ?"
                if row := db.execute(query, (output, key)).fetchone():
                    return str(row[0])
            return None

        return self._do(work)

    def set_note(self, output: str, key: str, value: str) -> None:
        """Note something for an output; it keeps the latest MAX_NOTES."""

        def work() -> None:
            with transaction(self._accounts_db) as db:
                tables.write_note(db, output, key, value)

        self._do_or_hold(work)

    # dead letters -------------------------------------------------------------------------------

    def dead_letters(self, output: str) -> list[Letter]:
        """What an output refused for good, oldest first; MAX_DEAD_LETTERS and MAX_DEAD_BYTES are kept."""

        def work() -> list[Letter]:
            found = []
            for db in {self._quick, self._accounts_db}:
                for reason, at_ns, data in db.execute(
                    "SELECT reason, at_ns, frame FROM dead_letters WHERE output = ? AND again = 0"
                    " ORDER BY number",
                    (output,),
                ):
                    letter = self._mended(data)
                    found.append(Letter(letter.key if letter else "", reason, at_ns, output))
            return found

        return self._do(work)

    def retry_dead(self, output: str) -> int:
        """Let the dead letters of an output wait for it once more; gives how many.

        They keep their ids, go to that output alone, and come before all that waits. In the ledger they are
        ``waiting`` again. Raises sqlite3.OperationalError while alerts are held in memory.
        """

        def work() -> int:
            if self._held:
                raise sqlite3.OperationalError(self._held_reason)
            with transaction(self._quick) as db:
                return tables.letters_again(db, output)

        return self._do(work)

    # keeping within bounds ----------------------------------------------------------------------

    def prune(self) -> int:
        """Remove alerts beyond the history, and drop waiting ones that are too old or too many.

        One short transaction for each call, to be called after each group. Beyond the size the oldest go
        first, those below URGENT_SEVERITY before the others. Gives how many alerts were dropped that a
        configured output still waited for (counted in its ledger, see :meth:`take_lost`).
        """

        def work() -> int:
            if self._held:
                return 0
            with transaction(self._quick) as db:
                totals, accounts = tables.accounts_of(db)
                before = sum(self._lost.values())
                for name, age_s in self._max_age_s.items():
                    floor = tables.arrived_before(db, age_s, totals.head)
                    self._count_lost(
                        name, tables.AGE, tables.drop_through(db, name, accounts[name], floor, tables.AGE)
                    )
                self._remove(db, totals, accounts)
                failpoint.reach("outbox.pruning")
                dropped = sum(self._lost.values()) - before
            if dropped:
                log.error("%d waiting alerts dropped from the outbox", dropped)
            return dropped

        with self._lock:
            dropped = self._do(work)
            if monotonic_s() >= self._cursors_due_s:
                self._cursors_due_s = monotonic_s() + _CURSORS_S
                self._write_cursors()
            if self._log_bytes > _LOG_BYTES and not self._held:
                self._log_bytes = 0
                self._durable.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        return dropped

    def _remove(self, db: sqlite3.Connection, totals: Totals, accounts: Mapping[str, Account]) -> None:
        lowest = db.execute("SELECT min(seq) FROM alerts").fetchone()[0]
        if lowest is None:
            return
        settled = min((accounts[name].cursor for name in self._names), default=totals.head)
        floor = min(settled, max(totals.head - self._history, self._old(db)))
        if used_bytes(db) > self._max_bytes:
            floor = settled
            if floor < lowest and not self._drop_low(db, totals, accounts):
                floor = lowest - 1 + _PRUNE_ROWS
        floor = min(floor, lowest - 1 + _PRUNE_ROWS, totals.head)
        if floor < lowest:
            return
        for name, account in accounts.items():
            fate = tables.SIZE if name in self._names else tables.AWAY
            self._count_lost(name, fate, tables.drop_through(db, name, account, floor, fate))
        db.execute("DELETE FROM alerts WHERE seq <= ?", (floor,))
        db.execute(
            "DELETE FROM arrivals WHERE seq < (SELECT max(seq) FROM arrivals WHERE seq <= ?)", (floor,)
        )

    def _old(self, db: sqlite3.Connection) -> int:
        """The number up to which alerts were raised too long ago, of the first _PRUNE_ROWS; 0: none."""
        now_ns = self._wall.now_ns()
        if not self._history_age_s or now_ns is None:
            return 0
        oldest_ns = now_ns - int(self._history_age_s * NS_PER_S)
        old = 0
        for seq, key in db.execute("SELECT seq, id FROM alerts ORDER BY seq LIMIT ?", (_PRUNE_ROWS,)):
            if raised_ns_of(key) >= oldest_ns:
                break
            old = seq
        return old

    def _drop_low(self, db: sqlite3.Connection, totals: Totals, accounts: Mapping[str, Account]) -> bool:
        """Drop the oldest alerts that are not urgent; False when there are none, or too many gaps already."""
        if any(sum(account.ahead) > AHEAD_MOST for account in accounts.values()):
            return False
        while self._spared < totals.head:
            rows = db.execute(
                "SELECT seq, severity FROM alerts WHERE seq > ? ORDER BY seq LIMIT ?",
                (self._spared, _PRUNE_ROWS),
            ).fetchall()
            if not rows:
                break
            self._spared = rows[-1][0]
            low = [seq for seq, severity in rows if severity < URGENT_SEVERITY]
            if low:
                for name, account in accounts.items():
                    fate = tables.SIZE if name in self._names else tables.AWAY
                    self._count_lost(name, fate, tables.drop_each(db, name, account, low, fate))
                db.executemany("DELETE FROM alerts WHERE seq = ?", [(seq,) for seq in low])
                return True
        return False

    def _count_lost(self, output: str, fate: int, count: int) -> None:
        if count and output in self._names:
            self._lost[output, tables.DROPPED[fate]] += count

    def take_lost(self) -> dict[tuple[str, str], int]:
        """How many alerts were dropped since the last call, by output and reason."""
        with self._lock:
            lost, self._lost = dict(self._lost), Counter()
        return lost

    # reading ------------------------------------------------------------------------------------

    def ledger(self) -> dict[str, Ledger]:
        """The account of each configured output."""

        def work() -> dict[str, Ledger]:
            totals, accounts = tables.accounts_of(self._accounts_db)
            return {name: accounts[name].ledger(totals.head) for name in accounts if name in self._names}

        return self._do(work)

    def duplicates(self) -> int:
        """How many alerts came again and were not stored twice."""
        return self._do(lambda: tables.totals_of(self._accounts_db)).duplicates

    def repaired(self) -> int:
        """How many alerts had a wrong bit and were mended."""
        return self._do(lambda: tables.totals_of(self._quick)).repaired

    def recent(self, limit: int) -> list[dict[str, Any]]:
        """The documents of the latest alerts, newest first."""

        def work() -> list[dict[str, Any]]:
            return recent(self._quick, limit)

        return self._do(work)

    # opening ------------------------------------------------------------------------------------

    @property
    def _accounts_db(self) -> sqlite3.Connection:
        return self._held.db if self._held else self._quick

    def _do(self, work: Callable[[], T]) -> T:
        """Do something with the open file; when that finds it damaged, salvage it and do it once more."""
        with self._lock:
            if not self._is_open:
                # A salvage stopped half way, when the disk was full or the folder closed.
                self._open_or_salvage()
            lost = self._lost.copy()
            try:
                return work()
            except sqlite3.DatabaseError as error:
                self._lost = lost  # what was counted in a transaction that did not happen
                if not is_corrupt(error):
                    raise
                self._salvage(str(error))
                return work()

    def _do_or_hold(self, work: Callable[[], None]) -> None:
        """Do it on disk, or in memory from now on when the disk does not take it."""
        with self._lock:
            try:
                self._do(work)
            except sqlite3.OperationalError as error:
                if self._held or not self._is_open:
                    raise
                self._hold(str(error))
                self._do(work)

    def _open_or_salvage(self) -> None:
        try:
            finish_swap(self.path)
            reason = refused_before_opening(self.path)
        except OSError as error:
            raise sqlite3.OperationalError(f"outbox cannot be opened: {error}") from error
        if reason:
            self._salvage(reason)
            return
        try:
            self._open_with_reserve()
        except sqlite3.DatabaseError as error:
            if not is_corrupt(error):
                raise
            self._salvage(str(error))

    def _open_with_reserve(self) -> None:
        """SQLite needs a little room to open a file: on a full disk that of the reserve."""
        try:
            self._open()
        except sqlite3.OperationalError:
            reserve = suffixed(self.path, ".reserve")
            if not reserve.exists():
                raise
            reserve.unlink()
            self._open()

    def _keep_reserve(self) -> None:
        reserve = suffixed(self.path, ".reserve")
        if reserve.exists():
            return
        try:
            with reserve.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)
        except OSError:
            reserve.unlink(missing_ok=True)  # no room for it now

    def _open(self) -> None:
        # As long as another connection is there the one that fails does not fold the log into the file.
        guard = connect_to_read(self.path)
        try:
            self._durable = connect(self.path, "FULL")
            try:
                self._prepare()
                self._quick = connect(self.path, "NORMAL")
                self._is_open = True
            except BaseException:
                self._durable.close()
                raise
        finally:
            if guard:
                guard.close()
        self._write_cursors()
        self._keep_reserve()

    def _prepare(self) -> None:
        (version,) = self._durable.execute("PRAGMA user_version").fetchone()
        if version == 1:
            aside = migrate_1(self.path, self._durable)
            self._durable.close()
            swap(self.path, aside)
            for suffix in ("", "-wal", "-shm"):
                suffixed(aside, suffix).unlink(missing_ok=True)
            self._durable = connect(self.path, "FULL")
        elif version == 0:
            self._durable.executescript(f"{tables.SCHEMA} PRAGMA user_version = {tables.VERSION};")
        with transaction(self._durable) as db:
            if version == tables.VERSION:
                totals, accounts = tables.accounts_of(db)
                tables.check_ahead(db, accounts)
                check_log(self.path, totals, accounts)
            tables.admit(db, self._names)

    def _close(self) -> None:
        self._is_open = False
        self._quick.close()
        self._durable.close()

    def _salvage(self, reason: str) -> None:
        """Put a new file in the place of the damaged one, with all that can be found in it."""
        log.error("outbox %s is damaged (%s), it is salvaged", self.path, reason)
        old = connect_to_read(self.path)
        if self._is_open:
            self._close()
        try:
            report = salvage(self.path, self._names, self._history, old, self._alive)
            self._told(report)
            # When this fails, the next use goes on with it (finish_swap).
            swap(self.path, report.aside)
            remove_oldest_aside(self.path)
        except sqlite3.DatabaseError as error:
            if is_corrupt(error):
                raise sqlite3.OperationalError(f"outbox cannot be salvaged: {error}") from error
            raise
        except OSError as error:
            raise sqlite3.OperationalError(f"outbox cannot be salvaged: {error}") from error
        finally:
            if old:
                old.close()
        self._spared = 0
        self._open()

    def _told(self, report: Salvaged) -> None:
        self.corrupt_path = report.aside
        self.salvaged += 1
        for name, count in report.lost.items():
            self._count_lost(name, tables.CORRUPT, count)
        log.error(
            "%d alerts of the damaged outbox are in the new one, %d of them mended, lost: %s; the old is %s",
            report.alerts, report.repaired, report.lost, report.aside,
        )  # fmt: skip

    def _write_cursors(self) -> None:
        """The accounts once more, beside the file: after a salvage not all is sent again."""
        if not self._is_open or self._held:
            return
        rows = self._quick.execute("SELECT frame FROM accounts ORDER BY name").fetchall()
        data = b"".join(row[0] for row in rows)
        if hash(data) == self._cursors_written:
            return
        beside, new = suffixed(self.path, ".cursors"), suffixed(self.path, ".cursors.new")
        try:
            new.write_bytes(data)
            new.rename(beside)
            self._cursors_written = hash(data)
        except OSError as error:
            log.debug("cursors cannot be written: %s", error)


def balanced(ledgers: Mapping[str, Ledger]) -> bool:
    """Whether the accounts of all outputs balance."""
    return all(ledger.balanced for ledger in ledgers.values())
