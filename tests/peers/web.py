"""A strict HTTP/1.1 server over real sockets, with faults on demand: what the receivers below are made of.

It reads requests by hand, so that a test sees the bytes that were sent and not what a library makes of them.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import ssl
import struct
import threading
import zlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

MAX_REQUESTS = 10_000
#: No thread of a server waits for longer, whatever a test does.
PATIENCE_S = 30.0
ULID = re.compile(r"\b[0-7][0-9A-HJKMNP-TV-Z]{25}\b")


@dataclass
class Request:
    method: str
    target: str
    headers: Mapping[str, str]
    raw: bytes
    connection: int

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return {key: values[-1] for key, values in parse_qs(urlsplit(self.target).query).items()}

    @property
    def body(self) -> bytes:
        """Unpacked; raises Refused 415 for anything but gzip."""
        coding = self.headers.get("content-encoding", "identity")
        if coding == "identity":
            return self.raw
        if coding != "gzip":
            raise Refused(415, f"unsupported content encoding {coding}")
        try:
            return gzip.decompress(self.raw)
        except (OSError, EOFError, zlib.error) as error:
            raise Refused(400, f"bad gzip: {error}") from None


@dataclass
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: Any, status: int = 200, **headers: str) -> Reply:
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})

    def wire(self) -> bytes:
        head = {"Content-Length": str(len(self.body)), **self.headers}
        if self.status == 204:
            head.pop("Content-Length")
        lines = [f"HTTP/1.1 {self.status} x", *(f"{name}: {value}" for name, value in head.items())]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + self.body


class Refused(Exception):
    """A request that the server answers with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.reply = Reply(status, text.encode())


# Faults: what happens to a request instead of, or after, its being served.


@dataclass
class Say:
    """Answer this and store nothing."""

    reply: Reply


@dataclass
class Hang:
    """Never answer; with ``stored`` the request is served nevertheless."""

    stored: bool = False


@dataclass
class Drip:
    """Serve it, then answer one byte at a time for ever: the head, or with ``body`` the body."""

    body: bool = False
    every_s: float = 0.05


@dataclass
class Reset:
    """Serve it, and reset the connection after ``after`` bytes of the answer."""

    after: int = 20


@dataclass
class Cut:
    """Serve it, and close after so many bytes of the answer, in order."""

    after: int = 20


@dataclass
class CloseAfter:
    """Serve and answer it, and close the connection without having said so."""


@dataclass
class Bytes:
    """Store nothing and send these bytes instead of an answer."""

    data: bytes


Fault = Say | Hang | Drip | Reset | Cut | CloseAfter | Bytes


