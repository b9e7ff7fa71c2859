"""The two processes: the child that speaks HTTP without rights, and the parent that answers it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import select
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import msgspec
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from kwsiem import clock
from kwsiem.apart import spawn
from kwsiem.config import Settings
from kwsiem.dashboard.desk import Answered, Desk, FromChild, Parent, serve_one
from kwsiem.dashboard.picture import Pictures
from kwsiem.dashboard.sessions import Door
from kwsiem.dashboard.token import DIGEST_BYTES, digest_of
from kwsiem.dashboard.web import Address, Dashboard
from kwsiem.errors import ConfigError, KwsiemError
from kwsiem.event import EventKind
from kwsiem.link import Link, link_pair

MAX_CONNECTIONS: Final = 64
#: Connections that have not begun TLS are not counted among those; files of the history come on top.
MAX_FILES: Final = 256
#: A connection says what it wants within this; between two requests it may be silent for KEEP_S.
REQUEST_S: Final = 10.0
KEEP_S: Final = 15
#: No connection lives longer than a stream of events and what went before it.
CONNECTION_S: Final = 900.0
MAX_HEADER_BYTES: Final = 16 * 1024
#: Imported by these libraries or by Python when they are first needed: by then we may not read them.
_LATER: Final = (
    "uvicorn.loops.asyncio", "uvicorn.lifespan.off", "anyio._backends._asyncio", "encodings.idna",
    "encodings.unicode_escape", "asyncio.selector_events", "asyncio.runners", "asyncio.sslproto",
    "http.cookies", "concurrent.futures.thread", "sqlite3", "kwsiem.rules.sigma", "unicodedata", "stringprep",
)  # fmt: skip

log = logging.getLogger("kwsiem.dashboard")


class Options(msgspec.Struct, frozen=True):
    """Where to listen, with which certificate, under which further names."""

    listen: tuple[str, int]
    certificate: str = ""
    key: str = ""
    names: tuple[str, ...] = ()


class Loop(asyncio.SelectorEventLoop):
    """Gives TLS as little time to begin as a request has; Python's own bound is a minute."""

    async def create_server(self, *args: Any, **options: Any) -> Any:
        """As asyncio's."""
        if options.get("ssl"):
            options["ssl_handshake_timeout"] = REQUEST_S
        return await super().create_server(*args, **options)


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 for at most MAX_CONNECTIONS, none of which can be held open for nothing."""

    def connection_made(self, transport: Any) -> None:
        """A new connection: it must ask for something soon."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._silent = self.loop.call_later(REQUEST_S, self._end_silent)
        self._longest = self.loop.call_later(CONNECTION_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        for timer in (getattr(self, "_silent", None), getattr(self, "_longest", None)):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """It may ask for the next thing."""
        super().on_response_complete()
        self._silent.cancel()
        self._silent = self.loop.call_later(REQUEST_S + KEEP_S, self._end_silent)

    def _end_silent(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


def configured(dashboard: Dashboard, options: Options) -> uvicorn.Config:
    """Everything about the HTTP server; reads certificate and key, raises ConfigError when it cannot."""
    config = uvicorn.Config(
        dashboard.app, http=BoundedProtocol, loop="asyncio", ws="none", lifespan="off", log_config=None,
        access_log=False, server_header=False, proxy_headers=False, interface="asgi3",
        timeout_keep_alive=KEEP_S, timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ssl_certfile=options.certificate or None, ssl_keyfile=options.key or None,
    )  # fmt: skip
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"{options.certificate}, {options.key or 'no key'}: {error}") from None
    return config


def listening(address: tuple[str, int]) -> socket.socket:
    """A socket that listens; raises KwsiemError."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(MAX_CONNECTIONS)
    except OSError as error:
        sock.close()
        raise KwsiemError(f"cannot listen on {address[0]} port {address[1]}: {error.strerror}") from None
    return sock


def run(
    settings: Settings,
    options: Options,
    token: Callable[[], str],
    kinds: Mapping[str, EventKind],
    ask: Callable[[dict[str, Any]], dict[str, Any]],
    rules: Callable[[], Mapping[str, bytes]],
) -> int:
    """Both processes, until one ends; the exit code.

    ``token`` is called once there are two, so that it is in the memory of the parent alone.
    """
    for name in _LATER:
        import_module(name)
    ours, theirs = link_pair()
    stop_reader, stop_writer = os.pipe()
    os.set_blocking(stop_writer, False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: os.write(stop_writer, b"\0"))
    http = _Http(settings, options, kinds, theirs)
    child = spawn(settings.user, http.serve, keep=(theirs.fileno(),), first=http.prepare)
    theirs.close()
    link: Link[FromChild] = Link(ours, FromChild)
    try:
        with contextlib.suppress(BrokenPipeError):
            ours.send(digest_of(token()))
        _answer(Desk(ask, rules), link, stop_reader)
    finally:
        link.close()
        code = _ended(child)
    if code:
        log.error("the process that serves the dashboard has ended by itself")
    return code


def _answer(desk: Desk, link: Link[FromChild], stop: int) -> None:
    """Until the child has gone or somebody wants us to stop."""
    while not link.closed:
        ready, _, _ = select.select([link.fileno(), stop], [], [])
        if stop in ready:
            return
        serve_one(desk, link)


def _ended(child: int) -> int:
    """The child's end: asked, then forced."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGTERM)
    deadline_s = clock.monotonic_s() + 3.0
    while clock.monotonic_s() < deadline_s:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return 0 if code in (0, -signal.SIGTERM) else max(code, 1)
        clock.sleep_s(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 1


class _Http:
    """The life of the process that speaks HTTP."""

    def __init__(
        self, settings: Settings, options: Options, kinds: Mapping[str, EventKind], link: socket.socket
    ) -> None:
        self._settings, self._options, self._kinds, self._link = settings, options, kinds, link

    def prepare(self) -> None:
        """All that needs rights: the pages, certificate and key; raises KwsiemError."""
        digest = self._link.recv(2 * DIGEST_BYTES)
        if len(digest) != DIGEST_BYTES:
            os._exit(0)  # the parent has ended, and said why
        host, port = self._options.listen
        self._address = Address(host, port, is_tls=bool(self._options.certificate), names=self._options.names)
        asker = Parent(Link(self._link, Answered))
        pictures = Pictures(Path(self._settings.state_dir))
        dashboard = Dashboard(self._address, Door(digest), asker, pictures, self._kinds)
        self._config = configured(dashboard, self._options)

    def serve(self) -> None:
        """Serve without rights until told to stop."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
        serve(self._config, [listening(self._options.listen)], self._address)


def serve(config: uvicorn.Config, sockets: Sequence[socket.socket], address: Address) -> None:
    """Serve until told to stop."""
    log.info("the dashboard is served", extra={"listen": sockets[0].getsockname()[:2], "tls": address.is_tls})
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    serve_until_told(uvicorn.Server(config), sockets)


def serve_until_told(http: uvicorn.Server, sockets: Sequence[socket.socket]) -> None:
    """Serve in a loop of our own."""
    with contextlib.closing(Loop()) as loop:
        loop.run_until_complete(http.serve(list(sockets)))
        loop.run_until_complete(loop.shutdown_default_executor())
