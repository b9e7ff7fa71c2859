"""The real courier process over its two links, as the sensor and the engine hold them."""

import json
import os
import select
import subprocess
import sys
import time

import msgspec

from kwsiem import rights
from kwsiem.alert import Alert
from kwsiem.config import Settings
from kwsiem.link import Link, link_pair
from kwsiem.messages import (
    AlertRaised,
    AlertsDurable,
    CourierStart,
    CourierToEngine,
    FromCourier,
    OwnEvent,
    Ready,
    Stats,
    Stop,
)

DEADLINE_S = 60.0


def alert(number):
    """An alert of about 2 KB."""
    fields = {"source.ip": "198.51.100.7", "destination.ip": "192.0.2.1", "destination.port": 24}
    return Alert(
        rule_id="tcp-port-scan", title="TCP port scan", level="high", state="open",
        identity={"source.ip": "198.51.100.7"}, count=5, first_ns=1_767_323_045_123_000_000,
        last_ns=1_767_323_046_123_000_000, raised_ns=1_767_323_046_123_000_000, opened_ts_ns=1000 + number,
        reason="5 different destination.port in 3s", fields=fields, host="gw01.example.net",
        evidence=[{"kind": "tcp.syn", "ts_ns": n, **fields} for n in range(2)],
    )  # fmt: skip


class CourierRun:
    """One run of the courier with its state in ``state`` and its log beside that folder."""

    def __init__(self, state, outputs):
        self.state = state
        ours, theirs = link_pair()
        engine, courier = link_pair()
        fds = (theirs.fileno(), courier.fileno())
        argv = [sys.executable, "-I", "-m", "kwsiem.courier"]
        argv += ["--sensor-fd", str(fds[0]), "--alerts-fd", str(fds[1])]
        self.log = (state.parent / "courier.log").open("ab")
        self.process = subprocess.Popen(argv, pass_fds=fds, stdout=self.log, stderr=self.log)
        self.sensor = Link(ours, FromCourier)
        self.engine = Link(engine, CourierToEngine)
        theirs.close()
        courier.close()
        self.sent = 0
        self.acknowledged = set()
        self.events = []
        self.values = {}
        self.ready = False
        settings = Settings(state_dir=str(state), outputs=tuple(outputs))
        self.sensor.send(CourierStart(host="gw01", settings=msgspec.to_builtins(settings)))
        try:
            self.wait(lambda: self.ready)
        except BaseException:
            self.close()
            raise

    def pump(self, timeout_s):
        select.select([link for link in (self.sensor, self.engine) if not link.closed], [], [], timeout_s)
        while (received := self.engine.receive()) is not None:
            self.acknowledged.update(received[0].numbers)
            assert isinstance(received[0], AlertsDurable)
        while (received := self.sensor.receive()) is not None:
            if isinstance(received[0], Stats):
                self.values = received[0].values
                assert self.values.get("balanced", True), "at any moment"
            elif isinstance(received[0], OwnEvent):
                self.events.append((received[0].kind, received[0].fields))
            else:
                self.ready |= isinstance(received[0], Ready)

    def wait(self, condition):
        end_s = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end_s and self.process.poll() is None, self.said()
            self.pump(0.1)

    def said(self):
        return (self.state.parent / "courier.log").read_text()[-3000:] + json.dumps(self.values)

    def offer(self, numbers):
        """Send as many of these alerts as the link takes now; gives those that are left."""
        left = list(numbers)
        while left and self.engine.send(AlertRaised(number=left[0], alert=alert(left[0]))):
            left.pop(0)
        return left

    def send(self, numbers):
        left = list(numbers)

        def all_sent():
            left[:] = self.offer(left)
            return not left

        self.wait(all_sent)

    def output(self, name):
        return next((o for o in self.values.get("outputs", []) if o["name"] == name), {})

    def stop(self):
        self.sensor.send(Stop())
        status = self.process.wait(DEADLINE_S)
        self.close()
        return status

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for each in (self.sensor, self.engine, self.log):
            each.close()


def give(path):
    """Let the user of the courier have a folder."""
    entry = rights.account("kwsiem")
    os.chown(path, entry.pw_uid, entry.pw_gid)
