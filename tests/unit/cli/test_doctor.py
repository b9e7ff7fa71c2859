"""Each finding of ``kwsiem doctor`` and its command, on hosts laid out in folders."""

import json
import os
import socket
import subprocess
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from kwsiem import checkup, clock
from kwsiem.checkup import Finding, Host
from kwsiem.cli import diagnosis, doctor, main
from kwsiem.cli.jobs import Job, run
from kwsiem.config import parse_settings, resolve
from kwsiem.control import ControlServer
from kwsiem.errors import OutputError
from kwsiem.sensor.catalog import read_probe

SOURCE = Path(__file__).resolve().parents[3]
TRACING = Path("/sys/kernel/tracing")
DEBIAN = 'NAME="Debian GNU/Linux"\nID=debian\n'
FEDORA = "ID=fedora\n"


@pytest.fixture
def root(tmp_path):
    """A host's files: all that is needed is there."""
    put(tmp_path, "etc/os-release", DEBIAN)
    put(tmp_path, "sys/kernel/btf/vmlinux", "")
    put(tmp_path, "sys/kernel/tracing/events/net/netif_receive_skb/id", "1")
    put(tmp_path, "proc/self/status", "CapEff:\t000001ffffffffff\n")
    return tmp_path


@pytest.fixture
def open_root(tmp_path):
    """A folder that other users can enter."""
    for parent in (tmp_path, *tmp_path.parents[:3]) if os.geteuid() == 0 else ():
        parent.chmod(parent.stat().st_mode | 0o011)
    return tmp_path


