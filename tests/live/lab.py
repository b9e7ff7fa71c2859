"""A throw-away network laboratory for live tests: uniquely named namespaces joined by veth pairs.

::

    with Lab("host", "peer") as lab:                 # the first namespace is joined to each of the others
        server = lab.popen("host", ["nc", "-l", "80"])
        lab.run("peer", ["nc", "-z", lab.ip4("host"), "80"])
        with lab.inside("peer"):                     # this thread's sockets are made in the namespace
            socket.create_connection((lab.ip6("host"), 80))

Needs root and iproute2. Link number n uses the n-th of the documentation ranges of RFC 5737 (then RFC 2544)
and 2001:db8:n::/64; the first end of a link has host number 1, the second 2. Names start with ``kw`` and the
pid; the namespaces of a test run that was killed are swept by the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_RANGES = ("198.51.100", "203.0.113", "192.0.2", *(f"198.18.{n}" for n in range(64)))
_NETNS = Path("/run/netns")
_libc = ctypes.CDLL(None, use_errno=True)
_laboratories = 0

T = TypeVar("T")


@dataclass(frozen=True)
class End:
    """One end of a link: where it is and how it is reached."""

    namespace: str
    device: str
    ip4: str
    ip6: str


class Lab:
    """Network namespaces that exist as long as the ``with`` block; processes started in them end with it."""

    def __init__(self, *names: str) -> None:
        global _laboratories
        _laboratories += 1
        self._prefix = f"kw{os.getpid()}-{_laboratories}-"
        self._names = names
        self._namespaces: list[str] = []
        self._links = 0
        self._devices: dict[str, int] = {}
        self._ends: dict[str, End] = {}
        self._children: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Lab:
        _sweep()
        try:
            for name in self._names:
                self.add(name)
            for other in self._names[1:]:
                self.link(self._names[0], other)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- building

    def add(self, name: str) -> None:
        """A new namespace with loopback up and no IPv6 duplicate address detection (it costs 2 s)."""
        self._namespaces.append(name)
        _ip("netns", "add", self.full(name))
        self.ip(name, "link", "set", "lo", "up")
        self.sysctl(name, "net/ipv6/conf/all/accept_dad", "0")
        self.sysctl(name, "net/ipv6/conf/default/accept_dad", "0")

    def link(self, first: str, second: str) -> tuple[End, End]:
        """Joins two namespaces with a veth pair that has an IPv4 /24 and an IPv6 /64."""
        number = self._links
        self._links += 1
        devices = self._veth(first, second)
        ends = []
        for host, (name, device) in enumerate(zip((first, second), devices, strict=True), start=1):
            end = End(name, device, f"{_RANGES[number]}.{host}", f"2001:db8:{number}::{host}")
            self.address(name, device, f"{end.ip4}/24")
            self.address(name, device, f"{end.ip6}/64")
            self._ends.setdefault(name, end)
            ends.append(end)
        return ends[0], ends[1]

    def bridge(self, name: str, bridge: str, *containers: str) -> tuple[End, ...]:
        """A bridge in ``name`` with an address, and each container joined to it as container engines do.

        Gives the end of the bridge itself, then those of the containers (host numbers 2, 3 …).
        """
        number = self._links
        self._links += 1
        self.ip(name, "link", "add", bridge, "type", "bridge")
        self.ip(name, "link", "set", bridge, "up")
        ends = [self._bridge_end(number, 1, name, bridge)]
        for host, container in enumerate(containers, start=2):
            port, device = self._veth(name, container)
            self.ip(name, "link", "set", port, "master", bridge)
            ends.append(self._bridge_end(number, host, container, device))
        return tuple(ends)

    def address(self, name: str, device: str, address: str) -> None:
        """One more address (``198.51.100.50/24``) on a device."""
        extra = ["nodad"] if ":" in address else []
        self.ip(name, "address", "replace", address, "dev", device, *extra)

    def sysctl(self, name: str, key: str, value: str) -> None:
        """Sets /proc/sys/KEY as the namespace sees it."""
        with self.inside(name):
            Path("/proc/sys", key).write_text(value)

    def ip(self, name: str, *arguments: str) -> str:
        """Runs ``ip`` in the namespace."""
        return _ip("-n", self.full(name), *arguments)

    def _veth(self, first: str, second: str) -> tuple[str, str]:
        devices = []
        for name in (first, second):
            count = self._devices.get(name, 0)
            self._devices[name] = count + 1
            devices.append(f"eth{count}")
        one, two = devices
        _ip(
            *("link", "add", one, "netns", self.full(first), "type", "veth"),
            *("peer", "name", two, "netns", self.full(second)),
        )
        self.ip(first, "link", "set", one, "up")
        self.ip(second, "link", "set", two, "up")
        return one, two

    def _bridge_end(self, number: int, host: int, name: str, device: str) -> End:
        end = End(name, device, f"{_RANGES[number]}.{host}", f"2001:db8:{number}::{host}")
        self.address(name, device, f"{end.ip4}/24")
        self.address(name, device, f"{end.ip6}/64")
        self._ends.setdefault(name, end)
        return end

    # -- asking

    def full(self, name: str) -> str:
        """The namespace's name in /run/netns."""
        return self._prefix + name

    def path(self, name: str) -> str:
        """The namespace's file, for ``nsenter --net=``."""
        return str(_NETNS / self.full(name))

    def inode(self, name: str) -> int:
        """The inode number of the namespace: what a probe takes as ``netns``."""
        return Path(self.path(name)).stat().st_ino

    def end(self, name: str) -> End:
        """The first end that was made in the namespace."""
        return self._ends[name]

    def ip4(self, name: str) -> str:
        """The first IPv4 address of the namespace."""
        return self._ends[name].ip4

    def ip6(self, name: str) -> str:
        """The first IPv6 address of the namespace."""
        return self._ends[name].ip6

    # -- running

    def argv(self, name: str, argv: Sequence[str], root: str | None = None) -> list[str]:
        """What to execute so that ``argv`` runs in the namespace (and in the file tree ``root``)."""
        enter = ["nsenter", f"--net={self.path(name)}", "--"]
        return [*enter, *(["chroot", root] if root else []), *argv]

    def run(
        self, name: str, argv: Sequence[str], *, check: bool = True, timeout: float = 30, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in the namespace to its end; text in and out. A failure shows what it said."""
        options.setdefault("capture_output", "stdout" not in options and "stderr" not in options)
        options.setdefault("text", True)
        done = subprocess.run(self.argv(name, argv), timeout=timeout, check=False, **options)
        if check and done.returncode:
            raise AssertionError(f"{argv} in {name}: exit {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def popen(
        self, name: str, argv: Sequence[str], *, root: str | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Starts a command in the namespace, in a session of its own; it is ended with the laboratory."""
        options.setdefault("start_new_session", True)
        child = subprocess.Popen(self.argv(name, argv, root), **options)
        self._children.append(child)
        return child

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Puts the calling thread in the namespace: sockets made (and children started) here belong to it."""
        with open("/proc/thread-self/ns/net") as home, open(self.path(name)) as target:
            _setns(target.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    # -- ending

    def stop(self, child: subprocess.Popen[Any], timeout: float = 3) -> int:
        """Ends a child started with :meth:`popen`: SIGTERM to its group, then SIGKILL."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(timeout)
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        return child.wait(timeout)

    def close(self) -> None:
        """Ends the children, then whatever still runs in the namespaces, and deletes them."""
        for child in reversed(self._children):
            self.stop(child)
        for name in self._namespaces:
            _delete(self.full(name))
        self._namespaces.clear()
        self._children.clear()


def wait_until(condition: Callable[[], T], timeout: float = 10, message: str = "", pause: float = 0.02) -> T:
    """Asks until the answer is true, and gives it; AssertionError when that takes too long (seconds)."""
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"after {timeout} s still not: {message or condition}"
        time.sleep(pause)


def clean_environment(**extra: str) -> Mapping[str, str]:
    """The environment that the supervisor gives to a child: a path and what is named, nothing else."""
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", **extra}


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise AssertionError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _delete(full: str) -> None:
    """Deletes a namespace of ours; kills what still runs in it (its name is unique: all of it is ours)."""
    if not (_NETNS / full).exists():
        return
    for pid in _ip("netns", "pids", full).split():
        if int(pid) != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    _ip("netns", "delete", full)


def _sweep() -> None:
    """Deletes the namespaces of laboratories whose process is gone."""
    if not _NETNS.is_dir():
        return
    for path in _NETNS.iterdir():
        made = re.fullmatch(r"kw(\d+)-\d+-.+", path.name)
        if made and not Path("/proc", made[1]).exists():
            _delete(path.name)
