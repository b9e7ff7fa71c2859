"""Reload under full load: 150,000 lines a second from a file, the rules replaced all the time, nothing missed.

The engine process alone, driven over its links as the sensor drives it. How fast it goes is printed by
``bench/reload.py``; here only counts decide.
"""

import os
import subprocess
import sys
import threading
import time

import pytest

from kwsiem import clock
from kwsiem.event import EventKind, parse_fields
from kwsiem.link import Link, link_pair
from kwsiem.messages import (
    AlertRaised,
    AlertsDurable,
    EngineStart,
    EngineToCourier,
    FromEngine,
    ProbeAttach,
    ProbeKinds,
    Ready,
    RulesOffer,
    RulesTaken,
    Stats,
    Stop,
)
from kwsiem.rules.load import load_rules
from kwsiem.rules.source import Source

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

LINES = 1_000_000
LINES_PER_S = 150_000
RELOADS = 20
KIND = EventKind("test.load", parse_fields("source.ip:ip test.number:u32"))
STEADY = """version: 1
rules:
  - id: steady
    title: Counts everything
    level: low
    event: test.load
    detection: {every: {test.number|gte: 0}, condition: every}
    correlation: {type: event_count, timespan: 10m, condition: {gte: 1}}
    suppress: 1h
"""
#: Waits for numbers that do not come, until it is changed to take all.
CHANGED = """  - id: changed
    title: Changed while the load goes on
    level: low
    event: test.load
    detection: {every: {test.number|gte: LEAST}, condition: every}
    correlation: {type: event_count, timespan: 10m, condition: {gte: 1}}
    suppress: 1h
"""
#: A thousand rules that differ in each version, and never fire.
OTHERS = """  - id: other-NUMBER
    title: Changes
    level: low
    event: test.load
    detection: {one: {test.number: NUMBER}, condition: one}
    correlation: {type: event_count, group-by: [source.ip], timespan: 10m, condition: {gte: THRESHOLD}}
    suppress: 1h
"""


def rules(version: int, steady: bool = True, least: int | None = 10_000):
    """The steady rule, the one that is changed in the end, and a thousand that differ in each version."""
    text = STEADY if steady else "version: 1\nrules:\n"
    text += CHANGED.replace("LEAST", str(least)) if least is not None else ""
    for number in range(1000):
        text += OTHERS.replace("NUMBER", str(number)).replace("THRESHOLD", str(100_000 + version))
    return load_rules([Source("rules.yaml", text.encode())], {"test.load": KIND})


class Engine:
    """The engine process, its links in our hands."""

    def __init__(self) -> None:
        ours, theirs = link_pair()
        alerts, their_alerts = link_pair()
        argv = [sys.executable, "-I", "-m", "kwsiem.engine"]
        argv += ["--sensor-fd", str(theirs.fileno()), "--alerts-fd", str(their_alerts.fileno())]
        self.process = subprocess.Popen(argv, pass_fds=(theirs.fileno(), their_alerts.fileno()))
        theirs.close()
        their_alerts.close()
        self.link = Link(ours, FromEngine)
        self.alerts = Link(alerts, EngineToCourier)
        self.raised: list = []
        self.taken: list[RulesTaken] = []
        self.stats: dict = {}
        self.ready = False

    def pump(self) -> None:
        """Take what has come, acknowledge alerts."""
        while (message := self.link.take_message()) is not None:
            if isinstance(message, RulesTaken):
                self.taken.append(message)
            elif isinstance(message, Stats):
                self.stats = message.values
            elif isinstance(message, Ready):
                self.ready = True
        numbers = []
        while (message := self.alerts.take_message()) is not None:
            if isinstance(message, AlertRaised):
                self.raised.append(message.alert)
                numbers.append(message.number)
        if numbers:
            self.alerts.send(AlertsDurable(numbers=numbers))

    def until(self, done, what: str, timeout_s: float = 60) -> None:
        """Pump until something is so."""
        deadline_s = time.monotonic() + timeout_s
        while not done():
            self.pump()
            assert time.monotonic() < deadline_s, f"still not: {what}"
            assert self.process.poll() is None, "the engine has ended"
            time.sleep(0.002)

    def pump_for(self, seconds: float) -> None:
        """Pump for a while."""
        end_s = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end_s, "time passes")

    def offer(self, ruleset) -> RulesTaken:
        """Hand over a rule set; what the engine says of it."""
        data = ruleset.encode()
        fd = os.memfd_create("rules")
        os.write(fd, data)
        before = len(self.taken)
        self.link.send(RulesOffer(sha256=ruleset.sha256, size=len(data)), [fd])
        os.close(fd)
        self.until(lambda: len(self.taken) > before, "rules taken")
        return self.taken[-1]


