"""``kwsiem alerts --follow`` beside the real courier, as root and without its rights."""

import json
import os
import select
import signal
import stat
import subprocess
import sys
import time

import pytest
from courier import CourierRun, give

from kwsiem.output_settings import FileSettings

pytestmark = pytest.mark.live


def take_lines(process, count, deadline_s):
    """Lines of a process until there are so many."""
    lines = []
    while len(lines) < count:
        assert time.monotonic() < deadline_s, lines
        if select.select([process.stdout], [], [], 0.1)[0]:
            lines.append(json.loads(process.stdout.readline()))
    return lines


def test_new_alerts_are_followed_while_the_courier_writes_them(tmp_path, monkeypatch):
    tmp_path.chmod(0o755)
    state = tmp_path / "state"
    state.mkdir()
    give(state)
    courier = CourierRun(state, [FileSettings(name="file", path=str(state / "alerts.jsonl"))])
    try:
        courier.send(range(5))
        courier.wait(lambda: len(courier.acknowledged) == 5)
        (tmp_path / "kwsiem.yaml").write_text(f"state_dir: {state}\n")
        monkeypatch.setenv("KWSIEM_CONFIG", str(tmp_path / "kwsiem.yaml"))
        argv = [sys.executable, "-I", "-m", "kwsiem", "alerts"]
        with subprocess.Popen(
            [*argv, "--follow", "--json", "--limit", "3"], stdout=subprocess.PIPE, bufsize=0
        ) as follower:
            deadline_s = time.monotonic() + 20
            lines = take_lines(follower, 3, deadline_s)
            courier.send(range(5, 12))
            courier.wait(lambda: len(courier.acknowledged) == 12)
            lines += take_lines(follower, 7, deadline_s)
            assert follower.poll() is None
            follower.send_signal(signal.SIGINT)
            assert follower.wait(10) == 130
        written = [
            json.loads(row)["event"]["id"] for row in (state / "alerts.jsonl").read_text().splitlines()
        ]
        assert {line["event"]["id"] for line in lines[3:]} == set(written[5:12])
        assert len({line["event"]["id"] for line in lines}) == 10
        shown = subprocess.run(
            [*argv, "show", written[0]], capture_output=True, check=True, text=True, timeout=20
        )
        assert "TCP port scan" in shown.stdout and "2. tcp.syn" in shown.stdout
        target = tmp_path / "report.html"
        span = ["--since", "2026-01-01", "--until", "2026-01-04"]  # when the alerts say that they were raised
        subprocess.run(
            [*argv[:-1], "report", *span, "--output", str(target)],
            check=True,
            stderr=subprocess.PIPE,
            timeout=20,
        )
        page = target.read_text()
        assert all(said in page for said in ("12 alerts", "TCP port scan", "198.51.100.7", written[0]))
        assert stat.S_IMODE(target.stat().st_mode) == 0o600 and target.stat().st_uid == os.geteuid()
        # Nothing that belongs to root lies there now: the courier could not write it.
        assert {path.stat().st_uid for path in state.iterdir()} == {state.stat().st_uid}
    finally:
        courier.close()
