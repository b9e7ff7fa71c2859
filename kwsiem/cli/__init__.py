"""The command line: one module for each group of commands; here alone errors become exit codes.

Exit codes: 0 good, 1 a check failed, 2 usage, 69 unavailable (not running, not root), 78 bad settings
or rules.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

from kwsiem import __version__
from kwsiem.errors import (
    EXIT_CHECK_FAILED,
    EXIT_CONFIG,
    EXIT_UNAVAILABLE,
    ConfigError,
    KwsiemError,
    UnavailableError,
)

_GROUPS: Final = (
    "run", "status", "top", "dashboard", "alerts", "report", "stats", "config", "check", "doctor", "probes",
    "rules", "outputs", "blocks", "replay", "simulate",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    parser = argparse.ArgumentParser(
        prog="kwsiem",
        description="Kernel-level intrusion detection that feeds a SIEM.",
        epilog="examples:\n  sudo kwsiem run\n  sudo kwsiem status\n  kwsiem replay scan.jsonl",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kwsiem {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    words = sys.argv[1:] if argv is None else argv
    for group in _groups(words):
        group.add(commands)
    _keep_earlier(parser, frozenset())
    options = parser.parse_args(words)
    try:
        code: int = options.execute(options)
        sys.stdout.flush()
    except ConfigError as error:
        return _fail(error, EXIT_CONFIG)
    except UnavailableError as error:
        return _fail(error, EXIT_UNAVAILABLE)
    except KwsiemError as error:
        return _fail(error, EXIT_CHECK_FAILED)
    except BrokenPipeError:
        # The reader (head, less) has gone; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CHECK_FAILED
    except KeyboardInterrupt:
        return 130
    return code


def _keep_earlier(parser: argparse.ArgumentParser, earlier: frozenset[str]) -> None:
    """An option given before a verb holds for it: the verb's own default must not take its place."""
    options = [action for action in parser._actions if action.option_strings and action.dest != "help"]
    for action in options:
        if action.dest in earlier:
            action.default = argparse.SUPPRESS
    known = earlier | {action.dest for action in options}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _keep_earlier(below, known)


def _groups(words: Sequence[str]) -> list[Any]:
    """The modules of the commands: where a command has one of its name, that one alone.

    The sensor is the process of ``kwsiem run``; it would keep all that the others import as long as it lives.
    """
    names = [name for name in _GROUPS if words and words[0] == name] or _GROUPS
    return [import_module(f"{__name__}.{name}") for name in names]


def _fail(error: KwsiemError, code: int) -> int:
    print(f"kwsiem: {error}", file=sys.stderr)
    return code
