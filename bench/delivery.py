"""Alerts through the real courier to a receiver: alerts per second, processor time, memory after an outage.

    python bench/delivery.py [--alerts N] [--burst N] [FOLDER]

FOLDER is on the disk to be measured (default: a new folder in the current one). Alerts are raised as fast as
the courier acknowledges them, by this process, which makes each of them and counts what the receiver has
written; the rate is wall time from the first raised to the last received. Processor time is the courier's
alone. The burst is raised while nobody listens; then the receiver is started, and the courier's peak of
resident memory (VmHWM) is told before and after.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from faults.sender import Sender
from peers.rsyslog import Rsyslog

from kwsiem.output_settings import FileSettings, OutputSettings, SyslogSettings

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
DEADLINE_S = 600.0


class Lines:
    """How many lines a receiver has written, read once each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.count = 0

    def read(self) -> int:
        """Count on."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
            self._offset += len(data)
            self.count += data.count(b"\n")
        return self.count


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def peak_mb(pid: int) -> float:
    """Its greatest resident memory so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def ready(sender: Sender) -> None:
    """The courier has begun: what it needed for that is not measured."""
    sender.wait(lambda: sender.samples, "the first counters")


def sustained(folder: Path, name: str, output: OutputSettings, out: Path, alerts: int) -> None:
    """So many alerts, from the first raised to the last received."""
    sender = Sender(folder, (output,))
    try:
        ready(sender)
        lines, begin_cpu_s, begin_s = Lines(out), cpu_s(sender.pid), time.perf_counter()
        sender.alerts(alerts)
        raised_s = time.perf_counter() - begin_s
        sender.wait(lambda: lines.read() >= alerts, "all received", DEADLINE_S)
        took_s, used_s = time.perf_counter() - begin_s, cpu_s(sender.pid) - begin_cpu_s
        print(
            f"{name}: {alerts / took_s:,.0f} alerts/s ({alerts:,} in {took_s:.1f} s, all raised after"
            f" {raised_s:.1f} s); courier {used_s / took_s:.0%} of a core, {used_s / alerts * 1e6:.0f} us each,"
            f" peak {peak_mb(sender.pid):.0f} MB; {out.stat().st_size / lines.count:,.0f} bytes each"
        )
        assert sender.stop() == 0
    finally:
        sender.close()


def burst(folder: Path, peer: Rsyslog, output: OutputSettings, alerts: int) -> None:
    """An outage, so many alerts in it, and the courier's memory while they wait and drain."""
    peer.stop()
    sender = Sender(folder, (output,))
    try:
        ready(sender)
        before_mb, begin_s = peak_mb(sender.pid), time.perf_counter()
        sender.alerts(alerts)
        sender.wait(lambda: not sender.engine.waiting, "all stored", DEADLINE_S)
        stored_s, stored_mb = time.perf_counter() - begin_s, peak_mb(sender.pid)
        peer.start()
        lines, begin_s = Lines(peer.out), time.perf_counter()
        already = lines.read()
        sender.wait(lambda: lines.read() - already >= alerts, "all received", DEADLINE_S)
        took_s = time.perf_counter() - begin_s
        size_mb = sum(path.stat().st_size for path in sender.state.glob("kwsiem.db*")) / 2**20
        print(
            f"burst of {alerts:,} in an outage: stored in {stored_s:.1f} s, drained in {took_s:.1f} s (back-off"
            f" included); courier's peak {before_mb:.0f} MB at the start, {stored_mb:.0f} MB when stored,"
            f" {peak_mb(sender.pid):.0f} MB when drained; outbox {size_mb:.0f} MB"
        )
        assert sender.stop() == 0
    finally:
        sender.close()


def in_folder(parent: str, work: Callable[[Path], None]) -> None:
    """A new folder that the courier's user may enter, removed again."""
    with tempfile.TemporaryDirectory(prefix="bench-delivery-", dir=Path(parent).resolve()) as name:
        Path(name).chmod(0o755)
        work(Path(name))


def main() -> None:
    """Three measurements, each with a courier and a folder of its own."""
    parser = argparse.ArgumentParser(prog="bench/delivery.py", description=__doc__)
    parser.add_argument("--alerts", type=int, default=50_000)
    parser.add_argument("--burst", type=int, default=100_000)
    parser.add_argument("folder", nargs="?", default=".")
    options = parser.parse_args()

    def to_file(folder: Path) -> None:
        path = folder / "state" / "alerts.jsonl"
        output = FileSettings(name="siem", path=str(path), max_bytes=2**40)
        sustained(folder, "file", output, path, options.alerts)

    def to_rsyslog(folder: Path) -> None:
        peer = Rsyslog(folder)
        output = SyslogSettings(name="siem", transport="tcp", port=peer.port)
        try:
            sustained(folder, "rsyslog, TCP", output, peer.out, options.alerts)
        finally:
            peer.kill()

    def after_outage(folder: Path) -> None:
        peer = Rsyslog(folder)
        output = SyslogSettings(name="siem", transport="tcp", port=peer.port)
        try:
            burst(folder, peer, output, options.burst)
        finally:
            peer.kill()

    for work in (to_file, to_rsyslog, after_outage):
        in_folder(options.folder, work)


if __name__ == "__main__":
    main()
