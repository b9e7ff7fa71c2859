"""``kwsiem check``: settings, rules with their tests, and probes; all errors at once."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

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
from kwsiem.cli.probes import check_probes
from kwsiem.cli.ruleset import rules_of
from kwsiem.config import Settings
from kwsiem.delivery import make_output, make_route
from kwsiem.errors import (
    EXIT_CHECK_FAILED,
    EXIT_CONFIG,
    EXIT_GOOD,
    EXIT_UNAVAILABLE,
    ConfigError,
    UnavailableError,
)
from kwsiem.secret import mask, secrets_of


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = command(
        commands,
        "check",
        "validate settings and rules, run the rules' own tests, start each probe once",
        ["sudo kwsiem check", "kwsiem check --rules ./rules.yaml --no-probes"],
        execute=execute,
    )
    add_settings(parser)
    parser.add_argument("--no-probes", action="store_true", help="do not start the probes (needs no root)")
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """Check everything, tell everything, then the worst exit code."""
    settings = settings_of(options)
    code = EXIT_GOOD
    report: dict[str, object] = {"settings": "good"}
    catalog = catalog_of(settings)
    problems = [str(problem) for problem in catalog.problems]
    if problems:
        code = EXIT_CHECK_FAILED
    report["catalog"] = problems
    if not options.no_probes:
        try:
            results = check_probes(settings, progress=not options.json)
            report["probes"] = [vars(result) for result in results]
            if any(result.state == "failed" for result in results):
                code = EXIT_CHECK_FAILED
        except UnavailableError as error:
            report["probes"] = str(error)
            code = EXIT_UNAVAILABLE
    try:
        ruleset = rules_of(settings, catalog)
        skipped = [f"{each.place}: {each.rule}: {each.reason}" for each in ruleset.skipped]
        files, count = list(ruleset.files), len(ruleset.rules)
        report["rules"] = {
            "file": settings.rules,
            "files": files,
            "rules": count,
            "problems": [],
            "skipped": skipped,
        }
    except ConfigError as error:
        report["rules"] = {"file": settings.rules, "rules": 0, "problems": str(error).split("\n")}
        code = EXIT_CONFIG
    outputs = output_problems(settings)
    report["outputs"] = outputs
    if outputs:
        code = EXIT_CONFIG
    if options.json:
        print_json(report)
    else:
        print(_render(report))
    return code


def output_problems(settings: Settings) -> list[str]:
    """What keeps outputs from being made: a secret, a certificate or a format that cannot be used.

    A file or secret that this user may not read is no problem: root reads it when the appliance starts.
    """
    problems = []
    for output in settings.outputs:
        try:
            make_route(output)
            if os.geteuid() == 0:
                make_output(output, secrets_of(output, Path(settings.env_file)))
        except ConfigError as error:
            problems.append(mask(str(error)))
    return problems


def _render(report: dict[str, object]) -> str:
    lines = ["settings  good"]
    outputs = report["outputs"]
    assert isinstance(outputs, list)
    lines += [paint("output    ", "red") + plain(problem) for problem in outputs]
    catalog = report["catalog"]
    assert isinstance(catalog, list)
    lines += [paint("probe     ", "red") + plain(problem) for problem in catalog]
    probes = report.get("probes")
    if isinstance(probes, str):
        lines.append(f"probes    {probes}")
    for probe in probes if isinstance(probes, list) else []:
        lines.append(f"probe     {probe['name']}: {probe['state']} {plain(probe['reason'])}".rstrip())
    rules = report["rules"]
    assert isinstance(rules, dict)
    if rules["problems"]:
        lines += [plain(problem) for problem in rules["problems"]]
        lines.append(paint(f"rules     {len(rules['problems'])} problems in {rules['file']}", "red"))
    else:
        lines += [f"skipped   {plain(skipped)}" for skipped in rules["skipped"]]
        more = f" and {len(rules['files']) - 1} files of rules.d" if len(rules["files"]) > 1 else ""
        lines.append(f"rules     {rules['rules']} good, their tests pass ({rules['file']}{more})")
    return "\n".join(lines)
