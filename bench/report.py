"""``kwsiem report`` over a full history: seconds and peak memory.

    python bench/report.py [ALERTS]

The alerts (default 100,000) come from as many sources as there are alerts: the hardest case, as under forged
addresses. Each has ten events of evidence. Peak memory is that of the process that reads, from the kernel
(ru_maxrss of the children).
"""

from __future__ import annotations

import ipaddress
import os
import pwd
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from kwsiem.alert import LEVELS, Alert
from kwsiem.document import document
from kwsiem.outbox import Item, Outbox

BATCH = 1000
SPAN_NS = 14 * 86_400 * 10**9


def alert(number: int, raised_ns: int) -> Alert:
    source = str(ipaddress.ip_address(0x0A000000 + number))
    fields = {"source.ip": source, "destination.ip": "192.0.2.1", "destination.port": 24}
    return Alert(
        rule_id=f"rule-{number % 50}", title="TCP port scan", level=list(LEVELS)[number % 5],
        state=("open", "update", "close")[number % 3], identity={"source.ip": source}, count=number % 997,
        first_ns=raised_ns - 10**9, last_ns=raised_ns, raised_ns=raised_ns, opened_ts_ns=number,
        reason="5 different destination.port in 3s", tags=["attack.discovery", "attack.t1046"], fields=fields,
        evidence=[{"kind": "tcp.syn", "ts_ns": n, "grade": "spoofable", **fields} for n in range(10)],
        host="gw01.example.net",
    )  # fmt: skip


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as name:
        state = Path(name)
        fill(state, count)
        config = state / "kwsiem.yaml"
        config.write_text(f"host: bench\nstate_dir: {state}\nruntime_dir: {state}/run\n")
        for form in (
            ["--output", str(state / "report.html")],
            ["--json", "--output", str(state / "report.json")],
        ):
            began = time.perf_counter()
            argv = [sys.executable, "-m", "kwsiem", "report", "--since", "7d", "--config", str(config), *form]
            subprocess.run(argv, check=True, stderr=subprocess.DEVNULL)
            took_s = time.perf_counter() - began
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
            size = Path(form[-1]).stat().st_size // 1024
            print(f"{count:,} alerts, {form[0]}: {took_s:.1f} s, peak {peak} MiB, {size} KiB written")


def fill(state: Path, count: int) -> None:
    """A history of so many alerts over two weeks, readable by who reads it without rights."""
    box = Outbox(state / "kwsiem.db", ["file"], history=2 * count, max_bytes=2**34)
    first_ns = time.time_ns() - SPAN_NS
    for start in range(0, count, BATCH):
        made = [alert(n, first_ns + SPAN_NS * n // count) for n in range(start, min(count, start + BATCH))]
        box.put([Item(a.id, LEVELS[a.level], msgspec.json.encode(document(a))) for a in made])
    box.close()
    state.chmod(0o755)
    if os.geteuid() == 0:
        owner = pwd.getpwnam("nobody")
        for path in (state, *state.iterdir()):
            os.chown(path, owner.pw_uid, owner.pw_gid)


if __name__ == "__main__":
    main()
