"""The shipped probes on bpftrace 0.17 (this host), 0.23 (Debian 13) and 0.27 (Debian sid), with real traffic."""

import collections
import contextlib
import itertools
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from appliance import listen
from lab import Lab, clean_environment, wait_until

from kwsiem.decode import LineDecoder
from kwsiem.derive import as_ip
from kwsiem.event import event_fields
from kwsiem.messages import ProbeKinds
from kwsiem.sensor.catalog import lint_probe, pam_target, read_probe
from kwsiem.sensor.child import environment

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

SOURCE = Path(__file__).resolve().parents[2]
ROOTS = Path(os.environ.get("KWSIEM_TEST_ROOTS", "/var/cache/kwsiem-test-roots"))
VERSIONS = {"host": None, "debian13": ROOTS / "trixie", "sid": ROOTS / "sid"}


def in_root(root: Path | None, *argv: str) -> list[str]:
    """The command in another Debian, which sees this kernel through mounts that end with the command."""
    if root is None:
        return list(argv)
    if not (root.parent / f"{root.name}.done").exists():
        pytest.fail(f"{root} is not there; build it: packaging/test-roots.sh")
    mounts = " && ".join(f"mount --rbind /{name} {root}/{name}" for name in ("proc", "sys", "dev"))
    return ["unshare", "--mount", "sh", "-ec", f"{mounts} && exec chroot {root} {shlex.join(argv)}"]


#: One more heartbeat, ten times a second: what was printed before is known to have been read without a long wait.
QUICK = "\ninterval:ms:100 { print((0, nsecs)); }\n"
#: So many of those are longer than a budget of a probe lasts (2^30 ns), and than what was lost stays untold (1 s).
SECOND = 13


