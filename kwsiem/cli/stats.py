"""``kwsiem stats``: the ledger, from lines read to alerts delivered, and whether it balances.

With ``--since`` the history of figures.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from kwsiem import metrics, rights
from kwsiem.cli.common import (
    Subparsers,
    add_json,
    command,
    control_socket,
    moment,
    paint,
    plain,
    print_json,
    table,
)
from kwsiem.cli.figures import add_figures, figures_of
from kwsiem.cli.figures import render as render_figures
from kwsiem.cli.follow import add_follow, follow
from kwsiem.clock import wall_ns
from kwsiem.config import Settings, load_settings
from kwsiem.control import ask
from kwsiem.errors import EXIT_CHECK_FAILED, EXIT_GOOD, EXIT_USAGE, UnavailableError
from kwsiem.outbox import read_ledger
from kwsiem.rule_figures import RuleCounts


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = command(
        commands,
        "stats",
        "show the ledger: what became of every line and of every alert (exit 1 when it does not balance)",
        [
            "sudo kwsiem stats",
            "sudo kwsiem stats --json | jq .outputs",
            "sudo kwsiem stats --since 1h",
            "sudo kwsiem stats --since 24h --name packets",
            "sudo kwsiem stats --follow --interval 5",
            "sudo kwsiem stats --metrics > /var/lib/node_exporter/kwsiem.prom",
        ],
        execute=execute,
    )
    parser.add_argument("--config", type=Path, metavar="F", help="settings file of the running appliance")
    parser.add_argument("--runtime", metavar="DIR", help="its runtime folder (default /run/kwsiem)")
    parser.add_argument("--state-dir", metavar="DIR", help="its state folder (default /var/lib/kwsiem)")
    parser.add_argument(
        "--since", type=moment, metavar="T", help="the figures from: 1h, 7d ago, or 2026-01-31[T12:00[Z]]"
    )
    parser.add_argument("--until", type=moment, metavar="T", help="up to (default now)")
    add_figures(parser)
    add_follow(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--metrics", action="store_true", help="print Prometheus metrics")
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """Ask the running appliance; with ``--since`` the history of figures."""
    if options.since is None and (options.until is not None or options.name):
        return _usage("--until and --name need --since")
    if options.metrics and (options.since is not None or options.follow):
        return _usage("--metrics prints the page of now")
    if options.since is not None:
        return _figures(options)
    settings = load_settings(options.config)
    socket = control_socket(options, settings)
    if options.metrics:
        return _print_metrics(ask(socket, {"command": "metrics"}))
    if options.follow:
        return follow(
            lambda: ledger(ask(socket, {"command": "status"})),
            render,
            options.interval,
            as_json=options.json,
        )
    try:
        status = ask(socket, {"command": "status"})
    except UnavailableError as error:
        if options.runtime:
            raise
        status = on_disk(settings, error)
    found = ledger(status)
    if options.json:
        print_json(found)
    else:
        print(render(found))
    return EXIT_GOOD if found["balanced"] else EXIT_CHECK_FAILED


def _usage(text: str) -> int:
    print(f"kwsiem stats: {text}", file=sys.stderr)
    return EXIT_USAGE


def _figures(options: argparse.Namespace) -> int:
    """The figures of a span, once or again and again."""
    if options.since >= (options.until if options.until is not None else wall_ns()):
        return _usage("--since must be before --until")
    found = figures_of(options)
    if options.follow:
        return follow(found.read, render_figures, options.interval, as_json=options.json)
    answer = found.read()
    if options.json:
        print_json(answer)
    else:
        print(render_figures(answer))
    return EXIT_GOOD


def _print_metrics(answer: Mapping[str, Any]) -> int:
    """The page of the metrics endpoint; 1 when the ledger of lines, alerts or an output does not balance."""
    figures = answer.get("figures", {})
    rules = msgspec.convert(answer.get("rules", {}), dict[str, RuleCounts])
    page, _ = metrics.render(figures, rules)
    print(page.decode("utf-8"), end="")
    status = {part: figures.get(part, {}) for part in ("engine", "courier")}
    return EXIT_GOOD if ledger(status)["balanced"] else EXIT_CHECK_FAILED


def on_disk(settings: Settings, error: UnavailableError) -> dict[str, Any]:
    """The accounts of the outbox, as far as this user may read it; raises ``error`` when there is none.

    Root gives up its rights before: another user writes that file.
    """
    path = Path(settings.state_dir) / "kwsiem.db"
    try:
        rights.drop(settings.user)
        accounts = read_ledger(path)
    except (OSError, sqlite3.Error):
        raise error from None
    if not accounts:
        raise error
    print("kwsiem is not running; this is what its outbox on disk says", file=sys.stderr)
    outputs = [
        {"name": name, **msgspec.to_builtins(account), "balanced": account.balanced}
        for name, account in accounts.items()
    ]
    return {"engine": {}, "courier": {"outputs": outputs}}


def ledger(status: Mapping[str, Any]) -> dict[str, Any]:
    """The accounts of lines, of alerts on their way to disk, and of each output.

    Lines: received = accepted + rejected. Alerts: raised = on disk + on their way + dropped. Outputs:
    raised = delivered + waiting + dead + dropped + filtered.
    """
    lines = [_line_account(name, counts) for name, counts in status["engine"].get("lines", {}).items()]
    alerts = dict(status["engine"].get("alerts", {}))
    outputs = status["courier"].get("outputs", [])
    alerts["balanced"] = alerts.get("raised", 0) == (
        alerts.get("acknowledged", 0) + alerts.get("waiting", 0) + alerts.get("dropped", 0)
    )
    return {
        "outbox": status["courier"].get("outbox", {}),
        "lines": lines,
        "alerts": alerts,
        "outputs": outputs,
        "balanced": all(account["balanced"] for account in (*lines, alerts, *outputs)),
    }


def _line_account(name: str, counts: Mapping[str, Any]) -> dict[str, Any]:
    rejected = sum(counts.get("rejected", {}).values())
    return {
        "probe": name,
        "received": counts.get("received", 0),
        "accepted": counts.get("accepted", 0),
        "rejected": rejected,
        "lost": counts.get("lost", 0),
        "balanced": counts.get("received", 0) == counts.get("accepted", 0) + rejected,
    }


def render(found: Mapping[str, Any]) -> str:
    """The ledger for people."""
    lines = [["PROBE", "RECEIVED", "ACCEPTED", "REJECTED", "LOST IN THE KERNEL", ""]]
    for account in found["lines"]:
        keys = ("received", "accepted", "rejected", "lost")
        lines.append([account["probe"], *(str(account[key]) for key in keys), _verdict(account)])
    outputs = [["OUTPUT", "RAISED", *(fate.upper() for fate in metrics.FATES), "LABEL", ""]]
    for account in found["outputs"]:
        numbers = [str(account.get(key, 0)) for key in ("raised", *metrics.FATES)]
        why = ", ".join(f"{count} dropped: {reason}" for reason, count in account.get("reasons", {}).items())
        last = " ".join(part for part in (why, _verdict(account)) if part)
        outputs.append([plain(account["name"]), *numbers, account.get("label", ""), last])
    alerts = found["alerts"]
    words = ", ".join(f"{value} {name}" for name, value in alerts.items() if name != "balanced")
    verdict = paint("balanced", "green") if found["balanced"] else paint("NOT BALANCED", "red")
    return "\n".join(
        [
            table(lines),
            "",
            f"alerts   {words or 'none yet'} {_verdict(alerts)}",
            "",
            table(outputs),
            "",
            verdict,
        ]
    )


def _verdict(account: Mapping[str, Any]) -> str:
    return "" if account["balanced"] else paint("does not balance", "red")
