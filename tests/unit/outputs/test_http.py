"""The client of all HTTP outputs: bounded whatever the server does, verified, and silent about secrets."""

import base64
import json
import logging
import os
import random
import socket
import subprocess
import sys
import threading
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest
from peers.certificates import Certificates
from peers.web import Bytes, CloseAfter, Cut, Drip, Hang, Peer, Reply, Reset, Say

from kwsiem import secret
from kwsiem.errors import ConfigError, OutputError
from kwsiem.output_settings import WebhookSettings
from kwsiem.outputs.http import MAX_ANSWER_BYTES, HttpClient, retry_after_s

TESTS = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def peer():
    with Peer() as found:
        yield found
    assert found.violations == []


@pytest.fixture
def make():
    made = []

    def client(url, *, cookies=False, **changes):
        settings = WebhookSettings(**{"name": "out", "url": url, "timeout_s": 2.0, **changes})
        made.append(HttpClient(settings, cookies=cookies))
        return made[-1]

    yield client
    for one in made:
        one.close()


def words(client, path="", body=b"{}"):
    """What the error of a request says."""
    with pytest.raises(OutputError) as error:
        client.post(path, body)
    assert error.value.retryable
    return str(error.value)


def test_a_post_is_exact_bytes_over_a_connection_that_is_kept(peer, make):
    client = make(peer.url + "/base/")
    body = bytes(range(256)) * 100
    assert client.post("/more?a=b", body, {"X-A": "1"}).body == b"ok"
    assert client.post("", body).ok
    assert client.post(peer.url + "/elsewhere", body).ok
    assert client.get("/health").status == 200
    assert [request.target for request in peer.requests] == [
        "/base/more?a=b",
        "/base/",
        "/elsewhere",
        "/base/health",
    ]
    assert [request.raw for request in peer.requests] == [body, body, body, b""]
    assert peer.requests[0].headers["x-a"] == "1"
    assert peer.requests[0].headers["accept-encoding"] == "identity"
    assert peer.connections == 1


def test_a_connection_that_the_server_closed_is_replaced(peer, make):
    client = make(peer.url)
    peer.faults.append(CloseAfter())
    assert client.post("", b"1").ok
    _until_closed_by_peer(client)
    assert client.post("", b"2").ok
    assert peer.connections == 2


def _until_closed_by_peer(client):
    """Wait until the kernel has told our side."""
    import select

    pool = client._session.get_adapter("http://x").poolmanager.pools
    connection = pool[next(iter(pool.keys()))].pool.queue[-1]
    poller = select.poll()
    poller.register(connection.sock, 0x2000)
    assert poller.poll(5000)


def test_bodies_are_compressed_where_that_helps_and_is_taken(peer, make):
    client = make(peer.url)
    client.post("", b"a" * 5000, compress=True)
    client.post("", b"short", compress=True)
    client.post("", b"a" * 5000)
    assert [r.headers.get("content-encoding") for r in peer.requests] == ["gzip", None, None]
    assert [r.body for r in peer.requests] == [b"a" * 5000, b"short", b"a" * 5000]
    peer.faults.append(Say(Reply(415)))
    assert client.post("", b"a" * 5000, compress=True).ok
    assert client.post("", b"a" * 5000, compress=True).ok
    assert [r.headers.get("content-encoding") for r in peer.requests][3:] == ["gzip", None, None]


# time -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Hang(), Drip(), Drip(body=True), Drip(every_s=0.001)])
def test_a_server_that_hangs_or_drips_holds_us_for_the_time_out_and_no_longer(peer, make, fault):
    """It would go on for ever: that this test ends is the proof."""
    peer.faults.append(fault)
    client = make(peer.url, timeout_s=0.3)
    assert words(client) == f"{peer.url}: timed out after 0.3 s"
    assert client.post("", b"{}").ok, "over a new connection"
    assert peer.connections == 2


def test_a_server_that_does_not_read_holds_us_for_the_time_out(make):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        client = make(f"http://127.0.0.1:{deaf.getsockname()[1]}", timeout_s=0.3)
        assert "timed out after 0.3 s" in words(client, body=b"x" * 50_000_000)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_never_says_anything(make, scheme):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        client = make(f"{scheme}://127.0.0.1:{deaf.getsockname()[1]}", timeout_s=0.3)
        assert "timed out after 0.3 s" in words(client)


def test_a_dripping_server_with_tls(certificates, make):
    with Peer(tls=(certificates.server, certificates.server_key)) as peer:
        peer.always = Drip()
        client = make(peer.url, ca_file=certificates.ca, timeout_s=0.5)
        assert "timed out after 0.5 s" in words(client)


