"""Two files in turn keep the engine's latest state; whatever dies while writing, one of them is whole.

A file: magic, boot id, time of writing (ns of boot time), length and BLAKE2b of the content, then the
content. Times in the content are those of one boot: of another boot nothing is taken. Files are opened by
whoever may.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 512 * 2**20
_HEADER: Final = struct.Struct("<8s36sQQ16s")
_MAGIC: Final = b"KWSTATE1"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class StateFiles:
    """Reads and writes the pair; ``fds`` are two descriptors, open for reading and writing."""

    def __init__(self, fds: Sequence[int], boot_id: str = "") -> None:
        self._fds = tuple(fds)
        self._boot_id = (boot_id.encode() or _BOOT_ID.read_bytes().strip())[:36]
        self._next = 0

    def read(self) -> bytes | None:
        """The newest whole content of this boot; None when there is none."""
        found: list[tuple[int, int, bytes]] = []
        for number, fd in enumerate(self._fds):
            with contextlib.suppress(OSError, struct.error):
                written_ns, content = self._read_one(fd)
                if content is not None:
                    found.append((written_ns, number, content))
        if not found:
            return None
        _, number, content = max(found)
        self._next = 1 - number
        return content

    def _read_one(self, fd: int) -> tuple[int, bytes | None]:
        magic, boot_id, written_ns, length, digest = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
        if magic != _MAGIC or boot_id != self._boot_id or length > MAX_BYTES:
            return 0, None
        content = b""
        while len(content) < length:
            part = os.pread(fd, length - len(content), _HEADER.size + len(content))
            if not part:
                return 0, None
            content += part
        return written_ns, content if _digest(content) == digest else None

    def take_turn(self) -> int:
        """The descriptor to write next."""
        fd = self._fds[self._next]
        self._next = 1 - self._next
        return fd

    def write(self, fd: int, content: bytes, now_ns: int) -> bool:
        """Write one of the files whole; False when another process is writing it, or it is too much.

        Raises OSError when the disk is full; the other file still stands.
        """
        if len(content) > MAX_BYTES:
            return False
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        os.pwrite(fd, bytes(_HEADER.size), 0)  # not whole from here on
        os.ftruncate(fd, _HEADER.size + len(content))
        view, offset = memoryview(content), _HEADER.size
        while view:
            written = os.pwrite(fd, view, offset)
            view, offset = view[written:], offset + written
        header = _HEADER.pack(_MAGIC, self._boot_id, now_ns, len(content), _digest(content))
        os.pwrite(fd, header, 0)
        fcntl.lockf(fd, fcntl.LOCK_UN)
        return True


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