class RunningProbe:
    """One probe under one bpftrace, its lines decoded as they come; ``quick``: with more heartbeats."""

    def __init__(
        self,
        lab: Lab,
        name: str,
        version: str,
        module: tuple[str, str] | None = None,
        quick: bool = False,
    ) -> None:
        self.spec = read_probe(SOURCE / "probes" / f"{name}.bt")
        self.decoder = LineDecoder(ProbeKinds(name, dict(self.spec.kinds)))
        self.events: list = []
        self.heartbeats = 0
        self.settled = 5 if quick else 2
        self.raw = b""
        root = VERSIONS[version]
        self._folder = tempfile.TemporaryDirectory(prefix="kwsiem-probe-", dir=(root or Path("/")) / "tmp")
        path = Path(self._folder.name) / self.spec.path.name
        path.write_text(self.spec.path.read_text() + (QUICK if quick else ""))
        said = subprocess.run(
            in_root(root, "bpftrace", "--version"), capture_output=True, text=True, check=True
        )
        number = tuple(int(part) for part in said.stdout.split("v")[-1].strip().split("."))
        self.version = (*number, 0)[:3]
        values = {
            "netns": str(lab.inode("host")),
            "seed": "1234567",
            **dict(zip(("pam_module", "pam_function"), module or pam_target(), strict=True)),
        }
        arguments = [values[name] for name in self.spec.arguments]
        inner = path.relative_to(root or "/")
        self._child = lab.popen(
            "host",
            in_root(root, "bpftrace", "-q", "-f", "json", f"/{inner}", *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_environment(**environment(self.version, self.spec.environment)),
        )
        self._lab = lab
        threading.Thread(target=self._read, daemon=True).start()
        wait_until(lambda: self.heartbeats or self._child.poll() is not None, 40, f"{name} on {version}")
        assert self._child.poll() is None, self._child.stderr.read().decode()

    def _read(self) -> None:
        # Of our own: whoever stops the child closes the other while we may still read.
        with open(os.dup(self._child.stdout.fileno()), "rb", buffering=0) as pipe:
            while data := pipe.read(65536):
                self.raw += data
                before = self.decoder.heartbeat_ns
                self.events += self.decoder.feed(data)
                self.heartbeats += self.decoder.heartbeat_ns != before

    def settle(self) -> None:
        """Until all that was printed before now has been read."""
        settle([self])

    def seen(self, kind: str, **wanted: object) -> list:
        return [
            e
            for e in self.events
            if e.KIND.name == kind and all(getattr(e, k) == v for k, v in wanted.items())
        ]

    def stop(self) -> None:
        self._lab.stop(self._child)
        self._folder.cleanup()


def on_all_versions(lab: Lab, name: str, quick: bool = False) -> dict[str, RunningProbe]:
    """The probe on each version, started at the same time."""
    with ThreadPoolExecutor(len(VERSIONS)) as pool:
        started = {v: pool.submit(RunningProbe, lab, name, v, quick=quick) for v in VERSIONS}
    return {version: probe.result() for version, probe in started.items()}


@pytest.fixture(scope="module")
def net():
    """The probe net, on all versions at once, in a namespace with a peer, a bridge with two containers, and a namespace of others."""
    with Lab("host", "peer") as lab:
        for name in ("box1", "box2", "other1", "other2"):
            lab.add(name)
        ends = lab.bridge("host", "br0", "box1", "box2")
        lab.link("other1", "other2")
        probes = list(on_all_versions(lab, "net", quick=True).values())
        yield lab, probes, ends
        for probe in probes:
            probe.stop()


def settle(probes: list[RunningProbe], beats: int = 0) -> None:
    """Until all have told what they saw until now: two heartbeats of each, or five of the quick ones."""
    targets = [probe.heartbeats + (beats or probe.settled) for probe in probes]
    wait_until(
        lambda: all(probe.heartbeats >= target for probe, target in zip(probes, targets, strict=True)), 10
    )


def arrived(probe: RunningProbe, transport: str) -> int:
    """All packets of a sort that the probe says have arrived, printed singly or not."""
    return sum(e.event_count for e in probe.seen("flow.total", network_transport=transport))


def knock(lab: Lab, name: str, address: str, *ports: int) -> list[int]:
    """One connection attempt to each port; the local ports they came from."""
    used = []
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with lab.inside(name):
        for port in ports:
            with socket.socket(family) as sock:
                sock.settimeout(2)
                sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 0))
                used.append(sock.getsockname()[1])
                sock.connect_ex((address, port))
    return used


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_each_of_23_syns_counts_exactly_once_with_its_values(net, family):
    lab, probes, _ = net
    target, source = (as_ip(getattr(lab, family)(name)) for name in ("host", "peer"))
    ports = range(2000, 2023)
    settle(probes, 2 * SECOND)  # totals come with the second after
    before = [arrived(probe, "tcp") for probe in probes]
    local = knock(lab, "peer", target, *ports)
    settle(probes)
    for probe in probes:
        syns = probe.seen("tcp.syn", destination_ip=target, source_ip=source)
        syns = [e for e in syns if e.destination_port in ports]
        assert [(e.source_port, e.destination_port) for e in syns] == list(zip(local, ports, strict=True))
        assert {e.tcp_flags & 0x17 for e in syns} == {2}
        assert {e.observer_ingress_interface_name for e in syns} == {lab.end("host").device}
        refused = [e for e in probe.seen("tcp.refused", source_ip=source) if e.destination_port in ports]
        assert [(e.source_port, e.destination_port, e.destination_ip) for e in refused] == [
            (a, b, target) for a, b in zip(local, ports, strict=True)
        ]
        assert {e.tcp_flags for e in refused} == {20}
        assert not [e for e in probe.seen("tcp.open", source_ip=source) if e.destination_port in ports]
    settle(probes, 2 * SECOND)
    assert [arrived(probe, "tcp") - count for probe, count in zip(probes, before, strict=True)] == [23] * 3


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_a_completed_handshake_is_opened_once_and_not_refused(net, family):
    lab, probes, _ = net
    target, source = (as_ip(getattr(lab, family)(name)) for name in ("host", "peer"))
    port = 3004 if family == "ip4" else 3006
    for _ in listen(lab, "host", port):
        local = knock(lab, "peer", target, *[port] * 5)
    settle(probes)
    for probe in probes:
        opened = [e for e in probe.seen("tcp.open", source_ip=source) if e.destination_port == port]
        assert [(e.source_port, e.destination_ip) for e in opened] == [(p, target) for p in local]
        assert not [e for e in probe.seen("tcp.refused") if e.destination_port == port]


