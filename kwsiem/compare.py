"""What another rule file would change: the same events through two rule sets, incident against incident.

An incident is what opens: a rule, whom it concerns (its identity) and when. Opened at the same time and at
the same level, with the same block asked for, it is the same. One of the same rule and identity that opens a
little earlier or later (within the rule's timespan), or at another level, is changed; what has no partner is
added or removed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from kwsiem.alert import Alert
from kwsiem.clock import NS_PER_S

#: How far apart two incidents of a rule with a shorter timespan, or none, may open and still be one.
LEAST_NS: Final = NS_PER_S


class Opened(msgspec.Struct, frozen=True):
    """An incident that opened: which rule, for whom, when (wall time)."""

    rule_id: str
    level: str
    host: str
    identity: dict[str, Any]
    raised_ns: int
    reason: str = ""
    block: dict[str, Any] = {}

    @classmethod
    def of(cls, alert: Alert) -> Opened:
        """What is kept of the alert that says so."""
        return cls(
            alert.rule_id, alert.level, alert.host, alert.identity, alert.raised_ns, alert.reason, alert.block
        )

    @property
    def same(self) -> tuple[Any, ...]:
        """What else must agree for two incidents about one identity to be the same."""
        return (self.raised_ns, self.level, *self.block.items())

    @property
    def whom(self) -> tuple[str, ...]:
        """What incidents of one rule about one identity share."""
        return (self.rule_id, self.host, *(f"{name}={value}" for name, value in self.identity.items()))


class Difference(msgspec.Struct):
    """What the second rule set adds to the incidents of the first, removes from them, and changes.

    ``changed`` holds pairs (before, after); ``before`` and ``after`` are how many incidents each set opened,
    by rule.
    """

    added: list[Opened] = []
    removed: list[Opened] = []
    changed: list[tuple[Opened, Opened]] = []
    before: dict[str, int] = {}
    after: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def blocks(self) -> dict[str, list[Opened]]:
        """The incidents that ask for a block which the other rule set does not ask for."""
        pairs = [(old, new) for old, new in self.changed if old.block != new.block]
        return {
            "added": [opened for opened in [*self.added, *(new for _, new in pairs)] if opened.block],
            "removed": [opened for opened in [*self.removed, *(old for old, _ in pairs)] if opened.block],
        }

    def by_rule(self) -> dict[str, tuple[int, int, int, int, int]]:
        """For each rule that opened an incident in either set: before, after, added, removed, changed."""
        parts = (self.added, self.removed, [old for old, _ in self.changed])
        added, removed, changed = (Counter(opened.rule_id for opened in part) for part in parts)
        return {
            rule_id: (
                self.before.get(rule_id, 0),
                self.after.get(rule_id, 0),
                added[rule_id],
                removed[rule_id],
                changed[rule_id],
            )
            for rule_id in sorted({*self.before, *self.after})
        }


def difference(before: list[Opened], after: list[Opened], slack_ns: Mapping[str, int]) -> Difference:
    """Compare the incidents of two rule sets, in any order; ``slack_ns`` is each rule's timespan."""
    found = Difference(
        before=Counter(opened.rule_id for opened in before),
        after=Counter(opened.rule_id for opened in after),
    )
    mine, theirs = _by_whom(before), _by_whom(after)
    for whom in dict.fromkeys([*mine, *theirs]):
        removed, added = _without_same(mine.get(whom, []), theirs.get(whom, []))
        _pair(found, removed, added, slack_ns.get(whom[0], LEAST_NS))
    found.added.sort(key=_order)
    found.removed.sort(key=_order)
    found.changed.sort(key=lambda pair: _order(pair[1]))
    return found


def _order(opened: Opened) -> tuple[Any, ...]:
    return (opened.raised_ns, *opened.whom)


def _by_whom(incidents: list[Opened]) -> dict[tuple[str, ...], list[Opened]]:
    groups: defaultdict[tuple[str, ...], list[Opened]] = defaultdict(list)
    for opened in sorted(incidents, key=_order):
        groups[opened.whom].append(opened)
    return groups


def _without_same(before: list[Opened], after: list[Opened]) -> tuple[list[Opened], list[Opened]]:
    """The incidents of each side that have no equal on the other (one for one)."""
    spare: defaultdict[tuple[Any, ...], int] = defaultdict(int)
    for opened in before:
        spare[opened.same] += 1
    added = []
    for opened in after:
        if spare[opened.same]:
            spare[opened.same] -= 1
        else:
            added.append(opened)
    removed = []
    for opened in reversed(before):
        if spare[opened.same]:
            spare[opened.same] -= 1
            removed.append(opened)
    return removed[::-1], added


def _pair(found: Difference, removed: list[Opened], added: list[Opened], slack_ns: int) -> None:
    """Incidents of one rule and identity, both sides in the order of time: near ones are one, changed."""
    left = right = 0
    while left < len(removed) and right < len(added):
        distance_ns = added[right].raised_ns - removed[left].raised_ns
        if abs(distance_ns) <= slack_ns:
            found.changed.append((removed[left], added[right]))
            left, right = left + 1, right + 1
        elif distance_ns > 0:
            found.removed.append(removed[left])
            left += 1
        else:
            found.added.append(added[right])
            right += 1
    found.removed += removed[left:]
    found.added += added[right:]
