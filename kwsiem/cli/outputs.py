"""``kwsiem outputs``: the configured destinations, and a marked test alert to one of them."""

from __future__ import annotations

import argparse
import sqlite3
import sys
from pathlib import Path
from typing import Any

import msgspec

from kwsiem import clock, rights
from kwsiem.alert import LEVELS, Alert
from kwsiem.cli.common import (
    Subparsers,
    add_json,
    add_settings,
    command,
    paint,
    plain,
    print_json,
    settings_of,
    table,
)
from kwsiem.config import Settings
from kwsiem.control import ask
from kwsiem.delivery import make_output, make_route
from kwsiem.document import document
from kwsiem.errors import (
    EXIT_CHECK_FAILED,
    EXIT_GOOD,
    ConfigError,
    KwsiemError,
    UnavailableError,
)
from kwsiem.outbox import Letter, read_dead
from kwsiem.output_settings import OutputSettings, format_of, type_of
from kwsiem.outputs.base import Output, Rendered
from kwsiem.secret import mask, masked, secrets_of

TEST_RULE = "kwsiem-test"


def add(commands: Subparsers) -> None:
    """Add the command and its two verbs."""
    parser = command(
        commands,
        "outputs",
        "list the outputs, or send a test alert to one",
        [
            "sudo kwsiem outputs list",
            "sudo kwsiem outputs test siem",
            "sudo kwsiem outputs test --all --level low",
        ],
        execute=list_,
    )
    add_settings(parser)
    add_json(parser)
    verbs = parser.add_subparsers(metavar="VERB")
    shown = command(
        verbs,
        "list",
        "list the configured outputs and what they are doing",
        ["kwsiem outputs list --json"],
        execute=list_,
    )
    add_settings(shown)
    add_json(shown)
    tried = command(
        verbs,
        "test",
        "send a marked test alert and show the answer (exit 1 when an output did not take it)",
        ["sudo kwsiem outputs test telegram", "sudo kwsiem outputs test --all --level low"],
        execute=test,
    )
    add_settings(tried)
    add_json(tried)
    tried.add_argument("names", nargs="*", metavar="NAME", help="outputs, by their names in the settings")
    tried.add_argument("--all", action="store_true", help="every configured output")
    tried.add_argument(
        "--level", choices=tuple(LEVELS), default="high", help="level of the alert (default high)"
    )
    _add_dead(verbs)


def _add_dead(verbs: Subparsers) -> None:
    refused = command(
        verbs,
        "dead",
        "list what an output refused for good, and why",
        ["sudo kwsiem outputs dead siem"],
        execute=dead,
    )
    refused.add_argument("--limit", type=int, default=50, metavar="N", help="the latest N (default 50)")
    again = command(
        verbs,
        "retry",
        "let the dead letters of an output be tried once more",
        ["sudo kwsiem outputs retry siem"],
        execute=retry,
    )
    for parser in (refused, again):
        add_settings(parser)
        add_json(parser)
        parser.add_argument("--runtime", metavar="DIR", help="runtime folder of the running appliance")
        parser.add_argument("name", metavar="NAME", help="the output")


def dead(options: argparse.Namespace) -> int:
    """What an output refused for good, newest first; read without root, for others write that file."""
    settings = settings_of(options)
    _known(settings, options.name)
    rights.drop(settings.user)
    letters = _letters(Path(settings.state_dir) / "kwsiem.db", options.name, options.limit)
    if options.json:
        print_json([{"id": one.id, "at": clock.iso(one.at_ns), "reason": one.reason} for one in letters])
    elif letters:
        rows = [[clock.iso(one.at_ns), one.id, plain(one.reason)] for one in letters]
        print(table([["REFUSED", "ALERT", "WHY"], *rows]))
    else:
        print(f"{plain(options.name)}: no dead letters")
    return EXIT_GOOD


def _letters(path: Path, name: str, limit: int) -> list[Letter]:
    try:
        return read_dead(path, name, limit)
    except sqlite3.Error as error:
        raise UnavailableError(f"{path}: cannot be read: {error}") from None


def retry(options: argparse.Namespace) -> int:
    """Let the dead letters of an output wait once more."""
    settings = settings_of(options)
    _known(settings, options.name)
    answer = ask(settings.control_socket, {"command": "retry_dead", "output": options.name})
    if "error" in answer:
        raise KwsiemError(str(answer["error"]))
    print(f"{plain(options.name)}: its dead letters are tried again; see kwsiem stats")
    return EXIT_GOOD


def _known(settings: Settings, name: str) -> None:
    names = [output.name for output in settings.outputs]
    if name not in names:
        raise ConfigError(f"no output {name!r}; configured: {', '.join(names)}")


def list_(options: argparse.Namespace) -> int:
    """Show the settings of the outputs, and their state when the appliance runs."""
    settings = settings_of(options)
    states = _states(settings)
    rows = [_described(output, states.get(output.name, {})) for output in settings.outputs]
    if options.json:
        print_json(rows)
        return EXIT_GOOD
    heads = ("NAME", "TYPE", "FORMAT", "LEVEL", "WHERE", "STATE")
    keys = ("name", "type", "format", "level", "where", "state")
    print(table([heads, *([plain(str(row[key])) for key in keys] for row in rows)]))
    return EXIT_GOOD


