"""The tables of the outbox and what is done to them, each within the caller's transaction.

They are the same on disk and in memory (while the disk takes nothing). Every function that changes an
account keeps this true, for each output: each sequence number in (cursor, head] lies in ``alerts`` or, when
it is settled, in ``ahead``; and ``raised = delivered + waiting + dead + dropped + filtered``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar
from zlib import crc32

import msgspec

from kwsiem.alert import URGENT_SEVERITY
from kwsiem.clock import NS_PER_S, boot_id, boot_ns, wall_ns
from kwsiem.outbox import frame

#: What can become of an alert; the numbers stand in the file.
DELIVERED, DEAD, FILTERED, SIZE, AGE, CORRUPT, AWAY = range(7)
#: The fates that count as dropped, by their reason: beyond the size of the outbox, older than the output
#: wants, damaged beyond repair, removed while the output was not configured.
DROPPED: Final[Mapping[int, str]] = {SIZE: "size", AGE: "age", CORRUPT: "corrupt", AWAY: "not_configured"}

MAX_DEAD_LETTERS: Final = 10_000
MAX_DEAD_BYTES: Final = 64 * 2**20
#: Notes that an output keeps (the message of an incident in a chat), the oldest go.
MAX_NOTES: Final = 10_000
#: What was sent over a connection without acknowledgement is sent again after a reconnect: so many alerts
#: at most, and none that was sent longer ago. A receiver that kept the connection for so long has read it.
REPLAY_ALERTS: Final = 50_000
REPLAY_S: Final = 600
#: A wall clock before this (2020) was not set when it was read.
_CLOCK_WAS_SET_S: Final = 1_577_836_800

VERSION: Final = 2
PAGE_BYTES: Final = 16 * 1024
SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS alerts (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, severity INTEGER NOT NULL, frame BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, frame BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ahead (
    output TEXT NOT NULL, seq INTEGER NOT NULL, fate INTEGER NOT NULL, mark INTEGER NOT NULL,
    PRIMARY KEY (output, seq)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dead_letters (
    number INTEGER PRIMARY KEY AUTOINCREMENT, output TEXT NOT NULL, again INTEGER NOT NULL,
    reason TEXT NOT NULL, at_ns INTEGER NOT NULL, bytes INTEGER NOT NULL, frame BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS sendings (
    output TEXT NOT NULL, boot TEXT NOT NULL, at_s INTEGER NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (output, boot, at_s)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS arrivals (
    boot TEXT NOT NULL, at_s INTEGER NOT NULL, wall_s INTEGER NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (boot, at_s)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (
    number INTEGER PRIMARY KEY, output TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
    UNIQUE (output, key)
);
CREATE INDEX IF NOT EXISTS urgent ON alerts (seq) WHERE severity >= {URGENT_SEVERITY};
CREATE INDEX IF NOT EXISTS letters ON dead_letters (output, again, number, bytes);
"""

#: The name under which the totals stand among the accounts.
_TOTALS: Final = ""


class Item(msgspec.Struct, frozen=True):
    """One alert to be stored: its id, its severity (0 to 10) and its document as JSON."""

    id: str
    severity: int
    document: bytes


class Stored(msgspec.Struct, frozen=True):
    """One alert as it lies in the outbox; a dead letter that is tried again has a negative ``seq``."""

    seq: int
    id: str
    severity: int
    document: bytes


class Letter(msgspec.Struct, frozen=True):
    """What an output refused for good: when (wall time) and why."""

    id: str
    reason: str
    at_ns: int
    output: str


class Ledger(msgspec.Struct, frozen=True):
    """The account of one output since it was first configured; ``reasons`` tells ``dropped`` apart."""

    raised: int
    delivered: int
    waiting: int
    dead: int
    dropped: int
    filtered: int
    reasons: dict[str, int] = {}

    @property
    def balanced(self) -> bool:
        """Whether every alert raised is accounted for."""
        return (
            self.raised == self.delivered + self.waiting + self.dead + self.dropped + self.filtered
            and self.dropped == sum(self.reasons.values())
            and min(self.waiting, self.delivered, self.dead, self.dropped, self.filtered) >= 0
        )