def test_no_port_listens(make):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert words(make(f"http://127.0.0.1:{port}")) == f"http://127.0.0.1:{port}: connection refused"


def test_an_address_of_several_that_answers_is_found(peer, make, monkeypatch):
    real = socket.getaddrinfo

    def two(host, port, *args, **kwargs):
        with socket.create_server(("127.0.0.1", 0)) as closed:
            dead = real("127.0.0.1", closed.getsockname()[1], *args, **kwargs)
        return dead + real("127.0.0.1", port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", two)
    assert make(f"http://siem.example.net:{peer.port}").post("", b"").ok


@pytest.mark.parametrize(
    ("code", "said"), [(socket.EAI_NONAME, "name not known"), (socket.EAI_AGAIN, "name look-up failed")]
)
def test_a_name_that_is_not_found(make, monkeypatch, code, said):
    def nowhere(*_, **__):
        raise socket.gaierror(code, "the resolver's words")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    assert words(make("https://siem.example.net/secret-path")) == f"https://siem.example.net: {said}"


# answers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Bytes(b"220 smtp.example.net ESMTP\r\n"), "no valid HTTP answer"),
        (Bytes(b"HTTP/1.1 200 x\r\n" + b"X: y\r\n" * 200 + b"\r\n"), "no valid HTTP answer"),
        (Bytes(b"HTTP/1.1 200 " + b"x" * 100_000), "no valid HTTP answer"),
        (Bytes(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), "the answer was cut off"),
        (Bytes(b""), "the server closed the connection without an answer"),
        (Cut(30), "the answer was cut off"),
        (Cut(36), "the answer was cut off"),
        (Cut(50), "the answer was cut off"),
        (Cut(-1), "the answer was cut off"),
        (Reset(0), "connection reset by peer"),
    ],
)
def test_what_is_no_answer_is_an_error_in_a_few_words(peer, make, fault, said):
    peer.serve = lambda request: Reply(200, b"o" * 100)
    peer.faults.append(fault)
    found = words(make(peer.url))
    assert found == f"{peer.url}: {said}"


HEADS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nRetry-After: 7\r\nConnection: close\r\n\r\n{'a':1}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nSet-Cookie: a=b; Path=/; Expires=Wed, 21 Oct 2037 07:28:00 GMT\r\n\r\n"
    b"7;x=y\r\n{'a':1}\r\n0\r\nTrailer: x\r\n\r\n",
    b"HTTP/1.1 307 Temporary\r\nLocation: http://user:pw@b\xc3\xbccher.example:80/%zz\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 429 No\r\nRetry-After: Wed, 21 Oct 2037 07:28:00 GMT\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 204 No Content\r\nContent-Type: text/html; charset=\xff\r\n\r\n",
)


def test_no_answer_makes_anything_but_an_answer_or_an_output_error(peer, make):
    """Answers with bytes changed, cut out and repeated; the seed is fixed, so a failure comes again."""
    chance = random.Random(7)
    client = make(peer.url, cookies=True, timeout_s=5.0)
    answers = 0
    for _ in range(200):
        wire = bytearray(chance.choice(HEADS))
        for _ in range(chance.randrange(4)):
            place, end = sorted(chance.randrange(len(wire) + 1) for _ in range(2))
            match chance.randrange(3):
                case 0:
                    wire[place : place + 1] = bytes([chance.choice(b"\0\r\n :;,=-0919\x80\xff\x1b%[]")])
                case 1:
                    del wire[place : min(end, place + 8)]
                case _:
                    wire[place:place] = wire[place:end]
        peer.faults.append(Bytes(bytes(wire)))
        try:
            answer = client.post("", b"{}")
            answer.json()
            assert isinstance(answer.text, str)
            answers += 1
        except OutputError:
            pass
    assert 0 < answers < 200


