"""What each rule has done, as it travels from the engine: some rules at a time, in small messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

#: Rules in one message: with ids of 128 bytes it stays far below link.MAX_MESSAGE_BYTES.
RULES_PER_MESSAGE: Final = 200
#: Rules that are told about; further ones run, but have no figures of their own.
MAX_RULES: Final = 5000


class RuleCounts(msgspec.Struct, omit_defaults=True):
    """One rule since it began to run.

    ``evaluations`` are events of the kinds it looks at, ``keys`` the windows it keeps now, ``evictions``
    those it gave up for want of room; the others are its alerts by the state of the incident.
    """

    evaluations: int = 0
    keys: int = 0
    evictions: int = 0
    opened: int = 0
    updated: int = 0
    closed: int = 0


class RuleFigures:
    """The latest counts of each rule of one rule set, at most MAX_RULES."""

    def __init__(self) -> None:
        self.counts: dict[str, RuleCounts] = {}
        self._sha256 = ""

    def take(self, sha256: str, counts: Mapping[str, RuleCounts]) -> None:
        """Counts of some rules; those of another rule set are forgotten."""
        if sha256 != self._sha256:
            self._sha256 = sha256
            self.counts.clear()
        for rule, found in counts.items():
            if rule in self.counts or len(self.counts) < MAX_RULES:
                self.counts[rule[:128]] = found

    def parts(self) -> Iterator[tuple[str, dict[str, RuleCounts]]]:
        """All of it, as :meth:`take` wants it, in parts that fit a message."""
        names = list(self.counts)
        for start in range(0, len(names), RULES_PER_MESSAGE):
            yield self._sha256, {name: self.counts[name] for name in names[start : start + RULES_PER_MESSAGE]}
