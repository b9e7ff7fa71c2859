"""Blocking with nftables alone: a table of our own, hash sets with timeouts, elements over netlink.

Elements go to the kernel in transactions of up to a few hundred, with an errno for each: no child, no text.
``nft`` itself runs only to put table and rules in place. Networks have one hash set for each prefix length in
use, matched by the masked address (as hash:net of ipset does it): an interval set refuses networks that
overlap, and ``nft`` needed 64 ms to add one to 20,000.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from kwsiem import clock
from kwsiem.response import nfnetlink
from kwsiem.response.firewall import (
    MOST_ENTRIES,
    Add,
    Book,
    Dropped,
    Entry,
    FirewallError,
    KernelFirewall,
    Target,
)
from kwsiem.response.netlink import attributes
from kwsiem.response.nfnetlink import INET, Changes, Part, Tables, element
from kwsiem.response.xtables import run

TABLE: Final = "kwsiem"
#: In each set: a permanent element that no packet can match. It tells a flush where events were lost.
_CANARY: Final = {4: b"\xff" * 4, 6: b"\xff\x00" + b"\0" * 13 + b"\x01"}
_HOSTS: Final = {4: "hosts4", 6: "hosts6"}
_SET: Final = re.compile(r"(?:hosts|net)([46])(?:_(\d{1,3}))?")
#: Changes that leave the elements alone.
_RULES: Final = {nfnetlink.NEW_CHAIN, nfnetlink.DEL_CHAIN, nfnetlink.NEW_RULE, nfnetlink.DEL_RULE}
_PRIORITY: Final = -160  # mangle - 10: after conntrack (-200), before DNAT (-100)
_ANSWERS: Final = "ct direction reply ct state established,related return"
_FRESH: Final = "tcp flags & (fin|syn|rst|ack) != syn ct state new"


class NftFirewall(KernelFirewall):
    """The table ``inet kwsiem``."""

    name = "nftables"

    def __init__(self, *, cut_answers: bool = False, most_entries: int = MOST_ENTRIES) -> None:
        super().__init__()
        self._cut_answers = cut_answers
        self._most_entries = most_entries
        self._tables = Tables()
        self._changes = Changes()
        self._damage = "not in place"
        self._rules: list[object] = []
        self._touched = True

    # -- in and out ------------------------------------------------------------------------------------

    def init(self) -> None:
        """Make the table, or make it whole; see Firewall."""
        try:
            self._take_changes()  # what comes after this is looked at later
            names = self._tables.parts(nfnetlink.NEW_SET, INET, TABLE)
            lengths = sorted({*_HOSTS.values()} | {name for name in (*names, *self.books) if _length(name)})
            self._place(lengths)
            self.books = {name: self.books.get(name, Book()) for name in lengths}
            self._put_canaries(lengths)
            if self._touched:
                self.adopt()
        except OSError as error:
            raise FirewallError(f"nf_tables: {error.strerror}") from None
        self._rules = self._shape()
        self._damage, self._touched = "", False
        self._forget_nft()

    def _place(self, names: Sequence[str]) -> None:
        """Table, sets and chains in one transaction; elements stay. Sets of another kind are replaced."""
        text = self._text(names)
        try:
            run(["nft", "-f", "-"], text)
        except FirewallError:
            self._touched = True
            run(["nft", "-f", "-"], f"add table inet {TABLE}\ndelete table inet {TABLE}\n{text}")

    def _text(self, names: Sequence[str]) -> str:
        lines = [f"add table inet {TABLE}"]
        for name in names:
            kind = "ipv4_addr" if _version(name) == 4 else "ipv6_addr"
            lines.append(
                f"add set inet {TABLE} {name} {{ type {kind}; flags timeout; size {self._most_entries}; }}"
            )
        for chain in ("prerouting", "postrouting"):
            hook = f"type filter hook {chain} priority {_PRIORITY}; policy accept;"
            lines += [f"add chain inet {TABLE} {chain} {{ {hook} }}", f"flush chain inet {TABLE} {chain}"]
        if not self._cut_answers:
            lines.append(f"add rule inet {TABLE} prerouting {_ANSWERS}")
        for name in names:
            lines.append(f"add rule inet {TABLE} prerouting {_match(name, 'saddr')} counter drop")
            lines.append(f"add rule inet {TABLE} postrouting {_FRESH} {_match(name, 'daddr')} counter drop")
        return "\n".join([*lines, ""])

    def _put_canaries(self, names: Sequence[str]) -> None:
        for name in names:
            errors = self._tables.commit([element(INET, TABLE, name, _CANARY[_version(name)], 0)])
            if errors:
                raise OSError(errors[0], os.strerror(errors[0]))

    def _new_length(self, target: Target) -> None:
        """The first network of this prefix length: its set and its rules. Raises FirewallError."""
        run(["nft", "-f", "-"], self._text(sorted({*self.books, self.set_of(target)})))
        try:
            self._put_canaries([self.set_of(target)])
        except OSError as error:
            raise FirewallError(f"nf_tables: {error.strerror}") from None
        self.books.setdefault(self.set_of(target), Book())
        self._rules = self._shape()
        self._forget_nft()

    def flush(self) -> None:
        """Take all out; see Firewall."""
        run(["nft", "-f", "-"], "".join(f"flush set inet {TABLE} {name}\n" for name in self.books))
        try:
            self._put_canaries(list(self.books))
        except OSError as error:
            raise FirewallError(f"nf_tables: {error.strerror}") from None
        self.books = {name: Book() for name in self.books}
        self._forget_nft()

    def close(self, *, remove: bool) -> None:
        """Close the sockets; see Firewall."""
        try:
            if remove:
                run(["nft", "-f", "-"], f"add table inet {TABLE}\ndelete table inet {TABLE}\n")
        finally:
            self._damage = "not in place"
            self._tables.close()
            self._changes.close()

    # -- entries ---------------------------------------------------------------------------------------

    def set_of(self, target: Target) -> str:
        """Addresses in one set for each family, networks in one for each prefix length."""
        return _HOSTS[target.version] if target.is_host else f"net{target.version}_{target.prefix}"

    def _add(self, adds: Sequence[Add]) -> Mapping[str, str]:
        for add in adds:
            if self.set_of(add.target) not in self.books:
                self._new_length(add.target)
        now_s = clock.monotonic_s()
        refused: dict[str, str] = {}
        left = list(adds)
        # Before kernel 6.12 an element's time cannot be changed: it is taken out and put in, as one.
        known = {add.target.text for add in adds if self.end_s(add.target) > now_s}
        for _ in range(4):  # all or nothing: once more without those that were refused
            parts: list[tuple[Part, Add, bool]] = []
            for add in left:
                if add.target.text in known:
                    parts.append((self._part(add.target, delete=True), add, True))
                parts.append((self._part(add.target, add.timeout_s), add, False))
            errors = self._commit([part for part, _, _ in parts])
            if not errors:
                return refused
            for index, number in errors.items():
                _, add, delete = parts[index]
                if delete and number == errno.ENOENT:
                    known.discard(add.target.text)  # it has just timed out
                else:
                    refused[add.asked] = self._why(add.target, number)
            left = [add for add in left if add.asked not in refused]
            if not left:
                return refused
        return {**refused, **{add.asked: "the kernel refused the others with it" for add in left}}

    def _delete(self, targets: Sequence[Target]) -> Mapping[str, str]:
        left = [target for target in targets if self.set_of(target) in self.books]
        refused: dict[str, str] = {}
        for _ in range(4):
            errors = self._commit([self._part(target, delete=True) for target in left])
            if not errors:
                return refused
            for index, number in errors.items():
                if number != errno.ENOENT:
                    refused[left[index].text] = self._why(left[index], number)
            left = [target for index, target in enumerate(left) if index not in errors]
        return {**refused, **{target.text: "the kernel refused the others with it" for target in left}}

    def _part(self, target: Target, timeout_s: int = 0, *, delete: bool = False) -> Part:
        return element(INET, TABLE, self.set_of(target), target.packed, timeout_s, delete=delete)

    def _commit(self, parts: Sequence[Part]) -> dict[int, int]:
        try:
            errors = self._tables.commit(parts)
        except OSError as error:
            raise FirewallError(f"nf_tables: {error.strerror}") from None
        self._take_changes()  # our own are thrown away before they fill the socket
        return errors

    def _why(self, target: Target, number: int) -> str:
        name = self.set_of(target)
        if number == errno.ENFILE:
            return f"set {name} is full: it holds {self._most_entries} entries"
        if number == errno.ENOENT:
            return f"set {name} is gone"
        return f"set {name}: {os.strerror(number)}"

    def entries(self) -> list[Entry]:
        """What the kernel has; see Firewall. About 3 µs for each."""
        found = []
        try:
            for name in self._tables.parts(nfnetlink.NEW_SET, INET, TABLE):
                if _SET.fullmatch(name):
                    found += self._entries_of(name)
        except OSError as error:
            raise FirewallError(f"nf_tables: {error.strerror}") from None
        return found

    def _entries_of(self, name: str) -> list[Entry]:
        length = _length(name)
        entries = []
        for each in self._tables.elements(INET, TABLE, name):
            key = each.get(1, b"")[4:]  # NFTA_SET_ELEM_KEY holds one NFTA_DATA_VALUE
            if len(key) not in (4, 16) or key == _CANARY[4 if len(key) == 4 else 6]:
                continue
            left_ms = int.from_bytes(each.get(5, b""), "big")  # NFTA_SET_ELEM_EXPIRATION
            left_s = max(1, left_ms // 1000) if 4 in each else 0
            address = str(ipaddress.ip_address(key))
            entries.append(Entry(f"{address}/{length}" if length else address, left_s))
        return entries

    def counters(self) -> Dropped:
        """What our rules dropped."""
        try:
            rules = self._tables.rules(INET, TABLE)
        except OSError as error:
            raise FirewallError(f"nf_tables: {error.strerror}") from None
        counted = [attributes(data) for rule in rules for step, data in rule.steps if step == "counter"]
        size, packets = (
            sum(int.from_bytes(each.get(kind, b""), "big") for each in counted) for kind in (1, 2)
        )
        return Dropped(packets, size)  # NFTA_COUNTER_BYTES, NFTA_COUNTER_PACKETS

    # -- damage ----------------------------------------------------------------------------------------

    def damage(self) -> str:
        """What others did to our table: the kernel tells each change with its author. 5 µs when none did."""
        try:
            self._take_changes()
        except (FirewallError, OSError) as error:
            return str(error)
        return self._damage

    def _take_changes(self) -> None:
        changes = self._changes.take(self._tables.port)
        if changes is None:
            self._damage, self._touched = self._damage or self._look(), True
            return
        ours = [change for change in changes if change.table == TABLE and change.family == INET]
        self._touched = self._touched or any(change.kind not in _RULES for change in ours)
        if ours and not self._damage:
            self._damage = _told(ours)

    def _forget_nft(self) -> None:
        """What our own ``nft`` did is no damage; what another did meanwhile shows in rules and canaries."""
        self._changes.take(self._tables.port)
        wrong = self._look()
        if wrong:
            self._damage = wrong

    def _look(self) -> str:
        """Whether rules and sets are as we left them, when events were lost. 2 ms."""
        try:
            if self._shape() != self._rules:
                return f"table {TABLE}: our rules were changed"
            for name in self.books:
                canary = element(INET, TABLE, name, _CANARY[_version(name)], 0)
                # Exclusive creation: "exists" is what we want to hear, and nothing changes.
                errors = self._tables.commit([canary._replace(flags=canary.flags | 0x200)])
                if list(errors.values()) != [errno.EEXIST]:
                    return f"set {name} was emptied"
        except (FirewallError, OSError) as error:
            return str(error)
        return ""

    def _shape(self) -> list[object]:
        """Chains and rules as the kernel has them, without what counts."""
        try:
            chains = sorted(self._tables.parts(nfnetlink.NEW_CHAIN, INET, TABLE))
            rules = self._tables.rules(INET, TABLE)
        except OSError as error:
            raise FirewallError(f"nf_tables: {error.strerror}") from None
        still = [
            (rule.chain, [(step, b"" if step == "counter" else data) for step, data in rule.steps])
            for rule in rules
        ]
        return [chains, still]


def _told(changes: Sequence[nfnetlink.Change]) -> str:
    """The changes in words."""
    words = {
        nfnetlink.DEL_ELEMENT: "entries taken out",
        nfnetlink.NEW_ELEMENT: "entries put in",
        nfnetlink.DEL_TABLE: "tables deleted",
        nfnetlink.DEL_SET: "sets deleted",
    }
    counts = Counter(words.get(change.kind, "rules or sets changed") for change in changes)
    what = ", ".join(f"{count} {word}" for word, count in counts.most_common(3))
    return f"table {TABLE}: {what} by {changes[0].who}"


def _version(name: str) -> int:
    found = _SET.fullmatch(name)
    assert found
    return int(found[1])


def _length(name: str) -> int:
    """The prefix length of a set of networks; 0 of any other set."""
    found = _SET.fullmatch(name)
    length = int(found[2] or 0) if found else 0
    return length if found and length < (32 if found[1] == "4" else 128) else 0


def _match(name: str, field: str) -> str:
    version, length = _version(name), _length(name)
    protocol = "ip" if version == 4 else "ip6"
    if not length:
        return f"{protocol} {field} @{name}"
    bits = 32 if version == 4 else 128
    mask = ipaddress.ip_address((((1 << length) - 1) << (bits - length)).to_bytes(bits // 8, "big"))
    return f"{protocol} {field} & {mask} @{name}"


def usable() -> str:
    """Why nf_tables cannot be used here; empty when it can."""
    try:
        with contextlib.closing(Tables()) as tables:
            tables.names(INET)
    except OSError as error:
        return f"nf_tables does not work with this kernel: {error.strerror}"
    return ""
