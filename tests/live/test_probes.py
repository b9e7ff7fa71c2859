"""The shipped probes on bpftrace 0.17 (this host), 0.23 (Debian 13) and 0.27 (Debian sid), with real traffic."""

import collections
import os
import shlex
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from appliance import listen
from lab import Lab, clean_environment, wait_until

from kwsiem.decode import LineDecoder
from kwsiem.derive import as_ip
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


class RunningProbe:
    """One probe under one bpftrace, its lines decoded as they come."""

    def __init__(self, lab: Lab, name: str, version: str, module: tuple[str, str] | None = None) -> None:
        self.spec = read_probe(SOURCE / "probes" / f"{name}.bt")
        self.decoder = LineDecoder(ProbeKinds(name, dict(self.spec.kinds)))
        self.events: list = []
        self.heartbeats = 0
        self.raw = b""
        root = VERSIONS[version]
        path = self.spec.path
        if root:
            path = root / "tmp" / path.name
            path.write_bytes(self.spec.path.read_bytes())
        said = subprocess.run(
            in_root(root, "bpftrace", "--version"), capture_output=True, text=True, check=True
        )
        number = tuple(int(part) for part in said.stdout.split("v")[-1].strip().split("."))
        self.version = (*number, 0)[:3]
        values = {
            "netns": str(lab.inode("host")),
            **dict(zip(("pam_module", "pam_function"), module or pam_target(), strict=True)),
        }
        arguments = [values[name] for name in self.spec.arguments]
        inner = str(path) if root is None else f"/tmp/{path.name}"
        self._child = lab.popen(
            "host",
            in_root(root, "bpftrace", "-q", "-f", "json", inner, *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_environment(**environment(self.version, self.spec.environment)),
        )
        self._lab = lab
        threading.Thread(target=self._read, daemon=True).start()
        wait_until(lambda: self.heartbeats or self._child.poll() is not None, 40, f"{name} on {version}")
        assert self._child.poll() is None, self._child.stderr.read().decode()

    def _read(self) -> None:
        while data := self._child.stdout.read1(65536):
            self.raw += data
            before = self.decoder.heartbeat_ns
            self.events += self.decoder.feed(data)
            self.heartbeats += self.decoder.heartbeat_ns != before

    def settle(self) -> None:
        """Until all that was printed before now has been read: two heartbeats later."""
        target = self.heartbeats + 2
        wait_until(lambda: self.heartbeats >= target, 10, "heartbeats")

    def seen(self, kind: str, **wanted: object) -> list:
        return [
            e
            for e in self.events
            if e.KIND.name == kind and all(getattr(e, k) == v for k, v in wanted.items())
        ]

    def stop(self) -> None:
        self._lab.stop(self._child)


@pytest.fixture(scope="module", params=list(VERSIONS))
def net(request):
    """net_tcp in a namespace with a peer, a bridge with two containers, and a namespace of others."""
    with Lab("host", "peer") as lab:
        for name in ("box1", "box2", "other1", "other2"):
            lab.add(name)
        ends = lab.bridge("host", "br0", "box1", "box2")
        lab.link("other1", "other2")
        probe = RunningProbe(lab, "net_tcp", request.param)
        yield lab, probe, ends
        probe.stop()


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
    lab, probe, _ = net
    target, source = (as_ip(getattr(lab, family)(name)) for name in ("host", "peer"))
    ports = range(2000, 2023)
    local = knock(lab, "peer", target, *ports)
    probe.settle()
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


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_a_completed_handshake_is_opened_once_and_not_refused(net, family):
    lab, probe, _ = net
    target, source = (as_ip(getattr(lab, family)(name)) for name in ("host", "peer"))
    port = 3004 if family == "ip4" else 3006
    for _ in listen(lab, "host", port):
        local = knock(lab, "peer", target, *[port] * 5)
    probe.settle()
    opened = [e for e in probe.seen("tcp.open", source_ip=source) if e.destination_port == port]
    assert [(e.source_port, e.destination_ip) for e in opened] == [(p, target) for p in local]
    assert not [e for e in probe.seen("tcp.refused") if e.destination_port == port]


@pytest.mark.parametrize(("option", "flags"), [("-sN", 0), ("-sF", 1), ("-sX", 41)])
def test_segments_that_no_stack_sends_are_probes_with_their_flags(net, option, flags):
    lab, probe, _ = net
    ports = range(4000, 4005)
    argv = ["nmap", "-n", "-Pn", "--max-retries", "0", option, "-p", "4000-4004", lab.ip4("host")]
    lab.run("peer", argv)
    probe.settle()
    seen = [e for e in probe.seen("tcp.probe", tcp_flags=flags) if e.destination_port in ports]
    assert sorted(e.destination_port for e in seen) == list(ports)
    assert {e.source_ip for e in seen} == {lab.ip4("peer")}


def test_a_bridge_counts_a_packet_for_the_host_once_and_one_between_containers_not_at_all(net):
    lab, probe, (bridge, box1, box2) = net
    knock(lab, "box1", bridge.ip4, 5001)
    knock(lab, "box1", bridge.ip6, 5002)
    knock(lab, "box1", box2.ip4, 5003)
    knock(lab, "box2", box1.ip6, 5004)
    probe.settle()
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
    lab, probe, _ = net
    knock(lab, "other1", lab.ip4("other2"), *range(6000, 6010))
    probe.settle()
    assert not [e for e in probe.events if 6000 <= getattr(e, "destination_port", 0) < 6010]


def test_a_burst_is_cut_to_the_budget_and_the_rest_is_counted(net):
    """The sum of events and of what was held back is what was sent; the budget is 100 in a second."""
    lab, probe, _ = net
    held_before = sum(e.event_count for e in probe.seen("sensor.lost"))
    target = lab.ip4("host")
    send = (
        "import socket, struct, sys\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)\n"
        "for n in range(1000):\n"
        "    s.sendto(struct.pack('!HHIIBBHHH', 1024 + n, 7000, n, 0, 80, 2, 1024, 0, 0), (sys.argv[1], 0))\n"
    )
    lab.run("peer", [sys.executable, "-c", send, target])
    probe.settle()
    single = len(probe.seen("tcp.syn", destination_port=7000))
    held = sum(e.event_count for e in probe.seen("sensor.lost")) - held_before
    assert 100 <= single <= 200  # one second, or two when the burst lies across a clearing
    assert single + held >= 1000
    assert {e.event_reason for e in probe.seen("sensor.lost")} == {"budget"}


def test_every_line_keeps_the_contract_of_the_header(net):
    """Last for each version: nothing that was printed was rejected, and heartbeats came each second."""
    _, probe, _ = net
    assert probe.decoder.rejected == {}
    assert probe.decoder.received == probe.decoder.accepted
    assert probe.decoder.lost == 0
    assert lint_probe(probe.spec, probe.spec.path.read_text()) == []
    assert {e.KIND.name for e in probe.events} == {k.name for n, k in probe.spec.kinds.items() if n}
    expected = {"host": (0, 17), "debian13": (0, 23), "sid": (0, 27)}
    if Path("/etc/os-release").read_text().find("bookworm") >= 0:
        assert probe.version[:2] in expected.values()


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
        probe = RunningProbe(lab, "auth_pam", request.param)

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
