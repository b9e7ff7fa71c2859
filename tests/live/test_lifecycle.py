"""However a part dies, what should run runs again, nothing is left behind, and no alert is lost."""

import json
import os
import signal
import socket
import tempfile
import time
from pathlib import Path

import pytest
from appliance import RunningAppliance
from lab import Lab, wait_until

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]


@pytest.fixture
def lab():
    with Lab("host", "peer") as lab:
        yield lab


ALIEN = """/*
 * alien - Wants what no kernel has.
 *
 * sees:     nothing
 * blind:    all
 * overhead: none
 * needs:    tracepoint alien:landing
 *
 * event 1 alien.landing alien.number:u64
 */
tracepoint:alien:landing { print((1, (uint64)1, nsecs)); }
interval:s:1 { print((0, nsecs)); }
"""
#: It breaks its own contract in every way that passes the lint.
LIAR = """/*
 * liar - Breaks its contract.
 *
 * sees:     nothing
 * blind:    all
 * overhead: none
 *
 * event 1 liar.number liar.number:str
 */
interval:ms:300 { print((1, (uint64)5, nsecs)); }
interval:s:1 { print((0, nsecs)); }
"""


@pytest.fixture(scope="module")
def shared(open_folder):
    """One appliance for all tests after which it goes on as before; beside the shipped probes it has two bad ones."""
    folder = Path(tempfile.mkdtemp(dir=open_folder))
    with Lab("host", "peer") as lab:
        appliance = RunningAppliance(lab, folder)
        (appliance.probes / "alien.bt").write_text(ALIEN)
        (appliance.probes / "liar.bt").write_text(LIAR)
        with appliance:
            yield appliance


def scan_is_found(appliance: RunningAppliance, source: str) -> None:
    """The whole way from the probe to the file; ``source``: one that has not scanned before."""
    lab = appliance.lab
    lab.address("peer", lab.end("peer").device, f"{source}/24")
    knock(lab, range(20, 30), source=source)
    appliance.wait_alert("tcp-port-scan", source)


def knock(lab: Lab, ports, name: str = "peer", source: str | None = None) -> None:
    """One SYN to each of these ports of the host."""
    with lab.inside(name):
        for port in ports:
            with socket.socket() as sock:
                if source:
                    sock.bind((source, 0))
                sock.settimeout(0.5)
                sock.connect_ex((lab.ip4("host"), port))


def gone(pids) -> bool:
    return not any(Path(f"/proc/{pid}").exists() and "State:\tZ" not in _status(pid) for pid in pids)


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "State:\tZ"


def test_sigterm_ends_everything_and_leaves_nothing(lab, tmp_path):
    appliance = RunningAppliance(lab, tmp_path).start()
    pids = appliance.children()
    assert len(pids) >= 5
    assert appliance.stop() == 0
    wait_until(lambda: gone(pids), 5, f"all of {pids} gone")
    assert appliance.children() == set()
    assert not (appliance.runtime / "control.sock").exists()
    done = lab.run("host", status_argv(appliance), check=False)
    assert done.returncode == 69
    assert "not running" in done.stderr


def test_kill_9_of_the_sensor_leaves_no_orphan_and_the_next_start_works(lab, tmp_path):
    appliance = RunningAppliance(lab, tmp_path).start()
    knock(lab, range(20, 30))
    # What bpftrace has not read from the kernel yet dies with it; from the engine on nothing is lost.
    wait_until(lambda: appliance.recording.read_bytes().count(b"[1,") >= 10, 10, "the engine has the knocks")
    pids = appliance.children()
    os.kill(appliance.process.pid, signal.SIGKILL)
    appliance.process.wait()
    wait_until(lambda: gone(pids), 10, "no orphan")
    appliance.start()
    wait_until(lambda: appliance.alerts("tcp-port-scan"), 15, "the alert of before the kill")
    appliance.stop()


@pytest.mark.parametrize(("name", "source"), [("engine", "198.51.100.21"), ("courier", "198.51.100.22")])
def test_kill_9_of_a_process_is_answered_by_a_new_one(shared, name, source):
    old = shared.pid(name)
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: shared.pid(name) not in (None, old), 10, f"a new {name}")
    shared.wait_ready()
    wait_until(lambda: gone([old]), 5)
    scan_is_found(shared, source)


def test_kill_9_of_bpftrace_is_answered_by_a_new_one(shared):
    before = shared.probe("net")
    os.kill(before["pid"], signal.SIGKILL)
    wait_until(
        lambda: (
            shared.probe("net")["pid"] not in (None, before["pid"])
            and shared.probe("net")["state"] == "ready"
        ),
        20,
        "net ready again",
    )
    assert shared.probe("net")["restarts"] == before["restarts"] + 1
    scan_is_found(shared, "198.51.100.23")


def test_a_stopped_bpftrace_is_silent_and_restarted(shared):
    old = shared.probe("auth_pam")["pid"]
    os.kill(old, signal.SIGSTOP)
    wait_until(
        lambda: (
            shared.probe("auth_pam")["pid"] not in (None, old)
            and shared.probe("auth_pam")["state"] == "ready"
        ),
        30,
        "auth_pam ready again",
    )
    wait_until(lambda: gone([old]), 5)


