"""The receivers of the matrix, by name: how each is made, and what the courier is told about it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.certificates import Certificates
from peers.daemon import Daemon, answers, free_port
from peers.rsyslog import Rsyslog
from peers.syslog_ng import SyslogNg

from faults.trial import Trial
from kwsiem.output_settings import (
    ElasticsearchSettings,
    FileSettings,
    GelfSettings,
    KafkaSettings,
    LokiSettings,
    OutputSettings,
    SplunkHecSettings,
    SyslogSettings,
    WebhookSettings,
)

#: Outages are noticed after this; short, so that the matrix can have many.
TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Target:
    """One receiver behind one transport; ``make`` starts it, ``settings`` leads an output to it."""

    name: str
    make: Callable[[Path], Any]
    settings: Callable[[Any], OutputSettings]

    def connect(self, trial: Trial, *others: OutputSettings, **options: Any) -> Any:
        """Start the receiver and the courier with one output ``siem`` to it; gives the receiver."""
        peer = self.make(trial.folder_for("peer"))
        trial.at_end(peer.kill)
        trial.send(self.settings(peer), *others, **options)
        trial.tally("siem", self.name, peer.out)
        return peer


def syslog(transport: str, port: str, **more: Any) -> Callable[[Any], OutputSettings]:
    """Settings for a syslog receiver's port of this name."""
    return lambda peer: SyslogSettings(
        name="siem", transport=transport, port=peer.ports[port], timeout_s=TIMEOUT_S, **more
    )


class CefRsyslog(Rsyslog):
    """An rsyslogd that parses CEF with mmnormalize and writes the fields that it found, nothing else."""

    def prepare(self) -> None:
        super().prepare()
        rules = self.folder / "cef.rulebase"
        rules.write_text("version=2\nrule=:%f:cef%\nrule=: %f:cef%\n")
        text = self.config.read_text()
        action = f'action(type="mmnormalize" rulebase="{rules}")\n  action(type="omfile" file="{self.out}" template="fields"'
        text = text.replace(f'action(type="omfile" file="{self.out}" template="lines"', action)
        assert "mmnormalize" in text
        fields = '  property(name="$!f!Extensions") constant(value="\\n")\n'
        head = f'module(load="mmnormalize")\ntemplate(name="fields" type="list") {{\n{fields}}}\n'
        self.config.write_text(head + text)


class FileReceiver:
    """The file output is its own receiver."""

    def __init__(self, folder: Path) -> None:
        self.out = folder.parent / "state" / "siem.jsonl"

    def kill(self) -> None:
        """Nothing runs."""


class OwnServer(Daemon):
    """One of the programs in this folder; :meth:`mode` says how it fails from now on."""

    program: str

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._mode = folder / "mode"
        super().__init__(folder)

    def mode(self, name: str) -> None:
        """Replaced at once, so that the server never sees half a name."""
        new = self._mode.with_suffix(".new")
        new.write_text(name)
        new.replace(self._mode)

    def argv(self) -> list[str]:
        program = Path(__file__).with_name(self.program)
        return [sys.executable, "-I", str(program), str(self.folder), str(self.port)]

    def is_up(self) -> bool:
        return answers(self.port)


class StreamServer(OwnServer):
    """Takes what ends with NUL or newline."""

    program = "stream_server.py"


class KafkaServer(OwnServer):
    """A mock cluster of librdkafka; its address is its own choice."""

    program = "kafka_server.py"

    def is_up(self) -> bool:
        return (self.folder / "brokers").exists()

    def mode(self, name: str) -> None:
        """It holds when this returns."""
        super().mode(name)
        done = self.folder / "done"
        self.wait(lambda: done.exists() and done.read_text() == name)

    @property
    def brokers(self) -> str:
        """Where it listens."""
        return (self.folder / "brokers").read_text()


class HttpServer(OwnServer):
    """HEC, _bulk, Loki and webhooks."""

    program = "http_server.py"

    def __init__(self, folder: Path) -> None:
        (folder.parent / "env").write_text("SPLUNK_HEC_TOKEN=0123-4567-89\nWEBHOOK_SECRET=whsec_c2VjcmV0\n")
        super().__init__(folder)


class HttpsServer(HttpServer):
    """The same over TLS; like the syslog daemons it shows the certificate that ``server`` names."""

    def __init__(
        self, folder: Path, certificates: Certificates | None = None, *, server: str = "server"
    ) -> None:
        self.certificates = certificates or Certificates(folder / "pki")
        self._server = server
        super().__init__(folder)

    def argv(self) -> list[str]:
        shown = [getattr(self.certificates, name) for name in (self._server, f"{self._server}_key")]
        return [*super().argv(), *shown]


