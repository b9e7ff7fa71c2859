"""A host under real attack, for pictures: the appliance as shipped in a namespace, its neighbours with real tools."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(SOURCE / "tests/live"))

from appliance import RunningAppliance, listen  # noqa: E402
from lab import Lab  # noqa: E402
from services import sshd  # noqa: E402

PEERS = ("scanner", "flooder", "guesser", "neighbour", "friend")
SETTINGS = """blocking: {mode: "on", confirmed: true, spoofable: true, allow: [%s]}
"""
#: Shipped rules that block in this scene beside those that do so anyhow.
BLOCKING = {"tcp-port-scan": ", spoofable: allow"}
USERS = ("root", "admin", "oracle", "<b>bob</b> &](", "postgres", "test")


@contextlib.contextmanager
def scene() -> Iterator[tuple[Lab, RunningAppliance]]:
    """The laboratory and the appliance, attacked already."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kwsiem-scene-")))
        lab = stack.enter_context(Lab("host", *PEERS))
        rules = shipped_rules()
        appliance = RunningAppliance(
            lab, folder, rules=rules, settings=SETTINGS % lab.ip4("friend"), record=False
        )
        stack.enter_context(contextlib.contextmanager(listen)(lab, "host", 80, 443, 3306))
        stack.enter_context(appliance)
        stack.enter_context(sshd(lab, folder))
        attack(lab)
        yield lab, appliance


def shipped_rules() -> str:
    """The rules as shipped, some of them with a block."""
    text = (SOURCE / "rules.yaml").read_text()
    for rule, more in BLOCKING.items():
        line = f"  - id: {rule}\n"
        assert line in text, rule
        text = text.replace(line, f"{line}    block: {{field: source.ip, for: 10m{more}}}\n")
    return text


def host_of(lab: Lab, peer: str) -> str:
    """The address under which a peer reaches the host."""
    return lab.ip4(peer).rpartition(".")[0] + ".1"


def attack(lab: Lab) -> None:
    """Scans, a flood, guessed passwords; each bounded in time and count."""
    nmap = ["nmap", "-Pn", "-n", "--max-retries", "0", "--host-timeout", "10s"]
    for peer, argv in (
        ("neighbour", [*nmap, "-sX", "-p1-60"]),
        ("friend", [*nmap, "-sU", "-p1-30"]),
        ("scanner", [*nmap, "-sS", "-F"]),
    ):
        run(lab, peer, *argv, host_of(lab, peer))
    flood(lab)
    run(lab, "scanner", *nmap, "-6", "-sS", "-F", lab.ip6("scanner").rpartition(":")[0] + ":1")
    options = (
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "NumberOfPasswordPrompts=1",
        "ConnectTimeout=2",
    )
    ssh = ["sshpass", "-p", "wrong", "ssh", "-q", *(part for each in options for part in ("-o", each))]
    for user in USERS:
        run(lab, "guesser", *ssh, "-l", user, host_of(lab, "guesser"), "true")


def flood(lab: Lab) -> None:
    """12,000 SYNs of one source within some 3 s."""
    run(
        lab,
        "flooder",
        "hping3",
        "-q",
        "-S",
        "-p",
        "443",
        "-i",
        "u200",
        "-c",
        "12000",
        host_of(lab, "flooder"),
    )


def run(lab: Lab, peer: str, *argv: str) -> None:
    """A program of a peer; what it says and whether it succeeds does not matter."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            ["nsenter", f"--net={lab.path(peer)}", *argv],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            timeout=30, check=False,
        )  # fmt: skip
