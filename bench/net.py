"""The network sensor: what it costs when nothing happens, what traffic pays for it, how soon it speaks, what a flood
does to it. Root.

    python bench/net.py [idle] [overhead] [latency] [flood] [--seconds 60] [--pairs 7] [--flood-seconds 10]

idle      processor time and memory of each process of the shipped appliance on a quiet host.
overhead  iperf3 and wrk over veth with the appliance and without it in alternating pairs: the median of the ratios
          and its quartiles, of the rate and of the work done in a second of processor time by client, server and
          kernel for them (which neighbours on the machine disturb less). Then the time of each BPF program, by the
          kernel's own statistics. Both ends of the veth are on this kernel: each packet is paid for twice.
latency   from sending the SYN that completes the threshold of tcp-port-scan to the alert in the file, for 300
          sources, while 10,000 SYN/s of 3,000 others arrive.
flood     SYNs of forged random sources as fast as the veth takes them, to one port and to all ports, and a slow
          scan of one honest source meanwhile: processor time, peak memory, alerts, and where each packet went.

Needs nginx and hping3, and iperf3 and wrk: `make setup-scoreboard` unpacks them.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "live"))

from appliance import RunningAppliance, listen
from lab import Lab, wait_until
from live import SEND, SOURCES, cpu_s, percentile

from kwsiem.messages import ProbeKinds
from kwsiem.recording import read_recording

#: Starts one of the programs that ``make setup-scoreboard`` has unpacked.
TOOL = Path(os.environ.get("KWSIEM_SCOREBOARD_TOOLS", "/var/cache/kwsiem-scoreboard")) / "run"
BPF_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
WARM_S = 3.0
LOAD_S = 5
BACKGROUND = 3000
BACKGROUND_RATE = 10_000
#: Ports that the slow scan tries, one each second.
SLOW_PORTS = range(7000, 7120)

#: Paced by the clock: every millisecond as many as are due. Arguments: destination, rate, sources.
STEADY = """
import random, socket, struct, sys, time
host, rate, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def total(data):
    words = sum(struct.unpack(f">{len(data) // 2}H", data))
    words = (words & 0xffff) + (words >> 16)
    return 0xffff & ~((words & 0xffff) + (words >> 16))