def put(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def host(root, release="6.1.0-18-amd64"):
    return Host(root, release, "x86_64")


def only(findings):
    (finding,) = findings
    return finding.state, finding.found, finding.mend


def settings(text="", **changes):
    return resolve(parse_settings("kwsiem.yaml", text.encode()))


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# -- kernel


@pytest.mark.parametrize(
    ("release", "what", "command"),
    [
        (DEBIAN, "bpftrace", "apt-get install bpftrace"),
        ("ID=linuxmint\nID_LIKE='ubuntu debian'\n", "iptables", "apt-get install ipset iptables coreutils"),
        ("ID=ubuntu\nID_LIKE=debian\n", "kernel", "apt-get install linux-image-generic"),
        (DEBIAN, "kernel", "apt-get install linux-image-amd64"),
        (FEDORA, "iptables", "dnf install ipset iptables-nft coreutils"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "libpam", "dnf install pam"),
        ('ID="opensuse-leap"\n', "bpftrace", "zypper install bpftrace"),
        ("ID=arch\n", "kernel", "pacman -S linux"),
        ("", "bpftrace", "install the package bpftrace"),
    ],
)
def test_the_command_that_installs_is_that_of_the_distribution(tmp_path, release, what, command):
    put(tmp_path, "etc/os-release", release)
    assert host(tmp_path).install(what) == command


def test_an_old_kernel_one_in_lockdown_and_one_without_btf(root):
    assert only(checkup.kernel(host(root)))[0] == "good"
    assert only(checkup.kernel(host(root, "5.7.19"))) == (
        "missing", "5.7.19; it must be 5.8 at least", "apt-get install linux-image-amd64 && reboot"
    )  # fmt: skip
    put(root, "sys/kernel/security/lockdown", "none integrity [confidentiality]\n")
    assert only(checkup.kernel(host(root)))[0] == "missing"
    assert only(checkup.btf(host(root)))[0] == "good"
    (root / "sys/kernel/btf/vmlinux").unlink()
    state, found, mend = only(checkup.btf(host(root)))
    assert (state, mend) == ("missing", "apt-get install linux-image-amd64 && reboot")
    assert "CONFIG_DEBUG_INFO_BTF" in found


def test_tracefs_and_its_tracepoints(root):
    assert only(checkup.tracefs(host(root), TRACING))[0] == "good"
    wanted = {"net:netif_receive_skb"}
    assert only(checkup.tracepoints(wanted, host(root), TRACING)) == (
        "good", "all 1 that the probes use", ""
    )  # fmt: skip
    state, found, _ = only(checkup.tracepoints({*wanted, "sched:no_such"}, host(root), TRACING))
    assert (state, found) == ("warning", "this kernel lacks sched:no_such")
    (root / "sys/kernel/tracing").rename(root / "away")
    mount = "mount -t tracefs tracefs /sys/kernel/tracing"
    assert only(checkup.tracefs(host(root), TRACING))[::2] == ("missing", mount)
    assert only(checkup.tracepoints(wanted, host(root), TRACING))[::2] == ("missing", mount)
    put(root, "proc/mounts", "tracefs /sys/kernel/tracing tracefs rw 0 0\n")
    assert only(checkup.tracefs(host(root), TRACING))[0] == "good", "as one who is not root sees it"


# -- rights, user, clock


def test_root_whose_capabilities_were_taken_away(root, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert only(checkup.capabilities(host(root), is_blocking=True))[0] == "good"
    put(root, "proc/self/status", "CapEff:\t00000000a80425fb\n")  # what docker leaves
    assert only(checkup.capabilities(host(root), is_blocking=False))[:2] == (
        "missing", "root without CAP_SYS_ADMIN"
    )  # fmt: skip
    put(root, "proc/self/status", f"CapEff:\t{0xFFFFFFFFFF & ~(1 << 12):016x}\n")
    assert only(checkup.capabilities(host(root), is_blocking=False))[0] == "warning"
    assert only(checkup.capabilities(host(root), is_blocking=True))[0] == "missing"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert only(checkup.capabilities(host(root), is_blocking=True))[::2] == ("skipped", "sudo kwsiem doctor")


def test_the_user_is_made_with_the_command_that_is_shown(monkeypatch):
    assert only(checkup.account("nobody"))[0] == "good"
    state, _, mend = only(checkup.account("no-such-user"))
    assert (state, mend.split()[0], mend.split()[-1]) == ("warning", "useradd", "no-such-user")
    assert only(checkup.account("root"))[:2] == ("warning", "root is root: nothing is given up")
    monkeypatch.setattr("kwsiem.checkup.pwd.getpwnam", lambda name: {}[name])
    assert only(checkup.account("no-such-user"))[0] == "missing"


def test_a_clock_that_nobody_keeps_right(root):
    now = lambda: clock.NS_PER_S * 1_800_000_000  # noqa: E731
    look = partial(checkup.wall_clock, host(root), now_ns=now)
    assert only(look(lambda: True))[0] == "good"
    assert only(look(lambda: None))[0] == "skipped"
    state, found, mend = only(look(lambda: False))
    assert (state, mend) == ("warning", "apt-get install chrony")
    assert found.startswith("2027-01-15T08:00:00.000Z, not synchronised")
    put(root, "usr/lib/systemd/systemd-timesyncd", "")
    assert only(look(lambda: False))[2] == "timedatectl set-ntp true"
    state, found, _ = only(checkup.wall_clock(host(root), lambda: True, lambda: 0))
    assert (state, found) == ("warning", "it says 1970-01-01T00:00:00.000Z, which is over")


def test_the_kernel_says_whether_its_clock_is_synchronised():
    assert clock.is_synchronised() in {True, False, None}


# -- folders and files


def looked(call, *arguments):
    (findings,) = run([Job("state folder", partial(call, *arguments))])
    return {finding.check: (finding.state, finding.found, finding.mend) for finding in findings}


def test_the_room_on_the_disk_of_the_state_folder(open_root, monkeypatch):
    real = os.statvfs(open_root)
    room = {name: getattr(real, name) for name in dir(real) if name.startswith("f_")}

    def of(**changes):
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**{**room, "f_flag": 0, **changes}))
        return looked(checkup.state_folder, open_root, "nobody", 10**9)["disk"]

    size = {"f_frsize": 4096, "f_files": 10**6, "f_favail": 10**5}
    assert of(**size, f_bavail=10**6)[0] == "good"
    state, found, mend = of(**size, f_bavail=10**5)
    assert (state, found) == (
        "warning", f"410 MB free at {open_root}; outbox_max_bytes lets the outbox grow to 1 GB"
    )  # fmt: skip
    assert mend.startswith("outbox_max_bytes: 204800000 in the settings")
    state, found, mend = of(**size, f_bavail=100)
    assert (state, found) == ("missing", f"only 410 kB free at {open_root}")
    assert mend.startswith("du -xhd1 /")
    assert of(f_frsize=4096, f_bavail=10**6, f_files=1000, f_favail=3)[:2] == (
        "missing", f"only 3 inodes free at {open_root}"
    )  # fmt: skip
    state, _, mend = of(**size, f_bavail=10**6, f_flag=os.ST_RDONLY)
    assert (state, mend.split()[:3]) == ("missing", ["mount", "-o", "remount,rw"])


