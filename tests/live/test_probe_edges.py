"""Where probes go wrong: odd frames, devices that show a packet twice, floods, processes killed inside PAM.

All three versions of bpftrace watch the same traffic at once; a case is told by its destination port.
"""

import collections
import json
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from frames import (
    ACK,
    FIN,
    HOP_BY_HOP,
    OPTIONS,
    RST,
    SYN,
    Wire,
    fragment,
    hardware_address,
    ip4,
    ip6,
    tcp,
    vlan,
)
from lab import Lab, wait_until
from test_probes import PAM, VERSIONS, RunningProbe, in_root, knock, on_all_versions, settle

from kwsiem.derive import as_ip
from kwsiem.sensor.catalog import pam_target

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def watched():
    """The probe net on all versions, after all the traffic of this module's cases."""
    with Lab("host", "peer") as lab:
        for name in ("box1", "box2", "away"):
            lab.add(name)
        ends = lab.bridge("host", "br0", "box1", "box2")
        prepare(lab)
        probes = on_all_versions(lab, "net")  # as they are shipped
        odd_frames(lab)
        ordinary_connections(lab)
        devices(lab, ends)
        settle(list(probes.values()))
        before = {version: len(probe.events) for version, probe in probes.items()}
        sent = flood(lab)
        settle(list(probes.values()))
        yield lab, probes, ends, before, sent
        for probe in probes.values():
            probe.stop()


@pytest.fixture(params=list(VERSIONS))
def seen(request, watched):
    """Counts the events of a kind and a destination port before the flood."""
    _, probes, _, before, _ = watched
    events = probes[request.param].events[: before[request.param]]

    def look(kind: str, port: int) -> list:
        return [e for e in events if e.KIND.name == kind and e.destination_port == port]

    return look


def prepare(lab: Lab) -> None:
    """Macvlans (one of the host's own, one in another namespace), forwarding, a promiscuous bridge."""
    lower, port = lab.link("host", "peer")
    lab.ip("host", "link", "add", "mac0", "link", lower.device, "type", "macvlan", "mode", "bridge")
    lab.address("host", "mac0", "198.18.9.1/24")
    lab.ip("host", "link", "set", "mac0", "up")
    lab.ip("host", "link", "add", "mac1", "link", lower.device, "type", "macvlan", "mode", "bridge")
    lab.ip("host", "link", "set", "mac1", "netns", lab.full("away"))
    lab.address("away", "mac1", "198.18.9.2/24")
    lab.ip("away", "link", "set", "mac1", "up")
    lab.address("peer", port.device, "198.18.9.9/24")
    lab.sysctl("host", "net/ipv4/ip_forward", "1")
    lab.ip("peer", "route", "add", "203.0.113.0/24", "via", lab.ip4("host"))
    lab.ip("box1", "route", "add", "default", "via", "203.0.113.1")
    lab.ip("host", "link", "set", "br0", "promisc", "on")


def odd_frames(lab: Lab) -> None:
    me, host, me6, host6 = lab.ip4("peer"), lab.ip4("host"), lab.ip6("peer"), lab.ip6("host")
    host_mac = hardware_address(lab, "host", "eth0")
    wire = Wire(lab, "peer", "eth0", host_mac.hex())
    four = lambda port, flags=SYN: tcp(me, host, 999, port, flags)  # noqa: E731
    six = lambda port, flags=SYN: tcp(me6, host6, 999, port, flags)  # noqa: E731
    for tags, port in (((0x8100,), 8001), ((0x88A8, 0x8100), 8002)):
        ethertype, packet = vlan(0x0800, ip4(me, host, four(port)), *tags)
        wire.send(packet, ethertype)
    ethertype, packet = vlan(0x86DD, ip6(me6, host6, six(8003)), 0x8100)
    wire.send(packet, ethertype)
    wire.send(ip4(me, host, four(8004), options=b"\1" * 40))
    wire.send(ip6(me6, host6, six(8005), [HOP_BY_HOP, *[OPTIONS] * 3, fragment(0, True), OPTIONS]))
    wire.send(ip6(me6, host6, six(8006), [HOP_BY_HOP, *[OPTIONS] * 6]))
    wire.send(ip6(me6, host6, six(8007), [fragment(1, True)]))
    wire.send(ip4(me, host, four(8008), fragment=0x2003))
    wire.send(ip4(me, host, four(8009)[:8], fragment=0x2000))
    wire.send(ip6(me6, host6, six(8010)[:8], [fragment(0, True)]))
    # Cut off, and not a fragment: what stands behind the end is not to be read as flags.
    wire.send(ip4(me, host, four(8011)[:12]))
    wire.send(ip4(me, host, four(8012))[:32])
    wire.send(ip4(me, host, four(8013)), target=bytes.fromhex("020000000001"))
    for port, flags in ((8021, SYN | FIN), (8022, SYN | RST), (8023, FIN | 32), (8024, SYN | FIN | ACK)):
        wire.send(ip4(me, host, four(port, flags)))
        wire.send(ip6(me6, host6, six(port, flags)))
    for port, flags in ((8031, ACK), (8032, SYN | ACK), (8033, RST), (8034, RST | ACK), (8035, FIN | ACK)):
        wire.send(ip4(me, host, four(port, flags)))
    wire.close()


