"""The rule files on disk and what became of them: loaded, or stale with the reason.

Reading happens here (bounded, regular files only), everything else in a short-lived child without rights
(:mod:`kwsiem.rules.loader`): neither a slow nor a hostile file disturbs anyone. What the child leaves in its
memory file is handed on unread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from kwsiem import clock
from kwsiem.errors import ConfigError
from kwsiem.event import EventKind
from kwsiem.rules.files import files_of, read_rule_files, shown, signature_of
from kwsiem.rules.source import Source
from kwsiem.watch import LOOK_S, SETTLE_S, Signature

LOAD_TIMEOUT_S: Final = 60.0
#: A file that does not load is read once more after this before anyone is told: perhaps it was half written.
SECOND_LOOK_S: Final = 0.5
_LOADED: Final = 0


class LoadRequest(msgspec.Struct):
    """What the loader child is asked: these sources, against these event kinds, as this user."""

    user: str
    sources: list[Source]
    kinds: dict[str, EventKind]


class Loaded(msgspec.Struct):
    """How a load ended: a memory file with the compiled rules (owned by the receiver), or problems."""

    sha256: str
    fd: int = -1
    size: int = 0
    problems: list[str] = []


class RuleFiles:
    """Follows the rule file and the folder of further ones; ``now_s`` everywhere is monotonic seconds."""

    def __init__(self, path: Path, folder: Path, user: str) -> None:
        self.path = path
        self.folder = folder
        self.loaded_sha256 = ""
        self.disk_sha256 = ""
        self.problems: list[str] = []
        self.rules = 0
        self.skipped: list[str] = []
        self.skipped_count = 0
        self.stale_ns = 0
        self.loaded_ns = 0
        self.pidfd = -1
        self._user = user
        self._tried: Signature | None = None
        self._seen: tuple[Signature, float] = ((), 0.0)
        self._next_look_s = 0.0
        self._retry_s: float | None = None
        self._failed_before = False
        self._process: subprocess.Popen[bytes] | None = None
        self._result_fd = -1
        self._started_s = 0.0

    @property
    def folders(self) -> set[Path]:
        """Folders in which a change may concern the files: their own, and those of every link on the way."""
        found = {self.folder.absolute(), _real(self.folder), self.folder.parent.absolute()}
        found |= {self.path.parent.absolute(), _real(self.path).parent}
        for file in (self.folder, *files_of(self.path, self.folder)):
            if file.is_symlink():
                found |= _folders_to(file)
        return found

    @property
    def loading(self) -> bool:
        """Whether a loader child is at work."""
        return self._process is not None

    def due(self, now_s: float) -> bool:
        """Whether the file differs from what was tried last, and has stopped changing.

        The disk is looked at after a :meth:`hint`, while the file changes, and each LOOK_S otherwise.
        """
        if self.loading:
            return False
        if self._retry_s is not None and now_s >= self._retry_s:
            return True
        if now_s < self._next_look_s:
            return False
        seen = signature_of(self.path, self.folder)
        if seen == self._tried:
            self._next_look_s = now_s + LOOK_S
            return False
        if seen != self._seen[0]:
            self._seen = (seen, now_s)
        return now_s - self._seen[1] >= SETTLE_S

    def hint(self) -> None:
        """Something changed in one of the folders: look at once."""
        self._next_look_s = 0.0

    def forget_tried(self) -> None:
        """Load again even if the file is the same: what it is checked against has changed."""
        self._tried = None
        self.hint()

    def begin(self, kinds: Mapping[str, EventKind], now_s: float) -> int:
        """Start the loader; its pidfd is readable when it has ended. Raises ConfigError when unreadable."""
        tried = signature_of(self.path, self.folder)
        if tried != self._tried:
            self._failed_before = False
        self._tried, self._retry_s = tried, None
        self.disk_sha256 = ""  # not known until all of it has been read
        sources = read_rule_files(self.path, self.folder)
        self.disk_sha256 = hashlib.sha256(b"".join(source.data for source in sources)).hexdigest()
        request = msgspec.msgpack.encode(LoadRequest(self._user, sources, dict(kinds)))
        try:
            self._start(request)
        except OSError as error:  # no descriptors, processes or memory left: who asked must not end of it
            raise ConfigError(f"the rules cannot be loaded: {error.strerror}") from None
        self._started_s = now_s
        return self.pidfd

    def _start(self, request: bytes) -> None:
        """Start the loader child with its request on standard input; after an OSError there is none."""
        argv = [sys.executable, "-I", "-m", "kwsiem.rules.loader"]
        with contextlib.ExitStack() as undo:
            self._result_fd = _memory_file("kwsiem-rules", b"")
            undo.callback(os.close, self._result_fd)
            with os.fdopen(_memory_file("kwsiem-request", request), "rb") as given:
                process = subprocess.Popen(argv, stdin=given, stdout=self._result_fd, start_new_session=True)
            undo.callback(process.wait)
            undo.callback(process.kill)
            self.pidfd = os.pidfd_open(process.pid)
            undo.pop_all()
        self._process = process

    def enforce(self, now_s: float) -> None:
        """Kill a loader that takes too long."""
        if self.loading and now_s - self._started_s > LOAD_TIMEOUT_S:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def finish(self, now_s: float) -> Loaded | None:
        """What the loader left; None when the file failed for the first time and gets a second look."""
        assert self._process is not None
        status = self._process.wait()
        self._process = None
        os.close(self.pidfd)
        self.pidfd = -1
        fd, self._result_fd = self._result_fd, -1
        size = os.fstat(fd).st_size
        if status == _LOADED:
            self._failed_before = False
            return Loaded(self.disk_sha256, fd, size)
        problems = _problems(os.pread(fd, 2**20, 0), status)
        os.close(fd)
        return self.failed(problems, now_s)

    def failed(self, problems: list[str], now_s: float) -> Loaded | None:
        """The file cannot be loaded; None the first time, for it may be half written just now."""
        if not self._failed_before:
            self._failed_before = True
            self._retry_s = now_s + SECOND_LOOK_S
            return None
        return self.refused(problems)

    def refused(self, problems: list[str]) -> Loaded:
        """The file cannot be used: the running rules stay, and are stale."""
        if not self.problems:
            self.stale_ns = clock.wall_ns()
        self.problems = problems
        return Loaded(self.disk_sha256, problems=problems)

    def taken(self, sha256: str, rules: int, skipped: list[str], skipped_count: int) -> None:
        """The engine runs these rules; ``skipped`` says of the first Sigma rules that it cannot why."""
        self.loaded_sha256 = sha256
        self.rules = rules
        self.skipped, self.skipped_count = skipped, skipped_count
        self.loaded_ns = clock.wall_ns()
        if sha256 == self.disk_sha256:
            self.problems = []

    def status(self) -> dict[str, Any]:
        """Files, number of rules, both hashes, whether the running rules are stale, since when and why."""
        return {
            "file": shown(self.path),
            "files": [shown(file) for file in files_of(self.path, self.folder)],
            "rules": self.rules,
            "loaded": clock.iso(self.loaded_ns) if self.loaded_ns else None,
            "loaded_sha256": self.loaded_sha256,
            "disk_sha256": self.disk_sha256,
            "stale": bool(self.problems),
            "stale_since": clock.iso(self.stale_ns) if self.problems else None,
            "skipped": self.skipped_count,
            "skipped_rules": self.skipped,
            "problems": self.problems,
        }


def _folders_to(link: Path) -> set[Path]:
    """The folders of a link, of every further one on the way, and of what they lead to."""
    found = {link.parent.absolute(), _real(link).parent}
    hop = link
    for _ in range(8):
        try:
            hop = hop.parent / hop.readlink()
        except OSError:  # no link, or no longer there
            break
        found.add(hop.parent.absolute())
    return found


def _real(path: Path) -> Path:
    """The path without links; unlike Path.resolve it bears links that lead to themselves."""
    return Path(os.path.realpath(path))


def _memory_file(name: str, data: bytes) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.write(fd, data) if data else None
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _problems(data: bytes, status: int) -> list[str]:
    try:
        return msgspec.json.decode(data, type=list[str]) or [f"loader ended with status {status}"]
    except msgspec.DecodeError:
        if status == -signal.SIGKILL:
            return [f"loading took more than {LOAD_TIMEOUT_S:.0f} s or too much memory"]
        return [f"loader ended with status {status}"]
