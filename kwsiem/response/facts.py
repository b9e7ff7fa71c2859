"""Who must never be blocked, as this host's own files and kernel say it: one function for each source.

Each gives a list of :class:`Protected` and raises OSError or ValueError when its source cannot be read; a
source that is not there gives an empty list. Nothing here decides; :mod:`kwsiem.response.guard` does.
"""

from __future__ import annotations

import functools
import grp
import ipaddress
import json
import os
import pwd
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Union

import msgspec

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
Key = tuple[int, int, int]
BITS: Final = {4: 32, 6: 128}

_COMMAND_S: Final = 2.0
_MAX_FILE: Final = 1 << 20


class Protected(msgspec.Struct, frozen=True):
    """One network that must not be blocked: the rule of the guard that says so, and how it knows."""

    network: Network
    rule: str
    detail: str


def network_of(text: str) -> Network:
    """An address or network in canonical form; a mapped IPv4 address becomes IPv4. Raises ValueError.

    Host bits that are set are an error: 192.0.2.7/24 is more likely a mistake than a network.
    """
    if len(text) > 64:
        raise ValueError("longer than any address")
    found = ipaddress.ip_network(text.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Network) and found.prefixlen >= 96:
        mapped = found.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, found.prefixlen - 96))
    return found


def key_of(network: Network) -> Key:
    """A network as three numbers: version, first address, prefix length."""
    return network.version, int(network.network_address), network.prefixlen


def key_of_text(text: str) -> Key:
    """The key of a canonical text (:func:`text_of`), some ten times as fast as :func:`network_of`."""
    address, _, prefix = text.partition("/")
    family, version, bits = (socket.AF_INET6, 6, 128) if ":" in address else (socket.AF_INET, 4, 32)
    try:
        number = int.from_bytes(socket.inet_pton(family, address), "big")
    except OSError:
        raise ValueError(f"{text!r} is no address") from None
    length = int(prefix) if prefix else bits
    if not 0 <= length <= bits or number & ((1 << bits - length) - 1):
        raise ValueError(f"{text!r} is no network")
    return version, number, length


def text_of(network: Network) -> str:
    """A network as people write it: a single address without its prefix."""
    return str(network.network_address if network.prefixlen == network.max_prefixlen else network)


#: Never anybody's own: loopback, this network, link-local, multicast, broadcast (RFC 6890), and a cloud's
#: metadata service among the link-local ones.
RESERVED: Final = tuple(
    Protected(ipaddress.ip_network(text), rule, detail)
    for text, rule, detail in (
        ("127.0.0.0/8", "loopback", "RFC 1122"),
        ("::1/128", "loopback", "RFC 4291"),
        ("0.0.0.0/8", "reserved", "this network, RFC 1122"),
        ("::/128", "reserved", "unspecified, RFC 4291"),
        ("169.254.0.0/16", "reserved", "link-local, RFC 3927"),
        ("fe80::/10", "reserved", "link-local, RFC 4291"),
        ("224.0.0.0/4", "reserved", "multicast, RFC 5771"),
        ("ff00::/8", "reserved", "multicast, RFC 4291"),
        ("255.255.255.255/32", "reserved", "broadcast, RFC 919"),
    )
)


def reserved() -> list[Protected]:
    """What nobody may block, anywhere."""
    return list(RESERVED)


def addresses() -> list[Protected]:
    """The host's own addresses and broadcast addresses, on all interfaces (``ip -json address``)."""
    found = []
    for link in _ip("-json", "address", "show"):
        for entry in link.get("addr_info", []):
            for key, rule in (("local", "own address"), ("broadcast", "broadcast")):
                if key in entry and entry[key] not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
                    found.append(_host(entry[key], rule, f"of {link.get('ifname', '?')}"))
    return found


def gateways() -> list[Protected]:
    """The next hops of every route in every table, those of multipath routes and nexthop objects included."""
    routes: list[Mapping[str, Any]] = []
    for family in ("-4", "-6"):
        routes += _ip(family, "-json", "route", "show", "table", "all")
    routes += _ip("-json", "nexthop", "show")
    found = []
    for route in routes:
        for hop in (route, *route.get("nexthops", []), route.get("via") or {}):
            text = hop.get("gateway") or hop.get("host")
            if isinstance(text, str):
                found.append(
                    _host(text, "gateway", f"of {route.get('dst', 'a nexthop')} on {route.get('dev', '?')}")
                )
    return found


