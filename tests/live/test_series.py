"""The history of figures of a real appliance: what arrives from a peer is in it, packet by packet."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest
from appliance import RunningAppliance
from lab import Lab, wait_until

from kwsiem.series import Series

pytestmark = [pytest.mark.live, pytest.mark.timeout(60)]

#: An ICMP echo request (RFC 792); the checksum is that of these bytes.
ECHO = b"\x08\x00\xf7\xff\x00\x00\x00\x00"


@pytest.fixture
def lab():
    with Lab("host", "peer") as lab:
        yield lab


def knock(address: str, port: int, count: int) -> None:
    for _ in range(count):
        with socket.socket() as sock:
            sock.settimeout(2)
            sock.connect_ex((address, port))


def alerts_command(appliance: RunningAppliance, *words: str) -> str:
    """What ``kwsiem alerts`` prints to anna, who is root by sudo."""
    argv = [sys.executable, "-I", "-m", "kwsiem", "alerts", *words]
    argv += ["--config", str(appliance.folder / "kwsiem.yaml")]
    environment = {**os.environ, "SUDO_USER": "anna"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_what_arrives_is_in_the_figures_and_a_killed_courier_goes_on(lab, tmp_path):
    target, peer = lab.ip4("host"), lab.ip4("peer")
    began_ns = time.time_ns()
    since_s = began_ns // 10**9
    with RunningAppliance(lab, tmp_path, record=False, settings="history: {every_s: 1}\n") as appliance:
        series = Series(appliance.state / "series.db")

        def found(name: str) -> dict[str, int]:
            return dict(series.totals(name, since_s, since_s + 600))

        with lab.inside("peer"):
            knock(target, 2201, 37)
            knock(target, 2202, 12)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                for _ in range(40):
                    udp.sendto(b"x", (target, 4000))
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as icmp:
                for _ in range(7):
                    icmp.sendto(ECHO, (target, 0))

        packets = {"tcp": 49, "udp": 40, "icmp": 7}
        wait_until(lambda: sum(found("sources").values()) >= 96, 15, f"{found('sources')} {found('packets')}")
        assert found("packets") == packets
        ports, sources = found("ports"), found("sources")
        # Of datagrams only those are named that the kernel answered; about six at once (docs/network.md).
        answered = ports.pop("udp/4000")
        assert 1 <= answered <= 40
        assert ports == {"tcp/2201": 37, "tcp/2202": 12, "other": 40 - answered}
        assert sources == {peer: 56 + answered, "other": 40 - answered}
        assert found("events")["tcp.syn"] == 49

        kinds = {(e.fields.get("probe.name"), e.fields.get("probe.state")) for e in series.journal(began_ns, time.time_ns())}  # fmt: skip
        assert ("net", "ready") in kinds
        assert stat.S_IMODE((appliance.state / "series.db").stat().st_mode) == 0o600
        assert {"sensor", "engine", "courier", "bpftrace:net"} <= found("memory_bytes").keys()
        assert found("cpu_ms").keys() >= {"sensor", "engine", "bpftrace:net"}
        assert 1 <= found("probe_up_s")["net"] <= time.time_ns() / 1e9 - since_s

        before = appliance.pid("courier")
        os.kill(before, signal.SIGKILL)
        with lab.inside("peer"):
            knock(target, 2202, 5)
        wait_until(lambda: found("packets")["tcp"] >= 54, 20, f"{found('packets')}")
        assert found("packets") == {**packets, "tcp": 54}
        assert appliance.pid("courier") != before

        with lab.inside("peer"):
            for port in range(2301, 2309):
                knock(target, port, 1)
        alert = appliance.wait_alert("tcp-port-scan", peer)
        incident = alert["kwsiem"]["alert"]["incident_id"]
        said = alerts_command(appliance, "acknowledge", alert["event"]["id"][-8:])
        assert said == f"{incident} acknowledged\n"
        wait_until(lambda: series.acknowledged([incident]), 5)
        assert series.acknowledged([incident])[incident].who == "anna"
        assert '"user_name": "anna"' in appliance.log.read_text()
        assert "[ack anna] " in alerts_command(appliance)
        assert appliance.status()["courier"]["series"]["lost"] == {}
