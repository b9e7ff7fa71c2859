"""``kwsiem probes list|check``: what the probes see and need, and whether this kernel can run them."""

from __future__ import annotations

import argparse
import os
import selectors
from dataclasses import dataclass
from typing import Any, Final

from kwsiem import clock
from kwsiem.cli.common import (
    Subparsers,
    add_json,
    add_settings,
    catalog_of,
    command,
    plain,
    print_json,
    settings_of,
    table,
)
from kwsiem.cli.progress import Progress
from kwsiem.config import Settings
from kwsiem.decode import LineDecoder
from kwsiem.errors import EXIT_CHECK_FAILED, EXIT_GOOD, UnavailableError
from kwsiem.messages import ProbeKinds
from kwsiem.sensor.catalog import ProbeSpec, lint_probe, preflight
from kwsiem.sensor.child import BpftraceChild, Version, bpftrace_version, environment
from kwsiem.sensor.lifecycle import State, verdict
from kwsiem.sensor.supervisor import TRACING, argument

DRY_RUN_S: Final = 20.0


def add(commands: Subparsers) -> None:
    """Add the commands."""
    parser = command(
        commands,
        "probes",
        "list the probes, or check that this kernel runs them",
        ["kwsiem probes", "sudo kwsiem probes check --probes ./probes"],
        execute=execute,
    )
    parser.add_argument("what", nargs="?", choices=("list", "check"), default="list")
    add_settings(parser)
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """List or check."""
    settings = settings_of(options)
    catalog = catalog_of(settings)
    if options.what == "check":
        results = check_probes(settings, progress=not options.json)
        bad = any(result.state == "failed" for result in results) or bool(catalog.problems)
        if options.json:
            print_json([vars(result) for result in results])
        else:
            print(table([[r.name, r.state, plain(r.reason)] for r in results]))
            for problem in catalog.problems:
                print(problem)
        return EXIT_CHECK_FAILED if bad else EXIT_GOOD
    if options.json:
        print_json([_entry(spec) for spec in catalog.probes.values()])
    else:
        rows = [[spec.name, " ".join(_kinds(spec)), spec.summary] for spec in catalog.probes.values()]
        print(table([["PROBE", "KINDS", "SEES"], *rows]))
    for problem in catalog.problems:
        print(problem)
    return EXIT_CHECK_FAILED if catalog.problems else EXIT_GOOD


def _kinds(spec: ProbeSpec) -> list[str]:
    return [kind.name for number, kind in sorted(spec.kinds.items()) if number]


def _entry(spec: ProbeSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "file": str(spec.path),
        "summary": spec.summary,
        "sees": spec.sees,
        "blind": spec.blind,
        "overhead": spec.overhead,
        "kinds": {
            kind.name: {field.name: field.type for field in kind.fields}
            for number, kind in sorted(spec.kinds.items())
            if number
        },
    }


@dataclass
class Result:
    """How the dry run of one probe went: ``ready``, ``unsupported`` or ``failed``, and why."""

    name: str
    state: str
    reason: str


def check_probes(settings: Settings, *, progress: bool) -> list[Result]:
    """Lint, preflight and really start each probe until its first heartbeat; needs root."""
    if os.geteuid() != 0:
        raise UnavailableError("checking probes needs root: bpftrace loads them into the kernel; try sudo")
    version = bpftrace_version(settings.bpftrace)
    specs = catalog_of(settings).probes.values()
    results: list[Result] = []
    with Progress("starting probes", len(specs), "probes", wanted=progress) as bar:
        for spec in specs:
            bar.at(len(results))
            results.append(check_probe(settings, version, spec))
    return results


def check_probe(settings: Settings, version: Version, spec: ProbeSpec) -> Result:
    """Lint, preflight and really start one probe until its first heartbeat, DRY_RUN_S at most."""
    wrong = lint_probe(spec, spec.path.read_text(encoding="utf-8"))
    if wrong:
        return Result(spec.name, "failed", "; ".join(map(str, wrong)))
    if why := preflight(spec, TRACING):
        return Result(spec.name, "unsupported", why)
    arguments = [argument(name) for name in spec.arguments]
    argv = [settings.bpftrace, "-q", "-f", "json", str(spec.path), *arguments]
    child = BpftraceChild(argv, environment(version, spec.environment))
    decoder = LineDecoder(ProbeKinds(spec.name, dict(spec.kinds)))
    try:
        beating = _first_heartbeat(child, decoder)
    finally:
        child.kill()
        child.reap()
        os.close(child.output_fd)
    if not beating:
        state = "unsupported" if verdict(child.console) is State.UNSUPPORTED else "failed"
        return Result(spec.name, state, " ".join(child.console.split())[-500:] or "no heartbeat")
    rejected = ", ".join(f"{count} {reason}" for reason, count in decoder.rejected.items())
    return Result(spec.name, "failed" if rejected else "ready", rejected)


def _first_heartbeat(child: BpftraceChild, decoder: LineDecoder) -> bool:
    deadline_s = clock.monotonic_s() + DRY_RUN_S
    with selectors.DefaultSelector() as selector:
        selector.register(child.output_fd, selectors.EVENT_READ)
        while not decoder.heartbeat_ns and clock.monotonic_s() < deadline_s:
            child.read_console()
            if selector.select(0.1):
                data = os.read(child.output_fd, 65536)
                if not data:
                    break
                decoder.feed(data)
    return decoder.heartbeat_ns > 0
