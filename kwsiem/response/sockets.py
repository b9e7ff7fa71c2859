"""Ends what a blocked source has open: TCP sockets (sock_diag) and connections in conntrack (ctnetlink).

After include/uapi/linux/inet_diag.h and linux/netfilter/nfnetlink_conntrack.h. Everything happens in the
current network namespace. UDP is left in conntrack on purpose: packets in the direction of the one who
began are dropped by the block anyway, whereas the next answer of our server would begin a new connection in
the other direction, whose answers are let in.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from kwsiem.response.firewall import Target, parse
from kwsiem.response.netlink import (
    DUMP,
    NETLINK_NETFILTER,
    NETLINK_SOCK_DIAG,
    Message,
    Netlink,
    attribute,
    attributes,
    nested,
)
from kwsiem.response.nfnetlink import header

#: How much one call ends, and how long it looks: the rest is dropped by the block like all else.
MOST: Final = 10_000
LOOK_S: Final = 0.1

_BY_FAMILY: Final = 20  # SOCK_DIAG_BY_FAMILY
_DESTROY: Final = 21  # SOCK_DESTROY
_LISTEN: Final = 1 << 10  # TCP_LISTEN
_OPEN: Final = 0x1FFF & ~_LISTEN & ~(1 << 7)  # all states but TCP_LISTEN and TCP_CLOSE
_BYTECODE: Final = 1  # INET_DIAG_REQ_BYTECODE
_REMOTE: Final = 8  # INET_DIAG_BC_D_COND: its IPv4 condition matches IPv4-mapped addresses too
_REQUEST: Final = struct.Struct("=BBBxI48s")  # inet_diag_req_v2
_ANSWER: Final = struct.Struct("=BBBB48s")  # inet_diag_msg, as far as we read it

_CT_GET, _CT_DELETE = 0x101, 0x102  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET, _DELETE
_CTA_ORIG, _CTA_ID, _CTA_ZONE, _CTA_FILTER = 1, 12, 18, 25
_MAPPED: Final = b"\0" * 10 + b"\xff\xff"

log = logging.getLogger("kwsiem.response")
_told: set[str] = set()


class Cut(NamedTuple):
    """How many sockets and how many conntrack entries were ended."""

    sockets: int
    flows: int


class Flow(NamedTuple):
    """A conntrack entry: protocol, who began it (address, port), and what names it."""

    protocol: int
    source: bytes
    source_port: int
    name: bytes


class Socket(NamedTuple):
    """A TCP socket: the kernel's own name of it, its ports in host order, its peer."""

    family: int
    id: bytes
    port: int
    remote_port: int
    remote: bytes


