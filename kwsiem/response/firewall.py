"""What a firewall does for us: five verbs, what somebody else did to it, and the book of what is in it.

::

    firewall = detect("auto", cut_answers=False)      # kwsiem.response.detect
    firewall.init()
    refused = firewall.block([Entry("198.51.100.7", 600), Entry("2001:db8:7::/64", 3600)])
    firewall.release(["198.51.100.7"])
    firewall.damage()                                 # "" while it is whole
    firewall.close(remove=True)

Whatever is asked is checked here once more, by ipaddress and by range; only text that was made again from
the parsed address reaches a command.
"""

from __future__ import annotations

import ipaddress
import itertools
import math
import re
import socket
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from kwsiem import clock
from kwsiem.errors import KwsiemError

#: IPSET_MAX_TIMEOUT = (UINT_MAX >> 1) / MSEC_PER_SEC, ip_set_timeout.h. Longer blocks get this long.
MOST_TIMEOUT_S: Final = 2_147_483
#: Entries of one set; the canary is one of them.
MOST_ENTRIES: Final = 1_048_576
#: Entries that are sent to the kernel in one go: about 1 ms.
SLICE: Final = 256

_TEXT: Final = re.compile(r"[0-9A-Fa-f:.]{2,45}(?:/[0-9]{1,3})?")
_BROADCAST: Final = b"\xff\xff\xff\xff"
_MAPPED: Final = b"\0" * 10 + b"\xff\xff"


class FirewallError(KwsiemError):
    """The firewall cannot be brought into place, or its channel to the kernel does not answer."""


class Entry(msgspec.Struct, frozen=True):
    """A source that is blocked: an IPv4 or IPv6 address or network, and for how many seconds still."""

    network: str
    timeout_s: int


class Dropped(msgspec.Struct, frozen=True):
    """What our rules dropped since they were put in place."""

    packets: int = 0
    bytes: int = 0


class Target(NamedTuple):
    """A parsed network; ``text`` is its canonical form, a host's without a prefix length."""

    text: str
    version: int
    prefix: int
    packed: bytes

    @property
    def is_host(self) -> bool:
        """Whether it is one address."""
        return self.prefix == len(self.packed) * 8


class Firewall(Protocol):
    """What blocks. Each call returns within a second; ``block`` costs about 10 µs for each entry."""

    name: str

    def init(self) -> None:
        """Put sets and rules in place, or mend them; what is in the sets stays. Raises FirewallError."""

    def block(self, entries: Iterable[Entry]) -> Mapping[str, str]:
        """Add or prolong (never shorten); network → why not. The kernel has confirmed the others."""

    def release(self, networks: Iterable[str]) -> Mapping[str, str]:
        """Take out, whether or not it is in; network → why not."""

    def flush(self) -> None:
        """Take all out. Raises FirewallError."""

    def close(self, *, remove: bool) -> None:
        """End the channel; with ``remove`` take away sets and rules, else they live on."""

    def damage(self) -> str:
        """What somebody else removed or changed, in words; empty when all is whole. Raises nothing."""

    def repair(self, entries: Iterable[Entry]) -> Mapping[str, str]:
        """``init``, then make the sets hold exactly these; network → why not. Raises FirewallError."""

    def repair_steps(self, entries: Iterable[Entry]) -> Iterator[Mapping[str, str]]:
        """The same in steps of a few ms, so that a loop can serve others in between."""

    def entries(self) -> list[Entry]:
        """What the kernel has, with the time that is left; 0 when an entry of somebody else has no end."""

    def counters(self) -> Dropped:
        """What was dropped."""


def parse(network: object) -> Target:
    """The network in canonical form; raises ValueError saying why it can never be a blocked source."""
    if not isinstance(network, str) or not _TEXT.fullmatch(network):
        raise ValueError("not an IP address or network")
    return _plain(network) or _parsed(network)


def _plain(network: str) -> Target | None:
    """An IPv4 address in its canonical form, nearly all there is: ten times faster than ipaddress."""
    try:
        packed = socket.inet_pton(socket.AF_INET, network)
    except OSError:
        return None
    # 224 and above, and 0.0.0.0, are refused by the long way.
    good = 0 < packed[0] < 0xE0 and socket.inet_ntop(socket.AF_INET, packed) == network
    return Target(network, 4, 32, packed) if good else None


