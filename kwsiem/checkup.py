"""What this host has of what the appliance needs: findings, each with the command that mends it.

Here are the checks that know no stage; those of probes, firewall, rules and outputs are in
:mod:`kwsiem.cli.diagnosis`. They read files and ask the kernel, and change nothing. Folders are looked for
under ``Host.root``, so that a test can lay out a host of its own.
"""

from __future__ import annotations

import os
import platform
import pwd
import re
import shlex
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import msgspec

from kwsiem import clock, rights

State = Literal["good", "warning", "missing", "skipped"]
GOOD: Final[State] = "good"
#: It works, but less well than it could, or less safely.
WARNING: Final[State] = "warning"
#: It keeps the appliance, or a part of it, from its work.
MISSING: Final[State] = "missing"
#: It could not be looked at.
SKIPPED: Final[State] = "skipped"

#: bpf_ktime_get_boot_ns, the clock of events, came with Linux 5.8.
LEAST_KERNEL: Final = (5, 8)
LEAST_FREE_BYTES: Final = 64 * 2**20
LEAST_FREE_INODES: Final = 100
#: Nothing of this program is older; a clock that says less has lost its battery.
LEAST_WALL_NS: Final = 1_735_689_600 * clock.NS_PER_S  # 2025-01-01
_MAX_READ: Final = 1 << 20
#: linux/capability.h
_CAPABILITIES: Final[Mapping[str, int]] = {
    "CHOWN": 0,
    "SETGID": 6,
    "SETUID": 7,
    "SYS_ADMIN": 21,
}
_NET_ADMIN: Final = 12

_INSTALL: Final[Mapping[str, str]] = {
    "apt": "apt-get install",
    "dnf": "dnf install",
    "zypper": "zypper install",
    "pacman": "pacman -S",
}
#: A distribution, or what it says it is like, and its package manager.
_MANAGERS: Final[Mapping[str, str]] = {
    "debian": "apt",
    "ubuntu": "apt",
    "fedora": "dnf",
    "rhel": "dnf",
    "centos": "dnf",
    "suse": "zypper",
    "opensuse": "zypper",
    "arch": "pacman",
}
#: Packages that are not called the same everywhere; "" is what the others call them.
_PACKAGES: Final[Mapping[str, Mapping[str, str]]] = {
    "libpam": {"apt": "libpam0g", "": "pam"},
    "pam_unix": {"apt": "libpam-modules", "": "pam"},
    "iptables": {"dnf": "ipset iptables-nft coreutils", "": "ipset iptables coreutils"},
    "kernel": {"dnf": "kernel", "zypper": "kernel-default", "pacman": "linux"},
}
_DEBIAN_KERNELS: Final[Mapping[str, str]] = {"x86_64": "amd64", "aarch64": "arm64"}


class Finding(msgspec.Struct, frozen=True):
    """What one check found; ``mend`` is the command (or the words) that mends it, to be run as root."""

    check: str
    state: State
    found: str
    mend: str = ""


@dataclass(frozen=True)
class Host:
    """The host that is looked at: where its files begin, and what its kernel is called."""

    root: Path = Path("/")
    release: str = field(default_factory=platform.release)
    machine: str = field(default_factory=platform.machine)

    def read(self, path: str) -> str:
        """The beginning of a file; empty when it cannot be read."""
        try:
            with (self.root / path).open("rb") as file:
                return file.read(_MAX_READ).decode("utf-8", "replace")
        except OSError:
            return ""

    def distribution(self) -> tuple[str, str]:
        """Its name (``debian``) and its package manager (``apt``), as os-release(5) says; "" when unknown."""
        text = self.read("etc/os-release") or self.read("usr/lib/os-release")
        values = dict(re.findall(r"^(ID|ID_LIKE)=[\"']?([^\"'\n]*)", text, re.MULTILINE))
        names = [*values.get("ID", "").split(), *values.get("ID_LIKE", "").split()]
        known = (
            _MANAGERS[part] for name in names for part in (name, name.split("-")[0]) if part in _MANAGERS
        )
        return (names[0] if names else ""), next(known, "")

    def install(self, what: str) -> str:
        """The command that installs something here; ``what`` is a package, or a key of our own table."""
        name, manager = self.distribution()
        names = _PACKAGES.get(what, {"": what})
        package = names.get(manager, names.get("", what))
        if what == "kernel" and manager == "apt":
            package = f"linux-image-{_DEBIAN_KERNELS.get(self.machine, self.machine)}"
            package = "linux-image-generic" if name == "ubuntu" else package
        command = _INSTALL.get(manager)
        return f"{command} {package}" if command else f"install the package {package}"


