"""``kwsiem blocks``: the block list, and what the guard would say."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from kwsiem.cli.common import Subparsers, add_json, command, control_socket, paint, plain, print_json, table
from kwsiem.cli.progress import Progress
from kwsiem.control import ask
from kwsiem.errors import EXIT_CHECK_FAILED, EXIT_GOOD, ConfigError, KwsiemError
from kwsiem.rules.duration import parse_duration

_PAGE: Final = 500
#: So many entries fit into one request of the control socket.
_IMPORT_ENTRIES: Final = 20


def add(commands: Subparsers) -> None:
    """Add the command and its verbs."""
    parser = command(
        commands,
        "blocks",
        "show and change the block list",
        [
            "sudo kwsiem blocks",
            "sudo kwsiem blocks explain 198.51.100.7",
            "sudo kwsiem blocks arm --confirm-within 5m",
        ],
        execute=list_,
    )
    _common(parser)
    verbs = parser.add_subparsers(metavar="VERB")
    _verb(verbs, "list", "list what is blocked", ["sudo kwsiem blocks list --json"], list_)
    adding = _verb(
        verbs, "add", "block an address or a network; the guard has the last word",
        ["sudo kwsiem blocks add 198.51.100.7 --for 1h"], add_,
    )  # fmt: skip
    adding.add_argument("networks", nargs="+", metavar="IP", help="address or network")
    adding.add_argument("--for", dest="for_", default="1h", metavar="T", help="how long (default 1h)")
    adding.add_argument("--reason", default="by hand", help="for the audit log")
    removing = _verb(verbs, "remove", "end a block now", ["sudo kwsiem blocks remove 198.51.100.7"], remove)
    removing.add_argument("networks", nargs="+", metavar="IP", help="address or network as it is listed")
    explaining = _verb(
        verbs, "explain", "say what the guard would do about an address, and why (exit 1: it refuses)",
        ["sudo kwsiem blocks explain 192.0.2.1"], explain,
    )  # fmt: skip
    explaining.add_argument("network", metavar="IP", help="address or network")
    _verb(
        verbs,
        "export",
        "print the block list as JSON lines",
        ["sudo kwsiem blocks export > blocks.jsonl"],
        export,
    )
    importing = _verb(
        verbs, "import", "block what a file of JSON lines lists (network, for_s or left_s, reason)",
        ["sudo kwsiem blocks import blocks.jsonl"], import_,
    )  # fmt: skip
    importing.add_argument(
        "file", type=argparse.FileType("r", encoding="utf-8"), help="file, - for standard input"
    )
    arming = _verb(
        verbs, "arm", "switch blocking on for a trial: without 'confirm' in time all is undone",
        ["sudo kwsiem blocks arm --confirm-within 5m", "sudo kwsiem blocks confirm"], arm,
    )  # fmt: skip
    arming.add_argument(
        "--confirm-within", default="5m", metavar="T", help="how long the trial lasts (default 5m)"
    )
    arming.add_argument(
        "--no-allow-list", action="store_true", help="arm although blocking.allow in the settings is empty"
    )
    _verb(verbs, "confirm", "keep blocking on after a trial", ["sudo kwsiem blocks confirm"], confirm)
    _verb(verbs, "disarm", "back to dry-run, everything released", ["sudo kwsiem blocks disarm"], disarm)


def _verb(
    verbs: Subparsers, name: str, summary: str, examples: list[str], execute: Any
) -> argparse.ArgumentParser:
    parser = command(verbs, name, summary, examples, execute=execute)
    _common(parser)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="F", help="settings file of the running appliance")
    parser.add_argument("--runtime", metavar="DIR", help="its runtime folder (default /run/kwsiem)")
    add_json(parser)


def _ask(options: argparse.Namespace, **request: Any) -> dict[str, Any]:
    """The answer of the running appliance; raises KwsiemError when it says an error."""
    answer = ask(control_socket(options), {"command": "blocks", **request})
    if "error" in answer:
        raise KwsiemError(str(answer["error"]))
    return answer


def _pages(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    after = ""
    while True:
        answer = _ask(options, verb="list", after=after, limit=_PAGE)
        yield answer
        if len(answer["blocks"]) < _PAGE:
            return
        after = answer["blocks"][-1]["network"]


def list_(options: argparse.Namespace) -> int:
    """All that is blocked, or would be in a dry run."""
    pages = list(_pages(options))
    blocks = [block for page in pages for block in page["blocks"]]
    if options.json:
        print_json({"mode": pages[0]["mode"], "blocks": blocks})
        return EXIT_GOOD
    print(f"blocking is {paint(pages[0]['mode'], 'bold')}, {len(blocks)} blocks")
    if blocks:
        heads = ["NETWORK", "LEFT", "MODE", "OFFENCES", "BY", "WHY"]
        rows = [
            [
                b["network"],
                _span(b["left_s"]),
                b["mode"],
                str(b["offences"]),
                b["rule"] or b["origin"],
                b["reason"],
            ]
            for b in blocks
        ]
        print(table([heads, *([plain(cell) for cell in row] for row in rows)]))
    return EXIT_GOOD


def add_(options: argparse.Namespace) -> int:
    """Block by hand."""
    for_s = _seconds(options.for_, "--for")
    entries = [{"network": n, "for_s": for_s, "reason": options.reason} for n in options.networks]
    return _added(options, _send(options, entries))


def import_(options: argparse.Namespace) -> int:
    """Block what a file lists."""
    entries = []
    with options.file as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                entries.append(_entry(f"{file.name}:{number}", line))
    return _added(options, _send(options, entries))


def _entry(where: str, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None
    for_s = found.get("left_s", found.get("for_s")) if isinstance(found, dict) else None
    if not isinstance(for_s, int) or not isinstance(found.get("network"), str):
        raise ConfigError(
            f"{where}: expected an object with network and for_s or left_s, got {line.strip()[:80]!r}"
        )
    return {"network": found["network"], "for_s": for_s, "reason": str(found.get("reason", "imported"))[:80]}


def _send(options: argparse.Namespace, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Bring entries to the appliance in portions, with progress on a terminal."""
    results: list[dict[str, Any]] = []
    with Progress("blocking", len(entries), "addresses", wanted=not options.json) as bar:
        for first in range(0, len(entries), _IMPORT_ENTRIES):
            answer = _ask(options, verb="add", entries=entries[first : first + _IMPORT_ENTRIES])
            results += answer["results"]
            bar.at(len(results))
    return results


