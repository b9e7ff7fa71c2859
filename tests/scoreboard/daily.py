"""Daily work with real programs, all at once: it must raise nothing.

Each work has a site of its own and does a counted amount within about :data:`SPAN_S` seconds.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance import SOURCE, RunningAppliance
from lab import Lab
from services import ssh_argv

from scoreboard.field import TOOLS, Field, Site, unpacked
from scoreboard.run import addresses_of, own_rules, say
from scoreboard.usage import Share, Usage
from scoreboard.watch import AlertTail, Arrival, LossTail

HERE = Path(__file__).resolve().parent
SPAN_S = 110
#: Lists of rules.yaml that allow an address to test this host.
LISTS = ("monitoring", "load_testers")
FETCHED_FROM = 40
MONITORED_PORTS = "22,25,53,80,110,143,443,3306,5432,6379"


@dataclass
class Work:
    """One kind of daily work and what came of it."""

    name: str
    do: Callable[[Field, Site], str]
    #: Its address is on the lists of those who may test.
    listed: bool = False
    #: Alerts that are right even so.
    also: frozenset[str] = frozenset()
    site: Site | None = None
    done: str = ""
    false: list[str] = field(default_factory=list)
    addresses: set[str] = field(default_factory=set)


def web_people(ours: Field, site: Site) -> str:
    """50 clients of wrk that pause 150 ms."""
    script = ours.folder / "pause.lua"
    script.write_text("function delay() return math.random(100, 200) end\n")
    said = ours.run(
        site.name,
        unpacked(
            "wrk", "-t", "1", "-c", "50", "-d", f"{SPAN_S}s", "-s", str(script), f"http://{site.host.ip4}/"
        ),
        SPAN_S + 20,
    )
    return _line(said, "requests in")


def load_test(ours: Field, site: Site) -> str:
    url = f"http://{site.host.ip4}/"
    return _line(
        ours.run(site.name, unpacked("wrk", "-t", "1", "-c", "50", "-d", "10s", url), 30), "requests in"
    )


def busy_server(ours: Field, site: Site) -> str:
    """Requests without keep-alive at full speed for 5 seconds."""
    argv = unpacked("ab", "-q", "-t", "5", "-n", "1000000", "-c", "20", f"http://{site.host.ip4}/")
    said = ours.run(site.name, argv, 30)
    return f"{_line(said, 'Complete requests:').split()[-1]} requests"


def fan_out(ours: Field, site: Site) -> str:
    """What apt, pip and git do: many short connections from this host to 40 servers, ports 80 and 443."""
    net = site.own.ip4.rpartition(".")[0]
    servers = [f"{net}.{100 + n}" for n in range(FETCHED_FROM)]
    fetched = 0
    for _ in range(4):
        urls = [f"{scheme}://{server}/picture" for server in servers for scheme in ("http", "https")]
        pairs = [word for url in urls for word in ("-o", "/dev/null", url)]
        ours.run("host", ["curl", "-sSk", "--fail", "--parallel", "--parallel-max", "30", *pairs], 60)
        fetched += len(urls)
        for n in range(3):
            copy = ours.folder / f"clone-{fetched}-{n}"
            ours.run("host", ["git", "clone", "-q", f"http://{servers[n]}/repo.git", str(copy)], 30)
        time.sleep(SPAN_S / 5)
    return f"{fetched} files, 12 clones"


def monitoring(ours: Field, site: Site) -> str:
    rounds = 0
    end_s = time.monotonic() + SPAN_S
    while time.monotonic() < end_s:
        ours.run(site.name, ["nmap", "-n", "-Pn", "-sT", "-p", MONITORED_PORTS, site.host.ip4], 20)
        rounds += 1
        time.sleep(10)
    return f"{rounds} rounds of 10 ports"


def copies(ours: Field, site: Site) -> str:
    """Rsync of 200 files, then 50 scp at once."""
    assert ours.key
    tree = ours.folder / "tree"
    tree.mkdir()
    for n in range(200):
        (tree / f"file{n}").write_bytes(b"x" * 20_000)
    *shell, target = ssh_argv(ours.key, site.host.ip4)
    got = ours.folder / "got"
    ours.run(
        site.name,
        unpacked(
            "rsync",
            "-a",
            f"--rsync-path={TOOLS}/run rsync",
            "-e",
            " ".join(shell),
            f"{target}:{tree}/",
            f"{got}/",
        ),
        60,
    )
    assert len(list(got.iterdir())) == 200

    def copy(n: int) -> None:
        options = [word for word in shell[1:] if word not in ("-q", "-n")]
        ours.run(
            site.name, ["scp", "-O", *options, f"{target}:{tree}/file{n}", str(ours.folder / f"scp{n}")], 90
        )

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(copy, range(50)))
    return "200 files, 50 copies at once"


def names_of_every_day() -> list[str]:
    """Names as a resolver sees them: web, content networks, reverse, mail lists, service discovery."""
    chance = random.Random(1)
    hexes = "0123456789abcdef"
    found = [f"www.site{n}.com A" for n in range(400)] + [f"site{n}.org AAAA" for n in range(200)]
    found += [f"d{''.join(chance.choices(hexes, k=13))}.cloudfront.net A" for _ in range(60)]
    found += [f"e{n}.dscb.akamaiedge.net A" for n in range(100, 160)]
    found += [f"r{n}---sn-{''.join(chance.choices(hexes, k=8))}.googlevideo.com A" for n in range(1, 40)]
    found += [f"{n}.{n + 1}.51.198.in-addr.arpa PTR" for n in range(120)]
    nibbles = [".".join(chance.choices(hexes, k=16)) for _ in range(20)]
    found += [f"{nibble}.8.b.d.0.1.0.0.2.0.0.0.0.0.0.0.0.ip6.arpa PTR" for nibble in nibbles]
    found += [f"selector{n}._domainkey.site{n}.com TXT" for n in range(50)]
    found += [f"_dmarc.site{n}.com TXT" for n in range(50)] + [f"site{n}.com MX" for n in range(60)]
    found += [f"{n}.2.0.192.zen.spamhaus.org A" for n in range(1, 80)]
    found += ["_ldap._tcp.dc._msdcs.corp.example.com SRV", "wpad.corp.example.com A"] * 5
    chance.shuffle(found)
    return found


def resolver(ours: Field, site: Site) -> str:
    """200 questions a second through unbound, which asks a resolver beyond."""
    names = ours.folder / "everyday"
    names.write_text("\n".join(names_of_every_day()) + "\n")
    argv = ["dnsperf", "-s", site.host.ip4, "-d", str(names), "-l", str(SPAN_S), "-Q", "200", "-c", "8"]
    return _line(ours.run(site.name, unpacked(*argv), SPAN_S + 20), "Queries completed:")


def pings(ours: Field, site: Site) -> str:
    """Once a second to each of three addresses, both families."""
    targets = [site.host.ip4, site.host.ip6, *site.targets[:2], *site.targets[-2:]]

    def ping(target: str) -> None:
        argv = unpacked("ping", "-q", "-n", "-i", "1", "-c", str(SPAN_S - 10), target)
        ours.run(site.name, argv, SPAN_S + 20)

    with ThreadPoolExecutor(len(targets)) as pool:
        list(pool.map(ping, targets))
    return f"{len(targets)} targets, {SPAN_S - 10} s"


def clocks(ours: Field, site: Site) -> str:
    """Chronyd on the host serves time to a client, once a second; neither sets the clock."""
    server, client = ours.folder / "ntp-server.conf", ours.folder / "ntp-client.conf"
    common = f"cmdport 0\npidfile {ours.folder}/chrony-%s.pid\n"
    server.write_text(f"local stratum 8\nallow all\nbindcmdaddress /\n{common % 'server'}")
    client.write_text(
        f"server {site.host.ip4} minpoll 0 maxpoll 0 iburst\nserver {site.host.ip6} minpoll 0 maxpoll 0\n"
        f"port 0\nbindcmdaddress /\n{common % 'client'}"
    )
    serving = ours.start("host", unpacked("chronyd", "-x", "-d", "-u", "root", "-f", str(server)))
    try:
        said = ours.run(
            site.name, unpacked("chronyd", "-x", "-d", "-u", "root", "-f", str(client)), SPAN_S, good=(0,)
        )
    finally:
        ours.lab.stop(serving)
    assert "Selected source" in said, said
    return f"{SPAN_S} s, a question a second"


def office(ours: Field, site: Site) -> str:
    """A hundred browsers behind the one address of a gateway that masquerades."""
    lab = ours.lab
    lab.add("desks")
    gateway, _ = lab.link(site.name, "desks")
    lab.sysctl(site.name, "net/ipv4/ip_forward", "1")
    lab.run(
        site.name, ["iptables", "-t", "nat", "-A", "POSTROUTING", "-o", site.own.device, "-j", "MASQUERADE"]
    )
    lab.ip("desks", "route", "replace", "default", "via", gateway.ip4)
    argv = [sys.executable, "-W", "ignore", str(HERE / "browsers.py"), site.host.ip4, str(SPAN_S)]
    return f"100 browsers, answers {ours.run('desks', argv, SPAN_S + 30).strip()}"


def mistypes(ours: Field, site: Site) -> str:
    assert ours.key
    options = [
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "PubkeyAuthentication=no",
    ]
    for wrong in ("winter2025", "Winter2025"):
        ours.run(
            site.name,
            [
                "sshpass",
                "-p",
                wrong,
                "ssh",
                *options,
                "-o",
                "NumberOfPasswordPrompts=1",
                f"root@{site.host.ip4}",
            ],
            30,
            good=(5, 255),
        )
    said = ours.run(site.name, ssh_argv(ours.key, site.host.ip4, "echo", "hello"), 30)
    assert "hello" in said
    return "2 wrong passwords, then a login"


def closed_port(ours: Field, site: Site) -> str:
    """A service that is down: the client tries again every two seconds."""
    argv = ["curl", "-sS", "--retry", "15", "--retry-connrefused", "--retry-delay", "2"]
    ours.run(site.name, [*argv, f"http://{site.host.ip4}:8081/"], 60, good=(7,))
    return "16 tries"


def health_checks(ours: Field, site: Site) -> str:
    """Over loopback: two requests and five ports every second."""
    code = (
        "import socket, sys, time, urllib.request\n"
        "end = time.monotonic() + float(sys.argv[1]); n = 0\n"
        "while time.monotonic() < end:\n"
        "    for host in ('127.0.0.1', '[::1]'): urllib.request.urlopen(f'http://{host}/').read()\n"
        "    for port in (22, 53, 80, 8081, 9090):\n"
        "        with socket.socket() as s: s.connect_ex(('127.0.0.1', port))\n"
        "    n += 1; time.sleep(1)\n"
        "print(n)\n"
    )
    return f"{ours.run('host', [sys.executable, '-c', code, str(SPAN_S)], SPAN_S + 20).strip()} rounds"


def _line(text: str, mark: str) -> str:
    lines = [line.strip() for line in text.splitlines() if mark in line]
    assert lines, text[-2000:]
    return " ".join(lines[0].split())


def works() -> list[Work]:
    return [
        Work("wrk at the pace of people", web_people),
        Work("wrk at full speed, listed load tester", load_test, listed=True),
        Work(
            "ab without keep-alive, full speed, 5 s",
            busy_server,
            also=frozenset({"http-flood", "http-flood-source"}),
        ),
        Work("curl and git to 40 servers", fan_out),
        Work("monitoring of 10 ports, listed", monitoring, listed=True),
        Work("rsync and 50 scp at once", copies),
        Work("dnsperf at 200/s, names of every day", resolver),
        Work("ping once a second", pings),
        Work("chronyd", clocks),
        Work("an office behind one address", office),
        Work("ssh, a password mistyped twice", mistypes),
        Work("curl tries a closed port again", closed_port),
        Work("health checks over loopback", health_checks),
    ]


@dataclass
class DailyScore:
    """What came of the daily work."""

    works: list[Work]
    false: list[str]
    own: dict[str, int]
    lost: dict[str, int]
    ring_buffer: dict[str, int]
    shares: dict[str, Share]
    seconds: float
    errors: list[str]

    @property
    def failures(self) -> list[str]:
        return [f"daily work: {said}" for said in (*self.errors, *self.false)]


def listed_rules(text: str, addresses: Sequence[str]) -> str:
    """The shipped rules with these addresses on the lists of those who may test this host."""
    lines = []
    for line in text.splitlines():
        name = next((name for name in LISTS if line.startswith(f"  {name}:")), "")
        lines.append(line.replace("[", f"[{', '.join(addresses)}, ", 1) if name else line)
    assert lines != text.splitlines(), f"none of the lists {LISTS} is in rules.yaml"
    return "\n".join(lines) + "\n"


def play_daily(folder: Path) -> DailyScore:
    """The whole: laboratory, servers, appliance, all works at once."""
    ours, theirs = folder / "field", folder / "appliance"
    for path in (folder, ours, theirs):
        path.mkdir(exist_ok=True)
        path.chmod(0o755)
    everything = works()
    with Lab("host") as lab, Field(lab, ours) as arena:
        for n, work in enumerate(everything):
            work.site = arena.site(f"d{n}", 2 if work.do is pings else 0)
            work.addresses = {*_ends(work.site), *work.site.sources, *work.site.targets}
        _beyond(arena, next(work.site for work in everything if work.do is fan_out and work.site))
        resolver_site = next(work.site for work in everything if work.do is resolver and work.site)
        arena.unbound(resolver_site.name)
        arena.unbound("host", forward=resolver_site.own.ip4)
        arena.serve("nginx", "sshd", "redis")
        testers = [
            address for work in everything if work.listed and work.site for address in _sources(work.site)
        ]
        rules = listed_rules((SOURCE / "rules.yaml").read_text(), testers)
        appliance = RunningAppliance(lab, theirs, rules=rules)
        alerts, losses, usage = (
            AlertTail(appliance.state / "alerts.jsonl"),
            LossTail(appliance.recording),
            Usage(appliance),
        )
        with appliance, alerts, losses, usage:
            say(f"daily work: {len(everything)} kinds at once, about {SPAN_S} s")
            with ThreadPoolExecutor(len(everything)) as pool:
                errors = [said for said in pool.map(lambda work: _do(arena, work), everything) if said]
            time.sleep(3)  # windows that are about to close, close
            status, seconds = appliance.status(), usage.seconds
        return _score(everything, alerts.arrivals, losses, own_rules(rules), usage, seconds, status, errors)


def _ends(site: Site) -> list[str]:
    return [site.own.ip4, site.own.ip6, site.host.ip4, site.host.ip6]


def _sources(site: Site) -> list[str]:
    return [f"{site.own.ip4}/32", f'"{site.own.ip6}/128"']


def _beyond(arena: Field, site: Site) -> None:
    """40 servers behind one namespace, with a repository."""
    net = site.own.ip4.rpartition(".")[0]
    for n in range(FETCHED_FROM):
        arena.lab.address(site.name, site.own.device, f"{net}.{100 + n}/24")
    root = arena.nginx(site.name, tls=True)
    repository = root / "repo.git"
    work = arena.folder / "work"
    plain = {"PATH": "/usr/bin:/bin", "HOME": str(arena.folder), "GIT_CONFIG_NOSYSTEM": "1"}
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"]
    for argv in (
        ["init", "-q", str(work)],
        ["-C", str(work), "commit", "-q", "--allow-empty", "-m", "first"],
        ["clone", "-q", "--bare", str(work), str(repository)],
        ["-C", str(repository), "update-server-info"],
    ):
        subprocess.run(["git", *identity, *argv], check=True, env=plain, capture_output=True)


def _do(arena: Field, work: Work) -> str:
    assert work.site
    with contextlib.suppress(KeyboardInterrupt):
        try:
            work.done = work.do(arena, work.site)
        except Exception:  # noqa: BLE001 - a work that fails must not end the others
            said = traceback.format_exc(limit=-2)
            say(f"daily work: ERROR {work.name}: {said}")
            return f"{work.name} failed: {said}"
    say(f"daily work: {work.name}: {work.done}")
    return ""


def _score(
    everything: list[Work], arrivals: list[Arrival], losses: LossTail, own: set[str], usage: Usage,
    seconds: float, status: dict[str, Any], errors: list[str],
) -> DailyScore:  # fmt: skip
    false: list[str] = []
    about_us: dict[str, int] = {}
    for arrival in arrivals:
        if arrival.alert["kwsiem"]["alert"]["state"] != "open":
            continue
        if arrival.rule in own:
            about_us[arrival.rule] = about_us.get(arrival.rule, 0) + 1
            continue
        named = addresses_of(arrival.alert)
        work = next((w for address in named for w in everything if address in w.addresses), None)
        if work and arrival.rule in work.also:
            continue
        said = (
            f"{arrival.rule} ({', '.join(dict.fromkeys(named)) or 'no address'}): {arrival.alert['message']}"
        )
        false.append(f"{work.name if work else 'nobody'}: {said}")
        if work:
            work.false.append(said)
    lost: dict[str, int] = {}
    for loss in losses.losses:
        lost[loss.reason] = lost.get(loss.reason, 0) + loss.count
    ring = {name: counts["lost"] for name, counts in status.get("engine", {}).get("lines", {}).items()}
    return DailyScore(everything, false, about_us, lost, ring, usage.shares, seconds, errors)
