"""The courier process: alerts from the engine to disk, and from disk to every output.

Run by the sensor as ``python -I -m kwsiem.courier``; like the engine it takes its first message as root,
gives up all rights, and then serves. One thread takes alerts and commits them in groups; each output has a
thread of its own, so that a slow one holds up nobody.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import selectors
import signal
import sqlite3
from collections import deque
from pathlib import Path
from typing import Any, Final

import msgspec

from kwsiem import clock, logs, rights
from kwsiem.config import Settings
from kwsiem.delivery import make_output, make_route
from kwsiem.document import document
from kwsiem.errors import LinkError
from kwsiem.link import Link
from kwsiem.messages import (
    AlertRaised,
    AlertsDurable,
    CourierStart,
    EngineToCourier,
    OwnEvent,
    Ready,
    Stats,
    Stop,
    ToCourier,
)
from kwsiem.outbox import Item, Outbox, balanced
from kwsiem.output_settings import OutputSettings
from kwsiem.outputs.base import Output
from kwsiem.outputs.worker import Worker, WorkerThread
from kwsiem.secret import secrets_of

GROUP_ALERTS: Final = 500
TICK_S: Final = 0.2
#: After a stop the outputs may go on for so long; what waits then is on disk.
DRAIN_S: Final = 2.0
#: The courier of before, whose sensor was killed, ends within this.
LOCK_S: Final = 10.0

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
        self._pending: list[AlertRaised] = []
        self._unacknowledged: list[int] = []
        self._states: deque[dict[str, Any]] = deque(maxlen=1000)
        self._threads: list[WorkerThread] = []

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
        rights.drop(settings.user)
        state = Path(settings.state_dir)
        self._lock = _lock(state / "courier.lock")
        self.outbox = Outbox(
            state / "kwsiem.db",
            [output.name for output in settings.outputs],
            history=settings.history_alerts,
            max_bytes=settings.outbox_max_bytes,
        )
        self._threads = [WorkerThread(self._worker(*pair)) for pair in outputs]
        self.sensor.send(Ready(pid=os.getpid()))

    def _output(self, settings: OutputSettings, env_file: Path) -> Output:
        """One output, with its secrets and keys, while we are still root."""
        notes = _Notes(self, settings.name)
        return make_output(settings, secrets_of(settings, env_file), self._stdout_fd, notes)

    def _worker(self, settings: OutputSettings, output: Output) -> Worker:
        def changed(state: str, previous: str, reason: str) -> None:
            self._states.append(
                {
                    "output.name": settings.name,
                    "output.state": state,
                    "output.previous": previous,
                    "event.reason": reason,
                }
            )

        return Worker(
            settings.name, output, self.outbox, make_route(settings, output.limits), on_state=changed
        )

    def run(self) -> None:
        """Serve until told to stop or until the sensor is gone."""
        next_second_s = 0.0
        with selectors.DefaultSelector() as selector:
            selector.register(self.sensor, selectors.EVENT_READ)
            selector.register(self.alerts, selectors.EVENT_READ)
            while not self.stopping and not self.sensor.closed:
                selector.select(TICK_S)
                if self.disk_error:
                    clock.sleep_s(TICK_S)  # the alerts stay where they are: in the link, and with the engine
                self._from_sensor()
                self._take()
                if clock.monotonic_s() >= next_second_s:
                    next_second_s = clock.monotonic_s() + 1.0
                    self._every_second()
        self._drain()

    def _from_sensor(self) -> None:
        while (received := self.sensor.take_message()) is not None:
            if isinstance(received, Stop):
                self.stopping = True

    def _take(self) -> bool:
        """Take a group of alerts, bring it to disk, acknowledge it; False when there was none.

        While acknowledgements cannot be sent nothing more is taken: the engine must not wait in vain.
        """
        if not self._acknowledge():
            return False
        while len(self._pending) < GROUP_ALERTS and (message := self.alerts.take_message()) is not None:
            self._pending.append(message)
            self.received += 1
        if not self._pending:
            return False
        items = [self._item(message) for message in self._pending]
        try:
            self.outbox.put([item for item in items if item])
        except sqlite3.Error as error:
            if not self.disk_error:
                log.error("alerts cannot be stored, they are kept in memory", extra={"error": str(error)})
            self.disk_error = str(error)
            return False
        self.disk_error = ""
        self._unacknowledged = [message.number for message in self._pending]
        self._pending = []
        self._acknowledge()
        for thread in self._threads:
            thread.wake()
        self._prune()
        return True

    def _acknowledge(self) -> bool:
        """Tell the engine what is on disk; False when the link does not take it now."""
        if not self._unacknowledged:
            return True
        if self.alerts.send(AlertsDurable(numbers=self._unacknowledged)) or self.alerts.closed:
            self._unacknowledged = []  # an engine that has gone waits for nothing
        return not self._unacknowledged

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
        while self._states:
            fields = self._states.popleft()
            self.sensor.send(OwnEvent(kind="output.state", fields=fields, ts_ns=clock.boot_ns()))
        self._prune()
        try:
            self.sensor.send(Stats(values=self._counters()))
        except sqlite3.Error as error:
            log.error("outbox", extra={"error": str(error)})

    def _prune(self) -> None:
        """After each group and its acknowledgement: so it keeps up with a storm and delays no alert."""
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
                }
            )
        return {
            "alerts": {
                "received": self.received,
                "rejected": self.rejected,
                "duplicates": self.outbox.duplicates(),
            },
            "corrupt_outbox": str(self.outbox.corrupt_path or ""),
            "outputs": outputs,
            "balanced": balanced(ledgers),
            "disk_error": self.disk_error,
            "bad_messages": self.sensor.bad + self.alerts.bad,
        }

    def _drain(self) -> None:
        """Take everything that is on its way, until the engine has nothing more; then let the outputs end."""
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
        self._every_second()
        self.outbox.close()
        log.info("courier ends", extra={"alerts": self.received})


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
