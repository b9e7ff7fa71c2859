"""Plays rows against a running appliance and judges each by the alerts that came."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from appliance import RunningAppliance
from lab import Lab

from scoreboard.cases import FLOOD_S, Place, Row
from scoreboard.field import Field, Site
from scoreboard.usage import Share, Usage
from scoreboard.watch import AlertTail, Arrival, FirstPacket, LossTail

#: After a row's last packet an alert may take this long.
PATIENCE_S = 8.0
#: After a flood: the engine reads what is waiting, the next one begins in quiet.
SETTLE_S = 2.0
TOGETHER = 4
#: Kinds of events about the appliance itself: rules on them are no alarms about the network.
OWN_KINDS = ("sensor.", "probe.", "output.", "rule.", "rules.", "block.", "outbox.", "chat.", "firewall.")


@dataclass
class Result:
    """What came of one row."""

    row: Row
    site: Site
    began_ns: int = 0
    first_ns: int = 0
    ended_ns: int = 0
    tool_s: float = 0.0
    packets: int = 0
    error: str = ""
    cpu: dict[str, float] = field(default_factory=dict)
    #: Rule that found it -> seconds from the first packet, in the order of coming.
    found: dict[str, float] = field(default_factory=dict)
    #: Rules that should have said nothing, with the source they named.
    false: list[str] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)
    #: Rules that spoke of it until now.
    heard: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        family, site = self.row.family, self.site
        more = {*site.more_sources(family)}
        #: Addresses that an alert of this row may name as its source; and all that belong to it.
        self.sources = {site.target(family)} if self.row.outbound else {site.source(family), *more}
        self.addresses = {site.source(family), site.target(family), *more, *site.more_targets(family)}

    @property
    def hits(self) -> dict[str, float]:
        return {rule: s for rule, s in self.found.items() if rule in self.row.expect}

    @property
    def good(self) -> bool:
        return bool(self.hits) and not self.false and not self.error


def own_rules(text: str) -> set[str]:
    """Rules of a rule file that are about the appliance itself."""
    found = set()
    for rule in yaml.safe_load(text)["rules"]:
        kinds = rule.get("event") or [step["event"] for step in rule.get("sequence", [])]
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if kinds and all(str(kind).startswith(OWN_KINDS) for kind in kinds):
            found.add(rule["id"])
    return found


def addresses_of(alert: dict[str, Any]) -> list[str]:
    """Every address an alert names, that of its source first."""
    parts = [alert.get(name, {}).get("ip") for name in ("source", "destination", "server")]
    parts += alert.get("related", {}).get("ip", [])
    return [str(part) for part in parts if part]


def owner(arrival: Arrival, results: Iterable[Result]) -> Result | None:
    """The row an alert belongs to: by its source, else by any address, else the flood that ran alone then."""
    named = addresses_of(arrival.alert)
    running = [result for result in results if result.began_ns]
    for address in named:
        for result in running:
            if address in result.addresses:
                return result
    for result in running:
        ended_ns = result.ended_ns or time.time_ns()
        if result.row.phase == "alone" and result.began_ns <= arrival.ts_ns <= ended_ns:
            return result
    return None


def judge(results: Sequence[Result], arrivals: Sequence[Arrival], own: set[str]) -> list[Arrival]:
    """Writes found and false alarms into the results; gives the alerts that belong to none."""
    nobodys = []
    for arrival in arrivals:
        if arrival.rule in own:
            continue
        result = owner(arrival, results)
        if result is None:
            nobodys.append(arrival)
            continue
        row = result.row
        source = arrival.alert.get("source", {}).get("ip", "")
        true = arrival.rule in row.expect | row.also and (
            row.forged or not source or source in result.sources
        )
        if true:
            result.found.setdefault(
                arrival.rule, (arrival.ts_ns - (result.first_ns or result.began_ns)) / 1e9
            )
        elif (said := f"{arrival.rule} ({source or 'no source'})") not in result.false:
            result.false.append(said)
    return nobodys


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Match:
    """One appliance and the rows that are played against it."""

    def __init__(
        self,
        lab: Lab,
        folder: Path,
        rows: Sequence[Row],
        appliance: RunningAppliance,
        flood_s: float = FLOOD_S,
    ) -> None:
        self.field = Field(lab, folder)
        self.appliance = appliance
        self.own = own_rules(appliance.rules.read_text())
        self.alerts = AlertTail(appliance.state / "alerts.jsonl", self._heard)
        self.losses = LossTail(appliance.recording)
        self.usage = Usage(appliance)
        self.results: list[Result] = []
        #: Alerts that belong to no row; set by :meth:`finish`.
        self.nobodys: list[Arrival] = []
        self._rows = rows
        self._flood_s = flood_s
        self._began_s = time.monotonic()

    @contextlib.contextmanager
    def open(self) -> Iterator[Match]:
        """The sites exist and the servers listen; the appliance is started after that, and followed."""
        sites: dict[str, Site] = {}
        for row in self._rows:
            if row.name not in sites:
                sites[row.name] = self.field.site(f"s{len(sites)}", row.more)
            self.results.append(Result(row, sites[row.name]))
        with self.field:
            self.field.serve(*(name for row in self._rows for name in row.needs))
            with self.appliance, self.alerts, self.losses, self.usage:
                say(
                    f"{time.monotonic() - self._began_s:6.1f} s: the appliance is ready, {len(self._rows)} rows"
                )
                yield self

    def play(self) -> None:
        """All rows: the slow ones beside the others, those that do not disturb each other a few at a time."""
        slow, together, alone = (
            [result for result in self.results if result.row.phase == phase]
            for phase in ("slow", "together", "alone")
        )
        with ThreadPoolExecutor(max(1, len(slow))) as background, ThreadPoolExecutor(TOGETHER) as pool:
            waiting = [background.submit(self._row, result) for result in slow]
            for future in [pool.submit(self._row, result) for result in together]:
                future.result()
            for result in alone:
                self._row(result)
            for future in waiting:
                future.result()

    def opened(self, result: Result) -> list[Arrival]:
        """The alerts that opened an incident of this row."""
        opened = (a for a in self.alerts.arrivals if a.alert["kwsiem"]["alert"]["state"] == "open")
        return [a for a in opened if owner(a, self.results) is result]

    def finish(self) -> None:
        """Judges everything; call it when the appliance has ended, so that all is in the files."""
        for result in self.results:
            result.found.clear()
            result.false.clear()
            if result.row.phase == "alone":
                for loss in self.losses.losses:
                    if result.began_ns <= loss.ts_ns <= result.ended_ns:
                        result.lost[loss.reason] = result.lost.get(loss.reason, 0) + loss.count
        self.nobodys = judge(self.results, self.alerts.arrivals, self.own)

    def _heard(self, arrival: Arrival) -> None:
        if arrival.rule not in self.own and (result := owner(arrival, self.results)):
            result.heard.add(arrival.rule)

    def _row(self, result: Result) -> None:
        row, site = result.row, result.site
        at, device = (site.name, site.own.device) if row.outbound else ("host", site.host.device)
        first = FirstPacket(self.field.lab, at, device, row.family)
        packets, cpu = self.field.received(site.host.device), self.usage.cpu()

        def found() -> bool:
            return bool(result.heard & row.expect)

        result.began_ns = time.time_ns()
        began_s = time.monotonic()
        try:
            row.attack(Place(self.field, site, row.family, found, self._flood_s))
        except Exception:  # noqa: BLE001 - a tool that fails is a row that failed
            result.error = traceback.format_exc(limit=-1)
        result.tool_s = time.monotonic() - began_s
        deadline_s = time.monotonic() + PATIENCE_S
        while not found() and not result.error and time.monotonic() < deadline_s:
            time.sleep(0.05)
        if row.phase == "alone":
            time.sleep(SETTLE_S)
        result.ended_ns = time.time_ns()
        result.first_ns = first.ts_ns
        first.close()
        result.packets = self.field.received(site.host.device) - packets
        after = self.usage.cpu()
        result.cpu = {name: after[name] - cpu.get(name, 0.0) for name in after}
        self._say(result)

    def _say(self, result: Result) -> None:
        word = "ERROR" if result.error else "found" if result.heard & result.row.expect else "MISSED"
        passed_s = time.monotonic() - self._began_s
        say(
            f"{passed_s:6.1f} s: {word:6} {result.row.id}: {', '.join(sorted(result.heard)) or 'nothing'} {result.error}"
        )


@dataclass
class Score:
    """One match, ended: all that the page and the verdict need."""

    results: list[Result]
    nobodys: list[Arrival]
    own: dict[str, int]
    lost: dict[str, int]
    ring_buffer: dict[str, int]
    shares: dict[str, Share]
    seconds: float
    status: dict[str, Any]

    @property
    def failures(self) -> list[str]:
        said = [
            f"{r.row.id}: {'error' if r.error else 'missed' if not r.hits else 'false alarms'} {r.error or r.false or ''}"
            for r in self.results
            if not r.good
        ]
        return said + [f"alert of no row: {a.rule} {addresses_of(a.alert)}" for a in self.nobodys]


def play(rows: Sequence[Row], folder: Path) -> Score:
    """The whole match: laboratory, servers, appliance, attacks, verdict."""
    ours = folder / "field"
    theirs = folder / "appliance"
    for path in (folder, ours, theirs):
        path.mkdir(exist_ok=True)
        path.chmod(0o755)
    with Lab("host") as lab:
        match = Match(lab, ours, rows, RunningAppliance(lab, theirs))
        with match.open():
            match.play()
            status = match.appliance.status()
            seconds = match.usage.seconds
        match.finish()
        return score_of(match, seconds, status)


def score_of(match: Match, seconds: float, status: dict[str, Any]) -> Score:
    own: dict[str, int] = {}
    for arrival in match.alerts.arrivals:
        if arrival.rule in match.own and arrival.alert["kwsiem"]["alert"]["state"] == "open":
            own[arrival.rule] = own.get(arrival.rule, 0) + 1
    lost: dict[str, int] = {}
    for loss in match.losses.losses:
        lost[loss.reason] = lost.get(loss.reason, 0) + loss.count
    lines = status.get("engine", {}).get("lines", {})
    ring = {name: counts["lost"] for name, counts in lines.items()}
    return Score(match.results, match.nobodys, own, lost, ring, match.usage.shares, seconds, status)
