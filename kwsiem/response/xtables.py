"""Our rules in iptables and ip6tables: two chains of our own, jumped to first, put in place atomically.

In mangle, PREROUTING lies after conntrack and before DNAT and routing: one place for what is for this host,
for what it forwards, and for its containers. POSTROUTING has one rule: a TCP packet that is no SYN and part
of no known connection does not leave for a blocked source. Without it the answer of a server whose conntrack
entry was deleted would begin a connection that looks like one of ours, and the source would be let in again.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from kwsiem.response import nfnetlink
from kwsiem.response.firewall import Dropped, FirewallError
from kwsiem.response.leftovers import Leftovers
from kwsiem.response.pipe import ENVIRONMENT

IN: Final = "KWSIEM"
OUT: Final = "KWSIEM-OUT"
COMMAND_S: Final = 3.0

_COUNTED: Final = re.compile(r"^\[(\d+):(\d+)\] -A KWSIEM(?:-OUT)? .*-j DROP$", re.MULTILINE)


class Layout(NamedTuple):
    """A table, and which of its chains begin with a jump to which of ours."""

    table: str
    jumps: tuple[tuple[str, str], ...]


MANGLE: Final = Layout("mangle", (("PREROUTING", IN), ("POSTROUTING", OUT)))
#: Where the kernel has no mangle table. DOCKER-USER is looked at where it exists.
FILTER: Final = Layout(
    "filter",
    (("INPUT", IN), ("FORWARD", IN), ("DOCKER-USER", IN), ("FORWARD", OUT), ("OUTPUT", OUT)),
)


class Family(NamedTuple):
    """One of the two protocols: the prefix of its commands, its number in nf_tables, its sets."""

    command: str
    number: int
    sets: tuple[str, ...]


class Rules:
    """Our rules of both families, through one variant (``nft`` or ``legacy``) of the commands."""

    def __init__(
        self,
        variant: str,
        sets: Sequence[tuple[str, ...]],
        *,
        cut_answers: bool,
        layouts: Sequence[Layout] = (MANGLE, FILTER),
    ) -> None:
        self.variant = variant
        self._candidates = tuple(layouts)
        self._families = [Family("iptables", nfnetlink.IPV4, tuple(sets[0]))]
        if Path("/proc/sys/net/ipv6").exists():
            self._families.append(Family("ip6tables", nfnetlink.IPV6, tuple(sets[1])))
        self._cut_answers = cut_answers
        self._layouts: dict[str, Layout] = {}
        self._placed: dict[str, list[str]] = {}
        self._leftovers: Leftovers | None = None
        self._changes = nfnetlink.Changes() if variant == "nft" else None
        self._last = ""

    # -- in and out ------------------------------------------------------------------------------------

    def install(self) -> None:
        """Put the rules where they belong; nothing is touched that stands right. Raises FirewallError."""
        if self.variant == "nft" and not self._leftovers:
            self._leftovers = Leftovers({each.number: each.command for each in self._families}, IN)
        self._forget_changes()
        for family in self._families:
            if not self._wrong(family):
                continue
            layout = self._layouts.get(family.command)
            for candidate in [layout] if layout else self._candidates:
                problem = self._place(family, candidate)
                if not problem:
                    break
            else:
                raise FirewallError(f"{family.command}: {problem}")
        self._last = ""

    def _place(self, family: Family, layout: Layout) -> str:
        """Put them there and read what the command makes of them; why not, if it did not work."""
        problem = ""
        for _ in range(3):  # somebody may have changed the table between our look and our change
            try:
                saved = self._save(family, layout.table)
                self._restore(family, _placing(layout, saved, self._ours(family, layout)))
                shape = _shape(layout, self._save(family, layout.table))
            except FirewallError as error:
                problem = str(error)
                continue
            self._layouts[family.command] = layout
            self._placed[family.command] = shape
            wrong = _misplaced(layout, shape) or _wanting(shape, self._ours(family, layout))
            if not wrong:
                return ""
            problem = wrong
        self._placed.pop(family.command, None)
        return problem

    def remove(self) -> None:
        """Take all of ours away, and tables and chains that came with it. Raises FirewallError."""
        for family in self._families:
            layout = self._layouts.pop(family.command, None)
            for candidate in [layout] if layout else self._candidates:
                with contextlib.suppress(FirewallError):  # no such table: nothing of ours in it
                    saved = self._save(family, candidate.table)
                    if text := _removing(candidate, saved):
                        self._restore(family, text)
            self._placed.pop(family.command, None)
        if self._leftovers:
            self._leftovers.tidy(lambda command, table: run([f"{command}-nft-save", "-t", table]))
            self._leftovers = None

    def close(self) -> None:
        """Listen no more."""
        if self._changes:
            self._changes.close()
            self._changes = None

    # -- questions -------------------------------------------------------------------------------------

    def damage(self) -> str:
        """What is wrong with the rules. With nft it costs nothing unless somebody changed something; with
        legacy 1.3 ms for two commands.
        """
        if self._changes is None:
            return self._look("")
        changes = self._changes.take()
        if changes == []:
            return self._last
        self._last = self._look("" if changes is None else ", ".join(sorted({each.who for each in changes})))
        return self._last

    def _look(self, who: str) -> str:
        for family in self._families:
            wrong = self._wrong(family)
            if wrong:
                return f"{family.command}: {wrong}{f', changed by {who}' if who else ''}"
        return ""

    def _wrong(self, family: Family) -> str:
        layout, placed = self._layouts.get(family.command), self._placed.get(family.command)
        if layout is None or placed is None:
            return "our rules are not there"
        try:
            shape = _shape(layout, self._save(family, layout.table))
        except FirewallError as error:
            return str(error)
        if shape == placed:
            return ""
        return _misplaced(layout, shape) or "our rules were changed"

    def counters(self) -> Dropped:
        """What they dropped."""
        packets = size = 0
        for family in self._families:
            layout = self._layouts.get(family.command)
            if layout:
                for found in _COUNTED.finditer(self._save(family, layout.table, "-c")):
                    packets += int(found[1])
                    size += int(found[2])
        return Dropped(packets, size)

    # -- commands --------------------------------------------------------------------------------------

    def _save(self, family: Family, table: str, *more: str) -> str:
        return run([f"{family.command}-{self.variant}-save", "-t", table, *more])

    def _restore(self, family: Family, rules: str) -> None:
        run([f"{family.command}-{self.variant}-restore", "--noflush", "-w", "2"], rules)

    def _ours(self, family: Family, layout: Layout) -> list[str]:
        rules = []
        if not self._cut_answers:
            rules.append(f"-A {IN} -m conntrack --ctstate RELATED,ESTABLISHED --ctdir REPLY -j RETURN")
        rules += (f"-A {IN} -m set --match-set {name} src -j DROP" for name in family.sets)
        fresh = "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW"
        if any(chain == OUT for _, chain in layout.jumps):
            rules += (f"-A {OUT} {fresh} -m set --match-set {name} dst -j DROP" for name in family.sets)
        return rules

    def _forget_changes(self) -> None:
        """What was changed until now is looked at next; our own change is told later and finds all well."""
        if self._changes:
            self._changes.take()


def run(argv: Sequence[str], text: str = "") -> str:
    """The output of a short command; FirewallError with what it said when it fails or hangs."""
    try:
        done = subprocess.run(
            list(argv), input=text, capture_output=True, text=True, errors="replace", check=False,
            timeout=COMMAND_S, env=ENVIRONMENT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise FirewallError(f"{argv[0]} did not end within {COMMAND_S:g} s") from None
    except OSError as error:
        raise FirewallError(f"cannot run {argv[0]}: {error.strerror}") from None
    if done.returncode:
        said = " ".join(done.stderr.split())[:300] or f"exit {done.returncode}"
        raise FirewallError(f"{argv[0]}: {said}")
    return done.stdout


def variant_in_use() -> str:
    """``nft`` or ``legacy``: what ``iptables -V`` says, unless only the other has rules. FirewallError."""
    said = run(["iptables", "-V"])
    if "nf_tables" not in said:
        return "legacy"
    names = Path("/proc/thread-self/net/ip_tables_names")
    if names.exists() and names.read_text().split() and _installed("legacy"):
        with contextlib.suppress(FirewallError):
            if "-A " in run(["iptables-legacy-save"]) and "-A " not in run(["iptables-nft-save"]):
                return "legacy"
    return "nft"


def _installed(variant: str) -> bool:
    return bool(shutil.which(f"iptables-{variant}-save", path=ENVIRONMENT["PATH"]))


# -- reading and writing what iptables-save and -restore speak -------------------------------------------


def _rules(saved: str) -> list[list[str]]:
    return [line.split(" ") for line in saved.splitlines() if line.startswith("-A ")]


def _chain_names(saved: str) -> set[str]:
    return {line[1:].split(" ", 1)[0] for line in saved.splitlines() if line.startswith(":")}


def _jumps(layout: Layout, saved: str) -> list[tuple[str, str]]:
    """Those of the layout that apply: DOCKER-USER may not exist."""
    present = _chain_names(saved) | {"PREROUTING", "POSTROUTING", "INPUT", "FORWARD", "OUTPUT"}
    return [jump for jump in layout.jumps if jump[0] in present]


def _placing(layout: Layout, saved: str, ours: Sequence[str]) -> str:
    """What puts our chains and jumps in place, out of any state that they may be in."""
    lines = [f"*{layout.table}", f":{IN} - [0:0]", f":{OUT} - [0:0]"]
    jumps = _jumps(layout, saved)
    lines += [f"-D {chain} -j {target}" for chain, target in _present(saved)]
    lines += [f"-I {chain} 1 -j {target}" for chain, target in reversed(jumps)]
    return "\n".join([*lines, *ours, "COMMIT", ""])


def _removing(layout: Layout, saved: str) -> str:
    """What takes them away; empty when nothing is there."""
    chains = [name for name in (IN, OUT) if name in _chain_names(saved)]
    if not chains:
        return ""
    lines = [f"*{layout.table}", *(f":{name} - [0:0]" for name in chains)]
    # Somebody may have made jumps of his own to our chains: as they are printed they can be deleted.
    lines += [
        " ".join(["-D", *rule[1:]])
        for rule in _rules(saved)
        if rule[1] not in (IN, OUT) and rule[-2:] in (["-j", IN], ["-j", OUT])
    ]
    return "\n".join([*lines, *(f"-X {name}" for name in chains), "COMMIT", ""])


def _present(saved: str) -> list[tuple[str, str]]:
    """Our plain jumps, wherever they are."""
    return [
        (rule[1], rule[3])
        for rule in _rules(saved)
        if len(rule) == 4 and rule[2] == "-j" and rule[3] in (IN, OUT)
    ]


def _shape(layout: Layout, saved: str) -> list[str]:
    """All that must stay as it is: our chains' rules, and how each chain that jumps to us begins."""
    rules = _rules(saved)
    shape = [" ".join(rule) for rule in rules if rule[1] in (IN, OUT)]
    jumps = _jumps(layout, saved)
    for chain in dict.fromkeys(chain for chain, _ in jumps):
        count = sum(name == chain for name, _ in jumps)
        begins = [" ".join(rule[2:]) for rule in rules if rule[1] == chain][:count]
        shape.append(f"{chain}: {'; '.join(begins)}")
    return shape


def _misplaced(layout: Layout, shape: Sequence[str]) -> str:
    """Which jump is not the first of its chain."""
    begins = dict(line.split(": ", 1) for line in shape if not line.startswith("-A "))
    for chain, begin in begins.items():
        wanted = "; ".join(f"-j {target}" for name, target in layout.jumps if name == chain)
        if begin != wanted:
            return f"{layout.table} {chain} does not begin with our rule"
    return ""


def _wanting(shape: Sequence[str], ours: Sequence[str]) -> str:
    count = sum(line.startswith("-A ") for line in shape)
    return "" if count == len(ours) else f"{count} of our {len(ours)} rules are there"