def _parsed(network: str) -> Target:
    if "/" in network:
        net = ipaddress.ip_network(network)
        first, prefix = net.network_address, net.prefixlen
    else:
        first = ipaddress.ip_address(network)
        prefix = first.max_prefixlen
    packed = first.packed
    if not prefix or not any(packed):
        raise ValueError("everything or nothing cannot be blocked")
    if first.version == 6 and packed.startswith(_MAPPED):
        raise ValueError("an IPv4 address inside IPv6: give the IPv4 address")
    if packed == _BROADCAST or (0xE0 <= packed[0] <= 0xEF if first.version == 4 else packed[0] == 0xFF):
        raise ValueError("no packet comes from a multicast or broadcast address")
    text = str(first) if prefix == first.max_prefixlen else f"{first}/{prefix}"
    return Target(text, first.version, prefix, packed)


def timeout_of(entry: Entry) -> int:
    """The seconds to put in, at most MOST_TIMEOUT_S; raises ValueError."""
    if type(entry.timeout_s) is not int or entry.timeout_s < 1:
        raise ValueError("the time must be a whole number of seconds, 1 at least")
    return min(entry.timeout_s, MOST_TIMEOUT_S)


class Book:
    """What we put into one set and the second (monotonic) at which it ends at the earliest.

    It tells how many entries the kernel must still have. About 150 bytes for each, texts included.
    """

    def __init__(self) -> None:
        self._ends: dict[str, int] = {}
        self._ending: Counter[int] = Counter()
        self._at_s = 0
        self._over = 0

    def __len__(self) -> int:
        return len(self._ends)

    def put(self, text: str, end_s: int, now_s: float) -> None:
        """It is in until then."""
        self.drop(text, now_s)
        self._ends[text] = end_s
        if end_s <= self._at_s:
            self._over += 1
        else:
            self._ending[end_s] += 1

    def drop(self, text: str, now_s: float) -> None:
        """It is out."""
        self._advance(now_s)
        end_s = self._ends.pop(text, None)
        if end_s is None:
            return
        if end_s <= self._at_s:
            self._over -= 1
        else:
            self._ending[end_s] -= 1

    def end_s(self, text: str) -> int:
        """When it ends; 0 when it was never in or has ended."""
        return self._ends.get(text, 0)

    def texts(self) -> list[str]:
        """What is in, with a few that may have ended."""
        return list(self._ends)

    def least(self, now_s: float) -> int:
        """How many entries cannot have ended yet."""
        self._advance(now_s)
        return len(self._ends) - self._over

    def _advance(self, now_s: float) -> None:
        second = math.ceil(now_s)
        if second <= self._at_s:
            return
        if second - self._at_s > len(self._ending):  # the first call, or a long sleep
            passed = [end_s for end_s in self._ending if end_s <= second]
        else:
            passed = list(range(self._at_s + 1, second + 1))
        self._over += sum(self._ending.pop(end_s, 0) for end_s in passed)
        self._at_s = second
        # Each sweep costs as much as there is, and takes an eighth of it out.
        if self._over > 64 and self._over > len(self._ends) // 8:
            self._ends = {text: end_s for text, end_s in self._ends.items() if end_s > second}
            self._over = 0


class Add(NamedTuple):
    """One entry on its way into a set; ``asked`` is the text the caller gave."""

    asked: str
    target: Target
    timeout_s: int


