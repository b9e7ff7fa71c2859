"""``kwsiem top``: a live view of rates, alerts, sources, blocks, probes and outputs."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kwsiem import clock
from kwsiem.cli.common import Subparsers, command, control_socket
from kwsiem.config import load_settings
from kwsiem.control import ask
from kwsiem.errors import EXIT_GOOD, UnavailableError

if TYPE_CHECKING:
    from kwsiem.cli.top.model import Model, Sample
    from kwsiem.cli.top.screen import Screen

_MIN_INTERVAL_S: Final = 0.2
_MAX_INTERVAL_S: Final = 3600.0

Call = Callable[[dict[str, Any]], dict[str, Any]]


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = command(
        commands,
        "top",
        "watch rates, alerts, sources, blocks, probes and outputs live; block and release",
        ["sudo kwsiem top", "sudo kwsiem top --interval 5", "sudo kwsiem top --once"],
        execute=execute,
    )
    parser.add_argument("--config", type=Path, metavar="F", help="settings file of the running appliance")
    parser.add_argument("--runtime", metavar="DIR", help="its runtime folder (default /run/kwsiem)")
    parser.add_argument(
        "--interval", type=_interval, default=1.0, metavar="S", help="seconds between pictures (default 1)"
    )
    parser.add_argument(
        "--once", action="store_true", help="print one picture as text after one interval, for scripts"
    )


def _interval(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not _MIN_INTERVAL_S <= value <= _MAX_INTERVAL_S:
        raise argparse.ArgumentTypeError(
            f"expected {_MIN_INTERVAL_S} to {_MAX_INTERVAL_S:.0f} seconds, got {text!r}"
        )
    return value


def execute(options: argparse.Namespace) -> int:
    """Show it until somebody quits; raises UnavailableError when nothing runs or there is no terminal."""
    # Other commands, and the sensor among them, do not pay for these.
    from kwsiem.cli.top.history import HistoryReader  # noqa: PLC0415
    from kwsiem.cli.top.model import Model, read_sample  # noqa: PLC0415

    if not options.once:
        _check_terminal()
    settings = load_settings(options.config)
    socket = control_socket(options, settings)
    call = partial(ask, socket)
    call({"command": "status"})  # whoever may not ask, or asks nobody, learns it at once
    with contextlib.closing(HistoryReader(Path(settings.state_dir) / "kwsiem.db", settings.user)) as history:
        model = Model(call)
        read = partial(read_sample, call=call, read=history.read)
        return _once(model, read, options.interval) if options.once else _live(model, read, options.interval)


def _check_terminal() -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UnavailableError("top needs a terminal; for one picture as text: kwsiem top --once")
    if os.environ.get("TERM", "dumb") == "dumb":
        raise UnavailableError("this terminal (TERM) cannot place text; try: kwsiem top --once")


def _once(model: Model, read: Callable[[float], Sample], interval_s: float) -> int:
    """Two samples, for a rate needs two, and one picture."""
    from kwsiem.cli.top.frame import as_text, draw  # noqa: PLC0415

    for wait_s in (0.0, interval_s):
        clock.sleep_s(wait_s)
        sample = read(clock.monotonic_s())
        if sample.error:
            raise UnavailableError(sample.error)
        model.take(sample)
    size = shutil.get_terminal_size()
    text = as_text(draw(model, min(size.columns, 500), min(size.lines, 200)))
    print(text.encode(sys.stdout.encoding, "replace").decode(sys.stdout.encoding))
    return EXIT_GOOD


class _Collector(threading.Thread):
    """Takes samples beside the keys: an appliance that does not answer must not make the terminal wait."""

    def __init__(self, read: Callable[[float], Sample], interval_s: float, wake: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._read, self._interval_s, self._wake = read, interval_s, wake
        self._now = threading.Event()
        self._lock = threading.Lock()
        self._sample: Sample | None = None
        self._ended = False

    def run(self) -> None:
        """Until :meth:`end`."""
        while not self._ended:
            self._now.clear()
            sample = self._read(clock.monotonic_s())
            with self._lock:
                if self._ended:
                    return
                self._sample = sample
                self._wake()
            self._now.wait(self._interval_s)

    def hurry(self) -> None:
        """Take the next sample now."""
        self._now.set()

    def taken(self) -> Sample | None:
        """The latest sample, once."""
        with self._lock:
            sample, self._sample = self._sample, None
        return sample

    def end(self) -> None:
        """Stop; nothing is woken any more."""
        with self._lock:
            self._ended = True
        self._now.set()


def _live(model: Model, read: Callable[[float], Sample], interval_s: float) -> int:
    from kwsiem.cli.top.screen import Screen  # noqa: PLC0415

    with Screen() as screen:

        def wake() -> None:
            with contextlib.suppress(BlockingIOError):
                os.write(screen.wake_writer, b"\0")

        collector = _Collector(read, interval_s, wake)
        collector.start()
        try:
            _loop(model, screen, collector)
        finally:
            collector.end()
            collector.join(1.0)
    return EXIT_GOOD


def _loop(model: Model, screen: Screen, collector: _Collector) -> None:
    from kwsiem.cli.top.frame import draw  # noqa: PLC0415

    while not model.quit:
        screen.show(partial(draw, model))
        ready, _, _ = select.select([sys.stdin, screen.wake_reader], [], [])
        if screen.wake_reader in ready:
            screen.woken()
            if (sample := collector.taken()) is not None:
                model.take(sample)
        if sys.stdin in ready:
            _press(model, screen, collector)


def _press(model: Model, screen: Screen, collector: _Collector) -> None:
    asked = model.question
    for key in screen.pressed():
        model.press(key)
        if model.question is not asked:
            break  # what was pasted or typed ahead is no answer to a question nobody has seen
    if asked and not model.question:
        collector.hurry()
