"""The real appliance in a namespace of a laboratory, as a test drives it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab import Lab, wait_until

from kwsiem.control import ask
from kwsiem.errors import UnavailableError

SOURCE = Path(__file__).resolve().parents[2]


class RunningAppliance:
    """``kwsiem run`` in the namespace ``host`` of a laboratory, with state, runtime and rules of its own."""

    def __init__(
        self,
        lab: Lab,
        folder: Path,
        *,
        rules: str | None = None,
        outputs: str = "",
        record: bool = True,
        settings: str = "",
    ) -> None:
        self.lab = lab
        self.folder = folder
        folder.chmod(0o755)
        self.state = folder / "state"
        self.runtime = folder / "run"
        self.rules = folder / "rules.yaml"
        if not self.rules.exists():
            self.rules.write_text(rules if rules is not None else (SOURCE / "rules.yaml").read_text())
        self.probes = folder / "probes"
        if not self.probes.exists():
            self.probes.mkdir()
            for path in (SOURCE / "probes").glob("*.bt"):
                (self.probes / path.name).write_bytes(path.read_bytes())
        self.recording = folder / "recording.jsonl"
        self.log = folder / "log"
        self.console = folder / "console"
        config = folder / "kwsiem.yaml"
        config.write_text(
            f"host: testhost\nrules: {self.rules}\nprobes: [{self.probes}]\nstate_dir: {self.state}\n"
            f"runtime_dir: {self.runtime}\n"
            + (f"record: {self.recording}\n" if record else "")
            + settings
            + "log_level: info\noutputs:\n"
            + f"  - {{name: console, type: console}}\n  - {{name: file, type: file, path: {self.state}/alerts.jsonl}}\n"
            + outputs
        )
        self.argv = [sys.executable, "-I", "-m", "kwsiem", "run", "--config", str(config)]
        self.process: subprocess.Popen[Any] | None = None

    def start(self, ready: bool = True) -> RunningAppliance:
        with self.console.open("ab") as out, self.log.open("ab") as err:
            self.process = self.lab.popen("host", self.argv, stdout=out, stderr=err)
        if ready:
            self.wait_ready()
        return self

    def __enter__(self) -> RunningAppliance:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        assert self.process
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def status(self) -> dict[str, Any]:
        try:
            return ask(self.runtime / "control.sock", {"command": "status"})
        except UnavailableError:
            return {}

    def wait_ready(self, timeout: float = 40) -> None:
        def all_ready() -> bool:
            assert self.process and self.process.poll() is None, self.log.read_text()
            status = self.status()
            return bool(
                status
                and all(p["state"] in ("ready", "unsupported") for p in status["probes"])
                and all(p["state"] == "ready" for p in status["processes"])
                and status["rules"]["rules"]
            )

        wait_until(all_ready, timeout, f"appliance ready: {self.status()}")

    def alerts(self, rule: str | None = None, state: str | None = "open") -> list[dict[str, Any]]:
        path = self.state / "alerts.jsonl"
        found = [json.loads(line) for line in whole_lines(path)]
        return [
            alert
            for alert in found
            if (rule is None or alert["rule"]["id"] == rule)
            and (state is None or alert["kwsiem"]["alert"]["state"] == state)
        ]

    def wait_alert(self, rule: str, source: str | None = None, timeout: float = 15) -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            return [a for a in self.alerts(rule) if source is None or a["source"]["ip"] == source]

        deadline_s = time.monotonic() + timeout
        while not found() and time.monotonic() < deadline_s:
            time.sleep(0.02)
        there = [(a["rule"]["id"], a.get("source")) for a in self.alerts(state=None)]
        assert found(), f"no alert of {rule} from {source}, only {there}\n{self.log.read_text()[-3000:]}"
        return found()[-1]

    def pid(self, process: str) -> int:
        return next(p["pid"] for p in self.status()["processes"] if p["name"] == process)

    def probe(self, name: str) -> dict[str, Any]:
        return next(p for p in self.status()["probes"] if p["name"] == name)

    def children(self) -> set[int]:
        """Pids of everything that belongs to this appliance: named by its folder or by its links."""
        assert self.process
        found = set()
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
                namespace = os.stat(f"/proc/{pid}/ns/net").st_ino
            except OSError:
                continue
            if namespace == self.lab.inode("host") and (
                "kwsiem" in " ".join(words) or "bpftrace" in words[0]
            ):
                found.add(pid)
        return found


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that somebody is writing; the last one may be half there, and is left out."""
    data = path.read_bytes() if path.exists() else b""
    return [line for line in data.rpartition(b"\n")[0].decode().split("\n") if line]


def listen(lab: Lab, name: str, *ports: int) -> Iterator[None]:
    """Sockets that listen on these ports of a namespace, IPv4 and IPv6, while the generator lives."""
    sockets = []
    with lab.inside(name):
        for port in ports:
            sock = socket.create_server(
                ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128
            )
            sockets.append(sock)
    try:
        yield
    finally:
        for sock in sockets:
            sock.close()
