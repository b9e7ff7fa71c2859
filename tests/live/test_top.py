"""``kwsiem top`` on a real pseudo-terminal: a real scan appears, the guard refuses, the terminal is given back."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pexpect
import pytest
from appliance import SOURCE, RunningAppliance, listen
from lab import Lab, wait_until

from kwsiem.control import ask

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]
RULES = """version: 1
rules:
  - id: scan
    title: Scan <b>&](
    level: high
    event: tcp.syn
    detection: {all_ports: {destination.port|gt: 0}, condition: all_ports}
    correlation:
      type: value_count
      field: destination.port
      group-by: [source.ip]
      timespan: 3s
      condition: {gte: 5}
"""
LIST = {"command": "blocks", "verb": "list", "after": "", "limit": 10}
LEFT = "\x1b[?7h\x1b[?25h\x1b[?1049l"


class Terminal:
    """A program on a terminal of its own, and what that shows: only what absolute rows of text need."""

    def __init__(self, appliance, columns=100, lines=30, **environment):
        self.lines = {}
        self.raw = ""
        argv = ["-m", "kwsiem", "top", "--config", str(appliance.folder / "kwsiem.yaml"), "--interval", "0.2"]
        self.child = pexpect.spawn(
            sys.executable, argv, cwd=str(SOURCE), dimensions=(lines, columns), encoding="utf-8", timeout=10,
            env={**os.environ, "TERM": "xterm-256color", **environment},
        )  # fmt: skip
        # With the other end open the attributes can still be read when the program has gone.
        self.slave = os.open(os.ttyname(self.child.child_fd), os.O_RDWR | os.O_NOCTTY)
        self.before = termios.tcgetattr(self.slave)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.slave)
        self.child.close(force=True)

    def text(self):
        with contextlib.suppress(pexpect.TIMEOUT, pexpect.EOF):
            while True:
                self.raw += self.child.read_nonblocking(65536, timeout=0.02)
        self.lines = {}
        for clear, number, text in re.findall(
            r"(\x1b\[2J)|\x1b\[(\d+);1H((?:[^\x1b]|\x1b\[\d*m)*)", self.raw
        ):
            if clear:
                self.lines = {}
            else:
                self.lines[int(number)] = re.sub(r"\x1b\[\d*m", "", text)
        return "\n".join(line for _, line in sorted(self.lines.items()))

    def shows(self, pattern, timeout=10):
        def found():
            return re.search(pattern, self.text())

        try:
            return wait_until(found, timeout, pattern)
        except AssertionError:
            raise AssertionError(f"{pattern!r} is not in:\n{self.text()}\n{self.raw[-2000:]!r}") from None

    def ended(self):
        """Its exit code; the terminal must be as it was."""
        wait_until(lambda: self.text() is not None and not self.child.isalive(), 10, "the end")
        self.text()
        assert LEFT in self.raw
        assert termios.tcgetattr(self.slave) == self.before
        return self.child.exitstatus


@pytest.fixture(scope="module")
def lab():
    with Lab("host", "peer", "friend") as made:
        yield made


@pytest.fixture(scope="module")
def appliance(lab, open_folder):
    folder = open_folder / "top"
    folder.mkdir()
    settings = f"blocking: {{mode: dry-run, allow: [{lab.ip4('friend')}]}}\n"
    made = RunningAppliance(lab, folder, rules=RULES, settings=settings)
    with contextlib.contextmanager(listen)(lab, "host", 22), made:
        yield made


def scan(lab, top, name):
    """A real SYN scan of the host; its incident is the first row."""
    peer = lab.ip4(name)
    host = peer.removesuffix(".2") + ".1"
    lab.run(name, ["nmap", "-n", "-Pn", "-sS", "-p", "20-40", host])
    top.shows(rf"WHAT *\n>\d\d:\d\d:\d\d  high +(open|update) +\d+ +{re.escape(peer)} +Scan <b>&\]\(")
    return re.escape(peer)


def test_a_scan_appears_and_is_blocked_and_released(lab, appliance):
    with Terminal(appliance) as top:
        top.shows(r"kwsiem \S+ on testhost  1 rules  blocking dry-run")
        top.shows(r"net +ready")
        peer = scan(lab, top, "peer")
        top.shows(rf"{peer} +[12] +\d\d:\d\d:\d\d +high")
        top.shows(r"tcp\.syn \d+\.\d/s")
        top.child.send("b")
        top.shows(rf"Block {peer}\?  h: for 1 hour")
        top.child.send("n")
        top.shows("nothing was done")
        top.child.send("b")
        top.shows(rf"Block {peer}\?")
        top.child.send("h")
        top.shows(rf"{peer}: would be blocked \(dry-run\) for 1 hour")
        top.shows(rf"{peer} +59 min +dry-run +by hand")
        top.child.send("\t\t")
        top.shows(r"\*BLOCKS")
        top.child.send("r")
        top.shows(rf"Release {peer}\?")
        top.child.send("y")
        top.shows(rf"{peer}: removed")
        wait_until(lambda: "59 min" not in top.text(), 10, "the end of the block")
        top.child.setwinsize(24, 80)
        wait_until(
            lambda: top.text() and max(top.lines) == 24 and len(top.lines[1]) == 80, 10, "the new size"
        )
        top.child.send("q")
        assert top.ended() == 0


def test_the_guard_refuses_and_says_why(lab, appliance):
    with Terminal(appliance) as top:
        friend = scan(lab, top, "friend")
        top.child.send("bd")  # typed ahead: no answer
        top.shows(rf"Block {friend}\?")
        top.child.send("n")
        top.shows("nothing was done")
        top.child.send("b")
        top.shows(rf"Block {friend}\?")
        top.child.send("d")
        top.shows(rf"{friend}: refused: allow")
        top.child.send("q")
        assert top.ended() == 0
    assert not [b for b in ask(appliance.runtime / "control.sock", LIST)["blocks"] if b["mode"]]


def test_an_appliance_that_goes_and_comes_back(appliance):
    with Terminal(appliance) as top:
        top.shows(r"net +ready")
        appliance.stop()
        top.shows(r"! not answering for \d+ s: kwsiem is not running")
        top.shows(r"Scan <b>")
        appliance.start(ready=False)
        wait_until(lambda: "not answering" not in top.text(), 20, "the appliance is back")
        top.child.send("q")
        assert top.ended() == 0
    appliance.wait_ready()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_terminal_as_it_was_and_no_child(appliance, number, code):
    with Terminal(appliance, NO_COLOR="1") as top:
        top.shows("blocking dry-run")
        assert not re.search(r"\x1b\[\d+m", top.raw.replace(LEFT, "")), "no colour"
        pid = top.child.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert len(children) == 1
        owner = os.stat(f"/proc/{children[0]}").st_uid
        assert owner != 0, "the history is read without root"
        os.kill(pid, number)
        assert top.ended() == code
        assert not os.path.exists(f"/proc/{children[0]}")


def test_once_is_text_and_files_stay_those_of_the_courier(appliance):
    argv = [sys.executable, "-m", "kwsiem", "top", "--once", "--interval", "0.5"]
    argv += ["--config", str(appliance.folder / "kwsiem.yaml")]
    done = subprocess.run(
        argv, cwd=SOURCE, capture_output=True, text=True, timeout=30, check=False,
        env={**os.environ, "COLUMNS": "200", "LINES": "60"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "\033" not in done.stdout
    assert len(done.stdout.splitlines()) == 60
    assert re.search(r"net +ready", done.stdout)
    assert {path.owner() for path in appliance.state.glob("kwsiem.db*")} == {appliance.state.owner()}
