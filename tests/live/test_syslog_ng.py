"""A real syslog-ng, strict where rsyslog forgives, gives every field back as it was sent, and loses nothing."""

import json
import os

import pytest
from carrier import DOCUMENTS, send
from peers.certificates import Certificates
from peers.syslog_ng import SyslogNg

from kwsiem.delivery import budget_bytes
from kwsiem.formats import FORMATS
from kwsiem.output_settings import SyslogSettings

pytestmark = pytest.mark.live


@pytest.fixture(scope="session")
def certificates(open_folder):
    return Certificates(open_folder / "syslog-ng-pki")


@pytest.fixture(scope="module")
def running(open_folder, certificates):
    (open_folder / "syslog-ng").mkdir()
    daemon = SyslogNg(open_folder / "syslog-ng", certificates)
    yield daemon
    daemon.stop()


@pytest.fixture
def syslog_ng(running):
    """One that runs and has nothing written yet."""
    if running.process is None:
        running.start()
    running.clear()
    return running


TRANSPORTS = {
    "udp": {"transport": "udp"},
    "tcp-octets": {"transport": "tcp", "framing": "octet-counting"},
    "tcp-newline": {"transport": "tcp", "framing": "newline"},
    "tcp-bsd": {"transport": "tcp", "framing": "newline", "header": "rfc3164"},
    "tls": {"transport": "tls"},
    "mtls": {"transport": "tls"},
}


def settings_of(syslog_ng: SyslogNg, transport: str, name: str = "cef", **changes) -> SyslogSettings:
    pki = syslog_ng.certificates
    values = {"name": "siem", "format": name, "port": syslog_ng.ports[transport], **TRANSPORTS[transport]}
    if "tls" in transport:
        values |= {"host": "localhost", "ca_file": pki.ca}
    if transport == "mtls":
        values |= {"cert_file": pki.client, "key_file": pki.client_key}
    return SyslogSettings(**{**values, **changes})


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("transport", sorted(TRANSPORTS))
def test_every_field_arrives_as_it_was_sent(syslog_ng, transport, name):
    settings = settings_of(syslog_ng, transport, name)
    sent = send(settings, DOCUMENTS)
    records = syslog_ng.take(len(DOCUMENTS))
    assert len(records) == len(DOCUMENTS), "no record was forged, split or lost"
    limit = budget_bytes(settings)
    for found, each, record in zip(DOCUMENTS, sent, records, strict=True):
        host = found["host"]["name"].replace(" ", "_")
        assert record["PRI"] == str(22 * 8 + {10: 1, 0: 6}[found["event"]["severity"]])
        assert record["FACILITY"] == "local6"
        assert record["PROGRAM"] == "kwsiem"
        assert record["PID"] == str(os.getpid())
        if transport == "tcp-bsd":
            assert record["HOST"] == host.strip("_")
            assert record["STAMP"] == "Jan  2 03:04:05"
        else:
            assert record["HOST"] == host
            assert (record["UNIXTIME"], record["USEC"]) == ("1767323045", "123000")
            assert record["MSGID"] == found["rule"]["id"][:32]
            assert "SDATA" not in record
        message = record["MESSAGE"]
        assert each.data.decode().endswith(message)
        full = FORMATS[name](found)
        shortened = len(each.data) - len(message.encode()) + len(full.encode()) > limit
        assert (message == full) is not shortened
        if name in {"ecs", "json"}:
            json.loads(message)


@pytest.mark.parametrize("transport", ["tcp-octets", "tcp-newline", "tls"])
@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_a_receiver_that_restarts_in_mid_stream_gets_every_alert(syslog_ng, carry, transport, ending):
    carrier = carry(settings_of(syslog_ng, transport))
    for _ in range(50):
        carrier.put(1)
        carrier.carry(1)
    carrier.put(100)
    carrier.carry(1)
    getattr(syslog_ng, ending)()
    for _ in range(10):
        carrier.put(1)
        carrier.carry(1)
    assert carrier.worker.state == "failing"
    syslog_ng.start()
    carrier.put(40)
    carrier.carry_all()
    account = carrier.ledger
    assert (account.waiting, account.dead, account.dropped, account.delivered) == (0, 0, 0, 200)
    syslog_ng.wait(lambda: len(set(syslog_ng.ids())) >= 200)
    assert set(syslog_ng.ids()) == set(carrier.raised), "complete, and nothing that was not sent"


@pytest.mark.parametrize("transport", ["tcp-octets", "tls"])
def test_a_receiver_that_is_killed_with_everything_unread_gets_it_all_from_the_next_one(
    syslog_ng, carry, transport
):
    carrier = carry(settings_of(syslog_ng, transport))
    carrier.carry(1)
    syslog_ng.freeze()
    carrier.put(200)
    carrier.carry(1)
    assert carrier.ledger.delivered == 200, "sent, unconfirmed"
    syslog_ng.kill()
    syslog_ng.start()
    carrier.now_s += 10
    carrier.carry_all()
    syslog_ng.wait(lambda: len(set(syslog_ng.ids())) >= 200)
    assert set(syslog_ng.ids()) == set(carrier.raised)


@pytest.mark.parametrize("shown", ["none", "stranger", "expired"])
def test_a_receiver_that_does_not_take_our_certificate_is_an_error(syslog_ng, carry, shown):
    pki = syslog_ng.certificates
    files = (
        {"cert_file": "", "key_file": ""}
        if shown == "none"
        else {"cert_file": getattr(pki, shown), "key_file": getattr(pki, f"{shown}_key")}
    )
    carrier = carry(settings_of(syslog_ng, "mtls", **files))
    carrier.put(1)
    carrier.carry(3)
    assert carrier.worker.state == "failing"
    assert carrier.ledger.waiting == 1, "refused before anything was sent"
    assert not syslog_ng.records()


@pytest.mark.parametrize(
    ("shown", "reason"), [("stranger", "local issuer"), ("misnamed", "match"), ("expired", "expired")]
)
def test_a_receiver_with_the_wrong_certificate_gets_nothing(tmp_path, certificates, carry, shown, reason):
    syslog_ng = SyslogNg(tmp_path, certificates, server=shown)
    try:
        carrier = carry(settings_of(syslog_ng, "tls"))
        carrier.put(1)
        carrier.carry(1)
        assert reason in carrier.worker.last_error
        assert carrier.ledger.waiting == 1
        send(settings_of(syslog_ng, "tls", fingerprint=certificates.fingerprint(shown)), DOCUMENTS[:1])
        assert len(syslog_ng.take(1)) == 1, "a pin takes the place of the authorities"
    finally:
        syslog_ng.stop()


def test_newline_frames_where_octet_counting_is_wanted_are_seen_to_fail(syslog_ng, carry):
    """syslog-ng closes the connection at the first frame: the worker does not go on saying ready."""
    carrier = carry(settings_of(syslog_ng, "tcp-octets", framing="newline"))
    carrier.put(1)
    syslog_ng.wait(lambda: carrier.carry(1) or carrier.worker.retries > 0)
    assert "closed the connection" in carrier.worker.last_error or "reset" in carrier.worker.last_error
    assert not [message for message in syslog_ng.messages() if message.startswith("CEF")]
