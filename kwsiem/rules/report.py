"""Collects what is wrong in a rule file, each with its place, its key path and a suggestion."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from kwsiem.errors import Problem
from kwsiem.rules.duration import parse_duration
from kwsiem.yamltree import MAX_PROBLEMS, Mapping, Node, Place, Scalar, Sequence, kind_of

MAX_MESSAGE: Final = 1000


def nearest(word: str, known: Iterable[str]) -> str:
    """``, did you mean 'X'?`` for the known word that is closest, or an empty text."""
    close = difflib.get_close_matches(word[:128], list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


@dataclass(slots=True)
class Report:
    """The problems of one file; ``where`` names the rule that is being read. Bounded to 200."""

    file: str
    where: str = ""
    problems: list[Problem] = field(default_factory=list)

    @property
    def full(self) -> bool:
        """Whether nobody will read on: looking for what is nearest to a word is not worth it any more."""
        return len(self.problems) >= MAX_PROBLEMS

    def add(self, place: Place, path: str, message: str) -> None:
        """Note a problem at a place; ``path`` is the key path below the rule (``correlation.timespan``)."""
        if not self.full:
            text = f"{path}: {message}" if path else message
            text = text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "…"  # it may quote the file
            self.problems.append(Problem(self.file, place.line, place.column, self.where, text))

    def check_keys(
        self, mapping: Mapping, path: str, known: Iterable[str], required: Iterable[str] = ()
    ) -> None:
        """Every key must be known, and the required ones must be there."""
        for name, key in mapping.keys.items():
            if name not in known and not self.full:
                self.add(key, path, f"unknown key {name!r}{nearest(name, known)}")
        for name in required:
            if name not in mapping.items:
                self.add(mapping, path, f"key {name!r} is missing")

    def text(self, mapping: Mapping, name: str, path: str, *, limit: int = 4096, default: str = "") -> str:
        """The text under a key, or the default when it is absent or wrong."""
        node = mapping.items.get(name)
        if node is None:
            return default
        value = node.value if isinstance(node, Scalar) else None
        if not isinstance(value, str) or not value.strip():
            self.add(mapping.keys[name], path, f"expected text, got {kind_of(node)}")
            return default
        if len(value) > limit:
            self.add(mapping.keys[name], path, f"at most {limit} characters, got {len(value)}")
        return value.strip()[:limit]

    def integer(self, mapping: Mapping, name: str, path: str, low: int, high: int, default: int) -> int:
        """The whole number under a key, within its bounds."""
        node = mapping.items.get(name)
        if node is None:
            return default
        value = node.value if isinstance(node, Scalar) else None
        if type(value) is not int or not low <= value <= high:
            message = f"expected a whole number from {low} to {high}, got {kind_of(node)}"
            self.add(mapping.keys[name], path, message)
            return default
        return value

    def duration(self, mapping: Mapping, name: str, path: str, default: int) -> int:
        """The duration under a key in nanoseconds."""
        node = mapping.items.get(name)
        if node is None:
            return default
        try:
            return parse_duration(node.value if isinstance(node, Scalar) else kind_of(node))
        except ValueError as error:
            self.add(mapping.keys[name], path, str(error))
            return default

    def texts(self, mapping: Mapping, name: str, path: str) -> list[Scalar]:
        """The texts under a key that holds one text or a list of them; repeated ones are a problem."""
        node = mapping.items.get(name)
        if node is None:
            return []
        items: list[Node] = node.items if isinstance(node, Sequence) else [node]
        found: dict[str, Scalar] = {}
        for item in items:
            if not isinstance(item, Scalar) or not isinstance(item.value, str) or not item.value:
                place = item if isinstance(node, Sequence) else mapping.keys[name]
                self.add(place, path, f"expected text or a list of texts, got {kind_of(item)}")
            elif item.value in found:
                self.add(item, path, f"{item.value!r} stands twice")
            else:
                found[item.value] = item
        return list(found.values())

    def mapping(self, node: Node | None, place: Place, path: str) -> Mapping | None:
        """The node when it is a mapping; else a problem is noted."""
        if isinstance(node, Mapping):
            return node
        if node is not None:
            self.add(place, path, f"expected a mapping of keys, got {kind_of(node)}")
        return None

    def choice(self, value: Any, known: Iterable[str], place: Place, path: str, what: str) -> bool:
        """Whether a value is one of the known words; else a problem that names the nearest is noted."""
        if isinstance(value, str) and value in known:
            return True
        hint = nearest(value, known) if isinstance(value, str) and not self.full else ""
        self.add(place, path, f"unknown {what} {value!r}{hint or ', expected one of ' + ', '.join(known)}")
        return False
