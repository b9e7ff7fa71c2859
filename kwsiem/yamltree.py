"""YAML text as a tree that knows where everything stands; refuses what settings and rules have no use for.

The tree is built from the parser's events, so depth, size, aliases and duplicate keys are bounded before
anything is built. Plain scalars are read as YAML 1.2 reads them: ``no`` and ``on`` are text, not booleans,
and ``10:20`` is text, not a number in base 60.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Sequence as PathSequence
from dataclasses import dataclass, field
from typing import Any, Final, Union

import yaml

from kwsiem.errors import Problem

MAX_BYTES: Final = 16 * 1024 * 1024
MAX_DEPTH: Final = 24
MAX_NODES: Final = 500_000
MAX_PROBLEMS: Final = 200
#: So much of a value is quoted in a message.
_MAX_SHOWN: Final = 200
#: Documents of one file that may have several.
MAX_DOCUMENTS: Final = 10_000

_INTEGER: Final = re.compile(r"[-+]?(0|[1-9][0-9]{0,19})", re.ASCII)
_HEX: Final = re.compile(r"0x[0-9a-fA-F]{1,16}", re.ASCII)
_FLOAT: Final = re.compile(r"[-+]?(0|[1-9][0-9]{0,19})?\.[0-9]{1,20}", re.ASCII)
_WORDS: Final = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS_BOOL: Final = {
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}


@dataclass(slots=True)
class Scalar:
    """One value: text, integer, float, boolean or nothing. Line and column are 1-based."""

    value: Any
    line: int
    column: int

    def plain(self) -> Any:
        """The value."""
        return self.value


@dataclass(slots=True)
class Sequence:
    """A list of nodes."""

    line: int
    column: int
    items: list[Node] = field(default_factory=list)

    def plain(self) -> list[Any]:
        """The list as plain data."""
        return [item.plain() for item in self.items]


@dataclass(slots=True)
class Mapping:
    """Nodes by name; ``keys`` has the place of each name."""

    line: int
    column: int
    items: dict[str, Node] = field(default_factory=dict)
    keys: dict[str, Scalar] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """The mapping as plain data."""
        return {name: node.plain() for name, node in self.items.items()}


Node = Union[Scalar, Sequence, Mapping]
Place = Union[Scalar, Sequence, Mapping]


def kind_of(node: Node) -> str:
    """What a node is, for messages: ``a mapping``, ``a list``, or the value itself."""
    if isinstance(node, Mapping):
        return "a mapping"
    if isinstance(node, Sequence):
        return "a list"
    long = isinstance(node.value, str) and len(node.value) > _MAX_SHOWN
    return f"{node.value[:_MAX_SHOWN]!r}…" if long else repr(node.value)


def place_of(root: Node, path: PathSequence[str | int]) -> Place:
    """The node that stands at a path, for a mapping's entry its key; its nearest parent when it is absent."""
    place: Place = root
    node: Node = root
    for part in path:
        if isinstance(node, Mapping) and isinstance(part, str) and part in node.items:
            place, node = node.keys[part], node.items[part]
        elif isinstance(node, Sequence) and isinstance(part, int) and part < len(node.items):
            place = node = node.items[part]
        else:
            break
    return place


class _Stop(Exception):  # noqa: N818 - not an error: reading ends here, with a problem already noted
    pass


def read_document(name: str, data: bytes) -> tuple[Node | None, list[Problem]]:
    """The single document of a file, and the problems of its form (then the node may be None).

    Bounds: 16 MiB, 24 levels, 500,000 nodes; no anchors, aliases, tags, merge keys or second document.
    """
    roots, problems = _read(name, data, 1)
    return (roots[0] if roots else None), problems


def read_documents(name: str, data: bytes) -> tuple[list[Node], list[Problem]]:
    """All documents of a file (``---`` stands between two) but empty ones, and the problems of its form.

    The bounds are those of :func:`read_document`, for all documents of the file together.
    """
    return _read(name, data, MAX_DOCUMENTS)


def _read(name: str, data: bytes, documents: int) -> tuple[list[Node], list[Problem]]:
    if len(data) > MAX_BYTES:
        return [], [Problem(name, 0, 0, "", f"file has {len(data)} bytes, at most {MAX_BYTES} are read")]
    reader = _Reader(name, documents)
    try:
        return reader.read(yaml.parse(data, Loader=yaml.CSafeLoader)), reader.problems
    except _Stop:
        return [], reader.problems
    except yaml.YAMLError as error:
        return [], [*reader.problems, _syntax_problem(name, data, error)]


