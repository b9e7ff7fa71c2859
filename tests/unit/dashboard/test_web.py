"""The dashboard over real sockets: who gets in, what it lets through, what it shows of hostile text."""

import http.client
import json
import logging
import re
import socket
import threading
from urllib.parse import quote

import msgspec
import pytest
import trustme
import uvicorn

from kwsiem import clock
from kwsiem.alert import LEVELS
from kwsiem.dashboard import picture, server, web
from kwsiem.dashboard.picture import Pictures
from kwsiem.dashboard.server import Options, configured, listening
from kwsiem.dashboard.sessions import MAX_LOGGED_PER_MIN, MAX_SESSIONS, SESSION_S, Door, Sessions
from kwsiem.dashboard.token import digest_of
from kwsiem.dashboard.web import HEADERS, MAX_WAITING, Address, Dashboard
from kwsiem.document import document
from kwsiem.errors import UnavailableError
from kwsiem.event import OWN_KINDS
from kwsiem.outbox import Item, Outbox

TOKEN = "t" * 43
HOSTILE = "</script><b>&](\x1b[2J\u202e'\"" + "A" * 5000
STATUS = {
    "version": "1", "host": "web1", "since": "2026-01-02T03:04:05Z", "probes": [], "processes": [],
    "rules": {"rules": 1}, "courier": {"outputs": [{"name": HOSTILE, "state": "ready", "balanced": True}]},
    "engine": {}, "blocking": {"mode": "on"},
}  # fmt: skip
RULES = b"""version: 1
rules:
  - {id: one, title: One, level: high, tags: [attack.discovery, attack.t1046], event: sensor.lost,
     detection: {a: {event.count|gt: 0}, condition: a}, correlation: {type: event_count, group-by: [probe.name], timespan: 1m, condition: {gte: 1}}}
"""


class FakeParent:
    """The process with the rights, as the child sees it."""

    def __init__(self):
        self.asked = []
        self.error = ""
        self.found = {
            "status": STATUS,
            "blocks": {"mode": "on", "total": 1, "blocks": [{"network": "192.0.2.9", "reason": HOSTILE}]},
            "rules": {"files": [["rules.yaml", RULES]], "counts": {"one": {"opened": 3}}},
        }

    def look(self, what):
        if self.error:
            raise UnavailableError(self.error)
        return msgspec.json.decode(msgspec.json.encode(self.found[what]))

    def release(self, network, who):
        return self._change("release", network, who)

    def acknowledge(self, incident, who):
        return self._change("acknowledge", incident, who)

    def _change(self, *asked):
        self.asked.append(asked)
        if self.error:
            raise UnavailableError(self.error)
        return {"removed": asked[1]}


@pytest.fixture
def parent():
    return FakeParent()


@pytest.fixture
def put(tmp_path, make_alert):
    """Alerts into the history."""
    with_box = Outbox(tmp_path / "kwsiem.db", ["file"])

    def alerts(*some):
        with_box.put([Item(a.id, LEVELS[a.level], msgspec.json.encode(document(a))) for a in some])

    yield alerts
    with_box.close()


@pytest.fixture
def site(tmp_path, parent, put, monkeypatch):
    """The dashboard as the child serves it."""
    monkeypatch.setattr(web, "WRONG_S", 0.0)
    with serving(tmp_path, parent) as made:
        yield made


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    """A dashboard for tests after which it is as before: nothing gets through to its ``parent``."""
    with serving(tmp_path_factory.mktemp("state"), FakeParent()) as made:
        yield made


