import os
import socket

import pytest

from kwsiem.errors import OutputError
from kwsiem.outputs import datagram
from kwsiem.outputs.base import Rendered
from kwsiem.outputs.datagram import UdpOutput, UnixOutput

TIMEOUT_S = 5.0


def frame(message):
    return message + b"\n"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """On loopback an ICMP answer is there before send returns: nothing is to be waited for."""
    monkeypatch.setattr(datagram, "FIRST_ANSWER_S", 0.0)


@pytest.fixture
def receiver():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(TIMEOUT_S)
        yield sock


@pytest.fixture
def udp(receiver):
    output = UdpOutput("127.0.0.1", receiver.getsockname()[1], TIMEOUT_S)
    yield output
    output.close()


def test_udp_one_datagram_for_each_alert(receiver, udp, alerts):
    udp.open()
    udp.send(alerts("a", "b"))
    assert [receiver.recv(100), receiver.recv(100)] == [b"a", b"b"]
    udp.check()
    udp.close()
    udp.close()


def test_udp_over_ipv6(alerts):
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("::1", 0))
        receiver.settimeout(TIMEOUT_S)
        output = UdpOutput("::1", receiver.getsockname()[1], TIMEOUT_S)
        output.open()
        output.send(alerts("a"))
        assert receiver.recv(100) == b"a"
        output.close()


def test_udp_a_closed_port_is_noticed_with_the_very_datagram(receiver, udp, alerts):
    receiver.close()
    udp.open()
    with pytest.raises(OutputError, match="refused") as error:
        udp.send(alerts("a", "b"))
    assert not error.value.taken
    assert error.value.retryable


def test_udp_a_receiver_that_goes_away_is_noticed_by_the_idle_check(receiver, udp, alerts):
    udp.open()
    receiver.close()
    with pytest.raises(OutputError, match="refused"):
        udp.send(alerts("a"))
    udp.open()
    udp._socket.send(b"the answer to this one comes after send")
    with pytest.raises(OutputError, match="refused"):
        udp.check()


def test_udp_the_first_datagram_waits_for_an_answer_and_no_other(receiver, udp, alerts, monkeypatch):
    """A refusal from afar comes a round trip later: without the wait a whole batch would be lost."""
    waits = []

    class Poller:
        def register(self, *_):
            pass

        def poll(self, wait_ms):
            waits.append(wait_ms)

    monkeypatch.setattr(datagram, "FIRST_ANSWER_S", 0.2)
    monkeypatch.setattr(datagram.select, "poll", Poller)
    udp.open()
    udp.send(alerts("a", "b", "c"))
    udp.send(alerts("d"))
    assert waits == [200]
    udp.open()
    udp.send(alerts("e"))
    assert waits == [200, 200]


def test_udp_a_datagram_that_is_too_long_is_refused_for_good(receiver, udp, alerts):
    udp.open()
    with pytest.raises(OutputError, match="too long") as error:
        udp.send([*alerts("a"), Rendered("b", 5, b"x" * 70_000), *alerts("c")])
    assert not error.value.retryable
    assert error.value.taken == {0}
    assert list(error.value.refused) == [1]


@pytest.fixture
def clock(monkeypatch):
    """The output's clock stands still but for its own sleeps and what a test adds."""

    class Clock:
        now_s = 1000.0
        slept_s = 0.0

        def sleep_s(self, duration_s):
            self.now_s += duration_s
            self.slept_s += duration_s

    found = Clock()
    monkeypatch.setattr(datagram, "monotonic_s", lambda: found.now_s)
    monkeypatch.setattr(datagram, "sleep_s", found.sleep_s)
    return found


def test_udp_a_few_alerts_go_at_once(receiver, udp, clock, alerts):
    udp.open()
    udp.send(alerts(*["x" * 1000] * 20))
    assert clock.slept_s == 0


def test_udp_a_burst_fits_the_default_buffer_of_a_receiver(receiver, udp, clock):
    """What is sent without a pause fits into a buffer that nobody reads; what comes later is spread."""
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 212_992 // 2)  # the kernel doubles it
    udp.open()
    sent = 0
    while not clock.slept_s:
        udp.send([Rendered(str(sent), 5, b"%d " % sent + b"x" * 1000)])
        sent += 1
    assert sent >= 20
    got = [int(receiver.recv(2000).split()[0]) for _ in range(sent)]
    assert got == list(range(sent))
    for index in range(1000):
        udp.send([Rendered(str(index), 5, b"x" * 1000)])
    assert 800 < 1000 / clock.slept_s < 1200, "alerts a second"


