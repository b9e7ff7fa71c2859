"""The event log: a recording that goes on for ever, in files of bounded size and number.

``events.jsonl`` is being written, ``events-00000001.jsonl`` and so on are complete, ``.gz`` when they are
compressed; in the order of their names they are one recording. Each begins with marks that say all that is
needed to read it alone. The process that writes them owns the folder, so nobody with rights takes part.
"""

from __future__ import annotations

import gzip
import logging
import os
import re
import shutil
import signal
import stat
from pathlib import Path
from typing import Final

from kwsiem.clock import monotonic_s
from kwsiem.messages import EventLogStart, ProbeKinds
from kwsiem.recording import MARK, Recorder, mark_line

log = logging.getLogger("kwsiem.event_log")

_MODE: Final = 0o640
#: Compressing one file takes no longer than that, or it stays as it is.
_COMPRESS_S: Final = 1800
#: A line that the recorder takes, and a mark, is shorter.
_LONGEST_LINE: Final = 16 * 2**20
_COPY_BYTES: Final = 256 * 1024


class EventLog(Recorder):
    """Writes and rotates; a disk that takes nothing costs lines (``lost``), never the engine.

    A file is complete at the end of a line when it has ``max_bytes`` (and at most what was gathered for one
    write above it) or was written to for ``max_age_s`` by this process (0: no limit). ``keep`` complete ones
    are kept.
    """

    def __init__(self, start: EventLogStart, host: str, offset_ns: int) -> None:
        self.lost = 0
        self.rotated = 0
        self._path = Path(start.path)
        self._settings = start
        self._contracts: dict[str, ProbeKinds] = {}
        self._offset_ns = offset_ns
        self._is_bare = True
        self._opened_s = 0.0
        self._child = 0
        self._said = ""
        self._named = re.compile(
            rf"{re.escape(self._path.stem)}-(\d{{8}}){re.escape(self._path.suffix)}(\.gz)?", re.ASCII
        )
        super().__init__(-1, host, offset_ns)

    def offset(self, offset_ns: int) -> None:
        """Wall time is event time plus this, from here on."""
        self._offset_ns = offset_ns
        super().offset(offset_ns)

    def contract(self, kinds: ProbeKinds) -> None:
        """What the numbers of a probe mean, from here on."""
        self._contracts[kinds.probe] = kinds
        super().contract(kinds)

    def flush(self) -> None:
        """Write what is gathered, whole lines; then see whether the file is complete."""
        data, self._out, self._size = b"".join(self._out), [], 0
        if not data:
            return
        try:
            if self._fd < 0:
                self._open()
            self._append(data)
            self.failed = ""
        except OSError as error:
            self._say_once(f"cannot be written: {error}")
            self.failed = str(error.strerror or error)
            self.lost += data.count(b"\n") - data.count(MARK)
            self._restate()
            return
        self._is_bare = self._is_bare and data.count(b"\n") == data.count(MARK)
        self._rotate_if_due()

    def tick(self) -> None:
        """Once a second: write, rotate by age, see after the compression."""
        self.flush()
        if self._child and os.waitpid(self._child, os.WNOHANG)[0]:
            self._child = 0
        if self._settings.compress and not self._child and self._fd >= 0:
            try:
                self._compress_one()
            except OSError as error:
                self._say_once(f"cannot be compressed: {error}")

    def close(self) -> None:
        """Write what is left; a compression under way is given up, the next run begins it anew."""
        self.flush()
        if self._child:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
            self._child = 0
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # files --------------------------------------------------------------------------------------

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(self._path, flags, _MODE)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise OSError(0, "not a plain file")
        self._fd = fd
        self._opened_s = monotonic_s()
        self._clear_halves()
        self._cut_torn_line(found.st_size)

    def _cut_torn_line(self, size: int) -> None:
        """A kill may have stopped a write within a line: what stands of it would be read as a wrong one."""
        begin = max(0, size - _LONGEST_LINE)
        end = os.pread(self._fd, size - begin, begin)
        torn = len(end) - (end.rfind(b"\n") + 1)
        if torn:
            os.ftruncate(self._fd, size - torn)
            self.lost += 1

    def _append(self, data: bytes) -> None:
        """All of it or nothing."""
        size = os.fstat(self._fd).st_size
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError:
            os.ftruncate(self._fd, size)
            raise

    def _restate(self) -> None:
        """Begin anew with all that the following lines rest on."""
        self._out.append(mark_line("host", {"host": self._host, "offset_ns": self._offset_ns}))
        self._out += [mark_line("contract", kinds) for kinds in self._contracts.values()]
        if self._probe:
            self._out.append(mark_line("probe", self._probe))

    def _rotate_if_due(self) -> None:
        age_s = monotonic_s() - self._opened_s
        is_old = 0 < self._settings.max_age_s <= age_s
        if self._is_bare or not (is_old or os.fstat(self._fd).st_size >= self._settings.max_bytes):
            return
        try:
            self._rotate()
        except OSError as error:
            self._say_once(f"cannot be rotated: {error}")

    def _rotate(self) -> None:
        number = max(self._complete(), default=0) + 1
        self._path.rename(self._path.with_name(f"{self._path.stem}-{number:08d}{self._path.suffix}"))
        os.close(self._fd)
        self._fd = -1
        self._is_bare = True
        self.rotated += 1
        self._restate()
        self._remove_oldest()

    def _say_once(self, what: str) -> None:
        if what != self._said:
            self._said = what
            log.error("event log is in trouble", extra={"path": str(self._path), "error": what})

    def _complete(self) -> dict[int, list[Path]]:
        """The complete files by their number: one each, or two while one is being compressed."""
        found: dict[int, list[Path]] = {}
        for path in sorted(self._path.parent.iterdir()):
            if name := self._named.fullmatch(path.name):
                found.setdefault(int(name[1]), []).append(path)
        return found

    def _remove_oldest(self) -> None:
        complete = self._complete()
        for number in sorted(complete)[: max(0, len(complete) - self._settings.keep)]:
            for path in complete[number]:
                path.unlink(missing_ok=True)

    # compression --------------------------------------------------------------------------------

    def _half(self) -> Path:
        return self._path.with_name(f".{self._path.name}.gz")

    def _clear_halves(self) -> None:
        """What a kill left: half a compressed file, or a whole one beside what it was made of."""
        self._half().unlink(missing_ok=True)
        for paths in self._complete().values():
            if len(paths) > 1:
                paths[0].unlink()  # sorts before that with .gz, which was on disk before it got its name

    def _compress_one(self) -> None:
        plain = [paths[0] for paths in self._complete().values() if paths[0].suffix != ".gz"]
        if not plain:
            return
        try:
            self._child = os.fork()
        except OSError:  # no memory, no process: it is tried again in a second
            return
        if self._child:
            return
        status = 1
        try:
            os.closerange(3, 65_536)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.alarm(_COMPRESS_S)
            os.nice(19)
            compress(plain[0], self._half())
            status = 0
        finally:
            os._exit(status)


def compress(path: Path, half: Path) -> None:
    """Replace a file by ``NAME.gz``; at any moment one of the two is there and whole."""
    with path.open("rb") as source, half.open("wb") as target:
        with gzip.GzipFile(path.name, "wb", 6, target, mtime=0) as packed:
            shutil.copyfileobj(source, packed, _COPY_BYTES)
        target.flush()
        os.fsync(target.fileno())
    half.chmod(_MODE)
    half.rename(path.with_name(f"{path.name}.gz"))
    path.unlink()
