"""Attacks from a throw-away network namespace on this host, to see the alerts come.

The namespace is the attacker; it is joined to the namespace that this command runs in (the appliance's) by a
veth pair with documentation addresses, and goes away with the command. Real tools do the work: nmap (or plain
connects), hydra against a real sshd of our own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from kwsiem import clock
from kwsiem.errors import UnavailableError

#: RFC 5737 TEST-NET-3 and RFC 3849: addresses that no real host has.
HOST_IP: Final = "203.0.113.1"
ATTACKER_IP: Final = "203.0.113.2"
SSH_PORT: Final = 22022
SCENARIOS: Final = ("portscan", "ssh-bruteforce")
_COMMAND_TIMEOUT_S: Final = 120


def simulate(scenario: str) -> str:
    """Run one scenario; what was done, in words. Raises UnavailableError that says what is missing."""
    if os.geteuid() != 0:
        raise UnavailableError("simulate needs root: it makes a network namespace; try sudo")
    with _attacker() as namespace:
        if scenario == "portscan":
            return _portscan(namespace)
        return _ssh_bruteforce(namespace)


@contextlib.contextmanager
def _attacker() -> Iterator[str]:
    """A namespace joined to ours by a veth pair; both are gone afterwards."""
    name = f"kwsim{os.getpid()}"
    ours, theirs = f"kws{os.getpid()}", f"kwa{os.getpid()}"
    _must("ip", "netns", "add", name)
    try:
        _must("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
        _must("ip", "address", "add", f"{HOST_IP}/30", "dev", ours)
        _must("ip", "link", "set", ours, "up")
        _must("ip", "-n", name, "address", "add", f"{ATTACKER_IP}/30", "dev", theirs)
        _must("ip", "-n", name, "link", "set", theirs, "up")
        _must("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        # The veth pair goes with the namespace, but only once the kernel has cleaned up: do not wait for it.
        subprocess.run(["ip", "link", "delete", ours], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _portscan(namespace: str) -> str:
    nmap = shutil.which("nmap")
    if nmap:
        _must(*_inside(namespace), nmap, "-n", "-Pn", "-sS", "-T4", "-p", "1-100", HOST_IP)
        return f"nmap -sS of 100 ports of {HOST_IP} from {ATTACKER_IP}"
    scan = (
        "import socket\n"
        "for port in range(1, 31):\n"
        f"    s = socket.socket(); s.settimeout(0.2); s.connect_ex(({HOST_IP!r}, port)); s.close()\n"
    )
    _must(*_inside(namespace), "python3", "-c", scan)
    return f"connects to 30 ports of {HOST_IP} from {ATTACKER_IP} (nmap is not installed)"


def _ssh_bruteforce(namespace: str) -> str:
    hydra, sshd = _tool("hydra", "hydra"), _tool("sshd", "openssh-server")
    with tempfile.TemporaryDirectory(prefix="kwsiem-simulate-") as folder, _sshd(sshd, Path(folder)):
        words = Path(folder) / "passwords"
        words.write_text("".join(f"not-the-password-{n}\n" for n in range(8)), encoding="utf-8")
        target = f"ssh://{HOST_IP}:{SSH_PORT}"
        # hydra ends with 255 when it finds nothing, which is what we want.
        argv = [*_inside(namespace), hydra, "-I", "-t", "4", "-l", "kwsiem-nobody", "-P", str(words), target]
        done = _run(argv, cwd=folder)
        if "0 valid password" not in done.stdout and "valid password" in done.stdout:
            raise UnavailableError("hydra found a password: the account kwsiem-nobody must not exist")
    return f"hydra with 8 wrong passwords against an sshd on {HOST_IP} port {SSH_PORT} from {ATTACKER_IP}"


@contextlib.contextmanager
def _sshd(sshd: str, folder: Path) -> Iterator[None]:
    """A real sshd with PAM on our end of the pair, with a key and a configuration of its own."""
    key = folder / "host_key"
    _must("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    config = folder / "sshd_config"
    config.write_text(
        f"Port {SSH_PORT}\nListenAddress {HOST_IP}\nHostKey {key}\nPidFile {folder}/sshd.pid\n"
        "UsePAM yes\nPasswordAuthentication yes\nKbdInteractiveAuthentication no\nUseDNS no\n"
        "PermitRootLogin no\nAllowUsers kwsiem-nobody\nStrictModes no\nMaxStartups 50\n",
        encoding="utf-8",
    )
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with subprocess.Popen(
        [sshd, "-D", "-e", "-f", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            _wait_for_port(server)
            yield
        finally:
            server.terminate()


def _wait_for_port(server: subprocess.Popen[bytes]) -> None:
    deadline_s = clock.monotonic_s() + 10
    while clock.monotonic_s() < deadline_s and server.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(0.5)
            if probe.connect_ex((HOST_IP, SSH_PORT)) == 0:
                return
        clock.sleep_s(0.05)
    raise UnavailableError(f"sshd does not listen on {HOST_IP} port {SSH_PORT} (is the port taken?)")


def _inside(namespace: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{namespace}"]


def _tool(name: str, package: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if not found:
        raise UnavailableError(f"{name} is not installed; install it: apt-get install {package}")
    return found


def _run(argv: Sequence[str], cwd: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{argv[0]}: {error}") from None


def _must(*argv: str) -> None:
    done = _run(argv)
    if done.returncode:
        raise UnavailableError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
