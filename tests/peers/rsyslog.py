"""A real rsyslogd of our own: unix, UDP, TCP, TLS with and without client certificate, and RELP."""

from __future__ import annotations

import shutil
from pathlib import Path

from peers.certificates import Certificates
from peers.daemon import Daemon, answers, free_port

#: Each property is written as JSON text, so that nothing in a message can end a field or a line. The queue
#: is direct: what RELP acknowledges is written, so that a kill loses nothing of it.
_CONFIG = """
global(
  defaultNetstreamDriverCAFile="{certificates.ca}"
  defaultNetstreamDriverCertFile="{cert}" defaultNetstreamDriverKeyFile="{key}"
  workDirectory="{folder}"
)
module(load="imudp")
module(load="imtcp")
module(load="imrelp")
module(load="imuxsock" SysSock.Use="off")
template(name="lines" type="list") {{
  constant(value="{{\\"pri\\":\\"") property(name="pri" format="json") constant(value="\\"")
  constant(value=",\\"timestamp\\":\\"") property(name="timereported" dateFormat="rfc3339" date.inUTC="on")
  constant(value="\\",\\"hostname\\":\\"") property(name="hostname" format="json")
  constant(value="\\",\\"app\\":\\"") property(name="app-name" format="json")
  constant(value="\\",\\"procid\\":\\"") property(name="procid" format="json")
  constant(value="\\",\\"msgid\\":\\"") property(name="msgid" format="json")
  constant(value="\\",\\"sd\\":\\"") property(name="structured-data" format="json")
  constant(value="\\",\\"msg\\":\\"") property(name="msg" format="json") constant(value="\\"}}\\n")
}}
input(type="imudp" address="127.0.0.1" port="{ports[udp]}" ruleset="take" rcvbufSize="8m")
input(type="imtcp" address="127.0.0.1" port="{ports[tcp]}" ruleset="take")
input(type="imtcp" address="127.0.0.1" port="{ports[tls]}" ruleset="take"
      streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="anon")
input(type="imtcp" address="127.0.0.1" port="{ports[mtls]}" ruleset="take"
      streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="x509/certvalid")
input(type="imrelp" address="127.0.0.1" port="{ports[relp]}" ruleset="take")
input(type="imuxsock" socket="{socket}" ruleset="take" rateLimit.Interval="0")
input(type="imuxsock" socket="{socket}.plain" ruleset="take" rateLimit.Interval="0" useSpecialParser="off"
      parseHostname="on" ignoreTimestamp="off")
ruleset(name="take" queue.type="direct") {{
  action(type="omfile" file="{out}" template="lines" asyncWriting="off" flushOnTXEnd="on")
}}
"""


class Rsyslog(Daemon):
    """One rsyslogd in a folder of its own, on loopback.

    ``ports`` has udp and tcp (the same number), tls, mtls (asks for a client certificate) and relp;
    ``socket`` is a local socket like /dev/log, ``socket`` with ``.plain`` added one that takes RFC 5424.
    ``server`` names the certificate it shows.
    """

    message_key = "msg"

    def __init__(
        self, folder: Path, certificates: Certificates | None = None, *, server: str = "server"
    ) -> None:
        self.certificates = certificates or Certificates(folder / "pki")
        both = free_port()
        self.ports = {
            "udp": both, "tcp": both, "tls": free_port(), "mtls": free_port(), "relp": free_port(),
        }  # fmt: skip
        self.port = both
        self.socket = folder / "log.sock"
        self.config = folder / "rsyslog.conf"
        self._server = server
        super().__init__(folder)

    def prepare(self) -> None:
        self.config.write_text(
            _CONFIG.format(
                ports=self.ports,
                socket=self.socket,
                out=self.out,
                folder=self.folder,
                certificates=self.certificates,
                cert=getattr(self.certificates, self._server),
                key=getattr(self.certificates, f"{self._server}_key"),
            )
        )
        for path in (self.socket, Path(f"{self.socket}.plain")):
            path.unlink(missing_ok=True)

    def argv(self) -> list[str]:
        program = shutil.which("rsyslogd") or "/usr/sbin/rsyslogd"
        return [program, "-n", "-iNONE", "-f", str(self.config)]

    def is_up(self) -> bool:
        return Path(f"{self.socket}.plain").exists() and all(map(answers, self.ports.values()))
