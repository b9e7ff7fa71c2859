"""The firewall on the real kernel, in namespaces of its own: real packets from a peer, foreign hands, a kill.

``host`` runs the firewall and routes for ``box`` (a container behind a bridge); ``peer`` is the offender.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from lab import Lab, wait_until

pytestmark = pytest.mark.live

AGENT = Path(__file__).with_name("firewall_agent.py")
ROOT = Path(__file__).parents[2]
PORT, FORWARDED, DNATED = 2222, 3333, 4444
LONG = 3600
SOURCES = ["198.51.100.2", "198.51.100.50", "2001:db8::2", "2001:db8::50"]


class Refused(Exception):
    """The firewall raised an error."""


class Agent:
    """A firewall in the namespace ``host``, in a process of its own."""

    def __init__(self, lab, setting, *, cut_answers=False, most_entries=1_048_576):
        home = os.stat("/proc/self/ns/net").st_ino
        assert lab.inode("host") != home
        argv = [sys.executable, str(AGENT), str(home), setting, str(int(cut_answers)), str(most_entries)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.child = lab.popen("host", argv, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)
        self.lab = lab
        self.setting = setting

    def ask(self, verb, arguments=()):
        self.child.stdin.write(json.dumps([verb, arguments]) + "\n")
        self.child.stdin.flush()
        answer = json.loads(self.child.stdout.readline())
        if "error" in answer:
            raise Refused(answer["error"])
        self.took_s = answer["took_s"]
        return answer["answer"]

    def block(self, *networks, for_s=LONG):
        return self.ask("block", [(network, for_s) for network in networks])

    def packets(self):
        return self.ask("counters")["packets"]

    def damage(self):
        return self.ask("damage")

    def stop(self):
        if self.child.poll() is None and not self.child.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.ask("close", True)
        self.lab.stop(self.child)


@pytest.fixture(scope="module", params=["iptables-nft", "iptables-legacy", "nftables"])
def setting(request):
    return request.param


@pytest.fixture(scope="module")
def lab(setting):
    with Lab("host", "peer") as lab:
        lab.add("box")
        bridge, box = lab.bridge("host", "br0", "box")
        for key in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            lab.sysctl("host", key, "1")
        for family, via, home in (("-4", bridge.ip4, "198.51.100.1"), ("-6", bridge.ip6, "2001:db8:0::1")):
            lab.ip("box", family, "route", "add", "default", "via", via)
            lab.ip("peer", family, "route", "add", "default", "via", home)
        device = lab.end("peer").device
        lab.address("peer", device, "198.51.100.50/24")
        lab.address("peer", device, "2001:db8:0::50/64")
        lab.box = box
        translate(lab)
        with contextlib.ExitStack() as stack:
            for name, port in (("host", PORT), ("box", FORWARDED), ("peer", PORT)):
                with lab.inside(name):
                    server = socket.create_server(
                        ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512
                    )
                stack.enter_context(server)
                setattr(lab, f"{name}_server", server)
            yield lab


class Shared:
    """One agent for many tests; it is started again when a test has ended it."""

    def __init__(self, lab, setting):
        self.lab, self.setting = lab, setting
        self.running = None

    def fresh(self):
        if self.running is None or self.running.child.poll() is not None:
            self.running = Agent(self.lab, self.setting)
        self.running.ask("repair", [])
        return self.running

    def stop(self):
        if self.running:
            self.running.stop()
            self.running = None


@pytest.fixture(scope="module")
def shared(lab, setting):
    shared = Shared(lab, setting)
    try:
        yield shared
    finally:
        shared.stop()


@pytest.fixture
def agent(shared):
    return shared.fresh()


@pytest.fixture
def start(shared, lab, setting):
    """Starts an agent with settings of its own; no other one is there."""
    shared.stop()
    started = []

    def start(**settings):
        started.append(Agent(lab, setting, **settings))
        started[-1].ask("init")
        return started[-1]

    yield start
    for agent in started:
        agent.stop()


def sh(lab, command):
    return lab.run("host", ["sh", "-c", command]).stdout


def translate(lab):
    """What a container engine does for a published port."""
    rules = (
        "add table ip published",
        "add chain ip published pre { type nat hook prerouting priority -100; }",
        "flush chain ip published pre",
        f"add rule ip published pre tcp dport {DNATED} dnat to {lab.box.ip4}:{FORWARDED}",
    )
    lab.run("host", ["nft", "-f", "-"], input="\n".join(rules) + "\n")


def connect(lab, address, port=PORT, source="", start="peer", timeout=5.0):
    with lab.inside(start):
        return socket.create_connection((address, port), timeout, (source, 0) if source else None)


def passes(lab, address, port=PORT, source="", start="peer"):
    connect(lab, address, port, source, start).close()
    return True


def dropped(agent, address, port=PORT, source="", start="peer"):
    """Not only no answer: the rule has counted the packet."""
    before = agent.packets()
    with pytest.raises(TimeoutError), connect(agent.lab, address, port, source, start, timeout=0.3):
        pass
    assert agent.packets() > before
    return True


def accept(server):
    """The newest connection of a server whose queue may hold older ones that ended."""
    server.settimeout(5)
    return server.accept()[0]


def drain(server):
    server.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while True:
            server.accept()[0].close()


def fresh(lab, agent):
    """Without what earlier connections have left in queues, sockets and conntrack."""
    for server in (lab.host_server, lab.box_server, lab.peer_server):
        drain(server)
    agent.ask("cut", SOURCES)


# -- packets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "host", "source", "other"),
    [
        ("198.51.100.2", "ip4", "198.51.100.2", "198.51.100.50"),
        ("198.51.100.48/29", "ip4", "198.51.100.50", "198.51.100.2"),
        ("2001:db8::2", "ip6", "2001:db8::2", "2001:db8::50"),
        ("2001:db8::40/122", "ip6", "2001:db8::50", "2001:db8::2"),
    ],
)
def test_a_blocked_source_is_dropped_and_its_neighbour_passes(lab, agent, network, host, source, other):
    address = getattr(lab, host)("host")
    assert passes(lab, address, source=source)
    assert agent.block(network) == {}
    assert dropped(agent, address, source=source)
    assert passes(lab, address, source=other)
    assert agent.ask("release", [network]) == {}
    assert passes(lab, address, source=source)


def test_a_forwarded_and_a_translated_connection_are_covered(lab, agent):
    for address, port in ((lab.box.ip4, FORWARDED), (lab.box.ip6, FORWARDED), (lab.ip4("host"), DNATED)):
        assert passes(lab, address, port)
    agent.block("198.51.100.2", "2001:db8::2")
    assert dropped(agent, lab.box.ip4, FORWARDED)
    assert dropped(agent, lab.box.ip6, FORWARDED, "2001:db8::2")
    assert dropped(agent, lab.ip4("host"), DNATED)
    drain(lab.box_server)


def test_udp_and_icmp_are_dropped_too(lab, agent):
    agent.block("198.51.100.2")
    lab.run(
        "peer", ["hping3", "-q", "-c", "3", "-i", "u1000", "--udp", "-p", "53", lab.ip4("host")], check=False
    )
    lab.run("peer", ["hping3", "-q", "-c", "3", "-i", "u1000", "--icmp", lab.ip4("host")], check=False)
    assert agent.packets() >= 6


def test_a_block_ends_by_itself(lab, agent):
    agent.block("198.51.100.2", "2001:db8::2", "198.51.100.0/28", "2001:db8::/124", for_s=1)
    assert len(agent.ask("entries")) == 4
    assert wait_until(lambda: not agent.ask("entries"), 5)
    assert passes(lab, lab.ip4("host"))
    assert passes(lab, lab.ip6("host"))
    assert agent.damage() == ""


def test_a_block_is_prolonged_and_never_shortened(agent):
    for for_s, least, most in ((600, 590, 600), (5, 580, 600), (3000, 2990, 3000)):
        assert agent.block("192.0.2.7", "192.0.2.0/28", "2001:db8:9::/64", for_s=for_s) == {}
        left = agent.ask("entries")
        assert set(left) == {"192.0.2.7", "192.0.2.0/28", "2001:db8:9::/64"}
        assert all(least <= left_s <= most for left_s in left.values()), left
    assert agent.block("192.0.2.7", for_s=10**12) == {}
    assert 2_147_400 < agent.ask("entries")["192.0.2.7"] <= 2_147_483


def test_networks_may_lie_in_each_other(agent):
    nested = ["10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.1"]
    assert agent.block(*nested) == {}
    assert agent.ask("release", ["10.1.0.0/16"]) == {}
    assert set(agent.ask("entries")) == {"10.0.0.0/8", "10.1.1.0/24", "10.1.1.1"}


def test_without_a_mangle_table_the_chains_of_the_filter_table_are_used(lab, setting, shared):
    if setting == "nftables":
        return
    shared.stop()
    variant = setting.partition("-")[2]
    sh(lab, f"iptables-{variant} -N DOCKER-USER; iptables-{variant} -I FORWARD -j DOCKER-USER")
    agent = Agent(lab, f"filter-{variant}")
    try:
        agent.ask("init")
        agent.block("198.51.100.2", "2001:db8::2")
        assert dropped(agent, lab.ip4("host"))
        assert dropped(agent, lab.ip6("host"), source="2001:db8::2")
        assert dropped(agent, lab.box.ip4, FORWARDED)
        assert dropped(agent, lab.ip4("host"), DNATED)
        assert passes(lab, lab.ip4("peer"), start="host")
        sh(lab, f"iptables-{variant} -F DOCKER-USER")
        assert "DOCKER-USER" in wait_until(agent.damage, 3)
        agent.ask("init")
        assert agent.damage() == ""
        agent.stop()
        assert "KWSIEM" not in sh(lab, f"iptables-{variant}-save; ip6tables-{variant}-save")
        assert passes(lab, lab.ip4("host"))
    finally:
        agent.stop()
        sh(lab, f"iptables-{variant} -D FORWARD -j DOCKER-USER; iptables-{variant} -X DOCKER-USER")


# -- our own connections -----------------------------------------------------------------------------------


def test_answers_to_our_own_connections_pass(lab, agent):
    agent.block("198.51.100.2", "2001:db8::2")
    for start in ("host", "box"):
        assert passes(lab, lab.ip4("peer"), start=start)
    assert passes(lab, lab.ip6("peer"), start="host")
    assert dropped(agent, lab.ip4("host"))
    drain(lab.peer_server)


def test_answers_are_cut_where_that_is_asked(lab, start):
    agent = start(cut_answers=True)
    agent.block("198.51.100.2")
    assert dropped(agent, lab.ip4("peer"), start="host")


@pytest.mark.parametrize("host", ["ip4", "ip6"])
def test_an_open_connection_ends_on_both_ends_and_others_stay(lab, agent, host):
    fresh(lab, agent)
    address, mine = getattr(lab, host)("host"), getattr(lab, host)("peer")
    other = {"ip4": "198.51.100.50", "ip6": "2001:db8::50"}[host]
    with (
        connect(lab, address, source=mine) as offender, accept(lab.host_server) as served,
        connect(lab, address, source=other) as neighbour, accept(lab.host_server) as served_too,
        connect(lab, mine, start="host") as own, accept(lab.peer_server) as remote,
    ):  # fmt: skip
        agent.block(mine)
        assert agent.ask("cut", [mine]) == {"sockets": 1, "flows": 1}
        for end in (offender, served):
            end.settimeout(5)
            with pytest.raises(OSError, match=r"reset|abort"):
                end.recv(1)
        for one, two in ((neighbour, served_too), (own, remote), (remote, own)):
            one.sendall(b"still here")
            two.settimeout(5)
            assert two.recv(10) == b"still here"
        assert agent.ask("cut", [mine]) == {"sockets": 0, "flows": 0}


def test_many_are_cut_in_one_call(lab, agent):
    fresh(lab, agent)
    with contextlib.ExitStack() as stack:
        ends = []
        for source in SOURCES:
            address = lab.ip6("host") if ":" in source else lab.ip4("host")
            ends.append(stack.enter_context(connect(lab, address, source=source)))
            ends.append(stack.enter_context(accept(lab.host_server)))
        found = agent.ask(
            "cut", ["198.51.100.2", "198.51.100.48/29", "2001:db8::2", "2001:db8::50/124", "192.0.2.1"]
        )
        assert found == {"sockets": 4, "flows": 4}
        for end in ends:
            end.settimeout(5)
            with pytest.raises(OSError, match=r"reset|abort"):
                end.recv(1)


def test_a_forwarded_connection_that_was_cut_is_not_begun_anew_by_its_server(lab, agent):
    """Its conntrack entry is gone: the server's next packet would make it look like one of ours."""
    fresh(lab, agent)
    with connect(lab, lab.box.ip4, FORWARDED) as offender, accept(lab.box_server) as served:
        agent.block("198.51.100.2")
        assert agent.ask("cut", ["198.51.100.2"])["flows"] >= 1
        before = agent.packets()
        served.sendall(b"from the server")
        wait_until(lambda: agent.packets() > before, 5)
        offender.sendall(b"from the offender")
        served.settimeout(1)
        with pytest.raises(TimeoutError):
            served.recv(1)