@pytest.mark.parametrize(("option", "flags"), [("-sN", 0), ("-sF", 1), ("-sX", 41)])
def test_segments_that_no_stack_sends_are_probes_with_their_flags(net, option, flags):
    lab, probes, _ = net
    ports = range(4000, 4005)
    argv = ["nmap", "-n", "-Pn", "--max-retries", "0", option, "-p", "4000-4004", lab.ip4("host")]
    lab.run("peer", argv)
    settle(probes)
    for probe in probes:
        seen = [e for e in probe.seen("tcp.probe", tcp_flags=flags) if e.destination_port in ports]
        assert sorted(e.destination_port for e in seen) == list(ports)
        assert {e.source_ip for e in seen} == {lab.ip4("peer")}


def test_a_bridge_counts_a_packet_for_the_host_once_and_one_between_containers_not_at_all(net):
    lab, probes, (bridge, box1, box2) = net
    knock(lab, "box1", bridge.ip4, 5001)
    knock(lab, "box1", bridge.ip6, 5002)
    knock(lab, "box1", box2.ip4, 5003)
    knock(lab, "box2", box1.ip6, 5004)
    settle(probes)
    for probe in probes:
        counts = collections.Counter(
            e.destination_port for e in probe.seen("tcp.syn") if 5000 < e.destination_port < 5010
        )
        assert counts == {5001: 1, 5002: 1}
        assert {e.observer_ingress_interface_name for e in probe.seen("tcp.syn", destination_port=5001)} == {
            "br0"
        }
        refused = collections.Counter(
            e.destination_port for e in probe.seen("tcp.refused") if 5000 < e.destination_port < 5010
        )
        assert refused == {5001: 1, 5002: 1}


def test_other_namespaces_are_not_seen(net):
    lab, probes, _ = net
    knock(lab, "other1", lab.ip4("other2"), *range(6000, 6010))
    settle(probes)
    for probe in probes:
        assert not [e for e in probe.events if 6000 <= getattr(e, "destination_port", 0) < 6010]


def test_a_burst_of_one_source_is_cut_and_told_in_growing_numbers(net):
    """The sum of events and of what was held back is what was sent; 100 in a second are single events."""
    lab, probes, _ = net
    target = lab.ip4("host")
    send = (
        "import socket, struct, sys\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)\n"
        "for n in range(1000):\n"
        "    s.sendto(struct.pack('!HHIIBBHHH', 1024 + n, 7000, n, 0, 80, 2, 1024, 0, 0), (sys.argv[1], 0))\n"
    )
    settle(probes, 2 * SECOND)  # no other test has taken of the budget, and all totals are told
    before = [arrived(probe, "tcp") for probe in probes]
    lab.run("peer", [sys.executable, "-c", send, target])
    settle(probes, 2 * SECOND)
    assert [arrived(probe, "tcp") - count for probe, count in zip(probes, before, strict=True)] == [1000] * 3
    for probe in probes:
        single = len(probe.seen("tcp.syn", destination_port=7000))
        lost = probe.seen("sensor.lost")
        assert 100 <= single <= 200  # one second, or two when the burst lies across their border
        assert single + sum(e.event_count for e in lost) == 1000
        assert {e.event_reason for e in lost} == {"aggregated"}
        flows = [e for e in probe.seen("flow.source", flow_class=1) if e.destination_port == 7000]
        assert sum(e.event_count for e in flows) >= 256
        assert {e.source_ip for e in flows} == {lab.ip4("peer")}
        assert {(e.flow_packets, e.event_count) for e in flows} <= {(128, 128), (256, 128), (512, 256)}
        assert all(e.flow_half_open == e.flow_packets for e in flows)
        assert probe.seen("flow.rate", flow_class=1)


