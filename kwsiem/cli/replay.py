"""``kwsiem replay``: recorded events through the engine; alerts, one a line, on standard output."""

from __future__ import annotations

import argparse
import gzip
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import msgspec

from kwsiem.alert import Alert
from kwsiem.cli.common import (
    FORMAT_NAMES,
    Subparsers,
    add_settings,
    catalog_of,
    command,
    rules_of,
    settings_of,
)
from kwsiem.document import document
from kwsiem.errors import EXIT_CHECK_FAILED, EXIT_GOOD, ConfigError, UnavailableError
from kwsiem.formats import FORMATS
from kwsiem.messages import ProbeKinds
from kwsiem.replay import Replay


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = command(
        commands,
        "replay",
        "send recorded events through the rules and print the alerts",
        [
            "kwsiem replay scan.jsonl",
            "kwsiem replay --rules new-rules.yaml --format cef monday.jsonl.gz tuesday.jsonl.gz",
            "bpftrace -f json probes/net_tcp.bt 4026531840 | kwsiem replay --probe net_tcp -",
        ],
        execute=execute,
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="recordings, or event objects; - is standard input"
    )
    parser.add_argument(
        "--format", choices=FORMAT_NAMES, default="text", help="how to print alerts (default text)"
    )
    parser.add_argument("--probe", metavar="NAME", help="whose lines bare bpftrace lines are")
    add_settings(parser)


def execute(options: argparse.Namespace) -> int:
    """Replay the files in the order given; exit 1 when lines had to be rejected."""
    settings = settings_of(options)
    catalog = catalog_of(settings)
    ruleset = rules_of(settings, catalog)
    probe = None
    if options.probe:
        if options.probe not in catalog.probes:
            raise ConfigError(f"--probe: no probe {options.probe!r}, known: {', '.join(catalog.probes)}")
        probe = ProbeKinds(options.probe, dict(catalog.probes[options.probe].kinds))
    render = FORMATS[options.format]

    def emit(alert: Alert) -> None:
        print(render(document(alert)))

    replay = Replay(ruleset, catalog.kinds(), emit, host=settings.host, probe=probe)
    for name in options.files:
        with _open(name) as file:
            _feed(replay, name, file)
    rejected = ", ".join(f"{count} {reason}" for reason, count in sorted(replay.rejected.items()))
    summary = f"{replay.lines} lines, {replay.events} events" + (
        f", rejected: {rejected}" if rejected else ""
    )
    print(f"kwsiem replay: {summary}", file=sys.stderr)
    return EXIT_CHECK_FAILED if rejected else EXIT_GOOD


def _open(name: str) -> IO[bytes]:
    if name == "-":
        return sys.stdin.buffer
    try:
        return gzip.open(name) if name.endswith(".gz") else Path(name).open("rb")  # type: ignore[return-value]
    except OSError as error:
        raise UnavailableError(f"{name}: {error.strerror}") from None


def _feed(replay: Replay, name: str, lines: Iterable[bytes]) -> None:
    try:
        replay.feed(lines)
    except (OSError, EOFError, msgspec.DecodeError) as error:
        raise UnavailableError(f"{name}: line {replay.lines + 1}: {error}") from None