@pytest.mark.parametrize("size", [200, 1024, 8192])
def test_udp_a_burst_of_any_size_of_datagram_fits(receiver, udp, clock, size):
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 212_992 // 2)
    udp.open()
    sent = 0
    while not clock.slept_s:
        udp.send([Rendered(str(sent), 5, b"x" * size)])
        sent += 1
    receiver.setblocking(False)
    got = 0
    try:
        while receiver.recv(10_000):
            got += 1
    except BlockingIOError:
        pass
    assert got == sent


def resolver(monkeypatch, *addresses):
    found = [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", address) for address in addresses]

    def look_up(*_args, **_kwargs):
        if not found:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return found

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return found


def test_udp_a_name_that_moves_is_followed(receiver, udp, clock, alerts, monkeypatch):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        other.settimeout(TIMEOUT_S)
        found = resolver(monkeypatch, receiver.getsockname())
        udp.open()
        udp.send(alerts("a"))
        found[:] = [(*found[0][:4], other.getsockname())]
        udp.send(alerts("b"))
        clock.now_s += datagram.LOOK_UP_S
        udp.send(alerts("c"))
        assert [receiver.recv(10), receiver.recv(10), other.recv(10)] == [b"a", b"b", b"c"]
        found.clear()
        clock.now_s += datagram.LOOK_UP_S
        udp.check()
        udp.send(alerts("d"))
        assert other.recv(10) == b"d", "the resolver is away: the address stays"


def test_udp_after_an_error_the_next_address_of_a_name_is_tried(receiver, udp, alerts, monkeypatch):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        nobody = gone.getsockname()
    resolver(monkeypatch, nobody, receiver.getsockname())
    udp.open()
    with pytest.raises(OutputError, match="refused"):
        udp.send(alerts("a"))
    udp.open()
    udp.send(alerts("a"))
    assert receiver.recv(10) == b"a"


def test_udp_an_unknown_host_is_an_error_that_can_be_retried(udp, monkeypatch):
    resolver(monkeypatch)
    with pytest.raises(OutputError, match="name resolution") as error:
        udp.open()
    assert error.value.retryable
    monkeypatch.undo()
    with pytest.raises(OutputError, match="label"):
        UdpOutput("x" * 70 + ".invalid", 514, TIMEOUT_S).open()


def test_unix_datagrams(tmp_path, alerts):
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        receiver.settimeout(TIMEOUT_S)
        output = UnixOutput(path, TIMEOUT_S, frame)
        output.open()
        output.check()
        output.send(alerts("a"))
        assert receiver.recv(100) == b"a"
    with pytest.raises(OutputError, match="refused"):
        output.send(alerts("b"))
    os.unlink(path)
    with pytest.raises(OutputError, match="No such file"):
        output.open()
    output.close()


def test_a_unix_socket_that_is_full_costs_the_time_out(tmp_path, alerts):
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        output = UnixOutput(path, 0.05, frame)
        output.open()
        with pytest.raises(OutputError, match="timed out") as error:
            output.send(alerts(*["x"] * 5000))
        assert error.value.retryable
        assert 0 < len(error.value.taken) < 5000
        output.close()


def test_a_unix_socket_without_buffers_is_an_error_that_can_be_retried(tmp_path, alerts):
    class Full:
        def send(self, data):
            raise OSError(105, "No buffer space available")

        def close(self):
            pass

    output = UnixOutput(str(tmp_path / "log"), TIMEOUT_S, frame)
    output._socket = Full()
    with pytest.raises(OutputError, match="buffer space") as error:
        output.send(alerts("a"))
    assert error.value.retryable
    output.close()


def test_a_daemon_that_comes_back_with_a_new_socket_is_found(tmp_path, alerts):
    path = str(tmp_path / "log")
    output = UnixOutput(path, TIMEOUT_S, frame)
    for text in ("a", "b"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(path)
            output.open()
            output.send(alerts(text))
            assert receiver.recv(100) == text.encode()
        os.unlink(path)
    output.close()


def test_a_unix_socket_that_is_a_stream_gets_frames(tmp_path, alerts):
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(path)
        server.listen()
        server.settimeout(TIMEOUT_S)
        output = UnixOutput(path, TIMEOUT_S, frame)
        output.open()
        peer, _ = server.accept()
        with peer:
            peer.settimeout(TIMEOUT_S)
            output.send(alerts("a", "b"))
            output.check()
            data = b""
            while data.count(b"\n") < 2:
                data += peer.recv(100)
            assert data == b"a\nb\n"
        with pytest.raises(OutputError, match="closed"):
            output.check()
        output.close()
