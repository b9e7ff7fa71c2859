"""``status --follow`` and ``stats --follow``: again and again, on a terminal in one place, ended cleanly."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time

import pytest

from kwsiem.clock import NS_PER_S, wall_ns
from kwsiem.control import ControlServer
from kwsiem.series_file import SeriesFile

DEADLINE_S = 20
STATUS = {
    "version": "1", "host": "h<b>\x1b[2J\u202e", "pid": 1, "since": "now", "bpftrace": "0", "probes": [], "probe_problems": [],
    "processes": [], "courier": {}, "engine": {},
    "rules": {"stale": False, "rules": 1, "file": "f", "loaded": "now", "problems": [], "files": [], "skipped": 0},
}  # fmt: skip


@pytest.fixture
def appliance(tmp_path):
    """Something that answers like the appliance; gives the folder, and how often it was asked."""
    asked = []
    server = ControlServer(tmp_path / "control.sock", lambda request: asked.append(request) or STATUS)
    stop = threading.Event()

    def serve():
        while not stop.wait(0.005):
            server.serve()

    thread = threading.Thread(target=serve)
    thread.start()
    yield tmp_path, asked
    stop.set()
    thread.join()
    server.close()


def command(*words, **options):
    return subprocess.Popen([sys.executable, "-m", "kwsiem", *words], **options)


def read_until(fd, pattern, child):
    """What came, once the pattern is in it."""
    data = b""
    deadline_s = time.monotonic() + DEADLINE_S
    while not re.search(pattern, data, re.DOTALL):
        assert time.monotonic() < deadline_s, data
        assert child.poll() is None, data
        if select.select([fd], [], [], 0.1)[0]:
            data += os.read(fd, 65536)
    return data


@pytest.mark.parametrize("name", ["status", "stats"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_json_is_one_object_a_line_until_a_signal(appliance, name, number, code):
    folder, asked = appliance
    words = [name, "--follow", "--interval", "0.1", "--json", "--runtime", str(folder)]
    with command(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as child:
        lines = [json.loads(child.stdout.readline()) for _ in range(3)]
        child.send_signal(number)
        rest, said = child.communicate(timeout=DEADLINE_S)
        assert child.returncode == code
    assert (b"Traceback" in said, said) == (False, b"")
    assert all(json.loads(line) for line in rest.splitlines())
    assert len(lines) == 3 and ("version" if name == "status" else "balanced") in lines[0]
    assert len(asked) >= 3


def test_without_a_terminal_a_block_for_each_answer(appliance):
    folder, _ = appliance
    words = ["status", "--follow", "--interval", "0.1", "--runtime", str(folder)]
    with command(*words, stdout=subprocess.PIPE) as child:
        data = read_until(child.stdout.fileno(), rb"\n\nkwsiem.*\n\nkwsiem", child)
        child.terminate()
        child.communicate(timeout=DEADLINE_S)
    assert b"\x1b[H" not in data and b"\x1b[K" not in data


def test_it_ends_when_the_reader_has_gone(appliance):
    folder, _ = appliance
    words = ["stats", "--follow", "--interval", "60", "--runtime", str(folder)]
    with command(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.readline()
        child.stdout.close()
        assert child.wait(DEADLINE_S) == 0
        assert child.stderr.read() == b""


def test_an_appliance_that_goes_is_said_and_waited_for(appliance):
    folder, _ = appliance
    words = ["status", "--follow", "--interval", "0.1", "--json", "--runtime", str(folder)]
    with command(*words, stdout=subprocess.PIPE) as child:
        assert "version" in json.loads(child.stdout.readline())
        (folder / "control.sock").rename(folder / "away")
        while "error" not in (line := json.loads(child.stdout.readline())):
            pass
        assert "not running" in line["error"]
        (folder / "away").rename(folder / "control.sock")
        while "version" not in json.loads(child.stdout.readline()):
            pass
        child.terminate()
        child.communicate(timeout=DEADLINE_S)


def test_nothing_to_follow_is_unavailable(tmp_path):
    words = ["stats", "--follow", "--runtime", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "kwsiem", *words], capture_output=True, check=False, timeout=DEADLINE_S
    )
    assert done.returncode == 69 and b"not running" in done.stderr


@pytest.mark.parametrize("words", [["status"], ["stats"], ["stats", "--since", "1h"]])
def test_a_terminal_shows_it_in_one_place_and_is_given_back(appliance, words):
    folder, _ = appliance
    file = SeriesFile(folder / "series.db", max_age_s=10**9, max_bytes=10**9)
    file.add(wall_ns() // NS_PER_S, {"ports": {"tcp/22\x1b[2J<b>\u202e": 5}})
    file.close()
    if os.geteuid() == 0:  # the figures are read without rights
        for path in (folder, *folder.parents[:2], *folder.iterdir()):
            path.chmod(0o777)
    ours, theirs = pty.openpty()
    words = [*words, "--follow", "--interval", "0.1", "--runtime", str(folder)]
    if "--since" in words:
        words += ["--state-dir", str(folder)]
    with command(
        *words, stdout=theirs, stdin=theirs, env={**os.environ, "COLUMNS": "80", "LINES": "12"}
    ) as child:
        try:
            data = read_until(ours, rb"\x1b\[J\x1b\[\?7h.*\x1b\[J\x1b\[\?7h", child)
            child.send_signal(signal.SIGINT)
            assert child.wait(DEADLINE_S) == 130
            data += os.read(ours, 65536)
        finally:
            child.kill()
            os.close(theirs)
            os.close(ours)
    assert data.count(b"\x1b[2J") == 1, "ours at the beginning, none of a name's"
    assert "\u202e".encode() not in data
    pictures = data.split(b"\x1b[H")[1:]
    assert all(picture.count(b"\r\n") <= 11 for picture in pictures), "no more lines than the screen has"
    assert data.rstrip().endswith(b"\x1b[?7h"), "line breaks are on again"
