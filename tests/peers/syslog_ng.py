"""A real syslog-ng of our own, from the folder that packaging/test-peers.sh makes."""

from __future__ import annotations

import os
from pathlib import Path

from peers.certificates import Certificates
from peers.daemon import Daemon, answers, free_port

#: Flow control: it reads no faster than it writes, and drops nothing by itself.
_CONFIG = """@version: 3.38
options {{
  keep-hostname(yes); chain-hostnames(no); use-dns(no); dns-cache(no); stats-freq(0); flush-lines(1);
  keep-timestamp(yes); create-dirs(no);
}};
source s_udp {{ syslog(transport("udp") ip("127.0.0.1") port({ports[udp]}) so-rcvbuf(8388608)); }};
source s_octets {{ syslog(transport("tcp") ip("127.0.0.1") port({ports[tcp-octets]})); }};
source s_newline {{
  network(transport("tcp") ip("127.0.0.1") port({ports[tcp-newline]}) flags(syslog-protocol));
}};
source s_bsd {{ network(transport("tcp") ip("127.0.0.1") port({ports[tcp-bsd]})); }};
source s_tls {{
  syslog(transport("tls") ip("127.0.0.1") port({ports[tls]})
    tls(key-file("{key}") cert-file("{cert}") ca-file("{certificates.ca}") peer-verify(optional-untrusted)));
}};
source s_mtls {{
  syslog(transport("tls") ip("127.0.0.1") port({ports[mtls]})
    tls(key-file("{key}") cert-file("{cert}") ca-file("{certificates.ca}") peer-verify(required-trusted)));
}};
destination d_out {{ file("{out}" template("{template}\\n")); }};
log {{
  source(s_udp); source(s_octets); source(s_newline); source(s_bsd); source(s_tls); source(s_mtls);
  destination(d_out); flags(flow-control);
}};
"""


#: Everything but the same times over again.
_TEMPLATE = "$(format-json --scope everything --exclude C_* --exclude P_* --exclude R_* --exclude S_*)"


class SyslogNg(Daemon):
    """One syslog-ng in a folder of its own, on loopback.

    ``ports`` has udp, tcp-octets (``syslog()``), tcp-newline (``network()``, RFC 5424), tcp-bsd
    (``network()``, RFC 3164), tls, and mtls, which asks for a client certificate. ``server`` names the
    certificate it shows. Records have syslog-ng's own names: PRIORITY, FACILITY, ISODATE, HOST, PROGRAM,
    PID, MSGID, MESSAGE.
    """

    message_key = "MESSAGE"

    def __init__(
        self, folder: Path, certificates: Certificates | None = None, *, server: str = "server"
    ) -> None:
        self.certificates = certificates or Certificates(folder / "pki")
        names = ("udp", "tcp-octets", "tcp-newline", "tcp-bsd", "tls", "mtls")
        self.ports = {name: free_port() for name in names}
        self.config = folder / "syslog-ng.conf"
        self._server = server
        super().__init__(folder)

    def prepare(self) -> None:
        self.config.write_text(
            _CONFIG.format(
                ports=self.ports,
                out=self.out,
                template=_TEMPLATE,
                certificates=self.certificates,
                cert=getattr(self.certificates, self._server),
                key=getattr(self.certificates, f"{self._server}_key"),
            )
        )

    def argv(self) -> list[str]:
        peers = Path(os.environ.get("KWSIEM_TEST_PEERS", "/var/cache/kwsiem-test-peers"))
        files = {"-f": "syslog-ng.conf", "-R": "persist", "-p": "pid", "-c": "control"}
        paths = [part for flag, name in files.items() for part in (flag, str(self.folder / name))]
        return [str(peers / "run-syslog-ng"), "-F", "--no-caps", *paths]

    def is_up(self) -> bool:
        return all(answers(port) for name, port in self.ports.items() if name != "udp")