class KernelFirewall(ABC):
    """What both firewalls have in common: checks, slices, the books, repair."""

    name: str

    def __init__(self) -> None:
        self.books: dict[str, Book] = {}

    # -- what a firewall does its own way --------------------------------------------------------------

    @abstractmethod
    def init(self) -> None:
        """Put sets and rules in place; see Firewall."""

    @abstractmethod
    def entries(self) -> list[Entry]:
        """What the kernel has; see Firewall."""

    @abstractmethod
    def set_of(self, target: Target) -> str:
        """The set that it belongs into."""

    @abstractmethod
    def _add(self, adds: Sequence[Add]) -> Mapping[str, str]:
        """Add or overwrite; asked text → why not. Raises FirewallError when none is known to be in."""

    @abstractmethod
    def _delete(self, targets: Sequence[Target]) -> Mapping[str, str]:
        """Take out; canonical text → why not. Raises FirewallError."""

    # -- verbs -----------------------------------------------------------------------------------------

    def block(self, entries: Iterable[Entry]) -> Mapping[str, str]:
        """Add or prolong; see Firewall."""
        refused: dict[str, str] = {}
        for part in _sliced(entries):
            refused.update(self._block(part))
        return refused

    def _block(self, entries: Sequence[Entry]) -> dict[str, str]:
        now_s = clock.monotonic_s()
        refused: dict[str, str] = {}
        adds: dict[str, Add] = {}
        for entry in entries:
            try:
                target = parse(entry.network)
                left_s = self.end_s(target) - int(now_s)
                add = Add(entry.network, target, max(timeout_of(entry), min(left_s, MOST_TIMEOUT_S)))
            except ValueError as error:
                refused[_shown(entry.network)] = str(error)
                continue
            known = adds.get(target.text)
            if known is None or known.timeout_s < add.timeout_s:
                adds[target.text] = add
        try:
            failed = self._add(list(adds.values())) if adds else {}
        except FirewallError as error:
            failed = {add.asked: str(error) for add in adds.values()}
        for add in adds.values():
            if add.asked not in failed:
                self.book(add.target).put(add.target.text, int(now_s + add.timeout_s), now_s)
        return {**refused, **failed}

    def release(self, networks: Iterable[str]) -> Mapping[str, str]:
        """Take out; see Firewall."""
        refused: dict[str, str] = {}
        for part in _sliced(networks):
            targets = []
            for network in part:
                try:
                    targets.append(parse(network))
                except ValueError as error:
                    refused[_shown(network)] = str(error)
            try:
                failed = self._delete(targets) if targets else {}
            except FirewallError as error:
                failed = {target.text: str(error) for target in targets}
            refused.update(failed)
            for target in targets:
                if target.text not in failed and self.end_s(target):
                    self.book(target).drop(target.text, clock.monotonic_s())
        return refused

    def repair(self, entries: Iterable[Entry]) -> Mapping[str, str]:
        """``init``, then exactly these; see Firewall."""
        refused: dict[str, str] = {}
        for step in self.repair_steps(entries):
            refused.update(step)
        return refused

    def repair_steps(self, entries: Iterable[Entry]) -> Iterator[Mapping[str, str]]:
        """``repair`` in steps; see Firewall."""
        self.init()
        yield {}
        wanted: set[str] = set()
        for part in _sliced(entries):
            missing = []
            now_s = clock.monotonic_s()
            for entry in part:
                try:
                    target = parse(entry.network)
                    wanted.add(target.text)
                    # Seconds are cut off on both sides: what ends two seconds early is not worth a change.
                    left_s = self.end_s(target) - now_s
                    known = left_s > 1 and left_s >= timeout_of(entry) - 2
                except ValueError:
                    known = False  # block says why
                if not known:
                    missing.append(entry)
            yield self._block(missing) if missing else {}
        extra = [text for book in self.books.values() for text in book.texts() if text not in wanted]
        for start in range(0, len(extra), SLICE):
            yield self.release(extra[start : start + SLICE])

    # -- books -----------------------------------------------------------------------------------------

    def book(self, target: Target) -> Book:
        """The book of the set that the network belongs into."""
        return self.books.setdefault(self.set_of(target), Book())

    def end_s(self, target: Target) -> int:
        """When the block ends (monotonic); 0 when we did not put it in."""
        book = self.books.get(self.set_of(target))
        return book.end_s(target.text) if book else 0

    def adopt(self) -> None:
        """Write the books anew from what the kernel has (a run before this one, somebody else's changes)."""
        self.books = {name: Book() for name in self.books}
        now_s = clock.monotonic_s()
        for entry in self.entries():
            target = Target(*_known(entry.network))
            # One that never ends is not ours: known as ending at once, repair puts it right or takes it out.
            end_s = int(now_s) + max(1, entry.timeout_s - 1)
            self.book(target).put(target.text, end_s, now_s)


def _known(text: str) -> tuple[str, int, int, bytes]:
    """The parts of a network that came from the kernel, whatever it is."""
    net = ipaddress.ip_network(text)
    return text, net.version, net.prefixlen, net.network_address.packed


def _sliced(items: Iterable[object]) -> Iterator[list]:  # type: ignore[type-arg]
    iterator = iter(items)
    while part := list(itertools.islice(iterator, SLICE)):
        yield part


def _shown(network: object) -> str:
    """What was asked, fit for a log line: printable and short."""
    return ascii(network)[:60] if not isinstance(network, str) or not network.isprintable() else network[:60]
