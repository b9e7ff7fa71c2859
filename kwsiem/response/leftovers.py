"""The tables and basic chains that iptables-nft makes for a first rule, and that nothing takes away again."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping

from kwsiem.response.firewall import FirewallError
from kwsiem.response.nfnetlink import DEL_CHAIN, DEL_TABLE, NEW_CHAIN, Part, Tables, text


class Leftovers:
    """What was there before us; ``commands`` is the command of each family (number in nf_tables)."""

    def __init__(self, commands: Mapping[int, str], ours: str) -> None:
        self._commands = dict(commands)
        self._ours = ours
        self._before = self._chains()

    def tidy(self, save: Callable[[str, str], str]) -> None:
        """Delete what was not there before and is empty; ``save`` prints a table as iptables-save does."""
        for family, tables in self._chains().items():
            for table, chains in tables.items():
                before = self._before[family].get(table, set())
                if self._ours in before:  # a run before this one made it, so it may go
                    before = set()
                self._tidy(family, table, chains - before, save(self._commands[family], table), not before)

    def _tidy(self, family: int, table: str, new: set[str], saved: str, table_is_new: bool) -> None:
        empty = {name for name in new if not _in_use(name, saved)}
        parts = [Part(DEL_CHAIN, family, text(1, table) + text(3, name)) for name in sorted(empty)]
        if table_is_new and empty == new and "\n-A " not in saved:
            parts.append(Part(DEL_TABLE, family, text(1, table)))
        with _netlink() as tables:
            tables.commit(parts)

    def _chains(self) -> dict[int, dict[str, set[str]]]:
        """By family and table the chains, of the two tables that we use."""
        with _netlink() as tables:
            return {
                family: {
                    name: tables.parts(NEW_CHAIN, family, name)
                    for name in tables.names(family) & {"mangle", "filter"}
                }
                for family in self._commands
            }


@contextlib.contextmanager
def _netlink() -> Iterator[Tables]:
    try:
        with contextlib.closing(Tables()) as tables:
            yield tables
    except OSError as error:
        raise FirewallError(f"nf_tables: {error.strerror}") from None


def _in_use(chain: str, saved: str) -> bool:
    """Whether a chain has rules or does anything but accept."""
    name = re.escape(chain)
    return bool(re.search(rf"^(?:-A {name} |:{name} (?!ACCEPT))", saved, re.MULTILINE))
