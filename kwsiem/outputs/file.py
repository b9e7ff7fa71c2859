"""file: alerts appended to a local file, one a line, rotated by size.

Durability: each batch is written and then synced with fdatasync(2) before it counts as delivered, so the
label is *confirmed*: what the ledger calls delivered survives a power cut. A write that fails half way is
cut off again, and a line that an earlier crash left unfinished is ended first, so no record is ever joined
to another. When the file was moved or removed (logrotate), the next batch begins a new one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from kwsiem.errors import OutputError
from kwsiem.outputs.base import CONFIRMED, BaseOutput, Label, Rendered

_MODE = 0o640


class FileOutput(BaseOutput):
    """Appends to ``path``; over ``max_bytes`` it becomes ``path.1`` and so on up to ``path.KEEP``."""

    label: Label = CONFIRMED

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._fd = -1

    def open(self) -> None:
        """Open or create the file; only a regular file is taken, and nothing here can block."""
        self.close()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            fd = os.open(self._path, flags, _MODE)
        except OSError as error:
            raise OutputError(f"{self._path}: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OutputError(f"{self._path}: not a regular file")
        self._fd = fd

    def check(self) -> None:
        """Open the file again when the path no longer leads to it."""
        if not self._is_current():
            self.open()

    def send(self, batch: Sequence[Rendered]) -> None:
        """Append the lines of a batch and sync them to the disk; all or nothing."""
        data = b"".join(alert.data for alert in batch)
        try:
            self.check()
            size = os.fstat(self._fd).st_size
            if size and size + len(data) > self._max_bytes:
                self._rotate()
                size = 0
            self._append(data, size)
        except OSError as error:
            raise OutputError(f"{self._path}: {error.strerror}") from None

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, data: bytes, size: int) -> None:
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            data = b"\n" + data
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            os.fdatasync(self._fd)
        except OSError:
            os.ftruncate(self._fd, size)
            raise

    def _is_current(self) -> bool:
        if self._fd < 0:
            return False
        try:
            there = self._path.stat()
        except OSError:
            return False
        ours = os.fstat(self._fd)
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def _rotate(self) -> None:
        """path.(N-1) to path.N … path to path.1, then a new file; the oldest one goes."""
        names = [self._path, *(Path(f"{self._path}.{number}") for number in range(1, self._keep + 1))]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            if newer.exists():
                newer.replace(older)
        if not self._keep:
            self._path.unlink(missing_ok=True)
        self.open()