def _added(options: argparse.Namespace, results: list[dict[str, Any]]) -> int:
    refused = [result for result in results if not result["blocked"]]
    if options.json:
        print_json(results)
    elif len(results) > 50:
        print(f"{len(results) - len(refused)} blocked, {len(refused)} refused")
    else:
        for result in results:
            if result["blocked"]:
                word = "blocked" if result["mode"] == "on" else "would be blocked (dry-run)"
                print(f"{plain(result['network'])}: {paint(word, 'green')} for {_span(result['for_s'])}")
    if not options.json:
        for result in refused[:50]:
            print(f"{plain(result['network'])}: {paint('refused', 'red')}: {plain(result['reason'])}")
    return EXIT_CHECK_FAILED if refused else EXIT_GOOD


def remove(options: argparse.Namespace) -> int:
    """End blocks."""
    failed = False
    for network in options.networks:
        try:
            answer = _ask(options, verb="remove", network=network)
            print(f"{plain(answer['removed'])}: removed, {_span(answer['left_s'])} before its time")
        except KwsiemError as error:
            failed = True
            print(f"{plain(network)}: {paint('not removed', 'red')}: {plain(str(error))}")
    return EXIT_CHECK_FAILED if failed else EXIT_GOOD


def explain(options: argparse.Namespace) -> int:
    """What the guard says about an address."""
    answer = _ask(options, verb="explain", network=options.network)
    if options.json:
        print_json(answer)
    else:
        print(f"{plain(answer['network'])} (blocking is {answer['mode']})")
        for grade, words in (("proven", "a handshake or an authentication"), ("spoofable", "lone packets")):
            verdict = answer[grade]
            said = (
                paint("allowed", "green")
                if verdict["allowed"]
                else (
                    paint("refused", "red")
                    + f" by rule '{plain(verdict['rule'])}': {plain(verdict['detail'])}"
                )
            )
            print(f"  on {grade} evidence ({words}): {said}")
        print(f"  blocked now: {plain(answer['blocked_by'] or 'no')}, before: {answer['offences']} times")
    return EXIT_GOOD if answer["proven"]["allowed"] else EXIT_CHECK_FAILED


def export(options: argparse.Namespace) -> int:
    """The block list as JSON lines, for ``import``."""
    for page in _pages(options):
        for block in page["blocks"]:
            print(json.dumps(block))
    return EXIT_GOOD


def arm(options: argparse.Namespace) -> int:
    """Begin a trial."""
    within_s = _seconds(options.confirm_within, "--confirm-within")
    _ask(options, verb="arm", confirm_within_s=within_s, without_allow_list=options.no_allow_list)
    print(
        f"blocking is on for {_span(within_s)}. Open a new session to this host; when that works:\n"
        "  kwsiem blocks confirm\nOtherwise everything is undone by itself."
    )
    return EXIT_GOOD


def confirm(options: argparse.Namespace) -> int:
    """End the trial well."""
    _ask(options, verb="confirm")
    print("blocking stays on, also after a restart")
    return EXIT_GOOD


def disarm(options: argparse.Namespace) -> int:
    """Back to dry-run."""
    answer = _ask(options, verb="disarm")
    print(f"blocking is {answer['mode']}, {answer['released']} blocks released")
    return EXIT_GOOD


def _seconds(text: str, option: str) -> int:
    try:
        return max(1, parse_duration(text) // 1_000_000_000)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None


def _span(seconds: int) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (seconds >= size and seconds % size == 0):
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
