"""What the chat servers of the tests share: HTTP on loopback that can be told to fail in every way."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
import threading
import traceback
from collections import deque
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, bytes, Mapping[str, str]]


class ChatServer:
    """Answers POSTs by :meth:`take`, which a subclass writes.

    ``faults`` are used up by one request each: ``reset`` (nothing was done), ``reset-after`` (it was done,
    the answer is lost), ``hang`` (until the server is closed), or an :data:`Answer` instead of the real one.
    ``certificate`` is a file with a chain and its key, for https.
    """

    def __init__(self, context: Any = None) -> None:
        self.faults: deque[str | Answer] = deque()
        self.requests: list[tuple[str, bytes]] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._open: set[socket.socket] = set()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        if context:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._server.track = self._open
        self._server.bugs = []
        scheme = "https" if context else "http"
        self.url = f"{scheme}://localhost:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def take(self, path: str, body: bytes) -> Answer:
        """The answer to one request; called with the lock held."""
        raise NotImplementedError

    def close(self) -> None:
        """End, and everything that hangs too."""
        self._closing.set()
        self._server.shutdown()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._thread.join()
        assert not self._server.bugs, self._server.bugs

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _handler(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with outer._lock:
                    outer.requests.append((self.path, body))
                    fault = outer.faults.popleft() if outer.faults else None
                    done = isinstance(fault, tuple) or fault in ("reset", "hang")
                    answer = (
                        fault if isinstance(fault, tuple) else None if done else outer.take(self.path, body)
                    )
                if fault == "hang":
                    outer._closing.wait()
                if fault in ("reset", "reset-after", "hang"):
                    self._reset()
                    return
                self._say(*answer)

            def _say(self, status, body, headers):
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def _reset(self):
                self.close_connection = True
                try:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                except OSError:
                    pass

            def log_message(self, *_):
                pass

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    track: set[socket.socket]
    bugs: list[str]

    def finish_request(self, request, client_address):
        self.track.add(request)
        try:
            super().finish_request(request, client_address)
        except OSError:
            pass
        finally:
            self.track.discard(request)

    def handle_error(self, request, client_address):
        """Clients of these tests break off on purpose; anything else is a bug of the server."""
        if not isinstance(sys.exc_info()[1], OSError):
            self.bugs.append(traceback.format_exc())


def json_answer(status: int, value: Any) -> Answer:
    """An answer with a JSON body."""
    return status, json.dumps(value).encode(), {"Content-Type": "application/json"}
