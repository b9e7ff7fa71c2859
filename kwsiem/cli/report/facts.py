"""All that a report says, gathered from the history, the figures and the running appliance's answer."""

from __future__ import annotations

import ipaddress
import os
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar, Union

import msgspec

from kwsiem import __version__
from kwsiem.alert import first_id, raised_ns_of
from kwsiem.cli.progress import Progress
from kwsiem.cli.report.tally import Incident, Rule, Source, Tally, safe
from kwsiem.clock import NS_PER_MS, NS_PER_S, wall_ns
from kwsiem.database import open_to_read
from kwsiem.errors import UnavailableError
from kwsiem.metrics import FATES
from kwsiem.outbox import read_ledger
from kwsiem.outbox.history import History, Wanted
from kwsiem.series import OTHER, Journal, Series

#: Rows of each table of a report.
MAX_RULES: Final = 40
MAX_SOURCES: Final = 25
MAX_INCIDENTS: Final = 20
MAX_PORTS: Final = 15
MAX_PROTOCOLS: Final = 8
MAX_OTHERS: Final = 50
MAX_BLOCK_LINES: Final = 25
#: Entries of our own journal that are looked at, the newest ones.
_MAX_JOURNAL: Final = 10_000
_MAX_BARS: Final = 180
#: Figures are told so often (``history.every_s`` as shipped), and a second more.
_TOLD_S: Final = 11.0
_DAY_S: Final = 86_400
_STEPS_S: Final = (
    60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, _DAY_S, 2 * _DAY_S, 7 * _DAY_S,
)  # fmt: skip
T = TypeVar("T")

_BLOCKS: Final = "block.decision"
_STATES: Final = ("sensor.probe", "output.state", "outbox.state", "rules.reload", "block.firewall")
#: What became of an address, the word of the journal and ours.
_FATES: Final = {
    "blocked": "blocked",
    "would_block": "would be blocked (dry-run)",
    "refused": "refused",
    "released": "released",
    "ended": "block ended",
}
_BLOCK_FIELDS: Final = ("source.address", "event.action", "event.reason", "rule.id")
_SUBJECTS: Final = ("probe.name", "output.name", "file.path")
_NEW_STATES: Final = ("probe.state", "output.state", "outbox.state", "event.action", "event.outcome")
_KIND_WORDS: Final = {
    "sensor.probe": "probe",
    "output.state": "output",
    "rules.reload": "rules",
    "outbox.state": "",
    "block.firewall": "",
}
#: What a reason of a loss means, and for whole stages.
_WHY: Final = {
    "ring_buffer": "bpftrace could not keep up",
    "budget": "held back by the probe: too much in one second",
    "map_full": "beyond the size of a table in the kernel",
    "failed_batches": "events that could not be evaluated",
    "unacknowledged": "alerts that never came to disk",
    "unsent_blocks": "requests to block that did not arrive",
    "figures": "of this history of figures itself",
    "rejected": "alerts that could not be stored",
    "size": "alerts: the outbox was full",
    "age": "alerts: older than the output wants",
    "corrupt": "alerts: damaged on disk",
    "not_configured": "alerts that waited for an output that has gone",
}
_STAGES_WHY: Final = {"decode": "lines of a probe that are no events"}


class Span(NamedTuple):
    """What a report is about, in nanoseconds of wall time, and the width of a bar in seconds."""

    since_ns: int
    until_ns: int
    step_s: int

    @property
    def seconds(self) -> float:
        """How long it is."""
        return (self.until_ns - self.since_ns) / NS_PER_S


class Blocks(msgspec.Struct):
    """What the journal says about blocks: how many of each fate, why some were refused, the latest."""

    counts: dict[str, int] = {}
    refused: dict[str, int] = {}
    latest: list[tuple[int, str, str, str, str]] = []
    cut: bool = False


class Running(msgspec.Struct):
    """How long something ran: seconds, and its part of each step (None: no figure)."""

    name: str
    up_s: int
    steps: list[Union[float, None]] = []


class Output(msgspec.Struct):
    """The account of an output."""

    name: str
    state: str
    label: str
    raised: int
    fates: dict[str, int]
    balanced: bool


