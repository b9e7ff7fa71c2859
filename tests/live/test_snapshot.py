"""Who crashes the engine does not reset its windows: a slow scan is found across kill -9.

Ports are knocked at 0.2 s apart to keep the test short; KWSIEM_SCAN_SPACING_S=20 makes it the real thing.
"""

import os
import signal
import socket
import time

import pytest
from appliance import RunningAppliance
from lab import Lab, wait_until

SPACING_S = float(os.environ.get("KWSIEM_SCAN_SPACING_S", "0.2"))
pytestmark = [pytest.mark.live, pytest.mark.timeout(120 + 20 * SPACING_S)]

RULES = """version: 1
rules:
  - id: slow-scan
    title: Slow scan
    level: high
    event: tcp.syn
    detection: {all_ports: {destination.port|gt: 0}, condition: all_ports}
    correlation:
      type: value_count
      field: destination.port
      group-by: [source.ip]
      timespan: 10m
      condition: {gte: 6}
    suppress: 1h
"""


@pytest.fixture
def lab():
    with Lab("host", "peer") as lab:
        yield lab


def knock(lab: Lab, port: int) -> None:
    with lab.inside("peer"), socket.socket() as sock:
        sock.settimeout(0.5)
        sock.connect_ex((lab.ip4("host"), port))
    time.sleep(SPACING_S)


def seen(appliance: RunningAppliance) -> int:
    return appliance.status().get("engine", {}).get("engine", {}).get("events", {}).get("tcp.syn", 0)


def wait_snapshot(appliance: RunningAppliance) -> None:
    """Wait until all that was seen is in a snapshot: one is written each second."""

    def written() -> int:
        return appliance.status()["engine"]["snapshots"]["written"]

    before = written()
    wait_until(lambda: written() > before + 1, 10, "a snapshot")


def kill_engine(appliance: RunningAppliance) -> None:
    """Kill -9, and wait until the next engine serves with the rules and the state of the one before."""
    pid = appliance.pid("engine")
    wait_snapshot(appliance)
    os.kill(pid, signal.SIGKILL)

    def restored() -> bool:
        status = appliance.status()
        engine = next(p for p in status["processes"] if p["name"] == "engine")
        stats = status["engine"].get("engine", {})
        return engine["pid"] not in (None, pid) and engine["state"] == "ready" and stats.get("restored") == 1

    wait_until(restored, 15, f"a new engine with the old state: {appliance.status().get('engine')}")


def test_a_slow_scan_is_found_though_the_engine_is_killed_in_the_middle_of_it(lab, tmp_path):
    with RunningAppliance(lab, tmp_path, rules=RULES, record=False) as appliance:
        for number, port in enumerate((21, 22, 23, 25, 80, 443)):
            if number in (2, 4):
                kill_engine(appliance)
            assert appliance.alerts("slow-scan") == []
            knock(lab, port)
        alert = appliance.wait_alert("slow-scan", lab.ip4("peer"))
        assert alert["kwsiem"]["alert"]["count"] == 6
        # And what is open stays open: no second alert for what was said already.
        kill_engine(appliance)
        for port in (8080, 8081):
            knock(lab, port)
        wait_until(lambda: seen(appliance) >= 2, 5, "the knocks arrived")
        assert len(appliance.alerts("slow-scan")) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_slow_scan_is_found_though_the_whole_appliance_is_started_again(lab, tmp_path, number):
    appliance = RunningAppliance(lab, tmp_path, rules=RULES, record=False)
    with appliance:
        for port in (21, 22, 23, 25):
            knock(lab, port)
        wait_snapshot(appliance)
        os.kill(appliance.process.pid, number)
        appliance.process.wait(20)
        wait_until(lambda: not appliance.children(), 10, "everything has ended")
        appliance.start()
        assert appliance.alerts("slow-scan") == []
        for port in (80, 443):
            knock(lab, port)
        assert appliance.wait_alert("slow-scan", lab.ip4("peer"))["kwsiem"]["alert"]["count"] == 6
