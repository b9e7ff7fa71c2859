"""A Sigma ``detection`` block becomes a predicate.

pySigma parses the condition and links the selections; each line of a selection is made a test before that
(:mod:`kwsiem.rules.values`), because only here the place in the file and the type of the field are known.

======================================  ==========================================================
``field: value``                        equals; ``*`` and ``?`` are wildcards in text; ``null`` is empty
``contains startswith endswith``        part of a text; without regard to case unless ``cased``
``windash``                             ``-``, ``/`` and the Unicode dashes before an option stand for
                                        each other
``base64``                              the text as it looks encoded; before it ``wide`` (``utf16le``),
                                        ``utf16be``, or ``utf16`` with its byte order mark
``base64offset``                        the same within a longer encoded text, with ``contains`` after it
``re``                                  regular expression in re2's syntax, with regard to case; then
                                        ``i`` (``ignorecase``), ``m`` (``multiline``), ``s`` (``dotall``)
``cidr``                                address in a network
``gt gte lt lte``                       number compared; a part of the time too
``neq``                                 none of the values (with ``all``: not all of them)
``fieldref``                            the value names another field of the event, of the same family;
                                        a part of a text is never an empty one
``minute hour day week month year``     part of ``'@timestamp'`` (YAML wants the quotes), in UTC;
                                        ``week`` is ISO 8601's
``exists``                              true or false: known and not empty
``all``                                 all values instead of any
``expand``                              ``'%name%'`` stands for the values of a list of the file
======================================  ==========================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping as MappingType
from collections.abc import Sequence as SequenceType
from typing import Any, Final

from sigma.conditions import (
    ConditionAND,
    ConditionFieldEqualsValueExpression,
    ConditionNOT,
    ConditionOR,
    ConditionValueExpression,
    SigmaCondition,
)
from sigma.exceptions import SigmaError
from sigma.rule.detection import SigmaDetection, SigmaDetectionItem, SigmaDetections
from sigma.types import SigmaType

from kwsiem.event import EventKind
from kwsiem.rules.model import MAX_DEPTH, MAX_VALUES, And, Expr, Not, depth, size
from kwsiem.rules.report import Report, nearest
from kwsiem.rules.values import MODIFIERS, Line, common_field, family, merged
from kwsiem.yamltree import Mapping, Node, Place, Scalar, Sequence, kind_of

#: All but Detection are those of :mod:`kwsiem.rules.values`.
__all__ = ["MODIFIERS", "Detection", "common_field", "family"]

MAX_CONDITION: Final = 4096
MAX_PARENTHESES: Final = 16

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)
_RESERVED: Final = frozenset({"and", "or", "not", "of", "all", "any", "1", "them", "condition"})
_PLACEHOLDER: Final = re.compile(r"%([A-Za-z0-9_-]{1,64})%", re.ASCII)
_UNKNOWN_DETECTION: Final = re.compile(r"Detection '([^']*)' not defined")

Lists = MappingType[str, SequenceType[Any]]


class _Tested(SigmaType):  # type: ignore[misc]
    """Takes the finished test of one line through pySigma's condition."""

    def __init__(self, test: Expr) -> None:
        self.test = test