class serving:
    def __init__(self, state, parent, **options):
        self.parent = parent
        self.sock = listening(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        address = Address("127.0.0.1", self.port, is_tls="certificate" in options)
        self.dashboard = Dashboard(address, Door(digest_of(TOKEN)), parent, Pictures(state), OWN_KINDS)
        config = configured(self.dashboard, Options(("127.0.0.1", self.port), **options))
        self.server = uvicorn.Server(config)

    def __enter__(self):
        self.thread = threading.Thread(target=server.serve_until_told, args=(self.server, [self.sock]))
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.server.force_exit = True
        self.thread.join(10)
        self.sock.close()

    @property
    def origin(self):
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method, path, body=None, host=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            sent = {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
            connection.request(method, path, body, {"Host": host or f"127.0.0.1:{self.port}", **sent})
            answer = connection.getresponse()
            answer.body = answer.read().decode()
            return answer
        finally:
            connection.close()

    def log_in(self, token=TOKEN):
        answer = self.ask("POST", "/login", f"token={quote(token)}", Origin=self.origin)
        return (answer.getheader("set-cookie") or "").partition(";")[0]

    def page(self, cookie):
        answer = self.ask("GET", "/", Cookie=cookie)
        csrf = re.search(r'name="csrf" content="([^"]+)"', answer.body)[1]
        view = re.search(r'<script type="application/json" id="view">(.*?)</script>', answer.body, re.DOTALL)[
            1
        ]
        return csrf, json.loads(view), answer.body

    def post(self, path, value, cookie, csrf, **headers):
        headers = {"Origin": self.origin, "X_CSRF_Token": csrf, "Cookie": cookie, **headers}
        return self.ask("POST", path, json.dumps(value), **headers)


PATHS = [
    "/",
    "/api/timeline",
    "/api/attack",
    "/api/stream",
    "/api/alerts/X",
    "/static/page.js",
    "/static/charts.js",
]


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_shown_without_a_login(standing, path):
    for cookie in (None, "kwsiem_session=x", "kwsiem_session="):
        answer = standing.ask("GET", path, Cookie=cookie)
        assert answer.status == (303 if path == "/" else 401)
        assert "web1" not in answer.body
    assert standing.parent.asked == []


def test_a_login_opens_a_session_whose_cookie_is_safe(site):
    answer = site.ask("POST", "/login", f"token={TOKEN}", Origin=site.origin)
    assert (answer.status, answer.getheader("location")) == (303, "/")
    cookie = answer.getheader("set-cookie")
    assert re.match(r"kwsiem_session=[\w-]{43}; ", cookie)
    assert {"HttpOnly", "SameSite=strict", "Path=/", f"Max-Age={SESSION_S}"} <= set(cookie.split("; "))
    assert site.page(cookie.partition(";")[0])[1]["host"] == "web1"


def test_wrong_tokens_are_counted_and_shut_nobody_out(site, caplog):
    caplog.set_level(logging.WARNING, "kwsiem.dashboard")
    for number in range(MAX_LOGGED_PER_MIN + 5):
        answer = site.ask("POST", "/login", f"token=wrong{number}", Origin=site.origin)
        assert (answer.status, answer.getheader("set-cookie")) == (403, None)
    said = [record.failures for record in caplog.records if record.message == "login refused"]
    assert said == list(range(1, MAX_LOGGED_PER_MIN + 1))
    assert site.ask("POST", "/login", f"token={TOKEN}", Origin=site.origin).status == 303


def test_while_many_wrong_tokens_wait_a_right_one_comes_in(site):
    site.dashboard._waiting = MAX_WAITING
    answer = site.ask("POST", "/login", "token=wrong", Origin=site.origin)
    assert (answer.status, answer.getheader("set-cookie")) == (429, None)
    assert site.ask("POST", "/login", f"token={TOKEN}", Origin=site.origin).status == 303


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/login", 200), ("GET", "/", 303), ("GET", "/nowhere", 404), ("GET", "/static/style.css", 200),
     ("POST", "/login", 403), ("PUT", "/login", 405), ("GET", "/static/..%2fweb.py", 404)],
)  # fmt: skip
def test_every_answer_has_the_headers(standing, method, path, status):
    answer = standing.ask(method, path)
    assert answer.status == status
    assert {name: answer.getheader(name) for name in HEADERS} == HEADERS
    assert answer.getheader("server") is None
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


