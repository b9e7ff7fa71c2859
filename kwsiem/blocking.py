"""Composition root of blocking: guard, decisions, firewall and names joined into a Blocker for the sensor."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from kwsiem.config import Settings
from kwsiem.errors import UnavailableError
from kwsiem.response import facts
from kwsiem.response.blocker import Blocker, Tell
from kwsiem.response.decisions import Decisions
from kwsiem.response.detect import detect
from kwsiem.response.firewall import Firewall
from kwsiem.response.guard import Guard
from kwsiem.response.sockets import cut

log = logging.getLogger("kwsiem.blocks")

#: linux/rtnetlink.h: addresses and routes of both families.
_GROUPS: Final = 0x10 | 0x40 | 0x100 | 0x400


def make_blocker(settings: Settings, tell: Tell) -> Blocker:
    """The blocker of a host; without a firewall that can be used it stays a dry run and says why."""
    blocking = settings.blocking
    guard = Guard(widest=(blocking.widest_ipv4, blocking.widest_ipv6), spoofable_permitted=blocking.spoofable)
    firewall, error = _firewall(settings)
    blocker = Blocker(
        blocking,
        guard,
        Decisions(blocks_path(settings), blocking.widest_ipv4),
        firewall,
        tell,
        cut=cut,
        other_names=(*receivers(settings), *facts.time_server_names()),
    )
    blocker.firewall_error = error
    return blocker


def blocks_path(settings: Settings) -> Path:
    """Where decisions are kept: beside the state folder, for that one belongs to a user without rights."""
    state = Path(settings.state_dir)
    return state.with_name(f"{state.name}-blocks") / "blocks.db"


def receivers(settings: Settings) -> list[str]:
    """Hosts, as names or addresses, that the outputs send to."""
    found: list[str] = []
    for output in settings.outputs:
        plain: Mapping[str, Any] = msgspec.to_builtins(output)
        found += [str(plain.get("host", "")), *(_host(url) for url in (plain.get("url"), plain.get("proxy")))]
        found += [_host(f"//{broker}") for broker in plain.get("brokers", ())]
    return [name for name in dict.fromkeys(found) if name]


def _host(url: Any) -> str:
    try:
        return urlsplit(str(url or "")).hostname or ""
    except ValueError:
        return ""


def _firewall(settings: Settings) -> tuple[Firewall | None, str]:
    try:
        return detect(settings.blocking.firewall, cut_answers=settings.blocking.cut_answers), ""
    except UnavailableError as error:
        if settings.blocking.mode == "on":
            log.error("blocking stays a dry run: %s", error)
        return None, str(error)


class RouteWatch:
    """Tells when addresses or routes of this network namespace change (rtnetlink multicast)."""

    def __init__(self, changed: Callable[[], object]) -> None:
        self._changed = changed
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.setblocking(False)
        self._socket.bind((0, _GROUPS))

    def fileno(self) -> int:
        """The descriptor, for a selector."""
        return self._socket.fileno()

    def clear(self) -> None:
        """Read all that is there; an overflow (ENOBUFS) says just as well that something changed."""
        try:
            while self._socket.recv(65536):
                pass
        except OSError:
            pass
        self._changed()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