def test_a_chunked_answer_is_read(peer, make):
    peer.faults.append(
        Bytes(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    )
    assert make(peer.url).post("", b"").body == b"abcde"


@pytest.mark.parametrize("status", [200, 302, 500])
def test_of_a_large_answer_only_the_beginning_is_read_and_the_connection_is_not_used_again(
    peer, make, status
):
    client = make(peer.url)
    peer.faults.append(Say(Reply(status, b"x" * (3 * MAX_ANSWER_BYTES), {"Location": "http://127.0.0.1:1/"})))
    answer = client.post("", b"")
    assert (answer.status, len(answer.body)) == (status, MAX_ANSWER_BYTES)
    assert client.post("", b"").ok
    assert peer.connections == 2


def test_a_packed_answer_is_not_unpacked(peer, make):
    import gzip

    bomb = gzip.compress(b"\0" * 50_000_000)
    peer.faults.append(Say(Reply(200, bomb, {"Content-Encoding": "gzip"})))
    assert make(peer.url).post("", b"").body == bomb


@pytest.mark.parametrize("location", ["http://127.0.0.1:1/", "http://[bad", "http://x\xe9:99999/", ""])
def test_redirects_are_answers_and_not_followed(peer, make, location):
    peer.faults.append(Say(Reply(307, b"", {"Location": location})))
    assert make(peer.url).post("", b"").status == 307
    assert len(peer.requests) == 1


def test_the_text_of_an_answer_is_one_clean_line_without_secrets(peer, make):
    secret.learn("tok-1234567890")
    peer.faults.append(Say(Reply(400, b"bad\r\n\x1b[2Jtoken tok-1234567890 " + b"y" * 9000)))
    text = make(peer.url).post("", b"").text
    assert text.startswith("bad  \ufffd[2Jtoken *** yyy")
    assert len(text) <= 200


def test_a_body_that_is_no_json_is_none(peer, make):
    client = make(peer.url)
    for body in (b"", b"{", b"\xff\xfe", b"[" * 200_000):
        peer.faults.append(Say(Reply(200, body)))
        assert client.post("", b"").json() is None
    peer.faults.append(Say(Reply.json({"a": 1})))
    assert client.post("", b"").json() == {"a": 1}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("7", 7.0), (" 0 ", 0.0), ("1.5", 1.5), ("", None), ("-3", None), ("soon", None), ("1e9", None),
        ("٣", None), ("9" * 40, None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("Wed, 99 Oct", None),
        ("Thu, 32 Foo 2099 99:99:99 GMT", None), ("nan", None), ("inf", None),
    ],
)  # fmt: skip
def test_retry_after(value, expected):
    assert retry_after_s(value) == expected


def test_retry_after_as_a_date():
    moment = datetime.now(timezone.utc) + timedelta(hours=1)
    assert 3500 < retry_after_s(format_datetime(moment, usegmt=True)) <= 3600
    assert 3500 < retry_after_s(moment.strftime("%Y-%m-%d") and format_datetime(moment)) <= 3600


def test_cookies_are_kept_only_where_wanted_and_only_a_few(peer, make):
    peer.serve = lambda request: Reply(200, b"", {"Set-Cookie": f"node{len(peer.requests)}=a; Path=/"})
    client = make(peer.url)
    client.post("", b"")
    client.post("", b"")
    assert "cookie" not in peer.requests[1].headers
    client = make(peer.url, cookies=True)
    for _ in range(60):
        client.post("", b"")
    assert "node3=a" in peer.requests[3].headers["cookie"]
    assert max(request.headers.get("cookie", "").count("=") for request in peer.requests) <= 21


# TLS --------------------------------------------------------------------------------------------


@pytest.fixture
def serve_tls(certificates):
    made = []

    def serve(name, **options):
        chain, key = getattr(certificates, name), getattr(certificates, f"{name}_key")
        made.append(Peer(tls=(chain, key), **options))
        return made[-1]

    yield serve
    for one in made:
        one.close()


def test_a_server_of_our_authority_is_trusted(serve_tls, certificates, make):
    peer = serve_tls("server")
    client = make(peer.url, ca_file=certificates.ca)
    assert client.post("", b"{}").ok
    assert client.post("", b"{}").ok
    assert peer.connections == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("expired", "certificate has expired"),
        ("misnamed", "IP address mismatch"),
        ("stranger", "unable to get local issuer certificate"),
    ],
)
def test_any_other_server_gets_nothing(serve_tls, certificates, make, name, said):
    peer = serve_tls(name)
    found = words(make(peer.url, ca_file=certificates.ca))
    assert "certificate verify failed" in found
    assert said in found
    assert not peer.requests


def test_the_hosts_own_authorities_do_not_trust_ours(serve_tls, certificates, make):
    assert "certificate verify failed" in words(make(serve_tls("server").url))


@pytest.mark.parametrize("name", ["stranger", "expired", "misnamed"])
def test_a_pinned_certificate_is_taken_whoever_signed_it(serve_tls, certificates, make, name):
    client = make(serve_tls(name).url, fingerprint=certificates.fingerprint(name))
    assert client.post("", b"{}").ok


def test_another_certificate_than_the_pinned_one_gets_nothing(serve_tls, certificates, make):
    peer = serve_tls("server")
    pin = certificates.fingerprint("stranger")
    found = words(make(peer.url, ca_file=certificates.ca, fingerprint=pin))
    assert f"expected {pin}" in found
    assert not peer.requests


