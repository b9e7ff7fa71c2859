"""The sensor and the engine of one courier process: raises numbered alerts, and starts the courier again.

What the engine does with alerts that are not acknowledged is done by the engine's own class. As in the sensor
both ends of the link between engine and courier are held here, whatever becomes of the courier.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kwsiem import failpoint, rights
from kwsiem.alert import LEVELS, Alert
from kwsiem.config import Settings
from kwsiem.engine import Courier
from kwsiem.link import Link, link_pair
from kwsiem.messages import CourierStart, CourierToEngine, FromCourier, OwnEvent, Stats, Stop
from kwsiem.output_settings import OutputSettings

#: Alerts that may wait for their acknowledgement before we stop raising more; the engine drops above 20,000.
WINDOW = 5000
_LOOK_EVERY = 100
DEADLINE_S = 60.0
_LEVELS = list(LEVELS)


def numbered(number: int, now_ns: int) -> Alert:
    """Alert ``number``: it says its number, and no two have the same id."""
    fields = {"source.ip": "198.51.100.7", "user.name": f"user-{number}", "destination.port": number % 65536}
    return Alert(
        rule_id="fault-matrix", title="Numbered alert", level=_LEVELS[number % len(_LEVELS)], state="open",
        identity={"source.ip": "198.51.100.7", "user.name": f"user-{number}"}, count=number,
        first_ns=now_ns, last_ns=now_ns, raised_ns=now_ns, opened_ts_ns=number,
        reason=f"alert number {number} of the matrix", tags=["attack.discovery", "attack.t1046"], fields=fields,
        values=[20, 21, 22], evidence=[{"kind": "tcp.syn", "ts_ns": number, **fields}], host="gw01.example.net",
    )  # fmt: skip


class Sender:
    """One courier process after the other on the same state folder, and what was raised.

    ``failpoints`` are armed one for each run, first the first; ``launcher`` goes before the argument list
    (``nsenter …``).
    """

    def __init__(
        self,
        folder: Path,
        outputs: Sequence[OutputSettings],
        *,
        failpoints: Sequence[str] = (),
        launcher: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        window: int = WINDOW,
        **settings: Any,
    ) -> None:
        self.state = folder / "state"
        self.state.mkdir(exist_ok=True)
        owner = rights.account("kwsiem")
        os.chown(self.state, owner.pw_uid, owner.pw_gid)
        self.log = folder / "courier.log"
        self.raised: dict[int, str] = {}
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.stats: dict[str, Any] = {}
        self.samples = 0
        self.unbalanced: list[dict[str, Any]] = []
        self.deaths: list[int] = []
        self.peak_rss_kb = 0
        #: Exit statuses of a courier that nobody told to end.
        self.may_end_with = {-signal.SIGKILL}
        self._failpoints = list(failpoints)
        self._launcher = list(launcher)
        self._window = window
        self._environment = {**os.environ, **(environment or {})}
        self._settings = Settings(
            state_dir=str(self.state), outputs=tuple(outputs), env_file=str(folder / "env"), **settings
        )
        self._now_ns = time.time_ns()
        ours, self._courier_end = link_pair()
        self.engine = Courier(Link(ours, CourierToEngine))
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    # -- the courier as the sensor treats it ---------------------------------------------------------

    def start(self) -> None:
        """A new courier on the same links; the engine sends again what is not acknowledged."""
        ours, theirs = link_pair()
        fds = (theirs.fileno(), self._courier_end.fileno())
        argv = [*self._launcher, sys.executable, "-I", "-m", "kwsiem.courier"]
        argv += ["--sensor-fd", str(fds[0]), "--alerts-fd", str(fds[1])]
        environment = dict(self._environment)
        if self._failpoints:
            environment[failpoint.VARIABLE] = self._failpoints.pop(0)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, pass_fds=fds, stdout=log, stderr=log, env=environment)
        self.pid = self.process.pid
        self.sensor: Link[FromCourier] = Link(ours, FromCourier)
        theirs.close()
        self.sensor.send(CourierStart(host="gw01", settings=msgspec.to_builtins(self._settings)))
        self.engine.restart()

    def kill(self) -> None:
        """SIGKILL, and nothing in its place until :meth:`start`."""
        assert self.process
        self.process.kill()
        self._buried()

    def terminate(self) -> int:
        """SIGTERM, as systemd sends it; gives the exit status."""
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        return self._ends()

    def stop(self) -> int:
        """A clean end; gives the exit status."""
        if not self.process:
            self.start()
        self.sensor.send(Stop())
        return self._ends()

    def _ends(self) -> int:
        assert self.process
        end_s = time.monotonic() + DEADLINE_S
        while self.process.poll() is None:
            assert time.monotonic() < end_s, "the courier does not end"
            self._read(0.05)
        return self._buried()

    def _buried(self) -> int:
        """Read what it still said, and let go of it."""
        assert self.process
        status = self.process.wait()
        self._read(0)
        self.sensor.close()
        self.process = None
        return status

    def close(self) -> None:
        """End everything; may be called at any time."""
        if self.process:
            self.kill()
        self.engine.link.close()
        self._courier_end.close()

    # -- alerts --------------------------------------------------------------------------------------

    def alerts(self, count: int) -> None:
        """Raise so many more; waits while too many are not acknowledged."""
        for _ in range(count):
            number = len(self.raised) + 1
            alert = numbered(number, self._now_ns)
            self.raised[number] = alert.id
            self.engine.raise_alert(alert)
            if number % min(_LOOK_EVERY, self._window) == 0:
                self.pump(0)
                while self.engine.waiting >= self._window:
                    self.pump(0.02)

    def pump(self, timeout_s: float = 0.02) -> None:
        """Read what the courier says; when it has died it is started again."""
        if self.process and self.process.poll() is not None:
            self.deaths.append(self._buried())
            assert self.deaths[-1] in self.may_end_with, (
                f"the courier ended by itself: {self.deaths}\n{self.tail()}"
            )
        if not self.process:
            self.start()
        self._read(timeout_s)

    def _read(self, timeout_s: float) -> None:
        self.engine.flush()
        links = [link for link in (self.sensor, self.engine.link) if not link.closed]
        select.select(links, [], [], timeout_s)
        self.engine.receive()
        while not self.sensor.closed and (message := self.sensor.take_message()) is not None:
            if isinstance(message, Stats):
                self._account(message.values)
            elif isinstance(message, OwnEvent):
                self.events.append((message.kind, message.fields))

    def _account(self, values: dict[str, Any]) -> None:
        """Check the ledger of every output by our own sum; a courier that mends its outbox has none."""
        if not values:
            return
        self.stats = values
        self.samples += 1
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{self.pid}/status").read_text()
            rss = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")), 0)
            self.peak_rss_kb = max(self.peak_rss_kb, rss)
        for output in values["outputs"]:
            total = sum(output[key] for key in ("delivered", "waiting", "dead", "dropped", "filtered"))
            if output["raised"] != total or output["waiting"] < 0 or not output["balanced"]:
                self.unbalanced.append(output)
        if not values["balanced"]:
            self.unbalanced.append({"all": values["outputs"]})

    def output(self, name: str) -> dict[str, Any]:
        """The latest account and state of an output; empty before the first."""
        return next((output for output in self.stats.get("outputs", ()) if output["name"] == name), {})

    def wait(self, condition: Callable[[], object], what: str, timeout_s: float = DEADLINE_S) -> None:
        """Pump until the condition holds; AssertionError with the end of the courier's log."""
        end_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end_s, f"{what}: not within {timeout_s} s\n{self.tail()}"
            self.pump()

    def wait_stored(self) -> None:
        """Until every alert raised is on the courier's disk."""
        self.wait(lambda: not self.engine.waiting, "acknowledgements")

    def wait_error(self, name: str, text: str, since: int = 0) -> None:
        """Until an output has had an error with ``text`` in it, and ``since`` errors before."""

        def said() -> bool:
            found = self.output(name)
            return bool(found) and found["retries"] > since and text in found["last_error"]

        self.wait(said, f"output {name} with an error {text!r}, it is {self.output(name)}")

    def wait_state(self, name: str, state: str, text: str = "") -> None:
        """Until an output says, from now on, that it is in this state, with ``text`` in its last error."""
        seen = self.samples

        def said() -> bool:
            found = self.output(name)
            return self.samples > seen and found.get("state") == state and text in found["last_error"]

        self.wait(said, f"output {name} {state} {text!r}, it is {self.output(name)}")

    def tail(self) -> str:
        """The end of the courier's log, and its last account."""
        return f"{self.stats}\n{self.log.read_text()[-3000:]}"