class Peer:
    """Serves on a free port of loopback from its making until :meth:`close`, a thread for each connection.

    ``faults`` are taken from the left, one for each request (None: serve it). ``always`` is for those after
    them. ``stored`` are the alert ids that were stored, in order, repetitions and all. ``violations`` are
    what a client must never do. ``tls`` is (certificate, key); ``client_ca`` asks for client certificates.
    """

    def __init__(self, *, tls: tuple[str, str] | None = None, client_ca: str = "", port: int = 0) -> None:
        self.faults: deque[Fault | None] = deque()
        self.always: Fault | None = None
        self.stored: list[str] = []
        self.violations: list[str] = []
        self.requests: deque[Request] = deque(maxlen=MAX_REQUESTS)
        self.connections = 0
        self._context = _server_context(tls, client_ca) if tls else None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listening = socket.create_server(("127.0.0.1", port), backlog=64)
        self._start(self._accept)

    @property
    def port(self) -> int:
        return int(self._listening.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http{'s' if self._context else ''}://127.0.0.1:{self.port}"

    def serve(self, request: Request) -> Reply:
        """Answer a request; the receivers below do."""
        return Reply(200, b"ok")

    def close(self) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, run: Any, *args: Any) -> None:
        thread = threading.Thread(target=run, args=args, daemon=True)
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            sock.settimeout(PATIENCE_S)
            self._start(self._connection, sock, self.connections)

    def _connection(self, sock: socket.socket, number: int) -> None:
        with self._lock:
            self._open.add(sock)
        plain = sock
        try:
            if self._context:
                sock = self._context.wrap_socket(sock, server_side=True)
                with self._lock:
                    self._open.discard(plain)
                    self._open.add(sock)
            with sock.makefile("rb") as stream:
                while not self._closing.is_set() and self._one(sock, stream, number):
                    pass
        except (OSError, ValueError):
            pass  # the client went away, or did not like our certificate
        finally:
            with self._lock:
                self._open.discard(sock)
                self._open.discard(plain)
            sock.close()

    def _one(self, sock: socket.socket, stream: Any, number: int) -> bool:
        if not stream.peek(1)[:1].isalpha():
            sock.sendall(Reply(400).wire())  # the end of the stream, or TLS to a port without
            return False
        request = self._read(stream, number)
        if request is None:
            return False
        self.requests.append(request)
        with self._lock:
            fault = self.faults.popleft() if self.faults else self.always
        if isinstance(fault, Say):
            sock.sendall(fault.reply.wire())
            return True
        if isinstance(fault, Bytes):
            sock.sendall(fault.data)
            return False
        if isinstance(fault, Hang):
            if fault.stored:
                self._reply(request)
            self._until_gone(sock)
            return False
        wire = self._reply(request).wire()
        if isinstance(fault, Drip):
            self._drip(sock, wire, fault)
            return False
        if isinstance(fault, (Cut, Reset)):
            sock.sendall(wire[: fault.after])
            if isinstance(fault, Reset):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        sock.sendall(wire)
        return not isinstance(fault, CloseAfter)

    def _reply(self, request: Request) -> Reply:
        with self._lock:
            try:
                return self.serve(request)
            except Refused as refused:
                return refused.reply

    def _read(self, stream: Any, number: int) -> Request | None:
        line = stream.readline(65537)
        if not line.strip():
            return None
        method, target, version = line.decode("latin-1").split()
        headers: dict[str, str] = {}
        while (line := stream.readline(65537)) not in {b"\r\n", b""}:
            name, _, value = line.decode("latin-1").partition(":")
            if name.lower() in headers:
                self.violations.append(f"header {name} twice")
            headers[name.lower()] = value.strip()
        if version != "HTTP/1.1" or "host" not in headers:
            self.violations.append(f"{version}, headers {sorted(headers)}")
        if "transfer-encoding" in headers or (method == "POST" and "content-length" not in headers):
            self.violations.append("a body without Content-Length")
            return None
        if not headers.get("user-agent", "").startswith("kwsiem/"):
            self.violations.append(f"User-Agent {headers.get('user-agent')!r}")
        length = int(headers.get("content-length", "0"))
        raw = stream.read(length)
        return Request(method, target, headers, raw, number) if len(raw) == length else None

    def _until_gone(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while sock.recv(65536):
                pass

    def _drip(self, sock: socket.socket, wire: bytes, fault: Drip) -> None:
        begin = b"HTTP/1.1 200 x\r\nX-A: "
        if fault.body:
            begin = b"HTTP/1.1 200 x\r\nContent-Length: 1000000\r\n\r\n"
        sock.sendall(begin)
        while not self._closing.wait(fault.every_s):
            sock.sendall(b"a")


def _server_context(tls: tuple[str, str], client_ca: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*tls)
    if client_ca:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def strict_json(text: str | bytes) -> Any:
    """JSON as servers in Java and Go read it: no NaN, no key twice in an object, no lone surrogates."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError(f"duplicate field in {sorted(found)}")
        return found

    def never(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    found = json.loads(text, object_pairs_hook=once, parse_constant=never)
    json.dumps(found, ensure_ascii=False).encode()
    return found


def alert_id(found: Any) -> str:
    """The id in an alert of any format; raises ValueError when there is none."""
    if isinstance(found, dict):
        for path in (("event", "id"), ("id",), ("metadata", "uid"), ("_alert_id",)):
            value: Any = found
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            if isinstance(value, str):
                return value
        found = json.dumps(found)
    ids = ULID.findall(found)
    if not ids:
        raise ValueError(f"no alert id in {found[:200]!r}")
    return str(ids[0])
