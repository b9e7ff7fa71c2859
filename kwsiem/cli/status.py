"""``kwsiem status``: what each probe, rule file, process and output is doing, and since when."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kwsiem.cli.common import Subparsers, add_json, command, control_socket, paint, plain, print_json, table
from kwsiem.cli.follow import add_follow, follow
from kwsiem.control import ask
from kwsiem.errors import EXIT_CHECK_FAILED, EXIT_GOOD, ConfigError

_COLOURS = {"ready": "green", "failed": "red", "backoff": "red", "failing": "red", "unsupported": "yellow"}


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = command(
        commands,
        "status",
        "show what each probe, rule file, process and output is doing (exit 1 when something is wrong)",
        [
            "sudo kwsiem status",
            "sudo kwsiem status --json | jq .probes",
            "sudo kwsiem status net siem || mail -s 'kwsiem: look at this' root",
            "sudo kwsiem status --follow --interval 5",
        ],
        execute=execute,
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="only these probes, processes and outputs",
    )
    parser.add_argument("--config", type=Path, metavar="F", help="settings file of the running appliance")
    parser.add_argument("--runtime", metavar="DIR", help="its runtime folder (default /run/kwsiem)")
    add_follow(parser)
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """Ask the running appliance; with ``--follow`` until interrupted."""
    question = partial(ask, control_socket(options), {"command": "status"})
    if options.names:
        return _named(lambda: only(question(), options.names), options)
    if options.follow:
        return follow(question, render, options.interval, as_json=options.json)
    status = question()
    if options.json:
        print_json(status)
    else:
        print(render(status))
    return EXIT_CHECK_FAILED if faults(status) else EXIT_GOOD


def _named(question: Callable[[], dict[str, Any]], options: argparse.Namespace) -> int:
    """The same of what was named alone."""
    if options.follow:
        return follow(question, _render_only, options.interval, as_json=options.json)
    found = question()
    if options.json:
        print_json(found)
    else:
        print(_render_only(found))
    rows = (row for part in ("probes", "processes") for row in found[part])
    well = all(row["state"] in ("ready", "unsupported") for row in (*rows, *found["courier"]["outputs"]))
    return EXIT_GOOD if well else EXIT_CHECK_FAILED


def only(status: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The probes, processes and outputs with these names; raises ConfigError when one is none of them."""
    found: dict[str, Any] = {
        "probes": [probe for probe in status["probes"] if probe["name"] in names],
        "processes": [process for process in status["processes"] if process["name"] in names],
        "courier": {"outputs": [o for o in status["courier"].get("outputs", []) if o["name"] in names]},
        "engine": {"lines": {n: v for n, v in status["engine"].get("lines", {}).items() if n in names}},
    }
    there = {row["name"] for row in (*found["probes"], *found["processes"], *found["courier"]["outputs"])}
    for name in names:
        if name not in there:
            raise ConfigError(f"{plain(name)}: no probe, process or output has this name")
    return found


def _render_only(found: dict[str, Any]) -> str:
    parts = (
        (found["probes"], _probe_section),
        (found["processes"], _process_section),
        (found["courier"]["outputs"], _output_section),
    )
    return "\n\n".join(section(found) for rows, section in parts if rows)


def faults(status: dict[str, Any]) -> list[str]:
    """What is not as it should be, in words; a probe that this kernel cannot run is no fault."""
    found = [
        f"probe {probe['name']} is {probe['state']}: {probe['reason']}".removesuffix(": ")
        for probe in status["probes"]
        if probe["state"] not in ("ready", "unsupported")
    ]
    found += status["probe_problems"]
    if status["rules"]["stale"]:
        found.append(f"rules are stale: {status['rules']['problems'][0]}")
    found += [
        f"{process['name']} is {process['state']}"
        for process in status["processes"]
        if process["state"] != "ready"
    ]
    found += [
        f"output {output['name']} is failing: {output.get('last_error', '')}"
        for output in status["courier"].get("outputs", [])
        if output.get("state") == "failing"
    ]
    found += [
        f"ChatOps of output {chat['name']} is failing: {chat['last_error']}"
        for chat in status["courier"].get("chats", [])
        if chat["state"] == "failing"
    ]
    if why := status.get("metrics", {}).get("error"):
        found.append(f"metrics are not served: {why}")
    if why := status["courier"].get("series", {}).get("error"):
        found.append(f"the history of figures is not written: {why}")
    if why := status.get("engine", {}).get("event_log", {}).get("failed"):
        found.append(f"the event log is not written: {why}")
    blocking = status.get("blocking", {})
    if blocking.get("wanted") == "on" and blocking.get("mode") != "on":
        why = blocking["firewall_error"] or "not armed yet: kwsiem blocks arm"
        found.append(f"blocking is a dry run: {why}")
    elif blocking.get("firewall_error"):
        found.append(f"the firewall fails: {blocking['firewall_error']}")
    found += [
        f"the guard cannot read {name}: {why}"
        for name, why in blocking.get("guard", {}).get("degraded", {}).items()
    ]
    return found