@pytest.mark.skipif(os.geteuid() != 0, reason="what another user may, root alone can try")
def test_the_state_folder_as_the_user_of_the_courier_sees_it(open_root):
    folder = open_root / "closed" / "state"
    look = partial(looked, checkup.state_folder, folder, "nobody", 2**20)
    open_root.chmod(0o700)
    assert look()["state folder"][::2] == ("missing", f"chmod o+x {open_root}")
    assert output(open_root, f"type: file, path: {open_root}/out/alerts.jsonl") == (
        "missing", f"{open_root}/out/alerts.jsonl: Permission denied", f"chmod o+x {open_root}"
    )  # fmt: skip
    open_root.chmod(0o711)
    assert look()["state folder"][:2] == ("good", f"{folder} is not there yet; the appliance makes it")
    folder.mkdir(parents=True)
    assert look()["state folder"][::2] == ("warning", f"chown -R nobody: {folder}")
    os.chown(folder, 65534, 65534)
    assert look()["state folder"][0] == "good"
    folder.chmod(0o777)
    assert look()["state folder"][::2] == ("warning", f"chmod go-w {folder}")
    folder.parent.chmod(0o700)
    assert look()["state folder"][::2] == ("missing", f"chmod o+x {folder.parent}")


def test_modes_of_files_and_of_the_runtime_folder(tmp_path):
    env = tmp_path / "env"
    assert only(checkup.file_mode("secrets", env, is_secret=True))[0] == "good"
    env.write_text("TOKEN=geheim")
    for mode, is_secret, state, mend in (
        (0o600, True, "good", ""),
        (0o644, True, "warning", f"chmod 600 {env}"),
        (0o644, False, "good", ""),
        (0o660, True, "warning", f"chmod go-w {env}"),
        (0o666, False, "warning", f"chmod go-w {env}"),
    ):
        env.chmod(mode)
        assert only(checkup.file_mode("secrets", env, is_secret=is_secret))[::2] == (state, mend)
    folder = tmp_path / "run dir"
    assert only(checkup.runtime_folder(folder))[0] == "good"
    folder.mkdir()
    folder.chmod(0o777)
    state, _, mend = only(checkup.runtime_folder(folder))
    assert (state, mend.split()[0]) == ("warning", "chmod" if os.geteuid() == 0 else "chown")
    assert mend.endswith(f"'{folder}'")
    assert only(checkup.runtime_folder(env))[::2] == ("missing", f"rm {env}")


# -- parts of the appliance


def program(tmp_path, said):
    path = tmp_path / "bpftrace"
    path.write_text(f"#!/bin/sh\necho '{said}'\n")
    path.chmod(0o755)
    return path


def test_bpftrace_absent_too_new_and_good(root):
    absent = settings(f"bpftrace: {root}/no-such")
    assert only(diagnosis.bpftrace(absent, host(root))) == (
        "missing", f"{root}/no-such: not found", "apt-get install bpftrace"
    )  # fmt: skip
    put(root, "etc/os-release", FEDORA)
    assert only(diagnosis.bpftrace(absent, host(root)))[2] == "dnf install bpftrace"
    for said, state in (
        ("bpftrace v0.13.1", "warning"), ("bpftrace v0.14.0", "good"), ("bpftrace v0.27.2", "good"),
        ("bpftrace v0.28.0", "warning"), ("hello", "missing"),
    ):  # fmt: skip
        path = program(root, said)
        assert only(diagnosis.bpftrace(settings(f"bpftrace: {path}"), host(root)))[0] == state, said


def test_a_probe_that_breaks_its_contract_and_one_that_this_host_cannot_run(root, monkeypatch):
    spec = read_probe(SOURCE / "probes" / "auth_pam.bt")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(diagnosis, "preflight", lambda *_: "library libpam is not installed")
    look = partial(diagnosis.probe, settings(f"bpftrace: {root}/no-such"), host=host(root), start=True)
    assert only(look(spec)) == (
        "warning", "does not run here: library libpam is not installed", "apt-get install libpam0g"
    )  # fmt: skip
    monkeypatch.setattr(diagnosis, "preflight", lambda *_: "")
    assert only(look(spec))[::2] == ("skipped", "apt-get install bpftrace")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert only(look(spec))[0] == "skipped"
    bad = root / "auth_pam.bt"
    bad.write_text(spec.path.read_text() + '\ninterval:s:9 { printf("x"); }\n')
    state, found, mend = only(look(read_probe(bad)))
    assert (state, mend) == ("missing", f"kwsiem probes check --probes {root}")
    assert "printf is not allowed" in found