def test_verify_false_takes_anybody(serve_tls, make, caplog):
    assert make(serve_tls("stranger").url, verify=False).post("", b"{}").ok
    assert "NOT verified" in caplog.text


def test_we_show_our_certificate_where_it_is_wanted(serve_tls, certificates, make):
    peer = serve_tls("server", client_ca=certificates.ca)
    ours = {"cert_file": certificates.client, "key_file": certificates.client_key}
    assert make(peer.url, ca_file=certificates.ca, **ours).post("", b"{}").ok
    assert words(make(peer.url, ca_file=certificates.ca)).startswith(peer.url)
    assert len(peer.requests) == 1


def test_tls_to_a_server_without(peer, make):
    found = words(make(peer.url.replace("http:", "https:")))
    assert "TLS failed" in found


# proxies and the environment --------------------------------------------------------------------


def test_the_environment_has_no_say(peer, make, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent")
    assert make(peer.url).post("", b"").ok
    assert "authorization" not in peer.requests[0].headers


def test_a_proxy_of_the_settings_gets_the_request_and_its_password(peer, make):
    client = make("http://siem.example.net/hook", proxy=f"http://me:pass-word@127.0.0.1:{peer.port}")
    assert client.post("", b"{}").ok
    assert peer.requests[0].target == "http://siem.example.net/hook"
    given = peer.requests[0].headers["proxy-authorization"]
    assert given == "Basic " + base64.b64encode(b"me:pass-word").decode()


def test_a_proxy_that_is_down(make):
    found = words(make("http://siem.example.net/hook", proxy="http://me:pass-word@127.0.0.1:1"))
    assert found == "http://siem.example.net: proxy: connection refused"


def test_through_a_tunnel_the_server_itself_is_verified(serve_tls, certificates, make):
    target = serve_tls("server")
    with Tunnel() as proxy:
        client = make(target.url, ca_file=certificates.ca, proxy=proxy.url)
        assert client.post("", b"{}").ok
        assert proxy.targets == [f"127.0.0.1:{target.port}"]
        stranger = make(serve_tls("stranger").url, ca_file=certificates.ca, proxy=proxy.url)
        assert "certificate verify failed" in words(stranger)
        client.close()
        proxy.answer = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
        assert words(client).startswith(target.url)


class Tunnel:
    """A proxy that knows CONNECT, for one connection after the other."""

    def __init__(self):
        self.targets = []
        self.answer = b"HTTP/1.1 200 established\r\n\r\n"
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _accept(self):
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=(client,)))
            self._threads[-1].start()

    def _serve(self, client):
        head = b""
        with client:
            client.settimeout(10)
            while not head.endswith(b"\r\n\r\n"):
                head += client.recv(1)
            client.sendall(self.answer)
            if b" 200 " not in self.answer:
                return
            target = head.split()[1].decode()
            self.targets.append(target)
            host, port = target.split(":")
            with socket.create_connection((host, int(port))) as server:
                self._pump(client, server)

    def _pump(self, one, other):
        import select

        pair = {one: other, other: one}
        while True:
            for sock in select.select(list(pair), [], [], 10)[0]:
                try:
                    data = sock.recv(65536)
                except OSError:
                    return
                if not data:
                    return
                pair[sock].sendall(data)


# settings and secrets ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "siem.example.net",
        "ftp://x",
        "http://",
        "http://h:99999",
        "http://h:0",
        "http://[::1",
        "file:///etc/passwd",
    ],
)
def test_urls_that_cannot_be_used_are_refused_at_start(make, url):
    with pytest.raises(ConfigError, match="output 'out': url"):
        make(url)


@pytest.mark.parametrize("proxy", ["https://p:1", "socks5://p:1", "p:3128"])
def test_proxies_that_cannot_be_used_are_refused_at_start(make, proxy):
    with pytest.raises(ConfigError, match="output 'out': proxy"):
        make("http://localhost", proxy=proxy)


def test_a_password_in_the_url_is_refused_and_not_shown(make):
    with pytest.raises(ConfigError) as error:
        make("https://me:hunter2hunter2@localhost/")
    assert "hunter2" not in str(error.value)


