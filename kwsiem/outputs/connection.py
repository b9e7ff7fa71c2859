"""One connection over TCP, plain or TLS: every step is bounded in time, and its end is noticed.

Looking up a name is the one thing that has the resolver's time-outs instead of ours. A connection that is
black-holed (no answer, no reset) is given up when what was sent is not acknowledged within the time-out, and
by keep-alive when nothing was; a handshake that is never answered ends at the time-out.

A receiver that is slow is not one that is gone: as long as its kernel answers, and it takes something within
SLOW_TIMES time-outs, it is waited for. Ending such a connection would begin its replay anew, for ever
(measured with a reader of 20 kB/s). TCP_USER_TIMEOUT cannot tell the two apart: since Linux 5.11 it also ends
a connection whose window stays closed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import struct
from typing import Final, NamedTuple, NoReturn

from kwsiem.clock import monotonic_s
from kwsiem.errors import OutputError
from kwsiem.tls import check_pin

#: So many time-outs a receiver may take nothing while its kernel answers; a batch of RELP may need as many.
SLOW_TIMES: Final = 10
_TCP_USER_TIMEOUT: Final = 18  # tcp(7): milliseconds that sent data may stay unacknowledged
_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
_POLLRDHUP: Final = 0x2000  # bits/poll.h
_CHUNK: Final = 64 * 1024
#: struct tcp_info (linux/tcp.h): eight bytes, tcpi_retransmits the third; then numbers of 32 bits,
#: tcpi_unacked the fifth, tcpi_last_ack_recv (milliseconds) the thirteenth.
_TCP_INFO: Final = struct.Struct("8B13I")
#: With TLS 1.3 a receiver says after our handshake whether it takes our certificate, or with the session
#: tickets that it does. So long is waited for either; a receiver that sends no tickets says nothing.
_FIRST_WORD_S: Final = 0.3
#: Of what a receiver says unasked so much is read at a time; one that goes on does not hold us up.
_READS_AT_ONCE: Final = 16


class Tls(NamedTuple):
    """How to speak TLS: the context, and the fingerprint of the receiver (empty for none)."""

    context: ssl.SSLContext
    fingerprint: str = ""


class Connection:
    """A connection that stands, or OutputError; ``host`` is a name or an address.

    ``protocol`` is what errors call it.
    """

    def __init__(
        self, host: str, port: int, timeout_s: float, tls: Tls | None = None, *, protocol: str = ""
    ) -> None:
        self.where = f"{host}:{port} ({protocol or ('tls' if tls else 'tcp')})"
        self._timeout_s = timeout_s
        self._is_open = True
        self._reason = 0
        try:
            self._socket = _connected(host, port, timeout_s)
        except (OSError, ValueError) as error:
            raise OutputError(f"{self.where}: {_why(error)}") from None
        if tls:
            self._secure(host, tls)

    def write(self, data: bytes) -> None:
        """Write all of it.

        Raises OutputError when the receiver's kernel does not answer for the time-out, or the receiver takes
        nothing for SLOW_TIMES of it. Then the connection is reset, so that what is left of a message half
        written goes nowhere.
        """
        view = memoryview(data)
        self._socket.settimeout(self._timeout_s)
        taken_s = monotonic_s()
        try:
            while view:
                try:
                    view = view[self._socket.send(view[:_CHUNK] if self._is_tls else view) :]
                    taken_s = monotonic_s()
                except TimeoutError:
                    if self._is_lost() or monotonic_s() - taken_s > SLOW_TIMES * self._timeout_s:
                        raise
        except OSError as error:
            self._fail(error)

    def read(self, wait_s: float) -> bytes:
        """What came, empty when nothing did within the time; raises OutputError when the receiver closed."""
        if not self._pending():
            events = self._poll(wait_s)
            if not events:
                return b""
            if events & select.POLLERR:
                # Kept from the TLS layer, which makes a plain end of it; what came before is still read.
                self._reason = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._socket.settimeout(0)
        try:
            data = self._socket.recv(_CHUNK)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return b""
        except OSError as error:
            self._fail(error)
        if not data:
            self._raise_end()
        return data

    def acknowledge(self) -> None:
        """Acknowledge at once what comes next.

        A receiver that answers each message holds back its second answer until our kernel has
        acknowledged the first, which the kernel puts off for 40 ms: 2,700 messages a second instead of
        72,000 (measured with imrelp). It holds for a moment only (tcp(7), TCP_QUICKACK): say it before
        each read.
        """
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def check(self) -> None:
        """Throw away what the receiver says; raises OutputError when it has ended the connection."""
        for _ in range(_READS_AT_ONCE):
            if not self.read(0.0):
                break
        self.check_end()

    def check_end(self) -> None:
        """Raise OutputError when the receiver has closed the connection, or is gone; nothing is read."""
        if self._is_lost():
            self._fail(TimeoutError(errno.ETIMEDOUT, "timed out: what was sent is not acknowledged"))
        if self._poll(0.0) & (_POLLRDHUP | select.POLLHUP | select.POLLERR):
            self._raise_end()

    def close(self) -> None:
        """Close in order: what was written still goes out, with TLS its end is said (close_notify)."""
        if self._is_open:
            with contextlib.suppress(OutputError):
                self.check()  # closing with something unread would reset it, and lose what is on the way
        if self._is_open and isinstance(self._socket, ssl.SSLSocket):
            self._socket.settimeout(0)  # say it, and do not wait for the receiver to say the same
            with contextlib.suppress(OSError, ValueError):
                self._socket.unwrap()
        self._is_open = False
        self._socket.close()

    def _is_lost(self) -> bool:
        """Whether nothing has answered for the time-out to what was sent and is sent again and again."""
        try:
            data = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            found = _TCP_INFO.unpack(data)
        except (OSError, struct.error):
            return False  # the next call says what is wrong with the socket
        retransmits, unacked, last_ack_ms = found[2], found[8 + 4], found[8 + 12]
        return bool(unacked and retransmits and last_ack_ms >= self._timeout_s * 1000)

    @property
    def _is_tls(self) -> bool:
        return isinstance(self._socket, ssl.SSLSocket)

    def _secure(self, host: str, tls: Tls) -> None:
        """The handshake within the time-out; nothing is sent before the receiver is verified."""
        try:
            self._socket = tls.context.wrap_socket(
                self._socket, server_hostname=host, do_handshake_on_connect=False
            )
            self._socket.settimeout(self._timeout_s)
            self._socket.do_handshake()
            if tls.fingerprint:
                check_pin(self._socket.getpeercert(binary_form=True), tls.fingerprint)
            if self._socket.version() == "TLSv1.3":
                self._poll(min(_FIRST_WORD_S, self._timeout_s))
                self.check()
        except OutputError as error:
            self._socket.close()
            raise OutputError(f"{self.where}: {str(error).removeprefix(f'{self.where}: ')}") from None
        except (OSError, ValueError) as error:
            self._socket.close()
            raise OutputError(f"{self.where}: {_why(error)}") from None

    def _pending(self) -> bool:
        """Whether the TLS layer holds what poll can no longer see."""
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0

    def _poll(self, wait_s: float) -> int:
        poller = select.poll()
        poller.register(self._socket, select.POLLIN | _POLLRDHUP)
        return next((events for _, events in poller.poll(max(0.0, wait_s) * 1000)), 0)

    def _raise_end(self) -> NoReturn:
        """OutputError with the reason of the end, when the kernel has one."""
        reason = self._reason or self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        closed = reason in {0, errno.EPIPE}
        why = "the receiver closed the connection" if closed else os.strerror(reason)
        raise OutputError(f"{self.where}: {why}")

    def _fail(self, error: OSError) -> NoReturn:
        self._is_open = False
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()
        raise OutputError(f"{self.where}: {_why(error)}") from None


def _connected(host: str, port: int, timeout_s: float) -> socket.socket:
    """A connected socket: every address in turn, each with its share of the time that is left."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    end_s = monotonic_s() + timeout_s
    last: OSError = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for tried, (family, kind, protocol, _, address) in enumerate(found):
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        try:
            sock.settimeout(max(0.05, end_s - monotonic_s()) / (len(found) - tried))
            _tune(sock, timeout_s)
            sock.connect(address)
            if sock.getsockname() == sock.getpeername():
                # Nobody listens, and the kernel gave us the very port: we are connected to ourselves.
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        except OSError as error:
            sock.close()
            last = error
        else:
            return sock
    raise last


def _tune(sock: socket.socket, timeout_s: float) -> None:
    """A batch is one write, so nothing is gained by holding back a small one (TCP_NODELAY)."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, int(SLOW_TIMES * timeout_s * 1000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", "") or error)
