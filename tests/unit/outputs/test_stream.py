import select
import socket
import ssl
import struct
import threading
import time
from types import SimpleNamespace

import pytest

from kwsiem.errors import OutputError
from kwsiem.outputs import connection as connection_module
from kwsiem.outputs.base import Rendered
from kwsiem.outputs.connection import Connection, Tls
from kwsiem.outputs.stream import StreamOutput
from kwsiem.tls import client_context, pinned

TIMEOUT_S = 5.0


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


def own_socket(output):
    return output._connection._socket


@pytest.fixture
def tcp(server):
    output = StreamOutput("127.0.0.1", server.getsockname()[1], TIMEOUT_S, frame)
    yield output
    output.close()


def test_frames_arrive_in_order(accept, tcp, alerts):
    tcp.open()
    peer = accept()
    tcp.send(alerts("a", "b"))
    tcp.check()
    tcp.send(alerts("c"))
    assert receive(peer, 3) == ["a", "b", "c"]


def test_a_receiver_that_ended_is_noticed_before_anything_more_is_sent(accept, tcp, alerts, wait_end):
    tcp.open()
    peer = accept()
    tcp.send(alerts("a", "b"))
    assert receive(peer, 2)
    peer.close()
    wait_end(own_socket(tcp))
    with pytest.raises(OutputError, match="closed the connection") as error:
        tcp.send(alerts("c"))
    assert not error.value.taken
    assert error.value.retryable
    tcp.open()
    tcp.send(alerts("c"))
    assert receive(accept(), 1) == ["c"]


def test_an_idle_check_notices_the_end_so_nothing_waits_for_the_next_alert(accept, tcp, alerts, wait_end):
    tcp.open()
    peer = accept()
    tcp.send(alerts("a"))
    peer.close()
    wait_end(own_socket(tcp))
    with pytest.raises(OutputError, match=r"closed|reset"):
        tcp.check()


def test_a_half_closed_connection_is_an_end_too(accept, tcp, wait_end):
    tcp.open()
    accept().shutdown(socket.SHUT_WR)
    wait_end(own_socket(tcp))
    with pytest.raises(OutputError, match="closed"):
        tcp.check()


def test_a_reset_is_noticed(accept, tcp, wait_end):
    tcp.open()
    peer = accept()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    wait_end(own_socket(tcp))
    with pytest.raises(OutputError, match="reset"):
        tcp.check()


def test_what_a_receiver_says_is_thrown_away(accept, tcp, alerts):
    tcp.open()
    peer = accept()
    peer.sendall(b"hello\n" * 50_000)
    assert select.select([own_socket(tcp)], [], [], TIMEOUT_S)[0]
    tcp.check()
    tcp.send(alerts("a"))
    assert receive(peer, 1) == ["a"]


def test_closing_with_something_unread_does_not_reset_what_is_on_the_way(accept, tcp, alerts):
    tcp.open()
    peer = accept()
    tcp.send(alerts("a"))
    peer.sendall(b"hello")
    assert select.select([own_socket(tcp)], [], [], TIMEOUT_S)[0]
    tcp.close()
    assert receive(peer, 1) == ["a"]
    assert peer.recv(10) == b"", "an orderly end"


def test_no_receiver_is_an_error_that_can_be_retried(server, tcp):
    server.close()
    with pytest.raises(OutputError, match="refused") as error:
        tcp.open()
    assert error.value.retryable


@pytest.mark.parametrize("data", [b"x" * 50_000_000, b"\n" * 50_000_000])
def test_a_receiver_that_reads_nothing_costs_the_time_out(server, data):
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    output = StreamOutput("127.0.0.1", server.getsockname()[1], 0.2, frame)
    output.open()
    with pytest.raises(OutputError, match="timed out"):
        output.send([Rendered("x", 5, data)])
    output.close()


