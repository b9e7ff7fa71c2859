"""Netlink in a page: messages, attributes, one request at a time; nftables, conntrack and sock_diag use it.

Layout after include/uapi/linux/netlink.h and linux/netfilter/nfnetlink.h. What the kernel sends is trusted to
be the kernel's (the sender's port is checked) but its lengths are still looked at.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from kwsiem import clock

NETLINK_SOCK_DIAG: Final = 4
NETLINK_NETFILTER: Final = 12

REQUEST: Final = 0x1
ACK: Final = 0x4
DUMP: Final = 0x300
CREATE: Final = 0x400
NESTED: Final = 0x8000

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3

_SOL_NETLINK: Final = 270
_NETLINK_ADD_MEMBERSHIP: Final = 1
_NETLINK_CAP_ACK: Final = 10  # an error does not repeat the whole message (kernel 4.3)
_SO_RCVBUFFORCE: Final = 33
_RECEIVE: Final = 1 << 18
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")


class Message(NamedTuple):
    """One message without its header."""

    kind: int
    flags: int
    sequence: int
    body: bytes
    port: int = 0  # whose request it answers or tells of


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A message, padded."""
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body + b"\0" * (-len(body) % 4)


def attribute(kind: int, payload: bytes) -> bytes:
    """An attribute, padded."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | NESTED, b"".join(attributes))


def messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram; what does not fit into it ends it."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, sequence, port = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            return
        yield Message(kind, flags, sequence, data[at + _HEADER.size : at + length], port)
        at += length + 3 & ~3


def attributes(body: bytes, at: int = 0) -> dict[int, bytes]:
    """Attribute → payload from an offset on; of several of one kind the last."""
    return dict(attribute_list(body, at))


def attribute_list(body: bytes, at: int = 0) -> Iterator[tuple[int, bytes]]:
    """The attributes in their order."""
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size or at + length > len(body):
            return
        yield kind & 0x3FFF, body[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3


def error_of(body: bytes) -> int:
    """The errno of an NLMSG_ERROR; 0 for an acknowledgement."""
    return -int(struct.unpack_from("=i", body)[0]) if len(body) >= 4 else errno.EBADMSG


class Netlink:
    """A netlink socket of the current network namespace. Methods raise OSError."""

    def __init__(self, protocol: int, groups: Sequence[int] = (), receive_bytes: int = 1 << 20) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sequence = 0
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_bytes)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            for group in groups:
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Readable when something was sent to one of the groups."""
        return self._socket.fileno()

    @property
    def port(self) -> int:
        """Our number in what others are told of our requests."""
        return int(self._socket.getsockname()[0])

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def numbers(self, count: int) -> int:
        """The first of so many new sequence numbers."""
        first = self._sequence + 1
        self._sequence = (self._sequence + count) & 0x3FFFFFFF
        return first

    def request(self, kind: int, flags: int, body: bytes, timeout_s: float = 1.0) -> None:
        """Ask for something to be done, and wait until it is."""
        sequence = self.numbers(1)
        self.send(message(kind, REQUEST | ACK | flags, sequence, body))
        for answer in self.receive(timeout_s):
            if answer.sequence == sequence and answer.kind == NLMSG_ERROR:
                _raise(error_of(answer.body))
                return

    def dump(self, kind: int, body: bytes, timeout_s: float = 1.0, flags: int = DUMP) -> Iterator[Message]:
        """All answers to a question; when left early the socket must be closed."""
        sequence = self.numbers(1)
        self.send(message(kind, REQUEST | flags, sequence, body))
        for answer in self.receive(timeout_s):
            if answer.sequence != sequence:
                continue
            if answer.kind == NLMSG_DONE:
                return
            if answer.kind == NLMSG_ERROR:
                _raise(error_of(answer.body))
                return
            yield answer

    def send(self, data: bytes) -> None:
        """To the kernel."""
        self._socket.settimeout(1.0)
        self._socket.sendto(data, (0, 0))

    def receive(self, timeout_s: float) -> Iterator[Message]:
        """What comes, until the caller has enough; raises TimeoutError when that takes longer."""
        deadline_s = clock.monotonic_s() + timeout_s
        while True:
            left_s = deadline_s - clock.monotonic_s()
            if left_s <= 0:
                raise TimeoutError(errno.ETIMEDOUT, "the kernel did not answer in time")
            self._socket.settimeout(left_s)
            data, sender = self._socket.recvfrom(_RECEIVE)
            if sender[0] == 0:
                yield from messages(data)

    def waiting(self) -> Iterator[Message]:
        """What has come already. OSError ENOBUFS: some of it was lost."""
        self._socket.settimeout(0)
        while True:
            try:
                data, sender = self._socket.recvfrom(_RECEIVE)
            except BlockingIOError:
                return
            if sender[0] == 0:
                yield from messages(data)


def _raise(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))
