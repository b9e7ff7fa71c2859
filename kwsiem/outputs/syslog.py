"""syslog: messages to a local socket, over UDP, or over TCP.

Plain TCP has no acknowledgement: a write that succeeded is in a buffer of our kernel, and what a receiver
had not read when it ended is gone, with no error before the write after next. So the sender looks for the
end of the connection before and after each batch, and once a second when idle, and keeps the last messages
in a bounded :class:`Window`; after a reconnect they are sent again. A receiver that restarts loses nothing
of them and gets some twice, with the same alert id. Bound: WINDOW_MESSAGES, WINDOW_BYTES, WINDOW_S. The
window lives in memory: it does not outlast the courier.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from kwsiem.clock import monotonic_s
from kwsiem.errors import OutputError
from kwsiem.outputs.base import UNCONFIRMED, Label, Rendered

WINDOW_MESSAGES: Final = 2048
WINDOW_BYTES: Final = 4 * 2**20
#: A receiver that kept the connection for so long after a message has read it.
WINDOW_S: Final = 600.0
#: TCP gives up on unacknowledged data after the time-out (tcp(7), milliseconds).
_TCP_USER_TIMEOUT: Final = 18
_POLLRDHUP: Final = 0x2000  # bits/poll.h
_CHUNK: Final = 64 * 1024

Frame = Callable[[bytes], bytes]


class DatagramOutput:
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


class Window:
    """The last messages sent over a stream, bounded in number, bytes and age."""

    def __init__(self) -> None:
        self._messages: deque[tuple[float, bytes]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, message: bytes, now_s: float) -> None:
        """Remember a message; the oldest ones beyond a bound are forgotten."""
        self._messages.append((now_s, message))
        self._bytes += len(message)
        while len(self._messages) > WINDOW_MESSAGES or self._bytes > WINDOW_BYTES:
            self._forget_oldest()

    def forget_before(self, time_s: float) -> None:
        """Forget what was sent before that time."""
        while self._messages and self._messages[0][0] < time_s:
            self._forget_oldest()

    def messages(self) -> list[bytes]:
        """All that is remembered, oldest first."""
        return [message for _, message in self._messages]

    def _forget_oldest(self) -> None:
        self._bytes -= len(self._messages.popleft()[1])


class TcpOutput:
    """A stream of framed messages over TCP; ``frame`` is octet counting or newline (RFC 6587)."""

    label: Label = UNCONFIRMED

    def __init__(self, host: str, port: int, timeout_s: float, frame: Frame) -> None:
        self._host = host
        self._port = port
        self._timeout_s = timeout_s
        self._frame = frame
        self._socket: socket.socket | None = None
        self._window = Window()

    def open(self) -> None:
        """Connect, and send again what an earlier connection may have lost."""
        self.close()
        try:
            sock = socket.create_connection((self._host, self._port), self._timeout_s)
        except OSError as error:
            raise OutputError(f"{self._where}: {error.strerror or error}") from None
        self._socket = sock
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, int(self._timeout_s * 1000))
        self._write(self._window.messages())
        self.check()

    def check(self) -> None:
        """Raise OutputError when the receiver has closed or reset the connection."""
        assert self._socket is not None
        poller = select.poll()
        poller.register(self._socket, select.POLLIN | _POLLRDHUP)
        for _, events in poller.poll(0):
            if events & (_POLLRDHUP | select.POLLHUP | select.POLLERR) or not self._discard():
                raise OutputError(f"{self._where}: the receiver closed the connection")
        self._window.forget_before(monotonic_s() - WINDOW_S)

    def send(self, batch: Sequence[Rendered]) -> None:
        """Send framed messages; they are remembered until they are surely read."""
        self.check()
        frames = [self._frame(alert.data) for alert in batch]
        self._write(frames)
        self.check()
        now_s = monotonic_s()
        for frame in frames:
            self._window.add(frame, now_s)

    def close(self) -> None:
        """Close the connection; what was sent stays remembered for the next one."""
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
