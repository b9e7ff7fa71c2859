"""Alerts through the outbox: alerts per second to a file output, and how long one takes to be durable.

    python bench/outbox.py [FOLDER]

FOLDER is on the disk to be measured (default: a new folder in the current one). Throughput is wall time in
this process, document to settled in the file (which is synced after each batch). Latency is from sending an
alert to the real courier process until its acknowledgement is read: one alert at a time, and in a burst of
20,000 that are sent as fast as the link takes them, with the number of fsyncs (by strace, when it is there).
"""

from __future__ import annotations

import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from kwsiem.alert import Alert
from kwsiem.config import Settings
from kwsiem.document import document
from kwsiem.link import Link, link_pair
from kwsiem.messages import (
    AlertRaised,
    AlertsDurable,
    CourierStart,
    CourierToEngine,
    FromCourier,
    Ready,
    Stop,
)
from kwsiem.outbox import Item, Outbox
from kwsiem.output_settings import FileSettings
from kwsiem.outputs.file import FileOutput
from kwsiem.outputs.worker import Route, Worker

ALERTS = 20_000
GROUPS = (1, 10, 100, 500)
LATENCY_ALERTS = 1000


def alert(number: int) -> Alert:
    """An alert like that of a port scan, with two events of evidence."""
    fields = {
        "source.ip": "198.51.100.7",
        "destination.ip": "192.0.2.1",
        "destination.port": 24,
        "tcp.flags": 2,
    }
    return Alert(
        rule_id="tcp-port-scan", title="TCP port scan", level="high", state="open",
        identity={"source.ip": "198.51.100.7", "destination.ip": "192.0.2.1"}, count=5,
        first_ns=1_767_323_045_123_000_000, last_ns=1_767_323_046_123_000_000,
        raised_ns=1_767_323_046_123_000_000 + number, opened_ts_ns=number, reason="5 ports in 3s",
        tags=["attack.discovery", "attack.t1046"], fields=fields, values=[20, 21, 22, 23, 24],
        evidence=[{"kind": "tcp.syn", "ts_ns": n, **fields} for n in range(2)], host="gw01.example.net",
    )  # fmt: skip


def throughput(folder: Path, group: int) -> None:
    """Document, commit in groups, then deliver; each measured by itself."""
    count = min(ALERTS, group * 500)
    outbox = Outbox(folder / f"bench-{group}.db", ["file"])
    output = FileOutput(folder / f"bench-{group}.jsonl", 2**30, 1)
    worker = Worker("file", output, outbox, Route(lambda data: data + b"\n"))
    alerts = [alert(number) for number in range(count)]
    begin = time.perf_counter()
    items = [Item(a.id, 8, msgspec.json.encode(document(a))) for a in alerts]
    made = time.perf_counter()
    for first in range(0, count, group):
        outbox.put(items[first : first + group])
    stored = time.perf_counter()
    while worker.step(0.0) == 0.0:
        pass
    done = time.perf_counter()
    assert outbox.ledger()["file"].delivered == count
    worker.close()
    outbox.close()
    print(
        f"group {group:4d}: document {(made - begin) / count * 1e6:6.1f} us, stored durably"
        f" {(stored - made) / count * 1e6:6.1f} us, delivered {(done - stored) / count * 1e6:6.1f} us"
        f" each; all {count / (done - begin):8.0f} alerts/s ({len(items[0].document)} bytes)"
    )


class Courier:
    """The real process with a file output, and our ends of its links."""

    def __init__(self, state: Path) -> None:
        state.mkdir()
        state.chmod(0o777)  # the courier may become another user
        ours, theirs = link_pair()
        engine_end, courier_end = link_pair()
        argv = [sys.executable, "-I", "-m", "kwsiem.courier"]
        argv += ["--sensor-fd", str(theirs.fileno()), "--alerts-fd", str(courier_end.fileno())]
        fds = (theirs.fileno(), courier_end.fileno())
        self.process = subprocess.Popen(argv, pass_fds=fds, stderr=subprocess.DEVNULL)
        self.sensor: Link[FromCourier] = Link(ours, FromCourier)
        self.engine: Link[CourierToEngine] = Link(engine_end, CourierToEngine)
        outputs = (FileSettings(name="file", path=str(state / "alerts.jsonl")),)
        settings = Settings(state_dir=str(state), outputs=outputs)
        self.sensor.send(CourierStart(host="bench", settings=msgspec.to_builtins(settings)))
        select.select([self.sensor], [], [], 30)
        received = self.sensor.receive()
        assert received
        assert isinstance(received[0], Ready)

    def acknowledged(self) -> list[int]:
        """Numbers of alerts that are durable since the last call."""
        numbers: list[int] = []
        while answer := self.engine.receive():
            assert isinstance(answer[0], AlertsDurable)
            numbers += answer[0].numbers
        while self.sensor.receive():
            pass
        return numbers

    def stop(self) -> None:
        self.sensor.send(Stop())
        assert self.process.wait(30) == 0
        self.sensor.close()
        self.engine.close()


def show(name: str, took_s: list[float]) -> None:
    took_s.sort()
    print(
        f"{name}: median {statistics.median(took_s) * 1e3:.2f} ms, p99 {took_s[len(took_s) * 99 // 100] * 1e3:.2f} ms,"
        f" most {took_s[-1] * 1e3:.2f} ms ({len(took_s)} alerts, file output beside it)"
    )


def latency(folder: Path) -> None:
    """Send to acknowledgement through the real courier, one by one."""
    courier = Courier(folder / "state")
    took = []
    for number in range(LATENCY_ALERTS):
        begin = time.perf_counter()
        courier.engine.send(AlertRaised(number=number, alert=alert(number)))
        while not courier.acknowledged():
            select.select([courier.engine], [], [], 30)
        took.append(time.perf_counter() - begin)
    courier.stop()
    show("durable, one by one", took)


def burst(folder: Path) -> None:
    """The same with as many at once as the link takes; the time of one begins when the link has taken it."""
    courier = Courier(folder / "burst")
    strace = shutil.which("strace")
    count = folder / "fsyncs"
    argv = [
        strace or "",
        "-f",
        "-c",
        "-e",
        "trace=fsync,fdatasync",
        "-o",
        str(count),
        "-p",
        str(courier.process.pid),
    ]
    tracer = subprocess.Popen(argv, stderr=subprocess.PIPE) if strace else None
    if tracer and tracer.stderr:
        tracer.stderr.readline()  # attached
    alerts = [AlertRaised(number=number, alert=alert(number)) for number in range(ALERTS)]
    sent: dict[int, float] = {}
    took: list[float] = []
    begin = time.perf_counter()
    while len(took) < ALERTS:
        while len(sent) < ALERTS and courier.engine.send(alerts[len(sent)]):
            sent[len(sent)] = time.perf_counter()
        select.select([courier.engine], [], [], 0.001)
        now = time.perf_counter()
        took += [now - sent[number] for number in courier.acknowledged()]
    all_s = time.perf_counter() - begin
    courier.stop()
    show("durable, in a burst", took)
    print(f"the burst took {all_s:.2f} s, {ALERTS / all_s:.0f} alerts/s")
    if tracer:
        tracer.communicate(timeout=30)
        print(count.read_text())


def main() -> None:
    """Measure in a folder that is removed again."""
    parent = sys.argv[1] if len(sys.argv) > 1 else "."
    with tempfile.TemporaryDirectory(prefix="bench-outbox-", dir=parent) as name:
        folder = Path(name)
        folder.chmod(0o755)
        for group in GROUPS:
            throughput(folder, group)
        latency(folder)
        burst(folder)


if __name__ == "__main__":
    main()
