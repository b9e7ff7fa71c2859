"""A server for HEC, _bulk, Loki and webhooks in a process of its own, which fails as its file ``mode`` says.

``python http_server.py FOLDER PORT [CERT KEY]``. An alert that is taken is a line in FOLDER/out before the
answer goes. Modes, read at each request:

    (empty)       all good
    STATUS [N]    this status to every request, with Retry-After: N
    hang          no answer at all
    reset         taken, and the connection reset in mid-answer
    picky         each alert whose number ends in POISON is refused for good, as the protocol says it
    busy          of each _bulk every third document is answered with 429
    unindexed     HEC: nothing is acknowledged, and what is not is lost when the server is killed
"""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import ssl
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

POISON = "77"
_NUMBER = re.compile(rb"alert number (\d+) of the matrix")


def poisoned(line: bytes) -> bool:
    """Whether a picky server refuses this alert."""
    found = _NUMBER.search(line)
    return found is not None and found[1].decode().endswith(POISON)


class Store:
    """What was taken: lines in ``out``; for HEC with acknowledgement first in memory only."""

    def __init__(self, folder: Path) -> None:
        self.mode_file = folder / "mode"
        self._lock = threading.Lock()
        self._out = (folder / "out").open("ab", buffering=0)
        self._ids = set(re.findall(rb"^id (\S+) ", (folder / "out").read_bytes(), re.MULTILINE))
        self._unindexed: dict[int, list[bytes]] = {}
        self._last = 0

    @property
    def mode(self) -> str:
        """What the case wants now."""
        return self.mode_file.read_text() if self.mode_file.exists() else ""

    def take(self, lines: list[bytes]) -> None:
        """Lines, on the disk when this returns (that of a kernel, which outlives a kill)."""
        with self._lock:
            self._out.write(b"".join(line.replace(b"\n", b" ") + b"\n" for line in lines))

    def create(self, key: bytes, line: bytes) -> bool:
        """A document under its id; False when it is there already."""
        with self._lock:
            if key in self._ids:
                return False
            self._ids.add(key)
            self._out.write(b"id %b %b\n" % (key, line))
            return True

    def hold(self, lines: list[bytes]) -> int:
        """Events that are not indexed yet; the number of their acknowledgement."""
        with self._lock:
            self._last += 1
            self._unindexed[self._last] = lines
            return self._last

    def index(self, number: int) -> bool:
        """Index what was held under a number; True when it is done."""
        lines = self._unindexed.pop(number, None)
        if lines is not None:
            self.take(lines)
        return lines is not None


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        store, mode = self.server.store, self.server.store.mode
        status, _, rest = mode.partition(" ")
        if status.isdigit():
            self._answer(int(status), {"text": "as told", "code": 4 if status == "401" else 9}, rest)
        elif mode == "hang":
            self.rfile.read(1)
            self.close_connection = True
        else:
            path = self.path.partition("?")[0]
            take = {
                "/services/collector/event": self._hec, "/services/collector/ack": self._ack,
                "/loki/api/v1/push": self._loki, "/hook": self._hook,
            }.get(path, self._bulk)  # fmt: skip
            self._answer(*take(body, store, mode))

    def _hec(self, body: bytes, store: Store, mode: str) -> tuple[int, object]:
        events = body.split(b"\n")
        bad = next((at for at, line in enumerate(events) if mode == "picky" and poisoned(line)), None)
        if bad is not None:
            store.take(events[:bad])
            return 400, {"text": "Invalid data format", "code": 6, "invalid-event-number": bad}
        if "X-Splunk-Request-Channel" in self.headers:
            return 200, {"text": "Success", "code": 0, "ackId": store.hold(events)}
        store.take(events)
        return 200, {"text": "Success", "code": 0}

    def _ack(self, body: bytes, store: Store, mode: str) -> tuple[int, object]:
        asked = json.loads(body)["acks"]
        return 200, {"acks": {str(number): mode != "unindexed" and store.index(number) for number in asked}}

    def _bulk(self, body: bytes, store: Store, mode: str) -> tuple[int, object]:
        lines = body.splitlines()
        items = []
        for at, (action, line) in enumerate(zip(lines[::2], lines[1::2], strict=True)):
            if mode == "picky" and poisoned(line):
                error = {"type": "document_parsing_exception", "reason": "as told"}
                items.append({"create": {"status": 400, "error": error}})
            elif mode == "busy" and at % 3 == 2:
                error = {"type": "es_rejected_execution_exception", "reason": "queue is full"}
                items.append({"create": {"status": 429, "error": error}})
            else:
                made = store.create(json.loads(action)["create"]["_id"].encode(), line)
                items.append({"create": {"status": 201 if made else 409}})
        return 200, {"errors": any(item["create"]["status"] >= 300 for item in items), "items": items}

    def _loki(self, body: bytes, store: Store, mode: str) -> tuple[int, object]:
        values = [value for stream in json.loads(body)["streams"] for value in stream["values"]]
        lines = [json.dumps(value).encode() for value in values]
        if mode == "picky" and any(map(poisoned, lines)):
            store.take([line for line in lines if not poisoned(line)])
            return 400, "as told"
        store.take(lines)
        return 204, None

    def _hook(self, body: bytes, store: Store, mode: str) -> tuple[int, object]:
        if mode == "picky" and poisoned(body):
            return 400, "as told"
        store.take([body])
        return 200, {}

    def _reset(self) -> None:
        """Half an answer, and a RST: the descriptor is taken from under the server's orderly shutdown."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())
        self.close_connection = True

    def _answer(self, status: int, content: object, retry_after: str = "") -> None:
        if self.server.store.mode == "reset":
            self._reset()
            return
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        if retry_after:
            self.send_header("Retry-After", retry_after)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """All connections share one store."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int) -> None:
        self.store = Store(folder)
        super().__init__(("127.0.0.1", port), Handler)

    def handle_error(self, *_: object) -> None:
        """A client that went away is no news."""


def main() -> None:
    """Serve until killed."""
    server = Server(Path(sys.argv[1]), int(sys.argv[2]))
    if len(sys.argv) > 3:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[3], sys.argv[4])
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


if __name__ == "__main__":
    main()
