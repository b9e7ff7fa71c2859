"""A progress bar for what takes longer than a second, on standard error when that is a terminal.

Sixty lines of our own: what libraries add (nesting, colours, notebooks) is not needed, and none is a
dependency yet.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import Final

from kwsiem.clock import monotonic_s

#: Nothing is shown before.
QUIET_S: Final = 1.0
_REDRAW_S: Final = 0.1
_CELLS: Final = 24
_UNITS: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


class Progress:
    """How far a piece of work is; use it with ``with``, so that the line is erased whatever happens.

    ``total`` is 0 when nobody knows it: then there is no bar and no time left, only the amount and the rate.
    ``unit`` is ``B`` for bytes, or a word. Where standard error is no terminal, or ``wanted`` is false,
    nothing is written.
    """

    def __init__(self, what: str, total: float = 0, unit: str = "", *, wanted: bool = True) -> None:
        self.total = total
        self.active = wanted and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._what, self._unit = what, unit
        self._began_s = monotonic_s()
        self._next_s = self._began_s + QUIET_S
        self._shown = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def at(self, done: float) -> None:
        """So much is done, of ``total``."""
        if not self.active or (now_s := monotonic_s()) < self._next_s:
            return
        self._next_s = now_s + _REDRAW_S
        width = shutil.get_terminal_size().columns - 1
        self._write("\r" + self._line(done, now_s - self._began_s)[:width] + "\033[K")
        self._shown = True

    def clear(self) -> None:
        """Erase it, before something else is printed; the next :meth:`at` may draw it again."""
        if self._shown:
            self._write("\r\033[K")
            self._shown = False

    def _line(self, done: float, passed_s: float) -> str:
        rate = done / passed_s
        words = [self._what]
        if self.total:
            part = min(1.0, done / self.total)
            filled = int(part * _CELLS)
            words.append(f"[{'#' * filled}{'.' * (_CELLS - filled)}] {part:4.0%}")
        words.append(f"{_amount(done, self._unit)}, {_amount(rate, self._unit)}/s")
        if self.total and done:
            words.append(f"{_left(max(0.0, self.total - done) / rate)} left")
        return "  ".join(words)

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def _amount(value: float, unit: str) -> str:
    """Bytes in powers of 1000, anything else as it is counted."""
    if unit != "B":
        return f"{value:,.0f} {unit}".rstrip()
    for size, letter in _UNITS:
        if value >= size:
            return f"{value / size:.1f} {letter}B"
    return f"{value:.0f} B"


def _left(seconds: float) -> str:
    whole = int(seconds)
    return (
        f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02}"
    )
