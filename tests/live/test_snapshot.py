"""Who crashes the engine does not reset its windows: a slow scan is found across kill -9.

Ports are knocked at 0.2 s apart to keep the test short; KWSIEM_SCAN_SPACING_S=20 makes it the real thing.
"""

import contextlib
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

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
LOUD = "198.51.100.77"


def seen(appliance: RunningAppliance) -> int:
    """SYNs that the running engine has taken; a new engine counts from 0."""
    return appliance.status().get("engine", {}).get("engine", {}).get("events", {}).get("tcp.syn", 0)


def restored(appliance: RunningAppliance) -> bool:
    """Whether the engine goes on with the state of the one before."""
    return appliance.status().get("engine", {}).get("engine", {}).get("restored") == 1


def scan(lab: Lab, appliance: RunningAppliance, *ports: int, source: str = "") -> None:
    """One SYN to each port, and wait until the engine has them all (it says so once a second)."""
    before = seen(appliance)
    for port in ports:
        with lab.inside("peer"), socket.socket() as sock:
            sock.bind((source or lab.ip4("peer"), 0))
            sock.settimeout(0.5)
            sock.connect_ex((lab.ip4("host"), port))
        time.sleep(0 if source else SPACING_S)
    wait_until(lambda: seen(appliance) >= before + len(ports), 15, f"the knocks at {ports} were seen")


def wait_snapshot(appliance: RunningAppliance) -> None:
    """Wait until all that was seen is in a snapshot: one is written each second in which something changed."""

    def looks() -> int:
        snapshots = appliance.status()["engine"]["snapshots"]
        return snapshots["written"] + snapshots["unchanged"]

    before = looks()
    wait_until(lambda: looks() > before + 1, 10, "a snapshot")


def loud_scan(lab: Lab, appliance: RunningAppliance) -> None:
    """A scan that is alerted at once: its incident is open when the engine ends."""
    lab.address("peer", lab.end("peer").device, f"{LOUD}/24")
    scan(lab, appliance, *range(30, 36), source=LOUD)
    appliance.wait_alert("slow-scan", LOUD)


def both_alerted_once(lab: Lab, appliance: RunningAppliance) -> None:
    """The loud scanner does it all again, then the slow one ends: what came before his alert has been told by then."""
    scan(lab, appliance, *range(36, 42), source=LOUD)
    scan(lab, appliance, 80, 443)
    appliance.wait_alert("slow-scan", lab.ip4("peer"))
    told = [
        (each["source"]["ip"], each["kwsiem"]["alert"]["count"]) for each in appliance.alerts("slow-scan")
    ]
    assert told == [(LOUD, 6), (lab.ip4("peer"), 6)]


def kill_engine(appliance: RunningAppliance) -> None:
    """Kill -9, and wait until the next engine serves with the rules and the state of the one before."""
    pid = appliance.pid("engine")
    wait_snapshot(appliance)
    os.kill(pid, signal.SIGKILL)

    def another() -> bool:
        # The numbers may still be those of the engine before: it had seen something.
        return appliance.pid("engine") not in (None, pid) and restored(appliance) and not seen(appliance)

    wait_until(another, 15, f"a new engine with the old state: {appliance.status().get('engine')}")


def scan_over_kills(lab: Lab, folder: Path) -> None:
    """The slow scan in three parts; between them the engine alone is killed."""
    with RunningAppliance(lab, folder, rules=RULES, record=False) as appliance:
        loud_scan(lab, appliance)
        for ports in ((21, 22), (23, 25)):
            scan(lab, appliance, *ports)
            kill_engine(appliance)
        both_alerted_once(lab, appliance)


def end_sensor(number: int) -> Callable[[RunningAppliance], None]:
    """A signal for the sensor alone: the others end because it has."""
    return lambda appliance: os.kill(appliance.process.pid, number)


def kill_all(appliance: RunningAppliance) -> None:
    """Kill -9 for all of them, the probes too, the sensor first so that it starts none again."""
    pids = sorted(appliance.children(), key=lambda pid: pid != appliance.process.pid)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def scan_over_a_start(lab: Lab, folder: Path, end: Callable[[RunningAppliance], None]) -> None:
    """One half of the slow scan, the end, a new start, the other half."""
    appliance = RunningAppliance(lab, folder, rules=RULES, record=False)
    with appliance:
        loud_scan(lab, appliance)
        scan(lab, appliance, 21, 22, 23, 25)
        wait_snapshot(appliance)
        end(appliance)
        appliance.process.wait(20)
        wait_until(lambda: not appliance.children(), 10, "everything has ended")
        appliance.start()
        wait_until(lambda: restored(appliance), 15, "the state of the run before")
        both_alerted_once(lab, appliance)


ENDS = {"kill-sensor": end_sensor(signal.SIGKILL), "stop": end_sensor(signal.SIGTERM), "kill-all": kill_all}
WAYS = {"kill-engine": scan_over_kills, **{way: partial(scan_over_a_start, end=ENDS[way]) for way in ENDS}}


@pytest.fixture(scope="module")
def begun(open_folder):
    """All ways at once, each in a laboratory of its own: most of it is waiting."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(WAYS)) as pool:
        labs = {way: stack.enter_context(Lab("host", "peer")) for way in WAYS}
        folders = {way: Path(tempfile.mkdtemp(dir=open_folder)) for way in WAYS}
        yield {way: pool.submit(run, labs[way], folders[way]) for way, run in WAYS.items()}


def test_a_slow_scan_is_found_though_the_engine_is_killed_in_the_middle_of_it(begun):
    begun["kill-engine"].result()


@pytest.mark.parametrize("way", list(ENDS))
def test_a_slow_scan_is_found_though_the_whole_appliance_is_started_again(begun, way):
    begun[way].result()
