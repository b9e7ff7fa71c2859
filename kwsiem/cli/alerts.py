"""``kwsiem alerts``: the history of alerts, one a line; ``show`` prints one with its evidence."""

from __future__ import annotations

import argparse
import ipaddress
import itertools
import json
import os
import select
import shutil
import sqlite3
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import msgspec

from kwsiem import apart
from kwsiem.alert import LEVELS, first_id
from kwsiem.cli.common import (
    FORMAT_NAMES,
    Subparsers,
    add_json,
    command,
    control_socket,
    moment,
    operator,
    paint,
    table,
)
from kwsiem.clock import NS_PER_MS, NS_PER_S, iso, monotonic_s
from kwsiem.config import Settings, load_settings
from kwsiem.control import ask
from kwsiem.errors import EXIT_GOOD, KwsiemError, UnavailableError
from kwsiem.outbox.history import PAGE, Endpoint, Entry, History, Summary, Wanted
from kwsiem.series import FILE_NAME, Acknowledged, Series
from kwsiem.text import ELLIPSIS, harmless

#: How often ``--follow`` looks.
_LOOK_MS: Final = 250
#: For so long ``--follow`` waits for a file that cannot be read, as while a damaged one is replaced.
_PATIENCE_S: Final = 10.0
#: Characters of an id that a line shows: its random end, which tells alerts apart.
_SHORT_ID: Final = 8
#: Alerts that are printed together, once it is known who acknowledged them.
_AT_ONCE: Final = 20
_MAX_LIMIT: Final = 10_000_000
_MAX_TEXT: Final = 512
#: On a narrower terminal columns are not padded.
_WIDE: Final = 140
_COLOURS: Final = {"critical": "red", "high": "red", "medium": "yellow", "informational": "dim"}

#: Prints an alert, and who acknowledged its incident (empty: nobody).
Write = Callable[[Entry, str], None]


def add(commands: Subparsers) -> None:
    """Add the command and its verb."""
    parser = command(
        commands,
        "alerts",
        "list the alerts of the history, newest first",
        [
            "sudo kwsiem alerts --since 2h --level high",
            "sudo kwsiem alerts --rule 'ssh-*' --source 198.51.100.0/24 --json",
            "sudo kwsiem alerts --follow",
            "sudo kwsiem alerts show K3J9Q2XA",
            "sudo kwsiem alerts acknowledge K3J9Q2XA",
        ],
        execute=list_,
    )
    _common(parser)
    parser.add_argument(
        "--limit", type=_limit, default=20, metavar="N", help="how many at most (default 20; 0: all)"
    )
    parser.add_argument(
        "--since", type=moment, metavar="T", help="raised since: 30m, 2h, 7d ago, or 2026-01-31[T12:00[Z]]"
    )
    parser.add_argument("--until", type=moment, metavar="T", help="raised before that")
    parser.add_argument("--rule", metavar="ID", help="id of the rule, or a pattern such as 'ssh-*'")
    parser.add_argument("--source", type=_network, metavar="IP", help="address or network of the source")
    parser.add_argument("--level", choices=tuple(LEVELS), help="least level")
    parser.add_argument("--state", choices=("open", "update", "close"), help="messages of this state alone")
    parser.add_argument("--follow", action="store_true", help="oldest first, then each new alert as it comes")
    form = parser.add_mutually_exclusive_group()
    add_json(form)
    form.add_argument("--format", choices=FORMAT_NAMES, help="print each alert as an output would")
    verbs = parser.add_subparsers(metavar="VERB")
    show = command(
        verbs,
        "show",
        "print one alert with its evidence",
        ["sudo kwsiem alerts show K3J9Q2XA"],
        execute=show_,
    )
    show.add_argument("id", metavar="ID", help="id of the alert, or how it ends, as the list shows it")
    _common(show)
    add_json(show)
    acknowledge = command(
        verbs,
        "acknowledge",
        "write down that you know of the incident of an alert",
        ["sudo kwsiem alerts acknowledge K3J9Q2XA"],
        execute=acknowledge_,
    )
    acknowledge.add_argument("id", metavar="ID", help="id of the alert, or how it ends, as the list shows it")
    _common(acknowledge)
    acknowledge.add_argument("--runtime", metavar="DIR", help="its runtime folder (default /run/kwsiem)")
    add_json(acknowledge)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="F", help="settings file of the appliance")
    parser.add_argument("--state-dir", metavar="DIR", help="its state folder (default /var/lib/kwsiem)")