def ordinary_connections(lab: Lab) -> None:
    """A dual-stack server that is spoken to, and one that ends the connection by a reset."""
    with lab.inside("host"):
        server = socket.create_server(("::", 8101), family=socket.AF_INET6, dualstack_ipv6=True)
    with server:
        for name, target in (("peer", lab.ip4("host")), ("peer", lab.ip6("host")), ("host", "127.0.0.1")):
            with lab.inside(name), socket.create_connection((target, 8101), 5) as client:
                accepted, _ = server.accept()
                with accepted:
                    client.sendall(b"x" * 100_000)
                    assert len(accepted.recv(100_000, socket.MSG_WAITALL)) == 100_000
                    if target == lab.ip6("host"):
                        linger = struct.pack("ii", 1, 0)
                        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    with lab.inside("peer"):
        server = socket.create_server(("0.0.0.0", 8102))
    with server:
        knock(lab, "host", lab.ip4("peer"), 8102)
    knock(lab, "host", "127.0.0.1", 8103)


def devices(lab: Lab, ends: tuple) -> None:
    _, box1, box2 = ends
    knock(lab, "box1", box2.ip4, 8201)
    knock(lab, "peer", box1.ip4, 8202)
    rule = "table ip kw { chain pre { type nat hook prerouting priority -100; tcp dport 8205 dnat to %s:8206; }; }"
    lab.run("host", ["nft", rule % box1.ip4])
    knock(lab, "peer", lab.ip4("host"), 8205)
    knock(lab, "peer", "198.18.9.1", 8203)
    knock(lab, "peer", "198.18.9.2", 8204)


def flood(lab: Lab) -> int:
    """SYNs from 12,000 forged sources, half of them to one port and half to as many; between them real knocks."""
    host = lab.ip4("host")
    lab.run("host", ["sh", "-c", "ip route add blackhole 10.0.0.0/8"])
    wire = Wire(lab, "peer", "eth0", hardware_address(lab, "host", "eth0").hex())
    packets = [
        ip4(source, host, tcp(source, host, 1, 8301 if n < 6000 else 10_000 + n, SYN))
        for n, source in enumerate(f"10.{n >> 8}.{n & 255}.1" for n in range(12_000))
    ]
    with lab.inside("host"):
        server = socket.create_server(("0.0.0.0", 8302))
    with server:
        for n, packet in enumerate(packets):
            wire.send(packet)
            if n in KNOCKS:
                knock(lab, "peer", host, 8302, 40_000 + n)
    wire.close()
    return len(packets) + 2 * len(KNOCKS)


#: After how many packets of the flood somebody real knocks.
KNOCKS = (2500, 4000, 5999, 8500, 10_000, 11_999)


@pytest.mark.parametrize("port", [8001, 8002, 8003, 8004, 8005])
def test_a_syn_behind_tags_options_and_extension_headers_counts_once(seen, port):
    (event,) = seen("tcp.syn", port)
    assert (event.source_port, event.tcp_flags, event.observer_ingress_interface_name) == (999, SYN, "eth0")


@pytest.mark.parametrize("port", [8006, 8007, 8008, 8011, 8012, 8013])
def test_later_fragments_cut_headers_and_frames_for_others_are_nothing(seen, port):
    """Seven extension headers are one more than is looked through."""
    assert not seen("tcp.syn", port) + seen("tcp.probe", port)


@pytest.mark.parametrize("port", [8009, 8010])
def test_a_header_cut_in_two_by_fragmentation_is_a_probe(seen, port):
    (event,) = seen("tcp.probe", port)
    assert event.tcp_flags == 0
    assert not seen("tcp.syn", port)