@pytest.fixture
def engine():
    made = Engine()
    yield made
    made.process.kill()
    made.process.wait()
    made.link.close()
    made.alerts.close()


def write_file(path) -> None:
    begin_ns = clock.boot_ns() - 30 * 10**9
    with path.open("w") as file:
        for start in range(0, LINES, 50_000):
            file.write(
                "".join(
                    f'{{"type": "value", "data": [1,"10.0.{n >> 8 & 255}.{n & 255}",{n % 5000},{begin_ns + n * 6000}]}}\n'
                    for n in range(start, start + 50_000)
                )
            )


class Feeder(threading.Thread):
    """Writes the file into the pipe at LINES_PER_S, or as fast as it is read; the last lines when told to."""

    def __init__(self, path, fd: int) -> None:
        super().__init__()
        self.sent = 0
        self.lines = 0
        self.end = threading.Event()
        self._path = path
        self._fd = fd

    @property
    def part(self) -> float:
        """How much of the file is in the pipe, 0 to 1."""
        return self.sent / self._path.stat().st_size

    def run(self) -> None:
        size = self._path.stat().st_size
        per_s = size / LINES * LINES_PER_S
        begun = time.monotonic()
        with self._path.open("rb") as file, os.fdopen(self._fd, "wb", buffering=0) as pipe:
            while data := file.read(64 * 1024):
                if self.sent > size * 0.97:
                    self.end.wait()
                view = memoryview(data)
                while view:
                    view = view[pipe.write(view) :]
                self.sent += len(data)
                self.lines += data.count(b"\n")
                time.sleep(max(0.0, begun + self.sent / per_s - time.monotonic()))


def totals(engine: Engine, rule: str, state: str) -> list[int]:
    """The counts in a rule's alerts of one state."""
    return [alert.count for alert in engine.raised if (alert.rule_id, alert.state) == (rule, state)]


def test_reload_under_full_load_misses_and_doubles_no_event(engine, tmp_path):
    write_file(tmp_path / "lines")
    versions = [rules(version) for version in range(2)]
    changed, without = rules(0, least=0), rules(0, steady=False, least=None)
    engine.link.send(EngineStart(host="h", user="nobody", offset_ns=0))
    engine.until(lambda: engine.ready, "the engine is ready")
    engine.offer(versions[0])
    reader, writer = os.pipe()
    engine.link.send(ProbeAttach(kinds=ProbeKinds("load", {1: KIND}), generation=1), [reader])
    os.close(reader)
    feeder = Feeder(tmp_path / "lines", writer)
    feeder.start()
    for number in range(1, RELOADS + 1):
        engine.until(lambda part=number / (RELOADS + 2): feeder.part > part, "more of the file is sent")
        said = engine.offer(versions[number % 2])
        assert (said.error, said.rules) == ("", 1002)
    assert totals(engine, "changed", "open") == []
    engine.offer(changed)
    feeder.end.set()
    feeder.join()
    engine.until(lambda: engine.stats.get("lines", {}).get("load", {}).get("received") == LINES, "all lines")
    lines = engine.stats["lines"]["load"]
    assert (feeder.lines, lines["accepted"], lines["rejected"]) == (LINES, LINES, {})
    assert engine.stats["engine"]["events"] == {"test.load": LINES}
    assert (engine.stats["engine"]["errors"], engine.stats["failed_batches"]) == ({}, 0)
    # The rule that stayed the same ends: its close says how many events it has counted.
    engine.offer(without)
    engine.until(lambda: totals(engine, "changed", "close"), "the close of both rules")
    assert totals(engine, "steady", "open") == [1]
    assert totals(engine, "steady", "close") == [LINES]
    # The one that was changed counts from then on, all lines that came after it.
    assert totals(engine, "changed", "open") == [1]
    assert LINES * 0.03 <= totals(engine, "changed", "close")[0] < LINES
    assert {alert.rule_id for alert in engine.raised} == {"steady", "changed"}
    engine.link.send(Stop())
    assert engine.process.wait(10) == 0
    took = sorted(message.took_ms for message in engine.taken)
    print(
        f"{len(took)} times 1,002 rules taken over in {took[len(took) // 2]:.0f} ms (longest {took[-1]:.0f})"
    )
