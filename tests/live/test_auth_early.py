"""A failed authentication is told when the PAM module returns: before the log, once, and undone when it was none.

Order is shown without a clock: what comes after the module waits at a gate that opens when the event is there.
"""

import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from appliance import RunningAppliance
from lab import Lab, wait_until
from test_probe_edges import RawProbe
from test_probes import VERSIONS, RunningProbe

from kwsiem.sensor.catalog import pam_target

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

#: What pamtester does in the other roots: service, user, remote host; the password is "wrong".
CLIENT = """
import ctypes, os, sys
pam, libc = ctypes.CDLL("libpam.so.0"), ctypes.CDLL(None)
libc.calloc.restype = libc.strdup.restype = ctypes.c_void_p
CB = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)
class Conv(ctypes.Structure):
    _fields_ = [("f", CB), ("d", ctypes.c_void_p)]
def answer(count, messages, responses, data):
    responses[0] = libc.calloc(count, 16)
    ctypes.c_void_p.from_address(responses[0]).value = libc.strdup(b"wrong")
    return 0
conv, handle = Conv(CB(answer), None), ctypes.c_void_p()
service, user, remote = map(os.fsencode, sys.argv[1:4])
assert pam.pam_start(service, user, ctypes.byref(conv), ctypes.byref(handle)) == 0
assert pam.pam_set_item(handle, 4, remote) == 0
sys.exit(pam.pam_authenticate(handle, 0) != 0)
"""
GATE = """#!/bin/sh
echo there >"$0.reached"
while [ ! -e "$0.open" ]; do sleep 0.02; done
"""