# -- limits and hostile input ------------------------------------------------------------------------------


def test_a_full_set_is_the_error_of_each_entry_that_did_not_fit(start):
    agent = start(most_entries=64)
    asked = {f"192.0.2.{number}" for number in range(1, 255)}
    refused = agent.block(*asked)
    held = agent.ask("entries")
    assert 60 <= len(held) < 254
    assert asked == held.keys() | refused.keys()
    assert not held.keys() & refused.keys()
    assert all("is full" in why for why in refused.values())
    assert agent.damage() == ""


HOSTILE = [
    "1.2.3.4; flush", "1.2.3.4\nflush kwsiem4", "1.2.3.4 timeout 0", "localhost", "", "1.2.3.4/33", "0.0.0.0/0",
    "::/0", "1" * 5000, "fe80::1%eth0", "1.2.3.4-1.2.3.9", "1.2.3.4,5.6.7.8", "::ffff:1.2.3.4", "224.0.0.1",
    "255.255.255.255", "10.0.0.1/8", "\u0663.1.1.1", "1.2.3.4 ", "-exist", None, 16909060, ["1.2.3.4"],
]  # fmt: skip


def test_hostile_input_is_refused_here_too(agent):
    for network in HOSTILE:
        assert len(agent.ask("block", [(network, LONG), ("192.0.2.9", LONG)])) == 1, network
        assert len(agent.ask("release", [network])) == 1, network
        with pytest.raises(Refused):
            agent.ask("cut", [network])
        assert list(agent.ask("entries")) == ["192.0.2.9"]
    assert agent.damage() == ""


