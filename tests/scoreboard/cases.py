"""The attacks: what is run, which rules must find it, and which others tell the truth about it too."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lab import wait_until

from scoreboard.field import Field, Site, unpacked

HERE = Path(__file__).resolve().parent
#: Seconds that one run of a tool may take unless its row says otherwise.
LIMIT_S = 60.0
FLOOD_S = 5.0


@dataclass(frozen=True)
class Place:
    """Where a row happens: its laboratory, its site and family, and whether its alert has already come."""

    field: Field
    site: Site
    family: int
    found: Callable[[], bool] = lambda: False
    flood_s: float = FLOOD_S

    @property
    def source(self) -> str:
        return self.site.source(self.family)

    @property
    def target(self) -> str:
        return self.site.target(self.family)

    @property
    def url(self) -> str:
        return f"http://[{self.target}]/" if self.family == 6 else f"http://{self.target}/"

    def run(
        self, argv: Sequence[str], limit_s: float = LIMIT_S, *, good: Sequence[int] = (0,), at: str = ""
    ) -> str:
        return self.field.run(at or self.site.name, argv, limit_s, good=good)


Attack = Callable[[Place], None]


@dataclass(frozen=True)
class Row:
    """One attack over one family."""

    name: str
    family: int
    attack: Attack
    #: One of these rules must raise an alert.
    expect: frozenset[str]
    #: These may: what they say is true as well.
    also: frozenset[str] = frozenset()
    #: together: several at a time; alone: nothing else but the slow ones; slow: from the beginning on, beside all.
    phase: str = "together"
    #: The attack sends with sources that are not its own: an alert may name them.
    forged: bool = False
    #: Addresses that this row's site has more, at both ends.
    more: int = 0
    needs: tuple[str, ...] = ()
    #: Part of the short form in ``make test``.
    short: bool = False
    #: The first packet leaves the host.
    outbound: bool = False
    note: str = ""

    @property
    def id(self) -> str:
        return f"{self.name}, IPv{self.family}"


SCAN = frozenset(
    {
        "tcp-port-scan",
        "tcp-port-scan-minute",
        "tcp-port-scan-slow",
        "tcp-port-scan-day",
        "tcp-scan-sequential",
    }
)
ANY_SCAN = "1-60"


def rules(*names: str) -> frozenset[str]:
    return frozenset(names)


def both(row: Row) -> Iterator[Row]:
    """The row over IPv4 and over IPv6."""
    yield row
    yield replace(row, family=6)


# -- scans


def nmap(*options: str, limit_s: float = LIMIT_S) -> Attack:
    def attack(place: Place) -> None:
        six = ["-6"] if place.family == 6 else []
        place.run(["nmap", *six, "-n", "-Pn", "--max-retries", "1", *options, place.target], limit_s)

    return attack


def slow_nmap(delay: str, ports: str, limit_s: float) -> Attack:
    """One port at a time with a pause; ended when its alert has come."""

    def attack(place: Place) -> None:
        six = ["-6"] if place.family == 6 else []
        argv = ["nmap", *six, "-n", "-Pn", "-sS", "--max-retries", "0", "--scan-delay", delay, "-p", ports]
        place.field.run(place.site.name, [*argv, place.target], limit_s, until=place.found)

    return attack


def decoys(names: Sequence[str]) -> Attack:
    """With decoys: the host has a way back to all of them."""

    def attack(place: Place) -> None:
        with place.field.gateway(place.site, place.family):
            nmap("-sS", "-p", ANY_SCAN, "-D", ",".join([*names, "ME"]))(place)

    return attack


def neighbours(place: Place) -> None:
    """Decoys of the attacker's own IPv6 network."""
    net = place.source.rpartition(":")[0]
    decoys([f"{net}:{n}" for n in range(50, 58)])(place)


def ping_sweep(place: Place) -> None:
    six = ["-6"] if place.family == 6 else []
    argv = ["nmap", *six, "-n", "-sn", "-PE", "--disable-arp-ping"]
    place.run([*argv, place.target, *place.site.more_targets(place.family)])


def port_sweep(place: Place) -> None:
    six = ["-6"] if place.family == 6 else []
    argv = ["nmap", *six, "-n", "-Pn", "-sS", "--max-retries", "1", "-p", "23"]
    place.run([*argv, *place.site.more_targets(place.family)])


