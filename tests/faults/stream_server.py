"""A TCP receiver in a process of its own: ``python stream_server.py FOLDER PORT``.

Messages end with NUL or newline; each is a line in FOLDER/out.
"""

from __future__ import annotations

import re
import socketserver
import sys
import threading
from pathlib import Path


class Handler(socketserver.BaseRequestHandler):
    """One connection, read to its end."""

    server: Server

    def handle(self) -> None:
        """What is not ended when the connection is, is no message."""
        rest = b""
        while data := self.request.recv(65536):
            *messages, rest = re.split(rb"[\0\n]", rest + data)
            with self.server.lock:
                self.server.out.write(b"".join(message + b"\n" for message in messages))


class Server(socketserver.ThreadingTCPServer):
    """All connections write to one file."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, folder: Path, port: int) -> None:
        self.lock = threading.Lock()
        self.out = (folder / "out").open("ab", buffering=0)
        super().__init__(("127.0.0.1", port), Handler)

    def handle_error(self, *_: object) -> None:
        """A sender that was killed is no news."""


if __name__ == "__main__":
    Server(Path(sys.argv[1]), int(sys.argv[2])).serve_forever()
