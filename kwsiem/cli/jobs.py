"""Checks in processes of their own: each ends in time, and none can hold up or change another.

A look-up in a resolver, a dead network file system or a program that hangs cannot be interrupted from
within; a process can be ended. And what gives up its rights to see what another user sees does it alone.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from kwsiem import clock, rights
from kwsiem.checkup import MISSING, WARNING, Finding
from kwsiem.errors import KwsiemError
from kwsiem.secret import mask

#: So many checks at a time: most of them wait, and bpftrace's compiler wants a core for itself.
WIDTH: Final = 4
_LOOK_S: Final = 0.2
_MAX_ANSWER: Final = 1 << 20


@dataclass(frozen=True)
class Job:
    """One check: what it is called, what it calls, and the seconds it may take."""

    name: str
    look: Callable[[], list[Finding]]
    timeout_s: float = 10.0


@dataclass
class _Child:
    job: Job
    pid: int
    fd: int
    end_s: float
    data: bytes = b""


def run(jobs: Sequence[Job], waiting: Callable[[str], None] = lambda _: None) -> Iterator[list[Finding]]:
    """The findings of each job in the order of the jobs; ``waiting`` hears what is waited for meanwhile."""
    left = list(enumerate(jobs))
    running: dict[int, _Child] = {}
    done: dict[int, list[Finding]] = {}
    following = 0
    try:
        with selectors.DefaultSelector() as selector:
            while following < len(jobs):
                while left and len(running) < WIDTH:
                    number, job = left.pop(0)
                    running[number] = _started(job)
                    selector.register(running[number].fd, selectors.EVENT_READ, number)
                for key, _ in selector.select(_LOOK_S):
                    _read(running[key.data])
                for number in [n for n, child in running.items() if _is_over(child)]:
                    selector.unregister(running[number].fd)
                    done[number] = _ended(running.pop(number))
                while following in done:
                    yield done.pop(following)
                    following += 1
                if following in running:
                    waiting(running[following].job.name)
    finally:
        for child in running.values():
            _end(child)


def _started(job: Job) -> _Child:
    sys.stdout.flush()
    sys.stderr.flush()
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    parent_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        _serve(job, write_fd, parent_pid)
    os.close(write_fd)
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)  # both do it: whoever is first, it is done before it matters
    os.set_blocking(read_fd, False)
    return _Child(job, pid, read_fd, clock.monotonic_s() + job.timeout_s)


def _serve(job: Job, fd: int, parent_pid: int) -> None:
    """The child's life: one check, its findings, and the end without a word of the parent's own."""
    try:
        os.setpgid(0, 0)
        rights.die_with_parent(parent_pid)
        try:
            findings = job.look()
        except KwsiemError as error:
            findings = [Finding(job.name, MISSING, mask(str(error)))]
        except Exception as error:  # noqa: BLE001 - the edge of a check: the others go on
            why = f"could not be looked at: {type(error).__name__}: {error}"
            findings = [Finding(job.name, WARNING, mask(why))]
        view = memoryview(msgspec.json.encode(findings))
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os._exit(0)


def _read(child: _Child) -> None:
    with contextlib.suppress(BlockingIOError):
        data = os.read(child.fd, 65536)
        child.data += data
        if not data or len(child.data) > _MAX_ANSWER:
            child.end_s = 0.0


def _is_over(child: _Child) -> bool:
    return clock.monotonic_s() >= child.end_s


def _ended(child: _Child) -> list[Finding]:
    late = child.end_s > 0
    _end(child)
    name = child.job.name
    if late:
        return [Finding(name, MISSING, f"no answer within {child.job.timeout_s:g} s")]
    try:
        return msgspec.json.decode(child.data, type=list[Finding])
    except msgspec.DecodeError:
        return [Finding(name, WARNING, "could not be looked at: its process ended")]


def _end(child: _Child) -> None:
    """End it and what it has started."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    os.close(child.fd)