def _blocking(blocking: dict[str, Any]) -> list[str]:
    """One line: the mode, how many, and what became of requests."""
    if not blocking:
        return []
    trial = f", trial ends in {blocking['confirm_in_s']} s" if blocking["confirm_in_s"] is not None else ""
    counts = _counts(blocking["counters"])
    return [f"blocking {blocking['mode']}{trial}, {blocking['blocks']} blocks; requests: {counts}"]


def _history(status: dict[str, Any]) -> list[str]:
    """One line each: the history of figures, and the event log when there is one."""
    series, event_log = status["courier"].get("series"), status["engine"].get("event_log", {})
    lines = []
    if series:
        lost = {f"lost ({reason})": count for reason, count in series["lost"].items()}
        unsent = status["engine"].get("series_lost", 0)
        counts = lost | ({"lost (unsent)": unsent} if unsent else {})
        counts |= {"begun anew": series["damaged"]} if series["damaged"] else {}
        more = f"; {_counts(counts)}" if counts else ", nothing lost"
        lines.append(f"figures  {series['bytes'] / 2**20:.1f} MiB{more}")
    if event_log.get("on"):
        lines.append(f"events   {event_log['rotated']} files complete, {event_log['lost']} lines lost")
    return lines


def render(status: dict[str, Any]) -> str:
    """The status for people."""
    rules = status["rules"]
    parts = [
        paint(f"kwsiem {status['version']}", "bold")
        + f" on {plain(status['host'])}, pid {status['pid']}, since {status['since']},"
        + f" bpftrace {status['bpftrace']}",
        "",
        _probe_section(status),
        "",
        _process_section(status),
        "",
        f"rules    {rules['rules']} from {plain(rules['file'])}, loaded {rules['loaded']}, "
        + (paint(f"STALE since {rules['stale_since']}", "red") if rules["stale"] else "current"),
        *(f"         {plain(problem)}" for problem in rules["problems"]),
        *_more_rules(rules),
        f"alerts   {_counts(status['engine'].get('alerts', {}))}",
        *_blocking(status.get("blocking", {})),
        *_history(status),
        *(
            f"muted    {plain(rule)} in chats until {until}"
            for rule, until in status["courier"].get("mutes", {}).items()
        ),
        "",
        _output_section(status),
    ]
    wrong = faults(status)
    parts += ["", *(paint("! ", "red") + plain(text) for text in wrong)] if wrong else []
    return "\n".join(parts)


def _more_rules(rules: dict[str, Any]) -> list[str]:
    """Hashes when they differ, files of rules.d, Sigma rules that cannot be evaluated here."""
    lines = []
    if rules["stale"]:
        on_disk = rules["disk_sha256"][:16] or "not readable"
        lines.append(f"         running {rules['loaded_sha256'][:16]}, on disk {on_disk}")
    if len(rules["files"]) > 1:
        lines.append(f"         and {len(rules['files']) - 1} files of rules.d")
    if rules["skipped"]:
        lines.append(
            f"         {rules['skipped']} Sigma rules cannot be evaluated here: kwsiem rules show says why"
        )
    return lines


def _probe_section(status: dict[str, Any]) -> str:
    heads = ("PROBE", "STATE", "SINCE", "RESTARTS", "LINES", "REJECTED", "LOST", "WHY")
    return _section(*heads, rows=_probes(status))


def _process_section(status: dict[str, Any]) -> str:
    return _section("PROCESS", "STATE", "SINCE", "RESTARTS", "PID", "", rows=_processes(status))


def _output_section(status: dict[str, Any]) -> str:
    heads = ("OUTPUT", "STATE", "WAITING", "DELIVERED", "DEAD", "DROPPED", "FILTERED", "LABEL")
    return _section(*heads, rows=_outputs(status))


def _section(*heads: str, rows: list[list[str]]) -> str:
    lines = table([list(heads), *([plain(cell) for cell in row] for row in rows)]).split("\n")
    return "\n".join([paint(lines[0], "dim"), *lines[1:]])


def _probes(status: dict[str, Any]) -> list[list[str]]:
    lines = status["engine"].get("lines", {})
    rows = []
    for probe in status["probes"]:
        counts = lines.get(probe["name"], {})
        rejected = counts.get("rejected", {})
        why = plain(probe["reason"])
        if rejected:
            why += " rejected: " + _counts(rejected)
        rows.append(
            [
                probe["name"],
                probe["state"],
                _age(probe["since_s"]),
                str(probe["restarts"]),
                str(counts.get("received", 0)),
                str(sum(rejected.values())),
                str(counts.get("lost", 0)),
                why.strip(),
            ]
        )
    return rows


def _processes(status: dict[str, Any]) -> list[list[str]]:
    return [
        [p["name"], p["state"], _age(p["since_s"]), str(p["restarts"]), str(p["pid"] or "-"), ""]
        for p in status["processes"]
    ]


def _outputs(status: dict[str, Any]) -> list[list[str]]:
    keys = ("waiting", "delivered", "dead", "dropped", "filtered")
    return [
        [o["name"], o.get("state", "?"), *(str(o.get(key, 0)) for key in keys), o.get("label", "")]
        for o in status["courier"].get("outputs", [])
    ]


def _counts(counts: dict[str, Any]) -> str:
    return ", ".join(f"{value} {name}" for name, value in counts.items()) or "none yet"


def _age(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