def packet(number):
    source = bytes((10, 8, number // 250, number % 250 + 1))
    there = socket.inet_aton(host)
    tcp = struct.pack(">HHIIBBHHH", 20000 + number, 81, number, 0, 0x50, 2, 64240, 0, 0)
    pseudo = source + there + struct.pack(">BBH", 0, 6, len(tcp))
    tcp = tcp[:16] + struct.pack(">H", total(pseudo + tcp)) + tcp[18:]
    return struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40, 0, 0, 64, 6, 0, source, there) + tcp
packets = [packet(number) for number in range(count)]
random.Random(1).shuffle(packets)
sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
begin, sent = time.monotonic(), 0
while True:
    due = int((time.monotonic() - begin) * rate)
    while sent < due:
        sock.sendto(packets[sent % count], (host, 0))
        sent += 1
    time.sleep(0.001)
"""

#: One port a second; prints the time of each (CLOCK_BOOTTIME, ns).
SLOW = """
import socket, sys, time
for port in range(int(sys.argv[2]), int(sys.argv[3])):
    sock = socket.socket()
    sock.setblocking(False)
    print(port, time.clock_gettime_ns(time.CLOCK_BOOTTIME), flush=True)
    sock.connect_ex((sys.argv[1], port))
    time.sleep(0.3)
    sock.close()
    time.sleep(0.7)
"""


def boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def need(*names: str) -> None:
    """Ends with what to do when a program is missing."""
    missing = [name for name in names if not shutil.which(name) and not TOOL.exists()]
    if missing:
        sys.exit(f"bench/net.py: not found: {', '.join(missing)}. Run: make setup-scoreboard")


def program(name: str) -> list[str]:
    """What starts a program: its name, where it is installed, else the unpacked one."""
    return [name] if shutil.which(name) or not TOOL.exists() else [str(TOOL), name]


def processes(appliance: RunningAppliance) -> dict[str, int]:
    """Pid by name: sensor, engine, courier, and each bpftrace by its probe."""
    status = appliance.status()
    found = {"sensor": status["pid"]}
    found |= {each["name"]: each["pid"] for each in status["processes"]}
    found |= {f"bpftrace {each['name']}": each["pid"] for each in status["probes"] if each["pid"]}
    return found


def table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        print("  " + "  ".join(cells))


# -- idle


def total_cpu_s(pid: int) -> float:
    """Processor time of a process and of its ended children (the engine's snapshots)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def memory_kb(pid: int) -> dict[str, int]:
    found: Counter[str] = Counter()
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split()[:2]
        found["private" if name.startswith("Private_") else name[:-1].lower()] += int(value)
    return found


def descriptors(pid: int, sort: str) -> Iterator[dict[str, str]]:
    """What /proc says of the BPF maps or programs that a process holds, each once."""
    seen = set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            lines = (line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
            facts = {name: value.strip() for name, value in lines}
            number = facts.get(f"{sort}_id")
            if number and number not in seen:
                seen.add(number)
                yield facts


def idle(seconds: float) -> None:
    with Lab("host", "peer") as lab, quiet_appliance(lab) as appliance:
        pids = processes(appliance)
        before = {who: total_cpu_s(pid) for who, pid in pids.items()}
        began_s = time.monotonic()
        time.sleep(seconds)
        took_s = time.monotonic() - began_s
        share = {who: (total_cpu_s(pid) - before[who]) / took_s for who, pid in pids.items()}
        memory = {who: memory_kb(pid) for who, pid in pids.items()}
        maps = {who: sum(int(m["memlock"]) for m in descriptors(pid, "map")) for who, pid in pids.items()}
    rows = [("", "CPU", "RSS", "PSS", "private", "BPF maps")]
    for who in [*pids, "all"]:
        parts = list(pids) if who == "all" else [who]
        sizes = [sum(memory[part][size] for part in parts) / 1024 for size in ("rss", "pss", "private")]
        kernel = sum(maps[part] for part in parts) / 2**20
        cpu = sum(share[part] for part in parts)
        rows.append((who, f"{cpu:.2%}", *(f"{size:.1f} MB" for size in sizes), f"{kernel:.1f} MB"))
    watching = sum(value for who, value in share.items() if who != "courier")
    print(f"idle     {took_s:.0f} s; of one core, sensor, bpftrace and engine together {watching:.2%}")
    table(rows)


# -- overhead

NGINX = """daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 512; }}
http {{ access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
uwsgi_temp_path {folder}; scgi_temp_path {folder}; keepalive_requests 1000000;
server {{ listen 8080; root {folder}/www; }} }}
"""


def servers(lab: Lab, folder: Path) -> list[int]:
    """iperf3 and nginx in the namespace of the host, which end with the laboratory; their processes."""
    (folder / "www").mkdir()
    (folder / "www" / "small.txt").write_text("x" * 100)
    (folder / "www" / "page.html").write_text("x" * 30_000)
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder))
    folder.chmod(0o755)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    nginx = lab.popen("host", ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)], **quiet).pid
    iperf = lab.popen("host", [*program("iperf3"), "-s"], **quiet).pid
    sockets = ["ss", "-Hltn", "sport = :8080 or sport = :5201"]
    wait_until(lambda: lab.run("host", sockets).stdout.count("LISTEN") == 2, 10, "servers listen")
    children = Path(f"/proc/{nginx}/task/{nginx}/children").read_text().split()
    return [iperf, nginx, *map(int, children)]


def iperf3(lab: Lab, streams: int) -> float:
    """Gbit/s received."""
    argv = [*program("iperf3"), "-c", lab.ip4("host"), "-t", str(LOAD_S), "-P", str(streams), "-J"]
    return (
        json.loads(lab.run("peer", argv, timeout=60).stdout)["end"]["sum_received"]["bits_per_second"] / 1e9
    )


