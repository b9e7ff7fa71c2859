"""A real rsyslogd takes our messages over each transport, and gives every field back as it was sent."""

import json
import os

import msgspec
import pytest
from peers.rsyslog import Rsyslog

from kwsiem.alert import Alert
from kwsiem.delivery import make_output, make_renderer, make_route
from kwsiem.document import document
from kwsiem.errors import OutputError
from kwsiem.formats import FORMATS
from kwsiem.formats.syslog import MAX_STREAM_BYTES, MAX_UDP_BYTES
from kwsiem.outbox import Item, Outbox
from kwsiem.output_settings import SyslogSettings
from kwsiem.outputs.base import Rendered
from kwsiem.outputs.worker import Worker

pytestmark = pytest.mark.live

START_NS = 1_767_323_045_123_000_000
HOSTILE = 'a=b \\ c | d "q" ]x\ncs1=forged\r\x00\x1b[31m\u2028<0>1 - - - é 🦊 #012\t\\'


@pytest.fixture
def rsyslog(tmp_path):
    daemon = Rsyslog(tmp_path)
    yield daemon
    daemon.stop()


def alert(number: int, text: str = "root", **changes) -> Alert:
    fields = {"source.ip": "2001:db8::bad:1", "user.name": text, "service.name": "sshd", "process.pid": 7}
    values = {
        "rule_id": "ssh-brute-force", "title": "SSH brute force", "level": "critical", "state": "open",
        "identity": {"source.ip": "2001:db8::bad:1"}, "count": 25, "first_ns": START_NS, "last_ns": START_NS,
        "raised_ns": START_NS, "opened_ts_ns": number, "reason": f"last: {text}", "tags": ["attack.t1110.001"],
        "fields": fields, "evidence": [{"kind": "auth.attempt", "ts_ns": 1, **fields}], "host": "gw01.example.net",
    }  # fmt: skip
    return Alert(**{**values, **changes})


DOCUMENTS = [
    document(alert(0)),
    document(alert(1, HOSTILE)),
    document(alert(2, "é🦊=|\\" * 150)),
    document(alert(3, level="informational", host="host with space\n", rule_id="x" * 60)),
]
TRANSPORTS = {
    # rsyslog's parser of local sockets misreads RFC 5424 unless it is told to leave the line alone.
    "unix-local": {"transport": "unix", "header": "local"},
    "unix-rfc5424": {"transport": "unix"},
    "udp": {"transport": "udp"},
    "tcp-octets": {"transport": "tcp", "framing": "octet-counting"},
    "tcp-newline": {"transport": "tcp", "framing": "newline"},
}


def settings_of(rsyslog: Rsyslog, transport: str, name: str = "cef") -> SyslogSettings:
    path = {"unix-local": str(rsyslog.socket), "unix-rfc5424": f"{rsyslog.socket}.plain"}.get(transport, "")
    return SyslogSettings(
        name="siem", format=name, path=path, port=rsyslog.port, facility="local3", app_name="kwsiem",
        **TRANSPORTS[transport],
    )  # fmt: skip


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("transport", sorted(TRANSPORTS))
def test_every_field_arrives_as_it_was_sent(rsyslog, transport, name):
    settings = settings_of(rsyslog, transport, name)
    output, render = make_output(settings, {}), make_renderer(settings)
    rendered = [
        Rendered(found["event"]["id"], found["event"]["severity"], render(msgspec.json.encode(found)))
        for found in DOCUMENTS
    ]
    output.open()
    output.send(rendered)
    output.close()
    records = rsyslog.take(len(DOCUMENTS))
    assert len(records) == len(DOCUMENTS), "no record was forged, split or lost"
    limit = MAX_UDP_BYTES if transport == "udp" else MAX_STREAM_BYTES
    for found, sent, record in zip(DOCUMENTS, rendered, records, strict=True):
        severity = {10: 1, 0: 6}[found["event"]["severity"]]
        assert record["pri"] == str(19 * 8 + severity)
        assert record["app"] == "kwsiem"
        assert record["procid"] == str(os.getpid())
        if transport != "unix-local":
            assert record["timestamp"] == "2026-01-02T03:04:05.123000+00:00"
            assert record["hostname"] == found["host"]["name"].replace(" ", "_")
            assert record["msgid"] == found["rule"]["id"][:32]
            assert record["sd"] == "-"
        message = record["msg"].removeprefix(" ") if transport == "unix-local" else record["msg"]
        assert sent.data.decode().endswith(message)
        assert found["event"]["id"] in message
        full = FORMATS[name](found)
        shortened = len(sent.data) - len(message.encode()) + len(full.encode()) > limit
        assert (message == full) is not shortened
        if name in {"ecs", "json"}:
            json.loads(message)