def _states(settings: Settings) -> dict[str, dict[str, Any]]:
    try:
        status = ask(settings.control_socket, {"command": "status"})
    except (UnavailableError, OSError):
        return {}
    return {output["name"]: output for output in status["courier"].get("outputs", [])}


def _described(settings: OutputSettings, state: dict[str, Any]) -> dict[str, Any]:
    found = masked(msgspec.to_builtins(settings))
    return {
        **found,
        "format": format_of(settings) or type_of(settings),
        "where": _where(found),
        "state": state.get("state", "not running"),
        "last_error": state.get("last_error", ""),
    }


def _where(found: dict[str, Any]) -> str:
    """The destination in one word or two, as far as the settings say it."""
    if found.get("url"):
        return str(found["url"])
    if found.get("brokers"):
        return ",".join(found["brokers"]) + "/" + str(found["topic"])
    if found.get("path") or found.get("transport") == "unix":
        return str(found.get("path") or "/dev/log")
    if found.get("host"):
        transport = f" ({found['transport']})" if found.get("transport") else ""
        return f"{found['host']}:{found['port'] or 'default port'}{transport}"
    return "-"


def test(options: argparse.Namespace) -> int:
    """Send one alert to each chosen output, as the user of the courier, past filters and outbox."""
    settings = settings_of(options)
    chosen = _chosen(settings, options)
    made = [(output, *_made(output, settings)) for output in chosen]
    rights.drop(settings.user)
    source = msgspec.json.encode(document(test_alert(settings.host, options.level)))
    results = [_tried(output, thing, error, source) for output, thing, error in made]
    if options.json:
        print_json(results)
    else:
        for result in results:
            _show(result)
    return EXIT_GOOD if all(result["taken"] for result in results) else EXIT_CHECK_FAILED


def test_alert(host: str, level: str) -> Alert:
    """An alert that says of itself that it is a test."""
    now_ns = clock.wall_ns()
    return Alert(
        rule_id=TEST_RULE,
        title="Test alert of kwsiem",
        level=level,
        state="open",
        identity={"host.name": host},
        count=1,
        first_ns=now_ns,
        last_ns=now_ns,
        raised_ns=now_ns,
        opened_ts_ns=now_ns,
        reason="sent by 'kwsiem outputs test': nothing has happened",
        tags=["kwsiem.test"],
        host=host,
    )


def _chosen(settings: Settings, options: argparse.Namespace) -> list[OutputSettings]:
    known = {output.name: output for output in settings.outputs}
    if not options.names and not options.all:
        raise ConfigError(f"name an output, or --all; configured: {', '.join(known)}")
    for name in options.names:
        if name not in known:
            raise ConfigError(f"no output {name!r}; configured: {', '.join(known)}")
    return list(settings.outputs) if options.all else [known[name] for name in options.names]


def _made(output: OutputSettings, settings: Settings) -> tuple[Output | None, str]:
    """The output, made while we are still root; or why it cannot be made."""
    try:
        return make_output(output, secrets_of(output, Path(settings.env_file))), ""
    except ConfigError as error:
        return None, mask(str(error))


def _tried(settings: OutputSettings, output: Output | None, error: str, source: bytes) -> dict[str, Any]:
    result: dict[str, Any] = {
        "name": settings.name,
        "type": type_of(settings),
        "taken": False,
        "error": error,
    }
    if output is None:
        return result
    began_s = clock.monotonic_s()
    try:
        sys.stdout.flush()
        route = make_route(settings)
        data = route.render(source)
        found = msgspec.json.decode(source)
        output.open()
        output.send([Rendered(found["event"]["id"], found["event"]["severity"], data, source)])
        result |= {"taken": True, "bytes": len(data), "id": found["event"]["id"], "label": output.label}
    except KwsiemError as failure:
        result["error"] = mask(str(failure))
    except Exception as failure:  # noqa: BLE001 - the edge of the stage, as in the worker: the others go on
        result["error"] = mask(f"{type(failure).__name__}: {failure}")
    finally:
        output.close()
    result["answer"] = mask(output.answer)
    result["took_ms"] = round((clock.monotonic_s() - began_s) * 1000, 1)
    return result


def _show(result: dict[str, Any]) -> None:
    if not result["taken"]:
        print(f"{plain(result['name'])}: {paint('FAILED', 'red')}: {plain(result['error'])}")
        return
    answer = plain(result["answer"]) or "no answer: this way of sending has none"
    label = result["label"].removeprefix("sent, ")
    print(
        f"{plain(result['name'])}: {paint('sent', 'green')}, {label}, {result['bytes']} bytes"
        f" in {result['took_ms']} ms, id {result['id']}\n  answer: {answer}"
    )