def test_probe_files_that_cannot_be_read_and_none_at_all(tmp_path):
    empty = settings(f"probes: [{tmp_path}]")
    assert only(diagnosis.probe_files(empty)) == ("missing", f"none in {tmp_path}", f"ls {tmp_path}")
    (tmp_path / "odd.bt").write_text("no header")
    (finding,) = diagnosis.probe_files(empty)
    assert (finding.check, finding.state) == ("probe odd", "missing")
    assert f"{tmp_path}/odd.bt:1" in finding.found


def test_pam(root, monkeypatch):
    monkeypatch.setattr(diagnosis, "find_library", lambda _: None)
    assert only(diagnosis.pam(host(root)))[::2] == ("warning", "apt-get install libpam0g")
    monkeypatch.setattr(diagnosis, "find_library", lambda _: Path("/lib/libpam.so.0"))
    monkeypatch.setattr(diagnosis, "pam_target", lambda: ("libpam", "pam_start"))
    assert only(diagnosis.pam(host(root)))[::2] == ("warning", "apt-get install libpam-modules")


def test_a_host_without_any_firewall_tool(root, monkeypatch):
    monkeypatch.setitem(diagnosis.ENVIRONMENT, "PATH", str(root))
    put(root, "etc/ufw/ufw.conf", "# c\nENABLED=yes\n")
    put(root, "run/firewalld.pid", "1\n")
    install = "apt-get install ipset iptables coreutils"
    for mode, state, mend in (
        ("on", "missing", install),
        ("dry-run", "warning", install),
        ("off", "good", ""),
    ):
        found = only(diagnosis.firewall(settings(f"blocking: {{mode: '{mode}'}}"), host(root)))
        assert found == (
            state, f"there: no tool; ufw and firewalld active too; blocking is {mode}", mend
        )  # fmt: skip
    wants_nft = settings("blocking: {mode: 'on', firewall: nftables}")
    assert only(diagnosis.firewall(wants_nft, host(root)))[2] == "apt-get install nftables"


def test_rules_that_do_not_load(tmp_path):
    (tmp_path / "rules.yaml").write_text("rules:\n  - id: x\n    nonsense: 1\n")
    state, found, mend = only(diagnosis.rules(settings(f"rules: {tmp_path}/rules.yaml")))
    assert (state, mend) == ("missing", f"kwsiem check --no-probes --rules {tmp_path}/rules.yaml")
    assert found.startswith(f"{tmp_path}/rules.yaml:")


# -- outputs


def output(folder, text):
    """What is found out about one output, in a process of its own as always."""
    found = settings(
        f"user: nobody\nstate_dir: {folder}/state\nenv_file: {folder}/env\noutputs:\n  - {{name: siem, {text}}}\n"
    )
    ((finding,),) = run([Job("siem", partial(diagnosis.output, found, found.outputs[0]))])
    assert finding.check == "output siem"
    return finding.state, finding.found, finding.mend


@pytest.mark.parametrize(
    "kind",
    [
        "type: syslog, transport: tcp, port: {}",
        "type: syslog, transport: relp, port: {}",
        "type: gelf, transport: tcp, port: {}",
        "type: loki, url: 'http://127.0.0.1:{}'",
        "type: webhook, url: 'http://127.0.0.1:{}/hook', allow_http: true",
    ],
)
def test_an_output_to_a_closed_port(open_root, kind):
    (open_root / "env").write_text("WEBHOOK_SECRET=whsec_bWVpbiBnZWhlaW1uaXMgaXN0IGxhbmcgZ2VudWc=\n")
    port = closed_port()
    state, found, mend = output(open_root, kind.format(port))
    assert state == "missing", found
    assert f"127.0.0.1:{port}" in found and "Connection refused" in found
    assert mend.startswith(f"ss -ltn 'sport = :{port}' on this host")
    assert mend.endswith("kwsiem outputs test siem")


