"""syslog: messages to a local socket, over UDP, or over TCP.

Plain TCP has no acknowledgement: a write that succeeded is in a buffer of our kernel, and what a receiver
had not read when it ended is gone, with no error before the write after next. So the sender looks for the
end of the connection before and after each batch, and once a second when idle, and the worker sends again
what it sent last when a new connection stands (``replays``; the bounds are the outbox's). A receiver that
restarts loses nothing of that and gets some twice, with the same alert id.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections.abc import Callable, Sequence
from typing import Final

from kwsiem.errors import OutputError
from kwsiem.outputs.base import UNCONFIRMED, BaseOutput, Label, Rendered

#: TCP gives up on unacknowledged data after the time-out (tcp(7), milliseconds).
_TCP_USER_TIMEOUT: Final = 18
_POLLRDHUP: Final = 0x2000  # bits/poll.h
_CHUNK: Final = 64 * 1024

Frame = Callable[[bytes], bytes]


class DatagramOutput(BaseOutput):
    """One datagram for each alert: a local socket (``address`` is a path) or UDP (host and port).

    A local socket that is a stream (some syslog daemons) is served with ``frame`` around each message.
    """

    label: Label = UNCONFIRMED

    def __init__(self, address: str | tuple[str, int], timeout_s: float, frame: Frame) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._frame = frame
        self._socket: socket.socket | None = None
        self._framed = False

    def open(self) -> None:
        """Connect; a host name is looked up anew each time."""
        self.close()
        try:
            self._socket = self._unix() if isinstance(self._address, str) else self._udp(*self._address)
        except OSError as error:
            raise OutputError(f"{self._where}: {error.strerror or error}") from None

    def check(self) -> None:
        """A refusal that came in after the last datagram."""
        self._raise_pending(0)

    def send(self, batch: Sequence[Rendered]) -> None:
        """Send each alert as one datagram; one that is too long for the socket is refused for good."""
        assert self._socket is not None
        for index, alert in enumerate(batch):
            try:
                if self._framed:
                    self._socket.sendall(self._frame(alert.data))
                else:
                    self._socket.send(alert.data)
            except OSError as error:
                too_long = error.errno == errno.EMSGSIZE
                message = f"{self._where}: {error.strerror or error}"
                raise OutputError(message, retryable=not too_long, sent=index) from None
            self._raise_pending(index)

    def close(self) -> None:
        """Close the socket."""
        if self._socket:
            self._socket.close()
            self._socket = None

    @property
    def _where(self) -> str:
        return self._address if isinstance(self._address, str) else "{}:{} (udp)".format(*self._address)

    def _raise_pending(self, sent: int) -> None:
        """ICMP port unreachable arrives as an error of the socket, on loopback before send returns."""
        assert self._socket is not None
        pending = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if pending:
            raise OutputError(f"{self._where}: {os.strerror(pending)}", sent=sent)

    def _unix(self) -> socket.socket:
        try:
            self._framed = False
            return self._connected(socket.AF_UNIX, socket.SOCK_DGRAM, self._address)
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise
            self._framed = True
            return self._connected(socket.AF_UNIX, socket.SOCK_STREAM, self._address)

    def _udp(self, host: str, port: int) -> socket.socket:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        family, kind, _, _, address = found[0]
        return self._connected(family, kind, address)

    def _connected(self, family: int, kind: int, address: object) -> socket.socket:
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(self._timeout_s)
            sock.connect(address)  # type: ignore[arg-type]
        except OSError:
            sock.close()
            raise
        return sock


class TcpOutput(BaseOutput):
    """A stream of framed messages over TCP; ``frame`` is octet counting or newline (RFC 6587)."""

    label: Label = UNCONFIRMED
    replays = True

    def __init__(self, host: str, port: int, timeout_s: float, frame: Frame) -> None:
        self._host = host
        self._port = port
        self._timeout_s = timeout_s
        self._frame = frame
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Connect."""
        self.close()
        try:
            sock = socket.create_connection((self._host, self._port), self._timeout_s)
        except OSError as error:
            raise OutputError(f"{self._where}: {error.strerror or error}") from None
        self._socket = sock
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, int(self._timeout_s * 1000))

    def check(self) -> None:
        """Raise OutputError when the receiver has closed or reset the connection."""
        assert self._socket is not None
        poller = select.poll()
        poller.register(self._socket, select.POLLIN | _POLLRDHUP)
        for _, events in poller.poll(0):
            if events & (_POLLRDHUP | select.POLLHUP | select.POLLERR) or not self._discard():
                raise OutputError(f"{self._where}: the receiver closed the connection")

    def send(self, batch: Sequence[Rendered]) -> None:
        """Send framed messages."""
        self.check()
        self._write([self._frame(alert.data) for alert in batch])
        self.check()

    def close(self) -> None:
        """Close the connection."""
        if self._socket:
            self._socket.close()
            self._socket = None

    @property
    def _where(self) -> str:
        return f"{self._host}:{self._port} (tcp)"

    def _write(self, frames: Sequence[bytes]) -> None:
        assert self._socket is not None
        try:
            self._socket.sendall(b"".join(frames))
        except OSError as error:
            raise OutputError(f"{self._where}: {error.strerror or error}") from None

    def _discard(self) -> bool:
        """Throw away what a receiver says (it should say nothing); False at the end of the stream."""
        assert self._socket is not None
        try:
            return bool(self._socket.recv(_CHUNK))
        except OSError:
            return False
