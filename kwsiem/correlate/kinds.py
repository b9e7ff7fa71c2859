"""The table of correlation types: the word in a rule set, and the class that keeps its state."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

from kwsiem.correlate.absent import Absent
from kwsiem.correlate.codegen import make_handler
from kwsiem.correlate.incident import Incidents
from kwsiem.correlate.measured import Measured
from kwsiem.correlate.sequence import Sequence
from kwsiem.correlate.sequential import SequentialTest
from kwsiem.correlate.settled import Settled, State
from kwsiem.correlate.window import Any_, EventCount, Temporal, ValueCount, Window
from kwsiem.rules.model import COUNT_TYPES, VALUE_TYPES, Rule

KINDS: Final[Mapping[str, type[Window]]] = {
    "any": Any_,
    "event_count": EventCount,
    "value_count": ValueCount,
    "temporal": Temporal,
    "sequence": Sequence,
    "absent": Absent,
    "sequential_test": SequentialTest,
    "value_sum": Measured,
    "value_avg": Measured,
    "value_percentile": Measured,
    "value_median": Measured,
}
#: Types that have a condition.
COMPARED_TYPES: Final = COUNT_TYPES | VALUE_TYPES


def make_state(rule: Rule, incidents: Incidents) -> State:
    """The state of a rule: a window, or one that is decided in the order of time."""
    if rule.correlation.settled:
        handler = partial(make_handler, offset=lambda: incidents.offset_ns)
        return Settled(rule, incidents, make_window, handler)
    return make_window(rule, incidents)


def make_window(rule: Rule, incidents: Incidents) -> Window:
    """The window of one correlation."""
    correlation = rule.correlation
    if correlation.type in COMPARED_TYPES and correlation.op not in ("gte", "gt"):
        return Measured(rule, incidents)
    return KINDS[correlation.type](rule, incidents)
