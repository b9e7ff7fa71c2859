"""The exporter process on a link: it shows the latest figures, and a port that is taken ends nothing."""

import http.client
import os
import socket
import subprocess
import sys
import time

import pytest

from kwsiem.link import Link, link_pair
from kwsiem.messages import ExporterStart, Figures, FromExporter, Ready, RuleStats, Stats, Stop
from kwsiem.rule_figures import RuleCounts
from kwsiem.usage import usage_of


class Exporter:
    """The real process; the test is its sensor."""

    def __init__(self, port: int) -> None:
        ours, theirs = link_pair()
        argv = [sys.executable, "-I", "-m", "kwsiem.exporter", "--sensor-fd", str(theirs.fileno())]
        self.process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL)
        theirs.close()
        self.link: Link[FromExporter] = Link(ours, FromExporter)
        self.port = port
        self.stats: dict = {}
        self.is_ready = False
        self.link.send(ExporterStart(user="nobody", listen=f"127.0.0.1:{port}"))

    def until(self, done) -> None:
        deadline_s = time.monotonic() + 20
        while not done():
            assert time.monotonic() < deadline_s
            assert self.process.poll() is None
            message = self.link.take_message()
            if message is None:
                time.sleep(0.01)
            self.is_ready |= isinstance(message, Ready)
            if isinstance(message, Stats):
                self.stats = message.values

    def page(self, accept: str = "") -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/metrics", headers={"Accept": accept})
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def close(self) -> None:
        self.link.close()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def taken():
    """A port of ours that somebody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock


@pytest.fixture
def port(taken):
    found = taken.getsockname()[1]
    taken.close()
    return found


@pytest.fixture
def start():
    made = []

    def begin(port: int) -> Exporter:
        made.append(Exporter(port))
        return made[-1]

    yield begin
    for exporter in made:
        exporter.close()


def test_the_latest_figures_of_each_part_are_shown(start, port):
    exporter = start(port)
    exporter.until(lambda: exporter.stats.get("listening"))
    exporter.link.send(Figures(values={"version": "1", "rules": {"rules": 60}}))
    exporter.link.send(Figures(part="engine", values={"engine": {"events": {"tcp.syn": 4}}}))
    exporter.link.send(RuleStats(sha256="x", rules={"a": RuleCounts(opened=2)}))
    exporter.until(lambda: 'kwsiem_rule_alerts_total{rule="a",state="open"} 2.0' in exporter.page())
    exporter.link.send(Figures(part="engine", values={"engine": {"events": {"tcp.syn": 5}}}))
    exporter.until(lambda: 'kwsiem_events_total{kind="tcp.syn"} 5.0' in exporter.page())
    page = exporter.page("application/openmetrics-text")
    assert "kwsiem_rules 60.0" in page
    assert page.endswith("# EOF\n")
    exporter.until(lambda: exporter.stats["served"] >= 3)
    exporter.link.send(Stop())
    assert exporter.process.wait(10) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="rights are given up by root")
def test_it_has_no_rights(start, port):
    exporter = start(port)
    exporter.until(lambda: exporter.is_ready)
    with open(f"/proc/{exporter.process.pid}/status", encoding="ascii") as file:
        status = {name: rest.strip() for name, _, rest in (line.partition(":") for line in file)}
    assert "0" not in status["Uid"].split()
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"


def test_a_port_that_is_taken_is_told_and_tried_again(start, taken):
    exporter = start(taken.getsockname()[1])
    exporter.until(lambda: exporter.stats.get("error"))
    assert exporter.is_ready
    assert exporter.stats["listening"] is False
    assert "in use" in exporter.stats["error"]
    taken.close()
    exporter.until(lambda: exporter.stats["listening"])
    assert exporter.stats["error"] == ""


def test_it_ends_with_its_sensor(start, port):
    exporter = start(port)
    exporter.until(lambda: exporter.is_ready)
    exporter.link.close()
    assert exporter.process.wait(10) == 0


def test_what_a_process_uses_is_told():
    # A name of a process may look like the fields behind it.
    code = "import sys; open('/proc/self/comm', 'w').write('a) R 1 (b'); print(flush=True); sys.stdin.read()"
    argv = [sys.executable, "-I", "-c", code]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        usage = usage_of(child.pid)
        child.stdin.close()
    assert 0 <= usage.cpu_s < 60
    assert 1 << 20 < usage.resident_bytes < 1 << 30
    assert usage_of(child.pid) is None
    assert usage_of(None) is None