def test_pages_have_nothing_inline_and_nothing_from_elsewhere(site):
    body = site.page(site.log_in())[2] + site.ask("GET", "/login").body
    assert not re.search(
        r"<style|\sstyle=|\son\w+=|https?://|<script(?! type=\"(module\" src=\"/|application/json))", body
    )
    for name in ("page.js", "charts.js", "style.css"):
        text = web._FOLDER.joinpath("static").joinpath(name).read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|@import", text)
        assert set(re.findall(r"https?://[\w./]+", text)) <= {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "192.0.2.1:{port}"]
)
def test_a_name_that_is_not_ours_is_refused(standing, host):
    answer = standing.ask("GET", "/login", host=host.format(port=standing.port) or " ")
    assert answer.status == 421


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:{port}", "[::1]:{port}"])
def test_our_names(standing, host):
    assert standing.ask("GET", "/login", host=host.format(port=standing.port)).status == 200


FOREIGN = [
    {"Origin": None}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "https://127.0.0.1"},
    {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}, {"Sec_Fetch_Site": "none"},
    {"Origin": "http://evil.example", "Sec_Fetch_Site": "same-origin"},
    {"X_CSRF_Token": ""}, {"X_CSRF_Token": "x"}, {"X_CSRF_Token": None},
]  # fmt: skip


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize("path", ["/api/release", "/api/acknowledge"])
def test_a_change_comes_from_our_own_page_or_not_at_all(standing, path, headers):
    cookie = standing.log_in()
    csrf, _, _ = standing.page(cookie)
    answer = standing.post(path, {"network": "192.0.2.9", "incident": "I"}, cookie, csrf, **headers)
    assert answer.status == 403
    assert standing.parent.asked == []


def test_a_release_passes_the_right_request_and_a_refusal_is_explained(site, parent):
    cookie = site.log_in()
    csrf, view, _ = site.page(cookie)
    assert view["blocks"]["blocks"][0]["network"] == "192.0.2.9"
    assert site.post("/api/release", {"network": "192.0.2.9"}, cookie, csrf).status == 200
    fetched = site.post(
        "/api/release", {"network": "192.0.2.9"}, cookie, csrf, Origin="null", Sec_Fetch_Site="same-origin"
    )
    assert fetched.status == 200
    (verb, network, who), _ = parent.asked
    assert (verb, network) == ("release", "192.0.2.9")
    assert re.fullmatch(r"dashboard 127\.0\.0\.1 [0-9a-f]{8}", who)
    parent.error = "192.0.2.9 is not blocked"
    answer = site.post("/api/release", {"network": "192.0.2.9"}, cookie, csrf)
    assert (answer.status, json.loads(answer.body)) == (409, {"error": "192.0.2.9 is not blocked"})


@pytest.mark.parametrize(
    "body",
    ["", "x", "[]", "{}", '{"network": 1}', '{"network": ""}', "[" * 4000, '{"network": "%s"}' % ("x" * 200)],
)
def test_what_is_no_request_asks_for_nothing(standing, body):
    cookie = standing.log_in()
    csrf, _, _ = standing.page(cookie)
    answer = standing.ask(
        "POST", "/api/release", body, Origin=standing.origin, X_CSRF_Token=csrf, Cookie=cookie
    )
    assert answer.status == 400
    assert standing.parent.asked == []


def test_a_session_ends_by_logging_out_and_by_age(site, monkeypatch):
    cookie = site.log_in()
    csrf, _, _ = site.page(cookie)
    assert site.ask("POST", "/logout", "csrf=x", Origin=site.origin, Cookie=cookie).status == 403
    assert site.ask("POST", "/logout", f"csrf={csrf}", Origin=site.origin, Cookie=cookie).status == 303
    assert site.ask("GET", "/api/attack", Cookie=cookie).status == 401
    cookie = site.log_in()
    now_s = clock.monotonic_s()
    monkeypatch.setattr(clock, "monotonic_s", lambda: now_s + SESSION_S + 1)
    assert site.ask("GET", "/api/attack", Cookie=cookie).status == 401


def test_sessions_are_bounded():
    sessions = Sessions()
    cookies = [sessions.open("::1", 0.0)[0] for _ in range(MAX_SESSIONS + 1)]
    assert len(sessions) == MAX_SESSIONS
    assert sessions.find(cookies[0], 1.0) is None
    assert sessions.find(cookies[-1], 1.0)


