"""The terminal of ``kwsiem top``: its keys, its size, and how it was before."""

from __future__ import annotations

import codecs
import os
import re
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from kwsiem.cli.top.frame import Row, as_terminal

#: The other screen, no cursor, no line breaks at the margin (xterm's control sequences; also those of Linux).
_ENTER: Final = "\033[?1049h\033[?25l\033[?7l\033[2J"
_LEAVE: Final = "\033[0m\033[?7h\033[?25h\033[?1049l"
_KEY: Final = re.compile(r"\033(?:\[[0-9;]*[A-Za-z~]|O[A-Za-z])?|.", re.DOTALL)
_NAMES: Final = {
    "\033[A": "up", "\033OA": "up", "\033[B": "down", "\033OB": "down", "\t": "tab", "\033": "escape"
}  # fmt: skip


class Screen:
    """The terminal while it is ours; ``with`` gives it back as it was, whatever happens within.

    A signal that ends a program raises SystemExit in here, so that this also holds then.
    """

    def __init__(self) -> None:
        self._in, self._out = sys.stdin.fileno(), sys.stdout.fileno()
        self._shown: list[str] = []
        self._size = (0, 0)
        self._decode = codecs.getincrementaldecoder(sys.stdout.encoding)("replace").decode
        self._colour = not os.environ.get("NO_COLOR")
        self.wake_reader, self.wake_writer = os.pipe()
        for fd in (self.wake_reader, self.wake_writer):
            os.set_blocking(fd, False)

    def __enter__(self) -> Screen:
        self._before = termios.tcgetattr(self._in)
        self._handlers: dict[int, Any] = {}
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._handlers[number] = signal.signal(number, _end)
        # Only so that the wake-up descriptor is written to.
        self._handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: None)
        self._wakeup = signal.set_wakeup_fd(self.wake_writer, warn_on_full_buffer=False)
        tty.setcbreak(self._in)
        mode = termios.tcgetattr(self._in)
        mode[6][termios.VSUSP] = b"\0"  # ^Z would leave this screen to the shell
        termios.tcsetattr(self._in, termios.TCSANOW, mode)
        self._write(_ENTER)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        try:
            self._write(_LEAVE)
            termios.tcsetattr(self._in, termios.TCSAFLUSH, self._before)
        except (OSError, termios.error):
            pass  # the terminal has gone
        finally:
            os.close(self.wake_reader)
            os.close(self.wake_writer)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, as they are now."""
        found = os.get_terminal_size(self._out)
        return min(found.columns or 80, 500), min(found.lines or 24, 200)

    def show(self, draw: Callable[[int, int], Sequence[Row]]) -> None:
        """Draw for the size of now; only lines that changed are written."""
        size = self.size
        if size != self._size:
            self._size, self._shown = size, []
            self._write("\033[2J")
        lines = [as_terminal(row, self._colour) for row in draw(*size)]
        before = self._shown or [""] * len(lines)
        changed = [
            f"\033[{number};1H{line}"
            for number, (line, old) in enumerate(zip(lines, before, strict=True), 1)
            if line != old
        ]
        if changed:
            self._write("".join(changed))
        self._shown = lines

    def pressed(self) -> Iterator[str]:
        """The keys that were pressed, by name; ``q`` when the terminal has gone."""
        try:
            data = os.read(self._in, 256)
        except OSError:
            data = b""
        if not data:
            yield "q"
        for key in _KEY.findall(self._decode(data)):
            yield _NAMES.get(key, key)

    def woken(self) -> None:
        """Forget what woke us."""
        try:
            while os.read(self.wake_reader, 256):
                pass
        except BlockingIOError:
            pass

    def _write(self, text: str) -> None:
        # On a terminal that does not speak UTF-8 its bytes would be control characters.
        data = memoryview(text.encode(sys.stdout.encoding, "replace"))
        while data:
            data = data[os.write(self._out, data) :]


def _end(number: int, _: object) -> None:
    raise SystemExit(128 + number)
