"""A receiver that vanishes without a word: every packet is dropped, no reset, no end. Each wait is bounded."""

import contextlib
import select
import ssl
import threading
import time

import pytest
from carrier import alert, rendered
from lab import Lab, wait_until
from peers.certificates import Certificates

from kwsiem.delivery import make_output
from kwsiem.document import document
from kwsiem.errors import OutputError
from kwsiem.output_settings import GelfSettings, SyslogSettings

pytestmark = pytest.mark.live

TIMEOUT_S = 0.5
#: The kernel looks at its own time-out when a retransmission is due (0.2 s, 0.4 s, 0.8 s …).
MOST_S = 10.0


@pytest.fixture(scope="module")
def lab():
    with Lab("siem", "sensor") as found:
        yield found


@pytest.fixture(scope="module")
def certificates(open_folder):
    return Certificates(open_folder / "black-hole-pki")


class Sink(threading.Thread):
    """Takes one connection in its namespace; reads and answers RELP until it is closed."""

    def __init__(self, lab, certificates, transport):
        super().__init__(daemon=True)
        import socket

        with lab.inside("siem"):
            self.listening = socket.create_server((lab.ip4("siem"), 0))
        self.listening.settimeout(MOST_S)
        self.port = self.listening.getsockname()[1]
        self.transport = transport
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificates.server, certificates.server_key)
        self.stopped = False
        self.start()

    def run(self):
        with contextlib.suppress(OSError):
            peer, _ = self.listening.accept()
            with peer:
                if self.transport == "tls":
                    peer = self.context.wrap_socket(peer, server_side=True)
                peer.settimeout(0.05)
                while not self.stopped:
                    with contextlib.suppress(TimeoutError):
                        data = peer.recv(65536)
                        if not data:
                            break
                        if data.startswith(b"1 open"):
                            answer = b"200 OK\nrelp_version=0\ncommands=syslog"
                            peer.sendall(b"1 rsp %d %s\n" % (len(answer), answer))
                        elif self.transport == "relp":
                            peer.sendall(b"%s rsp 6 200 OK\n" % data.split()[0])
                peer.close()

    def close(self):
        self.stopped = True
        self.join(MOST_S)
        self.listening.close()


@contextlib.contextmanager
def dropped(lab):
    """Nothing passes between the two; both links stay up."""
    rule = ["add", "table", "inet", "hole"]
    chain = ["add", "chain", "inet", "hole", "in", "{ type filter hook input priority 0; policy drop; }"]
    lab.run("siem", ["nft", *rule])
    lab.run("siem", ["nft", *chain])
    try:
        yield
    finally:
        lab.run("siem", ["nft", "delete", "table", "inet", "hole"])


def make(lab, certificates, transport, port):
    values = {"name": "siem", "host": lab.ip4("siem"), "port": port, "timeout_s": TIMEOUT_S}
    if transport == "tls":
        values |= {"fingerprint": certificates.fingerprint("server")}
    if transport == "gelf":
        return GelfSettings(transport="tcp", **values)
    return SyslogSettings(transport=transport, **values)


MESSAGES = rendered(SyslogSettings(name="siem", transport="tcp"), [document(alert(n)) for n in range(2)])


@pytest.mark.parametrize("transport", ["tcp", "tls", "relp", "gelf"])
def test_a_connection_that_leads_nowhere_any_more_ends(lab, certificates, transport):
    sink = Sink(lab, certificates, transport)
    output = make_output(make(lab, certificates, transport, sink.port), {})
    with contextlib.closing(sink), contextlib.closing(output), lab.inside("sensor"):
        output.open()
        output.send(MESSAGES[:1])
        output.check()
        with dropped(lab):
            begin_s = time.monotonic()

            def failed():
                try:
                    output.send(MESSAGES[1:])
                except OutputError as error:
                    return error
                select.select([], [], [], 0.1)
                return None

            error = wait_until(failed, MOST_S, "no error")
            assert error.retryable
            assert not error.taken
            assert "timed out" in str(error), error
            with pytest.raises(OutputError, match="timed out"):
                output.open()
            assert time.monotonic() - begin_s < MOST_S


def test_datagrams_into_nowhere_are_what_unconfirmed_means(lab, certificates):
    output = make_output(make(lab, certificates, "udp", 514), {})
    with lab.inside("sensor"):
        output.open()
        with dropped(lab):
            output.send(MESSAGES)
        assert output.label == "sent, unconfirmed"
        output.close()
        output.open()
        with pytest.raises(OutputError, match="refused"):
            output.send(MESSAGES)
        output.close()