def test_hostile_text_ends_nothing_and_is_cut_in_lists_and_whole_in_details(site, put, make_alert):
    put(make_alert(title=HOSTILE, reason=HOSTILE, fields={"user.name": HOSTILE, "source.address": HOSTILE}))
    cookie = site.log_in()
    _, view, body = site.page(cookie)
    assert body.count("</script>") == 2, "ours alone"
    assert "<b>" not in body and "\x1b" not in body and "\u202e" not in body
    (row,) = view["alerts"]
    assert row["title"].startswith("</script><b>&](")
    assert all(len(text) <= picture.MAX_SHORT for text in row.values() if isinstance(text, str))
    assert len(view["status"]["outputs"][0]["name"]) <= picture.MAX_SHORT
    answer = site.ask("GET", f"/api/alerts/{row['id']}", Cookie=cookie)
    assert answer.getheader("content-type") == "application/json"
    found = json.loads(answer.body)
    (name,) = [value for key, value in found["facts"] if key == "user.name"]
    assert name.startswith("</script><b>&](") and len(name) == 1024 and not set("\x1b\u202e") & set(name)
    assert site.ask("GET", "/api/alerts/none", Cookie=cookie).status == 404
    assert site.ask("GET", "/api/alerts/%27%20OR%201", Cookie=cookie).status == 404


def read_events(site, cookie, path="/api/stream?after=0"):
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=10)
    connection.request("GET", path, headers={"Cookie": cookie})
    return connection, connection.getresponse()


def next_event(answer, kind):
    fields = {}
    while True:
        line = answer.readline().decode().rstrip("\n")
        name, _, value = line.partition(": ")
        fields[name] = value
        if not line and fields.get("event") == kind:
            return fields.get("id"), json.loads(fields["data"])
        if not line:
            fields = {}


def test_new_alerts_are_told_while_they_come(site, put, make_alert):
    cookie = site.log_in()
    connection, answer = read_events(site, cookie)
    assert answer.getheader("content-type").startswith("text/event-stream")
    assert next_event(answer, "state")[1]["blocks"]["total"] == 1
    put(make_alert(number=1), make_alert(number=2))
    number, rows = next_event(answer, "alerts")
    assert (number, len(rows)) == ("2", 2)
    answer.close()
    connection.close()
    connection, answer = read_events(site, cookie, "/api/stream?after=1")
    assert len(next_event(answer, "alerts")[1]) == 1
    answer.close()
    connection.close()


def test_a_stream_ends_with_its_session(site):
    cookie = site.log_in()
    connection, answer = read_events(site, cookie)
    next_event(answer, "state")
    site.dashboard.sessions.close(cookie.partition("=")[2])
    assert next_event(answer, "ended") == (None, {})
    assert answer.read() == b""
    connection.close()


def test_streams_are_bounded(site, monkeypatch):
    monkeypatch.setattr(web, "MAX_STREAMS", 1)
    cookie = site.log_in()
    connection, answer = read_events(site, cookie)
    next_event(answer, "state")
    assert site.ask("GET", "/api/stream", Cookie=cookie).status == 503
    answer.close()
    connection.close()


def test_rules_stand_under_their_tactic(site):
    tactics = json.loads(site.ask("GET", "/api/attack", Cookie=site.log_in()).body)
    assert len(tactics) == 14
    (discovery,) = [tactic for tactic in tactics if tactic["techniques"]]
    assert discovery["name"] == "Discovery"
    assert discovery["techniques"] == [
        {"id": "T1046", "name": "Network Service Discovery", "rules": 1, "alerts": 3}
    ]


def test_without_an_appliance_the_history_is_shown_and_what_is_wrong(site, parent, put, make_alert):
    put(make_alert())
    parent.error = "kwsiem is not running"
    _, view, _ = site.page(site.log_in())
    assert (view["sensor_error"], view["status"], len(view["alerts"])) == ("kwsiem is not running", None, 1)


def test_without_a_history_the_page_says_so(tmp_path, parent):
    with serving(tmp_path / "none", parent) as site:
        _, view, _ = site.page(site.log_in())
        assert "the history cannot be read" in view["error"]


