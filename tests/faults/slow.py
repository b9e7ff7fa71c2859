"""A TCP receiver that reads as slowly as it is told, in a thread: what it has read goes to a tally."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from peers.daemon import free_port

TICK_S = 0.1


class SlowReceiver:
    """Takes connections one after the other; reads ``bytes_per_s`` (0: as fast as it can) up to newlines."""

    def __init__(self, bytes_per_s: int, port: int = 0) -> None:
        self.port = port or free_port()
        self.bytes_per_s = bytes_per_s
        self.connections = 0
        self.take: Callable[[bytes], None] = lambda _: None
        self._ended = threading.Event()
        self._server = socket.create_server(("127.0.0.1", self.port))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()

    def _serve(self) -> None:
        while not self._ended.is_set():
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                self._read(connection)

    def _read(self, connection: socket.socket) -> None:
        connection.settimeout(TICK_S)
        rest = b""
        while not self._ended.is_set():
            slow = self.bytes_per_s
            if slow:
                self._ended.wait(TICK_S)
            try:
                data = connection.recv(int(slow * TICK_S) or 65536)
            except TimeoutError:
                continue
            except OSError:
                return
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self.take(line)
