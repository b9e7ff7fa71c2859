"""Conditions that more events can undo (``lt lte eq neq``), and sums, means and percentiles of a field.

These windows are given events in the order of time only (:mod:`kwsiem.correlate.settled`): the condition is
looked at with each event, for the window (t - timespan, t] that ends with it. Bounds: a count needs only its
newest n + 1 events or values; of sums at most MAX_SAMPLES are kept apart, neighbours are put together beyond
that (they then leave the window together); percentiles look at the newest MAX_SAMPLES.
"""

from __future__ import annotations

import operator
from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Final

from kwsiem.correlate.incident import Incident, Incidents, Key
from kwsiem.correlate.window import Window
from kwsiem.event import Event
from kwsiem.rules.duration import format_duration
from kwsiem.rules.model import Correlation, Rule

MAX_SAMPLES: Final = 10_000
_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "gte": operator.ge,
    "gt": operator.gt,
    "lte": operator.le,
    "lt": operator.lt,
    "eq": operator.eq,
    "neq": operator.ne,
}
_WORDS: Final = {"gte": ">=", "gt": ">", "lte": "<=", "lt": "<", "eq": "=", "neq": "is not"}


class Counted:
    """The newest events of a key, as many as the condition can tell apart."""

    def __init__(self, correlation: Correlation) -> None:
        self._times: deque[int] = deque(maxlen=int(correlation.value) + 1)

    def add(self, ts_ns: int, _value: Any) -> None:
        """Take an event."""
        self._times.append(ts_ns)

    def expire(self, horizon_ns: int) -> None:
        """Let go of what is not after the horizon."""
        while self._times and self._times[0] <= horizon_ns:
            self._times.popleft()

    def measure(self) -> tuple[int, int]:
        """How many events there are (one more than the condition's number stands for more), of 1."""
        return len(self._times), 1

    @property
    def events(self) -> int:
        """How many events are in the window."""
        return len(self._times)

    @property
    def first_ns(self) -> int:
        """The time of the oldest event in the window."""
        return self._times[0]

    def save(self) -> Any:
        """As plain data."""
        return list(self._times)

    def load(self, saved: Any) -> None:
        """From plain data."""
        self._times.extend(map(int, saved))


class Distinct:
    """The values of a key seen last, as many as the condition can tell apart."""

    def __init__(self, correlation: Correlation) -> None:
        self._limit = max(int(correlation.value) + 1, len(correlation.steps))
        self._seen: OrderedDict[Any, int] = OrderedDict()

    def add(self, ts_ns: int, value: Any) -> None:
        """Take a value."""
        self._seen.pop(value, None)
        self._seen[value] = ts_ns
        if len(self._seen) > self._limit:
            self._seen.popitem(last=False)

    def expire(self, horizon_ns: int) -> None:
        """Let go of what is not after the horizon."""
        while self._seen and next(iter(self._seen.values())) <= horizon_ns:
            self._seen.popitem(last=False)

    def measure(self) -> tuple[int, int]:
        """How many distinct values there are, of 1."""
        return len(self._seen), 1

    @property
    def events(self) -> int:
        """How many distinct values are in the window."""
        return len(self._seen)

    @property
    def first_ns(self) -> int:
        """The time at which the value seen longest ago was seen."""
        return next(iter(self._seen.values()))

    def save(self) -> Any:
        """As plain data."""
        return list(self._seen.items())

    def load(self, saved: Any) -> None:
        """From plain data."""
        self._seen.update((value, int(ts_ns)) for value, ts_ns in saved)


class Summed:
    """Values with their sum; ``mean`` measures the mean instead."""

    def __init__(self, correlation: Correlation) -> None:
        self._mean = correlation.type == "value_avg"
        self._samples: deque[tuple[int, int, int]] = deque()  # time, sum, how many
        self._sum = 0
        self.events = 0

    def add(self, ts_ns: int, value: int) -> None:
        """Take a value."""
        self._samples.append((ts_ns, value, 1))
        self._sum += value
        self.events += 1
        if len(self._samples) > MAX_SAMPLES:
            self._samples = deque(_paired(list(self._samples)))

    def expire(self, horizon_ns: int) -> None:
        """Let go of what is not after the horizon."""
        while self._samples and self._samples[0][0] <= horizon_ns:
            _, amount, count = self._samples.popleft()
            self._sum -= amount
            self.events -= count

    def measure(self) -> tuple[int, int]:
        """The sum and what to divide it by: 1, or for the mean the number of events."""
        return self._sum, self.events if self._mean else 1

    @property
    def first_ns(self) -> int:
        """The time of the oldest event in the window."""
        return self._samples[0][0]

    def save(self) -> Any:
        """As plain data."""
        return list(self._samples)

    def load(self, saved: Any) -> None:
        """From plain data."""
        for ts_ns, amount, count in saved:
            self._samples.append((int(ts_ns), int(amount), int(count)))
            self._sum += amount
            self.events += count