def list_(options: argparse.Namespace) -> int:
    """Print what is wanted; with ``--follow`` until interrupted."""
    wanted = _wanted(options)
    write = _writer(options)
    history, series = _history(options)
    try:
        if options.follow:
            _follow(history, series, wanted, options.limit, write)
        elif options.json:
            _print_array(history.newest(wanted, options.limit))
        else:
            entries = history.newest(wanted, options.limit)
            while some := list(itertools.islice(entries, _AT_ONCE)):
                _write_all(some, series, write)
    except sqlite3.Error as error:
        raise UnavailableError(f"the history cannot be read: {error}") from None
    if history.damaged:
        print(f"kwsiem alerts: {history.damaged} damaged alerts left out", file=sys.stderr)
    return EXIT_GOOD


def show_(options: argparse.Namespace) -> int:
    """Print one alert."""
    history, series = _history(options)
    try:
        found = history.find(options.id.upper(), 2)
        known = _acknowledged(series, found)
    except sqlite3.Error as error:
        raise UnavailableError(f"the history cannot be read: {error}") from None
    if not found:
        raise KwsiemError(f"no alert {options.id!r} in the history")
    if len(found) > 1:
        ids = " and ".join(_safe(entry.summary.event.id) for entry in found)
        raise KwsiemError(f"{options.id!r} is not enough to tell {ids} apart")
    document = msgspec.json.decode(found[0].document)
    said = known.get(found[0].summary.kwsiem.alert.incident_id)
    if said:
        document["kwsiem"]["alert"]["acknowledged"] = {"by": said.who, "at": iso(said.at_ns)}
    print(_indented(document) if options.json else render(document))
    return EXIT_GOOD


