"""One bpftrace process: console on a pty that pexpect owns, data on a plain pipe that the engine reads.

A pty holds 17 to 21 kB and costs 20 to 50 times a pipe for each line (measured): events never go through it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pexpect
import ptyprocess

from kwsiem import rights
from kwsiem.errors import UnavailableError

PIPE_BYTES: Final = 2**20
CONSOLE_BYTES: Final = 16 * 1024
STOP_S: Final = 2.0
LONG_STRLEN: Final = 256
#: glibc's own first value; setting it keeps glibc from raising it to twice the largest block ever freed.
TRIM_BYTES: Final = 128 * 1024
_VERSION: Final = re.compile(r"bpftrace v?(\d+)\.(\d+)(?:\.(\d+))?")
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Version = tuple[int, int, int]


class _Console(pexpect.spawn):  # type: ignore[type-arg]
    """A pexpect child whose standard output is a pipe of ours; only the console stays on the pty."""

    def __init__(self, argv: Sequence[str], output_fd: int, env: Mapping[str, str]) -> None:
        self._output_fd = output_fd
        parent_pid = os.getpid()

        def in_child() -> None:
            os.dup2(output_fd, 1)
            os.close(output_fd)
            rights.die_with_parent(parent_pid)

        super().__init__(
            argv[0],
            list(argv[1:]),
            env=dict(env),
            echo=False,
            preexec_fn=in_child,
            timeout=None,
            use_poll=True,
        )
        self.delayafterclose = 0.0
        pty: Any = self.ptyproc  # type: ignore[attr-defined]
        pty.delayafterclose = pty.delayafterterminate = 0.0

    def _spawnpty(self, args: list[str], **kwargs: Any) -> Any:
        # pexpect's own hook for its one call; it has no other way to let a descriptor through.
        return ptyprocess.PtyProcess.spawn(args, pass_fds=(self._output_fd,), **kwargs)


class BpftraceChild:
    """A running bpftrace.

    ``output_fd`` is the read end of its data pipe, owned by the caller. The child is killed by the kernel
    when this process dies, however it dies.
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self.output_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        try:
            fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            os.set_inheritable(write_fd, True)
            self._console = _Console(argv, write_fd, env)
        except (OSError, pexpect.ExceptionPexpect) as error:
            os.close(self.output_fd)
            raise UnavailableError(f"cannot start {argv[0]}: {error}") from None
        finally:
            os.close(write_fd)
        self.pid = int(self._console.pid or 0)
        self.pidfd = os.pidfd_open(self.pid)
        self.console = ""
        self.killed = False
        self._kill_at_s: float | None = None

    @property
    def console_fd(self) -> int:
        """The pty, for a selector."""
        return int(self._console.child_fd)

    def read_console(self) -> bool:
        """Take what bpftrace wrote to its console (kept: the last CONSOLE_BYTES); False at its end."""
        try:
            text = self._console.read_nonblocking(4096, timeout=0)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.console = (self.console + text.decode("utf-8", "replace"))[-CONSOLE_BYTES:]
        return True

    def stop(self, now_s: float) -> None:
        """Ask it to end as a person at its console would (Ctrl-C); :meth:`enforce` sees to it."""
        if self._kill_at_s is None:
            self._kill_at_s = now_s + STOP_S
            try:
                self._console.sendintr()
            except OSError:
                self.kill()

    def enforce(self, now_s: float) -> None:
        """Kill it when it was asked to end and has not."""
        if self._kill_at_s is not None and now_s >= self._kill_at_s and not self.killed:
            self.kill()

    def kill(self) -> None:
        """SIGKILL; the kernel removes its programs with it."""
        self.killed = True
        with contextlib.suppress(ProcessLookupError):  # it has ended, and is not reaped yet
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def reap(self) -> int:
        """Wait for the end (its pidfd is readable), release everything but the data pipe; the exit status."""
        for _ in range(CONSOLE_BYTES // 4096):
            if not self.read_console():
                break
        self._console.wait()
        status = self._console.exitstatus
        result = -int(self._console.signalstatus or 0) if status is None else int(status)
        self._console.close(force=True)
        os.close(self.pidfd)
        return result


def bpftrace_version(program: str) -> Version:
    """The version of bpftrace; raises UnavailableError that says how to get it when there is none."""
    try:
        done = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            timeout=20,
            env={"PATH": _PATH},
            check=False,
        )
    except FileNotFoundError:
        raise UnavailableError(
            f"{program}: not found. Install it: apt-get install bpftrace (or set 'bpftrace:' in the settings)"
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{program} --version: {error}") from None
    found = _VERSION.search(done.stdout)
    if not found:
        raise UnavailableError(f"{program} --version says {done.stdout.strip()!r}: that is not bpftrace")
    return int(found[1]), int(found[2]), int(found[3] or 0)


def environment(version: Version, wanted: Mapping[str, str]) -> dict[str, str]:
    """A clean environment with the settings a probe wants, under the names this version knows.

    ``wanted`` has the keys ``strlen``, ``map_keys``, ``buffer_pages``. Up to 0.18 the buffer is per CPU,
    later it is one for all (bpftrace 0.19), hence the different defaults. What the compiler leaves behind
    goes back to the kernel (mallopt(3), glibc alone): 8.7 MB less for each process (measured).
    """
    new_names = version >= (0, 20, 0)
    names = {
        "strlen": "BPFTRACE_MAX_STRLEN" if new_names else "BPFTRACE_STRLEN",
        "map_keys": "BPFTRACE_MAX_MAP_KEYS" if new_names else "BPFTRACE_MAP_KEYS_MAX",
        "buffer_pages": "BPFTRACE_PERF_RB_PAGES",
    }
    if version >= (0, 21, 0) and "strlen" in wanted:
        # Since 0.21 strings live outside the BPF stack, but 0.27 puts those of 64 bytes on it again, where
        # three do not fit (measured); there is no reason any more to keep them that short.
        wanted = {**wanted, "strlen": str(max(LONG_STRLEN, int(wanted["strlen"])))}
    values = {"buffer_pages": "1024" if version >= (0, 19, 0) else "64", **wanted}
    result = {"PATH": _PATH, "LC_ALL": "C", "HOME": "/", "MALLOC_TRIM_THRESHOLD_": str(TRIM_BYTES)}
    result.update({names[key]: value for key, value in values.items() if key in names})
    if version >= (0, 24, 0):
        result["BPFTRACE_PRINT_MAPS_ON_EXIT"] = "0"
    return result