# -- kernel ------------------------------------------------------------------------------------------


def kernel(host: Host) -> list[Finding]:
    """The version of the kernel, and whether its lockdown lets BPF read (kernel_lockdown(7))."""
    found = re.match(r"(\d+)\.(\d+)", host.release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    newer = f"{host.install('kernel')} && reboot"
    if version < LEAST_KERNEL:
        return [Finding("kernel", MISSING, f"{host.release}; it must be 5.8 at least", newer)]
    if "[confidentiality]" in host.read("sys/kernel/security/lockdown"):
        why = f"{host.release}, locked down: no program may read the kernel's memory"
        return [
            Finding(
                "kernel", MISSING, why, "boot with lockdown=integrity in place of lockdown=confidentiality"
            )
        ]
    return [Finding("kernel", GOOD, f"{host.release} {host.machine}")]


def btf(host: Host) -> list[Finding]:
    """Whether the kernel describes its own types."""
    path = host.root / "sys/kernel/btf/vmlinux"
    if path.exists():
        return [Finding("BTF", GOOD, str(path))]
    mend = f"{host.install('kernel')} && reboot"
    return [Finding("BTF", MISSING, f"no {path}; the kernel needs CONFIG_DEBUG_INFO_BTF=y", mend)]


def tracefs(host: Host, tracing: Path) -> list[Finding]:
    """Whether tracefs is mounted; /proc/mounts tells it to those who may not look inside."""
    try:
        there = (host.root / tracing.relative_to("/") / "events").is_dir()
    except PermissionError:
        there = False
    mounts = (line.split() for line in host.read("proc/mounts").splitlines())
    if there or any(words[1:3] == [str(tracing), "tracefs"] for words in mounts):
        return [Finding("tracefs", GOOD, f"mounted at {tracing}")]
    return [Finding("tracefs", MISSING, f"not mounted at {tracing}", f"mount -t tracefs tracefs {tracing}")]


def tracepoints(wanted: set[str], host: Host, tracing: Path) -> list[Finding]:
    """Whether the kernel has the tracepoints (``net:netif_receive_skb``) that the probes use.

    A warning when it lacks some: the probes that need those do not run, the others do.
    """
    events = host.root / tracing.relative_to("/") / "events"
    try:
        absent = sorted(name for name in wanted if not (events / name.replace(":", "/")).is_dir())
    except PermissionError:
        return [Finding("tracepoints", SKIPPED, f"{events} can be read by root alone")]
    if not absent:
        return [Finding("tracepoints", GOOD, f"all {len(wanted)} that the probes use")]
    mend = f"{host.install('kernel')} && reboot" if events.is_dir() else f"mount -t tracefs tracefs {tracing}"
    state = MISSING if len(absent) == len(wanted) else WARNING
    return [Finding("tracepoints", state, f"this kernel lacks {', '.join(absent)}", mend)]


# -- rights and users --------------------------------------------------------------------------------


def capabilities(host: Host, *, is_blocking: bool) -> list[Finding]:
    """Whether this user is root with all that root may do; in a container some of it is taken away."""
    if os.geteuid() != 0:
        why = "not root: probes, firewall and what only root reads are not looked at"
        return [Finding("rights", SKIPPED, why, "sudo kwsiem doctor")]
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", host.read("proc/self/status"), re.MULTILINE)
    mask = int(found[1], 16) if found else 0
    lacking = [f"CAP_{name}" for name, bit in _CAPABILITIES.items() if not mask >> bit & 1]
    if lacking:
        mend = "docker run --privileged --pid host --network host …, or run it on the host itself"
        return [Finding("rights", MISSING, f"root without {', '.join(lacking)}", mend)]
    if not mask >> _NET_ADMIN & 1:
        state = MISSING if is_blocking else WARNING
        mend = "docker run --cap-add NET_ADMIN …"
        return [Finding("rights", state, "root without CAP_NET_ADMIN: nothing can be blocked", mend)]
    return [Finding("rights", GOOD, "root with the capabilities that are needed")]


def account(user: str) -> list[Finding]:
    """Whether the user exists that the engine and the courier run as."""
    create = f"useradd --system --home-dir /var/lib/kwsiem --shell /usr/sbin/nologin --user-group {user}"
    name = f"user {user}"
    for candidate in (user, "nobody"):
        try:
            entry = pwd.getpwnam(candidate)
        except KeyError:
            continue
        if entry.pw_uid == 0:
            return [Finding(name, WARNING, f"{candidate} is root: nothing is given up", create)]
        if candidate == user:
            return [Finding(name, GOOD, f"uid {entry.pw_uid}")]
        return [Finding(name, WARNING, "does not exist; nobody is taken, which others use too", create)]
    return [Finding(name, MISSING, "does not exist, and neither does nobody", create)]


# -- clock -------------------------------------------------------------------------------------------


def wall_clock(
    host: Host,
    synchronised: Callable[[], bool | None] = clock.is_synchronised,
    now_ns: Callable[[], int] = clock.wall_ns,
) -> list[Finding]:
    """Whether wall time can be believed, and whether something keeps it right (adjtimex(2))."""
    has_timesyncd = any(
        (host.root / folder / "systemd/systemd-timesyncd").exists() for folder in ("usr/lib", "lib")
    )
    mend = "timedatectl set-ntp true" if has_timesyncd else host.install("chrony")
    now = now_ns()
    if now < LEAST_WALL_NS:
        return [Finding("clock", WARNING, f"it says {clock.iso(now)}, which is over", mend)]
    is_good = synchronised()
    if is_good is None:
        return [Finding("clock", SKIPPED, f"{clock.iso(now)}; the kernel does not say whether it is right")]
    if not is_good:
        why = f"{clock.iso(now)}, not synchronised: times of alerts may be wrong"
        return [Finding("clock", WARNING, why, mend)]
    return [Finding("clock", GOOD, f"{clock.iso(now)}, synchronised")]


# -- folders and files -------------------------------------------------------------------------------


def state_folder(path: Path, user: str, most_bytes: int) -> list[Finding]:
    """The state folder: owner, mode, whether ``user`` can write there, and the room on its disk.

    Gives up its rights to see what that user sees: for a process of its own.
    """
    there = _existing(path)
    is_root = os.geteuid() == 0
    space = _space(path, there, most_bytes)
    who = rights.account(user).pw_name if is_root else "this user"
    modes = _state_mode(path, who) if is_root and path.is_dir() else []
    rights.drop(user)
    return [
        _state_access(path, there, who, is_root=is_root) or next(iter(modes), None) or _at_home(path, who),
        *space,
    ]


def _state_access(path: Path, there: Path, who: str, *, is_root: bool) -> Finding | None:
    """What keeps this process, which is the courier's user by now, from its folder."""
    name, state = "state folder", MISSING if is_root else SKIPPED
    above = [*reversed(there.resolve().parents), *([] if there == path else [there])]
    closed = next((one for one in above if not os.access(one, os.X_OK)), None)
    if closed is not None:
        found = f"{path}: {who} cannot get there, because {closed} is closed to it"
        return Finding(name, state, found, f"chmod o+x {shlex.quote(str(closed))}" if is_root else "")
    if there != path:
        return Finding(name, GOOD, f"{path} is not there yet; the appliance makes it")
    if not path.is_dir():
        return Finding(name, MISSING, f"{path} is no folder", "set another state_dir: in the settings")
    if not is_root and not os.access(path, os.W_OK | os.X_OK):
        return Finding(name, SKIPPED, f"{path}: whether the appliance can write there, root can tell")
    return None


def _at_home(path: Path, who: str) -> Finding:
    return Finding("state folder", GOOD, f"{path}, {who} can write")


def _state_mode(path: Path, who: str) -> list[Finding]:
    """Owner and mode as they should not be; the appliance takes the folder over when it starts."""
    found, quoted = path.stat(), shlex.quote(str(path))
    if found.st_mode & 0o022:
        why = f"{path} can be written by others (mode {found.st_mode & 0o7777:04o})"
        return [Finding("state folder", WARNING, why, f"chmod go-w {quoted}")]
    if found.st_uid != pwd.getpwnam(who).pw_uid:
        why = f"{path} belongs to uid {found.st_uid}, not to {who}; the appliance takes it over"
        return [Finding("state folder", WARNING, why, f"chown -R {who}: {quoted}")]
    return []


def _space(path: Path, there: Path, most_bytes: int) -> list[Finding]:
    found = os.statvfs(there)
    if found.f_flag & os.ST_RDONLY:
        mend = f"mount -o remount,rw {shlex.quote(str(_mount_point(there)))}"
        return [Finding("disk", MISSING, f"{there} cannot be written: mounted read-only", mend)]
    free_bytes, files = found.f_bavail * found.f_frsize, found.f_favail
    look = f"du -xhd1 {shlex.quote(str(_mount_point(there)))} | sort -h"
    # What the outbox has already is no longer free, and need not be.
    used = sum(one.stat().st_size for one in _listed(path) if one.name.startswith("kwsiem.db"))
    room = f"{_size(free_bytes)} free at {there}"
    if free_bytes < LEAST_FREE_BYTES:
        return [Finding("disk", MISSING, f"only {room}", look)]
    if found.f_files and files < LEAST_FREE_INODES:
        inodes = (
            f"find {shlex.quote(str(_mount_point(there)))} -xdev -printf '%h\\n' | sort | uniq -c | sort -n"
        )
        return [Finding("disk", MISSING, f"only {files} inodes free at {there}", inodes)]
    if free_bytes + used < most_bytes:
        why = f"{room}; outbox_max_bytes lets the outbox grow to {_size(most_bytes)}"
        mend = f"outbox_max_bytes: {max(2**20, (free_bytes + used) // 2)} in the settings, or: {look}"
        return [Finding("disk", WARNING, why, mend)]
    inodes = f", {files} inodes" if found.f_files else ""
    return [Finding("disk", GOOD, f"{room}{inodes}; the outbox may take {_size(most_bytes)}")]


def runtime_folder(path: Path) -> list[Finding]:
    """The folder of the control socket: who else could put something there."""
    name, quoted = "runtime folder", shlex.quote(str(path))
    try:
        found = path.lstat()
    except FileNotFoundError:
        return [Finding(name, GOOD, f"{path} is not there yet; the appliance makes it")]
    except PermissionError:
        return [Finding(name, SKIPPED, f"{path} can be seen by root alone")]
    if not stat.S_ISDIR(found.st_mode):
        return [Finding(name, MISSING, f"{path} is no folder", f"rm {quoted}")]
    if found.st_uid != 0:
        return [Finding(name, WARNING, f"{path} belongs to uid {found.st_uid}", f"chown root: {quoted}")]
    if found.st_mode & 0o022:
        why = f"{path} can be written by others (mode {found.st_mode & 0o7777:04o})"
        return [Finding(name, WARNING, why, f"chmod go-w {quoted}")]
    return [Finding(name, GOOD, str(path))]


def file_mode(check: str, path: Path, *, is_secret: bool) -> list[Finding]:
    """Who may read a file with secrets, and who may write what root acts upon."""
    quoted = shlex.quote(str(path))
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return [Finding(check, GOOD, f"no {path}, nor is it needed")]
    except OSError as error:
        return [Finding(check, SKIPPED, f"{path}: {error.strerror}")]
    mode = f"(mode {found.st_mode & 0o7777:04o})"
    if is_secret and found.st_mode & 0o007:
        return [Finding(check, WARNING, f"{path} can be read by everybody {mode}", f"chmod 600 {quoted}")]
    if found.st_mode & 0o022:
        return [Finding(check, WARNING, f"{path} can be written by others {mode}", f"chmod go-w {quoted}")]
    if found.st_uid not in (0, os.geteuid()):
        return [
            Finding(
                check, WARNING, f"{path} belongs to uid {found.st_uid}, not to root", f"chown root: {quoted}"
            )
        ]
    return [Finding(check, GOOD, f"{path} {mode}")]


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next((one for one in (path, *path.absolute().parents) if os.path.lexists(one)), Path("/"))


def _mount_point(path: Path) -> Path:
    resolved = path.resolve()
    return next((one for one in (resolved, *resolved.parents) if one.is_mount()), Path("/"))


def _listed(path: Path) -> list[Path]:
    try:
        return [one for one in path.iterdir() if one.is_file() and not one.is_symlink()]
    except OSError:
        return []


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
