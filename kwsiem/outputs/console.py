"""console: alerts on the standard output of the courier, coloured by level on a terminal only."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from typing import Final

from kwsiem.errors import OutputError
from kwsiem.outputs.base import UNCONFIRMED, BaseOutput, Label, Rendered

#: From this severity on -> SGR code (ECMA-48): critical, high, medium, low, informational.
_COLOURS: Final = ((10, b"1;31"), (8, b"31"), (5, b"33"), (3, b"36"), (0, b"2"))
#: A pipe that polls writable has room for so many bytes at least (PIPE_BUF, pipe(7)).
_CHUNK: Final = 4096


class ConsoleOutput(BaseOutput):
    """Writes lines to a descriptor that others may share, so it is never made non-blocking.

    ``fd`` may be negative when there is no standard output. A reader that takes nothing for
    ``timeout_s`` seconds, and one that has gone, are output errors: the alerts wait.
    """

    label: Label = UNCONFIRMED

    def __init__(self, fd: int, timeout_s: float) -> None:
        self._fd = fd
        self._timeout_s = timeout_s
        self._coloured = False
        self._torn = False

    def open(self) -> None:
        """See whether the descriptor is there, and whether it is a terminal."""
        try:
            os.fstat(self._fd)
        except (OSError, OverflowError) as error:
            raise OutputError(f"no standard output: {error}") from None
        self._coloured = os.isatty(self._fd) and "NO_COLOR" not in os.environ

    def check(self) -> None:
        """A pipe whose reader has gone polls as an error."""
        poller = select.poll()
        poller.register(self._fd, 0)
        for _, events in poller.poll(0):
            if events & (select.POLLERR | select.POLLNVAL):
                raise OutputError("standard output has no reader")

    def send(self, batch: Sequence[Rendered]) -> None:
        """Write one line for each alert; a line torn by an error is ended before it is written again."""
        for index, alert in enumerate(batch):
            line = self._coloured_line(alert) if self._coloured else alert.data
            try:
                self._write(b"\n" + line if self._torn else line)
            except OSError as error:
                raise OutputError(f"standard output: {error.strerror or error}", sent=index) from None

    def close(self) -> None:
        """Nothing to let go of: the descriptor belongs to the process."""

    def _write(self, data: bytes) -> None:
        poller = select.poll()
        poller.register(self._fd, select.POLLOUT)
        written = 0
        while written < len(data):
            if not poller.poll(self._timeout_s * 1000):
                self._torn = self._torn or written > 0
                raise TimeoutError(f"nothing was read for {self._timeout_s} s")
            try:
                written += os.write(self._fd, data[written : written + _CHUNK])
            except OSError:
                self._torn = self._torn or written > 0
                raise
        self._torn = False

    @staticmethod
    def _coloured_line(alert: Rendered) -> bytes:
        colour = next(code for least, code in _COLOURS if alert.severity >= least)
        return b"\x1b[" + colour + b"m" + alert.data.rstrip(b"\n") + b"\x1b[0m\n"
