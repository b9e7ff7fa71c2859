"""Giving up root for good: what the engine and the courier do before they read a hostile byte."""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
import signal
from typing import Final

from kwsiem.errors import UnavailableError

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAPBSET_DROP: Final = 24
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_LAST_CAPABILITY: Final = 63

_libc = ctypes.CDLL(None, use_errno=True)


def account(user: str) -> pwd.struct_passwd:
    """The account to run as: ``user``, or ``nobody`` when this host has no such user.

    Raises UnavailableError when neither exists.
    """
    for name in (user, "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise UnavailableError(f"neither user {user!r} nor 'nobody' exists; create one: useradd --system {user}")


def drop(user: str) -> None:
    """Become ``user``: no supplementary groups, no capabilities, no way to gain any (prctl(2)).

    Nothing is done but no_new_privs when the process is not root. Raises UnavailableError when the
    kernel left us any of it: a process that cannot give up its rights must not go on.
    """
    if os.geteuid() == 0:
        entry = account(user)
        for capability in range(_LAST_CAPABILITY + 1):
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        os.setgroups([])
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
        if os.getresuid() != (entry.pw_uid,) * 3 or os.getgroups():
            raise UnavailableError(f"cannot become user {entry.pw_name}: rights were not given up")
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise UnavailableError("cannot set no_new_privs: this kernel is older than 3.5")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel for SIGKILL when the parent dies; for the child side of a fork.

    The parent may have died before the call: then there is nobody to wait for, and we end at once.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)