@pytest.mark.parametrize("transport", ["tcp-octets", "tcp-newline"])
@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_a_receiver_that_restarts_in_mid_stream_gets_every_alert(rsyslog, tmp_path, transport, ending):
    """200 numbered alerts; rsyslogd ends after the first half, stays away while some are sent, and comes back."""
    outbox = Outbox(tmp_path / "kwsiem.db", ["siem"])
    settings = settings_of(rsyslog, transport)
    output = make_output(settings, {})
    worker = Worker("siem", output, outbox, make_route(settings))
    documents = [document(alert(number)) for number in range(200)]
    now_s = 0.0

    def put(some):
        outbox.put([Item(d["event"]["id"], 8, msgspec.json.encode(d)) for d in some])

    def carry(rounds):
        nonlocal now_s
        for _ in range(rounds):
            now_s += worker.step(now_s)

    for number in range(100):
        put(documents[number : number + 1])
        carry(1)
    getattr(rsyslog, ending)()
    for number in range(100, 130):
        put(documents[number : number + 1])
        carry(1)
    assert worker.state == "failing"
    rsyslog.start()
    for number in range(130, 200):
        put(documents[number : number + 1])
        carry(2)
    carry(3)
    account = outbox.ledger()["siem"]
    assert (account.waiting, account.dead, account.dropped) == (0, 0, 0)
    assert account.delivered == 200
    wanted = {d["event"]["id"] for d in documents}

    def received():
        ids = [
            dict(p.split("=", 1) for p in r["msg"].split(" ") if "=" in p).get("externalId")
            for r in rsyslog.records()
        ]
        return ids if set(ids) >= wanted else None

    ids = rsyslog.wait(received)
    assert set(ids) == wanted, "complete, and nothing that was not sent"
    worker.close()
    outbox.close()


def test_a_receiver_that_is_killed_with_everything_unread_gets_it_all_from_the_next_one(rsyslog, tmp_path):
    """The worst case: rsyslogd is stopped (SIGSTOP), 200 alerts go into its socket, and it is killed."""
    outbox = Outbox(tmp_path / "kwsiem.db", ["siem"])
    settings = settings_of(rsyslog, "tcp-octets")
    worker = Worker("siem", make_output(settings, {}), outbox, make_route(settings))
    worker.step(0.0)
    rsyslog.freeze()
    documents = [document(alert(number)) for number in range(200)]
    outbox.put([Item(d["event"]["id"], 8, msgspec.json.encode(d)) for d in documents])
    worker.step(1.0)
    assert outbox.ledger()["siem"].delivered == 200, "sent, unconfirmed: it left this process, no more"
    rsyslog.kill()
    rsyslog.start()
    now_s = 10.0
    for _ in range(5):
        now_s += worker.step(now_s)
    wanted = {d["event"]["id"] for d in documents}
    rsyslog.wait(lambda: all(any(i in r["msg"] for r in rsyslog.records()) for i in wanted))
    worker.close()
    outbox.close()


def test_nobody_there_is_an_error_that_can_be_retried(rsyslog):
    rsyslog.stop()
    output = make_output(settings_of(rsyslog, "tcp-octets"), {})
    with pytest.raises(OutputError, match="refused"):
        output.open()
