"""The history of alerts, read beside a running courier: filtered, newest first, and what comes new.

The id of an alert begins with the time it was raised at, so the index over ids is the index over time. Rows
are read one after another: memory does not grow with the history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Final, Union

import msgspec

from kwsiem.database import open_to_read
from kwsiem.outbox import frame, tables

#: Rows that one look for new alerts takes at most.
PAGE: Final = 500
#: Above any character that an id may have.
_END: Final = "~"


class Endpoint(msgspec.Struct, frozen=True):
    """One end of a connection; empty and 0 where the alert does not say it."""

    ip: str = ""
    address: str = ""
    port: int = 0


class RuleFacts(msgspec.Struct, frozen=True):
    """The rule of an alert."""

    id: str = ""
    name: str = ""


class EventFacts(msgspec.Struct, frozen=True):
    """Id and reason of an alert."""

    id: str = ""
    reason: str = ""


class AlertFacts(msgspec.Struct, frozen=True):
    """What our own part of a document says first."""

    state: str = ""
    level: str = ""
    count: int = 0
    incident_id: str = ""


class OwnFacts(msgspec.Struct, frozen=True):
    """Our own part of a document."""

    alert: AlertFacts = AlertFacts()


class Summary(msgspec.Struct, frozen=True):
    """What a line of a list shows of an alert, and what alerts are filtered by."""

    time: datetime = msgspec.field(name="@timestamp")
    rule: RuleFacts = RuleFacts()
    event: EventFacts = EventFacts()
    source: Endpoint = Endpoint()
    destination: Endpoint = Endpoint()
    kwsiem: OwnFacts = OwnFacts()


class Entry(msgspec.Struct, frozen=True):
    """One alert of the history: its number, its summary, its whole document as JSON."""

    seq: int
    summary: Summary
    document: bytes


class Wanted(msgspec.Struct, frozen=True):
    """Which alerts: ids from ``since`` to before ``until`` (empty: no bound), severity, any further test."""

    since: str = ""
    until: str = ""
    least_severity: int = 0
    accepts: Union[Callable[[Summary], bool], None] = None


_decoder: Final = msgspec.json.Decoder(Summary)


class History:
    """Reads the history in the file of an outbox; nothing is held open between two calls.

    Every method raises sqlite3.Error when the file cannot be read. Damaged alerts are left out and counted
    in ``damaged``.
    """

    def __init__(self, path: Path) -> None:
        self.damaged = 0
        self._path = path

    def newest(self, wanted: Wanted, limit: int) -> Iterator[Entry]:
        """The latest alerts that are wanted, newest first, at most ``limit``; all when that is 0."""
        query = (
            "SELECT seq, severity, frame FROM alerts WHERE id >= ? AND id < ? AND severity >= ?"
            " ORDER BY id DESC"
        )
        with closing(open_to_read(self._path)) as db:
            rows = db.execute(query, (wanted.since, wanted.until or _END, wanted.least_severity))
            for number, entry in enumerate(self._entries(rows, wanted), 1):
                yield entry
                if number == limit:
                    return

    def head(self) -> int:
        """The number of the newest alert there has ever been."""
        with closing(open_to_read(self._path)) as db:
            return tables.totals_of(db).head

    def behind(self, seq: int, wanted: Wanted) -> tuple[list[Entry], int]:
        """Alerts behind a number in the order they came, at most PAGE rows; and how far was read."""
        query = "SELECT seq, severity, frame FROM alerts WHERE seq > ? ORDER BY seq LIMIT ?"
        with closing(open_to_read(self._path)) as db:
            head = tables.totals_of(db).head
            if head <= seq:  # lower: another file took its place
                return [], head
            rows = db.execute(query, (seq, PAGE)).fetchall()
        last = rows[-1][0] if len(rows) == PAGE else head
        return list(self._entries(iter(rows), wanted)), last

    def find(self, ending: str, limit: int) -> list[Entry]:
        """The alerts whose id is, or ends with, these characters; newest first, at most ``limit``."""
        with closing(open_to_read(self._path)) as db:
            rows = db.execute(
                "SELECT seq, severity, frame FROM alerts WHERE seq IN"
                " (SELECT seq FROM alerts WHERE substr(id, -length(?1)) = ?1 ORDER BY id DESC LIMIT ?2)"
                " ORDER BY id DESC",
                (ending, limit),
            ).fetchall()
        return list(self._entries(iter(rows), Wanted()))

    def _entries(self, rows: Iterator[tuple[int, int, bytes]], wanted: Wanted) -> Iterator[Entry]:
        for seq, severity, data in rows:
            if severity < wanted.least_severity:
                continue
            found = frame.decode(data) if isinstance(data, bytes) else None
            try:
                summary = _decoder.decode(found.body) if found else None
            except (msgspec.DecodeError, UnicodeDecodeError):
                summary = None
            if found is None or summary is None:
                self.damaged += 1
            elif _within(found.key, wanted) and (wanted.accepts is None or wanted.accepts(summary)):
                yield Entry(seq, summary, found.body)


def _within(identifier: str, wanted: Wanted) -> bool:
    return wanted.since <= identifier < (wanted.until or _END)
