"""The table of correlation types: the word in a rule set, and the class that keeps its state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kwsiem.correlate.sequence import Sequence
from kwsiem.correlate.window import Any_, EventCount, ValueCount, Window

KINDS: Final[Mapping[str, type[Window]]] = {
    "any": Any_,
    "event_count": EventCount,
    "value_count": ValueCount,
    "sequence": Sequence,
}