def distributed(place: Place) -> None:
    """Ten sources, three ports each, one after another."""
    six = ["-6"] if place.family == 6 else []
    for n, source in enumerate(place.site.more_sources(place.family)):
        ports = f"{3000 + 3 * n}-{3002 + 3 * n}"
        argv = [
            "nmap",
            *six,
            "-n",
            "-Pn",
            "-sS",
            "--max-retries",
            "0",
            "-S",
            source,
            "-e",
            place.site.own.device,
        ]
        place.run([*argv, "-p", ports, place.target], 20)


def outbound(place: Place) -> None:
    six = ["-6"] if place.family == 6 else []
    place.run(["nmap", *six, "-n", "-Pn", "-sT", "-p", ANY_SCAN, place.source], at="host")


def scans() -> Iterator[Row]:
    # First, since it takes longest: a host answers a wrong protocol once a second.
    yield from both(Row("nmap -sO", 4, nmap("-sO", limit_s=20), rules("ip-protocol-scan"), short=True))
    stealth = {"-sF": "fin", "-sN": "null", "-sX": "xmas"}
    for option in ("-sS", "-sT", "-sF", "-sN", "-sX", "-sA", "-sW", "-sM"):
        name = stealth.get(option)
        if name:
            expect = rules(f"tcp-stealth-scan-{name}")
        else:
            expect = SCAN if option in ("-sS", "-sT") else rules("tcp-ack-scan")
        # Closed ports answer FIN, NULL and XMAS with a refusal: first contacts that fail.
        also = SCAN if expect == SCAN else rules("tcp-scan-sequential")
        row = Row(
            f"nmap {option}",
            4,
            nmap(option, "-p", ANY_SCAN),
            expect,
            also,
            short=option not in ("-sW", "-sM"),
        )
        yield from both(row)
    yield from both(
        Row("nmap -sU", 4, nmap("-sU", "-p", "1-40"), rules("udp-scan"), rules("udp-scan-slow"), short=True)
    )
    for pace, ports in (("-T2", "1-40"), ("-T3", "1-1000"), ("-T4", "1-1000"), ("-T5", "1-1000")):
        yield from both(Row(f"nmap -sS {pace}", 4, nmap("-sS", pace, "-p", ports), SCAN, SCAN))
    cut = SCAN | rules("tcp-stealth-scan-null", "tcp-stealth-scan-other")
    yield Row("nmap -sS -f", 4, nmap("-sS", "-f", "-p", ANY_SCAN), cut, cut, note="nmap fragments IPv4 only")
    true = SCAN | rules("distributed-scan")
    forged = Row(
        "nmap -sS -D RND:8", 4, decoys(["RND:8"]), rules("scan-with-decoys"), true, forged=True, short=True
    )
    # nmap makes no random IPv6 addresses; the probe and the rules take a /64 for one source.
    others = [f"2001:db8:d{n}::{n}" for n in range(1, 9)]
    near = rules("scan-with-decoys", *SCAN)
    yield forged
    yield replace(forged, name="nmap -sS -D, 8 networks", family=6, attack=decoys(others))
    yield replace(
        forged, name="nmap -sS -D, in its own /64", family=6, attack=neighbours, expect=near, short=False
    )
    yield from both(
        Row("nmap -sS --data-length 24", 4, nmap("-sS", "--data-length", "24", "-p", ANY_SCAN), SCAN, SCAN)
    )
    yield from both(Row("nmap -sS --source-port 53", 4, nmap("-sS", "-g", "53", "-p", ANY_SCAN), SCAN, SCAN))
    yield from both(Row("nmap -sn -PE, 9 addresses", 4, ping_sweep, rules("ping-sweep"), more=8, short=True))
    yield from both(
        Row("nmap -sS, 1 port of 8 addresses", 4, port_sweep, rules("tcp-sweep"), SCAN, more=8, short=True)
    )
    ten = Row("10 sources, 3 ports each", 4, distributed, rules("distributed-scan"), forged=True, more=10)
    yield from both(ten)
    yield from both(
        Row("nmap -sT from this host", 4, outbound, rules("outbound-port-scan"), outbound=True, short=True)
    )
    slow = [("8 ports a minute", "7.5s", "1-60"), ("-T1 (a port every 15 s)", "15s", "1-60")]
    for name, delay, ports in [*slow, ("a port every 30 s", "30s", "1-30")]:
        attack = slow_nmap(delay, ports, 640)
        yield from both(Row(f"nmap -sS, {name}", 4, attack, SCAN, SCAN, phase="slow"))


