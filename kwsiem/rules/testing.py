"""A rule's own tests: events in, the number of alerts out, through the real engine.

::

    tests:
      - name: five ports in one second
        events: [{kind: tcp.syn, source.ip: 198.51.100.7, destination.port: "20..24", every: 200ms}]
        alerts: 1

A range ``"20..24"`` stands for one event for each number; ``repeat: 5`` for five of each; ``every`` is the
time from one event to the next (1 ms when absent); ``wait: 5m`` a pause before the entry. A field that is a
time (type ``ts``) is given as a duration: so long before the event. Entries follow one
after the other, and after the last one time passes for ever, so that what waits for something to stay away is
decided. ``alerts`` counts incidents opened. This module is the one place of ``rules`` that knows the engine.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Final

from kwsiem.alert import Alert
from kwsiem.correlate.engine import Engine
from kwsiem.event import Event, EventKind, event_class, event_from_fields
from kwsiem.rules.duration import parse_duration
from kwsiem.rules.model import Rule, RuleSet
from kwsiem.rules.report import Report, nearest
from kwsiem.yamltree import Mapping, Node, Scalar, Sequence, kind_of

MAX_TESTS: Final = 100
#: Events of one test, ranges and repeats expanded.
MAX_EVENTS: Final = 10_000
DEFAULT_EVERY_NS: Final = 1_000_000
#: Kernel time at which tests begin; any time will do.
BEGIN_NS: Final = 10**15
#: When every timespan after the last event of a test is over.
FOREVER_NS: Final = 2**62
_AT: Final = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})Z", re.ASCII)
_RANGE: Final = re.compile(r"([0-9]{1,10})\.\.([0-9]{1,10})", re.ASCII)
TEST_KEYS: Final = ("name", "events", "alerts", "at")
_NEEDED: Final = TEST_KEYS[:3]
#: The keys of an event that are not its fields.
EVENT_KEYS: Final = ("kind", "every", "repeat", "wait")


@dataclass(slots=True)
class RuleTest:
    """One test, expanded: its events in order and the number of alerts they must give."""

    name: str
    place: Mapping
    events: list[Event]
    alerts: int
    offset_ns: int = 0


def read_tests(report: Report, item: Mapping, kinds: MappingType[str, EventKind]) -> list[RuleTest]:
    """The tests of a rule; problems are noted."""
    node = item.items.get("tests")
    if node is None:
        return []
    if not isinstance(node, Sequence) or len(node.items) > MAX_TESTS:
        report.add(item.keys["tests"], "tests", f"expected a list of at most {MAX_TESTS} tests")
        return []
    tests = []
    for index, test in enumerate(node.items):
        if isinstance(test, Mapping):
            made = _Reader(report, kinds, f"tests.{index}").test(test)
            if made:
                tests.append(made)
        else:
            report.add(
                test, f"tests.{index}", f"expected a test with name, events, alerts, got {kind_of(test)}"
            )
    return tests


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one test ended: the alerts it was to give and those that came; ``error`` when the engine failed."""

    name: str
    line: int
    expected: int
    got: int
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether the test gave what it was to give."""
        return self.got == self.expected and not self.error

    def __str__(self) -> str:
        said = f"expected {self.expected} alerts, got {self.got}"
        return f"{said} ({self.error})" if self.error else said


@dataclass(frozen=True, slots=True)
class Checked:
    """A rule whose tests were run, and the file it stands in."""

    rule: Rule
    file: str
    outcomes: tuple[Outcome, ...]


def outcomes(rule: Rule, tests: list[RuleTest]) -> list[Outcome]:
    """Run a rule's tests, each in an engine of its own."""
    return [_outcome(rule, test) for test in tests]


def _outcome(rule: Rule, test: RuleTest) -> Outcome:
    alerts: list[Alert] = []
    engine = Engine(alerts.append, host="test", offset_ns=test.offset_ns)
    engine.set_rules(RuleSet(rules=(rule,)))
    for cls in dict.fromkeys(map(type, test.events)):
        engine.bind(cls)
    engine.process(test.events)
    engine.finish(FOREVER_NS)
    # A chain may raise alerts of the rules below it too (``generate: true``): those are not this rule's.
    got = sum(alert.state == "open" and alert.rule_id == rule.id for alert in alerts)
    error = str(engine.counters()["last_error"])
    return Outcome(test.name, test.place.line, test.alerts, got, error)


def run_tests(report: Report, rule: Rule, tests: list[RuleTest]) -> None:
    """Run the tests; each that fails is a problem that says what was expected and what came."""
    for test, outcome in zip(tests, outcomes(rule, tests), strict=True):
        if not outcome.passed:
            report.add(test.place, "tests", f"test {test.name!r} failed: {outcome}")


#: What the loader does with a rule and its tests; a problem it notes refuses the rule.
Judge = Callable[[Report, Rule, list[RuleTest]], None]


@dataclass(slots=True)
class Collector:
    """A judge that only looks: the outcomes of each rule in ``rules``, by id, in the order of the files."""

    rules: dict[str, Checked] = field(default_factory=dict)

    def __call__(self, report: Report, rule: Rule, tests: list[RuleTest]) -> None:
        """Run the tests of a rule; one that fails is no problem of the file."""
        self.rules[rule.id] = Checked(rule, report.file, tuple(outcomes(rule, tests)))


