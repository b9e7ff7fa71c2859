"""The laboratory of the scoreboard: one host with real servers and the appliance, one namespace for each attacker."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import services
from lab import End, Lab, wait_until

POLL_S = 0.05
TOOLS = Path(os.environ.get("KWSIEM_SCOREBOARD_TOOLS", "/var/cache/kwsiem-scoreboard"))


def unpacked(program: str, *arguments: str) -> list[str]:
    """The command line of a program that packaging/scoreboard-tools.sh has unpacked."""
    return [str(TOOLS / "run"), program, *arguments]


def plain(address: str) -> str:
    """An address as alerts write it (RFC 5952)."""
    return str(ipaddress.ip_address(address))


def _plain(end: End) -> End:
    return replace(end, ip6=plain(end.ip6))


@dataclass(frozen=True)
class Site:
    """A namespace that is joined to the host: its end and the host's end of the link."""

    name: str
    own: End
    host: End
    #: More addresses of the peer and of the host on this link, for distributed scans and sweeps.
    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()

    def source(self, family: int) -> str:
        return self.own.ip4 if family == 4 else self.own.ip6

    def target(self, family: int) -> str:
        return self.host.ip4 if family == 4 else self.host.ip6

    def more_sources(self, family: int) -> list[str]:
        return [address for address in self.sources if (":" in address) == (family == 6)]

    def more_targets(self, family: int) -> list[str]:
        return [address for address in self.targets if (":" in address) == (family == 6)]


