"""How fast an offender is dropped, beside fail2ban on the same sshd with the same hydra, in one run.

    sudo .venv/bin/python bench/blocking.py [--trials 10]
    sudo .venv/bin/python bench/blocking.py --many 1000

Each trial is one attacker in a network namespace of its own: a real hydra guesses root's password on a real sshd
with PAM. Meanwhile the attacker knocks on a UDP port of the host, once a millisecond; each knock that gets through is
seen by a socket there. The trials alternate: kwsiem blocks in one (fail2ban told to ignore that source), fail2ban
in the next (kwsiem disarmed; its probe still tells when each authentication failed).

- ``to drop``: from the fifth failed authentication, as the kernel saw it (the time stamp of the probe's event, the
  same for both), until the first knock that was dropped.
- ``after the log line``: the same from the fifth "Failed password" of sshd, as it was written to the log.
- ``tries``: authentications that failed from that source until the end of the trial.

fail2ban: Debian's package, unpacked by packaging/test-peers.sh, its own sshd filter, maxretry 5, pyinotify, ipset action.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(SOURCE / "tests" / "live"), str(SOURCE / "tests")]

import services  # noqa: E402
from appliance import RunningAppliance  # noqa: E402
from lab import Lab, wait_until  # noqa: E402

from kwsiem.response.decisions import Decision, Decisions  # noqa: E402

FAIL2BAN = Path(os.environ.get("KWSIEM_TEST_PEERS", "/var/cache/kwsiem-test-peers")) / "fail2ban"
KNOCK_PORT = 40_000
RESTORED = 100_000
SETTINGS = "blocking: {mode: 'on', allow: [203.0.113.77], aggregate: 0, max_per_min: 1000000}\n"
BOOT = time.CLOCK_BOOTTIME


def boot_ns() -> int:
    return time.clock_gettime_ns(BOOT)


class Log:
    """sshd's standard error, each line with a date before it as syslog writes it, and when that was."""

    def __init__(self, path: Path, stream) -> None:
        self.path = path
        self.failed: list[tuple[int, str]] = []
        self._file = path.open("w", buffering=1)
        self._stream = stream
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        for line in iter(self._next, ""):
            at = time.strftime("%b %e %H:%M:%S")
            self._file.write(f"{at} testhost sshd[1]: {line.rstrip()}\n")
            found = re.match(r"Failed password for .* from (\S+) port", line)
            if found:
                self.failed.append((boot_ns(), found[1]))

    def _next(self) -> str:
        try:
            return self._stream.readline()
        except ValueError:  # closed, sshd has ended
            return ""


class Knocks:
    """One datagram a millisecond from an attacker; the host notes when each was sent that it got."""

    def __init__(self, lab: Lab, name: str, address: str) -> None:
        self.got_ns: list[int] = []
        self._stop = threading.Event()
        with lab.inside("host"):
            self._receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._receiver.bind((address, KNOCK_PORT))
            self._receiver.settimeout(0.2)
        with lab.inside(name):
            self._sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._sender.connect((address, KNOCK_PORT))
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        while not self._stop.is_set():
            with_time = str(boot_ns()).encode()
            with contextlib.suppress(OSError):  # refused, or dropped: that is what is looked for
                self._sender.send(with_time)
            time.sleep(0.001)

    def _receive(self) -> None:
        while not self._stop.is_set():
            try:
                self.got_ns.append(int(self._receiver.recv(64)))
            except TimeoutError:
                continue

    def quiet(self) -> bool:
        """Whether nothing has come through for half a second."""
        return bool(self.got_ns) and boot_ns() - self.got_ns[-1] > 500_000_000

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._receiver.close()
        self._sender.close()