def test_an_output_that_is_there_gets_a_connection_and_not_one_byte(open_root):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        got = []

        def serve():
            for _ in range(2):
                peer, _ = server.accept()
                with peer:
                    peer.settimeout(10)
                    got.append(peer.recv(100))

        thread = threading.Thread(target=serve)
        port = server.getsockname()[1]
        jobs = []
        for kind in (
            f"type: syslog, transport: tcp, port: {port}",
            f"type: loki, url: 'http://127.0.0.1:{port}'",
        ):
            found = settings(f"user: nobody\noutputs:\n  - {{name: siem, {kind}}}\n")
            jobs.append(Job("siem", partial(diagnosis.output, found, found.outputs[0])))
        findings = run(jobs)
        thread.start()
        states = [finding.state for some in findings for finding in some]
        thread.join(10)
    assert (states, got) == (["good", "good"], [b"", b""])


def test_outputs_of_other_kinds(open_root):
    state, found, mend = output(open_root, "type: telegram")
    if os.geteuid() == 0:
        assert (state, mend) == ("missing", f"(umask 077; echo 'TELEGRAM_BOT_TOKEN=…' >>{open_root}/env)")
    assert "no secret TELEGRAM_BOT_TOKEN" in found
    assert output(open_root, "type: console")[0] == "good"
    state, found, _ = output(open_root, "type: gelf, transport: udp, port: 9")
    assert state == "good" and "UDP does not tell" in found
    state, found, mend = output(open_root, f"type: syslog, path: {open_root}/no-such")
    assert state == "missing" and mend.startswith("systemctl start rsyslog")
    assert output(open_root, f"type: file, path: {open_root}/state/alerts.jsonl")[0] == "good"
    state, found, mend = output(open_root, f"type: file, path: {open_root}/no/alerts.jsonl")
    assert (state, mend) == ("missing", f"install -d -o nobody -m 750 {open_root}/no")
    assert not (open_root / "no").exists() and not (open_root / "state").exists(), "nothing is made"
    state, _, mend = output(open_root, "type: syslog, transport: tcp, host: no-such.invalid")
    assert (state, mend) == ("missing", "getent hosts no-such.invalid")


@pytest.mark.parametrize(
    ("why", "command"),
    [
        ("certificate verify failed", "openssl s_client -connect log.example.net:6514 -showcerts"),
        ("timed out", "nc -vz log.example.net 6514, then: kwsiem outputs test siem"),
        ("Connection refused", "ss -ltn 'sport = :6514' on log.example.net: start the receiver there,"
         " then: kwsiem outputs test siem"),
    ],
)  # fmt: skip
def test_the_command_goes_with_the_reason(monkeypatch, why, command):
    found = settings("outputs:\n  - {name: siem, type: syslog, transport: tls, host: log.example.net}\n")

    def fail(*_):
        raise OutputError(f"log.example.net:6514 (tls): {why}")

    monkeypatch.setattr(diagnosis, "_reach", fail)
    ((finding,),) = run([Job("siem", partial(diagnosis.output, found, found.outputs[0]))])
    assert (finding.state, finding.mend) == ("missing", command)


# -- the running appliance


STATUS = {
    "version": "1", "pid": 7, "since": "now", "probe_problems": [], "processes": [], "engine": {},
    "probes": [{"name": "net", "state": "ready", "reason": ""}],
    "rules": {"stale": False, "problems": []}, "courier": {"outputs": []}, "blocking": {},
}  # fmt: skip


def asked(tmp_path, status):
    """The findings about an appliance that answers so."""
    server = ControlServer(tmp_path / "control.sock", lambda _: status)
    done = threading.Event()

    def serve():
        while not done.wait(0.01):
            server.serve()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        return diagnosis.running(settings(f"runtime_dir: {tmp_path}"))
    finally:
        done.set()
        thread.join()
        server.close()


def test_an_appliance_that_runs_and_what_is_wrong_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(diagnosis, "SETTLE_S", 0.0)
    good = asked(tmp_path, STATUS)
    assert good == [Finding("appliance", "good", "kwsiem 1 runs with pid 7 since now")]
    wrong = {
        **STATUS,
        "probes": [{"name": "net", "state": "backoff", "reason": "it ended"}],
        "rules": {"stale": True, "problems": ["rules.yaml:3: bad"]},
        "courier": {
            "outputs": [{"name": "siem", "state": "failing", "last_error": "refused", "balanced": False}]
        },
        "blocking": {"wanted": "on", "mode": "dry-run", "firewall_error": ""},
    }
    findings = asked(tmp_path, wrong)
    assert [(one.state, one.found, one.mend) for one in findings[1:]] == [
        ("missing", "probe net is backoff: it ended", "kwsiem status"),
        ("missing", "rules are stale: rules.yaml:3: bad", "kwsiem status"),
        ("missing", "output siem is failing: refused", "kwsiem status"),
        ("warning", "blocking is a dry run: not armed yet: kwsiem blocks arm", "kwsiem status"),
        ("missing", "the ledger does not balance", "kwsiem stats"),
    ]


