"""Alerts through the outbox: alerts per second to a file output, and how long one takes to be durable.

    python bench/outbox.py [FOLDER]

FOLDER is on the disk to be measured (default: a new folder in the current one). Throughput is wall time in
this process, document to settled in the file (which is synced after each batch). Latency is from sending an
alert to the real courier process until its acknowledgement is read, one alert at a time.
"""

from __future__ import annotations

import select
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


def latency(folder: Path) -> None:
    """Send to acknowledgement through the real courier."""
    state = folder / "state"
    state.mkdir()
    state.chmod(0o777)  # the courier may become another user
    ours, theirs = link_pair()
    engine_end, courier_end = link_pair()
    argv = [sys.executable, "-I", "-m", "kwsiem.courier"]
    argv += ["--sensor-fd", str(theirs.fileno()), "--alerts-fd", str(courier_end.fileno())]
    process = subprocess.Popen(
        argv, pass_fds=(theirs.fileno(), courier_end.fileno()), stderr=subprocess.DEVNULL
    )
    sensor: Link[FromCourier] = Link(ours, FromCourier)
    engine: Link[CourierToEngine] = Link(engine_end, CourierToEngine)
    outputs = (FileSettings(name="file", path=str(state / "alerts.jsonl")),)
    settings = Settings(state_dir=str(state), outputs=outputs)
    sensor.send(CourierStart(host="bench", settings=msgspec.to_builtins(settings)))
    select.select([sensor], [], [], 30)
    received = sensor.receive()
    assert received
    assert isinstance(received[0], Ready)
    took = []
    for number in range(LATENCY_ALERTS):
        begin = time.perf_counter()
        engine.send(AlertRaised(number=number, alert=alert(number)))
        select.select([engine], [], [], 30)
        answer = engine.receive()
        took.append(time.perf_counter() - begin)
        assert answer
        assert isinstance(answer[0], AlertsDurable)
        while sensor.receive():
            pass
    sensor.send(Stop())
    assert process.wait(30) == 0
    took.sort()
    print(
        f"durable: median {statistics.median(took) * 1e3:.2f} ms, p99 {took[len(took) * 99 // 100] * 1e3:.2f} ms,"
        f" most {took[-1] * 1e3:.2f} ms ({LATENCY_ALERTS} alerts one by one, file output beside it)"
    )


def main() -> None:
    """Measure in a folder that is removed again."""
    parent = sys.argv[1] if len(sys.argv) > 1 else "."
    with tempfile.TemporaryDirectory(prefix="bench-outbox-", dir=parent) as name:
        folder = Path(name)
        folder.chmod(0o755)
        for group in GROUPS:
            throughput(folder, group)
        latency(folder)


if __name__ == "__main__":
    main()
