"""What every output is: a name, an honest label, and four verbs.

An output moves bytes and nothing else: filtering, rendering, batching, retrying and counting are done once
for all of them in :mod:`kwsiem.outputs.worker`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Protocol

import msgspec

#: ``confirmed``: the destination said that it has the alert. The other: it left this process, no more.
Label = Literal["confirmed", "sent, unconfirmed"]
CONFIRMED: Final[Label] = "confirmed"
UNCONFIRMED: Final[Label] = "sent, unconfirmed"


class Rendered(msgspec.Struct, frozen=True):
    """One alert in the form of its output; ``severity`` is 0 to 10."""

    id: str
    severity: int
    data: bytes


class Output(Protocol):
    """One destination. All verbs are called from one thread; each ends within the output's time-out.

    Every verb but :meth:`close` raises OutputError, which says whether the same may succeed later and how
    many of a batch were taken.
    """

    label: Label

    def open(self) -> None:
        """Make ready to send; called again before each try after an error."""

    def check(self) -> None:
        """Say whether the destination is there; called about once a second while nothing waits."""

    def send(self, batch: Sequence[Rendered]) -> None:
        """Send alerts in order; when it returns, all were taken as far as :attr:`label` says."""

    def close(self) -> None:
        """Let go of what is open; may be called at any time, and twice."""
