"""Who gets a place when keys are more than places: no flood of new keys drives out those that were there.

A rule keeps exact state for so many keys. From a quarter of that on a network (IPv4 /24, IPv6 /64) gets only
its share; when all places are taken nobody new gets one. Keys without a place are counted in a count-min
sketch (Cormode and Muthukrishnan 2005, with conservative update) and get a place, full or not, once it says
that they have come often enough. Evicting keys instead found none of 2,000 slow attackers in a flood of 9
million forged sources; the sketch finds all of them (``bench/flood.py``).

The sketch never counts too little; it may count too much, and as two are swapped with the generations, it
remembers up to twice the timespan. Its cells are chosen by Python's hash, which is keyed anew in each
process.
"""

from __future__ import annotations

import ipaddress
from typing import ClassVar, Final
from weakref import WeakSet

from kwsiem.correlate.incident import Key

#: Cells of each of the two rows; a byte each.
CELLS: Final = 2**22
#: Sketches that may exist at once in the process (8 MiB each, two for a rule in a flood).
MAX_SKETCHES: Final = 16
#: A network gets this part of a rule's places once a quarter of them is taken.
SHARE: Final = 64
_MASK: Final = CELLS - 1
_SHIFT: Final = 32


class Sketch:
    """Counts keys up to 255 in fixed memory; never too low."""

    __slots__ = ("__weakref__", "_first", "_second")
    alive: ClassVar[WeakSet[Sketch]] = WeakSet()

    def __init__(self) -> None:
        self._first = bytearray(CELLS)
        self._second = bytearray(CELLS)
        self.alive.add(self)

    def add(self, hashed: int) -> int:
        """Count one more; how many there are now, at least."""
        first, second = self._first, self._second
        i, j = hashed & _MASK, hashed >> _SHIFT & _MASK
        a, b = first[i], second[j]
        count = min(a, b)
        if count < 255:
            count += 1
            if a < count:
                first[i] = count
            if b < count:
                second[j] = count
        return count

    def get(self, hashed: int) -> int:
        """How many there are, at least."""
        return min(self._first[hashed & _MASK], self._second[hashed >> _SHIFT & _MASK])

    def mark(self, hashed: int, bits: int) -> int:
        """Remember bits (up to 255) of a key; those remembered before, perhaps more (instead of add)."""
        i, j = hashed & _MASK, hashed >> _SHIFT & _MASK
        before = self._first[i] & self._second[j]
        self._first[i] |= bits
        self._second[j] |= bits
        return before

    def marks(self, hashed: int) -> int:
        """The bits remembered of a key, perhaps more."""
        return self._first[hashed & _MASK] & self._second[hashed >> _SHIFT & _MASK]


class Crowd:
    """The places of one rule's young generation, and the sketches of those without one."""

    def __init__(self, group_by: tuple[str, ...], places: int) -> None:
        self.counted = 0
        self.uncounted = 0
        self._places = places
        self._pressed = places // 4
        self._share = max(1, places // SHARE)
        self._networks: dict[str, int] = {}
        self._address = _address_position(group_by)
        self._single = len(group_by) == 1
        self._now: Sketch | None = None
        self._before: Sketch | None = None

    def admits(self, key: Key, taken: int) -> bool:
        """Whether a new key gets a place while so many are taken."""
        if taken < self._pressed:
            return True
        if taken >= self._places:
            return False
        if self._address < 0:
            return True
        address = key if self._single else key[self._address]  # type: ignore[index]
        network = network_of(str(address))
        count = self._networks.get(network, 0)
        if count >= self._share:
            return False
        self._networks[network] = count + 1
        return True

    def turn(self) -> None:
        """A generation is over."""
        self._before, self._now = self._now, None
        self._networks.clear()

    def count(self, key: Key) -> int:
        """Count a hit of a key without a place; how many it has had, at least."""
        sketch = self._sketch()
        if sketch is None:
            return 0
        hashed = hash(key)
        before = self._before.get(hashed) if self._before else 0
        return sketch.add(hashed) + before

    def count_value(self, key: Key, value: object) -> int:
        """Count a distinct value of a key without a place; how many it has had, at least."""
        sketch = self._sketch()
        if sketch is None:
            return 0
        pair, hashed = hash((key, value)), hash(key)
        new = sketch.add(pair) == 1 and not (self._before and self._before.get(pair))
        before = self._before.get(hashed) if self._before else 0
        return (sketch.add(hashed) if new else sketch.get(hashed)) + before

    def mark(self, key: Key, bits: int) -> int:
        """Remember what a key without a place has done; what it had done before."""
        sketch = self._sketch()
        if sketch is None:
            return 0
        hashed = hash(key)
        return sketch.mark(hashed, bits & 255) | (self._before.marks(hashed) if self._before else 0)

    def _sketch(self) -> Sketch | None:
        """The sketch of this generation; None when there are too many already (then that is counted)."""
        if self._now is None:
            if len(Sketch.alive) >= MAX_SKETCHES:
                self.uncounted += 1
                return None
            self._now = Sketch()
        self.counted += 1
        return self._now


def _address_position(group_by: tuple[str, ...]) -> int:
    """Which part of a key is the address that an outsider chooses; -1 when there is none."""
    for name in ("source.ip", "source.address"):
        if name in group_by:
            return group_by.index(name)
    return next((n for n, name in enumerate(group_by) if name.endswith((".ip", ".address"))), -1)


def network_of(address: str) -> str:
    """The network that one party may well own all of: IPv4 /24, IPv6 /64; other text stands for itself."""
    if ":" in address:
        try:
            return ipaddress.IPv6Address(address).packed[:8].hex()
        except ValueError:
            return address
    return address.rpartition(".")[0] or address
