"""``docs/formats.md``, made from the tables and from one alert that every format renders."""

from __future__ import annotations

from textwrap import fill
from typing import Any, Final

from kwsiem.alert import Alert
from kwsiem.document import document
from kwsiem.formats import FORMATS, MAX_EXTRA, MAX_EXTRA_BYTES, OCSF_VERSIONS
from kwsiem.formats.digest import MAX_IDS, MAX_RULES, MAX_SOURCES
from kwsiem.formats.fields import ACTIONS, DETECTED, FACTS, INT, LONG, SEVERITIES, Fact, Key

_START_NS: Final = 1_767_323_045_123_000_000  # 2026-01-02T03:04:05.123Z
_FLOW: Final = {"source.ip": "198.51.100.7", "destination.ip": "192.0.2.1", "destination.port": 24}
_BITS: Final = {INT: "(32 bits)", LONG: "(64 bits)"}
#: Format -> what is to be said of it: the paragraph, and its severity.
_PARAGRAPHS: Final[dict[str, tuple[str, str]]] = {
    "ecs": (
        "The whole document (Elastic Common Schema), for Elasticsearch, OpenSearch and whatever reads JSON"
        " lines. Every other format is made from it. Own facts are under `kwsiem`; each event in"
        " `kwsiem.alert.evidence` has a `grade`: `proven` when it proves its source, else `spoofable`.",
        "`event.severity` is the number, `event.risk_score` ten times that.",
    ),
    "json": (
        "The facts that a person or a script asks for first, flat, in a fixed order.",
        "`severity` is the number, `level` the rule's level.",
    ),
    "cef": (
        "ArcSight's Common Event Format, for ArcSight, Microsoft Sentinel and most others. Version 0 by"
        " default, since strict parsers take no other; version 1 has IPv6 in `src` and `dst`, 64 bits in"
        " `in` and `out`, and the keys marked CEF:1. Limits count bytes of UTF-8; what is longer is cut"
        " before it is escaped. A slot (`cs1`, `cn1`, `c6a2` …) means the same in every alert and has its"
        " `…Label`.",
        "the header has the number; 0 to 3 is Low, 4 to 6 Medium, 7 and 8 High, 9 and 10 Very-High.",
    ),
    "leef": (
        "QRadar's Log Event Extended Format. Version 2.0 with `^` between attributes by default; version"
        " 1.0 has TAB, which rsyslog rewrites unless told not to. LEEF has no escapes: the delimiter, and"
        " in the header the pipe, become a space.",
        "`sev` is the number, at least 1.",
    ),
    "gelf": (
        "Graylog's Extended Log Format 1.1: strings and numbers, lists joined by commas.",
        "`level` is that of syslog; `_severity` is the number.",
    ),
    "ocsf": (
        "Open Cybersecurity Schema Framework, for AWS Security Lake and others: one Detection Finding"
        f" (2004), version {OCSF_VERSIONS[0]}, or {' or '.join(OCSF_VERSIONS[1:])} for receivers that are"
        " behind. An incident is one finding, its alerts are Create, Update and Close. Each event kept as"
        " evidence brings the record of its own class under `evidences[].data`: 4001 Network Activity, 3002"
        " Authentication or 1007 Process Activity. What the schema has no place for is under `unmapped`."
        " A finding is wordy: send it over TCP.",
        "`severity_id` by the table below.",
    ),
    "text": (
        "One line for people. Values from outside stand in quotes; nothing in them moves a cursor, ends"
        " the line or reorders text.",
        "the level in capitals.",
    ),
}


def example() -> dict[str, Any]:
    """The document that the examples show."""
    found = document(
        Alert(
            rule_id="tcp-port-scan",
            title="TCP port scan",
            level="high",
            state="open",
            identity=_FLOW,
            count=5,
            first_ns=_START_NS,
            last_ns=_START_NS + 10**9,
            raised_ns=_START_NS + 10**9,
            opened_ts_ns=1,
            reason="5 different destination.port in 3s",
            tags=["attack.discovery", "attack.t1046"],
            fields=_FLOW,
            values=[20, 21, 22, 23, 24],
            evidence=[{"kind": "tcp.syn", "ts_ns": 1, "grade": "spoofable", **_FLOW}],
            host="gw01.example.net",
        )
    )
    found["observer"]["version"] = "1.0.0"
    return found


