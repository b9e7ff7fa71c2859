"""Blocking with ipset, matched by iptables and ip6tables (either variant).

Measured (kernel 6.18, ipset 7.17): 40 bytes of kernel memory for each IPv4 address, 40 MB for 1,000,000; the
kernel doubles a set by itself, and an addition then waited for 80 ms at 650,000 entries, 26 ms below 200,000.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Final

from kwsiem import clock
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
from kwsiem.response.pipe import Pipe, reason
from kwsiem.response.xtables import FILTER, MANGLE, Layout, Rules, run

#: Set → its type, and the canary: a permanent entry that no packet can match. It tells a flush.
SETS: Final = {
    "kwsiem4": ("hash:ip family inet", "255.255.255.255"),
    "kwsiem4net": ("hash:net family inet", "255.255.255.255"),
    "kwsiem6": ("hash:ip family inet6", "ff00::1"),
    "kwsiem6net": ("hash:net family inet6", "ff00::1"),
}
#: 65,536 pointers for each set of addresses: it is doubled first at about 200,000 entries.
_HASH_SIZE: Final = {"hash:ip": 65536, "hash:net": 1024}
_DEFAULT_TIMEOUT_S: Final = 600
_REMOVE_S: Final = 2.0
#: Counting takes the kernel 15 ns for each entry: so many times longer we wait for the next count.
_COUNT_PAUSE_S: Final = 200 * 15e-9

_COUNT: Final = re.compile(r"^Number of entries: (\d+)$", re.MULTILINE)
_HEADER: Final = re.compile(r"^Header: family (\S+) hashsize \d+ maxelem (\d+) timeout \d+", re.MULTILINE)


class IpsetFirewall(KernelFirewall):
    """Four sets, one ``ipset -`` child, and our chains in iptables."""

    name = "ipset"

    def __init__(
        self,
        variant: str,
        *,
        cut_answers: bool = False,
        most_entries: int = MOST_ENTRIES,
        layouts: Sequence[Layout] = (MANGLE, FILTER),
    ) -> None:
        super().__init__()
        self.pipe = Pipe()
        sets = [("kwsiem4", "kwsiem4net"), ("kwsiem6", "kwsiem6net")]
        self.rules = Rules(variant, sets, cut_answers=cut_answers, layouts=layouts)
        self._most_entries = most_entries
        self._whole = False
        self._next_count_s = 0.0

    # -- in and out ------------------------------------------------------------------------------------

    def init(self) -> None:
        """Make the sets, then the rules that look into them; see Firewall."""
        damaged = bool(self._sets_damage(clock.monotonic_s())) if self._whole else True
        if damaged:
            for name in SETS:
                self._make(name)
                self.books.setdefault(name, Book())
            self.adopt()
        self._whole = True
        self.rules.install()

    def _make(self, name: str) -> None:
        kind, canary = SETS[name]
        size = _HASH_SIZE[kind.split(" ", 1)[0]]
        made = f"{kind} hashsize {size} maxelem {self._most_entries} timeout {_DEFAULT_TIMEOUT_S}"
        (problem,) = self.pipe.ask([f"create {name} {made}"])
        if "already exists" in problem:
            self._exchange(name, made)
        elif problem:
            raise FirewallError(f"set {name}: {reason(problem)}")
        (problem,) = self.pipe.ask([f"add {name} {canary} timeout 0"])
        if problem:
            raise FirewallError(f"set {name}: {reason(problem)}")

    def _exchange(self, name: str, made: str) -> None:
        """A set of that name with other limits: ours takes its place, under the rules that look into it."""
        fresh = f"{name}-new"
        self.pipe.ask([f"destroy {fresh}"])
        problems = self.pipe.ask([f"create {fresh} {made}", f"swap {fresh} {name}", f"destroy {fresh}"])
        if any(problems):
            raise FirewallError(
                f"a set {name} of another kind exists and cannot be replaced: {reason(max(problems))};"
                f" remove what uses it, then: ipset destroy {name}"
            )

    def flush(self) -> None:
        """Take all out; see Firewall."""
        for name, (_, canary) in SETS.items():
            problems = self.pipe.ask([f"flush {name}", f"add {name} {canary} timeout 0"])
            if any(problems):
                raise FirewallError(f"set {name}: {reason(max(problems))}")
            self.books[name] = Book()

    def close(self, *, remove: bool) -> None:
        """End the child; see Firewall."""
        try:
            if remove:
                self.rules.remove()
                self._destroy()
        finally:
            self.rules.close()
            self.pipe.close()
            self._whole = False

    def _destroy(self) -> None:
        """The kernel lets go of a set a moment after the rule that used it."""
        deadline_s = clock.monotonic_s() + _REMOVE_S
        left = list(SETS)
        while left:
            answers = self.pipe.ask([f"destroy {name}" for name in left])
            left = [name for name, said in zip(left, answers, strict=True) if "in use" in said]
            if left and clock.monotonic_s() > deadline_s:
                raise FirewallError(f"sets still in use by somebody's rules: {', '.join(left)}")
            if left:
                clock.sleep_s(0.005)

    # -- entries ---------------------------------------------------------------------------------------

    def set_of(self, target: Target) -> str:
        """One of the four."""
        return f"kwsiem{target.version}{'' if target.is_host else 'net'}"

    def _add(self, adds: Sequence[Add]) -> Mapping[str, str]:
        said = self.pipe.ask(
            [f"add {self.set_of(add.target)} {add.target.text} timeout {add.timeout_s}" for add in adds]
        )
        return {
            add.asked: self._why(add.target, answer) for add, answer in zip(adds, said, strict=True) if answer
        }

    def _delete(self, targets: Sequence[Target]) -> Mapping[str, str]:
        said = self.pipe.ask([f"del {self.set_of(target)} {target.text}" for target in targets])
        return {
            target.text: self._why(target, answer)
            for target, answer in zip(targets, said, strict=True)
            if answer
        }

    def _why(self, target: Target, answer: str) -> str:
        name = self.set_of(target)
        if "Hash is full" in answer:
            return f"set {name} is full: it holds {self._most_entries} entries"
        if "does not exist" in answer:
            return f"set {name} is gone"
        return f"set {name}: {reason(answer)}"

    def entries(self) -> list[Entry]:
        """What the kernel has; see Firewall. About 2 µs for each, in a process of its own."""
        found = []
        for name, (_, canary) in SETS.items():
            for line in run(["ipset", "save", name]).splitlines():
                words = line.split(" ")
                if words[0] == "add" and words[1] == name and words[2] != canary:
                    left_s = int(words[4]) if words[3:4] == ["timeout"] else 0
                    found.append(Entry(words[2], left_s))
        return found

    def counters(self) -> Dropped:
        """What our rules dropped."""
        return self.rules.counters()

    # -- damage ----------------------------------------------------------------------------------------

    def damage(self) -> str:
        """What is wrong with sets or rules; see Firewall."""
        if not self._whole:
            return "not in place"
        try:
            return self._sets_damage(clock.monotonic_s()) or self.rules.damage()
        except (FirewallError, OSError) as error:
            return str(error)

    def _sets_damage(self, now_s: float) -> str:
        if now_s < self._next_count_s:
            return self._canaries()
        counted = 0
        for name in SETS:
            # A list of a set that is gone ends the child (see pipe), so that nothing more is asked of it.
            (said,) = self.pipe.ask([f"list -t {name}"])
            count, header = _COUNT.search(said), _HEADER.search(said)
            if not count or not header:
                return (
                    f"set {name} is gone" if "does not exist" in said else f"set {name}: {reason(said)[:100]}"
                )
            counted += int(count[1])
            wrong = self._count_wrong(name, int(count[1]), clock.monotonic_s())
            if wrong:
                return wrong
        self._next_count_s = now_s + _COUNT_PAUSE_S * counted
        return self._canaries()

    def _count_wrong(self, name: str, count: int, now_s: float) -> str:
        book = self.books[name]
        least = book.least(now_s) + 1  # the canary
        if count < least:
            return f"set {name}: {least - count} of {least - 1} entries are gone"
        if count > len(book) + 1:
            return f"set {name}: {count - len(book) - 1} entries that we did not put in"
        return ""

    def _canaries(self) -> str:
        said = self.pipe.ask([f"test {name} {canary}" for name, (_, canary) in SETS.items()])
        for name, answer in zip(SETS, said, strict=True):
            if "is in set" in answer:
                continue
            return f"set {name} is gone" if "does not exist" in answer else f"set {name} was emptied"
        return ""


def usable() -> bool:
    """Whether ipset can be run and this kernel knows it."""
    with contextlib.suppress(FirewallError):
        run(["ipset", "list", "-n"])
        return True
    return False
