"""What every output is: an honest label, and four verbs.

An output moves bytes and nothing else: filtering, rendering, batching, rates, retrying and counting are
done once for all of them in :mod:`kwsiem.outputs.worker`. A constructor runs as root, before the rights are
dropped: files with keys are read there, and what is imported late is imported there. The verbs run without
rights.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 - looking up a host name would import it when the rights are gone
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Protocol

import msgspec

#: ``confirmed``: the destination said that it has the alert. The other: it left this process, no more.
Label = Literal["confirmed", "sent, unconfirmed"]
CONFIRMED: Final[Label] = "confirmed"
UNCONFIRMED: Final[Label] = "sent, unconfirmed"


class Rendered(msgspec.Struct, frozen=True):
    """One alert in the form of its output.

    ``severity`` is 0 to 10; ``data`` is what the output's format made of it, ``source`` the stored document
    as JSON.
    """

    id: str
    severity: int
    data: bytes
    source: bytes = b"{}"

    @property
    def document(self) -> Mapping[str, Any]:
        """The ECS document, for outputs that need a fact of it beside ``data``; decoded at each call."""
        found: dict[str, Any] = msgspec.json.decode(self.source)
        return found


class Output(Protocol):
    """One destination. All verbs are called from one thread; each ends within the output's time-out.

    Every verb but :meth:`close` raises OutputError, which says whether the same may succeed later and
    which alerts of a batch were taken. ``batch_alerts`` is the most alerts that :meth:`send` is given.
    ``replays`` is true where what was sent may be lost with the connection: after each new :meth:`open` the
    worker sends again what was sent last. ``answer`` is what the destination said last, in words, for
    ``kwsiem outputs test``. ``limits`` are the destination's own: so many messages in so many seconds.
    """

    label: Label
    batch_alerts: int
    replays: bool
    answer: str
    limits: Sequence[tuple[int, float]]

    def open(self) -> None:
        """Make ready to send; called again before each try after an error."""

    def check(self) -> None:
        """Say whether the destination is there; called about once a second while nothing waits."""

    def send(self, batch: Sequence[Rendered]) -> None:
        """Send alerts in order; when it returns, all were taken as far as :attr:`label` says."""

    def close(self) -> None:
        """Let go of what is open; may be called at any time, and twice."""


class BaseOutput:
    """The attributes of an output with their usual values."""

    label: Label = CONFIRMED
    batch_alerts: int = 200
    replays: bool = False
    answer: str = ""
    limits: Sequence[tuple[int, float]] = ()


class Notes(Protocol):
    """What an output remembers across restarts: short texts by key; the oldest may be forgotten."""

    def get(self, key: str) -> str | None:
        """What was noted under a key."""

    def set(self, key: str, value: str) -> None:
        """Note something, durably."""


class PassingNotes:
    """Notes that end with the process, at most ``most``: for a single message."""

    def __init__(self, most: int = 1000) -> None:
        self._most = most
        self._notes: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        """What was noted under a key."""
        return self._notes.get(key)

    def set(self, key: str, value: str) -> None:
        """Note something; the oldest note goes when there are too many."""
        self._notes.pop(key, None)
        self._notes[key] = value
        if len(self._notes) > self._most:
            del self._notes[next(iter(self._notes))]
