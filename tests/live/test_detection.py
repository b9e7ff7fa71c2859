"""Password attacks become alerts, daily work and hostile names do not. Network attacks: test_scoreboard.py."""

import http.server
import json
import socketserver
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import services
from appliance import RunningAppliance, listen, whole_lines
from lab import Lab, wait_until

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

ATTACKERS = ("hydra1", "friend")


@pytest.fixture(scope="module")
def lab():
    with Lab("host", *ATTACKERS) as lab:
        yield lab


@pytest.fixture(scope="module")
def host(lab, open_folder):
    """One appliance for all tests of this module; each attacks from a namespace of its own."""
    with RunningAppliance(lab, Path(tempfile.mkdtemp(dir=open_folder))) as appliance:
        yield appliance


def peer(lab: Lab, attacker: str) -> str:
    """The host's address on the link to an attacker."""
    return (
        lab.run(attacker, ["ip", "-4", "-o", "addr", "show", "dev", "eth0"])
        .stdout.split()[3]
        .replace(".2/24", ".1")
    )


def own(lab: Lab, attacker: str) -> str:
    return lab.ip4(attacker)


@pytest.fixture
def sshd(lab, tmp_path):
    with services.sshd(lab, tmp_path) as key:
        yield key


def test_hydra_against_sshd_is_a_brute_force_alert(lab, host, sshd, tmp_path):
    words = tmp_path / "words"
    words.write_text("".join(f"wrong{n}\n" for n in range(8)))
    argv = ["hydra", "-I", "-t", "4", "-l", "root", "-P", str(words), f"ssh://{peer(lab, 'hydra1')}"]
    lab.run("hydra1", argv, check=False, timeout=90, cwd=tmp_path)
    alert = host.wait_alert("ssh-brute-force", timeout=30)
    assert alert["source"]["ip"] == own(lab, "hydra1")
    assert alert["user"]["name"] == "root"


def test_hydra_with_many_users_is_a_password_spray(lab, host, sshd, tmp_path):
    users = tmp_path / "users"
    users.write_text("".join(f"user{n}\n" for n in range(7)))
    argv = ["hydra", "-I", "-t", "4", "-L", str(users), "-p", "Winter2026", f"ssh://{peer(lab, 'hydra1')}"]
    lab.run("hydra1", argv, check=False, timeout=90, cwd=tmp_path)
    alert = host.wait_alert("password-spray", timeout=30)
    assert alert["source"]["ip"] == own(lab, "hydra1")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


def test_daily_work_raises_nothing(lab, host, sshd, tmp_path):
    """20 logins with ssh, 500 HTTP requests, and a burst of outbound connections such as apt makes."""
    before = host.alerts(state=None)
    target = peer(lab, "friend")
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    for _ in range(20):
        done = lab.run("friend", ["ssh", *options, "-i", str(sshd), f"root@{target}", "echo", "hello"])
        assert done.stdout == "hello\n"
    with lab.inside("host"):
        server = socketserver.ThreadingTCPServer(("0.0.0.0", 8080), Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    fetch = (
        "import urllib.request\n"
        f"for _ in range(500): urllib.request.urlopen('http://{target}:8080/').read()\n"
    )
    lab.run("friend", [sys.executable, "-c", fetch], timeout=90)
    server.shutdown()
    server.server_close()
    mirrors = [f"{own(lab, 'friend').rpartition('.')[0]}.{n}" for n in range(100, 140)]
    for mirror in mirrors:
        lab.address("friend", "eth0", f"{mirror}/24")
    for _ in listen(lab, "friend", 443):
        burst = f"import socket\nheld = [socket.create_connection((a, 443)) for a in {mirrors} for _ in range(3)]\n"
        lab.run("host", [sys.executable, "-W", "ignore", "-c", burst])
    wait_until(lambda: host.status()["engine"]["lines"]["net"]["received"] > 100, 15, "traffic was seen")
    after = [a for a in host.alerts(state=None) if a not in before]
    assert [
        a["rule"]["id"] for a in after if a.get("source", {}).get("ip") in (own(lab, "friend"), target)
    ] == []


def test_hostile_names_forge_nothing(lab, host, tmp_path):
    """A process whose name and arguments are JSON, and a user name that is, make events but no lines of theirs."""
    forged = '"]}\n{"type": "value", "data": [1, "6.6.6.6", 1, "7.7.7.7", 22, 2, "eth0", 1]}\n{"a": ["'
    before = host.status()["engine"]["lines"]
    program = tmp_path / "x"
    program.symlink_to(Path(sys.executable).resolve())
    code = (
        "import ctypes, socket, sys\n"
        'ctypes.CDLL(None).prctl(15, b\'\\"]}\\n{\\"type\\": \\"\', 0, 0, 0)\n'
        "s = socket.socket(); s.settimeout(1); s.connect_ex((sys.argv[1], 9))\n"
    )
    lab.run("friend", [str(program), "-c", code, peer(lab, "friend"), forged])
    pam = (
        "import ctypes, sys\n"
        "pam = ctypes.CDLL('libpam.so.0'); h = ctypes.c_void_p()\n"
        "CB = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)\n"
        "class Conv(ctypes.Structure): _fields_ = [('f', CB), ('d', ctypes.c_void_p)]\n"
        "conv = Conv(CB(lambda *_: 19), None)\n"
        "assert pam.pam_start(b'other', sys.argv[1].encode(), ctypes.byref(conv), ctypes.byref(h)) == 0\n"
        "assert pam.pam_authenticate(h, 0) != 0\n"
    )
    lab.run("host", [sys.executable, "-c", pam, forged[:60]], timeout=30)
    wait_until(
        lambda: host.status()["engine"]["lines"]["auth_pam"]["received"] > before["auth_pam"]["received"] + 2,
        15,
        "the attempt was seen",
    )
    after = host.status()["engine"]["lines"]
    assert after["net"]["rejected"] == before["net"]["rejected"]
    assert after["auth_pam"]["rejected"] == before["auth_pam"]["rejected"]
    assert "6.6.6.6" not in (host.state / "alerts.jsonl").read_text()
    recorded = [line for line in whole_lines(host.recording) if "auth" in line or '"other"' in line]
    assert recorded
    for line in recorded:
        json.loads(line)