class Account(msgspec.Struct, array_like=True):
    """What became of the alerts of one output, by fate.

    ``settled`` counts those up to the cursor, ``ahead`` those behind it (each has a row in the table of
    that name), ``again`` the dead letters that wait once more. The first alert of the output is behind
    ``base``.
    """

    base: int
    cursor: int
    revision: int = 0
    again: int = 0
    settled: list[int] = msgspec.field(default_factory=lambda: [0] * 7)
    ahead: list[int] = msgspec.field(default_factory=lambda: [0] * 7)

    def ledger(self, head: int) -> Ledger:
        """The account as people read it; ``head`` is the newest sequence number."""
        sums = [below + above for below, above in zip(self.settled, self.ahead, strict=True)]
        reasons = {reason: sums[fate] for fate, reason in DROPPED.items() if sums[fate]}
        return Ledger(
            raised=head - self.base,
            delivered=sums[DELIVERED],
            waiting=head - self.cursor - sum(self.ahead) + self.again,
            dead=sums[DEAD],
            dropped=sum(reasons.values()),
            filtered=sums[FILTERED],
            reasons=reasons,
        )


class Totals(msgspec.Struct, array_like=True):
    """What is counted for all outputs together; ``head`` is the newest sequence number."""

    head: int = 0
    revision: int = 0
    duplicates: int = 0
    repaired: int = 0


# accounts ---------------------------------------------------------------------------------------------


def account_of(db: sqlite3.Connection, output: str) -> Account:
    """The account of an output; raises sqlite3.DatabaseError when it is damaged."""
    return decode_account(_account_frame(db, output), Account)


def totals_of(db: sqlite3.Connection) -> Totals:
    """The totals; raises sqlite3.DatabaseError when they are damaged."""
    return decode_account(_account_frame(db, _TOTALS), Totals)


def accounts_of(db: sqlite3.Connection) -> tuple[Totals, dict[str, Account]]:
    """All of them; raises sqlite3.DatabaseError when one is damaged."""
    rows = db.execute("SELECT name, frame FROM accounts").fetchall()
    found = {name: decode_account(_checked(data, name), Account) for name, data in rows if name != _TOTALS}
    return totals_of(db), found


def save_account(db: sqlite3.Connection, output: str, account: Account) -> None:
    """Write the account of an output."""
    account.revision += 1
    _save(db, output, account.revision, account)


def save_totals(db: sqlite3.Connection, totals: Totals) -> None:
    """Write the totals."""
    totals.revision += 1
    _save(db, _TOTALS, totals.revision, totals)


def _save(db: sqlite3.Connection, name: str, revision: int, content: Account | Totals) -> None:
    data = frame.encode(frame.ACCOUNT, revision, 0, name, msgspec.msgpack.encode(content))
    db.execute("INSERT OR REPLACE INTO accounts VALUES (?, ?)", (name, data))


_Kept = TypeVar("_Kept", Account, Totals)


def decode_account(found: frame.Frame, kind: type[_Kept]) -> _Kept:
    """An account or totals from their frame; raises sqlite3.DatabaseError when it says something else."""
    try:
        return msgspec.msgpack.decode(found.body, type=kind)
    except msgspec.DecodeError as error:
        raise sqlite3.DatabaseError(f"account {found.key!r}: {error}") from None


def _account_frame(db: sqlite3.Connection, name: str) -> frame.Frame:
    row = db.execute("SELECT frame FROM accounts WHERE name = ?", (name,)).fetchone()
    return _checked(row[0] if row else b"", name)


def _checked(data: Any, name: str) -> frame.Frame:
    found = frame.decode(data) if isinstance(data, bytes) else None
    if found is None or found.kind != frame.ACCOUNT or found.key != name:
        raise sqlite3.DatabaseError(f"account {name!r} is damaged")
    return found