def wrk(lab: Lab, page: str) -> float:
    """Requests/s."""
    url = f"http://{lab.ip4('host')}:8080/{page}"
    argv = [*program("wrk"), "-t", "1", "-c", "16", "-d", f"{LOAD_S}s", url]
    return float(lab.run("peer", argv, timeout=60).stdout.split("Requests/sec:")[1].split()[0])


LOADS: dict[str, tuple[str, Callable[[Lab], float]]] = {
    "TCP, 1 stream": ("Gbit/s", lambda lab: iperf3(lab, 1)),
    "TCP, 4 streams": ("Gbit/s", lambda lab: iperf3(lab, 4)),
    "HTTP, 100 bytes": ("requests/s", lambda lab: wrk(lab, "small.txt")),
    "HTTP, 30 kB": ("requests/s", lambda lab: wrk(lab, "page.html")),
}


def measured(lab: Lab, run: Callable[[Lab], float], pids: list[int]) -> tuple[float, float]:
    """The rate, and the same for each second of processor time that client and server took together."""
    before, began_s = inside_cpu_s(pids), time.monotonic()
    rate = run(lab)
    took_s, spent_s = time.monotonic() - began_s, inside_cpu_s(pids) - before
    return rate, rate * took_s / spent_s


def inside_cpu_s(pids: list[int]) -> float:
    """Processor time of the servers so far, and of the clients, which have ended: both were our children."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime + sum(precise_cpu_s(pid) for pid in pids)


def precise_cpu_s(pid: int) -> float:
    """Of all threads that live, from the scheduler, in ns; kernel time on behalf of the process included."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def overhead(pairs: int) -> None:
    """With and without take turns in the order ABBA, so that a drift of the machine hits both."""
    need("iperf3", "wrk", "nginx")
    found: dict[bool, dict[str, list[tuple[float, float]]]] = {
        on: {load: [] for load in LOADS} for on in (True, False)
    }
    with Lab("host", "peer") as lab, tempfile.TemporaryDirectory() as name:
        pids = servers(lab, Path(name))
        for _, run in LOADS.values():
            run(lab)  # caches and clock of the processor
        order = [on for pair in range(pairs) for on in ((False, True) if pair % 2 else (True, False))]
        with contextlib.ExitStack() as running:
            for number, on in enumerate(order):
                if on and (number == 0 or not order[number - 1]):
                    running.enter_context(quiet_appliance(lab))
                elif not on:
                    running.close()
                for load, (_, run) in LOADS.items():
                    found[on][load].append(measured(lab, run, pids))
        print(f"overhead with the appliance against without, {pairs} alternating pairs of {LOAD_S} s each")
        rows = [("", "without", "with", "rate lower by", "quartiles", "work per CPU s lower by", "quartiles")]
        for load, (unit, _) in LOADS.items():
            middle = [
                f"{statistics.median(rate for rate, _ in found[on][load]):,.1f} {unit}"
                for on in (False, True)
            ]
            rows.append((load, *middle, *lower(found, load, 0), *lower(found, load, 1)))
        table(rows)
        programs(lab, pids)


def lower(found: dict[bool, dict[str, list[tuple[float, float]]]], load: str, which: int) -> tuple[str, str]:
    """By how much a figure is lower with the appliance, pair by pair: the median, and the quartiles."""
    ratios = [
        1 - on[which] / off[which] for on, off in zip(found[True][load], found[False][load], strict=True)
    ]
    quarter, middle, three = statistics.quantiles(ratios, n=4)
    return f"{middle:.1%}", f"{quarter:.1%} to {three:.1%}"


@contextlib.contextmanager
def quiet_appliance(lab: Lab) -> Iterator[RunningAppliance]:
    with tempfile.TemporaryDirectory() as name, RunningAppliance(lab, Path(name), record=False) as appliance:
        time.sleep(WARM_S)
        yield appliance


@contextlib.contextmanager
def bpf_statistics() -> Iterator[None]:
    before = BPF_STATS.read_text()
    BPF_STATS.write_text("1")
    try:
        yield
    finally:
        BPF_STATS.write_text(before)


