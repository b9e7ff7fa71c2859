"""Decisions about blocks on disk: what is blocked until when and why, and who has offended how often.

SQLite in a folder of root's own: the folder of the other processes' state belongs to their user, who could
put another file in this one's place. Times are wall time (nanoseconds since 1970): they outlive a boot.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from kwsiem.database import transaction
from kwsiem.response.facts import BITS, Key, Network, key_of, key_of_text, network_of, text_of

log = logging.getLogger("kwsiem.blocks")

MAX_DECISIONS: Final = 1_000_000
MAX_OFFENDERS: Final = 1_000_000
#: What one source has.
SUBJECT_PREFIX: Final = {4: 32, 6: 64}
_WIDEST_IPV4: Final = 24
_SCHEMA: Final = """
PRAGMA user_version = 1;
CREATE TABLE IF NOT EXISTS decisions (
    network TEXT PRIMARY KEY, since_ns INTEGER NOT NULL, until_ns INTEGER NOT NULL, for_s INTEGER NOT NULL,
    mode TEXT NOT NULL, origin TEXT NOT NULL, rule_id TEXT NOT NULL, alert_id TEXT NOT NULL,
    evidence TEXT NOT NULL, reason TEXT NOT NULL, offences INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS decisions_until ON decisions (until_ns);
CREATE TABLE IF NOT EXISTS offenders (
    network TEXT PRIMARY KEY, offences INTEGER NOT NULL, last_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS offenders_last ON offenders (last_ns);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Decision(msgspec.Struct, frozen=True):
    """One block: whom, since and until when, for what reason.

    ``mode`` is ``on`` (in the firewall) or ``dry-run`` (would be); ``origin`` is ``rule`` or ``operator``.
    ``offences`` counts this one and the earlier ones of the same source.
    """

    network: str
    since_ns: int
    until_ns: int
    for_s: int
    mode: str
    origin: str
    rule_id: str = ""
    alert_id: str = ""
    evidence: str = ""
    reason: str = ""
    offences: int = 1

    @property
    def net(self) -> Network:
        """The network as an object."""
        return network_of(self.network)

    @property
    def key(self) -> Key:
        """The network as three numbers."""
        return key_of_text(self.network)


class Decisions:
    """All decisions, on disk and in memory; one thread.

    Subjects are counted in the networks around them, down to prefix length ``widest_ipv4``. A damaged file is
    moved aside and a new one begun: blocks are then lost, and end in the kernel by their time-outs. Raises
    sqlite3.OperationalError when the folder cannot be written.
    """

    def __init__(self, path: Path, widest_ipv4: int = _WIDEST_IPV4) -> None:
        self.path = path
        self._counted: dict[int, Sequence[int]] = {4: range(widest_ipv4, 32), 6: (56, 48)}
        self._live: dict[Key, Decision] = {}
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            aside = path.with_name(f"{path.name}.corrupt-{os.getpid()}")
            log.error("blocks: %s is corrupt (%s), moved to %s, a new one begun", path, error, aside)
            for suffix in ("", "-wal", "-shm"):
                if Path(f"{path}{suffix}").exists():
                    Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
            self._open()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Decision]:
        return iter(list(self._live.values()))

    def get(self, network: Network) -> Decision | None:
        """The decision about exactly this network."""
        return self._live.get(key_of(network))

    def covering(self, network: Network) -> Decision | None:
        """The decision about this network or a wider one."""
        version, first, length = key_of(network)
        bits = BITS[version]
        for prefix in range(length, -1, -1):
            decision = self._live.get((version, first >> (bits - prefix) << (bits - prefix), prefix))
            if decision:
                return decision
        return None

    def within(self, network: Network) -> int:
        """How many decided subjects (IPv4 addresses, IPv6 /64) lie within a network of a counted length."""
        version, first, length = key_of(network)
        return self._counts.get((length, first >> (BITS[version] - length)), 0)

    def put(self, decisions: Sequence[Decision]) -> None:
        """Store decisions, in one transaction; the offences of their sources are counted."""
        with transaction(self._db) as db:
            db.executemany(
                "INSERT OR REPLACE INTO decisions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [msgspec.structs.astuple(decision) for decision in decisions],
            )
            db.executemany(
                "INSERT OR REPLACE INTO offenders VALUES (?, ?, ?)",
                [(d.network, d.offences, d.since_ns) for d in decisions if d.origin == "rule"],
            )
        for decision in decisions:
            self._add(decision)

    def remove(self, networks: Iterable[Network]) -> list[Decision]:
        """Forget decisions; gives those that were there."""
        gone = [decision for network in networks if (decision := self._live.get(key_of(network)))]
        with transaction(self._db) as db:
            db.executemany("DELETE FROM decisions WHERE network = ?", [(d.network,) for d in gone])
        for decision in gone:
            self._drop(decision.key)
        return gone

    def ended(self, now_ns: int) -> list[Decision]:
        """Forget decisions whose time is over; gives them."""
        rows = self._db.execute(
            "SELECT network FROM decisions WHERE until_ns <= ? LIMIT 10000", (now_ns,)
        ).fetchall()
        return self.remove(network_of(row[0]) for row in rows) if rows else []

    def offences(self, network: Network, since_ns: int) -> int:
        """How often a source was blocked before, unless the last time was before ``since_ns``."""
        row = self._db.execute(
            "SELECT offences FROM offenders WHERE network = ? AND last_ns >= ?", (text_of(network), since_ns)
        ).fetchone()
        return int(row[0]) if row else 0

    def forget_offenders(self, before_ns: int) -> None:
        """Forget who has not offended since, and the oldest beyond MAX_OFFENDERS."""
        with transaction(self._db) as db:
            db.execute("DELETE FROM offenders WHERE last_ns < ?", (before_ns,))
            (count,) = db.execute("SELECT count(*) FROM offenders").fetchone()
            if count > MAX_OFFENDERS:
                db.execute(
                    "DELETE FROM offenders WHERE network IN"
                    " (SELECT network FROM offenders ORDER BY last_ns LIMIT ?)",
                    (count - MAX_OFFENDERS,),
                )

    def fact(self, name: str) -> str:
        """A fact that must outlive a restart (``armed``), empty when it was never set."""
        return self._facts.get(name, "")

    def set_fact(self, name: str, value: str) -> None:
        """Remember a fact."""
        with transaction(self._db) as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))
        self._facts[name] = value

    # -- inside --------------------------------------------------------------------------------------

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        os.close(os.open(self.path, flags, 0o600))
        self._db = sqlite3.connect(self.path, timeout=5.0, isolation_level=None)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
            self._facts: dict[str, str] = dict(self._db.execute("SELECT name, value FROM facts").fetchall())
            rows = self._db.execute("SELECT * FROM decisions LIMIT ?", (MAX_DECISIONS,)).fetchall()
        except sqlite3.DatabaseError:
            self._db.close()
            raise
        self._live.clear()
        self._counts: Counter[tuple[int, int]] = Counter()
        for row in rows:
            try:
                self._add(Decision(*row))
            except ValueError:
                log.error("blocks: %r in %s is no network, passed over", row[0], self.path)

    def _add(self, decision: Decision) -> None:
        key = decision.key
        if key not in self._live:
            self._count(key, 1)
        self._live[key] = decision

    def _drop(self, key: Key) -> None:
        if self._live.pop(key, None):
            self._count(key, -1)

    def _count(self, key: Key, change: int) -> None:
        """Count a subject in each network around it that :func:`policy.widened` may ask for."""
        version, first, length = key
        if length != SUBJECT_PREFIX[version]:
            return
        bits = BITS[version]
        for prefix in self._counted[version]:
            around = (prefix, first >> (bits - prefix))
            self._counts[around] += change
            if not self._counts[around]:
                del self._counts[around]


def host_subject(network: Network) -> bool:
    """Whether a network is what one source has: an IPv4 address, an IPv6 /64."""
    return network.prefixlen == SUBJECT_PREFIX[network.version]
