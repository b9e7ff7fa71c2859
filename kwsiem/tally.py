"""What arrives, counted by sort, port and source, for the history of figures.

Of packets the network probe prints some singly, and tells the rest by ``flow.source``, ``flow.rate`` and
``flow.total`` (see the header of ``probes/net.bt``). ``flow.total`` is exact. Of a source counts what was
printed or what ``flow.source`` told, the larger of the two in each of the probe's seconds: never more than
it sent. Of a port the same with ``flow.rate``, which names only the port of the last packet: it counts when
the telling before named it too. ``other`` is what is left of the total.

Memory is bounded whatever arrives: counts of many are cut down to the largest by subtracting from all what
the largest of the others has (Misra and Gries 1982; in batches: Agarwal et al. 2012, "Mergeable summaries").
"""

from __future__ import annotations

import itertools
import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from kwsiem.event import Event

#: What stands for all that have no place of their own (as kwsiem.series.OTHER).
OTHER: Final = "other"
#: Counts that are kept; twice as many while they come.
PLACES: Final = 1000
#: Labels of ports and of sources that one telling has at most; the largest.
TOLD: Final = 100
#: Events of single packets that are looked at in a second; the probe prints some 2,500 at most.
MAX_LOOKED: Final = 10_000
#: A second of the probe: 2^30 ns.
_SECOND_BITS: Final = 30

#: Kinds that are printed singly: the class they have in flows, and the protocol their port is of.
_SINGLE: Final = {
    "tcp.syn": (1, "tcp"), "tcp.probe": (2, "tcp"), "icmp.echo": (4, ""), "dns.query": (5, "udp"),
    "ip.probe": (9, ""), "udp.unreachable": (3, "udp"),
}  # fmt: skip
#: Protocols of the classes of flows that are packets with ports; 5 are datagrams to port 53.
_TRANSPORT: Final = {1: "tcp", 2: "tcp", 3: "udp", 5: "udp"}
_DNS_CLASS: Final = 5
_DNS_PORT: Final = 53
#: Classes whose flows tell of packets: http.request (6) does not.
_PACKETS: Final = frozenset({1, 2, 3, 4, 5, 9})
_SORTS: Final = frozenset({"tcp", "udp", "icmp", OTHER})
_WITH_PORTS: Final = frozenset({"tcp", "udp"})

Key = TypeVar("Key")
Look = Callable[[Sequence[Any]], None]