def test_a_time_that_is_none_is_refused(agent):
    for timeout_s in (0, -1, 1.5, "10", None, True):
        assert len(agent.ask("block", [("192.0.2.9", timeout_s)])) == 1, timeout_s
    assert agent.ask("entries") == {}


# -- foreign hands -----------------------------------------------------------------------------------------

IPTABLES_DAMAGE = [
    "ipset flush",
    "ipset flush kwsiem6net",
    "ipset del kwsiem4 198.51.100.2",
    "ipset add kwsiem4 192.0.2.99",
    "IPTABLES -t mangle -F; IP6TABLES -t mangle -F",
    "IPTABLES -t mangle -F KWSIEM",
    "IPTABLES -t mangle -D PREROUTING -j KWSIEM",
    "IP6TABLES -t mangle -D PREROUTING -j KWSIEM",
    "IPTABLES -t mangle -I PREROUTING -s 192.0.2.0/24 -j ACCEPT",
    "IPTABLES -t mangle -I KWSIEM -j RETURN",
    "IPTABLES -t mangle -D KWSIEM 2",
    "IPTABLES-restore < SAVED",
    "for c in IPTABLES IP6TABLES; do $c -t mangle -F; $c -t mangle -X; done; until ipset destroy; do sleep 0.01; done",
]
NFT_DAMAGE = [
    "nft flush ruleset",
    "nft delete table inet kwsiem",
    "nft flush set inet kwsiem hosts4",
    "nft delete element inet kwsiem hosts4 '{ 198.51.100.2 }'",
    "nft add element inet kwsiem hosts4 '{ 192.0.2.99 }'",
    "nft flush chain inet kwsiem prerouting",
    "nft insert rule inet kwsiem prerouting accept",
    "nft delete chain inet kwsiem prerouting",
]
WANTED = [("198.51.100.2", LONG), ("192.0.2.0/28", LONG), ("2001:db8::2", LONG), ("2001:db8:9::/64", LONG)]


