"""A histogram of durations with fixed bounds, as Prometheus takes it: a few counts, whatever the number."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, Final

#: From the best that was measured (an alert within 10 ms of its event) to an output of a minute ago.
BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class Histogram:
    """Counts durations in seconds; one below zero (two clocks) counts as zero."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0

    def observe(self, duration_s: float) -> None:
        """Count one."""
        duration_s = max(duration_s, 0.0)
        self._counts[bisect_left(BOUNDS_S, duration_s)] += 1
        self._sum_s += duration_s

    def figures(self) -> dict[str, Any]:
        """``counts`` of each step, the last without an upper bound, and ``sum_s``."""
        return {"counts": list(self._counts), "sum_s": self._sum_s}
