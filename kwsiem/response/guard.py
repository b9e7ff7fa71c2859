"""The guard: what is never blocked, whatever rules, engine or operator ask for (invariant 7).

It answers from facts gathered beforehand (:mod:`kwsiem.response.facts`), so an answer costs microseconds.
A source of facts that cannot be read keeps what it said last, and is told in ``degraded``.
"""

from __future__ import annotations

import bisect
import logging
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from kwsiem.response import facts
from kwsiem.response.facts import BITS, Key, Network, Protected, key_of, network_of

log = logging.getLogger("kwsiem.guard")

#: Sources that are read anew every few seconds, and at once when the kernel says that routes changed.
SOURCES: Final[Mapping[str, Callable[[], list[Protected]]]] = {
    "reserved": facts.reserved,
    "addresses": facts.addresses,
    "gateways": facts.gateways,
    "bridges": facts.bridges,
    "resolvers": facts.resolvers,
    "dhcp": facts.dhcp_servers,
    "administrators": lambda: facts.administrators(facts.is_administrator),
}


class Verdict(msgspec.Struct, frozen=True):
    """What the guard says: allowed, or the name of the rule that forbids it and how it knows."""

    allowed: bool
    rule: str = ""
    detail: str = ""


class Request(msgspec.Struct, frozen=True):
    """A block as it was asked for; ``evidence`` is ``proven`` or ``spoofable``.

    ``spoofable`` says that the rule wants it although its evidence can be forged.
    """

    network: Network
    evidence: str
    spoofable: bool = False


class Guard:
    """Holds the protected networks and judges requests.

    ``widest`` is the shortest prefix that may be blocked, for IPv4 and IPv6. ``spoofable_permitted`` is the
    operator's word that rules may ask for blocks on evidence that can be forged.
    """

    def __init__(
        self,
        *,
        widest: tuple[int, int] = (24, 48),
        spoofable_permitted: bool = False,
        sources: Mapping[str, Callable[[], list[Protected]]] = SOURCES,
    ) -> None:
        self.degraded: dict[str, str] = {}
        self._widest = {4: widest[0], 6: widest[1]}
        self._spoofable_permitted = spoofable_permitted
        self._sources = sources
        self._found: dict[str, Sequence[Protected]] = {}
        self._index = Index(())
        self.refresh()

    def refresh(self, names: Iterable[str] | None = None) -> bool:
        """Read sources anew, all of them or those named; whether what is protected has changed."""
        before = dict(self._found)
        for name in names or self._sources:
            try:
                self._found[name] = self._sources[name]()
                self.degraded.pop(name, None)
            except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
                if name not in self.degraded:
                    log.warning("the guard cannot read %s, it keeps what it knew: %s", name, error)
                self.degraded[name] = str(error)[:200]
        return self._rebuild(before)

    def protect(self, name: str, networks: Sequence[Protected]) -> bool:
        """Set what a source that somebody else reads has found; whether anything has changed."""
        before = dict(self._found)
        self._found[name] = networks
        return self._rebuild(before)

    def protected(self) -> list[Protected]:
        """All that is protected now."""
        return [entry for found in self._found.values() for entry in found]

    def verdict(self, request: Request) -> Verdict:
        """Whether this may be blocked; the first rule that forbids it is named."""
        network = request.network
        if network.prefixlen < self._widest[network.version]:
            return Verdict(
                allowed=False,
                rule="too wide",
                detail=f"/{network.prefixlen}, at most /{self._widest[network.version]}",
            )
        hit = self._index.overlapping(key_of(network))
        if hit:
            return Verdict(allowed=False, rule=hit.rule, detail=f"{hit.network} {hit.detail}")
        if request.evidence != "proven" and not (request.spoofable and self._spoofable_permitted):
            why = "its evidence can be forged: no handshake was completed, nobody authenticated"
            return Verdict(allowed=False, rule="spoofable", detail=why)
        return Verdict(allowed=True)

    def covers(self, key: Key) -> Protected | None:
        """The protected network that overlaps this one, if any."""
        return self._index.overlapping(key)

    def _rebuild(self, before: Mapping[str, Sequence[Protected]]) -> bool:
        if before == self._found:
            return False
        self._index = Index(self.protected())
        return True


class Index:
    """Networks for the question whether one of them overlaps a given one; a few microseconds for 10,000."""

    def __init__(self, entries: Iterable[Protected]) -> None:
        self._by_prefix: dict[tuple[int, int], dict[int, Protected]] = {}
        for entry in entries:
            same = self._by_prefix.setdefault((entry.network.version, entry.network.prefixlen), {})
            same.setdefault(int(entry.network.network_address), entry)
        self._starts = {
            version: sorted(
                (
                    (start, entry)
                    for (v, _), found in self._by_prefix.items()
                    if v == version
                    for start, entry in found.items()
                ),
                key=lambda pair: pair[0],
            )
            for version in (4, 6)
        }
        #: For each version the prefix lengths that there are, the shortest first.
        self._prefixes = {
            version: sorted(
                ((prefix, same) for (v, prefix), same in self._by_prefix.items() if v == version),
                key=lambda pair: pair[0],
            )
            for version in (4, 6)
        }
        self._keys = {version: [start for start, _ in pairs] for version, pairs in self._starts.items()}

    def overlapping(self, key: Key) -> Protected | None:
        """A network that contains this one or lies within it, the widest first."""
        version, first, length = key
        bits = BITS[version]
        for prefix, same in self._prefixes[version]:
            if prefix > length:
                break
            hit = same.get(first >> (bits - prefix) << (bits - prefix))
            if hit:
                return hit
        keys = self._keys[version]
        at = bisect.bisect_left(keys, first)
        if at < len(keys) and keys[at] < first + (1 << bits - length):
            return self._starts[version][at][1]
        return None


def allowed_networks(entries: Iterable[str]) -> tuple[list[Protected], list[str]]:
    """The allow list apart: addresses and networks as protected ones, and names that must be looked up."""
    networks: list[Protected] = []
    names: list[str] = []
    for entry in entries:
        try:
            networks.append(Protected(network_of(entry), "allow list", entry))
        except ValueError:
            names.append(entry)
    return networks, names