class Stacks:
    """PAM services of this test's own, which only the processes that it starts see, in one of the roots."""

    def __init__(self, root: Path | None, folder: Path) -> None:
        self.root = root
        self.folder = folder
        folder.mkdir()
        self._gates = (root or Path("/")) / "tmp" / f"kwsiem-gates-{folder.parent.name}-{folder.name}"
        self._gates.mkdir()

    def add(self, service: str, *lines: str) -> str:
        (self.folder / service).write_text("".join(f"auth {line}\n" for line in lines))
        return service

    def gate(self, name: str) -> tuple[Path, str]:
        """A module that waits until FILE.open is there; the file as we see it, and the line of the stack."""
        path = self._gates / name
        path.write_text(GATE)
        path.chmod(0o755)
        inside = f"/{path.relative_to(self.root or Path('/'))}"
        return path, f"optional pam_exec.so quiet {inside}"

    def close(self) -> None:
        for path in self._gates.iterdir():
            path.unlink()
        self._gates.rmdir()

    def start(
        self, service: str, user: str, *, uid: int = 0, remote: str = "198.51.100.77"
    ) -> subprocess.Popen:
        """An authentication with a wrong password; it ends with 0 when it is accepted."""
        mounts = [f"mount --bind {self.folder} {self.root or ''}/etc/pam.d"]
        as_user = ["setpriv", f"--reuid={uid}", "--clear-groups"] if uid else []
        if self.root is None:
            argv = [*as_user, sys.executable, "-c", CLIENT, service, user, remote]
        else:
            mounts += [f"mount --rbind /{name} {self.root}/{name}" for name in ("proc", "sys", "dev")]
            tester = ["pamtester", "-I", f"rhost={remote}", service, user, "authenticate"]
            argv = ["chroot", str(self.root), *as_user, *tester]
        child = subprocess.Popen(
            ["unshare", "--mount", "sh", "-ec", f"{' && '.join(mounts)} && exec {shlex.join(argv)}"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert child.stdin
        child.stdin.write(b"wrong\n")
        child.stdin.close()
        return child

    def run(self, service: str, user: str, **more) -> int:
        with self.start(service, user, **more) as child:
            return child.wait(30)


@pytest.fixture(scope="module", params=list(VERSIONS))
def watched(request, open_folder):
    with Lab("host") as lab:
        probe = RunningProbe(lab, "auth_pam", request.param, quick=True)
        stacks = Stacks(VERSIONS[request.param], open_folder / f"pam-{request.param}")
        yield probe, stacks
        stacks.close()
        probe.stop()


def told(probe: RunningProbe, service: str, *, settled: bool = False) -> list:
    """All that was told of a service until now, in the order of time."""
    if not settled:
        probe.settle()
    events = [e for e in probe.events if getattr(e, "service_name", "") == service]
    return sorted(events, key=lambda event: event.ts_ns)


def test_a_failure_is_told_while_pam_is_still_at_it_and_only_once(watched):
    probe, stacks = watched
    gate, waits = stacks.gate("once")
    stacks.add("kw-once", "required pam_unix.so", waits, "required pam_deny.so")
    with stacks.start("kw-once", "root") as child:
        wait_until(lambda: probe.seen("auth.attempt", service_name="kw-once"), 20, "the failure is told")
        assert child.poll() is None
        Path(f"{gate}.open").touch()
        assert child.wait(30)
        pid = child.pid
    (event,) = told(probe, "kw-once")
    assert (event.event_outcome, event.user_name, event.source_address) == (
        "failure",
        "root",
        "198.51.100.77",
    )
    assert (event.pam_result, event.process_user_id, event.process_pid) == (7, 0, pid)


def test_an_unknown_user_is_a_failure_too(watched):
    probe, stacks = watched
    gate, waits = stacks.gate("unknown")
    stacks.add("kw-unknown", "required pam_unix.so", waits)
    with stacks.start("kw-unknown", "kw-nobody") as child:
        wait_until(lambda: probe.seen("auth.attempt", service_name="kw-unknown"), 20, "the failure is told")
        Path(f"{gate}.open").touch()
        assert child.wait(30)
    (event,) = told(probe, "kw-unknown")
    assert (event.user_name, event.pam_result) == ("kw-nobody", 10)


def test_several_modules_that_fail_are_one_failure(watched):
    probe, stacks = watched
    again = "[default=ignore] pam_unix.so nodelay"
    stacks.add("kw-several", again, f"{again} try_first_pass", again, "required pam_deny.so")
    assert stacks.run("kw-several", "root")
    (event,) = told(probe, "kw-several")
    assert event.event_outcome == "failure"


def test_what_another_module_accepts_is_taken_back_and_from_then_on_not_told_early(watched):
    probe, stacks = watched
    stacks.add("kw-accept", "[default=ignore] pam_unix.so nodelay", "required pam_permit.so")
    assert stacks.run("kw-accept", "root") == 0
    assert stacks.run("kw-accept", "root") == 0
    # What fails for good is still told, when pam_authenticate returns it; another service is another matter.
    stacks.add("kw-accept", "[default=ignore] pam_unix.so nodelay", "required pam_deny.so")
    stacks.add("kw-other", "required pam_unix.so nodelay")
    assert stacks.run("kw-accept", "root")
    assert stacks.run("kw-other", "root")
    early, back, success, *later = told(probe, "kw-accept")
    assert (early.KIND.name, early.event_outcome) == ("auth.attempt", "failure")
    assert (back.KIND.name, back.process_pid) == ("auth.retracted", early.process_pid)
    assert back.event_retracted_ns == early.ts_ns
    assert (success.event_outcome, success.pam_result, success.process_pid) == (
        "success",
        0,
        early.process_pid,
    )
    assert [e.event_outcome for e in later] == ["success", "failure"]
    assert [e.event_outcome for e in told(probe, "kw-other", settled=True)] == ["failure"]


def test_a_user_without_rights_cannot_switch_early_failures_off(watched):
    probe, stacks = watched
    stacks.add("kw-mine", "[default=ignore] pam_unix.so nodelay", "required pam_permit.so")
    for _ in range(2):
        assert stacks.run("kw-mine", "nobody", uid=65534) == 0
    kinds = [(e.KIND.name, getattr(e, "event_outcome", "")) for e in told(probe, "kw-mine")]
    assert kinds == 2 * [("auth.attempt", "failure"), ("auth.retracted", ""), ("auth.attempt", "success")]


def maps_after_a_kill(version: str, folder: Path) -> dict:
    """The maps of the probe, as it is shipped, after somebody was killed between two modules and that was told."""
    root = VERSIONS[version]
    stacks = Stacks(root, folder / f"killed-{version}")
    gate, waits = stacks.gate("killed")
    stacks.add("kw-killed", "[default=ignore] pam_unix.so nodelay", waits, "required pam_permit.so")
    with Lab("host") as lab, RawProbe(lab, "auth_pam", root) as raw:
        with stacks.start("kw-killed", "root") as child:
            wait_until(Path(f"{gate}.reached").exists, 20, "the gate is reached")
            child.kill()
            Path(f"{gate}.open").touch()
        said = raw.child.stdout.readline()
        while b'"kw-killed"' not in said:
            said = raw.child.stdout.readline()
        raw.beat()
        maps = raw.maps()
    stacks.close()
    return maps


def test_who_is_killed_between_has_failed_and_leaves_nothing_behind(open_folder):
    """All versions at once: each watches the PAM of its own root."""
    with ThreadPoolExecutor(len(VERSIONS)) as pool:
        found = {version: pool.submit(maps_after_a_kill, version, open_folder) for version in VERSIONS}
    for version, maps in found.items():
        assert maps.result().keys().isdisjoint({"@early", "@handle"}), (version, maps.result())
        assert maps.result().keys() & {"@printed", "@full"}, "bpftrace shows its maps"


@pytest.mark.parametrize("version", list(VERSIONS))
def test_a_host_without_the_module_works_as_ever(version, open_folder):
    """What bpftrace is given there in its place attaches on all versions and says nothing."""
    stacks = Stacks(VERSIONS[version], open_folder / f"without-{version}")
    stacks.add("kw-without", "required pam_unix.so nodelay")
    with Lab("host") as lab:
        probe = RunningProbe(lab, "auth_pam", version, ("libpam", "pam_start"), quick=True)
        assert stacks.run("kw-without", "root")
        (event,) = told(probe, "kw-without")
        probe.stop()
    stacks.close()
    assert (event.event_outcome, event.user_name) == ("failure", "root")
    assert pam_target()[0].endswith("/security/pam_unix.so")


def test_the_engine_takes_back_what_the_probe_took_back(open_folder):
    """The whole way: the failure raises an alert that asks for a block, the retraction ends both."""
    stacks = Stacks(None, open_folder / "engine")
    stacks.add("kw-engine", "[default=ignore] pam_unix.so nodelay", "required pam_permit.so")
    folder = open_folder / "engine-appliance"
    folder.mkdir()
    with Lab("host") as lab, RunningAppliance(lab, folder, rules=RULE) as appliance:
        assert stacks.run("kw-engine", "root") == 0
        alert = appliance.wait_alert("kw-failed", "198.51.100.77")
        wait_until(lambda: appliance.alerts("kw-failed", "close"), 15, "the alert is closed")
        (closed,) = appliance.alerts("kw-failed", "close")
        wait_until(lambda: appliance.status()["engine"]["engine"]["taken_back"] == 1, 10, "it is counted")
        counts = appliance.status()["engine"]["blocks"]
    stacks.close()
    assert closed["kwsiem"]["alert"]["incident_id"] == alert["kwsiem"]["alert"]["incident_id"]
    assert "taken back" in closed["kwsiem"]["alert"].get("reason", closed["message"])
    assert (counts["asked"], counts["withdrawn"]) == (1, 1)


RULE = """version: 1
rules:
  - id: kw-failed
    title: A failure
    level: low
    event: auth.attempt
    detection:
      failed: {event.outcome: failure, process.user.id: 0}
      condition: failed
    correlation: {type: event_count, group-by: [source.ip], timespan: 1m, condition: {gte: 1}}
    suppress: 10m
    block: {field: source.ip, for: 1m}
"""


# -- with a real sshd


@pytest.fixture(scope="module")
def sshd(open_folder):
    """A real sshd with PAM, its log, and the probe on this host's bpftrace."""
    key = open_folder / "early-key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    config = open_folder / "early-sshd_config"
    config.write_text(
        f"Port 22\nHostKey {key}\nPidFile none\nUsePAM yes\nPasswordAuthentication yes\nUseDNS no\n"
        "KbdInteractiveAuthentication no\nPermitRootLogin yes\nMaxStartups 100\n"
    )
    log = open_folder / "early-sshd.log"
    Path("/run/sshd").mkdir(exist_ok=True)
    with Lab("host", "peer") as lab, log.open("wb") as err:
        lab.popen("host", ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)], stderr=err)
        wait_until(
            lambda: "LISTEN" in lab.run("host", ["ss", "-Hltn", "sport = :22"]).stdout, 10, "sshd listens"
        )
        probe = RunningProbe(lab, "auth_pam", "host", quick=True)
        yield lab, probe, log
        probe.stop()


