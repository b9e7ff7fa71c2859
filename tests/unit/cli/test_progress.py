"""Progress on a real pseudo-terminal: after a second, erased at the end, and never anywhere else."""

import contextlib
import gzip
import io
import os
import pty
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from kwsiem.cli import progress
from kwsiem.cli.progress import Progress

DEADLINE_S = 60
#: So many take more than two seconds.
EVENTS = 20_000
ERASED = b"\r\x1b[K"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """A standard error that says it is a terminal, and a clock that is set by hand."""
    screen, now = Terminal(), [100.0]
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=screen))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(progress, "monotonic_s", lambda: now[0])
    return screen, now


def test_nothing_is_shown_within_the_first_second_and_nothing_is_left(terminal):
    screen, now = terminal
    with Progress("reading", 100, "B") as bar:
        bar.at(1)
        now[0] += 0.99
        bar.at(50)
        assert bar.active
    assert screen.getvalue() == ""


def test_part_rate_and_time_left(terminal):
    screen, now = terminal
    with Progress("reading", 8_000_000, "B") as bar:
        now[0] += 2
        bar.at(2_000_000)
        shown = screen.getvalue()
    assert shown == "\rreading  [######..................]  25%  2.0 MB, 1.0 MB/s  0:06 left\x1b[K"
    assert screen.getvalue() == shown + "\r\x1b[K", "erased"


def test_without_a_total_there_is_no_bar_but_a_rate(terminal):
    screen, now = terminal
    with Progress("reading", 0, "B") as bar:
        now[0] += 10
        bar.at(50)
        assert screen.getvalue() == "\rreading  50 B, 5 B/s\x1b[K"
    with Progress("reading", 0, "alerts") as bar:
        now[0] += 10
        bar.at(54_321)
    assert "reading  54,321 alerts, 5,432 alerts/s" in screen.getvalue()


def test_it_is_drawn_ten_times_a_second_at_most_and_never_beyond_the_margin(terminal, monkeypatch):
    screen, now = terminal
    monkeypatch.setenv("COLUMNS", "20")
    with Progress("reading", 1000) as bar:
        for number in range(1000):
            now[0] += 0.01
            bar.at(number)
        lines = screen.getvalue().split("\r")[1:]
    assert 80 <= len(lines) <= 101
    assert all(len(line.removesuffix("\x1b[K")) <= 19 for line in lines)


def test_more_than_all_is_all_and_an_error_erases_it_too(terminal):
    screen, now = terminal
    bar = Progress("reading", 10)
    with contextlib.suppress(ZeroDivisionError), bar:
        now[0] += 5
        bar.at(20)
        assert "100%" in screen.getvalue() and "0:00 left" in screen.getvalue()
        _ = 1 / 0
    assert screen.getvalue().endswith("\r\x1b[K")


@pytest.mark.parametrize("how", ["pipe", "json", "dumb"])
def test_where_nobody_sees_it_nothing_is_written(terminal, monkeypatch, how):
    screen, now = terminal
    if how == "pipe":
        monkeypatch.setattr(Terminal, "isatty", lambda self: False)
    if how == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    with Progress("reading", 10, wanted=how != "json") as bar:
        now[0] += 5
        bar.at(5)
    assert not bar.active and screen.getvalue() == ""


# a real replay on a real terminal ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Events that take some seconds to replay: logins that fail, of users with hostile names, packed."""
    path = tmp_path_factory.mktemp("replay") / "events.jsonl.gz"
    name = "\\u001b[2J<b>&](\\u202e" + "A" * 300
    with gzip.open(path, "wt", compresslevel=1) as file:
        for number in range(EVENTS):
            file.write(
                f'{{"kind": "auth.attempt", "ts_ns": {10**9 + number * 10**6}, "event.outcome": "failure", "service.name": "sshd",'
                f' "user.name": "{name}", "source.address": "198.51.100.{number % 50}", "process.pid": 1,'
                ' "process.user.id": 0, "pam.result": 7}\n'
            )
    return path


def replay(recording, *options):
    """A replay on a terminal of its own; the process, and our end of the terminal."""
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "kwsiem", "replay", *options, str(recording)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    stdout = subprocess.DEVNULL if "--json" in options else theirs
    child = subprocess.Popen(argv, stdout=stdout, stderr=theirs, env=environment)
    os.close(theirs)
    return child, ours


def all_of(child, ours):
    """What it wrote on the terminal until its end."""
    data = b""
    timer = threading.Timer(DEADLINE_S, child.kill)
    timer.start()
    try:
        while part := os.read(ours, 65536):
            data += part
    except OSError:
        pass  # the terminal has gone with the child
    finally:
        timer.cancel()
        os.close(ours)
    assert child.wait(DEADLINE_S) == 0, data[-2000:]
    return data


def test_a_replay_shows_how_far_it_is_and_alerts_stand_on_lines_of_their_own(recording):
    silent = replay(recording, "--json")
    data = all_of(*replay(recording))
    bars = re.findall(rb"\rreplaying  \[[#.]{24}\] +(\d+)%  [^\r\n]* left\x1b\[K", data)
    assert bars, data[-2000:]
    assert [int(part) for part in bars] == sorted(map(int, bars))
    # What is left on the screen: whole lines, nothing of the bar.
    left = re.sub(rb"\r[^\r\n]*\x1b\[K(?=\r\x1b\[K|\rreplaying)", b"", data).replace(ERASED, b"")
    assert b"replaying  [" not in left
    assert b"%d events" % EVENTS in left and b"<b>&](" in left
    assert b"\x1b" not in left and "\u202e".encode() not in left, "hostile names are harmless"
    said = all_of(*silent)
    assert b"replaying  [" not in said and b"\x1b" not in said, "with --json there is no bar"