@pytest.mark.parametrize("number", range(len(IPTABLES_DAMAGE) + 1))
def test_damage_is_noticed_and_repaired(lab, agent, setting, number, tmp_path):
    commands = NFT_DAMAGE if setting == "nftables" else IPTABLES_DAMAGE
    if setting == "iptables-nft":
        commands = [*commands, "nft flush ruleset"]
    if number >= len(commands):
        return  # the longest list names the numbers
    variant = "legacy" if "legacy" in setting else "nft"
    saved = tmp_path / "rules.v4"
    saved.write_text("*mangle\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n")
    command = commands[number].replace("IP6TABLES", f"ip6tables-{variant}")
    command = command.replace("IPTABLES", f"iptables-{variant}").replace("SAVED", str(saved))
    assert agent.ask("repair", WANTED) == {}
    assert agent.damage() == ""
    sh(lab, command)
    told = wait_until(agent.damage, 3)
    if command.startswith("nft ") or (setting == "iptables-nft" and "ipset" not in command):
        assert "(pid " in told, told
    assert agent.ask("repair", WANTED) == {}
    assert agent.damage() == ""
    assert agent.ask("entries").keys() == {network for network, _ in WANTED}
    assert dropped(agent, lab.ip4("host"))
    assert dropped(agent, lab.ip6("host"), source="2001:db8::2")
    translate(lab)  # nft flush ruleset took it as well


