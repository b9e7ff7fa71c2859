import os
import socket
import struct

import pytest

from kwsiem.errors import OutputError
from kwsiem.outputs.base import Rendered
from kwsiem.outputs.syslog import DatagramOutput, TcpOutput

TIMEOUT_S = 5.0


def alerts(*texts):
    return [Rendered(text, 5, text.encode()) for text in texts]


def frame(message):
    return message + b"\n"


def receive(sock, count):
    """So many lines from a stream, and what comes after them."""
    data = b""
    while data.count(b"\n") < count:
        got = sock.recv(65536)
        assert got, f"the stream ended after {data!r}"
        data += got
    return data.decode().splitlines()


def wait_end(peer_of):
    """Wait until the kernel has told our side that the receiver closed."""
    import select

    poller = select.poll()
    poller.register(peer_of, 0x2000 | select.POLLHUP | select.POLLERR)
    assert poller.poll(5000)


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(TIMEOUT_S)
        yield listening


@pytest.fixture
def tcp(server):
    output = TcpOutput("127.0.0.1", server.getsockname()[1], TIMEOUT_S, frame)
    yield output
    output.close()


def accept(server):
    connection, _ = server.accept()
    connection.settimeout(TIMEOUT_S)
    return connection


def test_tcp_frames_arrive_in_order(server, tcp):
    tcp.open()
    with accept(server) as peer:
        tcp.send(alerts("a", "b"))
        tcp.check()
        tcp.send(alerts("c"))
        assert receive(peer, 3) == ["a", "b", "c"]


def test_tcp_a_receiver_that_ended_is_noticed_before_anything_more_is_sent(server, tcp):
    tcp.open()
    with accept(server):
        tcp.send(alerts("a", "b"))
    wait_end(tcp._socket)
    with pytest.raises(OutputError, match="closed the connection") as error:
        tcp.send(alerts("c"))
    assert error.value.sent == 0
    assert error.value.retryable
    tcp.open()
    with accept(server) as peer:
        tcp.send(alerts("c"))
        assert receive(peer, 1) == ["c"]


def test_tcp_an_idle_check_notices_the_end_so_nothing_waits_for_the_next_alert(server, tcp):
    tcp.open()
    with accept(server):
        tcp.send(alerts("a"))
    wait_end(tcp._socket)
    with pytest.raises(OutputError, match="closed"):
        tcp.check()


def test_tcp_a_reset_is_noticed(server, tcp):
    tcp.open()
    peer = accept(server)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    wait_end(tcp._socket)
    with pytest.raises(OutputError):
        tcp.check()


def test_tcp_what_a_receiver_says_is_thrown_away(server, tcp):
    import select

    tcp.open()
    with accept(server) as peer:
        peer.sendall(b"hello\n")
        assert select.select([tcp._socket], [], [], TIMEOUT_S)[0]
        tcp.check()
        tcp.send(alerts("a"))
        assert receive(peer, 1) == ["a"]


def test_tcp_no_receiver_is_an_error_that_can_be_retried(server, tcp):
    server.close()
    with pytest.raises(OutputError, match="refused") as error:
        tcp.open()
    assert error.value.retryable


def test_tcp_a_receiver_that_reads_nothing_costs_the_time_out():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        output = TcpOutput("127.0.0.1", server.getsockname()[1], 0.2, frame)
        output.open()
        with pytest.raises(OutputError, match="timed out"):
            output.send([Rendered("x", 5, b"x" * 50_000_000)])
        output.close()


def test_udp_one_datagram_for_each_alert():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(TIMEOUT_S)
        output = DatagramOutput(("127.0.0.1", receiver.getsockname()[1]), TIMEOUT_S, frame)
        output.open()
        output.send(alerts("a", "b"))
        assert [receiver.recv(100), receiver.recv(100)] == [b"a", b"b"]
        output.check()
        output.close()
        output.close()


def test_udp_a_closed_port_is_noticed_with_the_very_datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        port = receiver.getsockname()[1]
    output = DatagramOutput(("127.0.0.1", port), TIMEOUT_S, frame)
    output.open()
    with pytest.raises(OutputError, match="refused") as error:
        output.send(alerts("a", "b"))
    assert error.value.sent == 0
    assert error.value.retryable
    output.close()


def test_udp_a_datagram_that_is_too_long_is_refused_for_good():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        output = DatagramOutput(("127.0.0.1", receiver.getsockname()[1]), TIMEOUT_S, frame)
        output.open()
        with pytest.raises(OutputError, match="too long") as error:
            output.send([*alerts("a"), Rendered("b", 5, b"x" * 70_000), *alerts("c")])
        assert not error.value.retryable
        assert error.value.sent == 1
        output.close()


def test_an_unknown_host_is_an_error_that_can_be_retried(monkeypatch):
    def nobody(*_args, **_kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    for output in (
        DatagramOutput(("nowhere.invalid", 514), TIMEOUT_S, frame),
        TcpOutput("nowhere.invalid", 514, TIMEOUT_S, frame),
    ):
        with pytest.raises(OutputError, match="not known"):
            output.open()


def test_unix_datagrams(tmp_path):
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        receiver.settimeout(TIMEOUT_S)
        output = DatagramOutput(path, TIMEOUT_S, frame)
        output.open()
        output.send(alerts("a"))
        assert receiver.recv(100) == b"a"
    with pytest.raises(OutputError, match="refused"):
        output.send(alerts("b"))
    os.unlink(path)
    with pytest.raises(OutputError, match="No such file"):
        output.open()
    output.close()


def test_a_unix_socket_that_is_full_costs_the_time_out(tmp_path):
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        output = DatagramOutput(path, 0.05, frame)
        output.open()
        with pytest.raises(OutputError, match="timed out") as error:
            output.send(alerts(*["x"] * 5000))
        assert 0 < error.value.sent < 5000
        output.close()


def test_a_unix_socket_that_is_a_stream_gets_frames(tmp_path):
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(path)
        server.listen()
        server.settimeout(TIMEOUT_S)
        output = DatagramOutput(path, TIMEOUT_S, frame)
        output.open()
        with accept(server) as peer:
            output.send(alerts("a", "b"))
            assert receive(peer, 2) == ["a", "b"]
        output.close()
