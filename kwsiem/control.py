"""The control socket: one request line, one answer line, JSON, for root on this host.

Served inside the sensor's loop: a client has :data:`CLIENT_TIMEOUT_S` for its few bytes, then it is gone.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from kwsiem.errors import UnavailableError

MAX_REQUEST_BYTES: Final = 4096
CLIENT_TIMEOUT_S: Final = 0.2
ANSWER_TIMEOUT_S: Final = 10.0

Handler = Callable[[dict[str, Any]], dict[str, Any]]


class ControlServer:
    """Listens on a unix socket that only root may open (mode 0600)."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        finally:
            os.umask(before)
        self._socket.listen(16)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """The descriptor, for a selector."""
        return self._socket.fileno()

    def serve(self) -> None:
        """Take one client, answer it, let it go; a bad one gets an error or nothing."""
        try:
            client, _ = self._socket.accept()
        except (BlockingIOError, ConnectionError):
            return
        with client, contextlib.suppress(OSError):
            client.settimeout(CLIENT_TIMEOUT_S)
            client.sendall(msgspec.json.encode(self._answer(_line(client))) + b"\n")

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            return self._handler(msgspec.json.decode(line, type=dict[str, Any]))
        except msgspec.DecodeError as error:
            return {"error": f"not a request: {error}"}

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()
        self._path.unlink(missing_ok=True)


def _line(client: socket.socket) -> bytes:
    data = b""
    while b"\n" not in data and len(data) <= MAX_REQUEST_BYTES:
        part = client.recv(MAX_REQUEST_BYTES)
        if not part:
            break
        data += part
    return data


def ask(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Ask the running appliance; raises UnavailableError when there is none or we may not."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(ANSWER_TIMEOUT_S)
            client.connect(str(path))
            client.sendall(msgspec.json.encode(request) + b"\n")
            with client.makefile("rb") as answer:
                found: dict[str, Any] = msgspec.json.decode(answer.read(), type=dict[str, Any])
                return found
    except PermissionError:
        raise UnavailableError(f"{path}: only root may ask the appliance; try sudo") from None
    except (OSError, msgspec.DecodeError) as error:
        reason = "kwsiem is not running" if isinstance(error, (FileNotFoundError, ConnectionError)) else error
        raise UnavailableError(f"{reason} (no answer on {path}); start it with: kwsiem run") from None