class Lost(msgspec.Struct):
    """What was lost at a stage, and why."""

    stage: str
    reason: str
    count: int
    why: str


class Report(msgspec.Struct):
    """All of it; times are wall time in nanoseconds. ``not_read`` says what could not be read, and why."""

    title: str
    host: str
    version: str
    made_ns: int
    since_ns: int
    until_ns: int
    step_s: int
    running: bool
    history_since_ns: int = 0
    alerts: int = 0
    opened: int = 0
    damaged: int = 0
    levels: dict[str, int] = {}
    before: Union[dict[str, int], None] = None
    timeline: dict[str, list[int]] = {}
    rules: list[Rule] = []
    more_rules: int = 0
    sources: list[Source] = []
    more_sources: int = 0
    incidents: list[Incident] = []
    blocks: Blocks = msgspec.field(default_factory=Blocks)
    blocked_now: Union[int, None] = None
    packets: dict[str, list[int]] = {}
    ports: list[tuple[str, int]] = []
    figures_since_ns: int = 0
    probes: list[Running] = []
    changes: list[tuple[int, str, str]] = []
    outputs: list[Output] = []
    lost: list[Lost] = []
    problems: list[str] = []
    not_read: list[str] = []


def span_of(since_ns: int, until_ns: int) -> Span:
    """The span with its steps: at most 180, the first one at a whole step of local time at or before."""
    length_s = max(1, (until_ns - since_ns) // NS_PER_S)
    step_s = next((step for step in _STEPS_S if length_s <= step * _MAX_BARS), 0)
    step_s = step_s or -(-length_s // (_MAX_BARS * _DAY_S)) * _DAY_S
    since_s = since_ns // NS_PER_S
    offset = datetime.fromtimestamp(since_s).astimezone().utcoffset()
    offset_s = int(offset.total_seconds()) if offset else 0
    return Span((since_s - (since_s + offset_s) % step_s) * NS_PER_S, until_ns, step_s)


def gather(
    state: Path,
    host: str,
    title: str,
    span: Span,
    live: Mapping[str, Any],
    faults: list[str],
    *,
    progress: bool,
) -> Report:
    """The report; ``live`` is what the running appliance answers (``status``, ``blocked``), empty if not.

    Raises UnavailableError when there is no history, or it cannot be read; what else cannot be read is
    said in the report.
    """
    status = live.get("status", {})
    report = Report(
        title=safe(title),
        host=safe(host),
        version=__version__,
        made_ns=wall_ns(),
        since_ns=span.since_ns,
        until_ns=span.until_ns,
        step_s=span.step_s,
        running=bool(status),
        problems=[safe(fault) for fault in faults],
    )
    tally = _count(state / "kwsiem.db", span, report, progress)
    _take_over(report, tally)
    journal = _figures(Series(state / "series.db"), span, report)
    _blocks(report, journal, live.get("blocked"))
    _outputs(report, state / "kwsiem.db", status)
    return report


# alerts -----------------------------------------------------------------------------------------------


def _count(path: Path, span: Span, report: Report, progress: bool) -> Tally:
    """One pass over the alerts of the span, and of as long a span before it."""
    _check(path)
    tally = Tally(span.since_ns, span.until_ns, span.step_s * NS_PER_S)
    first = first_id(2 * span.since_ns - span.until_ns)
    wanted = Wanted(since=first, until=first_id(span.until_ns + NS_PER_MS - 1))
    history = History(path)
    try:
        oldest, total = _extent(path, wanted)
        with Progress("reading alerts", total, "alerts", wanted=progress) as bar:
            for number, entry in enumerate(history.newest(wanted, 0)):
                tally.take(entry)
                if not number % 256:
                    bar.at(number)
    except sqlite3.Error as error:
        raise UnavailableError(f"the history cannot be read: {error}") from None
    report.history_since_ns = raised_ns_of(oldest) if oldest else 0
    report.damaged = history.damaged + tally.unreadable
    if oldest and oldest < first:
        report.before = tally.before
    return tally


def _check(path: Path) -> None:
    try:
        path.stat()
    except PermissionError:
        raise UnavailableError(f"{path}: this user may not read it; run it with sudo") from None
    except OSError:
        raise UnavailableError(f"{path}: no such file; has the appliance run on this host?") from None
    if not os.access(path, os.R_OK):
        raise UnavailableError(f"{path}: this user may not read it; run it with sudo")


def _extent(path: Path, wanted: Wanted) -> tuple[str, int]:
    """The oldest id there is, and how many alerts are wanted."""
    with closing(open_to_read(path)) as db:
        (oldest,) = db.execute("SELECT min(id) FROM alerts").fetchone()
        (total,) = db.execute(
            "SELECT count(*) FROM alerts WHERE id >= ? AND id < ?", (wanted.since, wanted.until)
        ).fetchone()
    return oldest if isinstance(oldest, str) else "", total


def _take_over(report: Report, tally: Tally) -> None:
    report.alerts, report.opened = tally.alerts, tally.opened
    report.levels, report.timeline = tally.levels, tally.timeline
    report.rules = tally.rules.first(MAX_RULES)
    report.more_rules = len(tally.rules) + tally.rules.left_out - len(report.rules)
    report.sources = tally.sources.first(MAX_SOURCES)
    report.more_sources = len(tally.sources) + tally.sources.left_out - len(report.sources)
    report.incidents = tally.incidents(MAX_INCIDENTS)


# figures ----------------------------------------------------------------------------------------------


def _figures(series: Series, span: Span, report: Report) -> list[Journal]:
    """What the series say; gives the journal of the span, newest first."""
    since_s, until_s = span.since_ns // NS_PER_S, -(-span.until_ns // NS_PER_S)

    def read(what: str, look: Callable[[], T]) -> T | None:
        try:
            return look()
        except (sqlite3.Error, OSError) as error:
            report.not_read.append(f"{what}: {safe(error)}")
            return None

    packets = read("packets", lambda: series.steps("packets", since_s, until_s, span.step_s))
    report.packets = _most(packets or {}, MAX_PROTOCOLS)
    ports = read("ports", lambda: series.totals("ports", since_s, until_s, MAX_PORTS)) or []
    ports.sort(key=lambda port: port[0] == OTHER)  # what is all the rest stands last
    report.ports = [(safe(label), count) for label, count in ports]
    lost = read("losses", lambda: series.totals("lost", since_s, until_s, MAX_OTHERS))
    report.lost = [_lost(label, count) for label, count in lost or [] if count]
    ran = read("probes", lambda: series.steps("probe_up_s", since_s, until_s, span.step_s))
    _probes(report, ran or {}, span)
    names = {incident.id for incident in report.incidents}
    seen = read("acknowledgements", lambda: series.acknowledged(names)) or {}
    for incident in report.incidents:
        incident.acknowledged = safe(seen[incident.id].who) if incident.id in seen else ""
    kinds = (_BLOCKS, *_STATES)
    journal = read("the journal", lambda: series.journal(span.since_ns, span.until_ns, kinds, _MAX_JOURNAL))
    report.changes = [_change(entry) for entry in journal or [] if entry.kind != _BLOCKS][:MAX_OTHERS]
    return journal or []


def _most(steps: Mapping[str, list[int]], limit: int) -> dict[str, list[int]]:
    """The labels with the largest sums, the rest added up as ``other``."""
    names = sorted(steps, key=lambda name: (name != OTHER, sum(steps[name])), reverse=True)
    found = {safe(name): list(steps[name]) for name in names[:limit] if sum(steps[name])}
    for name in names[limit:]:
        before = found.get(OTHER, [0] * len(steps[name]))
        found[OTHER] = [a + b for a, b in zip(before, steps[name], strict=True)]
    return found


def _lost(label: str, count: int) -> Lost:
    stage, _, reason = label.partition(":")
    return Lost(safe(stage), safe(reason), count, _WHY.get(reason) or _STAGES_WHY.get(stage, ""))


def _probes(report: Report, ran: Mapping[str, list[int]], span: Span) -> None:
    """How much of each step each probe ran; before the first figure of all nothing is known."""
    sums = [sum(values) for values in zip(*ran.values(), strict=True)]
    first = next((index for index, value in enumerate(sums) if value), None)
    if first is None:
        return
    report.figures_since_ns = span.since_ns + first * span.step_s * NS_PER_S
    for name, values in list(ran.items())[:MAX_OTHERS]:
        parts = [
            None if index < first else _part(value, _length_s(span, index))
            for index, value in enumerate(values)
        ]
        report.probes.append(Running(safe(name), sum(values), list(parts)))


def _part(up_s: int, length_s: float) -> float | None:
    """The part of a step; what is told only in the next minute is not missing."""
    if not up_s and length_s <= _TOLD_S:
        return None
    return 1.0 if up_s >= length_s - _TOLD_S else up_s / length_s


def _length_s(span: Span, index: int) -> float:
    """Seconds of a step; the last one may be short."""
    left_s = span.seconds - index * span.step_s
    return max(1.0, min(float(span.step_s), left_s))


def _change(entry: Journal) -> tuple[int, str, str]:
    """When, what, and in words; the fields are those of our own events."""
    fields = entry.fields
    subject = next((fields[name] for name in _SUBJECTS if fields.get(name)), entry.kind)
    state = next((fields[name] for name in _NEW_STATES if fields.get(name)), "")
    why = fields.get("event.reason") or fields.get("error.message") or ""
    return (
        entry.at_ns,
        safe(f"{_KIND_WORDS.get(entry.kind, '')} {subject}".strip()),
        safe(f"{state}: {why}" if why else state),
    )


# blocks -----------------------------------------------------------------------------------------------


def _blocks(report: Report, journal: list[Journal], blocked_now: list[str] | None) -> None:
    """Counts and the latest lines; and what became of each top source."""
    blocks = report.blocks
    fates: dict[str, str] = {}
    for entry in (entry for entry in journal if entry.kind == _BLOCKS):
        address, action, reason, rule = (safe(entry.fields.get(name, "")) for name in _BLOCK_FIELDS)
        blocks.counts[action] = blocks.counts.get(action, 0) + 1
        if action == "refused":
            blocks.refused[reason] = blocks.refused.get(reason, 0) + 1
        if len(blocks.latest) < MAX_BLOCK_LINES:
            blocks.latest.append((entry.at_ns, address, _FATES.get(action, action), reason, rule))
        if action != "ended" and address not in fates:  # newest first
            fates[address] = f"refused: {reason}" if action == "refused" else _FATES.get(action, action)
    blocks.cut = len(journal) >= _MAX_JOURNAL
    report.blocked_now = None if blocked_now is None else len(blocked_now)
    for source in report.sources:
        source.blocked = fates.get(source.address, "")
        if blocked_now is not None and source.blocked == _FATES["blocked"]:
            source.blocked = "was blocked"
        if blocked_now is not None and _is_in(source.address, blocked_now):
            source.blocked = "blocked now"


def _is_in(address: str, networks: list[str]) -> bool:
    """Whether one of these networks holds an address; a network may be an address alone."""
    if address in networks:
        return True
    try:
        single = ipaddress.ip_address(address)
        return any(single in ipaddress.ip_network(each, strict=False) for each in networks if "/" in each)
    except ValueError:
        return False


# outputs ----------------------------------------------------------------------------------------------


def _outputs(report: Report, path: Path, status: Mapping[str, Any]) -> None:
    """The accounts as the appliance tells them, or as they lie on disk."""
    if status:
        for account in status.get("courier", {}).get("outputs", [])[:MAX_OTHERS]:
            fates = {fate: _whole(account.get(fate)) for fate in FATES}
            report.outputs.append(
                Output(
                    safe(account.get("name", "")),
                    safe(account.get("state", "")),
                    safe(account.get("label", "")),
                    _whole(account.get("raised")),
                    fates,
                    bool(account.get("balanced")),
                )
            )
        return
    try:
        accounts = read_ledger(path)
    except sqlite3.Error as error:
        report.not_read.append(f"the accounts of the outputs: {safe(error)}")
        return
    for name, ledger in list(accounts.items())[:MAX_OTHERS]:
        fates = {fate: _whole(getattr(ledger, fate)) for fate in FATES}
        report.outputs.append(Output(safe(name), "", "", ledger.raised, fates, ledger.balanced))


def _whole(value: Any) -> int:
    return value if type(value) is int else 0