@pytest.mark.parametrize(("port", "flags"), [(8021, 3), (8022, 6), (8023, 33), (8024, 19)])
def test_impossible_flags_are_probes_in_both_families(seen, port, flags):
    events = seen("tcp.probe", port)
    assert [e.tcp_flags for e in events] == [flags, flags]
    assert {":" in e.source_ip for e in events} == {True, False}
    assert not seen("tcp.syn", port)


def test_ordinary_flags_are_neither_syn_nor_probe(seen):
    for port in range(8031, 8036):
        assert not seen("tcp.syn", port) + seen("tcp.probe", port)


def test_a_stray_ack_is_refused_with_a_bare_reset_and_a_reset_is_not_answered(seen):
    flags = {port: [e.tcp_flags for e in seen("tcp.refused", port)] for port in range(8031, 8036)}
    assert flags == {8031: [4], 8032: [4], 8033: [], 8034: [], 8035: [4]}


def test_a_dual_stack_server_sees_ipv4_as_ipv4_and_an_abort_is_no_refusal(seen, watched):
    lab = watched[0]
    opened = sorted((e.source_ip, e.destination_ip) for e in seen("tcp.open", 8101))
    assert opened == sorted(
        [
            (lab.ip4("peer"), lab.ip4("host")),
            (as_ip(lab.ip6("peer")), as_ip(lab.ip6("host"))),
            ("127.0.0.1", "127.0.0.1"),
        ]
    )
    assert len(seen("tcp.syn", 8101)) == 3
    assert not seen("tcp.probe", 8101) + seen("tcp.refused", 8101)


def test_outbound_connections_are_not_inbound_ones(seen):
    assert not seen("tcp.open", 8102) + seen("tcp.syn", 8102)


def test_loopback_counts_once(seen):
    (syn,), (refused,) = seen("tcp.syn", 8103), seen("tcp.refused", 8103)
    assert (syn.source_ip, syn.destination_ip, syn.observer_ingress_interface_name) == (
        *("127.0.0.1", "127.0.0.1"),
        "lo",
    )
    assert (refused.source_ip, refused.source_port) == ("127.0.0.1", syn.source_port)


def test_a_promiscuous_bridge_shows_nothing_of_its_containers(seen):
    assert not seen("tcp.syn", 8201) + seen("tcp.refused", 8201)


def test_what_is_routed_to_a_container_counts_once_on_its_way_in(seen):
    assert [e.observer_ingress_interface_name for e in seen("tcp.syn", 8202)] == ["eth0"]
    assert not seen("tcp.refused", 8202)


def test_what_is_passed_on_is_told_once_under_the_addresses_it_came_with(seen, watched):
    lab, _, ends, *_ = watched
    (routed,), (published,) = seen("tcp.forward", 8202), seen("tcp.forward", 8205)
    assert (routed.source_ip, routed.destination_ip) == (lab.ip4("peer"), ends[1].ip4)
    assert (published.source_ip, published.destination_ip) == (lab.ip4("peer"), lab.ip4("host"))
    assert published.source_port == seen("tcp.syn", 8205)[0].source_port
    assert {e.observer_egress_interface_name for e in (routed, published)} == {"br0"}
    assert not seen("tcp.forward", 8206) + seen("tcp.syn", 8206) + seen("tcp.forward", 8203)


def test_a_macvlan_counts_once_and_only_our_own_refuses(seen):
    assert len(seen("tcp.syn", 8203)) == 1
    assert len(seen("tcp.refused", 8203)) == 1
    assert len(seen("tcp.syn", 8204)) == 1  # the header says so: not told apart by namespace
    assert not seen("tcp.refused", 8204)


@pytest.mark.parametrize("version", list(VERSIONS))
def test_a_forged_flood_is_cut_and_counted_and_hides_nobody_real(watched, version):
    lab, probes, _, before, sent = watched
    events = probes[version].events[before[version] :]
    syns = [e for e in events if e.KIND.name == "tcp.syn"]
    lost = collections.Counter()
    for event in events:
        if event.KIND.name == "sensor.lost":
            lost[event.event_reason] += event.event_count
    assert len(syns) + lost["budget"] + lost["aggregated"] == sent
    assert len(syns) <= 2000 * 8
    real = [e.destination_port for e in syns if e.source_ip == lab.ip4("peer")]
    assert real == [port for n in KNOCKS for port in (8302, 40_000 + n)]
    assert len([e for e in events if e.KIND.name == "tcp.open"]) == len(KNOCKS)
    assert probes[version].decoder.rejected == {}


