"""What ChatOps answers, as Telegram's HTML: what came from outside is bounded, escaped, in a code span."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from kwsiem.clock import NS_PER_S, iso
from kwsiem.text import clean, harmless

#: UTF-16 code units of an answer; the Bot API takes 4096 after parsing the markup.
MAX_ANSWER: Final = 3800
_MAX_VALUE: Final = 80
_MAX_FIELDS: Final = 12
_MAX_MUTES: Final = 30

HELP: Final = (
    "<b>kwsiem</b>\n"
    "/status - how the appliance is\n"
    "/alerts - the latest alerts\n"
    "/blocks - what is blocked\n"
    "/mute RULE [30m|8h] - keep a rule out of chats, 1 h without a time, 24 h at most; /mute lists\n"
    "/unmute RULE - let it speak again\n"
    "/help - this"
)


def code(value: Any, limit: int = _MAX_VALUE) -> str:
    """A value as it is, on one line, where a chat makes no link of it and mentions nobody."""
    shown = harmless(str(value), limit).strip() or "-"
    return f"<code>{html.escape(shown, quote=False)}</code>"


def plain(value: Any, limit: int = 256) -> str:
    """Words of ours that may name something from outside."""
    return html.escape(harmless(str(value), limit), quote=False)


def status(values: Mapping[str, Any], mutes: Mapping[str, int]) -> str:
    """The answer to ``/status``."""
    lines = [
        f"<b>kwsiem {plain(values.get('version', '?'), 20)}</b> on {code(values.get('host', '?'))}",
        f"probes {plain(values.get('probes', '?'), 60)}, rules {plain(values.get('rules', '?'), 60)}",
        f"alerts {plain(values.get('alerts', '?'), 60)}",
        f"blocking {plain(values.get('blocking', '?'), 60)}",
    ]
    outputs = values.get("outputs")
    for each in outputs if isinstance(outputs, list) else []:
        if isinstance(each, Mapping):
            state, waiting = plain(each.get("state", "?"), 20), plain(each.get("waiting", "?"), 20)
            lines.append(f"output {code(each.get('name', '?'))} {state}, {waiting} waiting")
    return fitted([*lines, *muted(mutes)])


def muted(mutes: Mapping[str, int]) -> list[str]:
    """One line for each rule that is silent."""
    lines = [
        f"muted {code(rule, 128)} until {clock_time(until_ns)}"
        for rule, until_ns in sorted(mutes.items(), key=lambda pair: pair[1])
    ]
    more = [f"and {len(lines) - _MAX_MUTES} more muted"] if len(lines) > _MAX_MUTES else []
    return [*lines[:_MAX_MUTES], *more]


def alerts(documents: Sequence[Mapping[str, Any]]) -> str:
    """The answer to ``/alerts``, newest first."""
    lines = []
    for each in documents:
        flat = dict(_flat(each))
        level = plain(flat.get("kwsiem.alert.level", "?"), 20)
        state = plain(flat.get("kwsiem.alert.state", "?"), 20)
        at = plain(str(flat.get("@timestamp", ""))[11:19], 20)
        source = flat.get("source.ip") or flat.get("source.address")
        lines.append(
            f"{at} {level} {code(flat.get('rule.id', '?'), 128)} {code(source) if source else ''} {state}"
        )
    return fitted(lines) or "no alerts yet"


def blocks(values: Mapping[str, Any]) -> str:
    """The answer to ``/blocks``."""
    found = values.get("blocks")
    rows = [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []
    lines = [f"blocking is <b>{plain(values.get('mode', '?'), 20)}</b>, {_whole(values.get('total'))} blocks"]
    for row in rows:
        why = row.get("rule") or row.get("reason") or row.get("origin") or "?"
        lines.append(f"{code(row.get('network', '?'))} {span(_whole(row.get('left_s')))} left, {code(why)}")
    if _whole(values.get("total")) > len(rows):
        lines.append(f"and {_whole(values.get('total')) - len(rows)} more: kwsiem blocks")
    return fitted(lines)


def evidence(document: Mapping[str, Any]) -> str:
    """The events that an alert keeps, one a line."""
    kept = document.get("kwsiem")
    alert = kept.get("alert") if isinstance(kept, Mapping) else None
    events = alert.get("evidence") if isinstance(alert, Mapping) else None
    lines = []
    for event in events if isinstance(events, list) else []:
        if isinstance(event, Mapping):
            found = [f"{name}={clean(str(value), _MAX_VALUE)}" for name, value in _flat(event)]
            lines.append(code(" ".join(found[:_MAX_FIELDS]), 600))
    return fitted(lines) or "no evidence is kept of this alert"


def fitted(lines: Sequence[str]) -> str:
    """The first lines as one message, as many as fit; markup stays whole."""
    used, shown = 0, []
    for line in lines:
        used += len(line) + sum(char > "\uffff" for char in line) + 1
        if used > MAX_ANSWER:
            shown.append("…")
            break
        shown.append(line)
    return "\n".join(shown)


def span(seconds: int) -> str:
    """``1 day``, ``3 h``, ``20 min``, ``5 s``."""
    for unit, size in (("day", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}{'s' if unit == 'day' and seconds >= 2 * size else ''}"
    return f"{seconds} s"


def clock_time(at_ns: int) -> str:
    """``2026-01-02 03:04 UTC``."""
    return f"{iso(at_ns // NS_PER_S * NS_PER_S)[:16].replace('T', ' ')} UTC"


def _flat(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