def failed_lines(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if line.startswith("Failed password")]


@pytest.mark.parametrize("user", ["root", "kw-nobody"])
def test_a_wrong_password_is_told_before_sshd_logs_it(sshd, user):
    lab, probe, log = sshd
    before = len(failed_lines(log))
    options = [
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "PubkeyAuthentication=no",
    ]
    argv = ["sshpass", "-p", "wrong", "ssh", *options, "-o", "NumberOfPasswordPrompts=1"]
    child = lab.popen(
        "peer", [*argv, f"{user}@{lab.ip4('host')}", "true"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(
        lambda: probe.seen("auth.attempt", service_name="sshd", user_name=user), 30, "the failure is told"
    )
    assert len(failed_lines(log)) == before  # it is here, and sshd has yet to write
    wait_until(lambda: len(failed_lines(log)) == before + 1, 30, "sshd has logged it")
    child.wait(30)
    probe.settle()
    (event,) = probe.seen("auth.attempt", user_name=user)
    assert (event.event_outcome, event.source_address) == ("failure", lab.ip4("peer"))
    assert event.process_user_id == 0
    assert event.pam_result == (7 if user == "root" else 10)


def test_each_try_of_hydra_is_one_failure(sshd, open_folder):
    lab, probe, log = sshd
    before, seen = len(failed_lines(log)), len(probe.seen("auth.attempt"))
    words = open_folder / "early-words"
    words.write_text("".join(f"wrong{n}\n" for n in range(8)))
    argv = ["hydra", "-I", "-t", "4", "-l", "daemon", "-P", str(words), f"ssh://{lab.ip4('host')}"]
    lab.run("peer", argv, check=False, timeout=90, cwd=open_folder)
    wait_until(lambda: len(failed_lines(log)) >= before + 8, 30, "sshd has logged all")
    probe.settle()
    events = probe.seen("auth.attempt")[seen:]
    assert len(events) == len(failed_lines(log)) - before
    assert {(e.event_outcome, e.user_name, e.source_address) for e in events} == {
        ("failure", "daemon", lab.ip4("peer"))
    }
    assert probe.seen("auth.retracted") == []