def acknowledge_(options: argparse.Namespace) -> int:
    """Have the appliance write down who acknowledges the incident of an alert.

    A child without rights reads the history, as for ``show``; only who is root may ask the appliance.
    """
    settings = load_settings(options.config)
    socket = control_socket(options, settings)
    where = ["--config", str(options.config)] if options.config else []
    where += ["--state-dir", options.state_dir] if options.state_dir else []
    shown = subprocess.run(
        [sys.executable, "-I", "-m", "kwsiem", "alerts", "show", "--json", *where, "--", options.id],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if shown.returncode:
        return shown.returncode  # it has said why
    own = msgspec.json.decode(shown.stdout).get("kwsiem", {}).get("alert", {})
    incident = str(own.get("incident_id", ""))
    before = own.get("acknowledged")
    before = before if isinstance(before, dict) else None
    if not before:
        answer = ask(socket, {"command": "acknowledge", "incident_id": incident, "who": operator()})
        if "error" in answer:
            raise KwsiemError(f"not acknowledged: {_safe(answer['error'])}")
    if options.json:
        print(_compact(msgspec.json.encode({"acknowledged": incident, "before": before})))
    elif before:
        print(f"{_safe(incident)} was acknowledged already, by {_safe(before.get('by'))}")
    else:
        print(f"{_safe(incident)} acknowledged")
    return EXIT_GOOD


# options ----------------------------------------------------------------------------------------------


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > _MAX_LIMIT:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to {_MAX_LIMIT}, got {text!r}")
    return int(text)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an address or a network, got {text!r}") from None


def _wanted(options: argparse.Namespace) -> Wanted:
    tests: list[Callable[[Summary], bool]] = []
    if options.rule:
        tests.append(lambda summary: fnmatchcase(summary.rule.id, options.rule))
    if options.state:
        tests.append(lambda summary: summary.kwsiem.alert.state == options.state)
    if options.source:
        tests.append(lambda summary: _is_in(summary.source.ip, options.source))
    return Wanted(
        since=first_id(options.since) if options.since is not None else "",
        # A bound within a millisecond takes that millisecond along.
        until=first_id(options.until + NS_PER_MS - 1) if options.until is not None else "",
        least_severity=LEVELS.get(options.level, 0),
        accepts=(lambda summary: all(test(summary) for test in tests)) if tests else None,
    )


def _is_in(text: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if network.version == 4 and isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address in network


def _history(options: argparse.Namespace) -> tuple[History, Series]:
    """The history and who acknowledged what, once all rights are given up.

    Another user writes these files, and hostile text is in them.
    """
    settings: Settings = load_settings(options.config)
    path = Path(options.state_dir or settings.state_dir) / "kwsiem.db"
    apart.drop_here(settings.user)
    try:
        path.stat()
    except PermissionError:
        raise UnavailableError(f"{path}: this user may not read it; run it with sudo") from None
    except OSError:
        raise UnavailableError(f"{path}: no such file; has the appliance run on this host?") from None
    if not os.access(path, os.R_OK):
        raise UnavailableError(f"{path}: this user may not read it; run it with sudo")
    return History(path), Series(path.with_name(FILE_NAME))


def _acknowledged(series: Series, entries: Sequence[Entry]) -> dict[str, Acknowledged]:
    """Who acknowledged the incidents of these alerts; nobody when that cannot be read."""
    try:
        return series.acknowledged({entry.summary.kwsiem.alert.incident_id for entry in entries})
    except sqlite3.Error as error:
        print(f"kwsiem alerts: who acknowledged cannot be read: {_safe(error)}", file=sys.stderr)
        return {}


def _write_all(entries: Sequence[Entry], series: Series, write: Write) -> None:
    known = _acknowledged(series, entries)
    for entry in entries:
        said = known.get(entry.summary.kwsiem.alert.incident_id)
        write(entry, said.who if said else "")


# printing ---------------------------------------------------------------------------------------------


def _writer(options: argparse.Namespace) -> Write:
    """What prints one alert; all that it needs is imported now, while everything may be read."""
    if options.json:
        return lambda entry, _: print(_compact(entry.document), flush=options.follow)
    if options.format:
        render_format = import_module("kwsiem.formats").FORMATS[options.format]
        return lambda entry, _: print(
            render_format(msgspec.json.decode(entry.document)), flush=options.follow
        )
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    return lambda entry, who: print(line(entry.summary, width, who), flush=options.follow)


def _print_array(entries: Iterator[Entry]) -> None:
    """A JSON array, one alert a line, written as it is read."""
    before = "[\n"
    for entry in entries:
        print(before + _compact(entry.document), end="")
        before = ",\n"
    print("[]" if before == "[\n" else "\n]")


def _compact(document: bytes) -> str:
    return json.dumps(msgspec.json.decode(document), ensure_ascii=True, separators=(",", ":"))


def _indented(document: Mapping[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=True, indent=2)


def _follow(history: History, series: Series, wanted: Wanted, limit: int, write: Write) -> None:
    """The latest alerts, oldest first, then each that comes; ends when the reader has gone."""
    seq = history.head()
    # What came in between is shown by the loop below.
    before = [entry for entry in history.newest(wanted, limit or PAGE) if entry.seq <= seq]
    _write_all(before[::-1], series, write)
    reader = select.poll()
    reader.register(sys.stdout.fileno(), 0)
    read_s = monotonic_s()
    while not reader.poll(_LOOK_MS):
        try:
            seq = _new(history, series, seq, wanted, write)
            read_s = monotonic_s()
        except sqlite3.Error:
            if monotonic_s() - read_s > _PATIENCE_S:
                raise


def _new(history: History, series: Series, seq: int, wanted: Wanted, write: Write) -> int:
    """Write what came behind a number; gives the number of the newest alert."""
    while True:
        entries, last = history.behind(seq, wanted)
        _write_all(entries, series, write)
        if last == seq:
            return seq
        seq = last


def line(summary: Summary, width: int = 0, who: str = "") -> str:
    """One alert on one line: time, end of the id, level, rule, ends, state, count, reason.

    Before the reason stands who acknowledged its incident.

    Nothing in it can end the line or move a terminal's cursor. ``width`` cuts it to so many columns
    (0: not at all).
    """
    own = summary.kwsiem.alert
    ends = [end for end in (_end(summary.source), _end(summary.destination)) if end]
    before = f"{_local(summary.time)}  {_safe(summary.event.id)[-_SHORT_ID:]}  "
    level = _safe(own.level).upper()
    rule, between, count = (0, 0, 0) if 0 < width < _WIDE else (28, 32, 6)
    after = (
        f"{'':{max(0, 8 - len(level))}}  {_safe(summary.rule.id):<{rule}}  {' → '.join(ends):<{between}}  "
        f"{_safe(own.state):<6}  {own.count:>{count}}  "
        f"{f'[ack {_safe(who)}] ' if who else ''}{_safe(summary.event.reason)}"
    )
    if width and width < len(before) + len(level):
        return cut_columns(before, width)
    if width:
        after = cut_columns(after.rstrip(), width - len(before) - len(level))
    colour = _COLOURS.get(own.level)
    return (before + (paint(level, colour) if colour else level) + after).rstrip()


def _end(end: Endpoint) -> str:
    address = _safe(end.ip or end.address)
    if not end.port or not address:
        return address
    return f"[{address}]:{end.port}" if ":" in address else f"{address}:{end.port}"


def cut_columns(text: str, columns: int) -> str:
    """The beginning of a text that takes at most so many columns of a terminal, with an ellipsis when cut."""
    if len(text) <= columns and text.isascii():
        return text
    used = 0
    fits = 0
    for index, character in enumerate(text):
        used += _columns(character)
        if used > columns:
            return text[:fits] + ELLIPSIS if columns > 0 else ""
        if used < columns:
            fits = index + 1
    return text


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _safe(value: Any) -> str:
    return harmless(str(value), _MAX_TEXT)


def _local(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def render(document: Mapping[str, Any]) -> str:
    """One alert for people: what it says, then its evidence, one event a block."""
    own = document.get("kwsiem", {}).get("alert", {})
    event, rule = document.get("event", {}), document.get("rule", {})
    summary = msgspec.convert(document, Summary, strict=False)
    rows = {
        "raised": _local(summary.time),
        "level": own.get("level"),
        "rule": f"{rule.get('id')} ({rule.get('name')})",
        "reason": event.get("reason"),
        "source": _end(summary.source),
        "destination": _end(summary.destination),
        "user": document.get("user", {}).get("name"),
        "host": document.get("host", {}).get("name"),
        "state": own.get("state"),
        "acknowledged": _acknowledged_text(own.get("acknowledged")),
        "count": own.get("count"),
        "first event": _local_text(event.get("start")),
        "last event": _local_text(event.get("end")),
        "grouped by": _pairs(own.get("identity", {})),
        "values": ", ".join(map(_safe, own.get("values", []))),
        "block": _pairs(own.get("block", {})),
        "tags": ", ".join(map(_safe, document.get("tags", []))),
        "about": rule.get("description"),
        "false alarms": "; ".join(map(_safe, own.get("falsepositives", []))),
        "id": event.get("id"),
        "incident": own.get("incident_id"),
    }
    lines = [table([[name, _safe(value)] for name, value in rows.items() if value not in (None, "")])]
    return "\n".join([*lines, *_evidence(own.get("evidence", []))])


def _acknowledged_text(said: Any) -> str:
    return f"by {said.get('by')}, {_local_text(said.get('at'))}" if isinstance(said, dict) else ""


def _evidence(events: list[Mapping[str, Any]]) -> list[str]:
    """Each event with its distance from the first one, and its fields."""
    lines = ["", "evidence"] if events else []
    first_ns = next((event["ts_ns"] for event in events if type(event.get("ts_ns")) is int), 0)
    for number, event in enumerate(events, 1):
        ts_ns = event.get("ts_ns")
        distance_s = (ts_ns - first_ns) / NS_PER_S if type(ts_ns) is int else 0.0
        words = (
            f"{number}. {_safe(event.get('kind', ''))}  +{distance_s:.3f} s  {_safe(event.get('grade', ''))}"
        )
        rows = [[f"   {_safe(k)}", _safe(v)] for k, v in event.items() if k not in ("kind", "ts_ns", "grade")]
        lines += [paint(words.rstrip(), "bold"), *([table(rows)] if rows else [])]
    return lines


def _pairs(values: Mapping[str, Any]) -> str:
    return "  ".join(f"{_safe(name)}={_safe(value)}" for name, value in values.items())


def _local_text(text: Any) -> str:
    try:
        return _local(msgspec.convert(text, datetime))  # strptime would import a module, without our rights
    except msgspec.ValidationError:
        return _safe(text or "")
