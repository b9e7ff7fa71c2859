"""Datagrams: syslog and GELF over UDP, syslog to the local socket.

Nothing tells whether a datagram arrived. What can be done is done: a port that nobody has is noticed by the
ICMP answer, for which the first datagram on a new socket waits a moment; and datagrams are paced so that a
burst fits the buffer of a receiver with the kernel's default size while it does something else.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

from kwsiem.clock import monotonic_s, sleep_s
from kwsiem.errors import OutputError
from kwsiem.outputs.base import UNCONFIRMED, BaseOutput, Label, Rendered
from kwsiem.outputs.pace import Pace

#: What a datagram costs the receiver's buffer at most: twice its bytes, and so many more (measured on
#: loopback: 166 of 200 bytes, 92 of 1,024 or 12 of 8,192 fill the default net.core.rmem_default of 212,992).
OVERHEAD_BYTES: Final = 1280
#: A third of that buffer at once, then this a second: about 950 datagrams of 1,024 bytes. So a receiver may
#: stand still for 45 ms in a burst. At twice both a receiver on a busy host lost some of 10,000 (measured).
BURST_BYTES: Final = 64 * 1024
BYTES_PER_S: Final = 3 * 1024 * 1024
#: A host name is looked up again after so long.
LOOK_UP_S: Final = 300.0
#: So long the first datagram waits for an ICMP answer; behind it a hundred may be lost before one comes.
FIRST_ANSWER_S: Final = 0.2

Frame = Callable[[bytes], bytes]
Split = Callable[[bytes], Sequence[bytes]]


def whole(message: bytes) -> Sequence[bytes]:
    """A message as the one datagram that it is."""
    return (message,)


class UdpOutput(BaseOutput):
    """Each alert as the datagrams that ``split`` makes of it, to a host and port.

    ``split`` may raise OutputError for a message that is too large.
    """

    label: Label = UNCONFIRMED

    def __init__(self, host: str, port: int, timeout_s: float, split: Split = whole) -> None:
        self._host = host
        self._port = port
        self._timeout_s = timeout_s
        self._split = split
        self._pace = Pace([(BURST_BYTES, BURST_BYTES / BYTES_PER_S)])
        self._socket: socket.socket | None = None
        self._address: Any = None
        self._looked_up_s = 0.0
        self._opened = 0
        self._is_proven = False

    def open(self) -> None:
        """Look the host up; of several addresses each is used in turn, one after each error."""
        self.close()
        try:
            found = self._look_up()
            family, address = found[self._opened % len(found)]
            self._connect(family, address)
        except (OSError, ValueError) as error:
            raise OutputError(f"{self._where}: {_why(error)}") from None
        finally:
            self._opened += 1

    def check(self) -> None:
        """A refusal that came in after the last datagram; and the address of a name, now and then."""
        self._raise_pending()
        self._follow_name()

    def send(self, batch: Sequence[Rendered]) -> None:
        """Send each alert; one that is too long is refused for good."""
        self._follow_name()
        for index, alert in enumerate(batch):
            try:
                for datagram in self._split(alert.data):
                    self._send(datagram)
            except OSError as error:
                too_long = error.errno == errno.EMSGSIZE
                message = f"{self._where}: {_why(error)}"
                raise OutputError(message, retryable=not too_long, sent=index) from None
            except OutputError as error:
                raise OutputError(str(error), retryable=error.retryable, sent=index) from None

    def close(self) -> None:
        """Close the socket."""
        if self._socket:
            self._socket.close()
            self._socket = None

    @property
    def _where(self) -> str:
        return f"{self._host}:{self._port} (udp)"

    def _send(self, datagram: bytes) -> None:
        assert self._socket
        wait_s = self._pace.wait_s(monotonic_s())
        if wait_s:
            sleep_s(wait_s)
        self._pace.take(2 * len(datagram) + OVERHEAD_BYTES, monotonic_s())
        self._socket.send(datagram)
        if not self._is_proven:
            poller = select.poll()
            poller.register(self._socket, 0)  # errors alone
            poller.poll(min(FIRST_ANSWER_S, self._timeout_s) * 1000)
        self._raise_pending()
        self._is_proven = True

    def _raise_pending(self) -> None:
        """ICMP port unreachable arrives as an error of the socket, on loopback before send returns."""
        assert self._socket
        pending = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if pending:
            raise OutputError(f"{self._where}: {os.strerror(pending)}")

    def _follow_name(self) -> None:
        """Go to where the name points now, if the address in use is not among its addresses any more."""
        if monotonic_s() - self._looked_up_s < LOOK_UP_S:
            return
        try:
            found = self._look_up()
            if self._address not in [address for _, address in found]:
                self.close()
                self._connect(*found[0])
        except (OSError, ValueError) as error:
            if self._socket is None:
                raise OutputError(f"{self._where}: {_why(error)}") from None
            # The resolver is away: the address that was good so far stays.

    def _look_up(self) -> list[tuple[int, Any]]:
        self._looked_up_s = monotonic_s()
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_DGRAM)
        return [(family, address) for family, _, _, _, address in found]

    def _connect(self, family: int, address: Any) -> None:
        self._socket = _connected(family, socket.SOCK_DGRAM, address, self._timeout_s)
        self._address = address
        self._is_proven = False


class UnixOutput(BaseOutput):
    """One datagram for each alert to a local socket.

    A local socket that is a stream (some syslog daemons) is served with ``frame`` around each message.
    """

    label: Label = UNCONFIRMED

    def __init__(self, path: str, timeout_s: float, frame: Frame) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._frame = frame
        self._socket: socket.socket | None = None
        self._framed = False

    def open(self) -> None:
        """Connect."""
        self.close()
        try:
            self._socket, self._framed = self._connected()
        except OSError as error:
            raise OutputError(f"{self._path}: {_why(error)}") from None

    def check(self) -> None:
        """Whether the daemon still has the socket."""
        assert self._socket
        poller = select.poll()
        poller.register(self._socket, 0)
        if poller.poll(0):
            raise OutputError(f"{self._path}: the receiver closed the socket")

    def send(self, batch: Sequence[Rendered]) -> None:
        """Send each alert; a full socket costs the time-out, one too long for it is refused for good."""
        assert self._socket
        for index, alert in enumerate(batch):
            try:
                if self._framed:
                    self._socket.sendall(self._frame(alert.data))
                else:
                    self._socket.send(alert.data)
            except OSError as error:
                too_long = error.errno == errno.EMSGSIZE
                message = f"{self._path}: {_why(error)}"
                raise OutputError(message, retryable=not too_long, sent=index) from None

    def close(self) -> None:
        """Close the socket."""
        if self._socket:
            self._socket.close()
            self._socket = None

    def _connected(self) -> tuple[socket.socket, bool]:
        try:
            return _connected(socket.AF_UNIX, socket.SOCK_DGRAM, self._path, self._timeout_s), False
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise
            return _connected(socket.AF_UNIX, socket.SOCK_STREAM, self._path, self._timeout_s), True


def _connected(family: int, kind: int, address: Any, timeout_s: float) -> socket.socket:
    sock = socket.socket(family, kind | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(timeout_s)
        sock.connect(address)
    except (OSError, ValueError):
        sock.close()
        raise
    return sock


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", "") or error)