class Fail2ban:
    """A fail2ban-server of our own in the namespace of the host, with one jail."""

    def __init__(self, lab: Lab, folder: Path, log: Path) -> None:
        self.lab = lab
        config = folder / "fail2ban"
        subprocess.run(["cp", "-r", str(FAIL2BAN / "etc/fail2ban"), str(config)], check=True)
        for path in (config / "jail.d").iterdir():
            path.unlink()
        (config / "jail.local").write_text(
            f"[sshd]\nenabled = true\nbackend = pyinotify\nfilter = sshd\nlogpath = {log}\nmaxretry = 5\n"
            "findtime = 10m\nbantime = 10m\nbanaction = iptables-ipset-proto6-allports\nprotocol = all\n"
        )
        (config / "fail2ban.local").write_text(
            f"[DEFAULT]\nlogtarget = {folder}/fail2ban.log\nsocket = {folder}/f2b.sock\n"
            f"pidfile = {folder}/f2b.pid\ndbfile = None\n"
        )
        self._base = [
            "/usr/bin/env", f"PYTHONPATH={FAIL2BAN}/usr/lib/python3/dist-packages", "/usr/bin/python3",
        ]  # fmt: skip
        self._options = ["-c", str(config), "-s", f"{folder}/f2b.sock", "-p", f"{folder}/f2b.pid"]
        argv = [*self._base, str(FAIL2BAN / "usr/bin/fail2ban-server"), *self._options, "-f", "start"]
        self.process = lab.popen("host", argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: "sshd" in self.client("status", check=False), 30, "fail2ban is up")

    def client(self, *arguments: str, check: bool = True) -> str:
        argv = [*self._base, str(FAIL2BAN / "usr/bin/fail2ban-client"), *self._options, *arguments]
        return self.lab.run("host", argv, check=check).stdout


def failures(appliance: RunningAppliance, source: str) -> list[int]:
    """Kernel times of the failed authentications of a source, from the recording."""
    found = []
    for line in appliance.recording.read_text(errors="replace").splitlines():
        if '"failure"' in line and source in line:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if record.get("type") == "value":
                found.append(record["data"][-1])
    return found


def blocks(appliance: RunningAppliance, *arguments: str) -> None:
    argv = [sys.executable, "-m", "kwsiem", "blocks", *arguments, "--runtime", str(appliance.runtime)]
    subprocess.run(argv, check=True, capture_output=True, timeout=30)