def question(name: bytes, number: int) -> bytes:
    """A DNS query in wire format (RFC 1035 4.1)."""
    wire = b"".join(bytes([len(label)]) + label for label in name.split(b".")) + b"\0"
    return b"\x12\x34\x01\0\0\1\0\0\0\0\0\0" + wire + number.to_bytes(2, "big") + b"\0\1"


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_questions_to_and_from_this_host_are_seen_with_name_and_type(net, family):
    lab, probes, _ = net
    host, peer = (as_ip(getattr(lab, family)(name)) for name in ("host", "peer"))
    for place, target in (("peer", host), ("host", peer)):
        with lab.inside(place):
            sock = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM)
        with sock:
            sock.sendto(question(b"www.Example.com", 28), (target, 53))
            sock.sendto(question(b"a" * 63 + b"." + b"b" * 60 + b".t.example.org", 16), (target, 53))
            sock.sendto(b"\x12\x34\x81" + question(b"answer.example.com", 1)[3:], (target, 53))
            sock.sendto(question(b"cut.example.com", 1)[:-6], (target, 53))
    settle(probes)
    for probe in probes:
        for kind, source, target in (("dns.query", peer, host), ("dns.lookup", host, peer)):
            asked = probe.seen(kind, source_ip=source, destination_ip=target)
            fields = [
                {"name": found["dns.question.name"], "type": found["dns.question.type"]}
                for found in map(event_fields, asked)
            ]
            assert fields[0] == {"name": "www.example.com", "type": "AAAA"}
            assert fields[1]["name"].endswith("b" * 40 + ".t.example.org")
            assert fields[1]["type"] == "TXT"
            assert len(asked) == 2


def test_a_datagram_to_a_closed_port_is_unreachable(net):
    lab, probes, _ = net
    for family, kind in (("ip4", socket.AF_INET), ("ip6", socket.AF_INET6)):
        with lab.inside("peer"), socket.socket(kind, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"x", (getattr(lab, family)("host"), 9001))
    settle(probes)
    for probe in probes:
        events = probe.seen("udp.unreachable", destination_port=9001)
        assert [(e.source_ip, e.destination_ip) for e in events] == [
            tuple(as_ip(getattr(lab, family)(name)) for name in ("peer", "host")) for family in ("ip4", "ip6")
        ]


def test_echo_requests_and_rare_protocols_are_seen(net):
    lab, probes, _ = net
    send = (
        "import socket, sys\n"
        "for family, number, data, target in (\n"
        "    (2, 1, bytes([8, 0, 0xf7, 0xff]) + bytes(28), sys.argv[1]), (10, 58, bytes([128]) + bytes(31), sys.argv[2]),\n"
        "    (2, 200, bytes(8), sys.argv[1]), (10, 201, bytes(8), sys.argv[2]), (2, 47, bytes(8), sys.argv[1])):\n"
        "    socket.socket(family, socket.SOCK_RAW, number).sendto(data, (target, 0))\n"
    )
    lab.run("peer", [sys.executable, "-W", "ignore", "-c", send, lab.ip4("host"), lab.ip6("host")])
    settle(probes)
    for probe in probes:
        echoes = [(e.source_ip, e.icmp_type) for e in probe.seen("icmp.echo")]
        assert echoes == [(lab.ip4("peer"), 8), (as_ip(lab.ip6("peer")), 128)]
        assert [e.network_iana_number for e in probe.seen("ip.probe")] == [200, 201]