def test_a_message_half_written_is_not_continued_and_does_not_reach_the_receiver_later(server, accept):
    """The connection is reset: what our kernel still holds of the cut frame is thrown away."""
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    output = StreamOutput("127.0.0.1", server.getsockname()[1], 0.2, frame)
    output.open()
    peer = accept()
    with pytest.raises(OutputError, match="timed out"):
        output.send([Rendered("x", 5, b"x" * 20_000_000)])
    output.close()
    chunks = iter(lambda: len(peer.recv(65536)), 0)
    with pytest.raises(ConnectionResetError):
        assert sum(chunks) < 0, "an orderly end"
    output.open()
    output.send([Rendered("y", 5, b"whole")])
    assert receive(accept(), 1) == ["whole"]
    output.close()


def test_a_slow_receiver_is_served_as_long_as_it_reads(server, accept, alerts):
    """A batch may need several time-outs when each sees some of it read: no endless repetition."""
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    output = StreamOutput("127.0.0.1", server.getsockname()[1], 0.3, frame)
    output.open()
    own_socket(output).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    peer = accept()
    got = bytearray()

    def read_slowly():
        while len(got) < 1_000_001:
            time.sleep(0.02)
            got.extend(peer.recv(20_000))

    reader = threading.Thread(target=read_slowly)
    reader.start()
    output.send([Rendered("x", 5, b"x" * 1_000_000)])
    reader.join(20)
    assert len(got) == 1_000_001
    output.close()


def test_a_receiver_that_pauses_for_longer_than_the_time_out_is_waited_for(server, accept, alerts):
    """Its kernel answers with a closed window; ending the connection would begin everything anew."""
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    output = StreamOutput("127.0.0.1", server.getsockname()[1], 0.2, frame)
    output.open()
    own_socket(output).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    peer = accept()
    got = bytearray()

    def read_in_gulps():
        while len(got) < 600_001:
            time.sleep(0.7)
            while len(got) < 600_001 and select.select([peer], [], [], 0)[0]:
                got.extend(peer.recv(65536))

    reader = threading.Thread(target=read_in_gulps)
    reader.start()
    output.send([Rendered("x", 5, b"x" * 600_000)])
    output.check()
    reader.join(20)
    assert len(got) == 600_001
    output.close()


def test_the_kernel_is_told_the_longest_time(server, tcp):
    """A black hole is noticed earlier, by what is not acknowledged: tests/live/test_black_hole.py."""
    tcp.open()
    sock = own_socket(tcp)
    longest_ms = connection_module.SLOW_TIMES * TIMEOUT_S * 1000
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == longest_ms
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10


def test_every_address_of_a_name_is_tried(server, accept, monkeypatch, alerts):
    port = server.getsockname()[1]
    real = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
    nobody = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", port))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [nobody, real])
    output = StreamOutput("siem.example.net", port, TIMEOUT_S, frame)
    output.open()
    output.send(alerts("a"))
    assert receive(accept(), 1) == ["a"]
    output.close()