class Detection:
    """One ``detection`` block: its selections, parsed and translated."""

    def __init__(self, report: Report, block: Mapping, kinds: SequenceType[EventKind], lists: Lists) -> None:
        self._report = report
        self._block = block
        self._kinds = kinds
        self._lists = lists
        self._selections: dict[str, Any] = {}
        self._broken = False
        self._read()

    def _refuse(self, place: Place, path: str, message: str) -> None:
        self._broken = True
        self._report.add(place, f"detection.{path}" if path else "detection", message)

    @property
    def names(self) -> list[str]:
        """The names of the selections that could be read."""
        return list(self._selections)

    def condition(self) -> Expr | None:
        """The predicate of the block's condition, or None after a problem."""
        node = self._block.items.get("condition")
        if node is None:
            self._refuse(self._block, "", "key 'condition' is missing")
            return None
        place = self._block.keys["condition"]
        value = node.value if isinstance(node, Scalar) else None
        if not isinstance(value, str) or not value.strip():
            self._refuse(place, "condition", f"expected text, got {kind_of(node)}")
            return None
        if len(value) > MAX_CONDITION or value.count("(") > MAX_PARENTHESES:
            limits = f"{MAX_CONDITION} characters and {MAX_PARENTHESES} parentheses"
            self._refuse(place, "condition", f"longer than {limits}")
            return None
        return self._parse(value, place, "condition")

    def selection(self, name: str) -> Expr | None:
        """The predicate of one selection, or None when it could not be read."""
        if name not in self._selections or self._broken:
            return None
        return self._parse(name, self._block.keys[name], name)

    def _parse(self, condition: str, place: Place, path: str) -> Expr | None:
        if self._broken or not self._selections:
            return None
        detections = SigmaDetections(detections=dict(self._selections), condition=[condition])
        try:
            tree = SigmaCondition(condition, detections).parse()
            expr = translate(tree)
        except SigmaError as error:
            self._refuse(place, path, self._condition_message(str(error), condition))
            return None
        except RecursionError:
            self._refuse(place, path, "nested too deep")
            return None
        if depth(expr) > MAX_DEPTH or size(expr) > MAX_VALUES:
            self._refuse(place, path, f"deeper than {MAX_DEPTH} levels or more than {MAX_VALUES} values")
            return None
        return expr

    def _condition_message(self, message: str, condition: str) -> str:
        unknown = _UNKNOWN_DETECTION.search(message)
        if unknown:
            return f"no selection is called {unknown[1]!r}{nearest(unknown[1], self._selections)}"
        return f"{' '.join(message.split())[:300]}, got {condition[:200]!r}"

    # Selections ------------------------------------------------------------------------------------

    def _read(self) -> None:
        for name, node in self._block.items.items():
            if name == "condition":
                continue
            if not _NAME.fullmatch(name) or name in _RESERVED:
                self._refuse(self._block.keys[name], "", f"{name!r} cannot be the name of a selection")
                continue
            made = self._selection(node, self._block.keys[name], name)
            if made is not None:
                self._selections[name] = made
        if not self._selections and not self._broken:
            self._refuse(self._block, "", "there is no selection")

    def _selection(self, node: Node, place: Place, path: str) -> Any:
        """A SigmaDetection of a mapping, of a list of mappings (any of them), or of keywords."""
        if isinstance(node, Mapping):
            items = [self._item(key, value, node.keys[key], path) for key, value in node.items.items()]
            if not items:
                self._refuse(place, path, "the selection is empty")
            return SigmaDetection([item for item in items if item]) if all(items) and items else None
        if isinstance(node, Sequence) and any(isinstance(item, Mapping) for item in node.items):
            parts = [self._alternative(item, path) for item in node.items]
            return SigmaDetection([part for part in parts if part]) if all(parts) else None
        item = self._item("", node, place, path)
        return SigmaDetection([item]) if item else None

    def _alternative(self, node: Node, path: str) -> Any:
        if isinstance(node, Mapping):
            return self._selection(node, node, path)
        self._refuse(node, path, f"a list holds mappings or keywords, not both, got {kind_of(node)}")
        return None

    def _item(self, key: str, node: Node, place: Place, path: str) -> Any:
        """One ``field|modifier: value`` line as pySigma's item, or None after a problem."""
        name, *modifiers = key.split("|")
        path = f"{path}.{key}" if key else path
        try:
            line = Line(name, modifiers, self._kinds)
        except ValueError as error:
            self._refuse(place, path, str(error))
            return None
        values = self._values(node, place, path, "expand" in modifiers)
        if values is None:
            return None
        tests: list[Expr] = []
        for value, where in values:
            try:
                tests.append(line.test(value))
            except ValueError as error:
                self._refuse(where, path, str(error))
        if len(tests) < len(values):
            return None
        return SigmaDetectionItem(name or None, [], [_Tested(line.together(tests))])

    def _values(self, node: Node, place: Place, path: str, expand: bool) -> list[tuple[Any, Place]] | None:
        """The values with their places, lists put in for their placeholders; None after a problem."""
        nodes = node.items if isinstance(node, Sequence) else [node]
        if not nodes:
            self._refuse(place, path, "the list of values is empty")
            return None
        values: list[tuple[Any, Place]] = []
        for item in nodes:
            where = item if isinstance(node, Sequence) else place
            if not isinstance(item, Scalar):
                self._refuse(where, path, f"expected a value, got {kind_of(item)}")
                return None
            listed = self._expanded(item.value, where, path) if expand else [item.value]
            if listed is None:
                return None
            values.extend((value, where) for value in listed)
        return values

    def _expanded(self, value: Any, place: Place, path: str) -> SequenceType[Any] | None:
        form = _PLACEHOLDER.fullmatch(value) if isinstance(value, str) else None
        if form is None:
            self._refuse(place, path, f"'expand' needs the name of a list such as '%name%', got {value!r}")
            return None
        if form[1] not in self._lists:
            hint = nearest(form[1], self._lists)
            self._refuse(place, path, f"there is no list called {form[1]!r}{hint}")
            return None
        return self._lists[form[1]]


# pySigma's tree -> our tree -------------------------------------------------------------------------


def translate(node: Any) -> Expr:
    """Our predicate for a tree that pySigma parsed. Raises SigmaError for what this version lacks."""
    if isinstance(node, ConditionAND):
        return And(tuple(translate(item) for item in node.args))
    if isinstance(node, ConditionOR):
        return merged([translate(item) for item in node.args])
    if isinstance(node, ConditionNOT):
        return Not(translate(node.args[0]))
    if isinstance(node, (ConditionFieldEqualsValueExpression, ConditionValueExpression)):
        test: Expr = node.value.test
        return test
    raise SigmaError(f"{type(node).__name__} is not supported yet")
