"""Rule files become a :class:`~kwsiem.rules.model.RuleSet`, or the list of all that is wrong in them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping as MappingType
from collections.abc import Sequence as SequenceType
from typing import Any, Final

from kwsiem.alert import LEVELS
from kwsiem.errors import Problem, RuleFileError
from kwsiem.event import EventKind
from kwsiem.rules.correlation import read_correlation, read_sequence
from kwsiem.rules.detection import Detection
from kwsiem.rules.model import MAX_RULES, Correlation, Expr, Rule, RuleSet, fingerprint
from kwsiem.rules.report import Report
from kwsiem.rules.source import Source
from kwsiem.rules.testing import read_tests, run_tests
from kwsiem.yamltree import Mapping, Node, Scalar, Sequence, kind_of, read_document

FILE_VERSION: Final = 1
FILE_KEYS: Final = ("version", "lists", "rules")
RULE_KEYS: Final = (
    "id", "title", "description", "status", "author", "references", "level", "tags", "event", "detection",
    "correlation", "sequence", "suppress", "block", "falsepositives", "tests",
)  # fmt: skip
#: Quiet time that ends an incident when a rule says nothing; longer for a longer timespan.
DEFAULT_SUPPRESS_NS: Final = 60 * 10**9
MAX_LIST_VALUES: Final = 10_000
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_TAG: Final = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_.-]+)?", re.ASCII)


def load_rules(sources: SequenceType[Source], kinds: MappingType[str, EventKind]) -> RuleSet:
    """The rules of these files against these event kinds, their own tests passed.

    Raises RuleFileError with every problem of every file.
    """
    problems: list[Problem] = []
    rules: list[Rule] = []
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.data)
        loader = _FileLoader(source, kinds)
        rules += loader.load({rule.id for rule in rules})
        problems += loader.report.problems
    if problems:
        raise RuleFileError(problems)
    return RuleSet(sha256=digest.hexdigest(), files=tuple(s.name for s in sources), rules=tuple(rules))


class _FileLoader:
    """Reads one file; what is wrong goes into ``report``."""

    def __init__(self, source: Source, kinds: MappingType[str, EventKind]) -> None:
        self.report = Report(source.name)
        self._source = source
        self._kinds = kinds
        self._lists: dict[str, list[Any]] = {}

    def load(self, taken: set[str]) -> list[Rule]:
        """The rules of the file; ``taken`` are the ids of files before it."""
        root, problems = read_document(self._source.name, self._source.data)
        self.report.problems += problems
        if root is None:
            return []
        if not isinstance(root, Mapping):
            self.report.add(root, "", f"expected the keys {', '.join(FILE_KEYS)}, got {kind_of(root)}")
            return []
        self.report.check_keys(root, "", FILE_KEYS, ("version", "rules"))
        self.report.integer(root, "version", "version", FILE_VERSION, FILE_VERSION, FILE_VERSION)
        self._read_lists(root)
        node = root.items.get("rules")
        if not isinstance(node, Sequence):
            if node is not None:
                self.report.add(root.keys["rules"], "rules", f"expected a list of rules, got {kind_of(node)}")
            return []
        if len(node.items) > MAX_RULES:
            self.report.add(node, "rules", f"at most {MAX_RULES} rules, got {len(node.items)}")
            return []
        return self._read_rules(node, taken)

    def _read_lists(self, root: Mapping) -> None:
        block = self.report.mapping(root.items.get("lists"), root.keys.get("lists", root), "lists")
        for name, node in block.items.items() if block else ():
            assert block is not None
            if not isinstance(node, Sequence) or len(node.items) > MAX_LIST_VALUES:
                message = f"expected a list of at most {MAX_LIST_VALUES} values, got {kind_of(node)}"
                self.report.add(block.keys[name], f"lists.{name}", message)
                self._lists[name] = []
                continue
            for item in node.items:
                if not isinstance(item, Scalar):
                    self.report.add(item, f"lists.{name}", f"expected a value, got {kind_of(item)}")
            self._lists[name] = [item.value for item in node.items if isinstance(item, Scalar)]

    def _read_rules(self, node: Sequence, taken: set[str]) -> list[Rule]:
        rules = []
        seen = dict.fromkeys(taken, 0)
        for index, item in enumerate(node.items):
            self.report.where = f"rules.{index}"
            if not isinstance(item, Mapping):
                self.report.add(item, "", f"expected a rule, got {kind_of(item)}")
                continue
            rule = self._read_rule(item)
            rule_id = self._id_of(item)
            if rule_id in seen:
                first = f", first in line {seen[rule_id]}" if seen[rule_id] else ""
                self.report.add(item.keys["id"], "id", f"{rule_id!r} stands twice{first}")
            elif rule_id:
                seen[rule_id] = item.keys["id"].line
            if rule:
                rules.append(rule)
        self.report.where = ""
        return rules

    @staticmethod
    def _id_of(item: Mapping) -> str:
        node = item.items.get("id")
        return node.value if isinstance(node, Scalar) and isinstance(node.value, str) else ""

    def _read_rule(self, item: Mapping) -> Rule | None:
        """One rule with its tests run, or None after a problem."""
        report = self.report
        before = len(report.problems)
        rule_id = report.text(item, "id", "id", limit=128)
        if rule_id:
            report.where = f"rule {rule_id}"
        if rule_id and not _ID.fullmatch(rule_id):
            report.add(item.keys["id"], "id", f"letters, digits, '.', '_' and '-' only, got {rule_id!r}")
        report.check_keys(item, "", RULE_KEYS, ("id", "title", "level", "event", "detection"))
        if "block" in item.items:
            report.add(item.keys["block"], "block", "this version cannot block yet, remove the key")
        kinds = self._event_kinds(item)
        predicate, correlation = self._matching(item, kinds) if kinds else (None, None)
        tags = [tag.value for tag in report.texts(item, "tags", "tags")]
        for tag in tags:
            if not _TAG.fullmatch(tag):
                report.add(item.keys["tags"], "tags", f"expected a tag such as attack.t1046, got {tag!r}")
        level = self._level(item)
        timespan_ns = correlation.timespan_ns if correlation else 0
        suppress_ns = report.duration(
            item, "suppress", "suppress", max(timespan_ns, DEFAULT_SUPPRESS_NS if timespan_ns else 0)
        )
        title = report.text(item, "title", "title", limit=256)
        description = report.text(item, "description", "description")
        falsepositives = tuple(text.value for text in report.texts(item, "falsepositives", "falsepositives"))
        if len(report.problems) > before or predicate is None or correlation is None:
            return None
        events = tuple(kind.name for kind in kinds)
        rule = Rule(
            id=rule_id,
            title=title,
            level=level,  # type: ignore[arg-type]
            events=events,
            predicate=predicate,
            correlation=correlation,
            suppress_ns=suppress_ns,
            fingerprint=fingerprint(rule_id, events, predicate, correlation),
            description=description,
            tags=tuple(tags),
            falsepositives=falsepositives,
        )
        run_tests(report, rule, read_tests(report, item, self._kinds))
        return rule

    def _event_kinds(self, item: Mapping) -> list[EventKind]:
        return [
            self._kinds[name.value]
            for name in self.report.texts(item, "event", "event")
            if self.report.choice(name.value, self._kinds, name, "event", "event kind")
        ]

    def _matching(self, item: Mapping, kinds: list[EventKind]) -> tuple[Expr | None, Correlation | None]:
        """The predicate and the correlation of a rule."""
        block = self._block(item, "detection")
        if block is None:
            return None, None
        detection = Detection(self.report, block, kinds, self._lists)
        predicate = detection.condition()
        if "correlation" in item.items and "sequence" in item.items:
            message = "a rule has a correlation or a sequence, not both"
            self.report.add(item.keys["sequence"], "sequence", message)
            return predicate, None
        if "sequence" in item.items:
            sequence = self._block(item, "sequence")
            found = read_sequence(self.report, sequence, kinds, detection) if sequence else None
            return predicate, found
        if "correlation" in item.items:
            correlation = self._block(item, "correlation")
            return predicate, read_correlation(self.report, correlation, kinds) if correlation else None
        return predicate, Correlation()

    def _block(self, item: Mapping, name: str) -> Mapping | None:
        node: Node | None = item.items.get(name)
        return self.report.mapping(node, item.keys.get(name, item), name)

    def _level(self, item: Mapping) -> str:
        node = item.items.get("level")
        if node is None:
            return ""
        value = node.value if isinstance(node, Scalar) else None
        self.report.choice(value, LEVELS, item.keys["level"], "level", "level")
        return str(value)
