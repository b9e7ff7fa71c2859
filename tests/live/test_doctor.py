"""``kwsiem doctor`` on this kernel: the shipped probes really start; what was taken away is found."""

import json
import shlex
import shutil
import socket
import subprocess
import sys

import pytest
from lab import Lab, clean_environment

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]


def settings(folder, outputs):
    folder.chmod(0o755)
    path = folder / "kwsiem.yaml"
    path.write_text(
        f"state_dir: {folder}/state\nruntime_dir: {folder}/run\nenv_file: {folder}/env\noutputs:\n{outputs}"
    )
    return path


def doctor(lab, path, *before):
    """Its exit code, and state, found and mend of each check."""
    argv = [sys.executable, "-I", "-m", "kwsiem", "doctor", "--json", "--config", str(path)]
    if before:
        argv = ["unshare", "--mount", "sh", "-ec", f"{' && '.join(before)} && exec {shlex.join(argv)}"]
    done = subprocess.run(
        lab.argv("host", argv),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=clean_environment(),
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, {one["check"]: one for one in json.loads(done.stdout)["findings"]}


def test_all_that_the_appliance_needs_is_found_and_each_probe_starts(tmp_path):
    with Lab("host") as lab, lab.inside("host"):
        server = socket.create_server(("127.0.0.1", 0))
        with server:
            path = settings(
                tmp_path,
                f"  - {{name: siem, type: syslog, transport: tcp, port: {server.getsockname()[1]}}}\n"
                "  - {name: file, type: file}\n",
            )
            code, found = doctor(lab, path)
    assert code == 0, found
    needed = ("rights", "kernel", "BTF", "tracefs", "tracepoints", "bpftrace", "PAM", "firewall", "rules")
    for name in (*needed, "probe net", "probe auth_pam", "output siem", "output file", "state folder"):
        assert found[name]["state"] == "good", found[name]
    assert "first heartbeat after" in found["probe net"]["found"]
    assert found["appliance"]["state"] == "warning"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["kwsiem.yaml"], "nothing was made"


def test_a_hidden_bpftrace_and_a_closed_port_are_found_with_their_commands(tmp_path):
    with Lab("host") as lab:
        with lab.inside("host"), socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        path = settings(tmp_path, f"  - {{name: siem, type: syslog, transport: tcp, port: {port}}}\n")
        hide = f"mount --bind /dev/null {shlex.quote(shutil.which('bpftrace'))}"
        code, found = doctor(lab, path, hide)
    assert code == 1
    assert found["bpftrace"]["state"] == "missing"
    assert found["bpftrace"]["mend"].endswith(" install bpftrace")
    assert found["probe net"]["state"] == "skipped"
    assert found["output siem"]["state"] == "missing"
    assert f"127.0.0.1:{port} (tcp): Connection refused" in found["output siem"]["found"]
    assert found["output siem"]["mend"].startswith(f"ss -ltn 'sport = :{port}'")
    assert [one["check"] for one in found.values() if one["state"] == "missing"] == [
        "bpftrace",
        "output siem",
    ]
