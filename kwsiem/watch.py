"""Something changed in a folder: watchdog tells, in its own thread, by one byte on a pipe.

The bytes are only a hint to look; what changed is found by comparing signatures. Some changes reach no folder
that is watched (a link further up the path was swapped), hence :data:`LOOK_S`: look anyway that often.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

LOOK_S: Final = 1.0
#: Wait this long after the first hint: an editor writes, renames and removes in a burst.
SETTLE_S: Final = 0.05

Signature = tuple[Any, ...]


def signature(path: Path | str) -> Signature:
    """What tells one content of a path from another without reading it; empty when there is none.

    The time of change is part of it: ``cp -p`` and ``rsync --inplace`` set the time of modification.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - a Path of each file costs more than all else
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_ctime_ns, found.st_mtime_ns, found.st_size


class _Hint(FileSystemEventHandler):
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type in ("opened", "closed_no_write"):
            return  # somebody read it, perhaps we
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._fd, b"!")


class FolderWatch:
    """Watches folders (not below them); readable when there was a change in one of them."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._hint = _Hint(self._write_fd)
        self._observer = Observer()
        self._watches: dict[Path, Any] = {}
        self._observer.start()

    def fileno(self) -> int:
        """The descriptor, for a selector."""
        return self._read_fd

    def watch(self, folders: Iterable[Path]) -> None:
        """Watch these folders and no others; one that does not exist is looked at again on the next call."""
        wanted = {folder for folder in folders if folder.is_dir()}
        for folder in set(self._watches) - wanted:
            watch = self._watches.pop(folder)
            with contextlib.suppress(KeyError, OSError):
                self._observer.unschedule(watch)
        for folder in wanted - set(self._watches):
            with contextlib.suppress(OSError):  # no inotify watches left: LOOK_S still finds changes
                self._watches[folder] = self._observer.schedule(self._hint, str(folder))

    def clear(self) -> None:
        """Take the hints."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read_fd, 4096):
                pass

    def close(self) -> None:
        """Stop watching."""
        self._observer.stop()
        self._observer.join(timeout=2)
        os.close(self._read_fd)
        os.close(self._write_fd)
