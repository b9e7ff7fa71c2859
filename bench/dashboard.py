"""The dashboard's first page with 100,000 alerts in the history: how long it takes, over real HTTP.

    sudo python bench/dashboard.py [ALERTS]

The history and a week of figures are written with the courier's own code; the page is asked of the real two
processes, first once with nothing read before, then 50 times. Figures are milliseconds until the last byte.
The appliance itself does not run: what it would say is asked once a second, however many pages are open.
"""

from __future__ import annotations

import http.client
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from kwsiem import rights
from kwsiem.alert import Alert
from kwsiem.document import document
from kwsiem.outbox import Item, Outbox
from kwsiem.series_file import SeriesFile

ROUNDS = 50


def alert(number: int, raised_ns: int) -> Alert:
    """An alert like that of a port scan, with five events of evidence."""
    fields = {"source.ip": f"198.18.{number % 200}.{number % 249 + 1}", "destination.port": 24}
    return Alert(
        rule_id="tcp-port-scan", title="TCP port scan", level="high", state="open",
        identity={"source.ip": fields["source.ip"]}, count=5, first_ns=raised_ns, last_ns=raised_ns,
        raised_ns=raised_ns, opened_ts_ns=number, reason="5 ports in 3s", fields=fields, values=[20, 21, 22],
        tags=["attack.discovery", "attack.t1046"], host="gw01.example.net",
        evidence=[{"kind": "tcp.syn", "ts_ns": n, **fields} for n in range(5)],
    )  # fmt: skip


def fill(state: Path, count: int) -> None:
    """So many alerts, and a figure for each minute of a week."""
    now_ns = time.time_ns()
    box = Outbox(state / "kwsiem.db", ["file"])
    for first in range(0, count, 500):
        some = [alert(n, now_ns - (count - n) * 6_000_000_000) for n in range(first, min(first + 500, count))]
        box.put([Item(each.id, 8, msgspec.json.encode(document(each))) for each in some])
    box.close()
    series = SeriesFile(state / "series.db", max_age_s=30 * 86_400, max_bytes=1 << 30)
    dice = random.Random(1)
    begin_s = now_ns // 10**9 - 7 * 86_400
    for at_s in range(begin_s, begin_s + 7 * 86_400, 60):
        packets = {name: dice.randrange(10_000) for name in ("tcp", "udp", "icmp", "other")}
        sources = {f"198.18.{dice.randrange(200)}.{n}": dice.randrange(1000) for n in range(50)}
        series.add(at_s, {"packets": packets, "alerts": {"high": 10, "low": 3}, "sources": sources})
    series.close()
    for path in (state, *state.iterdir()):
        shutil.chown(path, rights.account("kwsiem").pw_uid)


class Browser:
    """One session over one connection."""

    def __init__(self, port: int, token: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.origin = {"Origin": f"http://127.0.0.1:{port}"}
        self.connection.request("POST", "/login", f"token={token}", self.origin)
        answer = self.connection.getresponse()
        answer.read()
        self.cookie = {"Cookie": (answer.getheader("set-cookie") or "").partition(";")[0]}

    def get(self, path: str) -> tuple[float, int]:
        """Milliseconds, and bytes."""
        begin = time.perf_counter()
        self.connection.request("GET", path, headers=self.cookie)
        answer = self.connection.getresponse()
        data = answer.read()
        assert answer.status == 200, data[:200]
        return (time.perf_counter() - begin) * 1000, len(data)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory(prefix="kwsiem-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        state = folder / "state"
        state.mkdir()
        fill(state, count)
        config = folder / "kwsiem.yaml"
        config.write_text(f"state_dir: {state}\nruntime_dir: {folder}/run\n")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        argv = [sys.executable, "-m", "kwsiem", "dashboard", "--config", str(config)]
        token = subprocess.run(
            [*argv, "--show-token"], capture_output=True, text=True, check=True
        ).stdout.strip()
        with subprocess.Popen(
            [*argv, "--listen", f"127.0.0.1:{port}"], stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr
            while "is served" not in process.stderr.readline():
                pass
            browser = Browser(port, token)
            print(f"{count} alerts, {(state / 'kwsiem.db').stat().st_size >> 20} MB; milliseconds")
            for path in ("/", "/api/timeline?span=24h", "/api/timeline?span=7d"):
                first, size = browser.get(path)
                times = sorted(browser.get(path)[0] for _ in range(ROUNDS))
                print(
                    f"{path:26} first {first:6.1f}  median {statistics.median(times):6.1f}"
                    f"  p95 {times[int(0.95 * ROUNDS)]:6.1f}  {size >> 10} KiB"
                )
            process.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    main()