class Field:
    """Makes sites, runs programs in them, and starts the host's servers."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()
        self.key: Path | None = None

    def __enter__(self) -> Field:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def site(self, name: str, more: int = 0) -> Site:
        """A new namespace joined to the host, with ``more`` further addresses at both ends."""
        self.lab.add(name)
        host, own = self.lab.link("host", name)
        net4, net6 = own.ip4.rpartition(".")[0], own.ip6.rpartition(":")[0]
        sources, targets = (
            [f"{net4}.{first + n}" for n in range(more)] + [plain(f"{net6}:{first + n}") for n in range(more)]
            for first in (100, 200)
        )
        for end, addresses in ((own, sources), (host, targets)):
            for address in addresses:
                self.lab.address(end.namespace, end.device, f"{address}/{64 if ':' in address else 24}")
        return Site(name, _plain(own), _plain(host), tuple(sources), tuple(targets))

    def run(
        self,
        name: str,
        argv: Sequence[str],
        limit_s: float,
        *,
        good: Sequence[int] = (0,),
        until: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> str:
        """Runs a program to its end, or until the limit or the condition; gives what it said.

        It is ended with SIGINT, as a person ends it. Raises AssertionError when it ends by itself with an exit code
        that is not among the good ones.
        """
        with tempfile.TemporaryFile(dir=self.folder) as said:
            with self._lock:
                child = self.lab.popen(
                    name, argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, **options
                )
            deadline_s = time.monotonic() + limit_s
            while child.poll() is None and time.monotonic() < deadline_s and not until():
                time.sleep(POLL_S)
            stopped = child.poll() is None
            if stopped:
                self._interrupt(child)
            said.seek(0)
            text = said.read(100_000).decode(errors="replace")
        assert stopped or child.returncode in good, f"{list(argv)}: exit {child.returncode}: {text[-2000:]}"
        return text

    def _interrupt(self, child: subprocess.Popen[Any]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(2)
        self.lab.stop(child)

    def start(self, name: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Starts a server; what it says goes to a file of the folder; it ends with the laboratory."""
        program = argv[1] if argv[0] == str(TOOLS / "run") else argv[0]
        with self._lock, (self.folder / f"{name}-{program}.log").open("wb") as log:
            options.setdefault("stdout", log)
            options.setdefault("stderr", log)
            return self.lab.popen(name, argv, stdin=subprocess.DEVNULL, **options)

    @contextlib.contextmanager
    def gateway(self, site: Site, family: int) -> Iterator[None]:
        """The host's way to everywhere leads over this site, so that it answers forged sources."""
        route = ["-6"] if family == 6 else ["-4"]
        self.lab.ip("host", *route, "route", "replace", "default", "via", site.source(family))
        try:
            yield
        finally:
            self.lab.ip("host", *route, "route", "del", "default")

    def received(self, device: str) -> int:
        """Packets that a device of the host has received."""
        words = self.lab.ip("host", "-s", "-o", "link", "show", "dev", device).partition("RX:")[2]
        return int(words.split("\\")[1].split()[1])

    # -- servers

    def serve(self, *names: str) -> None:
        """Starts these servers on the host; each listens before this returns."""
        for name in dict.fromkeys(names):
            getattr(self, f"_{name}")()

    def _listens(self, name: str, port: int, option: str = "-Hltn") -> None:
        wait_until(
            lambda: self.lab.run(name, ["ss", option, f"sport = :{port}"]).stdout.strip(),
            10,
            f"somebody listens on port {port} of {name}",
        )

    def nginx(self, name: str, *, tls: bool = False) -> Path:
        """A web server on port 80 (and 443) of a namespace; gives the folder it serves."""
        folder = self.folder / f"nginx-{name}"
        root = folder / "root"
        root.mkdir(parents=True)
        for path in (self.folder, folder, root):
            path.chmod(0o755)
        (root / "index.html").write_text("<html><body>hello</body></html>\n")
        (root / "style.css").write_text("body { color: black }\n" * 20)
        (root / "picture").write_bytes(b"\x89PNG" * 2000)
        listen = "listen 80; listen [::]:80;"
        if tls:
            key, certificate = folder / "key.pem", folder / "cert.pem"
            command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
            command += ["-nodes", "-subj", "/CN=test", "-keyout", str(key), "-out", str(certificate)]
            subprocess.run(command, check=True, capture_output=True)
            listen += f" listen 443 ssl; listen [::]:443 ssl; ssl_certificate {certificate}; ssl_certificate_key {key};"
        config = folder / "nginx.conf"
        config.write_text(
            f"daemon off; user root; worker_processes 1; pid {folder}/pid; error_log {folder}/error;\n"
            "worker_rlimit_nofile 20000; events { worker_connections 8192; }\n"
            f"http {{ access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b;\n"
            f"fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;\n"
            f"server {{ {listen} root {root}; }} }}\n"
        )
        self.start(name, ["nginx", "-e", f"{folder}/error", "-c", str(config)])
        self._listens(name, 80)
        return root

    def _nginx(self) -> None:
        self.nginx("host")

    def unbound(self, name: str, forward: str = "") -> None:
        """A resolver: it answers every name itself, or asks another one."""
        config = self.folder / f"unbound-{name}.conf"
        answers = (
            f'forward-zone:\n  name: "."\n  forward-addr: {forward}\n'
            if forward
            else '  local-zone: "." redirect\n  local-data: ". 3600 IN A 192.0.2.77"\n'
        )
        config.write_text(
            'server:\n  interface: 0.0.0.0\n  interface: ::0\n  username: ""\n  chroot: ""\n  use-syslog: no\n'
            f'  pidfile: "{config}.pid"\n  directory: "{self.folder}"\n  do-daemonize: no\n  module-config: "iterator"\n'
            "  access-control: 0.0.0.0/0 allow\n  access-control: ::/0 allow\n  num-threads: 1\n"
            '  do-not-query-localhost: no\n  local-zone: "test." nodefault\n' + answers
        )
        self.start(name, unpacked("unbound", "-d", "-c", str(config)))
        self._listens(name, 53)

    def _unbound(self) -> None:
        self.unbound("host")

    def _redis(self) -> None:
        argv = ["--bind", "0.0.0.0", "::", "--port", "6379", "--protected-mode", "no", "--save", ""]
        argv += ["--requirepass", "n0t-in-the-list", "--dir", str(self.folder)]
        self.start("host", unpacked("redis-server", *argv), cwd=self.folder)
        self._listens("host", 6379)

    def _sshd(self) -> None:
        folder = self.folder / "sshd"
        folder.mkdir()
        self.key = self._stack.enter_context(services.sshd(self.lab, folder))