def admit(db: sqlite3.Connection, names: Sequence[str]) -> None:
    """Totals, and accounts for outputs that are new: they begin with the next alert."""
    if not db.execute("SELECT 1 FROM accounts WHERE name = ?", (_TOTALS,)).fetchone():
        save_totals(db, Totals())
    head = totals_of(db).head
    for name in names:
        if not db.execute("SELECT 1 FROM accounts WHERE name = ?", (name,)).fetchone():
            save_account(db, name, Account(base=head, cursor=head))


# storing ----------------------------------------------------------------------------------------------


def insert(db: sqlite3.Connection, items: Sequence[Item]) -> tuple[int, int]:
    """Store alerts behind the head; gives the first new sequence number and how many were new."""
    totals = totals_of(db)
    first = head = totals.head
    execute = db.execute
    for item in items:
        seq = head + 1
        data = frame.encode(frame.ALERT, seq, item.severity, item.id, item.document)
        # Only a known id is passed over: a sequence number that is there already is an error.
        head += execute(
            "INSERT INTO alerts VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
            (seq, item.id, item.severity, data),
        ).rowcount
    totals.head = head
    totals.duplicates += len(items) - (head - first)
    save_totals(db, totals)
    return first + 1, head - first


def note_arrival(db: sqlite3.Connection, seq: int) -> None:
    """Remember that the alerts from ``seq`` on arrived in this second or later."""
    row = (boot_id(), boot_ns() // NS_PER_S, wall_ns() // NS_PER_S, seq)
    db.execute("INSERT OR IGNORE INTO arrivals VALUES (?, ?, ?, ?)", row)


def arrived_before(db: sqlite3.Connection, age_s: float, head: int) -> int:
    """The newest sequence number that has surely waited for longer than ``age_s``; 0 when none has.

    Within this boot by its own clock, which nobody sets; from an earlier boot by wall time, and only when
    that had been set.
    """
    oldest = (boot_id(), boot_ns() / NS_PER_S - age_s - 1, wall_ns() / NS_PER_S - age_s - 1)
    young = "CASE WHEN boot = ?1 THEN at_s >= ?2 ELSE wall_s < ?4 OR wall_s >= ?3 END"
    first_young, any_old = db.execute(
        f"SELECT min(CASE WHEN {young} THEN seq END), count(CASE WHEN NOT {young} THEN 1 END) FROM arrivals",  # noqa: S608
        (*oldest, _CLOCK_WAS_SET_S),
    ).fetchone()
    if not any_old:
        return 0
    return head if first_young is None else first_young - 1


# settling ---------------------------------------------------------------------------------------------


def settle(
    db: sqlite3.Connection, output: str, fates: Mapping[int, int], reasons: Mapping[int, str], letter: Any
) -> list[int]:
    """Count what became of alerts, passing over what is settled already; gives what was new, sorted.

    ``letter`` makes the frame of an alert that is dead (None: there is none any more).
    """
    account = account_of(db, output)
    fresh = sorted(seq for seq in fates if seq > account.cursor)
    if fresh and any(account.ahead):
        known = {
            seq
            for (seq,) in db.execute(
                "SELECT seq FROM ahead WHERE output = ? AND seq BETWEEN ? AND ?",
                (output, fresh[0], fresh[-1]),
            )
        }
        fresh = [seq for seq in fresh if seq not in known]
    if account.again:
        _settle_again(db, output, account, {-seq: fate for seq, fate in fates.items() if seq < 0}, reasons)
    _bury(db, output, [(letter(seq), reasons.get(seq, "")) for seq in fresh if fates[seq] == DEAD])
    mark_settled(db, output, account, [(seq, fates[seq]) for seq in fresh])
    save_account(db, output, account)
    return fresh


def mark_settled(
    db: sqlite3.Connection, output: str, account: Account, fresh: Sequence[tuple[int, int]]
) -> None:
    """Move the cursor over all that is settled without a gap, and remember the rest.

    ``fresh`` are sequence numbers with their fates, sorted, behind the cursor and not yet settled. The
    account is changed and not saved.
    """
    count = 0
    for seq, fate in fresh:
        if seq != account.cursor + 1:
            break
        account.cursor = seq
        account.settled[fate] += 1
        count += 1
    if count < len(fresh):
        db.executemany(
            "INSERT INTO ahead VALUES (?, ?, ?, ?)",
            [(output, seq, fate, ahead_mark(output, seq, fate)) for seq, fate in fresh[count:]],
        )
        for _, fate in fresh[count:]:
            account.ahead[fate] += 1
    if any(account.ahead):
        _catch_up(db, output, account)


def _catch_up(db: sqlite3.Connection, output: str, account: Account) -> None:
    """Move the cursor over what was settled ahead of it and follows it now."""
    before = account.cursor
    for seq, fate in db.execute(
        "SELECT seq, fate FROM ahead WHERE output = ? AND seq > ? ORDER BY seq", (output, before)
    ):
        if seq != account.cursor + 1:
            break
        account.cursor = seq
        account.ahead[fate] -= 1
        account.settled[fate] += 1
    if account.cursor != before:
        db.execute("DELETE FROM ahead WHERE output = ? AND seq <= ?", (output, account.cursor))


def drop_through(db: sqlite3.Connection, output: str, account: Account, floor: int, fate: int) -> int:
    """Move the cursor to ``floor`` at least, what waits before it gets that fate; gives how many did."""
    if account.cursor >= floor:
        return 0
    lost = floor - account.cursor
    for known, count in db.execute(
        "SELECT fate, count(*) FROM ahead WHERE output = ? AND seq <= ? GROUP BY fate", (output, floor)
    ).fetchall():
        account.ahead[known] -= count
        account.settled[known] += count
        lost -= count
    db.execute("DELETE FROM ahead WHERE output = ? AND seq <= ?", (output, floor))
    account.settled[fate] += lost
    account.cursor = floor
    if any(account.ahead):
        _catch_up(db, output, account)
    save_account(db, output, account)
    return lost


def drop_each(db: sqlite3.Connection, output: str, account: Account, seqs: Iterable[int], fate: int) -> int:
    """Give a fate to those of ``seqs`` (sorted) that wait; gives how many there were."""
    candidates = [seq for seq in seqs if seq > account.cursor]
    if not candidates:
        return 0
    known = {
        seq
        for (seq,) in db.execute(
            "SELECT seq FROM ahead WHERE output = ? AND seq BETWEEN ? AND ?",
            (output, candidates[0], candidates[-1]),
        )
    }
    fresh = [(seq, fate) for seq in candidates if seq not in known]
    mark_settled(db, output, account, fresh)
    save_account(db, output, account)
    return len(fresh)


def ahead_mark(output: str, seq: int, fate: int) -> int:
    """A check of one row of ``ahead``."""
    return crc32(f"{output} {seq} {fate}".encode())


def check_ahead(db: sqlite3.Connection, accounts: Mapping[str, Account]) -> None:
    """Raises sqlite3.DatabaseError when the rows of ``ahead`` are not those that the accounts count."""
    counted = {name: [0] * 7 for name in accounts}
    for output, seq, fate, mark in db.execute("SELECT output, seq, fate, mark FROM ahead"):
        if output not in counted or mark != ahead_mark(output, seq, fate):
            raise sqlite3.DatabaseError(f"row {seq} of ahead is damaged")
        counted[output][fate] += 1
    for name, account in accounts.items():
        if account.ahead != counted[name]:
            raise sqlite3.DatabaseError(
                f"what output {name!r} has settled ahead does not agree with its account"
            )


# dead letters -----------------------------------------------------------------------------------------


def _bury(db: sqlite3.Connection, output: str, letters: Sequence[tuple[bytes | None, str]]) -> None:
    """Keep dead letters; the oldest go beyond MAX_DEAD_LETTERS or MAX_DEAD_BYTES of all outputs."""
    rows = [(output, reason[:1024], wall_ns(), len(data), data) for data, reason in letters if data]
    if not rows:
        return
    db.executemany(
        "INSERT INTO dead_letters (output, again, reason, at_ns, bytes, frame) VALUES (?, 0, ?, ?, ?, ?)",
        rows,
    )
    trim_letters(db)


def trim_letters(db: sqlite3.Connection) -> None:
    """Remove the oldest dead letters beyond the bounds; those that wait again stay."""
    found = db.execute("SELECT number, bytes FROM dead_letters WHERE again = 0").fetchall()
    total = sum(size for _, size in found)
    excess = len(found) - MAX_DEAD_LETTERS
    if excess <= 0 and total <= MAX_DEAD_BYTES:
        return
    gone = 0
    for gone, (_, size) in enumerate(sorted(found), 1):
        total -= size
        if gone >= excess and total <= MAX_DEAD_BYTES:
            break
    db.execute("DELETE FROM dead_letters WHERE again = 0 AND number <= ?", (sorted(found)[gone - 1][0],))


def letters_again(db: sqlite3.Connection, output: str) -> int:
    """Let the dead letters of an output wait once more; gives how many, at most as many as are dead."""
    account = account_of(db, output)
    dead = account.settled[DEAD]
    numbers = db.execute(
        "SELECT number FROM dead_letters WHERE output = ? AND again = 0 ORDER BY number DESC LIMIT ?",
        (output, dead),
    ).fetchall()
    db.executemany("UPDATE dead_letters SET again = 1 WHERE number = ?", numbers)
    account.settled[DEAD] -= len(numbers)
    account.again += len(numbers)
    save_account(db, output, account)
    return len(numbers)


def waiting_again(db: sqlite3.Connection, output: str, limit: int) -> list[tuple[int, bytes]]:
    """Dead letters that wait once more, under negative numbers, oldest first."""
    return db.execute(
        "SELECT -number, frame FROM dead_letters WHERE output = ? AND again = 1 ORDER BY number LIMIT ?",
        (output, limit),
    ).fetchall()


def _settle_again(
    db: sqlite3.Connection,
    output: str,
    account: Account,
    fates: Mapping[int, int],
    reasons: Mapping[int, str],
) -> None:
    for number, fate in fates.items():
        if fate == DEAD:
            changed = db.execute(
                "UPDATE dead_letters SET again = 0, reason = ?, at_ns = ?"
                " WHERE number = ? AND output = ? AND again = 1",
                (reasons.get(-number, "")[:1024], wall_ns(), number, output),
            ).rowcount
        else:
            changed = db.execute(
                "DELETE FROM dead_letters WHERE number = ? AND output = ? AND again = 1", (number, output)
            ).rowcount
        account.again -= changed
        account.settled[fate] += changed


# replays and notes ------------------------------------------------------------------------------------


def note_sending(db: sqlite3.Connection, output: str, first: int) -> None:
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


def first_sent(db: sqlite3.Connection, output: str) -> int | None:
    """The first alert sent less than REPLAY_S ago, or before a reboot."""
    row = db.execute(
        "SELECT min(seq) FROM sendings WHERE output = ? AND (boot != ? OR at_s >= ?)",
        (output, boot_id(), boot_ns() // NS_PER_S - REPLAY_S),
    ).fetchone()
    return row[0] if row else None


def write_note(db: sqlite3.Connection, output: str, key: str, value: str) -> None:
    """Note something for an output."""
    db.execute("INSERT OR REPLACE INTO notes (output, key, value) VALUES (?, ?, ?)", (output, key, value))
    db.execute("DELETE FROM notes WHERE number <= (SELECT max(number) FROM notes) - ?", (MAX_NOTES,))
