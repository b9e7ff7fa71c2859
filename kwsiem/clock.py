"""The clocks: kernel time of events (CLOCK_BOOTTIME) and wall time of people; nothing else reads a clock.

``nsecs`` in bpftrace is CLOCK_BOOTTIME on every supported version (kernel 5.8+, bpf_ktime_get_boot_ns).
Wall time is ``ts_ns + offset``; the offset is measured at start and again every minute, because NTP steps it.
"""

from __future__ import annotations

import ctypes
import functools
import time
from datetime import datetime, timezone
from typing import Final

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000

#: Nothing is removed for its age before wall time and the time since boot went on alike for so long, …
STEADY_S: Final = 3600
#: … that is, within this; adjusting the frequency (adjtimex(2)) moves both clocks.
STEP_S: Final = 60

_TIME_ERROR = 5  # linux/timex.h: the clock is not synchronised
_TIMEX_BYTES = 512  # struct timex has 208


def boot_ns() -> int:
    """CLOCK_BOOTTIME in nanoseconds: the clock of events."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@functools.cache
def boot_id() -> str:
    """The kernel's id of this boot: CLOCK_BOOTTIME of two boots cannot be compared."""
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        return file.read().strip()


def wall_ns() -> int:
    """CLOCK_REALTIME in nanoseconds since 1970 (UTC)."""
    return time.time_ns()


def monotonic_s() -> float:
    """CLOCK_MONOTONIC in seconds: for time-outs and back-off."""
    return time.monotonic()


def sleep_s(duration_s: float) -> None:
    """Sleep for so many seconds."""
    time.sleep(duration_s)


def is_synchronised() -> bool | None:
    """Whether something keeps wall time right, as the kernel sees it (adjtimex(2)); None: it does not say.

    chrony, ntpd and systemd-timesyncd tell the kernel; what only sets the clock now and then does not.
    """
    # All zero: modes 0 changes nothing.
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return None if state < 0 else state != _TIME_ERROR


def wall_offset_ns() -> int:
    """What to add to CLOCK_BOOTTIME to get wall time, in nanoseconds.

    The two clocks are read in a sandwich (boot, wall, boot) and the tightest of three tries is taken,
    so that being scheduled away between two reads does not shift every time stamp.
    """
    best: tuple[int, int] | None = None
    for _ in range(3):
        before = boot_ns()
        wall = wall_ns()
        after = boot_ns()
        if best is None or after - before < best[0]:
            best = (after - before, wall - (before + after) // 2)
    assert best is not None
    return best[1]


class SteadyWall:
    """Wall time for what removes by age: none while the clock may just have been set.

    One step forward, by a bad clock chip or a time server, would make everything old at once.
    """

    def __init__(self) -> None:
        self._offset_ns = wall_ns() - boot_ns()
        self._since_ns = boot_ns()

    def now_ns(self) -> int | None:
        """CLOCK_REALTIME in nanoseconds; None before it went on like CLOCK_BOOTTIME for STEADY_S."""
        wall, boot = wall_ns(), boot_ns()
        if abs(wall - boot - self._offset_ns) > STEP_S * NS_PER_S:
            self._offset_ns, self._since_ns = wall - boot, boot
        return wall if boot - self._since_ns >= STEADY_S * NS_PER_S else None


def iso(ns: int) -> str:
    """RFC 3339 in UTC with milliseconds, from nanoseconds since 1970: ``2026-01-02T03:04:05.123Z``.

    Integer arithmetic throughout: a float cannot hold nanoseconds of today exactly.
    """
    seconds, rest = divmod(ns, NS_PER_S)
    return f"{_iso_second(seconds)}.{rest // NS_PER_MS:03d}Z"


@functools.lru_cache(maxsize=1024)
def _iso_second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}"