class Tally:
    """Counts until :meth:`take`; ``looker`` gives what looks at the events of a class, if any should."""

    def __init__(self) -> None:
        self._looked = 0
        self._second = 0
        self._packets: dict[str, int] = defaultdict(int)
        self._sources = _Counts()
        self._ports = _Counts()
        #: Of each class and target the port of the telling before.
        self._last_port: dict[tuple[int, str], int] = {}

    def looker(self, cls: type[Event]) -> Look | None:
        """What is to be called with the events of this class; None when they are not looked at."""
        kind = cls.KIND
        names = {field.name for field in kind.wire_fields}
        if kind.name in _SINGLE and "source.ip" in names:
            number, transport = _SINGLE[kind.name]
            if kind.name == "dns.query":
                return lambda events: self._single(events, number, transport, _DNS_PORT)
            if transport and "destination.port" not in names:
                return None
            return lambda events: self._single(events, number, transport, 0)
        if kind.name == "flow.total" and {"network.transport", "event.count"} <= names:
            return self._total
        if not {"flow.class", "flow.packets", "event.count", "source.ip", "destination.ip"} <= names:
            return None
        if kind.name == "flow.rate":
            return self._of_target if "destination.port" in names else None
        return self._of_source if kind.name == "flow.source" else None

    def _room(self, events: Sequence[Any]) -> Sequence[Any]:
        """Those that may still be looked at in this second."""
        room = MAX_LOOKED - self._looked
        self._looked += len(events)
        return events if len(events) <= room else events[: max(0, room)]

    def _turn(self, second: int) -> None:
        """Counts of a second are joined when the next begins."""
        if second > self._second:
            self._second = second
            self._sources.turn()
            self._ports.turn()

    def _single(self, events: Sequence[Any], number: int, transport: str, port: int) -> None:
        events = self._room(events)
        for second, some in itertools.groupby(events, key=_second_of):
            self._turn(second)
            self._count(list(some), number, transport, port)
        self._sources.bound()
        self._ports.bound()

    def _count(self, events: list[Any], number: int, transport: str, port: int) -> None:
        """Events of one second; each label is made once."""
        for source, count in Counter(map(_source_of, events)).items():
            self._sources.single[number, source] += count
        if not transport:
            return
        ports = {port: len(events)} if port else Counter(map(_port_of, events))
        for each, count in ports.items():
            self._ports.single[number, f"{transport}/{each}"] += count

    def _of_source(self, events: Sequence[Any]) -> None:
        for event in events:
            self._turn(_second_of(event))
            if event.flow_class in _PACKETS:
                key = (event.flow_class, event.source_ip)
                self._sources.told[key] = max(self._sources.told[key], event.flow_packets)
        self._sources.bound()

    def _of_target(self, events: Sequence[Any]) -> None:
        for event in events:
            self._turn(_second_of(event))
            number = event.flow_class
            transport = _TRANSPORT.get(number)
            if transport is None:
                continue
            port = _DNS_PORT if number == _DNS_CLASS else event.destination_port
            target = (number, event.destination_ip)
            if self._last_port.get(target) == port or number == _DNS_CLASS:
                self._ports.told[number, f"{transport}/{port}"] += event.event_count
            if len(self._last_port) >= PLACES:
                self._last_port.clear()
            self._last_port[target] = port
        self._ports.bound()

    def _total(self, events: Sequence[Any]) -> None:
        for event in events:
            sort = event.network_transport if event.network_transport in _SORTS else OTHER
            self._packets[sort] += event.event_count

    def advance(self, now_ns: int) -> None:
        """Once a second: all events up to this time have come."""
        self._turn(now_ns >> _SECOND_BITS)
        self._looked = 0

    def take(self, last: bool = False) -> dict[str, dict[str, int]]:
        """What was counted since the call before, by name and label; with ``last`` all that is left."""
        packets, self._packets = dict(self._packets), defaultdict(int)
        with_ports = sum(count for sort, count in packets.items() if sort in _WITH_PORTS)
        if last:
            self._sources.turn()
            self._ports.turn()
        return {
            "packets": packets,
            "sources": self._sources.take(sum(packets.values()), last),
            "ports": self._ports.take(with_ports, last),
        }


class _Counts:
    """Counts by class and label: what was printed and what was told in this second, and of all before."""

    def __init__(self) -> None:
        self.single: dict[tuple[int, str], int] = defaultdict(int)
        self.told: dict[tuple[int, str], int] = defaultdict(int)
        self._sum: dict[str, int] = {}
        #: What has arrived and was not named yet; below 0 when its total is still to come.
        self._unnamed = 0
        self._waited = 0

    def bound(self) -> None:
        """Keep both within bounds."""
        _cut_down(self.single)
        _cut_down(self.told)

    def turn(self) -> None:
        """A second is over: of what was printed and what was told the larger counts."""
        if not self.single and not self.told:
            return
        for key in self.single.keys() | self.told.keys():
            count = max(self.single.get(key, 0), self.told.get(key, 0))
            self._sum[key[1]] = self._sum.get(key[1], 0) + count
        self.single.clear()
        self.told.clear()
        _cut_down(self._sum)

    def take(self, total: int, last: bool) -> dict[str, int]:
        """The largest since the call before, and as ``other`` what nobody has named until the next call."""
        found = dict(sorted(self._sum.items(), key=_count, reverse=True)[:TOLD])
        self._sum = {}
        self._unnamed += total - sum(found.values())
        # A total may come a second before the names of what is in it, or behind them. What is in the balance
        # for two calls stays: it is of others, or its total was lost.
        low, high = sorted((self._unnamed, self._unnamed if last else self._waited))
        settled = max(0, low) + min(0, high)
        self._unnamed -= settled
        self._waited = self._unnamed
        rest = max(0, settled)
        if rest:
            found[OTHER] = rest
        return found


def _cut_down(counts: dict[Key, int]) -> None:
    """Keep the PLACES largest of twice as many; each is too low by what the next one had, at most."""
    if len(counts) <= 2 * PLACES:
        return
    cut = sorted(counts.values(), reverse=True)[PLACES]
    left = {key: count - cut for key, count in counts.items() if count > cut}
    counts.clear()
    counts.update(left)


_source_of: Final = operator.attrgetter("source_ip")
_port_of: Final = operator.attrgetter("destination_port")


def _second_of(event: Any) -> int:
    second: int = event.ts_ns >> _SECOND_BITS
    return second


def _count(item: tuple[str, int]) -> int:
    return item[1]
