"""Real attackers are blocked by the real appliance in a namespace of its own, and nobody else ever is."""

import contextlib
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import services
from appliance import RunningAppliance, listen
from lab import Lab, wait_until

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

PEERS = ("hydra", "nmap", "hping", "gateway", "friend", "scanner")
#: All is on, and rules may block on forged evidence too: only the guard stands between.
SETTINGS = "blocking: {mode: 'on', confirmed: true, spoofable: true, allow: [203.0.113.77], aggregate: 0, firewall: FIREWALL}\n"
#: A rule file written to do harm: it blocks whoever sends a single SYN.
HARM = """
  - id: harm
    title: Blocks everybody
    level: critical
    event: tcp.syn
    detection: {syn: {destination.port|gt: 0}, condition: syn}
    correlation: {type: event_count, group-by: [source.ip], timespan: 1m, condition: {gte: 1}}
    suppress: 1s
    block: {field: source.ip, for: 1h, spoofable: allow}
"""


@pytest.fixture(scope="module")
def lab():
    with Lab("host", *PEERS) as lab:
        lab.ip("host", "route", "add", "default", "via", lab.ip4("gateway"))
        yield lab


@pytest.fixture(scope="module", params=["iptables", "nftables"])
def host(lab, open_folder, request):
    folder = Path(tempfile.mkdtemp(dir=open_folder))
    with (
        services.sshd(lab, folder),
        RunningAppliance(lab, folder, settings=SETTINGS.replace("FIREWALL", request.param)) as appliance,
    ):
        yield appliance
        blocks(appliance, "disarm")