class _Reader:
    """Reads one test."""

    def __init__(self, report: Report, kinds: MappingType[str, EventKind], path: str) -> None:
        self._report = report
        self._kinds = kinds
        self._path = path
        self._classes: dict[str, type[Event]] = {}
        self._now_ns = BEGIN_NS

    def test(self, block: Mapping) -> RuleTest | None:
        """The test with its events expanded, or None after a problem."""
        before = len(self._report.problems)
        self._report.check_keys(block, self._path, TEST_KEYS, _NEEDED)
        name = self._report.text(block, "name", f"{self._path}.name", limit=256)
        alerts = self._report.integer(block, "alerts", f"{self._path}.alerts", 0, MAX_EVENTS, 0)
        offset_ns = self._begin(block)
        events: list[Event] = []
        node = block.items.get("events")
        if isinstance(node, Sequence):
            for item in node.items:
                if len(events) <= MAX_EVENTS:  # what is too much already need not be expanded to its end
                    events += self._entry(item)
        elif node is not None:
            self._report.add(
                block.keys["events"], f"{self._path}.events", f"expected a list, got {kind_of(node)}"
            )
        if len(events) > MAX_EVENTS:
            self._report.add(block, f"{self._path}.events", f"at most {MAX_EVENTS} events, ranges expanded")
        if len(self._report.problems) > before:
            return None
        return RuleTest(name, block, events, alerts, offset_ns)

    def _begin(self, block: Mapping) -> int:
        """What to add to the time of the test's events to get wall time, so that it begins ``at``."""
        text = self._report.text(block, "at", f"{self._path}.at", limit=64)
        if not text:
            return 0
        found = _AT.fullmatch(text)
        try:
            if found is None:
                raise ValueError("not in that form")
            begin = datetime(*map(int, found.groups()), tzinfo=timezone.utc)  # type: ignore[misc,arg-type]
        except ValueError as error:
            message = f"expected a time in UTC such as '2026-01-02T03:04:05Z', got {text!r} ({error})"
            self._report.add(block.keys["at"], f"{self._path}.at", message)
            return 0
        return int(begin.timestamp()) * 10**9 - BEGIN_NS

    def _entry(self, item: Node) -> list[Event]:
        path = f"{self._path}.events"
        if not isinstance(item, Mapping):
            self._report.add(
                item, path, f"expected an event such as {{kind: tcp.syn, …}}, got {kind_of(item)}"
            )
            return []
        kind = self._report.text(item, "kind", f"{path}.kind", limit=128)
        if not kind:
            self._report.add(item, path, "key 'kind' is missing") if "kind" not in item.items else None
            return []
        if not self._report.choice(kind, self._kinds, item.keys["kind"], f"{path}.kind", "event kind"):
            return []
        self._now_ns += self._report.duration(item, "wait", f"{path}.wait", 0)
        every_ns = self._report.duration(item, "every", f"{path}.every", DEFAULT_EVERY_NS)
        repeat = self._report.integer(item, "repeat", f"{path}.repeat", 1, MAX_EVENTS, 1)
        values = self._values(item, self._kinds[kind], path)
        if values is None:
            return []
        cls = self._classes.setdefault(kind, event_class(self._kinds[kind], 0))
        events = []
        for row in [row for row in values for _ in range(repeat)][: MAX_EVENTS + 1]:
            try:
                events.append(event_from_fields(cls, cls.KIND, self._dated(cls.KIND, row), self._now_ns))
            except ValueError as error:
                self._report.add(item, path, str(error))
                return []
            self._now_ns += every_ns
        return events

    def _dated(self, kind: EventKind, row: dict[str, Any]) -> dict[str, Any]:
        """The values of one event, those that are times counted back from now. Raises ValueError."""
        times = [field.name for field in kind.wire_fields if field.type == "ts" and field.name in row]
        return {**row, **{name: self._now_ns - parse_duration(row[name]) for name in times}}

    def _values(self, item: Mapping, kind: EventKind, path: str) -> list[dict[str, Any]] | None:
        """One dictionary for each event of an entry: ranges expanded, at most one of them."""
        plain: dict[str, Any] = {}
        ranges: list[tuple[str, range]] = []
        for name, node in item.items.items():
            if name in EVENT_KEYS:
                continue
            value = node.value if isinstance(node, Scalar) else None
            found_field = kind.field(name)
            if found_field is None:
                hint = nearest(name, [f.name for f in kind.fields])
                self._report.add(item.keys[name], path, f"event kind {kind.name} has no field {name!r}{hint}")
                return None
            found = _RANGE.fullmatch(value) if isinstance(value, str) else None
            if found and found_field.type not in ("str", "bytes", "ip"):
                ranges.append((name, range(int(found[1]), int(found[2]) + 1)))
            else:
                plain[name] = value
        if not ranges:
            return [plain]
        name, numbers = ranges[0]
        if len(ranges) > 1 or not 0 < len(numbers) <= MAX_EVENTS:
            self._report.add(item.keys[name], path, f"one range of 1 to {MAX_EVENTS} numbers for an event")
            return None
        return [{**plain, name: number} for number in numbers]