def test_an_appliance_that_does_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(diagnosis, "UNIT", tmp_path / "kwsiem.service")
    look = partial(diagnosis.running, settings(f"runtime_dir: {tmp_path}"))
    assert only(look())[::2] == ("warning", "kwsiem run")
    (tmp_path / "kwsiem.service").touch()
    assert only(look())[::2] == ("warning", "systemctl enable --now kwsiem")


# -- jobs and the command


def test_jobs_end_in_time_and_keep_their_order():
    def hang():
        threading.Event().wait()

    def fail():
        raise ValueError("boom")

    good = [Finding("d", "good", "fine")]
    waited = []
    jobs = [
        Job("a", hang, 0.5),
        Job("b", fail),
        Job("c", lambda: os._exit(3)),
        *(Job("d", lambda: good) for _ in range(5)),
        Job("e", lambda: subprocess.run(["sleep", "60"], check=True), 0.3),
    ]
    found = list(run(jobs, waited.append))
    assert found[0] == [Finding("a", "missing", "no answer within 0.5 s")]
    assert found[1] == [Finding("b", "warning", "could not be looked at: ValueError: boom")]
    assert found[2] == [Finding("c", "warning", "could not be looked at: its process ended")]
    assert found[3:8] == [good] * 5
    assert found[8] == [Finding("e", "missing", "no answer within 0.3 s")]
    assert "a" in waited


def test_people_see_a_line_and_the_command_programs_see_json(tmp_path, capsys, monkeypatch):
    jobs = [
        Job(
            "x",
            lambda: [
                Finding("x", "missing", "a\x1b[31mb", "apt-get install x"),
                Finding("y", "good", "g", "m"),
            ],
        )
    ]
    monkeypatch.setattr(doctor, "jobs_of", lambda *_, **__: jobs)
    config = tmp_path / "kwsiem.yaml"
    config.write_text("host: h\n")
    assert main(["doctor", "--config", str(config)]) == 1
    out = capsys.readouterr().out
    assert "missing   x               a\\x1b[31mb\n          mend: apt-get install x\n" in out
    assert "\x1b" not in out and "mend: m" not in out
    assert out.endswith("\n\n2 good, 1 missing: mend what is missing\n")
    assert main(["doctor", "--json", "--config", str(config)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["good"] is False
    assert found["findings"][1] == {
        "check": "x", "state": "missing", "found": "a\x1b[31mb", "mend": "apt-get install x"
    }  # fmt: skip
    jobs[0] = Job("x", lambda: [Finding("x", "warning", "w", "m"), Finding("y", "skipped", "s")])
    assert main(["doctor", "--config", str(config)]) == 0, "warnings do not count"


def test_settings_that_cannot_be_used_are_a_finding_and_the_host_is_looked_at(tmp_path, capsys):
    config = tmp_path / "kwsiem.yaml"
    config.write_text("nonsense: 1\n")
    assert main(["doctor", "--no-probes", "--json", "--config", str(config)]) == 1
    found = json.loads(capsys.readouterr().out)["findings"]
    assert found[0]["check"] == "settings" and "unknown key" in found[0]["found"]
    by_name = {one["check"]: one["state"] for one in found}
    assert by_name["outputs"] == by_name["appliance"] == "skipped"
    assert by_name["kernel"] == "good"


def test_what_is_waited_for_shows_on_a_terminal_alone(monkeypatch, capsys):
    times = iter([0.0, 0.5, 2.0, 2.0])
    monkeypatch.setattr("kwsiem.cli.doctor.clock.monotonic_s", lambda: next(times))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    waiting = doctor._Waiting()
    waiting.on("rules")
    assert capsys.readouterr().err == ""
    waiting.on("rules")
    waiting.clear()
    assert capsys.readouterr().err == "\r\033[K… rules (2 s)\r\033[K"
