"""Many alerts in one: what an output sends when it may not send them all.

A digest is an ECS document like any other, of an alert of the rule ``digest``, so that every format
renders it. What it sums up is counted under ``kwsiem.digest``, with the ids of the alerts it stands for.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kwsiem.alert import LEVELS, Alert
from kwsiem.clock import NS_PER_MS
from kwsiem.document import document, severity_of
from kwsiem.formats.facts import fact, milliseconds, texts, whole
from kwsiem.text import clean

RULE_ID: Final = "digest"
TITLE: Final = "Digest of alerts"
MAX_IDS: Final = 1000
MAX_RULES: Final = 50
MAX_SOURCES: Final = 20
#: Rules that the message names; and of a title as many code points.
_NAMED: Final = 5
_MAX_TITLE: Final = 80
_MAX_TAGS: Final = 32
#: Code points of an id, and of any other name.
_MAX_ID: Final = 32
_MAX_NAME: Final = 128
_TIMES: Final = "\N{MULTIPLICATION SIGN}"
_LEVELS: Final = tuple(reversed(tuple(LEVELS)))


def digest(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One ECS document that sums up alerts, with the level of the highest; the same alerts give the same id.

    ``kwsiem.digest`` has ``count``, and bounded lists with the most frequent first: ``rules`` (id, name,
    level, count; MAX_RULES), ``levels``, ``sources`` (address, count; MAX_SOURCES) and ``ids`` (MAX_IDS),
    each with ``more_…`` for what is beyond the bound. An alert that is there twice counts once. Raises
    ValueError when there is no alert.
    """
    alerts = _distinct(documents)
    if not alerts:
        raise ValueError("a digest of no alerts")
    ids = [_name(alert, "event.id", _MAX_ID) for alert in alerts]
    raised = [milliseconds(fact(alert, "@timestamp")) or 0 for alert in alerts]
    rules = Counter(map(_rule, alerts))
    sources = Counter(source for alert in alerts if (source := _source(alert)))
    words = _words(len(alerts), max(raised) - min(raised), rules)
    found = document(_alert(alerts, ids, raised, words, sources))
    found["message"] = words
    found["kwsiem"]["digest"] = {
        "count": len(alerts),
        "rules": [
            {"id": rule, "name": name, "level": level, "count": count}
            for (rule, name, level), count in rules.most_common(MAX_RULES)
        ],
        "levels": _levels(alerts),
        "sources": [{"address": name, "count": count} for name, count in sources.most_common(MAX_SOURCES)],
        "ids": ids[:MAX_IDS],
        **_beyond({"rules": (rules, MAX_RULES), "sources": (sources, MAX_SOURCES), "ids": (ids, MAX_IDS)}),
    }
    if not sources:
        del found["kwsiem"]["digest"]["sources"]
    return found


def _distinct(documents: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Each alert once, in the order given."""
    return list({_name(found, "event.id", _MAX_ID): found for found in documents}.values())


def _alert(
    alerts: list[Mapping[str, Any]], ids: list[str], raised: list[int], words: str, sources: Counter[str]
) -> Alert:
    starts = [ms for alert in alerts if (ms := milliseconds(fact(alert, "event.start"))) is not None]
    ends = [ms for alert in alerts if (ms := milliseconds(fact(alert, "event.end"))) is not None]
    hosts = {_name(alert, "host.name") for alert in alerts}
    only = next(iter(sources)) if len(sources) == 1 and sources.total() == len(alerts) else ""
    tags = dict.fromkeys(tag for alert in alerts for tag in texts(alert, "tags"))
    return Alert(
        rule_id=RULE_ID,
        title=TITLE,
        level=max(map(_level, alerts), key=severity_of),
        state="open",
        identity={"kwsiem.digest": _fingerprint(ids)},
        count=len(alerts),
        first_ns=min(starts, default=min(raised)) * NS_PER_MS,
        last_ns=max(ends, default=max(raised)) * NS_PER_MS,
        raised_ns=max(raised) * NS_PER_MS,
        opened_ts_ns=0,
        reason=words,
        tags=list(tags)[:_MAX_TAGS],
        fields={"source.address": only} if only else {},
        values=[name for name, _ in sources.most_common(MAX_SOURCES)],
        host=hosts.pop() if len(hosts) == 1 else "",
    )


def _fingerprint(ids: list[str]) -> str:
    """What tells a digest from any other: a hash of the ids it holds, in whatever order they came."""
    return hashlib.blake2b("\0".join(sorted(ids)).encode("utf-8", "replace"), digest_size=16).hexdigest()


def _words(count: int, span_ms: int, rules: Counter[tuple[str, str, str]]) -> str:
    """``37 alerts in 2 min: 20x TCP port scan (high), …``."""
    parts = [f"{n}{_TIMES} {name} ({level})" for (_, name, level), n in rules.most_common(_NAMED)]
    if len(rules) > _NAMED:
        parts.append(
            f"{count - sum(n for _, n in rules.most_common(_NAMED))} of {len(rules) - _NAMED} more rules"
        )
    return f"{count} alert{'s'[: count > 1]} in {_span(span_ms)}: {', '.join(parts)}"


def _span(span_ms: int) -> str:
    """A time in words, rounded up: 90 s, 2 min, 3 h."""
    seconds = max(1, -(-span_ms // 1000))
    if seconds < 120:
        return f"{seconds} s"
    return f"{-(-seconds // 60)} min" if seconds < 7200 else f"{-(-seconds // 3600)} h"


def _rule(alert: Mapping[str, Any]) -> tuple[str, str, str]:
    rule = _name(alert, "rule.id") or "unknown"
    return rule, _name(alert, "rule.name", _MAX_TITLE) or rule, _level(alert)


def _level(alert: Mapping[str, Any]) -> str:
    """The level of an alert; one that says none has the level of its severity."""
    level = fact(alert, "kwsiem.alert.level")
    if isinstance(level, str) and level in LEVELS:
        return level
    severity = whole(fact(alert, "event.severity"), 10) or 0
    return next(name for name in _LEVELS if severity >= LEVELS[name])


def _source(alert: Mapping[str, Any]) -> str:
    return _name(alert, "source.ip") or _name(alert, "source.address")


def _name(alert: Mapping[str, Any], name: str, limit: int = _MAX_NAME) -> str:
    value = fact(alert, name)
    return clean(value, limit) if isinstance(value, str) else ""


def _levels(alerts: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Counts by level, the highest first."""
    counts = Counter(map(_level, alerts))
    return [{"level": level, "count": counts[level]} for level in _LEVELS if counts[level]]


def _beyond(lists: Mapping[str, tuple[Any, int]]) -> dict[str, int]:
    return {f"more_{name}": len(items) - most for name, (items, most) in lists.items() if len(items) > most}
