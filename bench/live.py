"""The running appliance on this kernel: from the packet to the alert, and a real probe at full rate. Root.

    python bench/live.py [latency] [rate]

latency: from the sending of the SYN that completes the threshold to the alert in the file, for 300 sources.
rate: a probe on kill(2) that prints each call, a generator at 100,000 calls/s for 10 s; what the engine process
(reader, decoder and one counting rule) takes of a core, and what was lost.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "live"))

from appliance import RunningAppliance
from lab import Lab, wait_until

SOURCES = 300
SECONDS = 10
RATE = 100_000

SEND = """
import socket, sys, time
host, count = sys.argv[1], int(sys.argv[2])
for n in range(count):
    source = f"10.7.{n // 200}.{n % 200 + 1}"
    for port in range(40, 45):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind((source, 0))
        sent_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        sock.connect_ex((host, port))
        sock.close()
    print(source, sent_ns, flush=True)
    time.sleep(0.02)
"""

FLOOD = """
import os, sys, time
rate, seconds, me = int(sys.argv[1]), float(sys.argv[2]), os.getpid()
begin, done = time.monotonic(), 0
while (now := time.monotonic() - begin) < seconds:
    for _ in range(int(now * rate) - done):
        os.kill(me, 0)
        done += 1
    time.sleep(0.0005)
print(done)
"""

PROBE = """/*
 * kills - Every call of kill(2) with signal 0.
 *
 * sees:     the calls
 * blind:    nothing of them
 * overhead: a line each
 * needs:    tracepoint syscalls:sys_enter_kill
 *
 * event 1 bench.kill process.pid:u64 kill.target:i64 process.name:str
 */
tracepoint:syscalls:sys_enter_kill /args->sig == 0/ { print((1, (uint64)pid, (int64)args->pid, comm, nsecs)); }
interval:s:1 { print((0, nsecs)); }
"""

RULES = """version: 1
rules:
  - id: kills
    title: Kills
    level: low
    event: bench.kill
    detection: {same: {process.name: python3}, condition: same}
    correlation: {type: event_count, group-by: [process.name], timespan: 10s, condition: {gte: 10000}}
"""


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def latency() -> None:
    """The file is polled each 50 us by this process, so that much is added at most."""
    with Lab("host", "peer") as lab, tempfile.TemporaryDirectory() as name:
        device = lab.end("peer").device
        for third in range(2):
            for last in range(1, 201):
                lab.ip("peer", "address", "add", f"10.7.{third}.{last}/32", "dev", device)
        lab.ip("host", "route", "add", "10.7.0.0/16", "dev", lab.end("host").device)
        folder = Path(name)
        with RunningAppliance(lab, folder) as appliance:
            path = appliance.state / "alerts.jsonl"
            wait_until(path.exists, 10)
            argv = [sys.executable, "-c", SEND, lab.ip4("host"), str(SOURCES)]
            sender = lab.popen("peer", argv, stdout=subprocess.PIPE, text=True)
            seen: dict[str, int] = {}
            with path.open() as file:
                deadline = time.monotonic() + 60
                while len(seen) < SOURCES and time.monotonic() < deadline:
                    line = file.readline()
                    if not line.endswith("\n"):
                        time.sleep(0.00005)
                        continue
                    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                    for word in line.split('"'):
                        if word.startswith("10.7."):
                            seen.setdefault(word, now_ns)
                            break
            assert sender.stdout
            sent = dict(line.split() for line in sender.stdout)
    took_ms = [(seen[source] - int(ns)) / 1e6 for source, ns in sent.items() if source in seen]
    print(
        f"latency  SYN to alert in the file, {len(took_ms)} of {SOURCES} sources: p50 {statistics.median(took_ms):.2f} ms,"
        f" p90 {percentile(took_ms, 0.9):.2f} ms, p99 {percentile(took_ms, 0.99):.2f} ms, max {max(took_ms):.2f} ms"
    )


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rate() -> None:
    with Lab("host") as lab, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        appliance = RunningAppliance(lab, folder, rules=RULES, record=False)
        for path in appliance.probes.iterdir():
            path.unlink()
        (appliance.probes / "kills.bt").write_text(PROBE)
        with appliance:
            engine = appliance.pid("engine")
            begun_s, begun = cpu_s(engine), time.monotonic()
            flood = lab.run("host", [sys.executable, "-c", FLOOD, str(RATE), str(SECONDS)], timeout=60)
            took_s, wall_s = cpu_s(engine) - begun_s, time.monotonic() - begun
            time.sleep(2.5)
            lines = appliance.status()["engine"]["lines"]["kills"]
            events = appliance.status()["engine"]["engine"]["events"]["bench.kill"]
    fired = int(flood.stdout)
    print(
        f"rate     {fired} calls in {wall_s:.1f} s ({fired / wall_s:,.0f}/s): {events} events, lost {lines['lost']},"
        f" rejected {sum(lines['rejected'].values())}, not accounted for {fired - events - lines['lost']};"
        f" engine process {took_s / wall_s:.1%} of a core ({took_s / max(1, events) * 1e9:.0f} ns/event)"
    )


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["latency", "rate"]
    if "latency" in wanted:
        latency()
    if "rate" in wanted:
        rate()
