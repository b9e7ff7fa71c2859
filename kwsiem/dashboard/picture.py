"""What the page shows, as plain data: made of the history, the series and what the sensor says.

Every text here may come from an attacker. It is bounded, has no control characters, and nothing in it
reorders what stands beside it; that it is text and no markup is the page's duty.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from kwsiem import clock
from kwsiem.alert import LEVELS
from kwsiem.attack import TACTICS, TECHNIQUES, threat
from kwsiem.errors import ConfigError
from kwsiem.event import EventKind
from kwsiem.outbox.history import PAGE, Endpoint, EventFacts, History, RuleFacts, Wanted
from kwsiem.rules.load import load_rules
from kwsiem.rules.source import Source
from kwsiem.series import OTHER, Acknowledged, Series
from kwsiem.text import harmless, without_reordering

#: Messages that the first view reads, and incidents that it shows of them.
MAX_MESSAGES: Final = 300
MAX_INCIDENTS: Final = 200
MAX_SOURCES: Final = 12
MAX_LABELS: Final = 6
#: A text in a list; whole it stands in the details.
MAX_SHORT: Final = 200
MAX_LONG: Final = 8192
#: Spans of the time line: how long, and how long one of its steps.
SPANS: Final = {"1h": (3600, 60), "24h": (86_400, 1800), "7d": (604_800, 10_800)}
_MAX_FACTS: Final = 200
_LEVELS: Final = tuple(LEVELS)[::-1]
#: Above any character of an id.
_END: Final = "!"


class AlertFacts(msgspec.Struct, frozen=True):
    """Our own facts of an alert that a list shows."""

    incident_id: str = ""
    state: str = ""
    level: str = ""
    count: int = 0
    identity: dict[str, Any] = {}


class OwnFacts(msgspec.Struct, frozen=True):
    """Our own part of a document."""

    alert: AlertFacts = AlertFacts()


class Listed(msgspec.Struct, frozen=True):
    """What a list shows of a document."""

    time: datetime = msgspec.field(name="@timestamp")
    rule: RuleFacts = RuleFacts()
    event: EventFacts = EventFacts()
    source: Endpoint = Endpoint()
    kwsiem: OwnFacts = OwnFacts()


_decoder: Final = msgspec.json.Decoder(Listed)


class Pictures:
    """Reads the courier's files. Nothing raises for what stands in them; a file that cannot be read does."""

    def __init__(self, state_dir: Path) -> None:
        self._history = History(state_dir / "kwsiem.db")
        self._series = Series(state_dir / "series.db")

    def newest(self) -> tuple[list[dict[str, Any]], int]:
        """The latest incidents, newest first, and the number from which :meth:`behind` goes on."""
        head = self._history.head()
        found: dict[str, dict[str, Any]] = {}
        for entry in self._history.newest(Wanted(), MAX_MESSAGES):
            row = _row(entry.document)
            if row and len(found) < MAX_INCIDENTS:
                found.setdefault(row["incident"], row)
        return list(found.values()), head

    def behind(self, seq: int) -> tuple[list[dict[str, Any]], int]:
        """What came after a number, in the order it came; at most one page of it."""
        head = self._history.head()
        entries, last = self._history.behind(max(seq, head - PAGE), Wanted())
        return [row for entry in entries if (row := _row(entry.document))], last

    def acknowledged(self, incidents: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Those of the incidents that somebody has seen."""
        wanted = [incident for incident in incidents if incident]
        return {key: _acknowledgement(value) for key, value in self._series.acknowledged(wanted).items()}

    def details(self, identifier: str) -> dict[str, Any] | None:
        """One alert with its evidence, all of it."""
        wanted = Wanted(since=identifier, until=identifier + _END)
        for entry in self._history.newest(wanted, 1):
            document = msgspec.json.decode(entry.document)
            row = _row(entry.document)
            if row is None:
                return None
            seen = self.acknowledged([row["incident"]])
            return {**row, **_details(document), "acknowledged": seen.get(row["incident"])}
        return None

    def time_line(self, span: str, now_s: int) -> dict[str, Any]:
        """Alerts by level, packets by protocol, and the top sources of one of SPANS."""
        length_s, step_s = SPANS[span]
        until_s = (now_s // step_s + 1) * step_s
        since_s = until_s - length_s
        packets = self._series.steps("packets", since_s, until_s, step_s)
        largest = sorted(packets, key=lambda label: -sum(packets[label]))[:MAX_LABELS]
        alerts = self._series.steps("alerts", since_s, until_s, step_s)
        sources = self._series.totals("sources", since_s, until_s, MAX_SOURCES + 1)
        return {
            "span": span,
            "since_s": since_s,
            "step_s": step_s,
            "steps": length_s // step_s,
            "alerts": {level: alerts[level] for level in _LEVELS if level in alerts},
            "packets": {_short(label): packets[label] for label in largest},
            "sources": [[_short(label), n] for label, n in sources if label != OTHER][:MAX_SOURCES],
        }


def _row(document: bytes) -> dict[str, Any] | None:
    try:
        found = _decoder.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    own = found.kwsiem.alert
    source = found.source.ip or found.source.address or " ".join(map(str, own.identity.values()))
    return {
        "id": _short(found.event.id),
        "incident": _short(own.incident_id or found.event.id),
        "at_ms": int(found.time.timestamp() * 1000),
        "level": own.level if own.level in LEVELS else "high",
        "title": _short(found.rule.name or found.rule.id),
        "rule": _short(found.rule.id),
        "reason": _short(found.event.reason),
        "source": _short(source),
        "count": own.count,
        "state": _short(own.state),
    }


def _details(document: Mapping[str, Any]) -> dict[str, Any]:
    """An alert as facts, its evidence as events of facts, and the document itself as JSON text."""
    own = _map(_map(document.get("kwsiem")).get("alert"))
    first = {name: document[name] for name in _FIRST if name in document}
    event = _map(document.get("event"))
    said = {f"event.{name}": event[name] for name in ("reason", "start", "end") if name in event}
    evidence = own.get("evidence", [])
    first_ns = next((e["ts_ns"] for e in evidence if type(_map(e).get("ts_ns")) is int), 0)
    return {
        "about": _long(_map(document.get("rule")).get("description", "")),
        "falsepositives": [_long(text) for text in own.get("falsepositives", [])],
        "tags": [_short(tag) for tag in document.get("tags", [])],
        "facts": _facts({**said, **first, **{k: v for k, v in own.items() if k not in _ELSEWHERE}}),
        "rest": _facts({k: v for k, v in document.items() if k != "kwsiem"}),
        "evidence": [_event(_map(event), first_ns) for event in evidence],
        "document": without_reordering(msgspec.json.format(msgspec.json.encode(document), indent=2).decode()),
    }


#: What a person looks for first; all other fields stand below the evidence.
_FIRST: Final = (
    "source", "destination", "user", "process", "file", "service", "url", "http", "dns", "container"
)  # fmt: skip
_ELSEWHERE: Final = ("evidence", "falsepositives", "state", "level", "incident_id")


def _event(event: Mapping[str, Any], first_ns: int) -> dict[str, Any]:
    ts_ns = event.get("ts_ns")
    return {
        "kind": _short(event.get("kind", "")),
        "grade": _short(event.get("grade", "")),
        "after_ms": (ts_ns - first_ns) // clock.NS_PER_MS if type(ts_ns) is int else 0,
        "facts": _facts({k: v for k, v in event.items() if k not in ("kind", "grade", "ts_ns")}),
    }


def _facts(values: Mapping[str, Any], before: str = "") -> list[list[str]]:
    """Nested objects as dotted names with text."""
    found: list[list[str]] = []
    for name, value in values.items():
        path = f"{before}.{name}" if before else str(name)
        if isinstance(value, Mapping):
            found += _facts(value, path)
        elif isinstance(value, list):
            found.append([_short(path), _long(", ".join(map(str, value)))])
        else:
            found.append([_short(path), _long(value)])
    return found[:_MAX_FACTS]


def _acknowledgement(found: Acknowledged) -> dict[str, Any]:
    return {"who": _short(found.who), "at_ms": found.at_ns // clock.NS_PER_MS}


# what the sensor says ---------------------------------------------------------------------------------


def health(status: Mapping[str, Any]) -> dict[str, Any]:
    """Probes, processes, outputs, rules and the ledger, as the page shows them."""
    courier, engine = _map(status.get("courier")), _map(status.get("engine"))
    rules, blocking = _map(status.get("rules")), _map(status.get("blocking"))
    lines = _map(engine.get("lines"))
    return {
        "version": _short(status.get("version", "")),
        "host": _short(status.get("host", "")),
        "since": _short(status.get("since", "")),
        "probes": [
            {
                **_named(probe, "name", "state", "reason"),
                "restarts": probe.get("restarts", 0),
                "events": _map(lines.get(probe.get("name"))).get("received", 0),
                "lost": _map(lines.get(probe.get("name"))).get("lost", 0),
            }
            for probe in status.get("probes", [])
        ],
        "processes": [_named(process, "name", "state") for process in status.get("processes", [])],
        "outputs": [
            {
                **_named(output, "name", "state", "last_error"),
                **{key: output.get(key, 0) for key in ("waiting", "delivered", "dead", "dropped")},
                "balanced": output.get("balanced", True) is True,
            }
            for output in courier.get("outputs", [])
        ],
        "balanced": courier.get("balanced", True) is True,
        "rules": {
            "count": rules.get("rules", 0),
            "stale": bool(rules.get("stale")),
            "sha256": _short(rules.get("loaded_sha256", "")),
            "problems": [_short(problem) for problem in rules.get("problems", [])[:5]],
        },
        "mode": _short(blocking.get("mode", "")),
        "firewall_error": _short(blocking.get("firewall_error") or ""),
    }


def blocks(found: Mapping[str, Any]) -> dict[str, Any]:
    """The first blocks, and how many there are."""
    listed = [
        {
            **_named(block, "network", "mode", "origin", "rule", "reason"),
            "left_s": block.get("left_s", 0),
            "offences": block.get("offences", 0),
        }
        for block in found.get("blocks", [])
    ]
    return {"mode": _short(found.get("mode", "")), "total": found.get("total", len(listed)), "blocks": listed}


def _named(values: Any, *names: str) -> dict[str, str]:
    return {name: _short(_map(values).get(name) or "") for name in names}


# rules and ATT&CK -------------------------------------------------------------------------------------


class _Files(msgspec.Struct):
    """The parent's answer about rules."""

    files: list[tuple[str, bytes]]
    counts: dict[str, dict[str, Any]]


def coverage(answer: Any, kinds: Mapping[str, EventKind]) -> list[dict[str, Any]]:
    """ATT&CK's tactics in its own order, each with its techniques: how many rules, how many incidents.

    A technique stands under each tactic that one of its rules names. Rules that cannot be read are none.
    """
    found = msgspec.convert(answer, _Files)
    try:
        sources = [Source(name, data) for name, data in found.files]
        rules = load_rules(sources, kinds, lambda *_: None).rules if sources else ()
    except ConfigError:
        rules = ()
    cells: dict[tuple[str, str], list[int]] = {}
    for rule in rules:
        known = threat(rule.tags)
        opened = found.counts.get(rule.id, {}).get("opened", 0)
        technique = _map(known.get("technique"))
        most_exact = _map(technique.get("subtechnique")).get("id", []) or technique.get("id", [])
        for tactic in _map(known.get("tactic")).get("id", []):
            for identifier in most_exact or [""]:
                cell = cells.setdefault((tactic, identifier), [0, 0])
                cell[0] += 1
                cell[1] += opened
    return [
        {
            "id": tactic,
            "name": name,
            "techniques": [
                {"id": technique, "name": TECHNIQUES.get(technique, ""), "rules": n, "alerts": alerts}
                for (owner, technique), (n, alerts) in sorted(cells.items())
                if owner == tactic
            ],
        }
        for tactic, name in TACTICS.values()
    ]


# text -------------------------------------------------------------------------------------------------


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _short(value: Any) -> str:
    return harmless(str(value), MAX_SHORT)


def _long(value: Any) -> str:
    return harmless(str(value), MAX_LONG)


def unreadable(error: sqlite3.Error) -> str:
    """Why there is nothing to show, for people."""
    return _short(f"the history cannot be read: {error}")
