"""``kwsiem run``: the appliance in the foreground."""

from __future__ import annotations

import argparse

from kwsiem import appliance
from kwsiem.cli.common import Subparsers, add_settings, command, settings_of


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = command(
        commands,
        "run",
        "run the appliance in the foreground; SIGHUP reloads, SIGTERM ends it cleanly",
        ["sudo kwsiem run", "sudo kwsiem run --state /tmp/kwsiem --output console:cef"],
        execute=execute,
    )
    add_settings(parser)
    parser.add_argument("--state", metavar="DIR", help="state folder (default /var/lib/kwsiem)")
    parser.add_argument(
        "--runtime", metavar="DIR", help="folder of control socket and pid file (default /run/kwsiem)"
    )
    parser.add_argument("--output", metavar="console:FORMAT", help="alerts on the console in any format")
    parser.add_argument(
        "--block", choices=("off", "dry-run", "on"), help="blocking.mode, whatever the settings say"
    )
    parser.add_argument("--record", metavar="FILE", help="append what the probes print to FILE, for replay")


def execute(options: argparse.Namespace) -> int:
    """Run until told to stop."""
    return appliance.run(settings_of(options))