def trial(lab: Lab, appliance: RunningAppliance, log: Log, name: str, folder: Path) -> dict[str, float]:
    source = lab.ip4(name)
    address = source.removesuffix(".2") + ".1"
    words = folder / f"words-{name}"
    words.write_text("".join(f"wrong{n}\n" for n in range(40)))
    knocks = Knocks(lab, name, address)
    argv = ["hydra", "-I", "-t", "4", "-l", "root", "-P", str(words), f"ssh://{address}"]
    hydra = lab.popen(name, argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    try:
        wait_until(knocks.quiet, 90, f"{source} is dropped")
        time.sleep(4)  # authentications that were under way end within PAM's delay
    finally:
        lab.stop(hydra)
        knocks.stop()
    times = failures(appliance, source)
    lines = [at for at, who in log.failed if who == source]
    dropped = knocks.got_ns[-1] + 1_000_000
    return {
        "to drop": (dropped - times[4]) / 1e6,
        "after the log line": (dropped - lines[4]) / 1e6 if len(lines) > 4 else float("nan"),
        "tries": len(times),
    }


PROBE = """/*
 * bench - Calls of lseek with a descriptor that nobody has: the offset is a source.
 *
 * sees:      lseek(777777, ADDRESS, 0)
 * blind:     everything else
 * overhead:  none to speak of
 * needs:     tracepoint syscalls:sys_enter_lseek
 * proven:    bench.event
 *
 * event 1 bench.event source.ip:ip
 */
tracepoint:syscalls:sys_enter_lseek
/args->fd == 777777/
{
  print((1, ntop(2, (uint32)args->offset), nsecs));
}
interval:s:1
{
  print((0, nsecs));
}
"""
RULE = """version: 1
rules:
  - id: many
    title: Many
    level: high
    event: bench.event
    detection: {some: {source.ip|cidr: 0.0.0.0/0}, condition: some}
    correlation: {type: event_count, group-by: [source.ip], timespan: 1m, condition: {gte: 5}}
    suppress: 5m
    block: {field: source.ip, for: 10m}
"""


def many(lab: Lab, folder: Path, sources: int) -> None:
    """So many sources cross the threshold at once; then the appliance starts again with all their blocks."""
    (folder / "appliance" / "probes").mkdir()
    (folder / "appliance" / "probes" / "bench.bt").write_text(PROBE)
    with RunningAppliance(lab, folder / "appliance", rules=RULE, settings=SETTINGS) as appliance:
        blocks(appliance, "arm", "--confirm-within", "1h")
        blocks(appliance, "confirm")
        began = time.perf_counter()
        for _ in range(5):
            for number in range(sources):
                with contextlib.suppress(OSError):
                    os.lseek(
                        777777,
                        int.from_bytes(
                            bytes((198, 18 + number // 62500, number // 250 % 250, number % 250 + 1)),
                            "little",
                        ),
                        0,
                    )
        raised_s = time.perf_counter() - began
        wait_until(lambda: blocked_now(appliance) >= sources, 120, f"{sources} blocks", pause=0.005)
        print(
            f"{sources} sources cross the threshold in {raised_s:.2f} s: all blocked {time.perf_counter() - began:.2f} s after the first event"
        )
        os.kill(appliance.process.pid, 9)
        appliance.process.wait()
        lab.run(
            "host",
            ["sh", "-c", "iptables -t mangle -F; iptables -t mangle -X; ipset -X; nft flush ruleset"],
            check=False,
        )
        fill(appliance.state.with_name("state-blocks") / "blocks.db", RESTORED)
        old = len(appliance.log.read_text())
        began = time.perf_counter()
        appliance.start(ready=False)
        wait_until(
            lambda: "restored" in appliance.log.read_text()[old:], 120, "the blocks are back", pause=0.01
        )
        after_s = time.perf_counter() - began
        lines = appliance.log.read_text()[old:].splitlines()
        found = next(json.loads(line) for line in lines if "restored" in line)
        print(
            f"restored {found['blocks']} blocks in {found['took_s']} s, {after_s:.2f} s after the start of the process"
        )
        appliance.wait_ready()


def fill(path: Path, count: int) -> None:
    """So many decisions on disk, as if they had been made before."""
    now_ns = time.time_ns()
    decisions = Decisions(path)
    decisions.put(
        [
            Decision(
                network=f"10.{n // 65536}.{n // 256 % 256}.{n % 256}", since_ns=now_ns, until_ns=now_ns + 3600 * 10**9,
                for_s=3600, mode="on", origin="rule", rule_id="many", alert_id="A", evidence="proven", reason="bench",
            )
            for n in range(count)
        ]
    )  # fmt: skip
    decisions.close()


def blocked_now(appliance: RunningAppliance) -> int:
    return appliance.status()["blocking"]["counters"].get("blocked", 0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10, help="of each (default 10)")
    parser.add_argument(
        "--many",
        type=int,
        metavar="N",
        help="instead: N sources cross the threshold at once, then a start with 100,000 blocks",
    )
    options = parser.parse_args()
    if options.many:
        with tempfile.TemporaryDirectory(prefix="bench-blocking-") as text, Lab("host", "peer") as lab:
            (Path(text) / "appliance").mkdir()
            Path(text).chmod(0o755)
            many(lab, Path(text), options.many)
        return
    names = [f"a{n}" for n in range(2 * options.trials)]
    with tempfile.TemporaryDirectory(prefix="bench-blocking-") as text, Lab("host", *names) as lab:
        folder = Path(text)
        folder.chmod(0o755)
        (folder / "appliance").mkdir()
        with services.sshd(lab, folder, stderr=subprocess.PIPE) as _:
            log = Log(folder / "auth.log", services.last_sshd().stderr)
            with RunningAppliance(lab, folder / "appliance", settings=SETTINGS) as appliance:
                fail2ban = Fail2ban(lab, folder, folder / "auth.log")
                results: dict[str, list[dict[str, float]]] = {"kwsiem": [], "fail2ban": []}
                for index, name in enumerate(names):
                    who = ("kwsiem", "fail2ban")[index % 2]
                    if who == "kwsiem":
                        fail2ban.client("set", "sshd", "addignoreip", lab.ip4(name))
                        blocks(appliance, "arm", "--confirm-within", "1h")
                    else:
                        blocks(appliance, "disarm")
                    found = trial(lab, appliance, log, name, folder)
                    results[who].append(found)
                    print(
                        f"{who:9s} {name}: " + ", ".join(f"{k} {v:.1f}" for k, v in found.items()), flush=True
                    )
                lab.stop(fail2ban.process)
    for who, found in results.items():
        drops = sorted(one["to drop"] for one in found)
        after = sorted(one["after the log line"] for one in found)
        print(
            f"{who}: fifth failure -> first packet dropped: p50 {statistics.median(drops):.1f} ms, most {drops[-1]:.1f} ms;"
            f" after the log line p50 {statistics.median(after):.1f} ms;"
            f" tries p50 {statistics.median(one['tries'] for one in found):.0f}, most {max(one['tries'] for one in found):.0f}"
        )


if __name__ == "__main__":
    main()
