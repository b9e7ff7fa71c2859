"""The history of figures, read beside a running courier: values by minute, our own events, acknowledgements.

One SQLite file, ``series.db`` in the state folder, that :mod:`kwsiem.series_file` writes. A minute is one of
the wall clock; a figure has a name, a label and a value. What is read was written by a process without
rights: it is bounded and cleaned again here.

Names (label), added up within a minute: ``events`` (kind), ``packets`` (tcp, udp, icmp, other), ``ports``
(``tcp/22``, ``other``), ``sources`` (address, ``other``), ``alerts`` (level), ``lost`` (``stage:reason``),
``probe_up_s`` (probe), ``output_up_s`` (output), ``cpu_ms`` (process). Gauges, the highest of a minute:
``waiting`` (output), ``blocks`` (on, dry-run), ``memory_bytes`` (process).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from kwsiem.database import open_to_read
from kwsiem.text import clean

FILE_NAME: Final = "series.db"
MINUTE_S: Final = 60
SUMS: Final = (
    "events", "packets", "ports", "sources", "alerts", "lost", "probe_up_s", "output_up_s", "cpu_ms"
)  # fmt: skip
GAUGES: Final = ("waiting", "blocks", "memory_bytes")
NAMES: Final = (*SUMS, *GAUGES)
#: The label that stands for all that have no row of their own.
OTHER: Final = "other"
MAX_LABEL: Final = 128
#: Incident ids and who acknowledged them.
MAX_ID: Final = 128
MAX_WHO: Final = 128
#: Values that one label gives at most (a month of minutes has 43,200), and those of all labels together.
MAX_STEPS: Final = 50_000
MAX_VALUES: Final = 5_000_000
#: Labels of a figure that one answer has at most: the largest.
MAX_LABELS: Final = 1_000
MAX_FIELDS_BYTES: Final = 4096
#: Parameters of one statement (SQLITE_MAX_VARIABLE_NUMBER was 999 once).
_AT_ONCE: Final = 500
_BETWEEN: Final = "WHERE name = ?1 AND minute >= ?2 AND minute < ?3"

SCHEMA: Final = """
CREATE TABLE minutes (
    name TEXT NOT NULL,
    minute INTEGER NOT NULL,
    label TEXT NOT NULL,
    value INTEGER NOT NULL CHECK (typeof(value) = 'integer'),
    PRIMARY KEY (name, minute, label)
) WITHOUT ROWID;
CREATE TABLE journal (
    number INTEGER PRIMARY KEY,
    at_ns INTEGER NOT NULL,
    kind TEXT NOT NULL,
    fields TEXT NOT NULL
);
CREATE INDEX journal_at ON journal (at_ns);
CREATE TABLE acknowledgements (
    incident_id TEXT PRIMARY KEY,
    at_ns INTEGER NOT NULL,
    who TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX acknowledgements_at ON acknowledgements (at_ns);
"""
VERSION: Final = 1

T = TypeVar("T")


class Journal(msgspec.Struct, frozen=True):
    """One of our own events: blocks, states of probes and outputs, reloads of rules."""

    at_ns: int
    kind: str
    fields: dict[str, Any]


class Acknowledged(msgspec.Struct, frozen=True):
    """Who acknowledged an incident first, and when (ns since 1970)."""

    at_ns: int
    who: str


class Series:
    """Reads the file; nothing is held open between two calls.

    Times are of the wall clock, from ``since`` to before ``until``; the minute that ``since_s`` is in counts
    whole. Every method raises sqlite3.Error when the file cannot be read; without a file the answer is empty.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def totals(self, name: str, since_s: int, until_s: int, top: int = 0) -> list[tuple[str, int]]:
        """The sum of each label of a figure, of a gauge the highest value; largest first, ``top`` at most.

        With ``top`` 0 all of them, up to MAX_LABELS.
        """
        first, end = _minutes(since_s, until_s)
        found = self._read(
            lambda db: db.execute(
                f"SELECT CAST(label AS TEXT), CAST({_function(name)}(value) AS INTEGER) AS value FROM minutes"  # noqa: S608 - no text of others
                f" {_BETWEEN} GROUP BY label ORDER BY value DESC, label LIMIT ?",
                (name, first, end, min(top or MAX_LABELS, MAX_LABELS)),
            ).fetchall()
        )
        return [(clean(label, MAX_LABEL), value) for label, value in found or []]

    def steps(
        self, name: str, since_s: int, until_s: int, step_s: int = MINUTE_S, top: int = 0
    ) -> dict[str, list[int]]:
        """For each label of a figure one value for each step, from the minute of ``since_s`` on; missing: 0.

        With ``top`` only the largest labels. A step is so many whole minutes. Raises ValueError when it is
        shorter than one, or when that were more than MAX_STEPS values.
        """
        if step_s < MINUTE_S or step_s % MINUTE_S:
            raise ValueError(f"a step is so many times {MINUTE_S} s, not {step_s}")
        first, end = _minutes(since_s, until_s)
        width = step_s // MINUTE_S
        count = max(0, -(-(end - first) // width))
        if count > MAX_STEPS:
            raise ValueError(f"{count} steps, at most {MAX_STEPS}")
        most = min(top or MAX_LABELS, MAX_LABELS, MAX_VALUES // max(1, count))
        function = _function(name)

        def work(db: sqlite3.Connection) -> dict[str, list[int]]:
            chosen: dict[str, list[int]] = {
                label: [0] * count
                for (label,) in db.execute(
                    f"SELECT CAST(label AS TEXT) FROM minutes {_BETWEEN} GROUP BY label"  # noqa: S608 - no text of others
                    f" ORDER BY {function}(value) DESC, label LIMIT ?",
                    (name, first, end, most),
                )
            }
            # Joined here: to group by step and label SQLite sorts all rows, which took ten times as long.
            for label, minute, value in db.execute(
                "SELECT CAST(label AS TEXT), CAST(minute AS INTEGER), CAST(value AS INTEGER)"  # noqa: S608 - as above
                f" FROM minutes {_BETWEEN}",
                (name, first, end),
            ):
                values = chosen.get(label)
                if values is not None:
                    step = (minute - first) // width
                    values[step] = max(values[step], value) if name in GAUGES else values[step] + value
            return chosen

        return {clean(label, MAX_LABEL): values for label, values in (self._read(work) or {}).items()}

    def journal(
        self, since_ns: int, until_ns: int, kinds: Collection[str] = (), limit: int = 0
    ) -> list[Journal]:
        """Our own events, newest first, at most ``limit`` (0: all); with ``kinds`` only those."""
        wanted = list(kinds)[:_AT_ONCE]
        chosen = f" AND kind IN ({_marks(wanted)})" if wanted else ""
        query = (
            f"SELECT at_ns, CAST(kind AS TEXT), CAST(fields AS BLOB) FROM journal"  # noqa: S608 - as above
            f" WHERE at_ns >= ? AND at_ns < ?{chosen} AND length(fields) <= {MAX_FIELDS_BYTES}"
            f" ORDER BY at_ns DESC, number DESC LIMIT ?"
        )
        arguments = (_integer(since_ns), _integer(until_ns), *wanted, limit or -1)
        rows = self._read(lambda db: db.execute(query, arguments).fetchall()) or []
        found = []
        for at_ns, kind, data in rows:
            try:
                fields = msgspec.json.decode(data, type=dict[str, Any])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            found.append(Journal(int(at_ns), clean(kind, MAX_LABEL), fields))
        return found

    def acknowledged(self, incident_ids: Collection[str]) -> dict[str, Acknowledged]:
        """Those of these incidents that somebody has acknowledged."""
        wanted = sorted(set(incident_ids))

        def work(db: sqlite3.Connection) -> dict[str, Acknowledged]:
            found: dict[str, Acknowledged] = {}
            for start in range(0, len(wanted), _AT_ONCE):
                some = wanted[start : start + _AT_ONCE]
                for key, at_ns, who in db.execute(
                    f"SELECT incident_id, CAST(at_ns AS INTEGER), CAST(who AS TEXT) FROM acknowledgements"  # noqa: S608 - as above
                    f" WHERE incident_id IN ({_marks(some)})",
                    some,
                ):
                    found[key] = Acknowledged(at_ns, clean(who, MAX_WHO))
            return found

        return (self._read(work) if wanted else None) or {}

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        if not self._path.exists():
            return None
        with closing(open_to_read(self._path)) as db:
            if not db.execute("PRAGMA user_version").fetchone()[0]:
                return None  # made a moment ago, its tables are not there yet
            return work(db)


def _minutes(since_s: int, until_s: int) -> tuple[int, int]:
    """The first minute, and the one behind the last."""
    return _integer(since_s) // MINUTE_S, -(-_integer(until_s) // MINUTE_S)


def _function(name: str) -> str:
    """What joins the values of several minutes; raises ValueError for a name that is none.

    ``total`` cannot overflow, as ``sum`` can.
    """
    if name not in NAMES:
        raise ValueError(f"no figure {name!r}, known: {', '.join(NAMES)}")
    return "max" if name in GAUGES else "total"


def _integer(value: int) -> int:
    """What SQLite takes as a number."""
    return max(-(2**63), min(int(value), 2**63 - 1))


def _marks(values: Collection[str]) -> str:
    return ", ".join("?" * len(values))