def render() -> str:
    """The page."""
    lines = [
        "# Formats of an alert",
        "",
        "Made from `kwsiem/formats/fields.py` (a test keeps it so). An alert is an ECS document; each output",
        "names the format it is sent in. Text in an alert may come from an attacker: every format cuts it",
        "first, then escapes it, and no value can end a field or a line. What an alert does not have is left",
        "out.",
        "",
    ]
    shown = example()
    for name, (paragraph, severity) in _PARAGRAPHS.items():
        lines += [f"## {name}", "", fill(paragraph, 110), "", f"Severity: {severity}", ""]
        lines += ["```", FORMATS[name](shown), "```", ""]
    lines += [*_severities(), *_actions(), *_constant_fields(), *_digests(), *_fields()]
    return "\n".join(line.rstrip() for line in lines)


def _severities() -> list[str]:
    return [
        "## Severity",
        "",
        "| `event.severity` | CEF's word | syslog, GELF `level` | OCSF `severity_id` |",
        "|---|---|---|---|",
        *(
            f"| {row.least} and more | {row.cef} | {row.syslog} | {row.ocsf} {row.ocsf_word} |"
            for row in SEVERITIES
        ),
        "",
        "Syslog's 0 (emerg) is never sent: stock daemons write it to every terminal.",
        "",
    ]


def _actions() -> list[str]:
    rows = [("any other, or none", DETECTED), *((f"`{name}`", action) for name, action in ACTIONS.items())]
    return [
        "## Block decisions",
        "",
        "| block decision | CEF `act`, LEEF `action` | OCSF `action_id` | OCSF `disposition_id` |",
        "|---|---|---|---|",
        *(f"| {name} | {row.word} | {row.ocsf_action} | {row.ocsf_disposition} |" for name, row in rows),
        "",
        f"OCSF {OCSF_VERSIONS[1]} has no action {DETECTED.ocsf_action} (Observed) and gets 0.",
        "",
    ]


def _constant_fields() -> list[str]:
    return [
        "## Fields of your own",
        "",
        "Constant fields, such as `environment: prod`, stand in every line. Names are lower-case words with",
        f"underscores; at most {MAX_EXTRA} fields and {MAX_EXTRA_BYTES} bytes of names and values together.",
        "",
        "| format | where `data_center: fra1` stands |",
        "|---|---|",
        "| ecs, json | `labels.data_center` |",
        "| cef | `KernelWatchKwsiemDataCenter=fra1` |",
        "| leef | `dataCenter=fra1` |",
        "| gelf | `_data_center` |",
        "| ocsf | `metadata.labels`: `data_center:fra1` |",
        '| text | `data_center="fra1"` |',
        "",
    ]


def _digests() -> list[str]:
    return [
        "## Digests",
        "",
        fill(
            "Where an output may not send all alerts, one alert of the rule `digest` stands for those held"
            " back. Its level is the highest of theirs; `message` says what they were. `kwsiem.digest` has"
            f" `count`, `rules` (at most {MAX_RULES}), `levels`, `sources` (at most {MAX_SOURCES}) and `ids`"
            f" (at most {MAX_IDS}); what is beyond a bound is counted in `more_rules`, `more_sources`,"
            " `more_ids`. The same alerts make the same digest id.",
            110,
        ),
        "",
    ]


def _fields() -> list[str]:
    return [
        "## Fields",
        "",
        "A number after a key is its limit: bytes of a text, or the largest number. A key with `*` is not a",
        "plain copy, the last column says what it is; so is an OCSF path in brackets. CEF:1 marks keys of",
        "that version.",
        "",
        "| ECS or own name | meaning | type | CEF | LEEF | GELF | JSON | OCSF | |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(row) for row in FACTS),
        "",
    ]


def _row(row: Fact) -> str:
    cells = (
        f"`{row.name}`",
        row.meaning,
        row.type,
        ", ".join(_key(key, row) for key in row.cef),
        ", ".join(_key(key, row) for key in row.leef),
        f"`{row.gelf}`" if row.gelf else "",
        f"`{row.json}`" if row.json else "",
        f"`{row.ocsf}`" if row.ocsf else "",
        row.note,
    )
    return "| " + " | ".join(cells) + " |"


def _key(key: Key, row: Fact) -> str:
    words = [key.name if key.name == "(header)" else f"`{key.name}`"]
    if key.computed:
        words[0] += "*"
    if row.type != "time":
        words.append(_BITS.get(key.limit, str(key.limit)))
    if key.label:
        words.append(f"({key.label})")
    if key.since:
        words.append("CEF:1")
    return " ".join(words)