def _syntax_problem(name: str, data: bytes, error: yaml.YAMLError) -> Problem:
    """A parser's complaint with its place; tabs get a sentence of their own."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return Problem(name, 0, 0, "", f"not readable as YAML: {str(error).splitlines()[0]}")
    line, column = mark.line + 1, mark.column + 1
    lines = data.split(b"\n")
    text = lines[mark.line] if mark.line < len(lines) else b""
    if b"\t" in text[: mark.column + 1]:
        column = text.index(b"\t") + 1
        return Problem(name, line, column, "", "a tab cannot indent YAML, use spaces")
    said = " ".join(str(part) for part in (error.context, error.problem) if part)  # type: ignore[attr-defined]
    return Problem(name, line, column, "", f"not valid YAML: {said}")


@dataclass(slots=True)
class _Open:
    """A list or mapping that is being read, and the key that waits for its value."""

    node: Sequence | Mapping
    key: Scalar | None = None


class _Reader:
    """Builds the tree from parser events, iteratively."""

    def __init__(self, name: str, documents: int) -> None:
        self.name = name
        self.problems: list[Problem] = []
        self._documents = documents
        self._nodes = 0

    def _refuse(self, event: Any, message: str) -> None:
        mark = event.start_mark
        self.problems.append(Problem(self.name, mark.line + 1, mark.column + 1, "", message))
        if len(self.problems) >= MAX_PROBLEMS:
            raise _Stop

    def read(self, events: Iterator[Any]) -> list[Node]:
        """The root nodes. Raises _Stop after a problem that makes going on pointless."""
        roots: list[Node] = []
        root: Node | None = None
        stack: list[_Open] = []
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > self._documents:
                    self._refuse(event, self._too_many())
                    raise _Stop
                root = None
            elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
                done = stack.pop()
                root = self._place(stack, done.node, root)
            elif isinstance(event, yaml.NodeEvent):
                root = self._node(event, stack, root)
            elif isinstance(event, yaml.DocumentEndEvent) and root is not None:
                empty = isinstance(root, Scalar) and root.value is None
                if self._documents == 1 or not empty:
                    roots.append(root)
        if not roots:
            self.problems.append(Problem(self.name, 1, 1, "", "the file is empty"))
        return roots

    def _too_many(self) -> str:
        if self._documents == 1:
            return "one document a file, remove the line '---'"
        return f"more than {self._documents} documents"

    def _node(self, event: Any, stack: list[_Open], root: Node | None) -> Node | None:
        """Take the start of a node (or a scalar) at the top of the stack."""
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._refuse(event, f"more than {MAX_NODES} values")
            raise _Stop
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            self._refuse(event, "anchors and aliases (& and *) are not allowed here")
            raise _Stop
        if event.tag not in (None, "!"):
            self._refuse(event, f"tags are not allowed here, got {event.tag[:_MAX_SHOWN]!r}")
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event.value) if event.implicit[0] else event.value
            return self._place(stack, Scalar(value, line, column), root)
        if len(stack) >= MAX_DEPTH:
            self._refuse(event, f"nested deeper than {MAX_DEPTH} levels")
            raise _Stop
        if stack and isinstance(stack[-1].node, Mapping) and stack[-1].key is None:
            self._refuse(event, "the name of a key is text, not a list or mapping")
            raise _Stop
        made = Sequence(line, column) if isinstance(event, yaml.SequenceStartEvent) else Mapping(line, column)
        stack.append(_Open(made))
        return root

    def _place(self, stack: list[_Open], node: Node, root: Node | None) -> Node | None:
        """Put a finished node into its parent; in a mapping every other node is the key of the next."""
        if not stack:
            return node
        parent = stack[-1].node
        if isinstance(parent, Sequence):
            parent.items.append(node)
            return root
        key = stack[-1].key
        if key is None:
            assert isinstance(node, Scalar)
            name = node.value if isinstance(node.value, str) else _key_text(node.value)
            stack[-1].key = Scalar(name, node.line, node.column)
            return root
        stack[-1].key = None
        if key.value in parent.items:
            first = parent.keys[key.value]
            message = f"key {key.value[:_MAX_SHOWN]!r} stands twice, first in line {first.line}"
            self.problems.append(Problem(self.name, key.line, key.column, "", message))
            if len(self.problems) >= MAX_PROBLEMS:
                raise _Stop
        parent.items[key.value] = node
        parent.keys[key.value] = key
        return root


def _key_text(value: Any) -> str:
    """A key that looks like a number, a boolean or nothing, as the text it was."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _scalar(text: str) -> Any:
    """The value of a plain scalar (YAML 1.2 core schema without octal numbers, infinities and exponents)."""
    if text in _WORDS:
        return None
    if text in _WORDS_BOOL:
        return _WORDS_BOOL[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _HEX.fullmatch(text):
        return int(text, 16)
    return float(text) if _FLOAT.fullmatch(text) else text
