"""A frame: one record of the outbox that can be found and verified by itself, wherever its bytes lie.

``MAGIC (8) | digest (8) | number (8) | body length (4) | key length (2) | kind (1) | severity (1) | key |
body | CRC-32 (4)``, integers little-endian. The CRC is over all before it, the digest (BLAKE2b, 8 bytes) over
all between digest and CRC. The CRC is checked at each reading; it also says which bit is wrong when one is,
and the digest then tells a repaired frame from one that was damaged otherwise (2^-64 against 10^-5 for a
frame of 2 KB by the CRC alone). The magic holds bytes that no UTF-8 has, so nothing that an attacker writes
into an alert can look like a frame.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from typing import Final
from zlib import crc32

import msgspec

MAGIC: Final = b"\xffKWSIEM\xfd"
#: Kinds of frames.
ALERT: Final = 1
ACCOUNT: Final = 2
LETTER: Final = 3
#: Alerts have documents of 60 KiB at most; nothing larger is looked for.
MAX_BYTES: Final = 256 * 1024

_HEADER: Final = struct.Struct("<8s8sQIHBB")
_REST: Final = struct.Struct("<QIHBB")
_COVERED: Final = 16  # where the digest's input begins
_LENGTHS: Final = range(24, 30)  # bytes of the two lengths
_KIND_AT: Final = 30
_CHUNK: Final = 4 * 2**20
_POLYNOMIAL: Final = 0xEDB88320  # CRC-32 of zlib, reflected (RFC 1952 section 8)


class Frame(msgspec.Struct, frozen=True):
    """What a frame says; ``number`` is a sequence number or a revision, ``key`` an id or a name."""

    kind: int
    number: int
    severity: int
    key: str
    body: bytes


def encode(kind: int, number: int, severity: int, key: str, body: bytes) -> bytes:
    """The bytes of a frame."""
    name = key.encode()
    rest = _REST.pack(number, len(body), len(name), kind, min(max(severity, 0), 255)) + name + body
    framed = MAGIC + _digest(rest) + rest
    return framed + crc32(framed).to_bytes(4, "little")


def decode(data: bytes) -> Frame | None:
    """The frame in exactly these bytes; None when they are not as they were written."""
    if len(data) < _HEADER.size + 4 or crc32(memoryview(data)[:-4]) != int.from_bytes(data[-4:], "little"):
        return None
    magic, _, number, body_len, key_len, kind, severity = _HEADER.unpack_from(data)
    begin = _HEADER.size + key_len
    if magic != MAGIC or begin + body_len + 4 != len(data):
        return None
    try:
        key = data[_HEADER.size : begin].decode()
    except UnicodeDecodeError:
        return None
    return Frame(kind, number, severity, key, data[begin:-4])


def repair(data: bytes) -> bytes | None:
    """The bytes of a frame in which a single bit was flipped, mended; None when it was more.

    Shifting the CRC register once for each bit behind the wrong one gives the difference between the CRC
    that is found and the one that was written; so the number of shifts says which bit it was.
    """
    if not _HEADER.size + 4 <= len(data) <= MAX_BYTES:
        return None
    difference = crc32(data[:-4]) ^ int.from_bytes(data[-4:], "little")
    register = 1 << 31
    for shifts in range(8 * len(data)):
        if register == difference:
            at, bit = divmod(8 * len(data) - 1 - shifts, 8)
            mended = bytearray(data)
            mended[at] ^= 1 << bit
            whole = bytes(mended)
            return whole if decode(whole) and _is_genuine(whole) else None
        register = (register >> 1) ^ (_POLYNOMIAL if register & 1 else 0)
    return None


def _digest(rest: bytes) -> bytes:
    return hashlib.blake2b(rest, digest_size=8).digest()


def _is_genuine(data: bytes) -> bool:
    return data[8:_COVERED] == _digest(data[_COVERED:-4])


class Finder:
    """Finds frames in raw bytes, wherever they begin; those that say they are of kind ``skip`` are left out.

    ``repairs`` is how many damaged frames are looked at closely at most (a few milliseconds each); whole
    ones are found without limit.
    """

    def __init__(self, repairs: int, skip: int = 0) -> None:
        self.repaired = 0
        self._repairs = repairs
        self._skip = skip

    def in_file(
        self, fd: int, elsewhere: Callable[[bytes], bytes | None] = lambda *_: None
    ) -> Iterator[tuple[int, Frame]]:
        """Frames of a file with their offsets. Holds a few MiB; a part that cannot be read is passed over.

        ``elsewhere`` is asked, with what lies there, to put a frame together that does not lie in one piece.
        """
        size = os.fstat(fd).st_size
        for begin in range(0, size, _CHUNK):
            data = _read(fd, begin, min(_CHUNK + MAX_BYTES, size - begin))
            for at in _beginnings(data, _CHUNK):
                if found := self._at(data, at, elsewhere):
                    yield begin + at, found

    def in_bytes(self, data: bytes) -> Iterator[Frame]:
        """Frames in a few bytes."""
        for at in _beginnings(data, len(data)):
            if found := self._at(data, at, lambda *_: None):
                yield found

    def _at(self, data: bytes, at: int, elsewhere: Callable[[bytes], bytes | None]) -> Frame | None:
        if self._skip and data[at + _KIND_AT : at + _KIND_AT + 1] == bytes((self._skip,)):
            return None
        if found := _exact(data, at):
            return found
        pieced = elsewhere(data[at : at + MAX_BYTES])
        if pieced is None:
            return self._mended(data, at)
        return _exact(pieced, 0) or self._mended(pieced, 0)

    def _mended(self, data: bytes, at: int) -> Frame | None:
        if self._repairs <= 0:
            return None
        self._repairs -= 1
        length = stated_length(data, at)
        candidates = [repair(data[at : at + length])] if length else []
        # A wrong bit in one of the lengths hides where the frame ends.
        for byte, bit in ((byte, bit) for byte in _LENGTHS for bit in range(8)):
            changed = bytearray(data[at : at + _HEADER.size])
            if len(changed) < _HEADER.size:
                break
            changed[byte] ^= 1 << bit
            if length := stated_length(bytes(changed), 0):
                candidates.append(bytes(changed) + data[at + _HEADER.size : at + length])
        for candidate in candidates:
            if candidate and _is_genuine(candidate) and (found := decode(candidate)):
                self.repaired += 1
                return found
        return None


def _exact(data: bytes, at: int) -> Frame | None:
    length = stated_length(data, at)
    return decode(data[at : at + length]) if length else None


def stated_length(data: bytes, at: int) -> int:
    """How long a frame says it is; 0 when that cannot be."""
    if len(data) < at + _HEADER.size:
        return 0
    _, _, _, body_len, key_len, _, _ = _HEADER.unpack_from(data, at)
    length = int(_HEADER.size + key_len + body_len + 4)
    return length if length <= MAX_BYTES else 0


def _beginnings(data: bytes, end: int) -> list[int]:
    """Where frames may begin before ``end``: half a magic is enough, the other half may have a wrong bit."""
    found: set[int] = set()
    for half, shift in ((MAGIC[:4], 0), (MAGIC[4:], 4)):
        at = data.find(half)
        while 0 <= at < end + shift:
            if at >= shift:
                found.add(at - shift)
            at = data.find(half, at + 1)
    return sorted(at for at in found if at < end)


def _read(fd: int, begin: int, length: int) -> bytes:
    """A part of a file; what the disk does not give back is left out as zeros."""
    try:
        return os.pread(fd, length, begin)
    except OSError:
        pieces = []
        for at in range(begin, begin + length, 4096):
            try:
                pieces.append(os.pread(fd, min(4096, begin + length - at), at))
            except OSError:
                pieces.append(bytes(min(4096, begin + length - at)))
        return b"".join(pieces)


def peek(data: bytes) -> tuple[int, int] | None:
    """Length of the key and severity of a frame that says it is an alert; nothing is verified."""
    if len(data) < _HEADER.size:
        return None
    _, _, _, _, key_len, kind, severity = _HEADER.unpack_from(data)
    return (key_len, severity) if kind == ALERT else None