def packets(lab: Lab, name: str = "host") -> dict[str, int]:
    """The device's own count: packets that arrived and left (a veth counts a large segment once)."""
    device = lab.end(name).device
    stats = json.loads(lab.ip(name, "-s", "-j", "link", "show", "dev", device))[0]["stats64"]
    return {"rx": stats["rx"]["packets"], "tx": stats["tx"]["packets"], "dropped": stats["rx"]["dropped"]}


def program_times(pids: dict[str, int]) -> dict[str, tuple[str, int, int]]:
    """By id: name, nanoseconds, runs."""
    return {
        facts["prog_id"]: (
            program_name(int(facts["prog_id"])),
            int(facts["run_time_ns"]),
            int(facts["run_cnt"]),
        )
        for who, pid in pids.items()
        if who.startswith("bpftrace")
        for facts in descriptors(pid, "prog")
    }


def program_name(number: int) -> str:
    """By bpf(2): commands 13 (descriptor of an id) and 15 (its facts); struct bpf_prog_info, linux/bpf.h."""
    call, libc = {"x86_64": 321, "aarch64": 280}.get(os.uname().machine, 0), ctypes.CDLL(None, use_errno=True)
    asked = ctypes.create_string_buffer(struct.pack("=III", number, 0, 0), 128)
    fd = libc.syscall(call, 13, asked, 12) if call else -1
    if fd < 0:
        return f"program {number}"
    try:
        facts = ctypes.create_string_buffer(128)
        asked = ctypes.create_string_buffer(struct.pack("=IIQ", fd, len(facts), ctypes.addressof(facts)), 128)
        if libc.syscall(call, 15, asked, 16):
            return f"program {number}"
        return facts.raw[64:80].rstrip(b"\0").decode()
    finally:
        os.close(fd)


def programs(lab: Lab, ends: list[int]) -> None:
    """Nanoseconds that each BPF program takes, under each load; the statistics themselves add some 20 ns a run."""
    with quiet_appliance(lab) as appliance, bpf_statistics():
        pids = processes(appliance)
        for load, (_, run) in LOADS.items():
            before, packets_before, cpu_before_s = program_times(pids), packets(lab), inside_cpu_s(ends)
            run(lab)
            after, now, cpu_s_spent = program_times(pids), packets(lab), inside_cpu_s(ends) - cpu_before_s
            count = sum(now[way] - packets_before[way] for way in ("rx", "tx"))
            rows = [("", "runs", "ns a run")]
            spent = 0
            for number, (program, ns, runs) in after.items():
                _, ns_before, runs_before = before.get(number, ("", 0, 0))
                spent += ns - ns_before
                if runs - runs_before > 100:
                    rows.append(
                        (program, f"{runs - runs_before:,}", f"{(ns - ns_before) / (runs - runs_before):.0f}")
                    )
            most = max(runs - before.get(number, ("", 0, 0))[2] for number, (_, _, runs) in after.items())
            spent = int(spent * min(1, count / max(1, most)))  # other traffic on the machine ran them, too
            print(
                f"programs {load}: {count:,} packets in and out, {spent / max(1, count):.0f} ns in BPF for each"
                f", {spent / 1e9 / cpu_s_spent:.1%} of the processor time of client and server"
            )
            table(rows)


# -- latency