# -- floods


def hping(*options: str) -> Attack:
    """As fast as it can; the host can answer forged sources."""

    def attack(place: Place) -> None:
        with place.field.gateway(place.site, 4):
            place.run(["hping3", "-q", "-n", "--flood", *options, place.target], place.flood_s, good=(0, 1))

    return attack


def nping(*options: str) -> Attack:
    """For IPv6, which hping3 does not have."""

    def attack(place: Place) -> None:
        argv = ["nping", "-6", "--no-capture", "--hide-sent", "-q", "--rate", "200000", "-c", "2000000"]
        place.run([*argv, *options, place.target], place.flood_s, good=(0, 1))

    return attack


def forge(kind: str, source: str = "") -> Attack:
    """By a sender of ours, from the attacker's own address or from random ones."""

    def attack(place: Place) -> None:
        words = place.field.lab.ip("host", "-o", "link", "show", "dev", place.site.host.device).split()
        mac = words[words.index("link/ether") + 1]
        argv = [sys.executable, str(HERE / "forge.py"), kind, place.site.own.device, mac]
        port = {"syn": "80", "udp": "9999", "icmp": "0"}[kind]
        with place.field.gateway(place.site, 6):
            place.run(
                [*argv, source or place.source, place.target, port, str(place.flood_s)], place.flood_s + 5
            )

    return attack


def floods() -> Iterator[Row]:
    def row(name: str, family: int, attack: Attack, kind: str, **more: object) -> Row:
        base = Row(
            name, family, attack, rules(kind, f"{kind}-source"), rules(kind, f"{kind}-source"), phase="alone"
        )
        return replace(base, **more)  # type: ignore[arg-type]

    syn = ("-S", "-p", "80")
    nginx = ("nginx",)
    yield row(
        "hping3 SYN, random sources",
        4,
        hping(*syn, "--rand-source"),
        "syn-flood",
        forged=True,
        needs=nginx,
        short=True,
    )
    yield row(
        "own sender SYN, random sources", 6, forge("syn", "random"), "syn-flood", forged=True, needs=nginx
    )
    yield row("hping3 SYN, one source", 4, hping(*syn), "syn-flood", needs=nginx)
    yield row(
        "nping SYN, one source", 6, nping("--tcp", "--flags", "syn", "-p", "80"), "syn-flood", needs=nginx
    )
    yield row("hping3 UDP", 4, hping("-2", "-p", "9999"), "udp-flood", short=True)
    yield row("own sender UDP", 6, forge("udp"), "udp-flood")
    yield row("hping3 ICMP", 4, hping("-1"), "icmp-flood", short=True)
    yield row("own sender ICMP", 6, forge("icmp"), "icmp-flood")
    query = Row("dnsperf, full speed", 4, dns_flood, rules("dns-flood", "dns-flood-source"), phase="alone")
    yield from both(
        replace(query, also=query.expect | rules("udp-flood", "udp-flood-source"), needs=("unbound",))
    )
    web = Row(
        "wrk, full speed", 4, web_flood, rules("http-flood", "http-flood-source"), phase="alone", needs=nginx
    )
    yield from both(replace(web, also=web.expect))


# -- services


def dns_flood(place: Place) -> None:
    names = place.field.folder / f"names-{place.site.name}-{place.family}"
    names.write_text("".join(f"host{n}.example.com A\n" for n in range(1000)))
    argv = ["dnsperf", "-s", place.target, "-d", str(names), "-l", str(place.flood_s), "-c", "4"]
    place.run(unpacked(*argv), place.flood_s + 10)


def web_flood(place: Place) -> None:
    place.run(
        unpacked("wrk", "-t", "1", "-c", "64", "-d", f"{place.flood_s:.0f}s", place.url), place.flood_s + 10
    )


def tunnel_names(place: Place) -> None:
    """Names as a tunnel makes them: 400 different ones of 50 letters under one domain, 40 a second."""
    chance = random.Random(place.family)
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    names = place.field.folder / f"tunnel-{place.family}"
    labels = ("".join(chance.choices(letters, k=50)) for _ in range(400))
    names.write_text("".join(f"{label}.t.tunnel-test.com TXT\n" for label in labels))
    argv = ["dnsperf", "-s", place.target, "-d", str(names), "-n", "1", "-Q", "40", "-c", "1"]
    place.run(unpacked(*argv), 30)


