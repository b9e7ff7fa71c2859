"""How many messages an output may send now: token buckets, several at once (1 a second and 20 a minute)."""

from __future__ import annotations

from collections.abc import Sequence


class Pace:
    """Buckets of (most messages, seconds in which they come back); reads no clock.

    ``now_s`` is monotonic. A message needs a token of each bucket.
    """

    def __init__(self, limits: Sequence[tuple[int, float]]) -> None:
        self._limits = [(float(most), most / per_s) for most, per_s in limits]
        self._tokens = [most for most, _ in self._limits]
        self._last_s: float | None = None

    def free(self, now_s: float) -> int:
        """How many messages may be sent now."""
        self._refill(now_s)
        return int(min(self._tokens) + 1e-9)  # a sum of fractions may fall just short

    def take(self, messages: int, now_s: float) -> None:
        """Count so many messages as sent now."""
        self._refill(now_s)
        self._tokens = [tokens - messages for tokens in self._tokens]

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next message may be sent; 0 when one may now."""
        self._refill(now_s)
        waits = [(1.0 - tokens) / rate for tokens, (_, rate) in zip(self._tokens, self._limits, strict=True)]
        return max(0.0, *waits)

    def _refill(self, now_s: float) -> None:
        passed_s = max(0.0, now_s - (now_s if self._last_s is None else self._last_s))
        self._last_s = now_s
        self._tokens = [
            min(most, tokens + passed_s * rate)
            for tokens, (most, rate) in zip(self._tokens, self._limits, strict=True)
        ]
