"""``kwsiem report``: what happened in a span of time, as one HTML page (or as JSON)."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from kwsiem.apart import spawn, words_of
from kwsiem.cli.common import Subparsers, add_json, command, control_socket, moment
from kwsiem.cli.status import faults
from kwsiem.clock import NS_PER_S, wall_ns
from kwsiem.config import load_settings
from kwsiem.control import ask
from kwsiem.errors import EXIT_GOOD, EXIT_USAGE, KwsiemError, UnavailableError

_WEEK_NS: Final = 7 * 86_400 * NS_PER_S
_FILE: Final = "kwsiem-report.html"
#: Pages of the block list that are asked for: 10,000 blocks.
_PAGES: Final = 20
_PAGE: Final = 500
_MAX_SAID: Final = 8192
#: A hundred times the largest one seen.
_MAX_BYTES: Final = 256 << 20


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = command(
        commands,
        "report",
        "write a report of a span of time as one HTML page",
        [
            "sudo kwsiem report --since 7d",
            "sudo kwsiem report --since 2026-01-01 --until 2026-02-01 --output january.html --title January",
            "sudo kwsiem report --since 24h --json | jq .levels",
        ],
        execute=execute,
    )
    parser.add_argument("--config", type=Path, metavar="F", help="settings file of the appliance")
    parser.add_argument("--state-dir", metavar="DIR", help="its state folder (default /var/lib/kwsiem)")
    parser.add_argument("--runtime", metavar="DIR", help="its runtime folder (default /run/kwsiem)")
    parser.add_argument(
        "--since", type=moment, metavar="T", help="from: 2h, 7d ago (default), or 2026-01-31[T12:00[Z]]"
    )
    parser.add_argument("--until", type=moment, metavar="T", help="up to (default now)")
    parser.add_argument(
        "--output", metavar="FILE", help=f"file to write or replace, - for standard output (default {_FILE})"
    )
    parser.add_argument("--title", metavar="TEXT", help="title of the page")
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """Make the report; a report that fails leaves the file of before as it is."""
    # Other commands do not pay for these; and they are read while the installation may be read.
    from kwsiem.cli.report.facts import gather, span_of  # noqa: PLC0415
    from kwsiem.cli.report.page import Page  # noqa: PLC0415

    until_ns = options.until if options.until is not None else wall_ns()
    since_ns = max(0, options.since if options.since is not None else until_ns - _WEEK_NS)
    if since_ns >= until_ns:
        print("kwsiem report: --since must be before --until", file=sys.stderr)
        return EXIT_USAGE
    settings = load_settings(options.config)
    runtime = control_socket(options, settings)
    live = _live(runtime)
    state = Path(options.state_dir or settings.state_dir)
    title = options.title or f"Security report of {settings.host}"
    page = Page()

    def make() -> bytes:
        wrong = faults(live["status"]) if live else []
        span = span_of(since_ns, until_ns)
        report = gather(state, settings.host, title, span, live, wrong, progress=not options.json)
        if options.json:
            return msgspec.json.format(msgspec.json.encode(report)) + b"\n"
        return page.render(report).encode("utf-8", "replace")

    name = options.output or ("-" if options.json else _FILE)
    with _ending(), _target(name) as fd:
        _in_child(settings.user, make, fd)
    if name != "-":
        print(f"kwsiem report: wrote {name}", file=sys.stderr)
    return EXIT_GOOD


def _live(socket: Path) -> dict[str, Any]:
    """What the running appliance says; empty when none runs, or we may not ask it."""
    try:
        status = ask(socket, {"command": "status"})
        return {"status": status, "blocked": _blocked(socket)}
    except UnavailableError:
        return {}


def _blocked(socket: Path) -> list[str] | None:
    """What is blocked now, None when that is not said."""
    found: list[str] = []
    for _ in range(_PAGES):
        after = found[-1] if found else ""
        answer = ask(socket, {"command": "blocks", "verb": "list", "after": after, "limit": _PAGE})
        if "error" in answer:
            return None
        if answer.get("mode") != "on":
            return []
        networks = [str(block["network"]) for block in answer["blocks"]]
        found += networks
        if len(networks) < _PAGE:
            break
    return found


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """A signal that ends the program raises SystemExit, so that nothing is left behind."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _target(name: str) -> Iterator[int]:
    """A descriptor to write to; the file of this name is replaced at the end, unless something failed.

    Only its owner may read it. Raises UnavailableError when the file cannot be made.
    """
    if name == "-":
        sys.stdout.flush()
        yield sys.stdout.fileno()
        return
    path = Path(name)
    if path.exists() and not path.is_file():
        raise UnavailableError(f"{name}: not a regular file; for standard output: --output -")
    try:
        fd, beside = tempfile.mkstemp(prefix=f".{path.name[:64]}.", dir=path.parent)  # mode 0600
    except OSError as error:
        raise UnavailableError(f"{name}: {error.strerror}") from None
    try:
        with os.fdopen(fd, "wb", buffering=0):
            yield fd
            os.fsync(fd)
        Path(beside).replace(path)
    except OSError as error:
        raise UnavailableError(f"{name}: {error.strerror}") from None
    finally:
        Path(beside).unlink(missing_ok=True)


class _Said(msgspec.Struct):
    """Why the child could not."""

    text: str
    unavailable: bool = False


def _in_child(user: str, make: Callable[[], bytes], fd: int) -> None:
    """What ``make`` gives in a process that has the rights of ``user`` alone is written to ``fd``.

    Another user writes the files that it reads, and what stands in them came from attackers: it has neither
    ``fd`` nor the terminal. Raises what it said, BrokenPipeError when nobody reads ``fd``.
    """
    made, make_end = os.pipe()
    said, say_end = os.pipe()

    def live() -> None:
        view = memoryview(make())
        while view:
            view = view[os.write(make_end, view) :]

    def failed(error: BaseException) -> None:
        unavailable = isinstance(error, (UnavailableError, OSError))
        os.write(say_end, msgspec.json.encode(_Said(words_of(error), unavailable)))

    pid = spawn(user, live, keep=(make_end, say_end), failed=failed)
    os.close(make_end)
    os.close(say_end)
    code = None
    try:
        with os.fdopen(made, "rb", buffering=0) as pages, os.fdopen(said, "rb") as words:
            _copy(pages, fd)
            text = words.read(_MAX_SAID)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        if code is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            if sys.stderr.isatty():
                print("\r\033[K", end="", file=sys.stderr)  # its progress bar
    if text:
        why = msgspec.json.decode(text, type=_Said)
        raise (UnavailableError if why.unavailable else KwsiemError)(why.text)
    if code:
        raise KwsiemError(f"the process that makes the report ended with {code}")


def _copy(pages: io.RawIOBase, fd: int) -> None:
    left = _MAX_BYTES
    while data := pages.read(1 << 16):
        left -= len(data)
        if left < 0:
            raise KwsiemError(f"the report is larger than {_MAX_BYTES >> 20} MiB; take a shorter span")
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(fd, view) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UnavailableError(f"the report cannot be written: {error.strerror}") from None