def bridges() -> list[Protected]:
    """The networks of bridges that only join containers: no hardware in them, no default route by them."""
    outward = {route.get("dev") for route in _ip("-4", "-json", "route", "show", "default")}
    outward |= {route.get("dev") for route in _ip("-6", "-json", "route", "show", "default")}
    found = []
    for link in _ip("-json", "address", "show"):
        name = str(link.get("ifname", ""))
        folder = Path("/sys/class/net") / name
        if not (folder / "bridge").is_dir() or name in outward:
            continue
        ports = (folder / "brif").iterdir() if (folder / "brif").is_dir() else ()
        if any((Path("/sys/class/net") / port.name / "device").exists() for port in ports):
            continue
        for entry in link.get("addr_info", []):
            network = ipaddress.ip_network(f"{entry['local']}/{entry['prefixlen']}", strict=False)
            found.append(Protected(network, "container bridge", name))
    return found


def resolvers(root: Path = Path("/")) -> list[Protected]:
    """Name servers of resolv.conf, and of those that systemd-resolved and NetworkManager really use."""
    found = []
    for name in (
        "etc/resolv.conf",
        "run/systemd/resolve/resolv.conf",
        "run/NetworkManager/resolv.conf",
        "run/NetworkManager/no-stub-resolv.conf",
    ):
        for line in _lines(root / name):
            words = line.split()
            if len(words) >= 2 and words[0] == "nameserver":
                found += _hosts([words[1]], "resolver", f"/{name}")
    return found


_NTP_FILES: Final = (
    "etc/ntp.conf",
    "etc/ntpsec/ntp.conf",
    "etc/chrony/chrony.conf",
    "etc/chrony.conf",
    "etc/systemd/timesyncd.conf",
)
_NTP_FOLDERS: Final = (
    "etc/chrony/conf.d",
    "etc/chrony/sources.d",
    "run/chrony-dhcp",
    "etc/systemd/timesyncd.conf.d",
)


def time_server_names(root: Path = Path("/")) -> list[str]:
    """Names and addresses of the time servers that ntpd, chrony and systemd-timesyncd are set to use."""
    files = [root / name for name in _NTP_FILES]
    for folder in _NTP_FOLDERS:
        if (root / folder).is_dir():
            files += sorted(
                path for path in (root / folder).iterdir() if path.suffix in {".conf", ".sources"}
            )
    names: list[str] = []
    for path in files:
        for line in _lines(path):
            words = line.split("#", 1)[0].split()
            if len(words) >= 2 and words[0] in {"server", "pool", "peer"}:
                names.append(words[1])
            elif "=" in line and line.split("=", 1)[0].strip() in {"NTP", "FallbackNTP"}:
                names += line.split("=", 1)[1].split()
    return list(dict.fromkeys(names))


def dhcp_servers(root: Path = Path("/")) -> list[Protected]:
    """Servers of the leases that systemd-networkd, dhclient, dhcpcd and NetworkManager keep."""
    found = []
    for folder, pattern in (
        ("run/systemd/netif/leases", r"SERVER_ADDRESS=(\S+)"),
        ("var/lib/dhcp", r"option dhcp-server-identifier ([^;\s]+);"),
        ("var/lib/NetworkManager", r"(?:dhcp-server-identifier|SERVER_ADDRESS)[ =]([^;\s]+)"),
        ("var/lib/dhcpcd", r"dhcp_server_identifier='?([0-9.]+)"),
    ):
        if (root / folder).is_dir():
            for path in sorted((root / folder).iterdir()):
                texts = re.findall(pattern, "\n".join(_lines(path)))
                found += _hosts(texts, "DHCP server", f"/{folder}/{path.name}")
    return found


#: The title of the process that serves a session after authentication (session.c of OpenSSH); before it the
#: title ends with [priv], [net], [preauth] or [accepted]; a name that an attacker chose never has this end.
_SESSION: Final = re.compile(
    r"sshd(?:-session)?: (?P<user>[^@\s]+)@(?:notty|pts/\d+(?:,pts/\d+)*)\Z", re.ASCII
)
_ADMIN_GROUPS: Final = ("sudo", "wheel", "admin", "adm", "root")