def test_a_connection_to_oneself_is_no_receiver(monkeypatch):
    """A port of the kernel's own range with nobody behind it may be given to the very socket that connects."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    class Bound(socket.socket):
        def connect(self, address):
            self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.bind(("127.0.0.1", port))
            super().connect(address)

    monkeypatch.setattr(connection_module.socket, "socket", Bound)
    with pytest.raises(OutputError, match="refused"):
        Connection("127.0.0.1", port, TIMEOUT_S)


def test_a_name_that_is_none_is_an_error_that_can_be_retried(monkeypatch):
    with pytest.raises(OutputError, match="label") as error:
        StreamOutput("x" * 70 + ".invalid", 514, TIMEOUT_S, frame).open()
    assert error.value.retryable

    def nobody(*_args, **_kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    with pytest.raises(OutputError, match="not known"):
        StreamOutput("nowhere.invalid", 514, TIMEOUT_S, frame).open()


# TLS ---------------------------------------------------------------------------------------------


class TlsServer:
    """Takes one connection after another in a thread; ``lines`` are what came, ``ends`` how each ended."""

    def __init__(self, listening, certificates, server="server", client_ca=""):
        self.listening = listening
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(getattr(certificates, server), getattr(certificates, f"{server}_key"))
        if client_ca:
            self.context.verify_mode = ssl.CERT_REQUIRED
            self.context.load_verify_locations(client_ca)
        self.sni = []
        self.context.sni_callback = lambda sock, name, context: self.sni.append(name)
        self.data = b""
        self.ends = []
        self.clients = []
        self.stopped = False
        listening.settimeout(0.02)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.stopped:
            try:
                raw, _ = self.listening.accept()
            except TimeoutError:
                continue
            raw.settimeout(TIMEOUT_S)
            try:
                with self.context.wrap_socket(raw, server_side=True, suppress_ragged_eofs=False) as sock:
                    self.clients.append(sock.getpeercert())
                    while got := sock.recv(65536):
                        self.data += got
                    self.ends.append("close_notify")
            except OSError as error:
                self.ends.append(str(error))
            finally:
                raw.close()

    def wait(self, condition):
        end_s = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < end_s, (self.data, self.ends)
            time.sleep(0.005)


def tls_settings(certificates, **changes):
    values = {
        "name": "siem",
        "ca_file": certificates.ca,
        "cert_file": "",
        "key_file": "",
        "fingerprint": "",
        "verify": True,
    }
    return SimpleNamespace(**{**values, **changes})


@pytest.fixture
def secure(server, certificates):
    """Gives an output to a TLS server, and the server."""
    made = []

    def make(host="localhost", timeout_s=TIMEOUT_S, server_options=None, **changes):
        peer = TlsServer(server, certificates, **(server_options or {}))
        settings = tls_settings(certificates, **changes)
        tls = Tls(client_context(settings), pinned(settings))
        made.append(StreamOutput(host, server.getsockname()[1], timeout_s, frame, tls))
        made.append(peer)
        return made[-2], peer

    yield make
    for output in made[::2]:
        output.close()
    for peer in made[1::2]:
        peer.stopped = True
        peer.thread.join(TIMEOUT_S)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_tls_sends_to_a_verified_receiver_and_says_its_end(secure, alerts, host):
    output, peer = secure(host)
    output.open()
    output.send(alerts("a", "b"))
    output.check()
    output.close()
    peer.wait(lambda: peer.ends)
    assert (peer.data, peer.ends) == (b"a\nb\n", ["close_notify"])
    assert peer.sni == ["localhost" if host == "localhost" else None]


@pytest.mark.parametrize(
    ("shown", "reason"),
    [("stranger", "unable to get local issuer"), ("misnamed", "match"), ("expired", "expired")],
)
def test_tls_a_receiver_that_is_not_the_one_gets_nothing(secure, alerts, shown, reason):
    output, peer = secure(server_options={"server": shown})
    with pytest.raises(OutputError, match=reason) as error:
        output.open()
    assert error.value.retryable
    with pytest.raises(OutputError, match="not connected"):
        output.send(alerts("a"))
    peer.wait(lambda: peer.ends)
    assert peer.data == b""


def test_tls_a_pin_takes_the_place_of_the_authorities(secure, certificates, alerts):
    pin = certificates.fingerprint("stranger")
    output, peer = secure(server_options={"server": "stranger"}, fingerprint=pin)
    output.open()
    output.send(alerts("a"))
    output.close()
    peer.wait(lambda: peer.data)
    assert peer.data == b"a\n"


def test_tls_another_certificate_than_the_pinned_one_is_refused(secure, certificates):
    output, peer = secure(fingerprint=certificates.fingerprint("stranger"))
    with pytest.raises(OutputError, match="has fingerprint"):
        output.open()
    assert peer.data == b""


def test_tls_without_verification_anybody_is_good(secure, alerts):
    output, peer = secure(server_options={"server": "expired"}, verify=False)
    output.open()
    output.send(alerts("a"))
    peer.wait(lambda: peer.data)


def test_tls_a_client_certificate_is_shown(secure, certificates, alerts):
    output, peer = secure(
        server_options={"client_ca": certificates.ca},
        cert_file=certificates.client, key_file=certificates.client_key,
    )  # fmt: skip
    output.open()
    output.send(alerts("a"))
    peer.wait(lambda: peer.data)
    assert ("DNS", "kwsiem.example.net") in peer.clients[0]["subjectAltName"]


def refuse_slowly(listening, context):
    """A TLS server that looks at each flight of the client a little later, as one far away does."""
    raw, _ = listening.accept()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=True)
    with raw:
        for _ in range(5):
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                raw.sendall(outgoing.read())
                data = raw.recv(65536)
                time.sleep(0.05)
                incoming.write(data)
            except ssl.SSLError:
                raw.sendall(outgoing.read())
                return


@pytest.mark.parametrize("shown", ["none", "stranger"])
def test_tls_a_receiver_that_refuses_our_certificate_is_noticed_when_connecting(server, certificates, shown):
    """With TLS 1.3 it says so after our handshake: opening waits for its first word."""
    files = {"cert_file": certificates.stranger, "key_file": certificates.stranger_key}
    settings = tls_settings(certificates, **({} if shown == "none" else files))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(certificates.ca)
    thread = threading.Thread(target=refuse_slowly, args=(server, context))
    thread.start()
    output = StreamOutput(
        "localhost", server.getsockname()[1], TIMEOUT_S, frame, Tls(client_context(settings))
    )
    with pytest.raises(OutputError, match=r"(?i)alert"):
        output.open()
    thread.join()


def test_tls_old_versions_are_refused(secure):
    output, peer = secure()
    peer.context.minimum_version = ssl.TLSVersion.TLSv1_2
    peer.context.maximum_version = ssl.TLSVersion.TLSv1_2
    output.open()
    assert own_socket(output).version() == "TLSv1.2"
    assert output._tls.context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_tls_a_handshake_that_is_never_answered_ends_at_the_time_out(server, accept, certificates):
    settings = tls_settings(certificates)
    output = StreamOutput("localhost", server.getsockname()[1], 0.2, frame, Tls(client_context(settings)))
    with pytest.raises(OutputError, match="timed out"):
        output.open()
    output.close()


def test_tls_a_receiver_that_speaks_no_tls_is_an_error(server, accept, certificates):
    settings = tls_settings(certificates)
    output = StreamOutput(
        "localhost", server.getsockname()[1], TIMEOUT_S, frame, Tls(client_context(settings))
    )
    thread = threading.Thread(target=lambda: accept().sendall(b"220 hello\r\n" * 10))
    thread.start()
    with pytest.raises(OutputError, match=r"(?i)ssl|version"):
        output.open()
    thread.join()


def test_tls_a_receiver_that_reads_nothing_costs_the_time_out(server, certificates):
    output = StreamOutput(
        "localhost", server.getsockname()[1], 0.3, frame, Tls(client_context(tls_settings(certificates)))
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)
    taken = []
    thread = threading.Thread(
        target=lambda: taken.append(context.wrap_socket(server.accept()[0], server_side=True))
    )
    thread.start()
    output.open()
    thread.join()
    with pytest.raises(OutputError, match="timed out"):
        output.send([Rendered("x", 5, b"x" * 50_000_000)])
    output.close()
    taken[0].close()


def test_tls_the_end_of_the_receiver_is_noticed_when_idle(server, certificates, wait_end):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)
    output = StreamOutput(
        "localhost",
        server.getsockname()[1],
        TIMEOUT_S,
        frame,
        Tls(client_context(tls_settings(certificates))),
    )
    taken = []
    thread = threading.Thread(
        target=lambda: taken.append(context.wrap_socket(server.accept()[0], server_side=True))
    )
    thread.start()
    output.open()
    thread.join()
    taken[0].close()
    wait_end(own_socket(output))
    with pytest.raises(OutputError, match="closed"):
        output.check()
    output.close()
