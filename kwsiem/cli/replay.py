"""``kwsiem replay``: recorded events through the engine; alerts, one a line, on standard output.

With ``--diff`` through two rule files, and what the second one would change.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from kwsiem import clock
from kwsiem.alert import Alert
from kwsiem.cli.common import (
    FORMAT_NAMES,
    Subparsers,
    add_json,
    add_settings,
    catalog_of,
    command,
    paint,
    plain,
    print_json,
    settings_of,
    table,
)
from kwsiem.cli.progress import Progress
from kwsiem.cli.ruleset import rules_of
from kwsiem.compare import Difference, Opened
from kwsiem.config import Settings
from kwsiem.document import document
from kwsiem.errors import EXIT_CHECK_FAILED, EXIT_GOOD, ConfigError, UnavailableError
from kwsiem.formats import FORMATS
from kwsiem.messages import ProbeKinds
from kwsiem.replay import Comparison, Replay
from kwsiem.rules.duration import format_duration
from kwsiem.rules.model import RuleSet
from kwsiem.sensor.catalog import Catalog

#: Incidents that are listed for people, of each kind of difference; ``--json`` has all.
MAX_LISTED: Final = 20


def add(commands: Subparsers) -> None:
    """Add the command."""
    parser = command(
        commands,
        "replay",
        "send recorded events through the rules and print the alerts",
        [
            "kwsiem replay scan.jsonl",
            "kwsiem replay --rules new-rules.yaml --format cef monday.jsonl.gz tuesday.jsonl.gz",
            "kwsiem replay --diff new-rules.yaml monday.jsonl.gz",
            "bpftrace -f json probes/net.bt 4026531840 | kwsiem replay --probe net -",
        ],
        execute=execute,
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="recordings, or event objects; - is standard input"
    )
    parser.add_argument(
        "--format", choices=FORMAT_NAMES, default="text", help="how to print alerts (default text)"
    )
    parser.add_argument(
        "--diff",
        metavar="OTHER",
        help="print which incidents the rule file OTHER would add, remove and change; exit 1 when it does",
    )
    parser.add_argument("--probe", metavar="NAME", help="whose lines bare bpftrace lines are")
    add_settings(parser)
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """Replay the files in the order given; exit 1 when lines had to be rejected, or rules differ."""
    settings = settings_of(options)
    catalog = catalog_of(settings)
    if options.diff:
        return _compare(options, settings, catalog)
    render = FORMATS["json" if options.json else options.format]

    bar = _bar(options)

    def emit(alert: Alert) -> None:
        bar.clear()  # both may be the same terminal
        print(render(document(alert)))

    replay = Replay(
        rules_of(settings, catalog),
        catalog.kinds(),
        emit,
        host=settings.host,
        probe=_probe(options.probe, catalog),
    )
    with bar:
        _feed_all(options.files, replay, bar)
        replay.finish()
    _say_summary(replay)
    return EXIT_CHECK_FAILED if replay.rejected else EXIT_GOOD


def _compare(options: argparse.Namespace, settings: Settings, catalog: Catalog) -> int:
    """The same events through both rule files; exit 1 when the incidents differ."""
    before, after = _both(settings, options.diff, catalog)
    comparison = Comparison(
        before, after, catalog.kinds(), host=settings.host, probe=_probe(options.probe, catalog)
    )
    with _bar(options) as bar:
        _feed_all(options.files, comparison, bar)
    found = comparison.finish()
    if options.json:
        print_json(_as_json(settings.rules, options.diff, comparison.replay, found))
    else:
        print(_as_text(found))
    _say_summary(comparison.replay)
    return EXIT_CHECK_FAILED if found else EXIT_GOOD


def _both(settings: Settings, other: str, catalog: Catalog) -> tuple[RuleSet, RuleSet]:
    """Both rule sets, each with the rules.d of the configured one; all problems are told at once."""
    rulesets: list[RuleSet] = []
    problems: list[str] = []
    for path in dict.fromkeys((settings.rules, str(Path(other).absolute()))):
        try:
            rulesets.append(rules_of(msgspec.structs.replace(settings, rules=path), catalog))
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return rulesets[0], rulesets[-1]


def _probe(name: str | None, catalog: Catalog) -> ProbeKinds | None:
    if not name:
        return None
    if name not in catalog.probes:
        raise ConfigError(f"--probe: no probe {name!r}, known: {', '.join(catalog.probes)}")
    return ProbeKinds(name, dict(catalog.probes[name].kinds))


def _say_summary(replay: Replay) -> None:
    """What was read, on standard error: standard output holds the alerts alone."""
    rejected = ", ".join(f"{count} {reason}" for reason, count in sorted(replay.rejected.items()))
    summary = f"{replay.lines} lines, {replay.events} events"
    print(f"kwsiem replay: {summary}{f', rejected: {rejected}' if rejected else ''}", file=sys.stderr)


def _as_json(before: str, after: str, replay: Replay, found: Difference) -> dict[str, Any]:
    return {
        "before": before,
        "after": after,
        "lines": replay.lines,
        "events": replay.events,
        "rejected": replay.rejected,
        "alerts": {
            "rules": {
                rule_id: {"before": counts[0], "after": counts[1], **_changes(counts)}
                for rule_id, counts in found.by_rule().items()
            },
            "added": [_entry(opened) for opened in found.added],
            "removed": [_entry(opened) for opened in found.removed],
            "changed": [{"before": _entry(old), "after": _entry(new)} for old, new in found.changed],
        },
        "blocks": {name: [_entry(opened) for opened in part] for name, part in found.blocks().items()},
    }


def _changes(counts: tuple[int, ...]) -> dict[str, int]:
    return dict(zip(("added", "removed", "changed"), counts[2:], strict=True))


def _entry(opened: Opened) -> dict[str, Any]:
    return {
        "time": clock.iso(opened.raised_ns),
        "rule": opened.rule_id,
        "level": opened.level,
        "host": opened.host,
        "identity": opened.identity,
        "reason": opened.reason,
        **({"block": opened.block} if opened.block else {}),
    }


def _as_text(found: Difference) -> str:
    counts = found.by_rule()
    if not found:
        total = sum(found.before.values())
        return f"no difference: {total} incidents of {len(counts)} rules either way"
    differing = [[rule_id, *map(str, row)] for rule_id, row in counts.items() if any(row[2:])]
    lines = [table([["RULE", "BEFORE", "AFTER", "ADDED", "REMOVED", "CHANGED"], *differing])]
    lines += _section("+", "green", [(opened, _blocks(opened)) for opened in found.added])
    lines += _section("-", "red", [(opened, _blocks(opened)) for opened in found.removed])
    lines += _section("~", "yellow", [(new, _moved(old, new)) for old, new in found.changed])
    blocks = found.blocks()
    if any(blocks.values()):
        lines += ["", f"blocks asked for: {len(blocks['added'])} added, {len(blocks['removed'])} removed"]
    if len(counts) > len(differing):
        lines += ["", f"without a difference: {len(counts) - len(differing)} rules"]
    return "\n".join(lines)


def _section(sign: str, colour: str, incidents: list[tuple[Opened, str]]) -> list[str]:
    """The first incidents of one kind of difference, one a line."""
    lines = [""] if incidents else []
    for opened, note in incidents[:MAX_LISTED]:
        identity = " ".join(f"{name}={value}" for name, value in opened.identity.items())
        words = [clock.iso(opened.raised_ns), opened.level.upper(), opened.rule_id, identity, note]
        lines.append(paint(sign, colour) + " " + plain(" ".join(word for word in words if word)))
    if len(incidents) > MAX_LISTED:
        lines.append(f"{sign} … and {len(incidents) - MAX_LISTED} more; --json lists all")
    return lines


def _blocks(opened: Opened) -> str:
    """What block an incident asks for."""
    if not opened.block:
        return ""
    return f"(asks to block {opened.block['value']} for {format_duration(opened.block['for_s'] * 10**9)})"


def _moved(old: Opened, new: Opened) -> str:
    """What changed about one incident."""
    distance_ns = new.raised_ns - old.raised_ns
    notes = []
    if distance_ns:
        notes.append(f"{format_duration(abs(distance_ns))} {'later' if distance_ns > 0 else 'earlier'}")
    if old.level != new.level:
        notes.append(f"was {old.level}")
    if old.block != new.block:
        notes.append((_blocks(new) or "(no block any more)").strip("()"))
    return f"({', '.join(notes)})"


def _bar(options: argparse.Namespace) -> Progress:
    return Progress("replaying", _bytes_of(options.files), "B", wanted=not options.json)


def _bytes_of(names: list[str]) -> int:
    """Bytes of all files as they lie on disk; 0 when one is a pipe, or not there."""
    try:
        sizes = [Path(name).stat() for name in names if name != "-"]
    except OSError:
        return 0
    regular = len(sizes) == len(names) and all(stat.S_ISREG(one.st_mode) for one in sizes)
    return sum(one.st_size for one in sizes) if regular else 0


@contextlib.contextmanager
def _open(name: str) -> Iterator[tuple[Iterable[bytes], Callable[[], int]]]:
    """The lines of a file, and what tells how many of its bytes on disk have been read."""
    if name == "-":
        yield sys.stdin.buffer, lambda: 0
        return
    try:
        file = Path(name).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UnavailableError(f"{name}: {error.strerror}") from None
    with file:
        yield (gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file), file.tell


def _feed_all(names: list[str], replay: Replay | Comparison, bar: Progress) -> None:
    read = replay.replay if isinstance(replay, Comparison) else replay
    done = 0
    for name in names:
        with _open(name) as (lines, place):
            try:
                replay.feed(_watched(lines, place, done, bar) if bar.active else lines)
            except (OSError, EOFError, msgspec.DecodeError) as error:
                raise UnavailableError(f"{name}: line {read.lines + 1}: {error}") from None
            done += place()


def _watched(lines: Iterable[bytes], place: Callable[[], int], done: int, bar: Progress) -> Iterator[bytes]:
    """The lines; the bar hears how far they have been read."""
    passed = 0
    for number, line in enumerate(lines):
        if not number % 256:
            bar.at(done + (place() or passed))
        passed += len(line)
        yield line
