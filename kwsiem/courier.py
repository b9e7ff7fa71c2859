"""The courier process: alerts from the engine to disk, and from disk to every output.

Run by the sensor as ``python -I -m kwsiem.courier``; like the engine it takes its first message as root,
gives up all rights, and then serves. One thread takes alerts and commits them in groups; each output has a
thread of its own, so that a slow one holds up nobody.

An alert is acknowledged to the engine when it is on disk, or when every output has settled it; never for
being in memory. While the disk takes nothing alerts are held in memory (outbox.HELD_ALERTS, HELD_BYTES) and
go on to the outputs; when there is no more room they stay in the link and with the engine, which keeps
20,000 that are not acknowledged and counts what it drops beyond.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import logging
import os
import queue
import selectors
import signal
import sqlite3
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from kwsiem import clock, failpoint, logs, rights
from kwsiem.alert import raised_ns_of
from kwsiem.clock import NS_PER_S
from kwsiem.config import Settings
from kwsiem.delivery import has_summary, make_chatops, make_output, make_route, make_summaries
from kwsiem.document import document
from kwsiem.errors import EXIT_CONFIG, ConfigError, LinkError
from kwsiem.link import Link
from kwsiem.messages import (
    Acknowledge,
    AlertRaised,
    AlertsDurable,
    ChatAnswer,
    ChatRequest,
    CourierStart,
    EngineToCourier,
    OwnEvent,
    Ready,
    RetryDead,
    SeriesTold,
    Stats,
    Stop,
    ToCourier,
)
from kwsiem.outbox import Item, Outbox, balanced
from kwsiem.output_settings import OutputSettings
from kwsiem.outputs.base import Output
from kwsiem.outputs.chatstate import ChatState
from kwsiem.outputs.worker import Worker, WorkerThread
from kwsiem.secret import secrets_of
from kwsiem.series import FILE_NAME, MAX_LABEL, Acknowledged, Journal
from kwsiem.series_feed import Deltas, Uptime, next_due
from kwsiem.series_file import SeriesFile, SeriesWriter, cleaned_who
from kwsiem.text import clean

if TYPE_CHECKING:
    from kwsiem.outputs.chatops import ChatOps, ChatThread

#: What is committed at once: all that is there, but no more than this, …
GROUP_ALERTS: Final = 500
#: … and no more than can be made into documents in this time, so that an alert is durable within 10 ms.
#: While more waits than that, twice as long for each group: in a storm the queue is what takes time, and
#: larger groups shorten it (2,900 alerts/s with 5 ms, 4,500 with 500 alerts; measured).
GROUP_S: Final = 0.005
GROUP_MOST_S: Final = 0.2
TICK_S: Final = 0.2
#: Numbers in one acknowledgement: 9 bytes each at most, of link.MAX_MESSAGE_BYTES.
ACKNOWLEDGED_ALERTS: Final = 5000
#: After a stop the outputs may go on for so long; what waits then is on disk.
DRAIN_S: Final = 2.0
#: The courier of before, whose sensor was killed, ends within this.
LOCK_S: Final = 10.0
#: Figures may wait so long for a courier.
LATE_MOST_S: Final = 3600
#: So long a chat waits for the sensor.
ASK_S: Final = 10.0
#: Silent rules that the counters name.
MUTES_SHOWN: Final = 100

log = logging.getLogger("kwsiem.courier")


class CourierProcess:
    """Everything the process holds, and its loop."""

    def __init__(self, sensor: Link[ToCourier], alerts: Link[EngineToCourier], *, stdout_fd: int = 1) -> None:
        self.sensor = sensor
        self.alerts = alerts
        self.stopping = False
        self.received = 0
        self.rejected = 0
        self._stdout_fd = stdout_fd
        self.disk_error = ""
        #: Taken from the link, and neither on disk nor in memory's place for such alerts.
        self._pending: list[tuple[int, Item | None]] = []
        self._held: dict[str, list[int]] = {}
        self._unacknowledged: list[int] = []
        self._events: deque[tuple[str, dict[str, Any]]] = deque(maxlen=1000)
        self._lost: Counter[tuple[str, str]] = Counter()
        self._was_holding = False
        self._unpruned = 0
        self._group_s = GROUP_S
        self._alive_s = 0.0
        self._last_counters: dict[str, Any] = {}
        self._threads: list[WorkerThread] = []
        self._asked = _Asked()
        self._chats: list[ChatThread] = []

    def start(self) -> None:
        """Take the first message, give up all rights, open the outbox, start the outputs."""
        os.set_blocking(self.sensor.fileno(), True)
        received = self.sensor.receive()
        if received is None or not isinstance(received[0], CourierStart):
            raise LinkError("the sensor did not begin with courier_start")
        os.set_blocking(self.sensor.fileno(), False)
        settings = msgspec.convert(received[0].settings, Settings)
        logs.setup("courier", settings.log_level)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stopping", True))
        outputs = [(output, self._output(output, Path(settings.env_file))) for output in settings.outputs]
        chats = self._make_chats(settings)
        rights.drop(settings.user)
        state = Path(settings.state_dir)
        self._lock = _lock(state / "courier.lock")
        self.outbox = Outbox(
            state / "kwsiem.db",
            [output.name for output in settings.outputs],
            history=settings.history_alerts,
            max_bytes=settings.outbox_max_bytes,
            history_age_s=settings.history.max_age_s,
            max_age_s={output.name: output.max_age_s for output in settings.outputs},
            alive=self._say_alive,
        )
        has_state = bool(chats) or any(has_summary(output) for output in settings.outputs)
        self._chat_state = ChatState(state / "chat.json") if has_state else None
        self._host = received[0].host
        history = settings.history
        file = SeriesFile(state / FILE_NAME, max_age_s=history.max_age_s, max_bytes=history.max_bytes)
        self.series = SeriesWriter(file)
        self._own_figures = _OwnFigures(history.every_s)
        self._threads = [WorkerThread(self._worker(*pair)) for pair in outputs]
        self._start_chats(chats)
        self.sensor.send(Ready(pid=os.getpid()))

    def _output(self, settings: OutputSettings, env_file: Path) -> Output:
        """One output, with its secrets and keys, while we are still root."""
        notes = _Notes(self, settings.name)
        return make_output(settings, secrets_of(settings, env_file), self._stdout_fd, notes)

    def _make_chats(self, settings: Settings) -> list[ChatOps]:
        """ChatOps of the outputs that have it; of two with one bot only the first may read its updates."""
        found: list[ChatOps] = []
        tokens: set[str] = set()
        for output in settings.outputs:
            if not getattr(output, "chatops", None):
                continue
            secrets = secrets_of(output, Path(settings.env_file))
            notes = _Notes(self, output.name)
            chat = make_chatops(output, secrets, notes, self._asked.ask, self._tell)
            if chat is None:
                continue
            if secrets["token"] in tokens:
                log.error("no ChatOps: another output has it with this bot", extra={"output": output.name})
                continue
            tokens.add(secrets["token"])
            found.append(chat)
        return found

    def _start_chats(self, chats: list[ChatOps]) -> None:
        if self._chat_state is None or not chats:
            return
        from kwsiem.outputs.chatops import ChatThread  # noqa: PLC0415 - loaded already where there is one

        for chat in chats:
            chat.begin(self._chat_state, self.outbox, self._acknowledge_chat)
            self._chats.append(ChatThread(chat))

    def _acknowledge_chat(self, incident_id: str, who: str) -> str:
        """Write down who acknowledged in a chat; who it was first, by the file when that can be written."""
        found = self.series.acknowledge_now(incident_id, Acknowledged(clock.wall_ns(), who))
        # The file cleans names: what is in it of this one is the same.
        return found.who if found and found.who != cleaned_who(who) else who

    def _acknowledged(self, message: Acknowledge) -> None:
        """Somebody did so elsewhere."""
        self.series.acknowledge(message.incident_id, Acknowledged(message.at_ns, message.who))
        for thread in self._chats:
            try:
                thread.chat.acknowledged(message.incident_id, message.who)
            except sqlite3.Error as error:
                log.error(
                    "acknowledgement not noted", extra={"output": thread.chat.name, "error": str(error)}
                )

    def _tell(self, kind: str, fields: dict[str, Any]) -> None:
        self._events.append((kind, fields))

    def _worker(self, settings: OutputSettings, output: Output) -> Worker:
        def changed(state: str, previous: str, reason: str) -> None:
            fields = {"output.name": settings.name, "output.state": state}
            fields |= {"output.previous": previous, "event.reason": reason}
            self._events.append(("output.state", fields))

        is_muted = self._chat_state.is_muted if self._chat_state else None
        route = make_route(settings, output.limits, is_muted, _Notes(self, settings.name))
        summaries = None
        if self._chat_state:
            summaries = make_summaries(
                settings, self._host, self.outbox.path, self._chat_state, self.outbox.ledger
            )
        return Worker(settings.name, output, self.outbox, route, extras=summaries, on_state=changed)

    def run(self) -> None:
        """Serve until told to stop or until the sensor is gone."""
        next_second_s = 0.0
        with selectors.DefaultSelector() as selector:
            selector.register(self.sensor, selectors.EVENT_READ)
            selector.register(self.alerts, selectors.EVENT_READ)
            while not self.stopping and not self.sensor.closed:
                selector.select(TICK_S)
                if self._pending:
                    clock.sleep_s(TICK_S)  # the alerts stay where they are: in the link, and with the engine
                self._from_sensor()
                self._asked.send(self.sensor)
                self._take()
                if clock.monotonic_s() >= next_second_s:
                    next_second_s = clock.monotonic_s() + 1.0
                    self._every_second()
        self._drain()

    def _from_sensor(self) -> None:
        while (received := self.sensor.take_message()) is not None:
            if isinstance(received, Stop):
                self.stopping = True
            elif isinstance(received, RetryDead):
                self._retry_dead(received.output)
            elif isinstance(received, ChatAnswer):
                self._asked.answered(received)
            elif isinstance(received, SeriesTold):
                self._keep(received)
            elif isinstance(received, Acknowledge):
                self._acknowledged(received)

    def _keep(self, message: SeriesTold) -> None:
        """Figures and entries for the history; time that makes no sense is taken as now."""
        now_s = clock.wall_ns() // NS_PER_S
        if message.figures:
            at_s = message.at_s if abs(message.at_s - now_s) <= LATE_MOST_S else now_s
            self.series.add(at_s, message.figures)
        if message.journal:
            self.series.note([Journal(each.at_ns, each.kind, each.fields) for each in message.journal])

    def _retry_dead(self, output: str) -> None:
        thread = next((thread for thread in self._threads if thread.worker.name == output), None)
        if thread is None:
            return
        try:
            count = self.outbox.retry_dead(output)
        except sqlite3.Error as error:
            log.error("dead letters stay where they are", extra={"output": output, "error": str(error)})
            return
        log.info("dead letters wait again", extra={"output": output, "alerts": count})
        thread.wake()

    def _take(self) -> bool:
        """Take a group of alerts, bring it to disk, acknowledge it; False when there was none.

        While acknowledgements cannot be sent nothing more is taken: the engine must not wait in vain.
        """
        if not self._acknowledge():
            return False
        self._collect()
        if not self._pending:
            return False
        failpoint.reach("courier.received")
        items = [item for _, item in self._pending if item]
        try:
            if self.outbox.holding:
                return self._hold(items, self.outbox.holding)
            self.outbox.put(items)
        except sqlite3.Error as error:
            return self._hold(items, str(error))
        self.disk_error = ""
        self._unacknowledged += [number for number, _ in self._pending]
        self._unpruned += len(self._pending)
        self._pending = []
        failpoint.reach("courier.stored")
        self._acknowledge()
        failpoint.reach("courier.acknowledged")
        self._wake()
        # After the acknowledgement, so that it delays no alert; often enough to keep up with a storm.
        if self._unpruned >= GROUP_ALERTS:
            self._prune()
        return True

    def _collect(self) -> None:
        """Fill the group from the link."""
        until_s = clock.monotonic_s() + self._group_s
        while len(self._pending) < GROUP_ALERTS and clock.monotonic_s() < until_s:
            message = self.alerts.take_message()
            if message is None:
                self._group_s = GROUP_S
                return
            if isinstance(message, SeriesTold):
                self._keep(message)
                continue
            self._pending.append((message.number, self._item(message)))
            self.received += 1
        self._group_s = min(2 * self._group_s, GROUP_MOST_S)

    def _hold(self, items: list[Item], reason: str) -> bool:
        """The disk does not take the group: it is kept in memory, and the engine keeps it too."""
        if not self.disk_error:
            log.error("alerts cannot be stored, they are held in memory", extra={"error": reason})
        self.disk_error = reason
        try:
            if not self.outbox.hold(items, reason):
                return False
        except sqlite3.Error as error:
            self.disk_error = f"{reason}; {error}"
            return False
        for number, item in self._pending:
            if item:
                self._held.setdefault(item.id, []).append(number)
            else:
                self._unacknowledged.append(number)
        self._pending = []
        self._wake()
        self._tell_holding()
        return True

    def _wake(self) -> None:
        for thread in self._threads:
            thread.wake()

    def _let_go(self) -> None:
        """Acknowledge held alerts that all outputs have settled; all of them when they are on disk now."""
        try:
            healed = not self.outbox.holding or self.outbox.heal()
            released = self.outbox.released()
        except sqlite3.Error as error:
            log.error("outbox", extra={"error": str(error)})
            return
        for key in self._held if healed else released:
            self._unacknowledged += self._held.get(key, [])
        if healed:
            self._held.clear()
            self.disk_error = "" if not self._pending else self.disk_error
        else:
            self.disk_error = self.outbox.holding
            for key in released:
                self._held.pop(key, None)
        self._tell_holding()

    def _tell_holding(self) -> None:
        """An event of our own when alerts begin to be held in memory, and when all are on disk again."""
        holding = self.outbox.holding
        if bool(holding) == self._was_holding:
            return
        self._was_holding = bool(holding)
        fields = {"outbox.state": "memory" if holding else "disk", "event.reason": holding}
        self._events.append(("outbox.state", fields))
        log.warning("alerts are held in memory" if holding else "all alerts are on disk again")

    def _acknowledge(self) -> bool:
        """Tell the engine what is on disk; False when the link does not take it now."""
        while self._unacknowledged:
            told = self._unacknowledged[:ACKNOWLEDGED_ALERTS]
            if self.alerts.closed:
                self._unacknowledged = []  # an engine that has gone waits for nothing
            elif self.alerts.send(AlertsDurable(numbers=told)):
                del self._unacknowledged[: len(told)]
            elif not self.alerts.closed:
                return False
        return True

    def _item(self, message: AlertRaised) -> Item | None:
        """What is stored of an alert; one that cannot be made into a document is counted and let go."""
        try:
            found = document(message.alert)
            return Item(found["event"]["id"], found["event"]["severity"], msgspec.json.encode(found))
        except Exception:
            # The edge of the stage: the engine reads hostile bytes and may be taken over.
            log.exception("alert cannot be made into a document", extra={"number": message.number})
            self.rejected += 1
            return None

    def _every_second(self) -> None:
        self._let_go()
        self._acknowledge()
        self._prune()
        self._send_events()
        try:
            counters = self._counters()
            _send(self.sensor, Stats(values=counters))
            self._own_figures.tell(self.series, counters)
        except sqlite3.Error as error:
            log.error("outbox", extra={"error": str(error)})

    def _send_events(self) -> None:
        """What rules may want to know; at most one event of lost alerts each second and output."""
        lost = self.outbox.take_lost()
        self._lost.update(lost)
        self._own_figures.lose(lost)
        worst = {
            output: (count, reason) for (output, reason), count in sorted(self._lost.items(), key=_count)
        }
        for output, (count, reason) in worst.items():
            fields = {"output.name": output, "event.reason": reason, "event.count": count}
            if self._send_event("output.lost", fields):
                del self._lost[output, reason]
        while self._events:
            event = self._events.popleft()  # first of all: threads of outputs push out the oldest
            if not self._send_event(*event):
                self._events.appendleft(event)
                return

    def _send_event(self, kind: str, fields: dict[str, Any]) -> bool:
        return _send(self.sensor, OwnEvent(kind=kind, fields=fields, ts_ns=clock.boot_ns()))

    def _say_alive(self) -> None:
        """While a damaged outbox is salvaged: the sensor ends a courier that says nothing for long."""
        if clock.monotonic_s() - self._alive_s >= 1.0:
            self._alive_s = clock.monotonic_s()
            _send(self.sensor, Stats(values=self._last_counters))

    def _prune(self) -> None:
        self._unpruned = 0
        try:
            self.outbox.prune()
        except sqlite3.Error as error:
            log.error("outbox", extra={"error": str(error)})

    def _counters(self) -> dict[str, Any]:
        ledgers = self.outbox.ledger()
        outputs = []
        for thread in self._threads:
            ledger = ledgers[thread.worker.name]
            outputs.append(
                {
                    "name": thread.worker.name,
                    **thread.worker.stats(),
                    **msgspec.to_builtins(ledger),
                    "balanced": ledger.balanced,
                    "lag_s": self._lag_s(thread.worker.name) if ledger.waiting else 0.0,
                }
            )
        held_alerts, held_bytes = self.outbox.held()
        self._last_counters = {
            "alerts": {
                "received": self.received,
                "rejected": self.rejected,
                "duplicates": self.outbox.duplicates(),
            },
            "corrupt_outbox": str(self.outbox.corrupt_path or ""),
            "outbox": {
                "held_alerts": held_alerts,
                "held_bytes": held_bytes,
                "repaired": self.outbox.repaired(),
                "salvaged": self.outbox.salvaged,
            },
            "outputs": outputs,
            "balanced": balanced(ledgers),
            "disk_error": self.disk_error,
            "chats": [thread.chat.stats() for thread in self._chats],
            "mutes": self._mutes(),
            "series": self.series.file.counters(),
            "bad_messages": self.sensor.bad + self.alerts.bad,
        }
        return self._last_counters

    def _mutes(self) -> dict[str, str]:
        """The rules that are silent in chats, and until when."""
        found = self._chat_state.mutes() if self._chat_state else {}
        shown = sorted(found.items())[:MUTES_SHOWN]
        return {clean(rule, MAX_LABEL): clock.iso(until_ns) for rule, until_ns in shown}

    def _lag_s(self, output: str) -> float:
        """The age of the oldest alert that waits for an output, by the time in its id."""
        waiting = self.outbox.waiting(output, 1)
        return (
            round(max(0.0, (clock.wall_ns() - raised_ns_of(waiting[0].id)) / NS_PER_S), 3) if waiting else 0.0
        )

    def _drain(self) -> None:
        """Take everything that is on its way, until the engine has nothing more; then let the outputs end."""
        for chat in self._chats:
            chat.stop()
        deadline_s = clock.monotonic_s() + DRAIN_S
        while clock.monotonic_s() < deadline_s:
            if self._take():
                continue
            # After a stop the engine has ended already; when the sensor was killed it is still at it, and
            # its end of the link closes when it is done.
            if self.alerts.closed or not self.sensor.closed:
                break
            clock.sleep_s(0.01)
        end_s = clock.monotonic_s() + DRAIN_S
        for thread in self._threads:
            thread.stop(end_s)
        for thread in self._threads:
            if not thread.join(end_s + 0.5 - clock.monotonic_s()):
                log.warning("output did not end in time", extra={"output": thread.worker.name})
        self._own_figures.end()
        self._every_second()
        self.series.close(DRAIN_S)
        self.outbox.close()
        log.info("courier ends", extra={"alerts": self.received})


class _OwnFigures:
    """What the courier itself adds to the history of figures; uptimes by what is so each second."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._deltas = Deltas()
        self._lost: Counter[str] = Counter()
        self._up = Uptime()
        self._due_s = clock.monotonic_s() + every_s

    def lose(self, lost: Mapping[tuple[str, str], int]) -> None:
        """Alerts that were dropped now, by output and reason.

        The ledger does not tell: its sums go on over restarts, and hold only the outputs configured now.
        """
        for (_, reason), count in lost.items():
            self._lost[f"output:{reason}"] += count

    def end(self) -> None:
        """The next telling is the last: it is due."""
        self._due_s = 0.0

    def tell(self, series: SeriesWriter, counters: Mapping[str, Any]) -> None:
        """Look at the counters, once a second; write when it is time."""
        self._up.see(output["name"] for output in counters["outputs"] if output["state"] == "ready")
        now_s = clock.monotonic_s()
        if now_s < self._due_s:
            return
        self._due_s = next_due(self._due_s, now_s, self._every_s)
        lost = {"courier:rejected": counters["alerts"]["rejected"], **self._lost}
        figures = {
            "waiting": {output["name"]: output["waiting"] for output in counters["outputs"]},
            "output_up_s": self._up.take(),
            "lost": self._deltas.of("lost", lost),
        }
        series.add(clock.wall_ns() // NS_PER_S, figures)


class _Asked:
    """What chats ask the sensor: put here by their threads, sent and answered by the courier's loop."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._outgoing: deque[ChatRequest] = deque()
        self._waiting: dict[int, queue.SimpleQueue[ChatAnswer]] = {}

    def ask(self, request: ChatRequest) -> ChatAnswer | None:
        """The sensor's answer; None when there is none within ASK_S. Called by the threads of chats."""
        request.number = next(self._numbers)
        answers: queue.SimpleQueue[ChatAnswer] = queue.SimpleQueue()
        self._waiting[request.number] = answers
        self._outgoing.append(request)
        try:
            return answers.get(timeout=ASK_S)
        except queue.Empty:
            return None
        finally:
            del self._waiting[request.number]

    def send(self, sensor: Link[ToCourier]) -> None:
        """Bring what is asked to the sensor, as far as the link takes it.

        Only here is anything taken out. A request that nobody waits for any more is left out: it must not
        act later.
        """
        while self._outgoing:
            request = self._outgoing.popleft()
            if request.number in self._waiting and not _send(sensor, request):
                self._outgoing.appendleft(request)
                return

    def answered(self, answer: ChatAnswer) -> None:
        """Bring an answer to who waits for it."""
        waiting = self._waiting.get(answer.number)
        if waiting:
            waiting.put(answer)


class _Notes:
    """What one output notes, in the outbox, which is opened after the outputs are made."""

    def __init__(self, courier: CourierProcess, output: str) -> None:
        self._courier = courier
        self._output = output

    def get(self, key: str) -> str | None:
        """What was noted under a key."""
        return self._courier.outbox.note(self._output, key)

    def set(self, key: str, value: str) -> None:
        """Note something."""
        self._courier.outbox.set_note(self._output, key, value)


def _send(sensor: Link[ToCourier], message: msgspec.Struct) -> bool:
    """Send it; False when the link takes nothing now. What is too large for any link is left out."""
    try:
        return sensor.send(message)
    except LinkError as error:
        log.error("message to the sensor left out", extra={"error": str(error)})
        return True


def _count(pair: tuple[tuple[str, str], int]) -> int:
    return pair[1]


def _lock(path: Path) -> int:
    """Wait until the courier of before has let go of the outbox; go on without when it never does."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline_s = clock.monotonic_s() + LOCK_S
    while clock.monotonic_s() < deadline_s:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            clock.sleep_s(0.05)
        else:
            return fd
    log.warning("another courier holds the outbox", extra={"lock": str(path)})
    return fd


def _plug_standard_descriptors() -> int:
    """Put /dev/null where 0, 1 or 2 is closed; the descriptor of standard output, -1 when it was closed.

    The database would otherwise get the number 1, and the console output would write into it.
    """
    stdout_fd = 1
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            stdout_fd = -1 if fd == 1 else stdout_fd
    return stdout_fd


def main() -> int:
    """Entry of the process; 0 after a clean end."""
    stdout_fd = _plug_standard_descriptors()
    os.umask(0o027)
    parser = argparse.ArgumentParser(prog="kwsiem.courier", description="The courier; started by the sensor.")
    parser.add_argument("--sensor-fd", type=int, required=True)
    parser.add_argument("--alerts-fd", type=int, required=True)
    options = parser.parse_args()
    try:
        failpoint.arm(os.environ)
    except ConfigError as error:
        log.error("%s", error)
        return EXIT_CONFIG
    process = CourierProcess(
        Link.from_fd(options.sensor_fd, ToCourier),
        Link.from_fd(options.alerts_fd, EngineToCourier),
        stdout_fd=stdout_fd,
    )
    process.start()
    process.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
