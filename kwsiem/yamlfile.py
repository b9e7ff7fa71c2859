"""YAML that an operator edits: plain values together with the place of each, so that errors can point.

Only what such a file needs: mappings with text keys, lists, scalars. Aliases, tags and duplicate keys are
refused (an alias bomb needs aliases; a duplicate key hides a line from its author).
"""

from __future__ import annotations

import datetime
from typing import Any, Final

import yaml

from kwsiem.errors import Problem

MAX_BYTES: Final = 16 * 2**20
MAX_DEPTH: Final = 40

Path = tuple[str | int, ...]
Position = tuple[int, int]
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlFile:
    """A parsed document: its plain ``value``, and where each path of it stands.

    ``problems`` is empty or says why ``value`` must not be used. The place of a mapping's entry is that
    of its key; lines and columns count from 1.
    """

    def __init__(self, name: str, data: bytes, max_bytes: int = MAX_BYTES) -> None:
        self.name = name
        self.value: Any = None
        self.problems: list[Problem] = []
        self._positions: dict[Path, Position] = {}
        self._constructor = yaml.constructor.SafeConstructor()
        if len(data) > max_bytes:
            self._wrong((1, 1), "", f"file has {len(data)} bytes, at most {max_bytes} are read")
            return
        try:
            self._parse(data)
        except yaml.MarkedYAMLError as error:
            self._wrong(_place(error.problem_mark or error.context_mark), "", _yaml_message(error, data))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            self._wrong((1, 1), "", f"not YAML in UTF-8: {error}".replace("\n", " "))

    def position(self, path: Path) -> Position:
        """Line and column of a path; of its nearest parent when the path itself does not stand there."""
        while path and path not in self._positions:
            path = path[:-1]
        return self._positions.get(path, (1, 1))

    def problem(self, path: Path, where: str, message: str) -> Problem:
        """A problem at the place of a path."""
        line, column = self.position(path)
        return Problem(self.name, line, column, where, message)

    def _parse(self, data: bytes) -> None:
        text = data.decode("utf-8-sig")
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.AliasEvent):
                self._wrong(_place(event.start_mark), "", "aliases (*name) are not allowed here")
                return
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            self._wrong((1, 1), "", "the file is empty")
            return
        self.value = self._plain(node, ())

    def _plain(self, node: yaml.Node, path: Path) -> Any:
        self._positions.setdefault(path, _place(node.start_mark))
        if len(path) > MAX_DEPTH:
            self._wrong(self.position(path), "", f"nested deeper than {MAX_DEPTH} levels")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(child, (*path, index)) for index, child in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = _place(key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode):
                self._wrong(place, "", "a key must be plain text")
                continue
            key = str(key_node.value)
            child = (*path, key)
            if key in result:
                first, _ = self._positions[child]
                self._wrong(place, "", f"key {key!r} stands twice, first in line {first}")
                continue
            self._positions[child] = place
            result[key] = self._plain(value_node, child)
        return result

    def _scalar(self, node: yaml.Node, path: Path) -> Any:
        try:
            value = self._constructor.construct_object(node)
        except (yaml.YAMLError, ValueError):
            self._wrong(self.position(path), "", f"cannot read {node.value!r} as {node.tag}")
            return None
        if isinstance(value, (datetime.date, datetime.datetime, bytes)):
            return str(node.value)
        return value

    def _wrong(self, place: Position, where: str, message: str) -> None:
        self.problems.append(Problem(self.name, place[0], place[1], where, message))


def _place(mark: Any) -> Position:
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


def _yaml_message(error: yaml.MarkedYAMLError, data: bytes) -> str:
    message = " ".join(part for part in (error.context, error.problem) if part)
    mark = error.problem_mark or error.context_mark
    lines = data.split(b"\n")
    if mark and mark.line < len(lines) and lines[mark.line].lstrip(b" ").startswith(b"\t"):
        message += " (YAML is indented with spaces, never with tabs)"
    return message or "not valid YAML"
