"""The server of metrics: what is no request, who is slow, who comes at the same time."""

import socket
import time

import pytest

from kwsiem.scrape import MAX_READERS, MAX_REQUEST_BYTES, BadRequestError, MetricsServer, parse_request

LARGE = b"x" * 4_000_000


@pytest.fixture
def serve():
    made = []

    def start(
        page=lambda accept: (b"page for " + accept.encode(), "text/plain"), **settings
    ) -> MetricsServer:
        made.append(MetricsServer(("127.0.0.1", 0), page, **settings))
        return made[-1]

    yield start
    for server in made:
        server.close()


def connect(server: MetricsServer) -> socket.socket:
    client = socket.create_connection(server.address, timeout=5)
    client.setblocking(False)
    return client


def until(server: MetricsServer, done, timeout_s: float = 10) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline_s
        server.step(0.01)


def answer(server: MetricsServer, request: bytes) -> bytes:
    """All that a reader gets until the server closes its side."""
    with connect(server) as client:
        client.sendall(request)
        return rest(server, client)


def rest(server: MetricsServer, client: socket.socket) -> bytes:
    found = bytearray()

    def ended() -> bool:
        try:
            part = client.recv(1 << 16)
        except BlockingIOError:
            return False
        found.extend(part)
        return not part

    until(server, ended)
    return bytes(found)


def test_a_reader_gets_the_page_for_what_it_accepts(serve):
    server = serve()
    got = answer(server, b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\nAccept: text/x\r\n\r\n")
    head, body = got.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n")
    assert b"Content-Length: 15\r\n" in head
    assert head.endswith(b"Connection: close")
    assert body == b"page for text/x"
    assert server.served == 1
    until(server, lambda: server.readers == 0)


def test_a_head_request_gets_no_body(serve):
    got = answer(serve(), b"HEAD /metrics HTTP/1.0\n\n")
    assert b"Content-Length: 9" in got
    assert got.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"\r\n\r\n", 400), (b"GET /metrics\r\n\r\n", 400), (b"GET /metrics HTTP/2.0\r\n\r\n", 400),
        (b"get /metrics HTTP/1.1\r\n\r\n", 400), (b"GET http://x/metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET  /metrics HTTP/1.1\r\n\r\n", 400), (b"GET /metrics HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nA : b\r\n\r\n", 400), (b"GET /metrics HTTP/1.1\r\n folded\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nA: \x00\r\n\r\n", 400), (b"\x16\x03\x01\x02\x00\x01\n\n", 400),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405), (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", 404), (b"GET /metrics/x HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics HTTP/1.1\r\nA: " + b"x" * MAX_REQUEST_BYTES, 431),
    ],
)  # fmt: skip
def test_what_is_no_request_for_the_page_is_refused(serve, request_, code):
    server = serve()
    got = answer(server, request_)
    assert got.startswith(f"HTTP/1.1 {code} ".encode())
    assert got.count(b"HTTP/1.1") == 1
    assert (server.served, server.refused) == (0, 1)
    until(server, lambda: server.readers == 0)


def test_a_request_may_come_in_pieces(serve):
    server = serve()
    with connect(server) as client:
        for byte in b"GET /metrics HTTP/1.1\r\n\r\n":
            client.send(bytes([byte]))
            server.step()
        assert rest(server, client).startswith(b"HTTP/1.1 200")


def test_a_slow_reader_holds_up_nobody_and_is_let_go(serve, monkeypatch):
    now_s = [100.0]
    monkeypatch.setattr("kwsiem.scrape.clock.monotonic_s", lambda: now_s[0])
    server = serve(lambda _: (LARGE, "text/plain"), reader_s=0.5)
    with connect(server) as silent, connect(server) as lazy, connect(server) as gone:
        silent.send(b"GET /metr")
        lazy.send(b"GET /metrics HTTP/1.1\r\n\r\n")
        until(server, lambda: server.served == 1)  # and reads nothing of it
        gone.send(b"GET /metrics HTTP/1.1\r\n\r\n")
        gone.close()
        assert answer(server, b"GET /metrics HTTP/1.1\r\n\r\n").endswith(LARGE)
        now_s[0] += 1
        assert rest(server, silent) == b""
        rest(server, lazy)  # it ends


def test_two_readers_get_the_whole_page_at_once(serve):
    server = serve(lambda _: (LARGE, "text/plain"))
    with connect(server) as one, connect(server) as two:
        for client in (one, two):
            client.send(b"GET /metrics HTTP/1.1\r\n\r\n")
        until(server, lambda: server.served == 2)
        assert server.readers == 2
        assert rest(server, two).endswith(LARGE)
        assert rest(server, one).endswith(LARGE)


def test_there_are_only_so_many_readers(serve):
    server = serve()
    clients = [connect(server) for _ in range(MAX_READERS)]
    until(server, lambda: server.readers == MAX_READERS)
    with connect(server) as other:
        assert rest(server, other) == b""
    assert (server.readers, server.refused) == (MAX_READERS, 1)
    for client in clients:
        client.close()
    until(server, lambda: server.readers == 0)
    assert b" 200 OK" in answer(server, b"GET /metrics HTTP/1.1\r\n\r\n")


def test_a_page_that_cannot_be_made_costs_that_answer_alone(serve):
    def page(accept: str) -> tuple[bytes, str]:
        if accept == "bad":
            raise KeyError("secret")
        return b"good", "text/plain"

    server = serve(page)
    got = answer(server, b"GET /metrics HTTP/1.1\r\nAccept: bad\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 500 ")
    assert b"secret" not in got
    assert answer(server, b"GET /metrics HTTP/1.1\r\n\r\n").endswith(b"good")


def test_a_port_that_is_taken_is_an_error(serve):
    server = serve()
    with pytest.raises(OSError, match="in use"):
        MetricsServer(server.address, lambda _: (b"", ""))


def test_header_names_are_told_in_lower_case():
    request = parse_request(b"GET /metrics HTTP/1.1\r\nACCEPT:  a, b \r\nX: \xe9")
    assert request.headers == {"accept": "a, b", "x": "\xe9"}
    with pytest.raises(BadRequestError):
        parse_request(b"GET /metrics HTTP/1.1\r\n")
