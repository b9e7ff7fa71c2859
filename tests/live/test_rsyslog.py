"""A real rsyslogd takes our messages over each transport, and gives every field back as it was sent."""

import json
import os

import pytest
from carrier import DOCUMENTS, rendered, send
from peers.certificates import Certificates
from peers.rsyslog import Rsyslog

from kwsiem.delivery import budget_bytes, make_output
from kwsiem.errors import OutputError
from kwsiem.formats import FORMATS
from kwsiem.output_settings import SyslogSettings

pytestmark = pytest.mark.live


@pytest.fixture(scope="session")
def certificates(open_folder):
    return Certificates(open_folder / "rsyslog-pki")


@pytest.fixture(scope="module")
def running(open_folder, certificates):
    (open_folder / "rsyslog").mkdir()
    daemon = Rsyslog(open_folder / "rsyslog", certificates)
    yield daemon
    daemon.stop()


@pytest.fixture
def rsyslog(running):
    """One that runs and has nothing written yet."""
    if running.process is None:
        running.start()
    running.clear()
    return running


TRANSPORTS = {
    # rsyslog's parser of local sockets misreads RFC 5424 unless it is told to leave the line alone.
    "unix-local": {"transport": "unix", "header": "local"},
    "unix-rfc5424": {"transport": "unix"},
    "udp": {"transport": "udp"},
    "tcp-octets": {"transport": "tcp", "framing": "octet-counting"},
    "tcp-newline": {"transport": "tcp", "framing": "newline"},
    "tls": {"transport": "tls"},
    "mtls": {"transport": "tls"},
    "relp": {"transport": "relp"},
}


def settings_of(rsyslog: Rsyslog, transport: str, name: str = "cef", **changes) -> SyslogSettings:
    path = {"unix-local": str(rsyslog.socket), "unix-rfc5424": f"{rsyslog.socket}.plain"}.get(transport, "")
    pki = rsyslog.certificates
    values = {
        "name": "siem", "format": name, "path": path, "facility": "local3", "app_name": "kwsiem",
        "port": rsyslog.ports.get(transport.partition("-")[0], 1), **TRANSPORTS[transport],
    }  # fmt: skip
    if "tls" in transport:
        values |= {"host": "localhost", "ca_file": pki.ca}
    if transport == "mtls":
        values |= {"cert_file": pki.client, "key_file": pki.client_key}
    return SyslogSettings(**{**values, **changes})


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("transport", sorted(TRANSPORTS))
def test_every_field_arrives_as_it_was_sent(rsyslog, transport, name):
    settings = settings_of(rsyslog, transport, name)
    sent = send(settings, DOCUMENTS)
    records = rsyslog.take(len(DOCUMENTS))
    assert len(records) == len(DOCUMENTS), "no record was forged, split or lost"
    limit = budget_bytes(settings)
    for found, each, record in zip(DOCUMENTS, sent, records, strict=True):
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
        assert each.data.decode().endswith(message)
        assert found["event"]["id"] in message
        full = FORMATS[name](found)
        shortened = len(each.data) - len(message.encode()) + len(full.encode()) > limit
        assert (message == full) is not shortened
        if name in {"ecs", "json"}:
            json.loads(message)


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("transport", ["udp", "tcp-octets", "tcp-newline", "tls", "relp"])
def test_the_bsd_header_is_read_as_it_was_meant(rsyslog, transport, name):
    sent = send(settings_of(rsyslog, transport, name, header="rfc3164"), DOCUMENTS)
    records = rsyslog.take(len(DOCUMENTS))
    assert len(records) == len(DOCUMENTS)
    for found, each, record in zip(DOCUMENTS, sent, records, strict=True):
        assert record["pri"] == str(19 * 8 + {10: 1, 0: 6}[found["event"]["severity"]])
        assert record["timestamp"][4:19] == "-01-02T03:04:05", "a BSD time has no year"
        assert record["hostname"] == found["host"]["name"].replace(" ", "_").strip("_")
        assert (record["app"], record["procid"]) == ("kwsiem", str(os.getpid()))
        assert each.data.decode().endswith(f"kwsiem[{os.getpid()}]:{record['msg']}")
        assert found["event"]["id"] in record["msg"]


@pytest.mark.parametrize("transport", ["tcp-octets", "tcp-newline", "tls", "relp"])
@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_a_receiver_that_restarts_in_mid_stream_gets_every_alert(rsyslog, carry, transport, ending):
    """300 alerts; rsyslogd ends after some, stays away while some are sent, and comes back; twice."""
    carrier = carry(settings_of(rsyslog, transport))
    for _ in range(2):
        for _ in range(50):
            carrier.put(1)
            carrier.carry(1)
        carrier.put(50)
        carrier.carry(1)
        getattr(rsyslog, ending)()
        for _ in range(25):
            carrier.put(1)
            carrier.carry(1)
        assert carrier.worker.state == "failing"
        rsyslog.start()
        carrier.put(25)
        carrier.carry(2)
    carrier.carry_all()
    account = carrier.ledger
    assert (account.waiting, account.dead, account.dropped, account.delivered) == (0, 0, 0, 300)
    rsyslog.wait(lambda: len(set(rsyslog.ids())) >= 300)
    assert set(rsyslog.ids()) == set(carrier.raised), "complete, and nothing that was not sent"
    if transport == "relp":
        assert len(rsyslog.ids()) <= 300 + 2 * 128, (
            "again goes only what was not acknowledged: a window at most"
        )