def administrators(
    is_admin: Callable[[str], bool], proc: Path = Path("/proc"), root: Path = Path("/")
) -> list[Protected]:
    """Peers of live sessions of administrators: of sshd by its processes, and of any service by logind.

    A connection that has not authenticated is none, whatever user it names.
    """
    found = []
    for pid, title in _titles(proc):
        session = _SESSION.match(title)
        if session and is_admin(session["user"]):
            for address in _peers(proc, pid):
                found += _hosts([address], "administrator session", f"ssh, {session['user']}, pid {pid}")
    folder = root / "run/systemd/sessions"
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        facts = dict(line.partition("=")[::2] for line in _lines(path))
        if facts.get("ACTIVE") != "0" and facts.get("REMOTE") == "1" and is_admin(facts.get("USER", "")):
            found += _hosts(
                [facts.get("REMOTE_HOST", "")], "administrator session", f"logind, session {path.name}"
            )
    return found


def is_administrator(user: str) -> bool:
    """Whether an account is root or in a group that may become root (sudo, wheel, admin, adm)."""
    try:
        entry = pwd.getpwnam(user)
    except (KeyError, ValueError):
        return False
    if entry.pw_uid == 0:
        return True
    for name in _ADMIN_GROUPS:
        try:
            group = grp.getgrnam(name)
        except KeyError:
            continue
        if entry.pw_gid == group.gr_gid or user in group.gr_mem:
            return True
    return False


def _titles(proc: Path) -> Iterator[tuple[int, str]]:
    """Process id and title of every sshd; one look at each process of the host, so it must cost little."""
    for entry in os.scandir(proc):
        if not entry.name.isdecimal():
            continue
        try:
            fd = os.open(f"{entry.path}/cmdline", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # it has ended
        try:
            raw = os.read(fd, 256)  # a title may have megabytes
        except OSError:
            continue  # it has ended
        finally:
            os.close(fd)
        if raw.startswith(b"sshd"):
            yield int(entry.name), raw.rstrip(b"\0 ").decode("utf-8", "replace")


def _peers(proc: Path, pid: int) -> list[str]:
    """Remote addresses of the established TCP connections that a process holds."""
    inodes = set()
    try:
        for fd in os.scandir(proc / str(pid) / "fd"):
            target = str(Path(fd.path).readlink())
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    except OSError:
        return []
    found = []
    for name in ("tcp", "tcp6"):
        for line in _lines(proc / str(pid) / "net" / name)[1:]:
            words = line.split()
            if len(words) > 9 and words[3] == "01" and words[9] in inodes:
                found.append(_hex_address(words[2].rpartition(":")[0]))
    return found


def _hex_address(text: str) -> str:
    """An address as /proc/net/tcp writes it: 32-bit words in the host's byte order."""
    raw = b"".join(
        int(text[i : i + 8], 16).to_bytes(4, "little" if _LITTLE else "big") for i in range(0, len(text), 8)
    )
    return str(ipaddress.ip_address(raw))


_LITTLE: Final = sys.byteorder == "little"


def _host(text: str, rule: str, detail: str) -> Protected:
    return Protected(network_of(text), rule, detail)


def _hosts(texts: Iterable[str], rule: str, detail: str) -> list[Protected]:
    """Those of the texts that are addresses."""
    found = []
    for text in texts:
        try:
            found.append(_host(text.strip("[]").partition("%")[0], rule, detail))
        except ValueError:
            continue
    return found


def _lines(path: Path) -> list[str]:
    """The lines of a file, empty when there is none; raises OSError for other faults."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE).decode("utf-8", "replace").splitlines()
    except (FileNotFoundError, NotADirectoryError, PermissionError, ProcessLookupError):
        return []


@functools.lru_cache(maxsize=1)
def _ip_program() -> str:
    for folder in ("/usr/sbin", "/sbin", "/usr/bin", "/bin"):
        if os.access(f"{folder}/ip", os.X_OK):
            return f"{folder}/ip"
    raise FileNotFoundError(2, "no program ip; apt-get install iproute2")


def _ip(*arguments: str) -> list[Mapping[str, Any]]:
    """What iproute2 says, as objects; a family that the kernel lacks gives none."""
    done = subprocess.run(
        [_ip_program(), *arguments],
        capture_output=True,
        timeout=_COMMAND_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode and b"not supported" not in done.stderr:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.decode('utf-8', 'replace').strip()[:200]}")
    found = json.loads(done.stdout or b"[]")
    return [entry for entry in found if isinstance(entry, dict)]