def test_many_foreign_changes_elsewhere_are_no_damage(lab, agent):
    agent.block("198.51.100.2")
    sh(lab, "ipset create mine hash:ip; ipset add mine 1.1.1.1; ipset destroy mine;"
        "for i in 1 2 3; do nft add table ip mine; nft delete table ip mine; done")  # fmt: skip
    assert agent.damage() == ""


def test_a_repair_takes_out_what_is_not_wanted(agent):
    agent.block("192.0.2.1", "192.0.2.2", "192.0.2.16/28")
    assert agent.ask("repair", [("192.0.2.2", LONG), ("192.0.2.3", LONG)]) == {}
    assert agent.ask("entries").keys() == {"192.0.2.2", "192.0.2.3"}
    assert agent.damage() == ""


# -- life --------------------------------------------------------------------------------------------------


def test_blocks_outlive_a_kill_and_are_taken_over(lab, start):
    killed = start()
    killed.block("198.51.100.2", "192.0.2.0/28", for_s=500)
    os.kill(killed.child.pid, signal.SIGKILL)
    lab.stop(killed.child)
    successor = start()
    assert dropped(successor, lab.ip4("host"))
    assert all(490 < left_s <= 500 for left_s in successor.ask("entries").values())
    assert successor.damage() == ""
    assert successor.block("198.51.100.2", for_s=5) == {}
    assert successor.ask("entries")["198.51.100.2"] > 490
    assert successor.ask("repair", [("192.0.2.0/28", 500)]) == {}
    assert passes(lab, lab.ip4("host"))


