"""What several commands share: options, settings with overrides, the catalog, terminal text."""

from __future__ import annotations

import argparse
import json
import os
import pwd
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from kwsiem.clock import NS_PER_S, wall_ns
from kwsiem.config import Settings, load_settings, resolve
from kwsiem.errors import ConfigError
from kwsiem.output_settings import ConsoleSettings, FileSettings, OutputSettings
from kwsiem.rules.duration import parse_duration
from kwsiem.sensor.catalog import Catalog, read_catalog

FORMAT_NAMES: Final = ("ecs", "json", "cef", "leef", "ocsf", "gelf", "text")
Subparsers = Any  # argparse has no public name for it


def command(
    commands: Subparsers, name: str, summary: str, examples: Sequence[str], **defaults: Any
) -> argparse.ArgumentParser:
    """A sub-command with its help, examples included."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(**defaults)
    return parser


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The options that choose settings, rules and probes."""
    parser.add_argument(
        "--config", type=Path, metavar="F", help="settings file (default /etc/kwsiem/kwsiem.yaml)"
    )
    parser.add_argument("--rules", metavar="F", help="rule file instead of the configured one")
    parser.add_argument("--probes", metavar="DIR", help="folder of probes instead of the configured ones")


def add_json(parser: argparse._ActionsContainer) -> None:
    """``--json``, as every query has."""
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def control_socket(options: argparse.Namespace, settings: Settings | None = None) -> Path:
    """The socket of the appliance that ``--runtime`` names, else that of its settings (``--config``)."""
    if options.runtime:
        return Path(options.runtime) / "control.sock"
    return (settings or load_settings(options.config)).control_socket


def moment(text: str) -> int:
    """Wall time in nanoseconds of an option: so long ago, or ISO 8601, local where it names no zone."""
    try:
        return wall_ns() - parse_duration(text)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
        return int(found.timestamp()) * NS_PER_S + found.microsecond * 1000
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            f"expected a time such as 2h, 7d, 2026-01-31 or 2026-01-31T12:00:00Z, got {text!r}"
        ) from None


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings with what the command line overrides."""
    settings = load_settings(options.config)
    changes: dict[str, Any] = {}
    if getattr(options, "rules", None):
        changes["rules"] = options.rules
        changes["rules_dir"] = ""  # that beside the named file
    if getattr(options, "probes", None):
        changes["probes"] = (options.probes,)
    if getattr(options, "state", None):
        changes["state_dir"] = options.state
        old = str(Path(settings.state_dir))
        changes["outputs"] = tuple(
            msgspec.structs.replace(output, path="")
            if isinstance(output, FileSettings) and str(Path(output.path).parent) == old
            else output
            for output in settings.outputs
        )
    if getattr(options, "runtime", None):
        changes["runtime_dir"] = options.runtime
    if getattr(options, "block", None):
        changes["blocking"] = msgspec.structs.replace(settings.blocking, mode=options.block)
    if getattr(options, "record", None):
        changes["record"] = str(Path(options.record).absolute())
    settings = msgspec.structs.replace(settings, **changes)
    if getattr(options, "output", None):
        settings = msgspec.structs.replace(settings, outputs=_console(settings.outputs, options.output))
    return resolve(settings)


def _console(outputs: tuple[OutputSettings, ...], wanted: str) -> tuple[OutputSettings, ...]:
    """The outputs with the console in the format of ``--output console:FORMAT``."""
    kind, _, form = wanted.partition(":")
    if kind != "console" or form not in ("", *FORMAT_NAMES):
        raise ConfigError(
            f"--output: expected console:FORMAT with one of {', '.join(FORMAT_NAMES)}, got {wanted!r}"
        )
    others = tuple(output for output in outputs if not isinstance(output, ConsoleSettings))
    console = msgspec.convert({"name": "console", "format": form, "type": "console"}, ConsoleSettings)
    return (console, *others)


def catalog_of(settings: Settings) -> Catalog:
    """The probes of the configured folders."""
    return read_catalog([Path(folder) for folder in settings.probes])


def print_json(value: Any) -> None:
    """One JSON value, indented, on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=True, default=str))


def paint(text: str, colour: str) -> str:
    """Text in a colour when standard output is a terminal: red, green, yellow, bold, dim."""
    codes = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}
    return f"\033[{codes[colour]}m{text}\033[0m" if sys.stdout.isatty() else text


def plain(text: str) -> str:
    """Text from outside, safe to show on a terminal: control characters become visible."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to the widest cell; the last one is left as it is."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = ("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def operator() -> str:
    """Who gives this command: the user that became root by sudo, else the user of the process."""
    name = os.environ.get("SUDO_USER", "")
    try:
        return name or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"
