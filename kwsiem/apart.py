"""Work without rights: others write the files that it reads, and hostile text is in them.

In a process of its own (:func:`spawn`), or in this one for the rest of its life (:func:`drop_here`). Neither
can read what is typed into root's terminal, nor put words into it (TIOCSTI, ioctl_tty(2)).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import sys
import termios
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Final

from kwsiem import rights
from kwsiem.errors import KwsiemError, UnavailableError
from kwsiem.secret import mask
from kwsiem.text import clean

_MAX_TEXT: Final = 1000

log = logging.getLogger("kwsiem.apart")


def words_of(error: BaseException) -> str:
    """What went wrong, on one line, without secrets; where, when nobody expected it."""
    text = str(error)
    if not isinstance(error, (KwsiemError, OSError)):
        text = f"{type(error).__name__}: {clean(text, _MAX_TEXT - 100)}{_place(error.__traceback__)}"
    return clean(mask(text), _MAX_TEXT)


def _place(trace: TracebackType | None) -> str:
    """File and line; the module traceback would read the source, which we may not be allowed to any more."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})" if trace else ""


def _log(error: BaseException) -> None:
    log.error("a process without rights has failed: %s", words_of(error))


def _nothing() -> None:
    pass


def spawn(
    user: str,
    live: Callable[[], None],
    *,
    keep: Collection[int] = (),
    first: Callable[[], None] = _nothing,
    is_silent: bool = False,
    failed: Callable[[BaseException], None] = _log,
) -> int:
    """Fork a process that runs ``first`` as who we are and ``live`` as ``user`` alone; its pid.

    It is in a session of its own and dies with us. Of our descriptors it has those to ``keep`` and, unless
    ``is_silent``, standard error, to write alone; it exits with 0, or with 1 once ``failed`` was told why.
    Raises UnavailableError when one to keep has a number of the standard streams: we were started without.
    """
    if any(fd <= 2 for fd in keep):
        raise UnavailableError(
            "standard input, output or error is closed; start it with </dev/null, >/dev/null"
        )
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _replace(0, os.devnull)
        _replace(1, os.devnull)
        if is_silent:
            _replace(2, os.devnull)
        elif os.geteuid() == 0:  # else there is nothing to give up
            _only_write(2)
        _close_but(keep)
        first()
        rights.drop(user)
        rights.die_with_parent(parent)  # after the change of user, which clears it
        live()
        code = 0
    except BaseException as error:  # noqa: BLE001 - the edge of a process
        with contextlib.suppress(BaseException):
            failed(error)
    finally:
        os._exit(code)


def drop_here(user: str) -> None:
    """Become ``user`` for good, and let go of the terminal but for writing; raises as :func:`rights.drop`.

    Ctrl-C still comes: a terminal sends it to its group of processes. Who leads a session cannot leave its
    terminal, but takes it along at its end, so that nobody reads there afterwards.
    """
    if os.geteuid() == 0:
        _replace(0, os.devnull)
        _only_write(1)
        _only_write(2)
        _leave_terminal()
    rights.drop(user)


def _replace(fd: int, path: str, flags: int = os.O_RDWR) -> None:
    opened = os.open(path, flags | os.O_NOCTTY | os.O_CLOEXEC)
    if opened != fd:
        os.dup2(opened, fd)
        os.close(opened)
    else:
        os.set_inheritable(fd, True)


def _only_write(fd: int) -> None:
    """A terminal is opened anew, to write alone; anything else gives nothing to read that is typed."""
    if not os.isatty(fd):
        return
    try:
        _replace(fd, f"/proc/self/fd/{fd}", os.O_WRONLY)
    except OSError as error:
        raise UnavailableError(
            f"this terminal cannot be opened to write alone ({error.strerror}); try: 2>&1 | cat"
        ) from None


def _leave_terminal() -> None:
    if os.getsid(0) == os.getpid():
        return
    try:
        fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return  # there is none
    try:
        fcntl.ioctl(fd, termios.TIOCNOTTY)
    finally:
        os.close(fd)


def _close_but(keep: Collection[int]) -> None:
    for path in list(Path("/proc/self/fd").iterdir()):
        fd = int(path.name)
        if fd > 2 and fd not in keep:
            with contextlib.suppress(OSError):  # the one that this list was read from
                os.close(fd)