class Targets:
    """The networks whose connections end."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self.only = targets[0] if len(targets) == 1 else None
        self.versions = {target.version for target in targets}
        self._hosts = {target.packed for target in targets if target.is_host}
        self._networks = [target for target in targets if not target.is_host]

    def hold(self, address: bytes) -> bool:
        """Whether an address is in one of them."""
        return address in self._hosts or any(within(address, target) for target in self._networks)


def cut(*networks: str, own: bool = False) -> Cut:
    """End what these networks have open with us. Raises ValueError for what is no network, else nothing.

    Connections that we began are spared unless ``own`` is set: one is theirs when its local port is listened
    on, or when conntrack says that they began it. Up to MOST of each. Give all networks that are blocked at
    once in one call: each walks the table of conntrack, 3.5 ms for 262,144 empty buckets, LOOK_S at most.
    """
    targets = Targets([parse(network) for network in networks])
    if not networks:
        return Cut(0, 0)
    flows = _flows_of(targets)
    sockets = _cut_sockets(targets, flows, own=own)
    # Sockets first: their last packet (RST) must not begin a connection anew.
    return Cut(sockets, _cut_flows(flows))


# -- sockets -------------------------------------------------------------------------------------------


def _cut_sockets(targets: Targets, flows: list[Flow], *, own: bool) -> int:
    ended = 0
    try:
        with contextlib.closing(Netlink(NETLINK_SOCK_DIAG)) as netlink:
            found = list(_sockets(netlink, _OPEN, targets))[:MOST]
            if not found:
                return 0
            listening = {each.port for each in _sockets(netlink, _LISTEN)}
            theirs = {
                (flow.source, flow.source_port) for flow in flows if flow.protocol == socket.IPPROTO_TCP
            }
            for each in found:
                if own or each.port in listening or (each.remote, each.remote_port) in theirs:
                    ended += _destroy(netlink, each)
    except OSError as error:
        _tell("sockets", error, "CONFIG_INET_DIAG")
    return ended


def _sockets(netlink: Netlink, states: int, targets: Targets | None = None) -> Iterator[Socket]:
    """The TCP sockets of both families in these states, of the targets if there are any."""
    for family in (socket.AF_INET, socket.AF_INET6):
        if targets and targets.versions == {6} and family == socket.AF_INET:
            continue
        body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, states, b"\0" * 48)
        if targets and targets.only:
            body += attribute(_BYTECODE, remote_filter(targets.only))
        try:
            for answer in netlink.dump(_BY_FAMILY, body, LOOK_S):
                each = socket_of(answer.body)
                if targets is None or targets.hold(each.remote):
                    yield each
        except FileNotFoundError:  # the family is not there (ipv6.disable=1)
            continue


def remote_filter(target: Target) -> bytes:
    """The program for the kernel that lets pass what has its remote address in the network.

    One instruction: on a match jump behind it, which is the end; else four bytes farther, which refuses.
    """
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    condition = struct.pack("=BBxxi", family, target.prefix, -1) + target.packed  # port -1: any
    length = 4 + len(condition)
    return struct.pack("=BBH", _REMOTE, length, length + 4) + condition


def socket_of(body: bytes) -> Socket:
    """The socket in an answer; a remote IPv4-mapped address as IPv4."""
    family, _, _, _, name = _ANSWER.unpack_from(body)
    port, remote_port = struct.unpack_from("!HH", name)
    remote = name[20:24] if family == socket.AF_INET else name[20:36]
    if remote.startswith(_MAPPED) and len(remote) == 16:
        remote = remote[12:]
    return Socket(family, name, port, remote_port, remote)


def _destroy(netlink: Netlink, each: Socket) -> int:
    body = _REQUEST.pack(each.family, socket.IPPROTO_TCP, 0, 0, each.id)
    try:
        netlink.request(_DESTROY, 0, body)
    except FileNotFoundError:  # it has just ended by itself
        return 0
    except OSError as error:
        _tell("sockets", error, "CONFIG_INET_DIAG_DESTROY")
        return 0
    return 1


# -- conntrack -----------------------------------------------------------------------------------------


def _flows_of(targets: Targets) -> list[Flow]:
    """Connections that the networks began, up to MOST."""
    found: list[Flow] = []
    try:
        with contextlib.closing(Netlink(NETLINK_NETFILTER)) as netlink:
            for version in targets.versions:
                for answer in netlink.dump(_CT_GET, _flow_request(version, targets.only), LOOK_S, DUMP):
                    # The source stands first in every answer: most are passed over without parsing them.
                    if len(found) < MOST and targets.hold(answer.body[16 : 20 if version == 4 else 32]):
                        flow = flow_of(answer)
                        if flow:
                            found.append(flow)
    except TimeoutError:
        log.warning(
            "conntrack is too large to be looked through in time, what is left is blocked all the same"
        )
    except OSError as error:
        _tell("conntrack", error, "CONFIG_NF_CT_NETLINK")
    return found


def _flow_request(version: int, only: Target | None) -> bytes:
    """One IPv4 address is looked for in the kernel (5.8); its filter for IPv6 lets pass all others (6.18)."""
    body = header(socket.AF_INET if version == 4 else socket.AF_INET6)
    return body + source_filter(only) if only and only.is_host and version == 4 else body


def source_filter(target: Target) -> bytes:
    """The attributes that let the kernel pass only connections begun by one IPv4 address."""
    address = nested(
        1, attribute(1 if target.version == 4 else 3, target.packed)
    )  # CTA_TUPLE_IP, CTA_IP_*_SRC
    flags = nested(_CTA_FILTER, attribute(1, struct.pack("=I", 1)), attribute(2, struct.pack("=I", 0)))
    return nested(_CTA_ORIG, address) + flags


def flow_of(answer: Message) -> Flow | None:
    """The connection in an answer; None when it has no addresses or ports that we know."""
    found = attributes(answer.body, 4)
    original = attributes(found.get(_CTA_ORIG, b""))
    address, protocol = attributes(original.get(1, b"")), attributes(original.get(2, b""))
    source = address.get(1) or address.get(3)
    if not source or 1 not in protocol:  # CTA_PROTO_NUM
        return None
    port = int.from_bytes(protocol.get(2, b""), "big")  # CTA_PROTO_SRC_PORT
    name = nested(_CTA_ORIG, found[_CTA_ORIG])
    for kind in (_CTA_ID, _CTA_ZONE):
        if kind in found:
            name += attribute(kind, found[kind])
    return Flow(protocol[1][0], source, port, name)


def within(address: bytes, target: Target) -> bool:
    """Whether the address lies in the network."""
    shift = len(target.packed) * 8 - target.prefix
    return len(address) == len(target.packed) and (
        int.from_bytes(address, "big") >> shift == int.from_bytes(target.packed, "big") >> shift
    )


def _cut_flows(flows: Sequence[Flow]) -> int:
    ended = 0
    doomed = [flow for flow in flows if flow.protocol != socket.IPPROTO_UDP]
    if not doomed:
        return 0
    try:
        with contextlib.closing(Netlink(NETLINK_NETFILTER)) as netlink:
            for flow in doomed:
                family = socket.AF_INET if len(flow.source) == 4 else socket.AF_INET6
                with contextlib.suppress(FileNotFoundError):  # it has just ended by itself
                    netlink.request(_CT_DELETE, 0, header(family) + flow.name)
                    ended += 1
    except OSError as error:
        _tell("conntrack", error, "CONFIG_NF_CT_NETLINK")
    return ended


def _tell(what: str, error: OSError, option: str) -> None:
    """Say once that this kernel (or our rights) cannot end them."""
    if what in _told:
        return
    _told.add(what)
    lacking = error.errno in (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EINVAL, errno.ENOENT)
    why = f"this kernel lacks {option}" if lacking else str(error.strerror)
    log.warning("cannot end what a blocked source has open", extra={"what": what, "why": why})