@pytest.mark.parametrize("transport", ["tcp-octets", "tls"])
def test_a_receiver_that_is_killed_with_everything_unread_gets_it_all_from_the_next_one(
    rsyslog, carry, transport
):
    """The worst case: rsyslogd is stopped (SIGSTOP), 200 alerts go into its socket, and it is killed."""
    carrier = carry(settings_of(rsyslog, transport))
    carrier.carry(1)
    rsyslog.freeze()
    carrier.put(200)
    carrier.carry(1)
    assert carrier.ledger.delivered == 200, "sent, unconfirmed: it left this process, no more"
    rsyslog.kill()
    rsyslog.start()
    carrier.now_s += 10
    carrier.carry_all()
    rsyslog.wait(lambda: len(set(rsyslog.ids())) >= 200)
    assert set(rsyslog.ids()) == set(carrier.raised)


def test_over_relp_nothing_counts_as_delivered_before_it_is_written(rsyslog, carry):
    """The same over RELP: nothing is acknowledged, so all of it waits, and is sent once."""
    carrier = carry(settings_of(rsyslog, "relp", timeout_s=0.3))
    carrier.carry(1)
    rsyslog.freeze()
    carrier.put(200)
    carrier.carry(1)
    assert (carrier.ledger.delivered, carrier.ledger.waiting) == (0, 200)
    rsyslog.kill()
    rsyslog.start()
    carrier.now_s += 10
    carrier.carry_all()
    assert rsyslog.ids() == carrier.raised


def test_a_stream_that_is_cut_in_a_message_is_not_continued_in_it(rsyslog, carry):
    """Rsyslogd stands still until our batch times out, half written; then it goes on, and gets all of it whole."""
    settings = settings_of(rsyslog, "tcp-octets", "ecs", timeout_s=0.2)
    carrier = carry(settings)
    carrier.carry(1)
    rsyslog.freeze()
    carrier.put(4000)
    for _ in range(4):
        carrier.carry(1)
        if carrier.worker.state == "failing":
            break
    assert "timed out" in carrier.worker.last_error
    rsyslog.thaw()
    carrier.now_s += 10
    carrier.carry_all()
    rsyslog.wait(lambda: len(set(rsyslog.ids())) >= 4000)
    assert set(rsyslog.ids()) == set(carrier.raised), "each record is an alert of ours, whole"


@pytest.mark.parametrize(
    ("shown", "reason"), [("stranger", "local issuer"), ("misnamed", "match"), ("expired", "expired")]
)
def test_a_receiver_with_the_wrong_certificate_gets_nothing(tmp_path, certificates, carry, shown, reason):
    rsyslog = Rsyslog(tmp_path, certificates, server=shown)
    try:
        carrier = carry(settings_of(rsyslog, "tls"))
        carrier.put(1)
        carrier.carry(1)
        assert reason in carrier.worker.last_error
        assert carrier.ledger.waiting == 1
        pinned = settings_of(rsyslog, "tls", fingerprint=certificates.fingerprint(shown))
        send(pinned, DOCUMENTS[:1])
        assert len(rsyslog.take(1)) == 1, "a pin takes the place of the authorities"
    finally:
        rsyslog.stop()


@pytest.mark.parametrize("shown", ["none", "stranger", "expired"])
def test_a_receiver_that_does_not_take_our_certificate_is_an_error(rsyslog, carry, shown):
    pki = rsyslog.certificates
    files = (
        {"cert_file": "", "key_file": ""}
        if shown == "none"
        else {"cert_file": getattr(pki, shown), "key_file": getattr(pki, f"{shown}_key")}
    )
    carrier = carry(settings_of(rsyslog, "mtls", **files))
    carrier.put(1)
    carrier.carry(3)
    assert carrier.worker.state == "failing"
    assert not rsyslog.records()


def test_a_burst_over_udp_arrives_whole(rsyslog, carry):
    """1,000 alerts at once; the receiver's buffer is large, so that a busy host loses none either."""
    carrier = carry(settings_of(rsyslog, "udp"))
    carrier.put(1000)
    carrier.carry_all()
    rsyslog.wait(lambda: rsyslog.line_count() >= 1000)
    assert rsyslog.ids() == carrier.raised


def test_the_longest_message_is_not_cut(rsyslog):
    """Rsyslog cuts at 8,096 bytes, and acknowledges what it has cut: every budget stays below."""
    settings = settings_of(rsyslog, "relp", "ecs")
    (sent,) = rendered(settings, [{**DOCUMENTS[0], "labels": {"filler": "x" * 6000}}])
    assert 6000 < len(sent.data) <= budget_bytes(settings)
    output = make_output(settings, {})
    output.open()
    output.send([sent])
    output.close()
    (record,) = rsyslog.take(1)
    assert sent.data.decode().endswith(record["msg"])
    assert json.loads(record["msg"])["labels"]["filler"] == "x" * 6000


@pytest.mark.parametrize("transport", ["tcp-octets", "tls", "relp"])
def test_nobody_there_is_an_error_that_can_be_retried(rsyslog, transport):
    output = make_output(settings_of(rsyslog, transport), {})
    rsyslog.stop()
    with pytest.raises(OutputError, match="refused") as error:
        output.open()
    assert error.value.retryable