def iodine(place: Place) -> None:
    """A real tunnel: this host is the client, the peer the server; 20 pings through it."""
    if not Path("/dev/net/tun").exists():
        raise AssertionError("iodine needs /dev/net/tun")
    lab, own = place.field.lab, place.source
    server = place.field.start(
        place.site.name,
        unpacked("iodined", "-f", "-c", "-P", "secret", "-d", "dns0", "10.99.0.1", "t.tunnel-test.org"),
    )
    client = place.field.start(
        "host",
        unpacked("iodine", "-f", "-r", "-T", "TXT", "-P", "secret", "-d", "dns0", own, "t.tunnel-test.org"),
    )
    try:
        wait_until(
            lambda: "10.99.0." in lab.run("host", ["ip", "-4", "address"]).stdout, 25, "the tunnel is up"
        )
        place.run(
            unpacked("ping", "-c", "20", "-i", "0.2", "-s", "600", "10.99.0.1"), 20, good=(0, 1), at="host"
        )
    finally:
        lab.stop(client)
        lab.stop(server)


def slowloris(place: Place) -> None:
    argv = ["slowhttptest", "-H", "-c", "200", "-r", "50", "-i", "5", "-l", "30", "-u", place.url]
    place.field.run(place.site.name, unpacked(*argv), 35, until=place.found, good=(0, 1))


def hold_connections(count: int, pause_s: float) -> Attack:
    """Opens connections, one after the other, and says nothing on them."""
    code = (
        "import resource, socket, sys, time\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))\n"
        "held = []\n"
        "for _ in range(int(sys.argv[2])):\n"
        "    held.append(socket.create_connection((sys.argv[1], 80), 5)); time.sleep(float(sys.argv[3]))\n"
        "time.sleep(10)\n"
    )

    def attack(place: Place) -> None:
        argv = [sys.executable, "-W", "ignore", "-c", code, place.target, str(count), str(pause_s)]
        place.field.run(place.site.name, argv, 30, until=place.found)

    return attack


def hydra(service: str, *options: str, tasks: int = 4) -> Attack:
    def attack(place: Place) -> None:
        words = place.field.folder / f"words-{place.site.name}-{place.family}"
        words.write_text("".join(f"wrong{n}\n" for n in range(200)))
        six = ["-6"] if place.family == 6 else []
        target = f"[{place.target}]" if place.family == 6 else place.target
        argv = ["hydra", *six, "-I", "-t", str(tasks), *options, "-P", str(words), f"{service}://{target}"]
        place.field.run(
            place.site.name, argv, LIMIT_S, until=place.found, good=(0, 255), cwd=place.field.folder
        )

    return attack


def service_attacks() -> Iterator[Row]:
    dns = Row("dnsperf, names of a tunnel", 4, tunnel_names, rules("dns-tunnel"), needs=("unbound",))
    yield from both(dns)
    yield Row(
        "iodine from this host",
        4,
        iodine,
        rules("dns-tunnel"),
        outbound=True,
        note="iodine's tunnel needs IPv4",
    )
    web = Row(
        "slowhttptest -H", 4, slowloris, rules("slowloris"), rules("connection-exhaustion"), needs=("nginx",)
    )
    yield from both(web)
    full, slow = rules("connection-exhaustion"), hold_connections(1500, 0.004)
    held = Row("1500 connections, 200 a second", 4, slow, full, needs=("nginx",), short=True)
    yield from both(held)
    yield from both(
        replace(held, name="1200 connections at once", attack=hold_connections(1200, 0), short=False)
    )
    yield from both(
        Row("hydra -t 32 redis", 4, hydra("redis", tasks=32), rules("service-brute-force"), needs=("redis",))
    )
    yield from both(
        Row(
            "hydra ssh",
            4,
            hydra("ssh", "-l", "root"),
            rules("ssh-brute-force"),
            rules("service-brute-force"),
            needs=("sshd",),
        )
    )


ROWS: tuple[Row, ...] = tuple(row for group in (scans(), floods(), service_attacks()) for row in group)
SHORT: tuple[Row, ...] = tuple(row for row in ROWS if row.short)