def test_no_error_and_no_log_line_has_the_url_or_a_header(peer, make, caplog):
    """The URL of a chat is its secret; requests' own errors and urllib3's log lines contain it."""
    caplog.set_level(logging.DEBUG)
    path = "/services/T0/B0/hunter2hunter2"
    headers = {"Authorization": "Bearer hunter2hunter2"}
    said = []
    for fault in (
        Hang(),
        Cut(10),
        Bytes(b"garbage\r\n\r\n"),
        Bytes(b"HTTP/1.1 200 x\r\nbroken header\r\n\r\n"),
    ):
        peer.faults.append(fault)
        try:
            make(peer.url, timeout_s=0.2).post(path, b"{}", headers)
        except OutputError as error:
            said.append(str(error))
    for url, given in (
        ("http://127.0.0.1:1", headers),
        (peer.url, {"X": "hunter2hunter2\r\nY: z"}),
        (peer.url, {"X": "hunter2hunter2é\u2028"}),
    ):
        with pytest.raises(OutputError) as error:
            make(url).post(path, b"{}", given)
        said.append(str(error.value))
        assert error.value.__cause__ is None
        assert error.value.__suppress_context__
    assert len(said) >= 6
    assert "hunter2" not in "".join(said) + caplog.text


CHILD = """
import json, logging, socket, sys
urls = json.loads(sys.argv[1])
from kwsiem.delivery import make_output
from kwsiem.errors import OutputError
from kwsiem.outputs.base import Rendered
from kwsiem import output_settings as s
common = {"timeout_s": 0.5, "ca_file": urls["ca"]}
outputs = [
    make_output(s.SplunkHecSettings(name="a", url=url, acknowledge=True, acknowledge_timeout_s=0, **common), {"token": "t"})
    for url in urls["urls"]
]
outputs += [make_output(s.ElasticsearchSettings(name="b", url=url, **common), {}) for url in urls["urls"]]
outputs += [make_output(s.LokiSettings(name="c", url=url, **common), {}) for url in urls["urls"]]
outputs += [make_output(s.WebhookSettings(name="d", url=url, allow_http=True, **common), {"signing": "s"}) for url in urls["urls"]]
outputs += [make_output(s.WebhookSettings(name="e", url="http://h", proxy=url, allow_http=True, **common), {"signing": "s"}) for url in urls["urls"] if url.startswith("http:")]
outputs += [make_output(s.KafkaSettings(name="f", brokers=("127.0.0.1:1",), timeout_s=0.5), {})]
before = set(sys.modules)
alert = Rendered("id", 5, b'{"a":1}' * 500, b'{"@timestamp":"2026-01-02T03:04:05.123Z"}')
said = []
for output in outputs:
    for _ in range(urls["rounds"] if output is not outputs[-1] else 1):
        try:
            output.open()
            output.send([alert])
        except OutputError as error:
            said.append(str(error))
    output.close()
print(json.dumps({"late": sorted(set(sys.modules) - before), "said": said}))
"""


def test_nothing_is_imported_after_the_constructors(certificates):
    """They run as root; after that the interpreter's own files may be out of reach."""
    date = format_datetime(datetime.now(timezone.utc), usegmt=True)
    faults = [
        None,
        Say(Reply(503, b"x", {"Retry-After": date, "Set-Cookie": "a=b; Path=/; Expires=" + date})),
        Say(Reply(302, b"", {"Location": "http://bücher.example/"})),
        Bytes(
            b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\nX: =?utf-8?q?a?=\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        ),
        Say(Reply(415, b"")),
        Cut(20),
        Reset(5),
    ]
    with (
        Peer() as plain,
        Peer(tls=(certificates.server, certificates.server_key)) as good,
        Peer(tls=(certificates.expired, certificates.expired_key)) as expired,
    ):
        for peer in (plain, good):
            peer.faults.extend(faults * 12)
        urls = [plain.url, good.url, expired.url, "http://127.0.0.1:1", "http://b\u00fccher.invalid"]
        given = {"urls": urls, "ca": certificates.ca, "rounds": 4}
        child = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps(given)],
            env={**os.environ, "PYTHONPATH": str(TESTS.parent)}, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
    assert child.returncode == 0, child.stderr.decode()
    found = json.loads(child.stdout)
    assert found["late"] == []
    assert any("certificate has expired" in line for line in found["said"])
    assert any("503" in line for line in found["said"])


def test_requests_is_loaded_only_where_an_http_output_is_configured():
    code = """
import sys
import kwsiem.courier
from kwsiem.delivery import make_output
from kwsiem.output_settings import ConsoleSettings
make_output(ConsoleSettings(name="c"), {})
print(sorted({"requests", "urllib3", "confluent_kafka"} & set(sys.modules)))
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60,
                           env={**os.environ, "PYTHONPATH": str(TESTS.parent)})  # fmt: skip
    assert child.stdout == b"[]\n"