def events(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kind and fields of each event of a recording; ``ts`` is its time."""
    kinds: dict[str, ProbeKinds] = {}
    current: ProbeKinds | None = None
    with path.open("rb") as file:
        for part in read_recording(file):
            if isinstance(part, ProbeKinds):
                kinds[part.probe] = part
            elif isinstance(part, str):
                current = kinds.get(part)
            elif isinstance(part, bytes) and part.startswith(b"{") and current:
                record = json.loads(part)
                number = record["data"][0] if record.get("type") == "value" else None
                kind = current.numbers.get(number) if isinstance(number, int) else None
                if kind:
                    names = [field.name for field in kind.fields]
                    values = record["data"][1:-1]  # fields that the engine derives from them come after
                    yield kind.name, {**dict(zip(names, values, strict=False)), "ts": record["data"][-1]}


def background(lab: Lab) -> None:
    """Answers to those sources go back the way they came and are dropped there."""
    lab.ip("host", "route", "add", "10.8.0.0/16", "via", lab.ip4("noise"))
    argv = [sys.executable, "-c", STEADY, "203.0.113.1", str(BACKGROUND_RATE), str(BACKGROUND)]
    lab.popen("noise", argv)


def follow(path: Path, prefix: str, wanted: int, sending: Callable[[], bool]) -> dict[str, int]:
    """When each source's first alert stood in the file; until all have one, or for 3 s after the last was sent."""
    seen: dict[str, int] = {}
    end_s = float("inf")
    line = ""
    with path.open() as file:
        while len(seen) < wanted and time.monotonic() < end_s:
            line += file.readline()
            if not line.endswith("\n"):
                if end_s == float("inf") and not sending():
                    end_s = time.monotonic() + 3
                time.sleep(0.00005)
                continue
            now_ns = boot_ns()
            alert, line = json.loads(line), ""
            source = str(alert.get("source", {}).get("ip", ""))
            if source.startswith(prefix) and alert["rule"]["id"] == "tcp-port-scan":
                seen.setdefault(source, now_ns)
    return seen


def latency() -> None:
    with Lab("host", "peer", "noise") as lab, tempfile.TemporaryDirectory() as name:
        device = lab.end("peer").device
        for third in range(2):
            for last in range(1, 201):
                lab.ip("peer", "address", "add", f"10.7.{third}.{last}/32", "dev", device)
        lab.ip("host", "route", "add", "10.7.0.0/16", "dev", lab.end("host").device)
        with RunningAppliance(lab, Path(name)) as appliance:
            path = appliance.state / "alerts.jsonl"
            wait_until(path.exists, 10)
            background(lab)
            time.sleep(WARM_S)
            before, begun_s = packets(lab, "noise"), time.monotonic()
            argv = [sys.executable, "-c", SEND, lab.ip4("host"), str(SOURCES)]
            sender = lab.popen("peer", argv, stdout=subprocess.PIPE, text=True)
            seen = follow(path, "10.7.", SOURCES, lambda: sender.poll() is None)
            rate = (packets(lab, "noise")["tx"] - before["tx"]) / (time.monotonic() - begun_s)
            assert sender.stdout
            sent = {source: int(ns) for source, ns in (line.split() for line in sender.stdout)}
        kernel = last_syns(appliance.recording)
    print(f"latency  {len(seen)} of {SOURCES} sources alerted, {rate:,.0f} other SYN/s meanwhile")
    parts = {
        "SYN sent → alert in the file": [(seen[source] - sent[source]) / 1e6 for source in seen],
        "SYN sent → event's time in the kernel": [
            (kernel[source] - sent[source]) / 1e6 for source in seen if source in kernel
        ],
        "event's time → alert in the file": [
            (seen[source] - kernel[source]) / 1e6 for source in seen if source in kernel
        ],
    }
    rows = [("", "p50", "p90", "p99", "max")]
    for what, took in parts.items():
        if took:
            shown = [statistics.median(took), percentile(took, 0.9), percentile(took, 0.99), max(took)]
            rows.append((what, *(f"{value:.2f} ms" for value in shown)))
    table(rows)


def last_syns(recording: Path) -> dict[str, int]:
    """The time of each attacker's last SYN: the one that completes the threshold."""
    found: dict[str, int] = {}
    for kind, event in events(recording):
        if kind == "tcp.syn" and event["source.ip"].startswith("10.7."):
            found[event["source.ip"]] = event["ts"]
    return found


# -- flood


def softnet_dropped() -> int:
    """Packets that a device counted and that the kernel dropped before any probe: the queue of a processor was full."""
    return sum(int(line.split()[1], 16) for line in Path("/proc/net/softnet_stat").read_text().splitlines())


def resets_sent(lab: Lab) -> int:
    lines = lab.run("host", ["cat", "/proc/net/snmp"]).stdout.splitlines()
    names, values = (line.split() for line in lines if line.startswith("Tcp:"))
    return int(values[names.index("OutRsts")])


def peak_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def lost_lines(appliance: RunningAppliance) -> dict[str, int]:
    """What did not get from the kernel to the engine as an event, by reason."""
    lines = appliance.status()["engine"]["lines"].values()
    found: Counter[str] = Counter()
    for probe in lines:
        found["ring_buffer"] += probe["lost"]
        found["rejected"] += sum(probe["rejected"].values())
    return found


def flood(seconds: float, senders: int) -> None:
    need("hping3")
    for title, options in (("one port", ["-p", "80"]), ("all ports", ["-p", "++1"])):
        with Lab("host", "peer", "scout") as lab, tempfile.TemporaryDirectory() as name:
            one_flood(
                lab, Path(name), f"{title}, {senders} sender{'s' * (senders > 1)}", options, seconds, senders
            )


def one_flood(lab: Lab, folder: Path, title: str, options: list[str], seconds: float, senders: int) -> None:
    lab.ip("host", "route", "add", "default", "via", lab.ip4("peer"))  # answers are sent, as by any host
    scout = "203.0.113.2"
    with contextlib.contextmanager(listen)(lab, "host", 80), RunningAppliance(lab, folder) as appliance:
        time.sleep(WARM_S)
        pids = processes(appliance)
        measured = {
            who: pid for who, pid in pids.items() if who == "engine" or who.endswith((" net", " net_tcp"))
        }
        for pid in measured.values():
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # peak memory from here on
        slow = [sys.executable, "-c", SLOW, "203.0.113.1", str(SLOW_PORTS.start), str(SLOW_PORTS.stop)]
        scan = lab.popen("scout", slow, stdout=subprocess.PIPE, text=True)
        time.sleep(0.5)
        before, dropped, resets = packets(lab), softnet_dropped(), resets_sent(lab)
        cpu = {who: cpu_s(pid) for who, pid in measured.items()}
        argv = ["hping3", "--flood", "--rand-source", "-S", *options, "-q", lab.ip4("host")]
        began_ns, began_s = boot_ns(), time.monotonic()
        floods = [
            lab.popen("peer", argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for _ in range(senders)
        ]
        time.sleep(seconds)
        for each in floods:
            lab.stop(each)
        took_s, ended_ns = time.monotonic() - began_s, boot_ns()
        cpu = {who: (cpu_s(pid) - cpu[who]) / took_s for who, pid in measured.items()}
        received = packets(lab)["rx"] - before["rx"]
        time.sleep(2.5)  # what was held back in the last second is told in the next
        resets = resets_sent(lab) - resets
        dropped = softnet_dropped() - dropped
        with contextlib.suppress(AssertionError):
            wait_until(lambda: any(_of(a, scout) for a in appliance.alerts()), 60 - seconds, pause=0.5)
        memory = {who: peak_kb(pid) / 1024 for who, pid in measured.items()}
        lost = lost_lines(appliance)
        lab.stop(scan)
        alerts = appliance.alerts()
        offset_ns = time.time_ns() - boot_ns()
    first_ns = min(
        (e["ts"] for kind, e in events(appliance.recording) if kind == "tcp.syn" and e["ts"] > began_ns),
        default=began_ns,
    )
    print(f"flood    {title}: {received:,} packets in {took_s:.1f} s, {received / took_s:,.0f}/s")
    both = f"{sum(cpu.values()):.1%} of a core"
    rows = [("bpftrace and engine together", both), *((who, f"{share:.1%}") for who, share in cpu.items())]
    rows += [(f"{who}, most memory", f"{size:.0f} MB") for who, size in memory.items()]
    rows += spoken(alerts, scout, first_ns + offset_ns)
    rows += ledger(appliance.recording, (began_ns, ended_ns), scout, received, resets, dropped, lost)
    table(rows)


def _of(alert: dict[str, Any], source: str) -> bool:
    return alert.get("source", {}).get("ip") == source


def spoken(alerts: list[dict[str, Any]], scout: str, first_ns: int) -> list[tuple[str, str]]:
    """First alert of each rule, by the time of the event that raised it, after the first packet.

    Those of the honest source apart from all others.
    """
    rows = []
    for whose, chosen in (("flood", lambda a: not _of(a, scout)), ("slow scan", lambda a: _of(a, scout))):
        when: dict[str, list[float]] = {}
        for alert in filter(chosen, alerts):
            when.setdefault(alert["rule"]["id"], []).append(_wall_s(alert) - first_ns / 1e9)
        for rule, times in sorted(when.items(), key=lambda pair: min(pair[1])):
            more = f", {len(times)} alerts" if len(times) > 1 else ""
            rows.append((f"{whose}: {rule}", f"{min(times):.2f} s after the first packet{more}"))
        if not when:
            rows.append((whose, "no alert"))
    return rows


def _wall_s(alert: dict[str, Any]) -> float:
    return datetime.fromisoformat(alert["@timestamp"].replace("Z", "+00:00")).timestamp()


def ledger(
    recording: Path,
    when: tuple[int, int],
    scout: str,
    received: int,
    resets: int,
    dropped: int,
    lost: dict[str, int],
) -> list[tuple[str, str]]:
    """What arrived and what was answered, against what was printed, held back and lost.

    The probe looks at each SYN and at each reset with which this host answers; a packet that the kernel dropped
    in the queue of a processor was never seen by it.
    """
    printed: Counter[str] = Counter()
    held: Counter[str] = Counter()
    rates = 0
    honest = 0
    for kind, event in events(recording):
        if event["ts"] < when[0]:
            continue
        if kind == "sensor.lost":
            held[event["event.reason"]] += event["event.count"]
        elif kind.startswith("flow."):
            rates += 1
        elif scout in (event.get("source.ip"), event.get("destination.ip")):
            honest += kind == "tcp.syn" and event["ts"] <= when[1]
        elif kind in ("tcp.syn", "tcp.probe", "tcp.refused"):
            printed[kind] += 1
    known = {reason: held[reason] for reason in ("aggregated", "budget") if held[reason]}
    there = received + resets - dropped
    told = sum(printed.values()) + sum(known.values()) + lost.get("ring_buffer", 0)
    rows = [("arrived", f"{received:,}"), ("resets in answer", f"{resets:,}")]
    rows.append(("dropped by the kernel before the probe", f"{dropped:,}"))
    rows += [(f"printed {kind}", f"{count:,}") for kind, count in sorted(printed.items())]
    rows += [(f"held back: {reason}", f"{count:,}") for reason, count in sorted(held.items())]
    rows += [(f"lost: {reason}", f"{count:,}") for reason, count in sorted(lost.items())]
    rows.append(("flow.source and flow.rate printed", f"{rates:,}"))
    rows.append(("not accounted for", f"{there - told:,} ({(there - told) / max(1, there):.3%})"))
    rows.append(
        ("SYNs of the slow scan printed in the flood", f"{honest} of about {(when[1] - when[0]) // 10**9}")
    )
    return rows


def main() -> None:
    names = ("idle", "overhead", "latency", "flood")
    parser = argparse.ArgumentParser(description="The network sensor: figures, never pass or fail.")
    parser.add_argument("what", nargs="*", choices=[*names, []], help="all when none is named")
    parser.add_argument("--seconds", type=float, default=60, help="idle")
    parser.add_argument("--pairs", type=int, default=7, help="overhead")
    parser.add_argument("--flood-seconds", type=float, default=10)
    parser.add_argument("--senders", type=int, default=1, help="flood")
    options = parser.parse_args()
    for what in options.what or names:
        if what == "idle":
            idle(options.seconds)
        elif what == "overhead":
            overhead(options.pairs)
        elif what == "latency":
            latency()
        else:
            flood(options.flood_seconds, options.senders)


if __name__ == "__main__":
    main()
