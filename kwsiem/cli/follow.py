"""``--follow``: the same question again and again; a terminal shows the answer in one place."""

from __future__ import annotations

import argparse
import json
import select
import shutil
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

from kwsiem import clock
from kwsiem.errors import EXIT_GOOD, UnavailableError

_MIN_INTERVAL_S: Final = 0.1
_MAX_INTERVAL_S: Final = 86_400.0
#: Home without line breaks at the margin; each line is cleared behind its end, the screen below the last.
_BEGIN: Final = "\033[?7l\033[H"
_CLEAR_LINE: Final = "\033[K\n"
_CLEAR_BELOW: Final = "\033[J"
_END: Final = "\033[?7h"


def add_follow(parser: argparse.ArgumentParser) -> None:
    """``--follow`` and ``--interval``."""
    parser.add_argument("--follow", action="store_true", help="ask again until interrupted")
    parser.add_argument(
        "--interval", type=interval, default=1.0, metavar="S", help="seconds between two answers (default 1)"
    )


def interval(text: str) -> float:
    """Seconds, from 0.1 to a day."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not _MIN_INTERVAL_S <= value <= _MAX_INTERVAL_S:
        raise argparse.ArgumentTypeError(
            f"expected {_MIN_INTERVAL_S} to {_MAX_INTERVAL_S:.0f} seconds, got {text!r}"
        )
    return value


def follow(
    question: Callable[[], Any], render: Callable[[Any], str], interval_s: float, *, as_json: bool
) -> int:
    """Ask and print until interrupted, or until the reader has gone; EXIT_GOOD then.

    With ``as_json`` one object a line. The first question may raise UnavailableError; later on that is an
    answer like any other, as the appliance may be starting again.
    """
    is_terminal = sys.stdout.isatty() and not as_json
    reader = select.poll()
    reader.register(sys.stdout.fileno(), 0)
    before = signal.signal(signal.SIGTERM, _ended)
    answer = question()
    try:
        if is_terminal:
            print("\033[2J", end="")
        while True:
            began_s = clock.monotonic_s()
            text = _line(answer) if as_json else _text(answer, render)
            print(_picture(text) if is_terminal else text + "\n", end="", flush=True)
            left_s = interval_s - (clock.monotonic_s() - began_s)
            if reader.poll(max(0.0, left_s) * 1000):
                return EXIT_GOOD
            try:
                answer = question()
            except UnavailableError as error:
                answer = error
    finally:
        signal.signal(signal.SIGTERM, before)
        if is_terminal:
            print(_END, end="", flush=True)


def _ended(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _line(answer: Any) -> str:
    value = {"error": str(answer)} if isinstance(answer, UnavailableError) else answer
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"), default=str)


def _text(answer: Any, render: Callable[[Any], str]) -> str:
    if isinstance(answer, UnavailableError):
        return f"{answer}\n"
    return render(answer) + ("" if sys.stdout.isatty() else "\n")


def _picture(text: str) -> str:
    """As much of a text as fits on the screen, written over what stands there."""
    lines = text.split("\n")[: max(1, shutil.get_terminal_size().lines - 1)]
    return _BEGIN + "".join(line + _CLEAR_LINE for line in lines) + _CLEAR_BELOW + _END