def test_closing_without_removing_leaves_the_blocks(lab, start):
    closed = start()
    closed.block("198.51.100.2")
    closed.ask("close", False)
    lab.stop(closed.child)
    with pytest.raises(TimeoutError), connect(lab, lab.ip4("host"), timeout=0.3):
        pass
    start().stop()
    assert passes(lab, lab.ip4("host"))


@pytest.mark.parametrize("foreign", [False, True])
def test_removing_leaves_nothing_behind(lab, setting, start, foreign):
    suffix = "legacy" if "legacy" in setting else "nft"
    tables = [(command, table) for command in ("iptables", "ip6tables") for table in ("mangle", "filter")]
    if foreign:
        for command, table in tables:
            sh(
                lab,
                f"{command}-{suffix} -t {table} -A {'INPUT' if table == 'filter' else 'PREROUTING'} -j ACCEPT",
            )
        sh(lab, "ipset create mine hash:ip; ipset add mine 1.1.1.1")
    look = (f"ipset save | sed 's/initval.*//'; for c in iptables ip6tables; do $c-{suffix}-save -t mangle | grep -v '^#'; done;"
        "nft list ruleset | sed 's/packets [0-9]* bytes [0-9]*//'")  # fmt: skip
    try:
        before = sh(lab, look).replace("[", "\n[")
        agent = start()
        agent.block("198.51.100.2", "192.0.2.0/28", "2001:db8::2", "2001:db8:9::/64")
        assert sh(lab, look) != before
        agent.stop()
        strip = [line for line in before.split("\n") if not line.startswith("[")]
        after = [line for line in sh(lab, look).replace("[", "\n[").split("\n") if not line.startswith("[")]
        assert after == strip
    finally:
        if foreign:
            for command, table in tables:
                sh(lab, f"{command}-{suffix} -t {table} -F")
            sh(lab, "ipset destroy mine")


def test_a_killed_channel_comes_back(lab, agent, setting):
    if setting == "nftables":
        return  # it has no child
    agent.block("192.0.2.1")
    pid = agent.ask("pid")
    os.kill(pid, signal.SIGKILL)
    assert agent.block("192.0.2.2", "192.0.2.3") == {}
    assert agent.ask("pid") not in (0, pid)
    os.kill(agent.ask("pid"), signal.SIGKILL)
    assert agent.damage() == ""
    assert agent.ask("entries").keys() == {"192.0.2.1", "192.0.2.2", "192.0.2.3"}


def test_a_channel_that_hangs_is_an_error_in_bounded_time_and_then_replaced(agent, setting):
    if setting == "nftables":
        return
    pid = agent.ask("pid")
    os.kill(pid, signal.SIGSTOP)
    refused = agent.block("192.0.2.2")
    assert "did not answer" in refused["192.0.2.2"]
    assert agent.took_s < 5
    assert agent.block("192.0.2.2") == {}
    assert agent.ask("pid") != pid


def test_what_was_dropped_is_counted(lab, agent):
    agent.block("198.51.100.2")
    before = agent.ask("counters")["bytes"]
    assert dropped(agent, lab.ip4("host"))
    assert agent.ask("counters")["bytes"] >= before + 40


def test_flushing_lets_all_in_again(lab, agent):
    agent.block("198.51.100.2", "192.0.2.0/28", "2001:db8::2", "2001:db8:9::/64")
    agent.ask("flush")
    assert agent.ask("entries") == {}
    assert agent.damage() == ""
    assert passes(lab, lab.ip4("host"))
