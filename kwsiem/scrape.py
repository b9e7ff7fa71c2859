"""A small HTTP server for readers of metrics: one page, in one thread, with bounds on everything.

It answers GET and HEAD of ``/metrics`` and closes each connection after its answer (RFC 9112, section 9.6).
A reader has READER_S from its first byte to the last one of its answer, whatever it does in between; nobody
waits for another.
"""

from __future__ import annotations

import contextlib
import logging
import re
import selectors
import socket
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from kwsiem import clock

MAX_READERS: Final = 32
MAX_REQUEST_BYTES: Final = 8192
#: As long as Prometheus gives a scrape (scrape_timeout).
READER_S: Final = 10.0
#: Bytes of an answer that one turn of the loop sends at most.
_SEND_BYTES: Final = 256 * 1024
#: After the answer what the reader still sends is taken and thrown away: a reset could cost it the answer.
_LINGER_BYTES: Final = 64 * 1024
_REQUEST: Final = re.compile(rb"([A-Z]{1,16}) (/[!-~]*) HTTP/1\.[01]")
_HEADER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*)")
_END: Final = re.compile(rb"\r?\n\r?\n")

log = logging.getLogger("kwsiem.exporter")

#: Gives the page and its content type for the value of an Accept header.
Page = Callable[[str], tuple[bytes, str]]


class Request(NamedTuple):
    """What of a request matters here."""

    method: str
    path: str
    headers: Mapping[str, str]


class BadRequestError(ValueError):
    """Not a request of HTTP/1."""


def parse_request(data: bytes) -> Request:
    """The request line and the headers, names in lower case; raises BadRequestError."""
    lines = data.replace(b"\r\n", b"\n").split(b"\n")
    first = _REQUEST.fullmatch(lines[0])
    if first is None:
        raise BadRequestError("request line")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise BadRequestError("header")
        headers[header[1].decode("ascii").lower()] = header[2].decode("latin-1").strip()
    return Request(first[1].decode("ascii"), first[2].decode("ascii").split("?")[0], headers)


class _Reader:
    """One connection: what has come of its request, or what is left of its answer."""

    def __init__(self, sock: socket.socket, until_s: float) -> None:
        self.socket = sock
        self.until_s = until_s
        self.request = b""
        self.answer = memoryview(b"")
        self.is_answered = False
        self.lingered = 0


class MetricsServer:
    """Serves the page; drive it with :meth:`step`. Raises OSError when it cannot listen there."""

    def __init__(self, address: tuple[str, int], page: Page, *, reader_s: float = READER_S) -> None:
        self.served = 0
        self.refused = 0
        self._page = page
        self._reader_s = reader_s
        self._readers: dict[int, _Reader] = {}
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setblocking(False)
            self._socket.bind(address)
            self._socket.listen(MAX_READERS)
        except BaseException:
            self._socket.close()
            raise
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        found = self._socket.getsockname()
        return found[0], found[1]

    @property
    def readers(self) -> int:
        """Connections that are open."""
        return len(self._readers)

    def fileno(self) -> int:
        """A descriptor that is readable when :meth:`step` has something to do."""
        return self._selector.fileno()

    def step(self, timeout_s: float = 0.0) -> None:
        """Do what there is to do; wait for it so long at most."""
        for key, events in self._selector.select(timeout_s):
            if key.fileobj is self._socket:
                self._accept()
            elif reader := self._readers.get(key.fd):
                self._go_on(reader, events)
        now_s = clock.monotonic_s()
        for reader in [each for each in self._readers.values() if now_s > each.until_s]:
            self._close(reader)

    def close(self) -> None:
        """Stop listening, let go of all readers."""
        for reader in list(self._readers.values()):
            self._close(reader)
        self._selector.close()
        self._socket.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._socket.accept()
        except OSError:
            return
        if len(self._readers) >= MAX_READERS:
            self.refused += 1
            sock.close()
            return
        sock.setblocking(False)
        self._readers[sock.fileno()] = _Reader(sock, clock.monotonic_s() + self._reader_s)
        self._selector.register(sock, selectors.EVENT_READ)

    def _go_on(self, reader: _Reader, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                self._receive(reader)
            elif events & selectors.EVENT_WRITE:
                self._send(reader)
        except BlockingIOError:
            return
        except OSError:
            self._close(reader)

    def _receive(self, reader: _Reader) -> None:
        data = reader.socket.recv(4096)
        if reader.is_answered:
            reader.lingered += len(data)
            if not data or reader.lingered > _LINGER_BYTES:
                self._close(reader)
            return
        reader.request += data
        end = _END.search(reader.request)
        if end is not None and end.end() <= MAX_REQUEST_BYTES:
            self._answer(reader, *self._respond(reader.request[: end.start()]))
        elif len(reader.request) > MAX_REQUEST_BYTES:
            self._answer(reader, *_error(431, "Request Header Fields Too Large"))
        elif not data:
            self._close(reader)

    def _respond(self, head: bytes) -> tuple[bytes, bool]:
        """The answer to a request, and whether it is the page."""
        try:
            request = parse_request(head)
        except BadRequestError:
            return _error(400, "Bad Request")
        if request.method not in {"GET", "HEAD"}:
            return _error(405, "Method Not Allowed", "Allow: GET, HEAD\r\n")
        if request.path != "/metrics":
            return _error(404, "Not Found")
        try:
            body, content_type = self._page(request.headers.get("accept", ""))
        except Exception:
            # The edge: a figure that no test foresaw must cost this answer, not the endpoint.
            log.exception("metrics cannot be made")
            return _error(500, "Internal Server Error")
        head_only = request.method == "HEAD"
        return _response("200 OK", content_type, body, "", is_head=head_only), True

    def _answer(self, reader: _Reader, answer: bytes, is_page: bool) -> None:
        self.served += is_page
        self.refused += not is_page
        reader.request = b""
        reader.answer = memoryview(answer)
        self._selector.modify(reader.socket, selectors.EVENT_WRITE)

    def _send(self, reader: _Reader) -> None:
        sent = reader.socket.send(reader.answer[:_SEND_BYTES])
        reader.answer = reader.answer[sent:]
        if not reader.answer:
            reader.is_answered = True
            reader.socket.shutdown(socket.SHUT_WR)
            self._selector.modify(reader.socket, selectors.EVENT_READ)

    def _close(self, reader: _Reader) -> None:
        self._readers.pop(reader.socket.fileno(), None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(reader.socket)
        reader.socket.close()


def _error(code: int, reason: str, headers: str = "") -> tuple[bytes, bool]:
    body = f"{reason}\n".encode("ascii")
    return _response(f"{code} {reason}", "text/plain; charset=utf-8", body, headers, is_head=False), False


def _response(status: str, content_type: str, body: bytes, headers: str, *, is_head: bool) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{headers}Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + (b"" if is_head else body)
