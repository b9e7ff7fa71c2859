"""What a receiver has got, alert by alert."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_NUMBER = re.compile(rb"alert number (\d+) of the matrix")


class Tally:
    """Counts, for each number, how often it came; ``raised`` maps numbers to ids and grows meanwhile.

    A line counts when an alert's number and that alert's id stand in it (of the id the last ``shown``
    characters, where people read it); ``forged`` are lines where they do not go together, or with a number
    that was never raised.
    """

    def __init__(self, raised: Mapping[int, str], path: Path | None = None, shown: int = 26) -> None:
        self._raised = raised
        self._shown = shown
        self._path = path
        self._offset = 0
        self._rest = b""
        self.counts: dict[int, int] = {}
        self.forged: list[bytes] = []

    def follow(self, path: Path) -> None:
        """The file has been moved to ``path``: read it to its end, then the new one from its beginning."""
        named, self._path = self._path, path
        self.read()
        self._path, self._offset, self._rest = named, 0, b""

    def take(self, line: bytes) -> None:
        """One record of the receiver; it may hold several alerts."""
        for digits in set(_NUMBER.findall(line)):
            number = int(digits)
            if self._raised.get(number, "?")[-self._shown :].encode() in line:
                self.counts[number] = self.counts.get(number, 0) + 1
            else:
                self.forged.append(line)

    def read(self) -> int:
        """Take what the receiver has written since; gives how many different alerts it has."""
        if self._path and self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
            self._offset += len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self.take(line)
        return len(self.counts)

    @property
    def received(self) -> int:
        """Records in all, repeats among them."""
        return sum(self.counts.values())

    @property
    def duplicates(self) -> int:
        """Records that had come before, under the same id."""
        return self.received - len(self.counts)

    @property
    def lost(self) -> list[int]:
        """Numbers that were raised and never came."""
        return [number for number in self._raised if number not in self.counts]
