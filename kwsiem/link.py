"""A link joins two of our processes: a SOCK_SEQPACKET socket pair that carries whole typed messages.

One packet is one msgpack message, at most :data:`MAX_MESSAGE_BYTES`; a descriptor may ride along
(SCM_RIGHTS, unix(7)). Sending never blocks: :meth:`Link.send` says False when the peer's buffer is full
and the caller keeps the message.
"""

from __future__ import annotations

import logging
import os
import socket
from array import array
from collections.abc import Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec

from kwsiem.errors import LinkError

MAX_MESSAGE_BYTES: Final = 128 * 1024
#: Asked for with SO_SNDBUFFORCE (root), else SO_SNDBUF; room for some thousand alerts while a peer restarts.
BUFFER_BYTES: Final = 4 * 1024 * 1024
_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h

Incoming = TypeVar("Incoming")


def link_pair() -> tuple[socket.socket, socket.socket]:
    """Two joined sockets with buffers as large as the system allows."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (left, right):
        try:
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, BUFFER_BYTES)
        except PermissionError:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    return left, right


#: Bad messages that are passed over in one go: a peer gone mad must not hold us up.
MAX_BAD: Final = 1000

log = logging.getLogger("kwsiem.link")


class Link(Generic[Incoming]):
    """One end of a link; ``incoming`` is the union of messages that the peer may send."""

    def __init__(self, sock: socket.socket, incoming: Any) -> None:
        self._socket = sock
        self._socket.setblocking(False)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Incoming] = msgspec.msgpack.Decoder(incoming)
        self.closed = False
        self.bad = 0

    @classmethod
    def from_fd(cls, fd: int, incoming: Any) -> Link[Incoming]:
        """A link over an inherited descriptor, which it owns from now on."""
        return cls(socket.socket(fileno=fd), incoming)

    def fileno(self) -> int:
        """The descriptor, for a selector."""
        return self._socket.fileno()

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> bool:
        """Send one message; False when the peer's buffer is full or the peer has gone.

        Raises LinkError when the message is larger than :data:`MAX_MESSAGE_BYTES`.
        """
        packet = self._encoder.encode(message)
        if len(packet) > MAX_MESSAGE_BYTES:
            raise LinkError(f"message {type(message).__name__} of {len(packet)} bytes is too large to send")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([packet], rights)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True
            return False
        return True

    def receive(self) -> tuple[Incoming, list[int]] | None:
        """The next message with its descriptors, or None when there is none now.

        Sets :attr:`closed` at end of file. Raises LinkError for a packet that is not a valid message
        (its descriptors are closed first, so that a bad peer cannot use ours up).
        """
        try:
            packet, ancillary, flags, _ = self._next_packet()
        except BlockingIOError:
            return None
        fds = [fd for _, kind, data in ancillary if kind == socket.SCM_RIGHTS for fd in _descriptors(data)]
        if not packet:
            self.closed = True
            return None
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise LinkError(f"cut message of {len(packet)} bytes or more")
            return self._decoder.decode(packet), fds
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            _close_all(fds)
            raise LinkError(f"invalid message: {error}") from None
        except LinkError:
            _close_all(fds)
            raise

    def take(self) -> tuple[Incoming, list[int]] | None:
        """The next good message with its descriptors; bad ones are counted in :attr:`bad` and passed over."""
        for _ in range(MAX_BAD):
            try:
                return self.receive()
            except LinkError as error:
                self.bad += 1
                if (
                    self.bad & (self.bad - 1) == 0
                ):  # the first, the second, the fourth …: a bad peer fills no log
                    log.error("bad message", extra={"error": str(error), "count": self.bad})
        return None

    def take_message(self) -> Incoming | None:
        """The next good message where nobody sends descriptors: those that come are closed."""
        received = self.take()
        if received is None:
            return None
        message, fds = received
        _close_all(fds)
        return message

    def _next_packet(self) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        """One packet, empty at end of file; raises BlockingIOError when there is none now."""
        room = socket.CMSG_SPACE(4 * 8)
        try:
            return self._socket.recvmsg(MAX_MESSAGE_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            # The peer went without reading all of ours. The kernel says so once, ahead of the packets
            # that the peer sent before: these still wait (net/unix/af_unix.c, unix_release_sock).
            return self._socket.recvmsg(MAX_MESSAGE_BYTES, room, socket.MSG_CMSG_CLOEXEC)

    def close(self) -> None:
        """Close our end."""
        self.closed = True
        self._socket.close()


def _descriptors(data: bytes) -> array[int]:
    found: array[int] = array("i")
    found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