def http(kind: type[Any], path: str = "", **more: Any) -> Callable[[Any], OutputSettings]:
    """Settings for one of the interfaces of the HTTP server."""
    return lambda peer: kind(
        name="siem", url=f"http://127.0.0.1:{peer.port}{path}", timeout_s=TIMEOUT_S, **more
    )


HEC = Target("Splunk HEC", HttpServer, http(SplunkHecSettings))
HEC_ACK = Target(
    "Splunk HEC, acknowledged",
    HttpServer,
    http(SplunkHecSettings, acknowledge=True, acknowledge_timeout_s=1.0),
)
BULK = Target("Elasticsearch _bulk", HttpServer, http(ElasticsearchSettings))
LOKI = Target("Loki", HttpServer, http(LokiSettings))
WEBHOOK = Target("webhook", HttpServer, http(WebhookSettings, "/hook", allow_http=True))
HTTPS = Target(
    "Elasticsearch _bulk, https",
    HttpsServer,
    lambda peer: ElasticsearchSettings(
        name="siem", url=f"https://127.0.0.1:{peer.port}", ca_file=peer.certificates.ca, timeout_s=TIMEOUT_S
    ),
)
HTTP = (HEC, HEC_ACK, BULK, LOKI, WEBHOOK)

FILE = Target(
    "file", FileReceiver, lambda peer: FileSettings(name="siem", path=str(peer.out), max_bytes=2**40)
)
RSYSLOG_CEF = Target("rsyslog, TCP, CEF by mmnormalize", CefRsyslog, syslog("tcp", "tcp"))
RSYSLOG_TCP = Target("rsyslog, TCP, octet counting", Rsyslog, syslog("tcp", "tcp"))
RSYSLOG_LINES = Target("rsyslog, TCP, newline", Rsyslog, syslog("tcp", "tcp", framing="newline"))
RSYSLOG_UDP = Target("rsyslog, UDP", Rsyslog, syslog("udp", "udp"))
RSYSLOG_UNIX = Target(
    "rsyslog, unix datagrams",
    Rsyslog,
    lambda peer: SyslogSettings(name="siem", path=f"{peer.socket}.plain", timeout_s=TIMEOUT_S),
)
SYSLOG_NG_TCP = Target("syslog-ng, TCP, octet counting", SyslogNg, syslog("tcp", "tcp-octets"))
SYSLOG_NG_LINES = Target("syslog-ng, TCP, newline", SyslogNg, syslog("tcp", "tcp-newline", framing="newline"))
SYSLOG_NG_UDP = Target("syslog-ng, UDP", SyslogNg, syslog("udp", "udp"))


def tls(transport: str, port: str, **more: Any) -> Callable[[Any], OutputSettings]:
    """The same over TLS, the receiver verified by the authority that signed its certificate."""
    return lambda peer: syslog(transport, port, ca_file=peer.certificates.ca, **more)(peer)


def with_certificate(peer: Any) -> OutputSettings:
    """TLS with a certificate of our own."""
    found = peer.certificates
    return tls("tls", "mtls", cert_file=found.client, key_file=found.client_key)(peer)


RSYSLOG_TLS = Target("rsyslog, TLS", Rsyslog, tls("tls", "tls"))
RSYSLOG_MTLS = Target("rsyslog, TLS with our certificate", Rsyslog, with_certificate)
RSYSLOG_RELP = Target("rsyslog, RELP", Rsyslog, syslog("relp", "relp"))
SYSLOG_NG_TLS = Target("syslog-ng, TLS", SyslogNg, tls("tls", "tls"))
SYSLOG_NG_MTLS = Target("syslog-ng, TLS with our certificate", SyslogNg, with_certificate)
GELF = Target(
    "GELF, TCP",
    StreamServer,
    lambda peer: GelfSettings(name="siem", transport="tcp", port=peer.port, timeout_s=TIMEOUT_S),
)
KAFKA = Target(
    "Kafka, acks=all",
    KafkaServer,
    lambda peer: KafkaSettings(name="siem", brokers=(peer.brokers,), timeout_s=TIMEOUT_S),
)

TLS = (RSYSLOG_TLS, SYSLOG_NG_TLS)
STREAMS = (RSYSLOG_TCP, RSYSLOG_LINES, SYSLOG_NG_TCP, SYSLOG_NG_LINES, *TLS, GELF)
DATAGRAMS = (RSYSLOG_UDP, SYSLOG_NG_UDP, RSYSLOG_UNIX)
