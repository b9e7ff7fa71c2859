"""The engine process: reads the probes' pipes, decodes, correlates, hands alerts to the courier.

Run by the sensor as ``python -I -m kwsiem.engine``; it imports everything, takes its first message, gives up
all rights, and only then reads what came from outside. One thread, and nothing else in the process: a busy
second thread would halve it (``docs/architecture.md``).
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import selectors
import signal
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from kwsiem import clock, logs, rights
from kwsiem.alert import Alert
from kwsiem.correlate.engine import Engine
from kwsiem.decode import LineDecoder
from kwsiem.errors import KwsiemError, LinkError
from kwsiem.event import LOSSES, OWN_KINDS, Event, event_class, event_from_fields
from kwsiem.event_log import EventLog
from kwsiem.histogram import Histogram
from kwsiem.link import Link
from kwsiem.messages import (
    AlertRaised,
    AlertsDurable,
    BlockRequest,
    BlockWithdrawn,
    ClockOffset,
    CourierRestarted,
    CourierToEngine,
    EngineStart,
    Heartbeat,
    OwnEvent,
    ProbeAttach,
    ProbeDrained,
    ProbeKinds,
    Ready,
    RulesOffer,
    RulesTaken,
    RuleStats,
    SeriesTold,
    Stats,
    Stop,
    ToEngine,
)
from kwsiem.recording import Recorder
from kwsiem.rule_figures import MAX_RULES, RULES_PER_MESSAGE, RuleCounts
from kwsiem.rules.model import decode_ruleset
from kwsiem.series_feed import Deltas, Feed, next_due
from kwsiem.statefile import StateFiles
from kwsiem.tally import Tally

READ_BYTES: Final = 256 * 1024
#: A read of more than this means load: then let the pipe fill for a tick instead of waking for each line.
BUSY_BYTES: Final = 4096
TICK_S: Final = 0.005  # 3.4 % of a core at 150,000 lines/s, against 29-43 % for an eager reader (measured)
MAX_UNACKNOWLEDGED: Final = 20_000
#: Requests for blocks that the link to the sensor did not take yet.
MAX_UNSENT_BLOCKS: Final = 10_000
MAX_RULES_BYTES: Final = 64 * 2**20
DRAIN_S: Final = 2.0
#: Sigma rules that cannot be evaluated, named to the sensor; the rest is only counted.
MAX_SKIPPED: Final = 50
MAX_ERROR: Final = 1000
#: A copy of the process that writes a snapshot for longer than this is ended.
SNAPSHOT_S: Final = 30

log = logging.getLogger("kwsiem.engine")


class ProbePipe:
    """The pipe of one run of a probe, with its decoder."""

    def __init__(self, fd: int, kinds: ProbeKinds, generation: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.generation = generation
        self.decoder = LineDecoder(kinds)
        self.heartbeat_ns = 0
        self.lost = 0
        self.full = False
        self.latest_ns = 0

    def read(self) -> bytes | None:
        """Bytes that are there; empty at the end of the pipe, None when there is nothing now."""
        self.full = False
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return None
        self.full = len(data) == READ_BYTES  # then there may be more: what comes next may be older than now
        return data


class Courier:
    """Our side of the alerts: each has a number and is kept until the courier says it is on disk."""

    def __init__(self, link: Link[CourierToEngine]) -> None:
        self.link = link
        # Numbers of two runs of the engine must not meet: an acknowledgement may outlive its run.
        self._first = self.number = clock.boot_ns()
        self.dropped = 0
        self.acknowledged = 0
        #: Kernel time of the deciding event until the courier had the alert on disk.
        self.durable = Histogram()
        #: Alerts up to this number are of an earlier run: how long they took says nothing of this one.
        self.old_until = self.number
        self._kept: OrderedDict[int, AlertRaised] = OrderedDict()
        self._unsent: OrderedDict[int, AlertRaised] = OrderedDict()

    @property
    def raised(self) -> int:
        """Alerts of this run so far."""
        return self.number - self._first

    @property
    def waiting(self) -> int:
        """Alerts that are not acknowledged yet."""
        return len(self._kept)

    def unacknowledged(self) -> list[Alert]:
        """Alerts that are not known to be on disk, oldest first."""
        return [message.alert for message in self._kept.values()]

    def raise_alert(self, alert: Alert) -> None:
        """Send one alert; keep it whatever happens, up to MAX_UNACKNOWLEDGED (then counted and dropped)."""
        self.number += 1
        if len(self._kept) >= MAX_UNACKNOWLEDGED:
            self.dropped += 1
            return
        message = AlertRaised(number=self.number, alert=alert)
        self._kept[self.number] = message
        if self._unsent or not self._send(message):
            self._unsent[self.number] = message

    def _send(self, message: AlertRaised) -> bool:
        try:
            return self.link.send(message)
        except (LinkError, UnicodeEncodeError):
            # Too large, or text that no encoder takes: evidence can be spared, the incident matters.
            alert = message.alert
            alert.evidence, alert.values, alert.fields = [], [], {}
        try:
            return self.link.send(message)
        except (LinkError, UnicodeEncodeError) as error:
            log.error("alert cannot be sent", extra={"rule": message.alert.rule_id, "error": str(error)})
            self.dropped += 1
            self._kept.pop(message.number, None)
            return True

    def flush(self) -> None:
        """Send what the full buffer refused before, in order."""
        while self._unsent:
            number, message = next(iter(self._unsent.items()))
            if not self._send(message):
                return
            del self._unsent[number]

    def restart(self) -> None:
        """The courier is a new one: all that is not acknowledged goes again."""
        self._unsent = OrderedDict(self._kept)
        self.flush()

    def receive(self) -> None:
        """Take acknowledgements."""
        while (message := self.link.take_message()) is not None:
            if isinstance(message, AlertsDurable):
                now_ns = clock.boot_ns()
                for number in message.numbers:
                    self._unsent.pop(number, None)
                    settled = self._kept.pop(number, None)
                    self.acknowledged += settled is not None
                    if settled and number > self.old_until and settled.alert.state == "open":
                        self.durable.observe((now_ns - settled.alert.opened_ts_ns) / clock.NS_PER_S)


class Blocks:
    """Our side of blocking: what rules ask for goes to the sensor at once, before the alert is on disk."""

    def __init__(self, link: Link[ToEngine]) -> None:
        self._link = link
        self._unsent: deque[BlockRequest | BlockWithdrawn] = deque(maxlen=MAX_UNSENT_BLOCKS)
        self.asked = 0
        self.withdrawn = 0
        self.dropped = 0

    def ask(self, alert: Alert) -> None:
        """Ask for what the alert's rule wants, if it wants anything."""
        value = alert.block.get("value")
        if not isinstance(value, str):
            return
        self.asked += 1
        self._send(
            BlockRequest(
                alert_id=alert.id,
                rule_id=alert.rule_id,
                value=value[:64],
                for_s=alert.block["for_s"],
                evidence=alert.block["evidence"],
                spoofable=alert.block["spoofable"],
                reason=alert.reason[:256],
            )
        )

    def withdraw(self, alert_id: str, rule_id: str, value: str) -> None:
        """The block that an alert asked for is not wanted any more."""
        self.withdrawn += 1
        self._send(BlockWithdrawn(alert_id=alert_id, rule_id=rule_id, value=value[:64]))

    def _send(self, message: BlockRequest | BlockWithdrawn) -> None:
        """Send in order; when too much waits, the oldest is dropped and counted."""
        if len(self._unsent) == MAX_UNSENT_BLOCKS:
            self.dropped += 1
        self._unsent.append(message)
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the link takes it."""
        while self._unsent:
            try:
                if not self._link.send(self._unsent[0]):
                    return
            except (LinkError, UnicodeEncodeError) as error:
                log.error("block cannot be asked for", extra={"error": str(error)})
                self.dropped += 1
            self._unsent.popleft()


class Figures:
    """Our side of the history of figures: what arrived, what was lost, and our own events.

    ``alerts`` counts incidents that opened, by level.
    """

    def __init__(self, link: Link[CourierToEngine]) -> None:
        self._link = link
        self.every_s = 10.0
        self.tally = Tally()
        self.feed = Feed(self._send)
        self.alerts: Counter[str] = Counter()
        self._deltas = Deltas()
        self._due_s = clock.monotonic_s()

    def _send(self, message: SeriesTold) -> bool:
        try:
            return self._link.send(message)
        except (LinkError, UnicodeEncodeError) as error:
            log.error("figures cannot be sent", extra={"error": str(error)})
            self.feed.lost += 1
            return True

    def every_second(self, counters: Mapping[str, Any], until_ns: int) -> None:
        """Tell what is new when it is time."""
        self.tally.advance(until_ns)
        self.feed.tick()
        now_s = clock.monotonic_s()
        if now_s >= self._due_s:
            self._due_s = next_due(self._due_s, now_s, self.every_s)
            self.tell(counters)

    def tell(self, counters: Mapping[str, Any], last: bool = False) -> None:
        """Tell all that is new since the call before."""
        found = self.tally.take(last)
        found["events"] = self._deltas.of("events", counters["engine"]["events"])
        found["alerts"] = self._deltas.of("alerts", self.alerts)
        found["lost"] = self._deltas.of("lost", _losses(counters))
        self.feed.tell(found)


def _losses(counters: Mapping[str, Any]) -> dict[str, int]:
    """What this process knows was given up, as ``stage:reason``."""
    found: Counter[str] = Counter()
    for reasons in counters["engine"]["lost"].values():
        for reason, count in reasons.items():
            if reason in LOSSES:
                found[f"sensor:{reason}"] += count
    for lines in counters["lines"].values():
        for reason, count in lines["rejected"].items():
            found[f"decode:{reason}"] += count
    found["engine:failed_batches"] = counters["failed_batches"]
    found["engine:unacknowledged"] = counters["alerts"]["dropped"]
    found["engine:unsent_blocks"] = counters["blocks"]["dropped"]
    found["engine:figures"] = counters["series_lost"]
    return dict(found)


class _Saved(msgspec.Struct):
    state: bytes
    alerts: list[Alert]


class Snapshots:
    """Writes each second what a next run needs, from a forked copy: that costs the engine a millisecond.

    That is the state of the rules, and the alerts that are not yet on the courier's disk. While nothing has
    changed nothing is written: on a quiet host the copies were half of what the engine costs (measured).
    """

    def __init__(
        self, files: StateFiles, engine: Engine, courier: Courier, raise_alert: Callable[[Alert], None]
    ) -> None:
        self._files = files
        self._engine = engine
        self._courier = courier
        self._raise = raise_alert
        self._child = 0
        #: What the counts were when the state was written that stands now, and the one being written.
        self._counts_written: Any = None
        self._counts_begun: Any = None
        self.written = 0
        self.unchanged = 0
        self.failed = 0

    def restore(self) -> None:
        """Go on where an earlier run ended: rules get their state, alerts are raised again."""
        content = self._files.read()
        if content is None:
            return
        try:
            saved = msgspec.msgpack.decode(content, type=_Saved)
            self._engine.offer(saved.state)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            self.failed += 1
            log.error("state of the earlier run cannot be read", extra={"error": str(error)})
            return
        for alert in saved.alerts:
            self._raise(alert)

    def begin(self, counts: Any) -> None:
        """Write what is now, unless the write before is still under way.

        ``counts`` are equal to those of an earlier call only if nothing has come or been decided since. Time
        alone changes nothing that a next run would not do by itself: windows go by the time of events.
        """
        if self._child and not self._ended():
            return
        if counts == self._counts_written:
            self.unchanged += 1
            return
        self._counts_begun = counts
        fd = self._files.take_turn()
        try:
            self._child = os.fork()
        except OSError as error:  # no memory, no process: the state before still stands
            self.failed += 1
            log.error("state cannot be written", extra={"error": str(error)})
            return
        if self._child:
            return
        status = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.alarm(SNAPSHOT_S)
            status = 0 if self._write(fd) else 1
        finally:
            os._exit(status)

    def _write(self, fd: int) -> bool:
        content = msgspec.msgpack.encode(_Saved(self._engine.save(), self._courier.unacknowledged()))
        return self._files.write(fd, content, clock.boot_ns())

    def finish(self) -> None:
        """Write the last state of this run."""
        if self._child:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
        try:
            self._write(self._files.take_turn())
        except (OSError, UnicodeEncodeError) as error:
            log.error("state cannot be written", extra={"error": str(error)})

    def _ended(self) -> bool:
        pid, status = os.waitpid(self._child, os.WNOHANG)
        if not pid:
            return False
        self._child = 0
        if status:
            self.failed += 1
        else:
            self.written += 1
            self._counts_written = self._counts_begun
        return True


class EngineProcess:
    """Everything the process holds, and its loop."""

    def __init__(self, sensor: Link[ToEngine], alerts: Link[CourierToEngine]) -> None:
        self.sensor = sensor
        self.courier = Courier(alerts)
        self.blocks = Blocks(sensor)
        self.figures = Figures(alerts)
        self.selector = selectors.DefaultSelector()
        self.pipes: dict[tuple[str, int], ProbePipe] = {}
        self.past: dict[str, dict[str, Any]] = {}
        self.refused = 0
        self.failed_batches = 0
        #: Kernel time of the deciding event until its alert was built; of incidents that open, since updates
        #: and ends are told when time has passed.
        self.built = Histogram()
        self._said: Counter[tuple[str, str]] = Counter()
        self._told_rules = 0
        self.stopping = False
        self.recorders: list[Recorder] = []
        self.event_log: EventLog | None = None
        self.snapshots: Snapshots | None = None

    def start(self) -> None:
        """Take the first message, give up all rights, say that we are ready."""
        os.set_blocking(self.sensor.fileno(), True)
        received = self.sensor.receive()
        start, fds = received or (None, [])
        if not isinstance(start, EngineStart):
            raise LinkError("the sensor did not begin with engine_start")
        os.set_blocking(self.sensor.fileno(), False)
        logs.setup("engine", start.log_level)
        rights.drop(start.user)
        self.engine = Engine(
            self._raise, host=start.host, offset_ns=start.offset_ns, withdraw=self.blocks.withdraw
        )
        self.own: dict[str, type[Event]] = {name: event_class(kind, 0) for name, kind in OWN_KINDS.items()}
        for cls in self.own.values():
            self.engine.bind(cls)
        self.figures.every_s = start.figures_s
        if start.snapshots:
            self.snapshots = Snapshots(StateFiles(fds[:2]), self.engine, self.courier, self._pass_on)
            self.snapshots.restore()
            self.courier.old_until = self.courier.number
        if start.record:
            self.recorders.append(Recorder(fds[-1], start.host, start.offset_ns))
        if start.event_log:
            self.event_log = EventLog(start.event_log, start.host, start.offset_ns)
            self.recorders.append(self.event_log)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stopping", True))
        self.selector.register(self.sensor, selectors.EVENT_READ, self._from_sensor)
        self.selector.register(self.courier.link, selectors.EVENT_READ, self.courier.receive)
        gc.collect()
        gc.freeze()
        gc.disable()  # all state is acyclic; a collection over a flood's keys stalls for 100 ms (measured)
        self.sensor.send(Ready(pid=os.getpid()))

    def _raise(self, alert: Alert) -> None:
        """An alert of the rules: count it, pass it on."""
        self._said[alert.rule_id, alert.state] += 1
        if alert.state == "open":
            self.figures.alerts[alert.level] += 1
            self.built.observe((clock.boot_ns() - alert.opened_ts_ns) / clock.NS_PER_S)
        self._pass_on(alert)

    def _pass_on(self, alert: Alert) -> None:
        """Ask for the block first: it is what hurries."""
        self.blocks.ask(alert)
        self.courier.raise_alert(alert)

    def run(self) -> None:
        """Serve until told to stop or until the sensor is gone."""
        next_second_s = clock.monotonic_s()
        while not self.stopping and not self.sensor.closed:
            now_s = clock.monotonic_s()
            now_ns = clock.boot_ns()
            read = 0
            for key, _ in self.selector.select(max(0.0, next_second_s - now_s)):
                read += key.data() or 0
            # After the reading: when this process was held up, the pipes hold events from before.
            if clock.monotonic_s() >= next_second_s:
                next_second_s = clock.monotonic_s() + 1.0
                self._every_second(now_ns)
            if read > BUSY_BYTES:
                clock.sleep_s(TICK_S)
        self._drain()

    def _from_sensor(self) -> None:
        while (received := self.sensor.take()) is not None:
            message, fds = received
            try:
                self._take(message, fds)
            except (KwsiemError, msgspec.DecodeError, ValueError, OSError) as error:
                self.refused += 1
                log.error("message refused", extra={"error": str(error), "type": type(message).__name__})

    def _take(self, message: ToEngine, fds: list[int]) -> None:
        if isinstance(message, ProbeAttach):
            self._attach(message, fds[0])
        elif isinstance(message, RulesOffer):
            self._take_rules(message, fds[0])
        elif isinstance(message, OwnEvent):
            self._own(message.kind, message.fields, message.ts_ns)
        elif isinstance(message, ClockOffset):
            self.engine.offset_ns = message.offset_ns
            for recorder in self.recorders:
                recorder.offset(message.offset_ns)
        elif isinstance(message, CourierRestarted):
            self.courier.restart()
        elif isinstance(message, Stop):
            self.stopping = True

    def _own(self, kind: str, fields: dict[str, Any], ts_ns: int) -> None:
        """An event of ours, to the rules and to the journal."""
        cls = self.own[kind]
        self.engine.process([event_from_fields(cls, cls.KIND, fields, ts_ns)])
        self.figures.feed.note(kind, fields, ts_ns + self.engine.offset_ns)

    def _attach(self, message: ProbeAttach, fd: int) -> None:
        pipe = ProbePipe(fd, message.kinds, message.generation)
        self.pipes[message.kinds.probe, message.generation] = pipe
        for cls in pipe.decoder.classes:
            self.engine.bind(cls)
            if look := self.figures.tally.looker(cls):
                self.engine.look_at(cls, look)
        for recorder in self.recorders:
            recorder.contract(message.kinds)
        self.selector.register(fd, selectors.EVENT_READ, lambda: self._read(pipe))

    def _take_rules(self, message: RulesOffer, fd: int) -> None:
        error, rules, skipped = "", 0, []
        before_s = clock.monotonic_s()
        try:
            if message.size > MAX_RULES_BYTES:
                raise LinkError(f"rule set of {message.size} bytes, at most {MAX_RULES_BYTES}")
            ruleset = decode_ruleset(os.pread(fd, message.size, 0))
            self.engine.set_rules(ruleset)
            rules = len(ruleset.rules)
            known = {rule.id for rule in ruleset.rules}
            self._said = Counter({said: count for said, count in self._said.items() if said[0] in known})
            self._told_rules = 0
            skipped = [f"{each.place}: {each.rule}: {each.reason}"[:300] for each in ruleset.skipped]
        except KwsiemError as refused:
            error = str(refused)
        except Exception as refused:  # The edge: the rules that run must outlive any others.
            log.exception("rules cannot be taken")
            error = f"{type(refused).__name__}: {refused}"
        finally:
            os.close(fd)
        took_ms = (clock.monotonic_s() - before_s) * 1000
        self.sensor.send(
            RulesTaken(
                sha256=message.sha256,
                rules=rules,
                took_ms=took_ms,
                error=error[:MAX_ERROR],
                skipped=skipped[:MAX_SKIPPED],
                skipped_count=len(skipped),
            )
        )

    def _read(self, pipe: ProbePipe) -> int:
        """One read of one pipe, all the way to alerts; the number of bytes."""
        data = pipe.read()
        if data is None:
            return 0
        decoder = pipe.decoder
        if not data:
            decoder.finish()
            self._end(pipe)
            return 0
        events = decoder.feed(data)
        if events:
            self._process(events)
            pipe.latest_ns = events[-1].ts_ns
        for recorder in self.recorders:
            recorder.lines(decoder.probe, data)
        if decoder.heartbeat_ns != pipe.heartbeat_ns:
            pipe.heartbeat_ns = decoder.heartbeat_ns
            beat = Heartbeat(probe=decoder.probe, generation=pipe.generation, ts_ns=decoder.heartbeat_ns)
            self.sensor.send(beat)
        if decoder.lost != pipe.lost:
            self._report_lost(pipe)
        return len(data)

    def _process(self, events: list[Event]) -> None:
        now_ns = clock.boot_ns()
        before = self.engine.future
        try:
            self.engine.process(events, now_ns)
            if self.engine.future != before:
                for recorder in self.recorders:
                    recorder.clock(now_ns)
        except Exception:
            # The edge of the stage: an event that no test foresaw must not end the process unnoticed.
            self.failed_batches += 1
            log.exception("events could not be processed", extra={"events": len(events)})

    def _report_lost(self, pipe: ProbePipe) -> None:
        """What bpftrace could not deliver: that is an event of its own."""
        lost, pipe.lost = pipe.decoder.lost - pipe.lost, pipe.decoder.lost
        fields = {"probe.name": pipe.decoder.probe, "event.reason": "ring_buffer", "event.count": lost}
        self._own("sensor.lost", fields, clock.boot_ns())

    def _end(self, pipe: ProbePipe) -> None:
        """The pipe has ended: keep its counts, forget the rest."""
        probe = pipe.decoder.probe
        self.selector.unregister(pipe.fd)
        os.close(pipe.fd)
        del self.pipes[probe, pipe.generation]
        self.past[probe] = _sum(self.past.get(probe), _line_counts(pipe.decoder))
        for cls in pipe.decoder.classes:
            self.engine.unbind(cls)
        self.sensor.send(ProbeDrained(probe=probe, generation=pipe.generation))

    def _every_second(self, now_ns: int) -> None:
        # All that was in the pipes at ``now_ns`` has been read, but for those that still hold more.
        until_ns = min([now_ns, *(pipe.latest_ns for pipe in self.pipes.values() if pipe.full)])
        self.engine.advance(until_ns)
        for recorder in self.recorders:
            recorder.advanced(until_ns)
        for rule_id, held in self.engine.held_back():
            self._own("rules.limited", {"rule.id": rule_id, "event.count": held}, now_ns)
        counters = self._counters()
        if self.snapshots:
            self.snapshots.begin((counters["engine"], counters["alerts"]))
        self.courier.flush()
        self.blocks.flush()
        self.figures.every_second(counters, until_ns)
        self.sensor.send(Stats(values=counters))
        self._tell_rules()
        for recorder in self.recorders:
            recorder.flush()
        if self.event_log:
            self.event_log.tick()

    def _tell_rules(self) -> None:
        """The counts of the next rules; each second some, so that all of 5,000 are told within 25 s."""
        found = self._rule_counts(self._told_rules)
        if not found and self._told_rules:
            self._told_rules = 0
            found = self._rule_counts(0)
        if found and self.sensor.send(RuleStats(sha256=self.engine.sha256, rules=found)):
            self._told_rules += len(found)

    def _rule_counts(self, start: int) -> dict[str, RuleCounts]:
        if start >= MAX_RULES:
            return {}
        found = self.engine.rule_counts(start, RULES_PER_MESSAGE)
        for rule, counts in found.items():
            counts.opened = self._said[rule, "open"]
            counts.updated = self._said[rule, "update"]
            counts.closed = self._said[rule, "close"]
        return found

    def _counters(self) -> dict[str, Any]:
        lines = dict(self.past)
        for pipe in self.pipes.values():
            name = pipe.decoder.probe
            lines[name] = _sum(lines.get(name), _line_counts(pipe.decoder))
        return {
            "lines": lines,
            "engine": self.engine.counters(),
            "alerts": {
                "raised": self.courier.raised,
                "acknowledged": self.courier.acknowledged,
                "waiting": self.courier.waiting,
                "dropped": self.courier.dropped,
            },
            "blocks": {
                "asked": self.blocks.asked,
                "withdrawn": self.blocks.withdrawn,
                "dropped": self.blocks.dropped,
            },
            "bad_messages": self.refused + self.sensor.bad + self.courier.link.bad,
            "failed_batches": self.failed_batches,
            "latency": {"built": self.built.figures(), "durable": self.courier.durable.figures()},
            "event_log": {
                "on": self.event_log is not None,
                "rotated": self.event_log.rotated if self.event_log else 0,
                "lost": self.event_log.lost if self.event_log else 0,
                "failed": self.event_log.failed if self.event_log else "",
            },
            "series_lost": self.figures.feed.lost,
            "snapshots": {
                "written": self.snapshots.written if self.snapshots else 0,
                "unchanged": self.snapshots.unchanged if self.snapshots else 0,
                "failed": self.snapshots.failed if self.snapshots else 0,
            },
        }

    def _drain(self) -> None:
        """Take what the probes have already printed, then wait until the courier has all alerts on disk."""
        deadline_s = clock.monotonic_s() + DRAIN_S
        for pipe in list(self.pipes.values()):
            while clock.monotonic_s() < deadline_s and self._read(pipe):
                pass
        self.figures.tell(self._counters(), last=True)
        while self.courier.waiting and clock.monotonic_s() < deadline_s and not self.courier.link.closed:
            self.courier.flush()
            self.blocks.flush()
            self.courier.receive()
            clock.sleep_s(TICK_S)
        for recorder in self.recorders:
            recorder.flush()
        if self.event_log:
            self.event_log.close()
        if self.snapshots:
            self.snapshots.finish()
        self.sensor.send(Stats(values=self._counters()))
        log.info("engine ends", extra={"alerts": self.courier.raised, "unacknowledged": self.courier.waiting})


def _line_counts(decoder: LineDecoder) -> dict[str, Any]:
    counts: dict[str, Any] = {
        "received": decoder.received,
        "accepted": decoder.accepted,
        "rejected": dict(decoder.rejected),
        "lost": decoder.lost,
    }
    if decoder.last_rejected:
        counts["last_rejected"] = decoder.last_rejected
    return counts


def _sum(left: dict[str, Any] | None, right: dict[str, Any]) -> dict[str, Any]:
    """The counts of two runs of a probe together."""
    total = dict(left or {})
    for name, value in right.items():
        if isinstance(value, dict):
            total[name] = _sum(total.get(name), value)
        elif isinstance(value, str):
            total[name] = value
        else:
            total[name] = total.get(name, 0) + value
    return total


def main() -> int:
    """Entry of the process; 0 after a clean end."""
    parser = argparse.ArgumentParser(prog="kwsiem.engine", description="The engine; started by the sensor.")
    parser.add_argument("--sensor-fd", type=int, required=True)
    parser.add_argument("--alerts-fd", type=int, required=True)
    options = parser.parse_args()
    sensor: Link[ToEngine] = Link.from_fd(options.sensor_fd, ToEngine)
    process = EngineProcess(sensor, Link.from_fd(options.alerts_fd, CourierToEngine))
    process.start()
    process.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
