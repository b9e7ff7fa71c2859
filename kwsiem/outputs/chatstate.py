"""What outputs for people must not forget: updates taken, rules that are silent until when, summaries sent.

One small JSON file, written anew and synced at each change, so that it is whole at any moment.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from kwsiem.clock import NS_PER_S, monotonic_s, wall_ns

#: No rule is silent for longer, whatever the file or the clock says.
MUTE_MOST_S: Final = 24 * 3600
MAX_MUTES: Final = 1000
#: After a week without updates Telegram counts anew from a random number (getUpdates); it keeps none for
#: longer than a day. An offset that is older than this says nothing.
OFFSET_S: Final = 6 * 24 * 3600
_MAX_BYTES: Final = 1 << 20

log = logging.getLogger("kwsiem.outputs")


class _Offset(msgspec.Struct):
    next: int
    at_ns: int


class SummedUp(msgspec.Struct):
    """Where an output's last summary ended (ns since 1970), and the ledgers of all outputs then.

    A ledger is (delivered, dead, dropped).
    """

    until_ns: int
    ledgers: dict[str, tuple[int, int, int]] = {}


class _Kept(msgspec.Struct):
    offsets: dict[str, _Offset] = {}
    mutes: dict[str, int] = {}
    summaries: dict[str, SummedUp] = {}


class ChatState:
    """The file; safe to use from several threads of one process. What cannot be read counts as empty."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._taken_s: dict[str, float] = {}  # when this process took the last update, monotonic
        try:
            with path.open("rb") as file:
                self._kept = msgspec.json.decode(file.read(_MAX_BYTES), type=_Kept)
        except FileNotFoundError:
            self._kept = _Kept()
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.error("state of chats cannot be read, all rules speak", extra={"error": str(error)})
            self._kept = _Kept()

    def offset(self, output: str) -> int:
        """The number of the first update that was not taken yet; 0 when that is not known."""
        with self._lock:
            found = self._kept.offsets.get(output)
            taken_s = self._taken_s.get(output)
        if found is None:
            return 0
        # A clock that is set, forward or back, must not let an update act twice.
        if taken_s is None:
            is_known = abs(wall_ns() - found.at_ns) < OFFSET_S * NS_PER_S
        else:
            is_known = monotonic_s() - taken_s < OFFSET_S
        return found.next if is_known else 0

    def taken(self, output: str, update_id: int) -> None:
        """Note durably that an update was taken. Raises OSError: then it must not be acted on."""
        self._change(lambda kept: kept.offsets.update({output: _Offset(update_id + 1, wall_ns())}))
        self._taken_s[output] = monotonic_s()

    def mute(self, rule_id: str, for_s: int) -> bool:
        """Silence a rule, for MUTE_MOST_S at most; False when MAX_MUTES are. Raises OSError."""
        self.mutes()
        if rule_id not in self._kept.mutes and len(self._kept.mutes) >= MAX_MUTES:
            return False
        until_ns = wall_ns() + min(for_s, MUTE_MOST_S) * NS_PER_S
        self._change(lambda kept: kept.mutes.update({rule_id: until_ns}))
        return True

    def unmute(self, rule_id: str) -> bool:
        """Let a rule speak again; False when it was not silent. Raises OSError."""
        if rule_id not in self.mutes():
            return False
        self._change(lambda kept: kept.mutes.pop(rule_id, None))
        return True

    def mutes(self) -> dict[str, int]:
        """The rules that are silent now, and until when (ns since 1970); those whose time is over go."""
        now_ns = wall_ns()
        most_ns = now_ns + MUTE_MOST_S * NS_PER_S
        with self._lock:
            if self._kept.mutes:
                left = {rule: until_ns for rule, until_ns in self._kept.mutes.items() if until_ns > now_ns}
                # The clock was set back: the time that was asked for must not begin anew.
                self._kept.mutes = {rule: min(until_ns, most_ns) for rule, until_ns in left.items()}
            return dict(self._kept.mutes)

    def is_muted(self, rule_id: str) -> bool:
        """Whether a rule's alerts are kept from chats."""
        return bool(self._kept.mutes) and rule_id in self.mutes()

    def summed_up(self, output: str) -> SummedUp | None:
        """What is known of the last summary of an output."""
        with self._lock:
            return self._kept.summaries.get(output)

    def sum_up(self, output: str, last: SummedUp) -> None:
        """Note durably that an output has its summary. Raises OSError."""
        self._change(lambda kept: kept.summaries.update({output: last}))

    def _change(self, change: Callable[[_Kept], object]) -> None:
        """Change and write; when the file cannot be written, nothing has changed."""
        with self._lock:
            kept = _Kept(dict(self._kept.offsets), dict(self._kept.mutes), dict(self._kept.summaries))
            change(kept)
            _write(self._path, msgspec.json.encode(kept))
            self._kept = kept


def _write(path: Path, data: bytes) -> None:
    """All of it or nothing, also after a loss of power."""
    beside = path.with_name(path.name + ".new")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