def test_alerts_survive_kills_of_engine_and_courier_in_mid_storm(lab, tmp_path):
    """Every scan that finished before a kill is an alert afterwards, each once by its id."""
    with RunningAppliance(lab, tmp_path) as appliance:
        sources = []
        for n in range(12):
            source = f"198.51.100.{100 + n}"
            lab.address("peer", lab.end("peer").device, f"{source}/24")
            knock(lab, range(30, 38), source=source)
            sources.append(source)
            if n in (3, 7):
                wait_until(lambda n=n: appliance.status()["engine"].get("alerts", {}).get("raised", 0) > 0, 5)
                os.kill(wait_until(lambda: appliance.pid("courier")), signal.SIGKILL)
            if n == 9:
                time.sleep(0.5)  # what is killed now has been raised: the pipe is read every few ms
                os.kill(appliance.pid("engine"), signal.SIGKILL)
                wait_until(lambda: appliance.status()["processes"][0]["state"] == "ready", 10)

        def seen() -> set[str]:
            return {a["source"]["ip"] for a in appliance.alerts("tcp-port-scan")}

        wait_until(lambda: seen() >= set(sources), 20, f"alerts of {set(sources) - seen()}")


def test_the_processes_without_rights_have_none(shared):
    for name in ("engine", "courier"):
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{shared.pid(name)}/status").read_text().splitlines()
            if ":\t" in line
        )
        assert status["Uid"].split()[0] != "0"
        assert len(set(status["Uid"].split())) == 1
        assert status["Groups"].strip() == ""
        assert status["NoNewPrivs"] == "1"
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[kind], 16) == 0, kind


def test_probes_come_change_and_go_while_it_runs(lab, tmp_path):
    probe = """/*
 * beat - Nothing but a number, twice a second.
 *
 * sees:     nothing
 * blind:    everything
 * overhead: none
 *
 * event 1 test.beat test.number:u64
 */
interval:ms:500 { print((1, (uint64)NUMBER, nsecs)); }
interval:s:1 { print((0, nsecs)); }
"""
    rules = """version: 1
rules:
  - id: beat-7
    title: Seven was seen
    level: low
    event: test.beat
    detection: {seven: {test.number: 7}, condition: seven}
"""
    with RunningAppliance(lab, tmp_path) as appliance:
        path = appliance.probes / "beat.bt"
        path.write_text(probe.replace("NUMBER", "5"))
        wait_until(lambda: any(p["name"] == "beat" for p in appliance.status()["probes"]), 5)
        wait_until(lambda: appliance.probe("beat")["state"] == "ready", 10, "beat ready")
        first = appliance.probe("beat")["pid"]
        others = {p["name"]: p["pid"] for p in appliance.status()["probes"] if p["name"] != "beat"}
        appliance.rules.write_text(rules)
        wait_until(lambda: appliance.status()["rules"]["rules"] == 1, 10, "the rule of the new kind")
        assert appliance.alerts("beat-7") == []
        path.write_text(probe.replace("NUMBER", "7"))
        appliance.wait_alert("beat-7")
        assert appliance.probe("beat")["pid"] != first
        path.write_text(probe.replace("NUMBER", "1 +"))
        wait_until(lambda: appliance.probe("beat")["state"] == "failed", 10, "a broken script is failed")
        path.unlink()
        wait_until(lambda: all(p["name"] != "beat" for p in appliance.status()["probes"]), 10)
        assert {p["name"]: p["pid"] for p in appliance.status()["probes"]} == others


def test_a_probe_this_kernel_cannot_run_is_unsupported_and_left_alone(shared):
    probe = shared.probe("alien")
    assert probe["state"] == "unsupported"
    assert "alien:landing" in probe["reason"]
    assert probe["restarts"] == 0


def test_a_second_appliance_on_the_same_folder_is_refused(shared):
    done = shared.lab.run("host", shared.argv, check=False)
    assert done.returncode == 69
    assert "already running with pid" in done.stderr


def test_what_a_probe_prints_wrongly_is_counted_and_shown(shared):
    """Real bpftrace, and the probe LIAR."""

    def counts() -> dict:
        return shared.status()["engine"]["lines"].get("liar", {})

    wait_until(
        lambda: counts().get("rejected", {}).get("wrong_type", 0) > 1, 10, "rejected lines are counted"
    )
    found = counts()
    assert found["received"] == found["accepted"] + sum(found["rejected"].values())


def status_argv(appliance: RunningAppliance) -> list[str]:
    return [*appliance.argv[:4], "status", "--runtime", str(appliance.runtime)]


def test_status_as_json_and_for_people(shared):
    argv = status_argv(shared)
    done = shared.lab.run("host", argv)
    assert "net" in done.stdout
    assert "\033" not in done.stdout
    assert json.loads(shared.lab.run("host", [*argv, "--json"]).stdout)["pid"] == shared.process.pid