REQUESTS = {
    b"GET /index.html?x=1 HTTP/1.1\r\nHost: a\r\nCookie: secret\r\n\r\n": (
        "GET /index.html?x=1 HTTP/1.1",
        False,
    ),
    b"GET /slow HTTP/1.1\r\nHost: a\r\n": ("GET /slow HTTP/1.1", True),
    b"POST /form HTTP/1.1\r\nContent-Length: 5\r\n\r\nhel": ("POST /form HTTP/1.1", False),
    b"GET /" + b"x" * 200 + b" HTTP/1.1\r\n\r\n": ("GET /" + "x" * 55, False),
    b"\x16\x03\x01 GET": None,
}
READ = {
    "recv": lambda sock: sock.recv(4096),
    "read": lambda sock: os.read(sock.fileno(), 4096),
    "readv": lambda sock: os.readv(sock.fileno(), [bytearray(4096)]),
    "recvmsg": lambda sock: sock.recvmsg(4096),
}


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_a_connection_is_told_from_its_handshake_over_its_request_to_its_end(net, family):
    """Whatever call the server reads with; nothing of a request is told beyond its first line."""
    lab, probes, _ = net
    host, peer = (as_ip(getattr(lab, family)(name)) for name in ("host", "peer"))
    with lab.inside("host"):
        server = socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
    ports = {}
    with server:
        for call, (text, expected) in itertools.product(READ, REQUESTS.items()):
            with lab.inside("peer"):
                client = socket.create_connection((host, 8080))
            ports[client.getsockname()[1]] = (expected, len(text))
            with client, server.accept()[0] as accepted:
                client.sendall(text)
                READ[call](accepted)
    settle(probes)
    for probe in probes:
        told = [
            e
            for e in probe.seen("http.request", source_ip=peer, destination_ip=host)
            if e.source_port in ports
        ]
        assert [(e.http_request_line[:60].rstrip("\r"), e.http_request_partial) for e in told] == [
            wanted for wanted, _ in ports.values() if wanted
        ]
        assert {(e.destination_port, e.process_pid) for e in told} == {(8080, os.getpid())}
        opened = [e for e in probe.seen("tcp.open", source_ip=peer) if e.source_port in ports]
        closed = [e for e in probe.seen("tcp.close", source_ip=peer) if e.source_port in ports]
        assert [e.source_port for e in opened] == [e.source_port for e in closed] == list(ports)
        assert {e.flow_connections for e in opened} == {1}
        for event, (_, length) in zip(closed, ports.values(), strict=True):
            assert event.source_bytes - length in (0, 1)  # the FIN counts when it came before
        for first, last in zip(opened, closed, strict=True):
            assert abs(last.ts_ns - first.ts_ns - last.event_duration) < 10**6
        assert probe.seen("socket.listen", server_ip="::", server_port=8080, process_pid=os.getpid())


def test_open_connections_of_a_source_are_counted_and_each_doubling_is_told(net):
    """More at once than a source may have single events in a second."""
    lab, probes, _ = net
    settle(probes, SECOND)
    before = [sum(e.event_count for e in probe.seen("sensor.lost")) for probe in probes]
    with lab.inside("host"):
        server = socket.create_server(("0.0.0.0", 8090), backlog=1000)
    with server, contextlib.ExitStack() as held, lab.inside("peer"):
        for _ in range(600):
            held.enter_context(socket.create_connection((lab.ip4("host"), 8090), 5))
    settle(probes, SECOND)
    for probe, lost in zip(probes, before, strict=True):
        told = [e.flow_connections for e in probe.seen("tcp.open", destination_port=8090)]
        assert told == sorted(set(told))
        assert told[:100] == list(range(1, 101))
        assert {256, 512} <= set(told)
        assert sum(e.event_count for e in probe.seen("sensor.lost")) > lost


def test_later_requests_of_a_connection_are_never_partial(net):
    lab, probes, _ = net
    with lab.inside("host"):
        server = socket.create_server(("0.0.0.0", 8091))
    with server:
        with lab.inside("peer"):
            client = socket.create_connection((lab.ip4("host"), 8091))
        with client, server.accept()[0] as accepted:
            for size in (10, 20, 300, 5):
                client.sendall(b"GET /" + b"y" * size + b" HTTP/1.1\r\n\r\n")
                accepted.recv(4096)
                accepted.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                client.recv(4096)
    settle(probes)
    for probe in probes:
        requests = probe.seen("http.request", destination_port=8091)
        assert [e.http_request_partial for e in requests] == [False] * 4


def test_a_local_process_that_connects_is_named(net):
    lab, probes, _ = net
    for address in (lab.ip4("peer"), lab.ip6("peer"), "127.0.0.1"):
        knock(lab, "host", address, 9100)
    settle(probes)
    for probe in probes:
        events = probe.seen("tcp.connect", destination_port=9100)
        assert [e.destination_ip for e in events] == [
            as_ip(lab.ip4("peer")),
            as_ip(lab.ip6("peer")),
            "127.0.0.1",
        ]
        assert {(e.process_pid, e.process_user_id) for e in events} == {(os.getpid(), 0)}
        assert {e.process_name for e in events} == {Path("/proc/self/comm").read_text().strip()}