def blocks(appliance, *arguments, code=0):
    """One ``kwsiem blocks`` command; its JSON, or its text where it has none."""
    argv = [
        sys.executable,
        "-m",
        "kwsiem",
        "blocks",
        *arguments,
        "--runtime",
        str(appliance.runtime),
        "--json",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert code in {None, done.returncode}, done.stdout + done.stderr
    try:
        return json.loads(done.stdout)
    except ValueError:
        return done.stdout + done.stderr


def blocked(appliance):
    return {block["network"] for block in blocks(appliance)["blocks"]}


def target(lab, name, version=4):
    """The host's address on the link to a peer."""
    return lab.ip4(name).removesuffix(".2") + ".1" if version == 4 else lab.ip6(name).removesuffix("2") + "1"


def reaches(lab, name, address, port=22):
    with lab.inside(name):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(1.0)
            return sock.connect_ex((address, port)) == 0


def attack(lab, name, address, folder, tries=12):
    words = folder / "words"
    words.write_text("".join(f"wrong{n}\n" for n in range(tries)))
    shown = f"[{address}]" if ":" in address else address
    argv = ["hydra", "-I", "-t", "4", "-W", "1", "-w", "5", "-l", "root", "-P", str(words), f"ssh://{shown}"]
    return lab.popen(name, argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)


@pytest.mark.parametrize("version", [4, 6])
def test_hydra_is_thrown_out_others_still_pass_and_the_block_can_be_taken_back(lab, host, tmp_path, version):
    own = lab.ip4("hydra") if version == 4 else str(ipaddress.ip_address(lab.ip6("hydra")))
    address = target(lab, "hydra", version)
    assert reaches(lab, "hydra", address)
    child = attack(lab, "hydra", address, tmp_path)
    wait_until(lambda: own in blocked(host), 60, f"{own} is blocked")
    assert not reaches(lab, "hydra", address), "its packets are dropped"
    assert reaches(lab, "friend", target(lab, "friend", version)), "others still pass"
    wait_until(
        lambda: own not in lab.run("host", ["ss", "-Htn", "state", "established"]).stdout,
        10,
        "its connections end",
    )
    lab.stop(child)
    found = next(block for block in blocks(host)["blocks"] if block["network"] == own)
    assert (found["rule"], found["mode"], found["evidence"]) == ("ssh-brute-force", "on", "proven")
    assert found["alert"] in (host.state / "alerts.jsonl").read_text()
    blocks(host, "remove", own)
    assert reaches(lab, "hydra", address)


def test_an_open_ssh_session_of_a_blocked_source_ends(lab, host, tmp_path):
    key = host.folder / "user_key"
    argv = services.ssh_argv(key, target(lab, "friend"), "echo up; sleep 60")
    child = lab.popen("friend", argv, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "up\n"
    refused = blocks(host, "add", lab.ip4("friend"), code=1)
    assert "administrator session" in refused[0]["reason"], "root's own session protects it"
    lab.stop(child)
    with lab.inside("friend"), socket.create_connection((target(lab, "friend"), 22), 5) as sock:
        assert sock.recv(3) == b"SSH"
        wait_until(
            lambda: blocks(host, "explain", lab.ip4("friend"), code=None)["proven"]["allowed"],
            15,
            "nobody is logged in",
        )
        assert blocks(host, "add", lab.ip4("friend"), "--for", "1h")[0]["blocked"]
        sock.settimeout(10)
        wait_until(
            lambda: lab.ip4("friend") not in lab.run("host", ["ss", "-Htn", "state", "established"]).stdout,
            10, "the host has let go of it",
        )  # fmt: skip
    blocks(host, "remove", lab.ip4("friend"))


def test_a_block_ends_in_time(lab, host):
    own, address = lab.ip4("scanner"), target(lab, "scanner")
    assert blocks(host, "add", own, "--for", "2s")[0]["blocked"]
    assert not reaches(lab, "scanner", address)
    wait_until(lambda: reaches(lab, "scanner", address), 15, "the block has ended")
    wait_until(lambda: own not in blocked(host), 5, "and is not listed any more")


def test_a_scan_alone_blocks_nobody(lab, host):
    """Nmap's SYNs can be forged: no shipped rule blocks for them."""
    lab.run(
        "nmap",
        ["nmap", "-n", "-Pn", "-sS", "--max-retries", "1", "-p", "1-60", target(lab, "nmap")],
        timeout=60,
    )
    host.wait_alert("tcp-port-scan", lab.ip4("nmap"))
    assert lab.ip4("nmap") not in blocked(host)
    assert reaches(lab, "nmap", target(lab, "nmap"))


def resolvers():
    """Name servers that this machine really asks, as the guard must know them."""
    words = [line.split() for line in Path("/etc/resolv.conf").read_text().splitlines()]
    return [
        w[1]
        for w in words
        if w[:1] == ["nameserver"] and w[1].count(".") == 3 and not w[1].startswith("127.")
    ]


def forge(lab, sources):
    """A scan of 40 ports in the name of each of them, all at once: hping3 waits a second for answers in the end."""
    argv = ["hping3", "-q", "-c", "40", "-i", "u2000", "-S", "-p", "++20", target(lab, "hping"), "-a"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for child in [lab.popen("hping", [*argv, source], **quiet) for source in sources]:
        child.wait(30)


def test_forged_syns_block_nobody_that_is_protected_though_a_rule_wants_it(lab, host):
    """hping3 in the names of gateway, resolver, administrator, host and allow list: with every shipped rule, and
    with a rule that blocks whoever sends a single SYN.
    """
    argv = services.ssh_argv(host.folder / "user_key", target(lab, "friend"), "echo up; sleep 120")
    admin = lab.popen("friend", argv, stdout=subprocess.PIPE, text=True)
    assert admin.stdout.readline() == "up\n"
    protected = {
        lab.ip4("gateway"): "gateway",
        target(lab, "hping"): "own address",
        "203.0.113.77": "allow list",
        lab.ip4("friend"): "administrator session",
        **dict.fromkeys(resolvers(), "resolver"),
    }
    forge(lab, protected)
    for source in protected:
        host.wait_alert("tcp-port-scan", source)
    assert blocked(host) == set(), "no shipped rule blocks for SYNs"
    rules, running = host.rules.read_text(), host.status()["rules"]["rules"]
    host.rules.write_text(rules + HARM)
    try:
        wait_until(lambda: host.status()["rules"]["rules"] == running + 1, 30, "the harmful rule runs")
        forge(lab, protected)
        forge(lab, ["198.18.77.7"])
        wait_until(
            lambda: "198.18.77.7" in blocked(host), 20, "the innocent third party shows that the rule works"
        )
        assert not blocked(host) & protected.keys()
        assert reaches(lab, "gateway", target(lab, "gateway"))
        for address, rule in protected.items():
            assert blocks(host, "explain", address, code=1)["proven"]["rule"] == rule
        assert admin.poll() is None, "the administrator's session goes on"
    finally:
        lab.stop(admin)
        host.rules.write_text(rules)
        wait_until(lambda: host.status()["rules"]["rules"] == running, 30, "the rule is gone")
        for network in blocked(host):
            blocks(host, "remove", network)


def repaired(host):
    return host.status()["blocking"]["counters"].get("repaired", 0)


DAMAGE = {
    "iptables": [
        ["iptables", "-t", "mangle", "-F"],
        ["iptables", "-t", "mangle", "-D", "PREROUTING", "1"],
        ["ipset", "flush"],
    ],
    "nftables": [["nft", "flush", "ruleset"], ["nft", "delete", "table", "inet", "kwsiem"]],
}


def test_what_somebody_else_flushes_is_put_back_and_told(lab, host, request):
    kind = request.node.callspec.params["host"]
    own, address = lab.ip4("scanner"), target(lab, "scanner")
    blocks(host, "add", own)
    for argv in DAMAGE[kind]:
        wanted = repaired(host) + 1
        lab.run("host", argv)
        wait_until(lambda wanted=wanted: repaired(host) >= wanted, 10, f"{argv} is noticed")
        wait_until(lambda: not reaches(lab, "scanner", address), 5, f"repaired after {argv}")
    alert = host.wait_alert("firewall-tampered")
    assert alert["rule"]["name"] == "The firewall was changed by somebody else"
    blocks(host, "remove", own)
    assert reaches(lab, "scanner", address)


@pytest.mark.parametrize("ending", ["kill", "reboot"])
def test_after_kill_or_reboot_the_blocks_are_back_before_the_probes(lab, host, ending, request):
    kind = request.node.callspec.params["host"]
    own, address = lab.ip4("scanner"), target(lab, "scanner")
    blocks(host, "add", own, "--for", "1h")
    os.kill(host.process.pid, signal.SIGKILL)
    host.process.wait(10)
    assert not reaches(lab, "scanner", address), "a dead daemon's blocks stand until their time is over"
    if ending == "reboot":
        for argv in (["iptables", "-t", "mangle", "-F"], ["ipset", "-X"], ["nft", "flush", "ruleset"]):
            lab.run("host", argv, check=kind in argv[0])
        assert reaches(lab, "scanner", address)
    host.start(ready=False)
    wait_until(lambda: not reaches(lab, "scanner", address), 20, "blocked again")
    host.wait_ready()
    left = next(block["left_s"] for block in blocks(host)["blocks"] if block["network"] == own)
    assert 3000 < left <= 3600, "with the time that is left"
    blocks(host, "remove", own)


def test_export_and_import(lab, host, tmp_path):
    blocks(host, "add", "198.51.100.7", "2001:db8:77::/64", "--for", "1h")
    argv = [sys.executable, "-m", "kwsiem", "blocks", "export", "--runtime", str(host.runtime)]
    text = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout
    blocks(host, "remove", "198.51.100.7")
    blocks(host, "remove", "2001:db8:77::/64")
    file = tmp_path / "blocks.jsonl"
    file.write_text(text + json.dumps({"network": "127.0.0.1", "for_s": 60}) + "\n")
    results = blocks(host, "import", str(file), code=1)
    assert [result["blocked"] for result in results] == [True, True, False]
    assert blocked(host) >= {"198.51.100.7", "2001:db8:77::/64"}
    for network in ("198.51.100.7", "2001:db8:77::/64"):
        blocks(host, "remove", network)


def test_a_dry_run_and_an_unconfirmed_trial_drop_nothing(lab, open_folder):
    folder = Path(tempfile.mkdtemp(dir=open_folder))
    own, address = lab.ip4("scanner"), target(lab, "scanner")
    with (
        contextlib.contextmanager(listen)(lab, "host", 2222),
        RunningAppliance(
            lab, folder, settings="blocking: {mode: 'on', allow: [203.0.113.77]}\n"
        ) as appliance,
    ):
        assert blocks(appliance, "add", own)[0]["mode"] == "dry-run"
        assert reaches(lab, "scanner", address, 2222)
        blocks(appliance, "remove", own)
        blocks(appliance, "arm", "--confirm-within", "3s")
        assert blocks(appliance, "add", own)[0]["mode"] == "on"
        assert not reaches(lab, "scanner", address, 2222)
        wait_until(lambda: reaches(lab, "scanner", address, 2222), 15, "rolled back")
        appliance.wait_alert("blocking-impaired")
        assert appliance.status()["blocking"]["mode"] == "dry-run"
        blocks(appliance, "arm", "--confirm-within", "1m")
        blocks(appliance, "confirm")
        assert appliance.status()["blocking"]["armed"]
