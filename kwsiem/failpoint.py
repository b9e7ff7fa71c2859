"""Places on an alert's way where a test can have the courier killed, to prove that nothing is lost there.

``KWSIEM_FAILPOINT=NAME:NTH`` in the courier's environment kills the process with SIGKILL when it reaches the
point for the NTH time (without a number: the first). Without the variable a point costs one look at a
module's attribute. Only the courier arms points (:func:`arm`).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Final

from kwsiem.errors import ConfigError

VARIABLE: Final = "KWSIEM_FAILPOINT"
#: Name -> where it is; the order is that of an alert's way.
POINTS: Final[Mapping[str, str]] = {
    "courier.received": "taken from the link, in memory only",
    "outbox.storing": "in the outbox's transaction, not committed",
    "outbox.stored": "committed, the courier does not know yet",
    "courier.stored": "on disk, not acknowledged to the engine",
    "courier.acknowledged": "acknowledged, the outputs not woken yet",
    "worker.sending": "taken from the outbox by a worker, nothing sent",
    "worker.half_sent": "the output took half of the batch",
    "worker.sent": "the output took the batch, nothing settled",
    "outbox.settling": "counted as delivered, not committed",
    "outbox.settled": "settled and committed",
    "outbox.pruning": "old alerts removed, not committed",
}

_lock = threading.Lock()
_armed = ""
_left = 0


def arm(environment: Mapping[str, str]) -> None:
    """Arm the point that the environment names, or none; raises ConfigError for what is not a point."""
    global _armed, _left
    value = environment.get(VARIABLE, "")
    name, _, nth = value.partition(":")
    count = int(nth or "1") if (nth or "1").isascii() and (nth or "1").isdigit() else 0
    if value and (name not in POINTS or count < 1):
        raise ConfigError(
            f"{VARIABLE}: expected NAME:NTH with NAME one of {', '.join(POINTS)}, got {value!r}"
        )
    _armed, _left = name, count


def reach(name: str, before: Callable[[], object] | None = None) -> None:
    """Be killed here when this is the point and the time; ``before`` is done just before that."""
    if _armed:
        _reached(name, before)


def _reached(name: str, before: Callable[[], object] | None) -> None:
    global _left
    if name != _armed:
        return
    with _lock:
        _left -= 1
        if _left != 0:
            return
    if before:
        before()
    os.kill(os.getpid(), signal.SIGKILL)
