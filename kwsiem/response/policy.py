"""What is blocked, and for how long, once the guard lets it: pure functions, no clock, no state."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence

from kwsiem.response.facts import Network

#: A customer of an IPv6 provider has a /64 at least, so one address of it says nothing (RFC 6177).
IPV6_PREFIXES = (64, 56, 48)
#: So many blocked networks of one size are followed by the next wider one.
IPV6_SIBLINGS = 4


def subject(address: Network) -> Network:
    """Whom a block of an address is for: an IPv4 address itself, an IPv6 address's /64."""
    if isinstance(address, ipaddress.IPv6Network) and address.prefixlen > IPV6_PREFIXES[0]:
        return address.supernet(new_prefix=IPV6_PREFIXES[0])
    return address


def escalated_s(for_s: int, offences: int, steps_s: Sequence[int]) -> int:
    """The time of a block after so many earlier ones: the rule's own, then the steps, never shorter."""
    if offences < 1 or not steps_s:
        return for_s
    return max(for_s, steps_s[min(offences, len(steps_s)) - 1])


def widened(
    network: Network, blocked: Callable[[Network], int], *, aggregate: int, collateral: int, widest: int
) -> Network:
    """The network to block in place of this one, itself when too few of its neighbours offend.

    ``blocked`` counts the blocked subjects within a network, this one included. IPv4: the widest network in
    which there are at least ``aggregate`` of them and at most ``collateral`` other addresses for each.
    IPv6: four /64 make a /56, four /56 a /48. Never shorter than ``widest``.
    """
    if not aggregate:
        return network
    if isinstance(network, ipaddress.IPv6Network):
        return _widened_ipv6(network, blocked, widest)
    best: Network = network
    for prefix in range(network.prefixlen - 1, widest - 1, -1):
        wider = network.supernet(new_prefix=prefix)
        count = blocked(wider)
        if count >= aggregate and wider.num_addresses - count <= collateral * count:
            best = wider
    return best


def _widened_ipv6(network: ipaddress.IPv6Network, blocked: Callable[[Network], int], widest: int) -> Network:
    best = network
    needed = IPV6_SIBLINGS
    for prefix in IPV6_PREFIXES[1:]:
        if prefix < widest or network.prefixlen <= prefix:
            continue
        wider = network.supernet(new_prefix=prefix)
        if blocked(wider) < needed:
            break
        best = wider
        needed *= IPV6_SIBLINGS
    return best


def seconds_left(until_ns: int, for_s: int, now_ns: int) -> int:
    """Whole seconds until a block ends; never more than it was for, should the clock have gone back."""
    return max(0, min(for_s, -((now_ns - until_ns) // 1_000_000_000)))