def test_every_line_keeps_the_contract_of_the_header(net):
    """Last: nothing that was printed was rejected."""
    for probe in net[1]:
        assert probe.decoder.rejected == {}
        assert probe.decoder.received == probe.decoder.accepted
        assert probe.decoder.lost == 0
        assert lint_probe(probe.spec, probe.spec.path.read_text()) == []
        # That a SYN is passed on is looked at among the edges.
        kinds = {kind.name for number, kind in probe.spec.kinds.items() if number} - {"tcp.forward"}
        assert {e.KIND.name for e in probe.events} == kinds, probe.seen("tcp.forward")
    if Path("/etc/os-release").read_text().find("bookworm") >= 0:
        assert {probe.version[:2] for probe in net[1]} == {(0, 17), (0, 23), (0, 27)}


PAM = """
import ctypes, os, sys
pam = ctypes.CDLL("libpam.so.0")
CB = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
class Conv(ctypes.Structure):
    _fields_ = [("f", CB), ("d", ctypes.c_void_p)]
conv, handle = Conv(CB(lambda *_: 19), None), ctypes.c_void_p()
assert pam.pam_start(b"other", os.fsencode(sys.argv[1]), ctypes.byref(conv), ctypes.byref(handle)) == 0
assert pam.pam_set_item(handle, 4, os.fsencode(sys.argv[2])) == 0
print(os.getpid(), pam.pam_authenticate(handle, 0))
"""


@pytest.fixture(scope="module", params=list(VERSIONS))
def pam(request):
    with Lab("host") as lab:
        probe = RunningProbe(lab, "auth_pam", request.param, quick=True)

        def attempt(user: bytes, remote: str) -> None:
            """A failed authentication as that user from that host, with the libpam that the probe watches."""
            if request.param == "host":
                subprocess.run([sys.executable, "-c", PAM, user, remote], check=True, capture_output=True)
                return
            argv = in_root(
                VERSIONS[request.param], "pamtester", "-I", f"rhost={remote}", "other", "USER", "authenticate"
            )
            argv[-1] = argv[-1].replace("USER", shlex.quote(os.fsdecode(user)))
            subprocess.run(argv, input="wrong\n", text=True, check=False, capture_output=True, timeout=30)

        def success() -> None:
            argv = in_root(VERSIONS[request.param], "su", "nobody", "-s", "/bin/true")
            subprocess.run(argv, check=False, capture_output=True, timeout=30, stdin=subprocess.DEVNULL)

        yield probe, attempt, success
        probe.stop()


def test_a_failed_authentication_is_seen_with_all_its_facts(pam):
    probe, attempt, _ = pam
    attempt(b"kw-nobody", "198.51.100.77")
    wait_until(lambda: probe.seen("auth.attempt", user_name="kw-nobody"), 20)
    (event,) = probe.seen("auth.attempt", user_name="kw-nobody")
    assert event.event_outcome == "failure"
    assert event.service_name == "other"
    assert event.source_address == "198.51.100.77"
    assert event.pam_result > 0
    assert event.process_pid > 1
    assert event.process_user_id == 0


def test_a_success_is_a_success(pam):
    probe, _, success = pam
    success()
    wait_until(lambda: probe.seen("auth.attempt", service_name="su", event_outcome="success"), 20)
    event = probe.seen("auth.attempt", service_name="su", event_outcome="success")[-1]
    assert (event.user_name, event.pam_result) == ("nobody", 0)


def test_a_hostile_user_name_stays_in_its_field(pam):
    probe, attempt, _ = pam
    before = len(probe.seen("auth.attempt"))
    name = 'x"]}\n{"type":"value","data":[1,\'é\x01\\'
    attempt(name.encode() + b"\xff", "h")
    wait_until(lambda: len(probe.seen("auth.attempt")) > before, 20)
    probe.settle()
    assert [e.user_name for e in probe.seen("auth.attempt")[before:]] == [name + "\\xff"]
    assert probe.decoder.rejected == {}