@pytest.mark.parametrize(
    "sent",
    [b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000, b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"],
    ids=["large", "tls", "hosts"],
)  # fmt: skip
def test_what_is_no_request_is_refused_and_let_go(site, sent):
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100)[:12] in {b"HTTP/1.1 400", b"HTTP/1.1 421"}
    assert site.ask("GET", "/login").status == 200


def test_a_body_that_is_too_large_or_never_comes_is_refused(site, monkeypatch):
    assert site.ask("POST", "/login", "token=" + "x" * 5000, Origin=site.origin).status == 413
    monkeypatch.setattr(web, "BODY_S", 0.1)
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as client:
        head = f"POST /login HTTP/1.1\r\nHost: 127.0.0.1:{site.port}\r\nOrigin: {site.origin}\r\nContent-Length: 9\r\n\r\n"
        client.sendall(head.encode())
        assert client.recv(100).startswith(b"HTTP/1.1 413")


def test_who_connects_and_says_nothing_is_let_go(site, monkeypatch):
    monkeypatch.setattr(server, "REQUEST_S", 0.1)
    for said in (b"", b"GET / HTTP/1.1\r\nHost:"):
        with socket.create_connection(("127.0.0.1", site.port), timeout=10) as client:
            client.sendall(said)
            assert client.recv(1) == b""


def test_connections_are_bounded(site, monkeypatch):
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 3)
    clients = [socket.create_connection(("127.0.0.1", site.port), timeout=10) for _ in range(4)]
    try:
        assert clients[3].recv(1) == b""
    finally:
        for client in clients:
            client.close()


def test_over_tls_the_cookie_is_for_tls_alone(tmp_path, parent, put):
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    with serving(tmp_path, parent, certificate=str(chain), key=str(key)) as site:
        import ssl

        context = ssl.create_default_context()
        authority.configure_trust(context)
        connection = http.client.HTTPSConnection("127.0.0.1", site.port, context=context, timeout=10)
        connection.request("POST", "/login", f"token={TOKEN}", {"Origin": f"https://127.0.0.1:{site.port}"})
        answer = connection.getresponse()
        assert answer.status == 303
        cookie = answer.getheader("set-cookie")
        assert cookie.startswith("__Host-kwsiem_session=") and "; Secure" in cookie and "Domain" not in cookie
        answer.read()
        connection.request("GET", "/", headers={"Cookie": cookie.partition(";")[0]})
        assert connection.getresponse().status == 200
        assert answer.getheader("strict-transport-security")
        connection.close()


def test_who_never_begins_tls_is_let_go(tmp_path, parent, put, monkeypatch):
    monkeypatch.setattr(server, "REQUEST_S", 0.1)
    path = tmp_path / "both.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(path)
    with (
        serving(tmp_path, parent, certificate=str(path)) as site,
        socket.create_connection(("127.0.0.1", site.port), timeout=10) as client,
    ):
        assert client.recv(1) == b""


@pytest.mark.parametrize(
    ("address", "host", "ours"),
    [
        (Address("127.0.0.1", 9470, names=["kwsiem.localhost"]), "kwsiem.localhost:9470", True),
        (Address("127.0.0.1", 9470), "kwsiem.localhost:9470", False),
        (Address("0.0.0.0", 443, is_tls=True), "192.0.2.7", True),
        (Address("0.0.0.0", 443, is_tls=True), "evil.example", False),
        (Address("0.0.0.0", 443, is_tls=True, names=["Gw.example"]), "gw.EXAMPLE", True),
        (Address("::1", 9470), "[::1]:9470", True),
        (Address("::1", 9470), "[::1]", False),
        (Address("::1", 9470), "[2001:db8::1]:9470", False),
        (Address("2001:db8::1", 9470, is_tls=True), "[2001:db8::1]:9470", True),
        (Address("2001:db8::1", 9470, is_tls=True), "[2001:db8::1", False),
    ],
)
def test_names_by_address(address, host, ours):
    assert address.is_ours(host) is ours