@pytest.mark.parametrize("version", list(VERSIONS))
def test_a_flood_is_told_as_a_rate_with_its_number_of_sources(watched, version):
    lab, probes, _, before, _ = watched
    rates = [e for e in probes[version].events[before[version] :] if e.KIND.name == "flow.rate"]
    assert {(e.flow_class, e.destination_ip) for e in rates} == {(1, lab.ip4("host"))}
    assert sum(e.event_count for e in rates) >= 3000
    for rate in rates:
        assert rate.flow_packets & (rate.flow_packets - 1) == 0
        assert rate.event_count == (256 if rate.flow_packets == 256 else rate.flow_packets // 2)
        assert rate.flow_packets - len(KNOCKS) <= rate.flow_half_open <= rate.flow_packets
        # The first 63 of a second are not looked at for their source.
        assert abs(rate.flow_sources - (rate.flow_packets - 63)) <= 0.1 * rate.flow_packets + 2 * len(KNOCKS)


# -- PAM --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=list(VERSIONS))
def pam(request):
    with Lab("host") as lab:
        probe = RunningProbe(lab, "auth_pam", request.param, quick=True)
        yield probe, VERSIONS[request.param]
        probe.stop()


def start(root: Path | None, name: str, *, uid: int = 0) -> subprocess.Popen:
    """A program of that user that is inside pam_authenticate, where it waits for a password."""
    if root is None:
        script = PAM.replace("lambda *_: 19", "wait").replace("print(", f"os.setresuid(0, {uid}, 0)\nprint(")
        script = script.replace("conv, handle", WAIT + "conv, handle")
        argv = [sys.executable, "-c", script, name, "198.51.100.9"]
    else:
        user = ["setpriv", f"--reuid={uid}", "--clear-groups"] if uid else []
        argv = in_root(root, *user, "pamtester", "-I", "rhost=198.51.100.9", "other", name, "authenticate")
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert child.stdout.read(1), f"{argv} ended"
    return child


WAIT = """def wait(*_):
    print("asked", flush=True)
    sys.stdin.readline()
    return 19
"""


def end(child: subprocess.Popen) -> None:
    child.kill()
    child.communicate()


def test_a_caller_without_root_is_told_from_a_daemon(pam):
    """Anybody may call PAM and claim any remote host: the event says with whose rights it was asked."""
    probe, root = pam
    for uid in (65534, 0):
        name = f"kw-caller-{uid}"
        child = start(root, name, uid=uid)
        child.communicate(b"wrong\n", timeout=30)
        wait_until(lambda name=name: probe.seen("auth.attempt", user_name=name), 10)
        (event,) = probe.seen("auth.attempt", user_name=name)
        assert (event.process_user_id, event.process_pid) == (uid, child.pid)
        assert (event.event_outcome, event.source_address) == ("failure", "198.51.100.9")


@pytest.mark.parametrize("version", list(VERSIONS))
def test_a_process_killed_inside_pam_leaves_nothing_behind(version):
    """Two wait for a password, one is killed: at its end bpftrace shows the other as the only one inside."""
    root = VERSIONS[version]
    with Lab("host") as lab, RawProbe(lab, "auth_pam", root) as probe:
        waiting, killed = start(root, "kw-waits"), start(root, "kw-killed")
        end(killed)
        probe.beat()
        inside = probe.maps()["@handle"]
        end(waiting)
    assert list(inside) == [str(waiting.pid)]


class RawProbe:
    """A probe with the maps that bpftrace shows at its end; RunningProbe turns them off where it can."""

    def __init__(self, lab: Lab, name: str, root: Path | None) -> None:
        text = (Path(__file__).parents[2] / "probes" / f"{name}.bt").read_text()
        argv = in_root(root, "bpftrace", "-q", "-f", "json", "-e", text, *pam_target())
        self.lab = lab
        self.child = lab.popen("host", argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def __enter__(self):
        self.beat()
        return self

    def __exit__(self, *_) -> None:
        self.lab.stop(self.child)

    def beat(self) -> None:
        """Waits for the next heartbeat."""
        line = b"\n"
        while b'"data": [0,' not in line:
            line = self.child.stdout.readline()
            assert line, "bpftrace ended"

    def maps(self) -> dict:
        """Ends bpftrace; its non-empty maps by name."""
        self.child.send_signal(signal.SIGINT)
        lines = self.child.communicate(timeout=10)[0].splitlines()
        records = [json.loads(line) for line in lines if line.strip()]
        return {k: v for r in records if r["type"] == "map" for k, v in r["data"].items()}
