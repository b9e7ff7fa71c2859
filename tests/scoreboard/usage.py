"""Processor time and memory of the appliance's processes, as /proc tells them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from appliance import RunningAppliance

_TICKS = os.sysconf("SC_CLK_TCK")
_SAMPLE_S = 2.0


def cpu_s(pid: int) -> float:
    """Seconds of processor time of a process, user and system (proc_pid_stat(5), fields 14 and 15)."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / _TICKS


def memory_kib(pid: int) -> tuple[int, int]:
    """What a process has of memory, shared pages divided among those that share them, and what it has alone."""
    found = {"Pss:": 0, "Private_Clean:": 0, "Private_Dirty:": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if name in found:
            found[name] = int(rest.split()[0])
    return found["Pss:"], found["Private_Clean:"] + found["Private_Dirty:"]


@dataclass
class Share:
    """One process over a run."""

    cpu_s: float = 0.0
    pss_kib: int = 0
    private_kib: int = 0
    peak_pss_kib: int = 0


class Usage:
    """Follows the appliance's processes: processor time at each moment that is asked for, memory every two seconds."""

    def __init__(self, appliance: RunningAppliance) -> None:
        self._appliance = appliance
        self.shares: dict[str, Share] = {}
        self.began_s = time.monotonic()
        self._pids: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Usage:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(10)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began_s

    def cpu(self) -> dict[str, float]:
        """Processor seconds of each process until now."""
        found = {}
        for name, pid in list(self._pids.items()):
            try:
                found[name] = cpu_s(pid)
            except OSError:
                found[name] = self.shares[name].cpu_s
        return found

    def _follow(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            self._look()
        self._look()

    def _look(self) -> None:
        self._pids = _pids(self._appliance.process, self._appliance.status()) or self._pids
        for name, pid in self._pids.items():
            share = self.shares.setdefault(name, Share())
            try:
                share.cpu_s = cpu_s(pid)
                share.pss_kib, share.private_kib = memory_kib(pid)
            except OSError:  # it ended in between
                continue
            share.peak_pss_kib = max(share.peak_pss_kib, share.pss_kib)


def _pids(sensor: Any, status: Mapping[str, Any]) -> dict[str, int]:
    if not status:
        return {}
    found = {"sensor": sensor.pid}
    found |= {p["name"]: p["pid"] for p in status["processes"] if p["pid"]}
    return found | {f"bpftrace {p['name']}": p["pid"] for p in status["probes"] if p["pid"]}
