"""``kwsiem doctor``: what host, settings and destinations lack, and the command that mends it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from kwsiem import checkup, clock
from kwsiem.checkup import GOOD, MISSING, SKIPPED, WARNING, Finding, Host
from kwsiem.cli import diagnosis
from kwsiem.cli.common import (
    Subparsers,
    add_json,
    add_settings,
    catalog_of,
    command,
    paint,
    plain,
    print_json,
    settings_of,
)
from kwsiem.cli.jobs import Job, run
from kwsiem.cli.probes import DRY_RUN_S
from kwsiem.config import CONFIG_PATH, CONFIG_VARIABLE, Settings, resolve
from kwsiem.errors import EXIT_CHECK_FAILED, EXIT_GOOD, ConfigError
from kwsiem.sensor.supervisor import TRACING

#: A check that takes longer than this is told of on a terminal.
QUIET_S: Final = 1.0
RULES_S: Final = 60.0
#: Making an output, looking its host up, REACH_S to connect and what its protocol says then.
OUTPUT_S: Final = 10.0
_COLOURS: Final = {GOOD: "green", WARNING: "yellow", MISSING: "red", SKIPPED: "dim"}
_WORDS: Final = {GOOD: "good", WARNING: "warning", MISSING: "missing", SKIPPED: "not seen"}


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = command(
        commands,
        "doctor",
        "look for all that keeps the appliance from its work, and show the command that mends it"
        " (exit 1 when something is missing; warnings do not count)",
        [
            "sudo kwsiem doctor",
            "kwsiem doctor --no-probes",
            "sudo kwsiem doctor --json | jq '.findings[] | select(.state == \"missing\")'",
        ],
        execute=execute,
    )
    add_settings(parser)
    parser.add_argument("--state", metavar="DIR", help="state folder instead of the configured one")
    parser.add_argument("--runtime", metavar="DIR", help="runtime folder of the running appliance")
    parser.add_argument("--no-probes", action="store_true", help="do not start the probes")
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """Look at everything, tell everything; nothing is changed and nothing is sent."""
    findings: list[Finding] = []
    settings, problems = _settings(options)
    waiting = _Waiting()
    jobs = jobs_of(settings, Host(), start=not options.no_probes, are_settings_good=not problems)
    # What comes first is there at once; what takes its time is shown as it comes.
    for some in ([*problems, *_settings_file(options)], *run(jobs, waiting.on)):
        waiting.clear()
        findings += some
        for finding in () if options.json else some:
            print(render(finding), flush=True)
    is_bad = any(finding.state == MISSING for finding in findings)
    if options.json:
        print_json({"good": not is_bad, "findings": [msgspec.to_builtins(one) for one in findings]})
    else:
        print(f"\n{summary(findings)}")
    return EXIT_CHECK_FAILED if is_bad else EXIT_GOOD


def _settings(options: argparse.Namespace) -> tuple[Settings, list[Finding]]:
    """The settings; when they cannot be used, the defaults and why."""
    try:
        return settings_of(options), []
    except ConfigError as error:
        found = [
            Finding("settings", MISSING, line, "kwsiem check --no-probes") for line in str(error).split("\n")
        ]
        return resolve(Settings()), found


def _settings_file(options: argparse.Namespace) -> list[Finding]:
    path = options.config or os.environ.get(CONFIG_VARIABLE) or CONFIG_PATH
    return checkup.file_mode("settings", Path(path), is_secret=False)


def jobs_of(settings: Settings, host: Host, *, start: bool, are_settings_good: bool = True) -> list[Job]:
    """All checks in the order in which they are told: from the kernel up to the running appliance."""
    catalog = catalog_of(settings)
    wanted = {name for spec in catalog.probes.values() for name in spec.tracepoints}
    is_blocking = settings.blocking.mode == "on"
    state = Path(settings.state_dir)
    jobs = [
        Job("rights", partial(checkup.capabilities, host, is_blocking=is_blocking)),
        Job("kernel", partial(checkup.kernel, host)),
        Job("BTF", partial(checkup.btf, host)),
        Job("tracefs", partial(checkup.tracefs, host, TRACING)),
        Job("tracepoints", partial(checkup.tracepoints, wanted, host, TRACING)),
        Job("bpftrace", partial(diagnosis.bpftrace, settings, host), 25.0),
        Job("probes", partial(diagnosis.probe_files, settings)),
        *(
            Job(
                f"probe {spec.name}",
                partial(diagnosis.probe, settings, spec, host, start=start),
                DRY_RUN_S + 25.0,
            )
            for spec in catalog.probes.values()
        ),
        Job("PAM", partial(diagnosis.pam, host), 15.0),
        Job("firewall", partial(diagnosis.firewall, settings, host), 15.0),
        Job(f"user {settings.user}", partial(checkup.account, settings.user)),
        Job("clock", partial(checkup.wall_clock, host)),
        Job(
            "state folder",
            partial(checkup.state_folder, state, settings.user, settings.outbox_max_bytes),
        ),
        Job("runtime folder", partial(checkup.runtime_folder, Path(settings.runtime_dir))),
        Job("secrets", partial(checkup.file_mode, "secrets", Path(settings.env_file), is_secret=True)),
    ]
    jobs += [
        Job(name, partial(checkup.file_mode, name, path, is_secret=True))
        for name, path in diagnosis.key_files(settings)
    ]
    jobs.append(Job("rules", partial(diagnosis.rules, settings), RULES_S))
    if not are_settings_good:
        unknown = [Finding("outputs", SKIPPED, "the settings cannot be used"),
                   Finding("appliance", SKIPPED, "the settings cannot be used")]  # fmt: skip
        return [*jobs, Job("outputs", lambda: unknown)]
    outputs = [
        Job(f"output {one.name}", partial(diagnosis.output, settings, one), OUTPUT_S)
        for one in settings.outputs
    ]
    return [*jobs, *outputs, Job("appliance", partial(diagnosis.running, settings), 20.0)]


def render(finding: Finding) -> str:
    """One line, and under it the command that mends it."""
    word = paint(f"{_WORDS[finding.state]:<8}", _COLOURS[finding.state])
    line = f"{word}  {plain(finding.check):<14}  {plain(finding.found)}"
    if finding.mend and finding.state != GOOD:
        line += f"\n          {paint('mend:', 'bold')} {plain(finding.mend)}"
    return line


def summary(findings: Sequence[Finding]) -> str:
    """How many of each, and what they mean."""
    counts = {state: sum(one.state == state for one in findings) for state in _WORDS}
    words = ", ".join(f"{counts[state]} {_WORDS[state]}" for state in _WORDS if counts[state])
    if counts[MISSING]:
        return paint(f"{words}: mend what is missing", "red")
    return paint(words, "yellow" if counts[WARNING] or counts[SKIPPED] else "green")


class _Waiting:
    """Tells on a terminal what is being waited for, once it takes longer than QUIET_S."""

    def __init__(self) -> None:
        self._began_s = clock.monotonic_s()
        self._is_terminal = sys.stderr.isatty()
        self._shown = ""

    def on(self, name: str) -> None:
        """So long this one has been waited for."""
        waited_s = clock.monotonic_s() - self._began_s
        text = f"… {plain(name)} ({waited_s:.0f} s)"
        if self._is_terminal and waited_s >= QUIET_S and text != self._shown:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
            self._shown = text

    def clear(self) -> None:
        """It has come: its line goes."""
        self._began_s = clock.monotonic_s()
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self._shown = ""
