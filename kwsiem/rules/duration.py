"""Durations as people write them in rules and settings: ``300ms``, ``3s``, ``5m``, ``12h``, ``1d``."""

from __future__ import annotations

import re
from typing import Final

#: Nanoseconds of each unit, largest first.
UNITS_NS: Final = {
    "d": 86_400_000_000_000,
    "h": 3_600_000_000_000,
    "m": 60_000_000_000,
    "s": 1_000_000_000,
    "ms": 1_000_000,
}
MAX_DURATION_NS: Final = 366 * UNITS_NS["d"]

_FORM: Final = re.compile(r"([0-9]{1,15})(ms|s|m|h|d)", re.ASCII)


def parse_duration(text: object) -> int:
    """Nanoseconds of a duration: a whole number directly followed by one of ``ms s m h d``.

    Raises ValueError that says what was expected; the value is above 0 and at most 366 days.
    """
    form = _FORM.fullmatch(text) if isinstance(text, str) else None
    if form is None:
        raise ValueError(f"expected a duration such as 300ms, 3s, 5m, 12h or 1d, got {text!r}")
    duration_ns = int(form[1]) * UNITS_NS[form[2]]
    if duration_ns <= 0:
        raise ValueError(f"must be > 0, got {text!r}")
    if duration_ns > MAX_DURATION_NS:
        raise ValueError(f"must be at most 366d, got {text!r}")
    return duration_ns


def format_duration(duration_ns: int) -> str:
    """The shortest exact form in one unit (``90s``, ``5m``), else ``1.234s`` rounded."""
    for unit, size in UNITS_NS.items():
        if duration_ns >= size and duration_ns % size == 0:
            return f"{duration_ns // size}{unit}"
    if duration_ns >= UNITS_NS["m"]:
        return f"{duration_ns // UNITS_NS['s']}s"
    return f"{duration_ns / UNITS_NS['s']:.3g}s"
