"""Real servers for the laboratory."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from lab import Lab, wait_until

_running: list[subprocess.Popen[str]] = []


def last_sshd() -> subprocess.Popen[str]:
    """The sshd that was started last."""
    return _running[-1]


@contextlib.contextmanager
def sshd(lab: Lab, folder: Path, stderr: int = subprocess.DEVNULL) -> Iterator[Path]:
    """A real sshd with PAM on port 22 of the namespace ``host``; gives a key that root may log in with."""
    key, user_key = folder / "key", folder / "user_key"
    for path in (key, user_key):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    authorized = folder / "authorized"
    authorized.write_text(Path(f"{user_key}.pub").read_text())
    config = folder / "sshd_config"
    config.write_text(
        f"Port 22\nHostKey {key}\nPidFile none\nUsePAM yes\nPasswordAuthentication yes\nUseDNS no\n"
        f"KbdInteractiveAuthentication no\nPermitRootLogin yes\nStrictModes no\nMaxStartups 100\n"
        f"AuthorizedKeysFile {authorized}\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    child = lab.popen("host", ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)], stderr=stderr, text=True)
    _running.append(child)
    wait_until(lambda: "LISTEN" in lab.run("host", ["ss", "-Hltn", "sport = :22"]).stdout, 10, "sshd listens")
    yield user_key
    lab.stop(child)


def ssh_argv(key: Path, target: str, *command: str) -> list[str]:
    """A login as root with the key of :func:`sshd`."""
    options = [
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "BatchMode=yes",
        "ConnectTimeout=5",
    ]
    flags = [part for option in options for part in ("-o", option)]
    return ["ssh", "-q", *flags, "-i", str(key), f"root@{target}", *command]
