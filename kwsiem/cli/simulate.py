"""``kwsiem simulate``: a real attack from a throw-away namespace, to see the alerts come."""

from __future__ import annotations

import argparse

from kwsiem.cli.common import Subparsers, add_json, command, print_json
from kwsiem.errors import EXIT_GOOD
from kwsiem.simulate import SCENARIOS, simulate


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = command(
        commands,
        "simulate",
        "attack this host from a network namespace that is made for it and removed again",
        ["sudo kwsiem simulate portscan", "sudo kwsiem simulate ssh-bruteforce"],
        execute=execute,
    )
    parser.add_argument("scenario", choices=SCENARIOS)
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """Run the scenario and say what was done."""
    done = simulate(options.scenario)
    if options.json:
        print_json({"scenario": options.scenario, "done": done})
    else:
        print(done)
    return EXIT_GOOD
