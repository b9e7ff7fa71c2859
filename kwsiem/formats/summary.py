"""What happened within a span of time, in figures: the daily or weekly summary of an appliance.

Counted from the documents of alerts one by one, in bounded memory. An alert is counted when its incident
opens: updates and the close are the same alert. What kwsiem says about itself (events of its own kinds) is
counted apart, so that a silent probe is not one line among many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from kwsiem.alert import LEVELS
from kwsiem.clock import iso

MAX_RULES: Final = 10
MAX_SOURCES: Final = 10
MAX_NAMES: Final = 10
#: Different rules, sources and names that are told apart; what comes after them counts as others.
MAX_KEYS: Final = 20_000
_MAX_TEXT: Final = 128
_LEVELS: Final = tuple(reversed(tuple(LEVELS)))
#: Kinds of our own events of which a summary tells by name, and the field that names what it is about.
_BLOCKED: Final = "block.decision"
_PROBE: Final = "sensor.probe"
_LOST: Final = ("sensor.lost", "output.lost")

_Key = TypeVar("_Key")


class Ranked(msgspec.Struct, frozen=True):
    """One line of a list; ``level`` only of a rule."""

    name: str
    count: int
    level: str = ""


class Ledger(msgspec.Struct, frozen=True):
    """The ledger of an output within the span; ``waiting`` is what waits now."""

    name: str
    delivered: int
    waiting: int
    dead: int
    dropped: int


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """All that a summary says; ``since`` and ``until`` are local times in words.

    ``levels`` has the highest first, each with its count now and in the span before; ``before`` is None
    when the history does not go back to the beginning of that. ``asked`` are alerts whose rule asked for
    a block, ``blocked`` those that tell of one. ``is_partial``: the history does not hold all of the span.
    """

    every: str
    host: str
    since: str
    until: str
    alerts: int
    before: int | None
    levels: Sequence[tuple[str, int, int]]
    rules: Sequence[Ranked]
    more_rules: int
    sources: Sequence[Ranked]
    more_sources: int
    asked: int
    blocked: int
    probes: Sequence[Ranked]
    lost: Sequence[Ranked]
    outputs: Sequence[Ledger]
    is_partial: bool


class _Alert(msgspec.Struct):
    state: Any = ""
    level: Any = ""
    identity: Any = None
    evidence: Any = None
    block: Any = None


class _Own(msgspec.Struct):
    alert: _Alert = msgspec.field(default_factory=_Alert)


class _Rule(msgspec.Struct):
    id: Any = ""
    name: Any = ""


class _Source(msgspec.Struct):
    ip: Any = ""
    address: Any = ""


class _Facts(msgspec.Struct):
    """What is counted of a document; msgspec passes over the rest."""

    rule: _Rule = msgspec.field(default_factory=_Rule)
    source: _Source = msgspec.field(default_factory=_Source)
    kwsiem: _Own = msgspec.field(default_factory=_Own)
    time: Any = msgspec.field(default="", name="@timestamp")


_decoder: Final = msgspec.json.Decoder(_Facts)


class Tally:
    """Counts alerts of a span, and those of the span before it by their level alone.

    ``since_ns`` (Unix time) is where the span begins: what was raised earlier belongs to the one before.
    """

    def __init__(self, since_ns: int) -> None:
        self._since = iso(since_ns)
        self._levels: Counter[str] = Counter()
        self._before: Counter[str] = Counter()
        self._rules: Counter[tuple[str, str, str]] = Counter()
        self._sources: Counter[str] = Counter()
        self._probes: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._asked = self._blocked = 0

    def add(self, document: bytes) -> None:
        """Count one alert; what is no document of an alert counts as nothing."""
        try:
            facts = _decoder.decode(document)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        alert = facts.kwsiem.alert
        if alert.state != "open":
            return
        level = alert.level if alert.level in LEVELS else "high"
        if not isinstance(facts.time, str) or facts.time < self._since:  # both RFC 3339, in UTC
            self._before[level] += 1
            return
        self._levels[level] += 1
        rule = _text(facts.rule.id)
        _count(self._rules, (rule, _text(facts.rule.name) or rule or "alert", level))
        if source := _text(facts.source.ip) or _text(facts.source.address):
            _count(self._sources, source)
        self._asked += isinstance(alert.block, dict)
        self._own(_kind(alert.evidence), alert.identity if isinstance(alert.identity, dict) else {})

    def _own(self, kind: str, identity: Mapping[str, Any]) -> None:
        if kind == _BLOCKED:
            self._blocked += 1
        elif kind == _PROBE:
            _count(self._probes, _text(identity.get("probe.name")) or "?")
        elif kind in _LOST:
            where = "probe" if kind == _LOST[0] else "output"
            _count(self._lost, f"{where} {_text(identity.get(f'{where}.name')) or '?'}")

    def summary(
        self,
        *,
        every: str,
        host: str,
        since: str,
        until: str,
        outputs: Sequence[Ledger],
        knows_before: bool,
        is_partial: bool,
    ) -> Summary:
        """What was counted; ``knows_before`` says whether the span before is in the history, whole."""
        found = [level for level in _LEVELS if self._levels[level] or (knows_before and self._before[level])]
        return Summary(
            every=every,
            host=host,
            since=since,
            until=until,
            alerts=self._levels.total(),
            before=self._before.total() if knows_before else None,
            levels=[(level, self._levels[level], self._before[level]) for level in found],
            rules=[
                Ranked(name, count, level) for (_, name, level), count in self._rules.most_common(MAX_RULES)
            ],
            more_rules=max(0, len(self._rules) - MAX_RULES),
            sources=_ranked(self._sources, MAX_SOURCES),
            more_sources=max(0, len(self._sources) - MAX_SOURCES),
            asked=self._asked,
            blocked=self._blocked,
            probes=_ranked(self._probes, MAX_NAMES),
            lost=_ranked(self._lost, MAX_NAMES),
            outputs=outputs,
            is_partial=is_partial,
        )


def _count(counter: Counter[_Key], key: _Key) -> None:
    """Count one; a new key only while there is room: in a flood of forged names the first ones stay."""
    if key in counter or len(counter) < MAX_KEYS:
        counter[key] += 1


def _ranked(counter: Counter[str], most: int) -> list[Ranked]:
    return [Ranked(name, count) for name, count in counter.most_common(most)]


def _kind(evidence: Any) -> str:
    last = evidence[-1] if isinstance(evidence, list) and evidence else None
    kind = last.get("kind") if isinstance(last, dict) else None
    return kind if isinstance(kind, str) else ""


def _text(value: Any) -> str:
    return value[:_MAX_TEXT] if isinstance(value, str) else ""