def _paired(samples: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Each two neighbours as one, which leaves the window with the later of them; the newest stays alone."""
    odd = samples[len(samples) // 2 * 2 :]
    pairs = zip(samples[0 : len(samples) // 2 * 2 : 2], samples[1::2], strict=True)
    return [(late[0], early[1] + late[1], early[2] + late[2]) for early, late in pairs] + odd


class Ranked:
    """Values in the order of time and of size, for percentiles."""

    def __init__(self, correlation: Correlation) -> None:
        self._percentile = correlation.percentile
        self._median = correlation.type == "value_median"
        self._samples: deque[tuple[int, int]] = deque()
        self._sorted: list[int] = []

    def add(self, ts_ns: int, value: int) -> None:
        """Take a value."""
        self._samples.append((ts_ns, value))
        insort(self._sorted, value)
        if len(self._samples) > MAX_SAMPLES:
            self._drop()

    def expire(self, horizon_ns: int) -> None:
        """Let go of what is not after the horizon."""
        while self._samples and self._samples[0][0] <= horizon_ns:
            self._drop()

    def _drop(self) -> None:
        _, value = self._samples.popleft()
        del self._sorted[bisect_left(self._sorted, value)]

    def measure(self) -> tuple[int, int]:
        """The percentile by nearest rank, of 1; for the median the sum of the two in the middle, of 2."""
        count = len(self._sorted)
        if self._median:
            return self._sorted[(count - 1) // 2] + self._sorted[count // 2], 2
        rank = max(1, -(-self._percentile * count // 100))
        return self._sorted[rank - 1], 1

    @property
    def events(self) -> int:
        """How many events are in the window."""
        return len(self._samples)

    @property
    def first_ns(self) -> int:
        """The time of the oldest event in the window."""
        return self._samples[0][0]

    def save(self) -> Any:
        """As plain data."""
        return list(self._samples)

    def load(self, saved: Any) -> None:
        """From plain data."""
        for ts_ns, value in saved:
            self.add(int(ts_ns), value)


_STATES: Final[dict[str, type[Counted | Distinct | Summed | Ranked]]] = {
    "event_count": Counted,
    "value_count": Distinct,
    "temporal": Distinct,
    "value_sum": Summed,
    "value_avg": Summed,
    "value_percentile": Ranked,
    "value_median": Ranked,
}


class Measured(Window):
    """State of one such rule."""

    def __init__(self, rule: Rule, incidents: Incidents) -> None:
        super().__init__(rule, incidents)
        correlation = rule.correlation
        self._make = _STATES[correlation.type]
        self._compare = _COMPARE[correlation.op]
        self._value = correlation.value
        self._temporal = correlation.type == "temporal"
        self._names = [step.name for step in correlation.steps]

    def hit(self, key: Key, event: Event, extra: Any = None) -> None:
        """One match; ``extra`` is the value, or for temporal the bits of the steps."""
        ts_ns = event.ts_ns
        young = self._young
        state = young[key] if key in young else self._find(key)
        if state.__class__ is Incident:
            if self.incidents.continues(key, state, event, ts_ns):
                return
            del self._young[key]
            state = None
        if state is None:
            if not self._crowd.admits(key, len(self._young)):
                self._evicted += 1
                return
            state = self._young[key] = self._make(self.rule.correlation)
        self._weigh(1)
        state.expire(ts_ns - self._timespan_ns)
        for value in self._met(extra) if self._temporal else (extra,):
            state.add(ts_ns, value)
        amount, parts = state.measure()
        if self._compare(amount, self._value * parts):  # without a division: exact for whole numbers
            self._begin(key, event, state.first_ns, state.events, self._reason(amount, parts))

    def _met(self, steps: int) -> list[str]:
        return [name for number, name in enumerate(self._names) if steps >> number & 1]

    def _reason(self, amount: int, parts: int) -> str:
        correlation = self.rule.correlation
        what = correlation.type.replace("_", " ") + (f" of {correlation.field}" if correlation.field else "")
        if correlation.type == "value_percentile":
            what = f"percentile {correlation.percentile} of {correlation.field}"
        shown = f"{amount / parts:g}" if amount % parts else str(amount // parts)
        span = format_duration(self._timespan_ns)
        return f"{what} {shown} in {span} ({_WORDS[correlation.op]} {correlation.value})"

    def _stamps_of(self, state: Any) -> int:
        return 0 if state.__class__ is Incident else int(state.events)

    def _plain(self, state: Any) -> Any:
        return None if state.__class__ is Incident else state.save()

    def _state(self, plain: Any) -> Any:
        state = self._make(self.rule.correlation)
        state.load(plain)
        return state
