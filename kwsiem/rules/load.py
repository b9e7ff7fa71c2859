"""Rule files become a :class:`~kwsiem.rules.model.RuleSet`, or the list of all that is wrong in them.

First every file is read to drafts, ours here and Sigma's in :mod:`kwsiem.rules.sigma`; then the names in them
are resolved (:mod:`kwsiem.rules.resolve`), since a rule may name one of a later file; then the rules' own
tests run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping as MappingType
from collections.abc import Sequence as SequenceType
from typing import Any, Final

from kwsiem.alert import LEVELS
from kwsiem.errors import Problem, RuleFileError
from kwsiem.event import EventKind
from kwsiem.rules.compile import Draft
from kwsiem.rules.correlation import BLOCKS, DEFAULT_SUPPRESS_NS, Spec, read_block
from kwsiem.rules.cover import cover
from kwsiem.rules.detection import Detection
from kwsiem.rules.model import MAX_RULES, Block, RuleSet
from kwsiem.rules.report import Report
from kwsiem.rules.resolve import resolve
from kwsiem.rules.sigma import read_sigma
from kwsiem.rules.source import Source
from kwsiem.rules.testing import Judge, read_tests, run_tests
from kwsiem.yamltree import Mapping, Node, Scalar, Sequence, kind_of, read_documents

FILE_VERSION: Final = 1
FILE_KEYS: Final = ("version", "lists", "rules")
RULE_KEYS: Final = (
    "id", "name", "title", "description", "status", "author", "references", "level", "tags", "event",
    "detection", "correlation", "sequence", "absent", "sequential_test",
    "suppress", "covered-by", "block", "falsepositives", "tests",
)  # fmt: skip
BLOCK_KEYS: Final = ("field", "for", "spoofable")
MAX_LIST_VALUES: Final = 10_000
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_TAG: Final = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_.-]+)?", re.ASCII)
#: Keys that only a Sigma document has; ``version`` alone may be a custom field there.
_SIGMA_KEYS: Final = frozenset({"title", "detection", "correlation", "logsource", "filter", "action"})

Lists = MappingType[str, SequenceType[Any]]


def load_rules(
    sources: SequenceType[Source], kinds: MappingType[str, EventKind], judge: Judge = run_tests
) -> RuleSet:
    """The rules of these files against these event kinds, their own tests passed.

    ``judge`` runs the tests of each rule; unlike the usual one it may let a rule pass whose tests fail.
    Raises RuleFileError with every problem of every file.
    """
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.data)
    files = [_File(source) for source in sources]
    lists = {name: values for file in reversed(files) for name, values in file.lists.items()}
    drafts = [draft for file in files for draft in file.drafts(kinds, lists)]
    _check_ids(drafts)
    rules = cover(drafts, resolve(drafts))
    for draft in drafts:
        if draft.rule and draft.item:
            draft.report.where = draft.where
            judge(draft.report, draft.rule, read_tests(draft.report, draft.item, kinds))
    problems = [problem for file in files for problem in file.sorted_problems()]
    problems = problems or _lost(drafts)
    if len(rules) > MAX_RULES:
        problems.append(Problem(sources[-1].name, 0, 0, "", f"at most {MAX_RULES} rules, got {len(rules)}"))
    if problems:
        raise RuleFileError(problems)
    return RuleSet(
        sha256=digest.hexdigest(),
        files=tuple(source.name for source in sources),
        rules=tuple(rules),
        skipped=tuple(draft.skipped for draft in drafts if draft.skipped),
    )


def _lost(drafts: SequenceType[Draft]) -> list[Problem]:
    """Rules that were not made though nothing is wrong with them: never to be left out in silence."""
    message = "the rule cannot be made (please report this)"
    lost = [draft for draft in drafts if draft.rule is None and draft.skipped is None]
    return [Problem(d.report.file, d.place.line, d.place.column, d.where, message) for d in lost]


def _check_ids(drafts: SequenceType[Draft]) -> None:
    """Each id stands once in all files."""
    seen: dict[str, Draft] = {}
    for draft in drafts:
        first = seen.setdefault(draft.id, draft)
        if not draft.id or first is draft:
            continue
        same = first.report is draft.report
        where = f"line {first.place.line}" if same else f"{first.report.file}:{first.place.line}"
        draft.refuse(draft.place, "id", f"{draft.id!r} stands twice, first in {where}")


class _File:
    """One file: a rule file of ours, or Sigma documents. What is wrong goes into ``report``."""

    def __init__(self, source: Source) -> None:
        self.report = Report(source.name)
        self.lists: dict[str, list[Any]] = {}
        self._documents, problems = read_documents(source.name, source.data)
        self.report.problems += problems
        self._root = next(filter(None, map(_ours, self._documents)), None)
        if self._root is not None:
            self._read_lists(self._root)

    def sorted_problems(self) -> list[Problem]:
        """The problems in the order of the file."""
        return sorted(self.report.problems, key=lambda problem: (problem.line, problem.column))

    def drafts(self, kinds: MappingType[str, EventKind], lists: Lists) -> list[Draft]:
        """The rules of the file; the file's own lists go before those of others."""
        lists = {**lists, **self.lists}
        if self._root is None:
            return read_sigma(self.report, self._documents, kinds, lists)
        if len(self._documents) > 1:
            self.report.add(self._documents[1], "", "one document a file, remove the line '---'")
            return []
        return self._own_rules(self._root, kinds, lists)

    def _own_rules(self, root: Mapping, kinds: MappingType[str, EventKind], lists: Lists) -> list[Draft]:
        self.report.check_keys(root, "", FILE_KEYS, ("version", "rules"))
        self.report.integer(root, "version", "version", FILE_VERSION, FILE_VERSION, FILE_VERSION)
        node = root.items.get("rules")
        if not isinstance(node, Sequence):
            if node is not None:
                self.report.add(root.keys["rules"], "rules", f"expected a list of rules, got {kind_of(node)}")
            return []
        if len(node.items) > MAX_RULES:
            self.report.add(node, "rules", f"at most {MAX_RULES} rules, got {len(node.items)}")
            return []
        drafts = []
        for index, item in enumerate(node.items):
            self.report.where = f"rules.{index}"
            if isinstance(item, Mapping):
                drafts.append(_RuleReader(self.report, item, kinds, lists).draft())
            else:
                self.report.add(item, "", f"expected a rule, got {kind_of(item)}")
        self.report.where = ""
        return drafts

    def _read_lists(self, root: Mapping) -> None:
        block = self.report.mapping(root.items.get("lists"), root.keys.get("lists", root), "lists")
        for name, node in block.items.items() if block else ():
            assert block is not None
            if not isinstance(node, Sequence) or len(node.items) > MAX_LIST_VALUES:
                message = f"expected a list of at most {MAX_LIST_VALUES} values, got {kind_of(node)}"
                self.report.add(block.keys[name], f"lists.{name}", message)
                self.lists[name] = []
                continue
            for item in node.items:
                if not isinstance(item, Scalar):
                    self.report.add(item, f"lists.{name}", f"expected a value, got {kind_of(item)}")
            self.lists[name] = [item.value for item in node.items if isinstance(item, Scalar)]


def _ours(root: Node) -> Mapping | None:
    """A document that is a rule file of ours; None for one of Sigma's."""
    if not isinstance(root, Mapping):
        return None
    names = root.items.keys()
    ours = "rules" in names or (bool({"version", "lists"} & names) and not _SIGMA_KEYS & names)
    return root if ours else None


class _RuleReader:
    """Reads one entry of ``rules``."""

    def __init__(
        self, report: Report, item: Mapping, kinds: MappingType[str, EventKind], lists: Lists
    ) -> None:
        self._report = report
        self._item = item
        self._kinds = kinds
        self._lists = lists

    def draft(self) -> Draft:
        """The draft of the rule; after a problem it is broken."""
        report, item = self._report, self._item
        before = len(report.problems)
        rule_id = report.text(item, "id", "id", limit=128)
        if rule_id:
            report.where = f"rule {rule_id}"
        if rule_id and not _ID.fullmatch(rule_id):
            report.add(item.keys["id"], "id", f"letters, digits, '.', '_' and '-' only, got {rule_id!r}")
        report.check_keys(item, "", RULE_KEYS, self._required())
        draft = Draft(report, report.where, item.keys.get("id", item), rule_id, item=item)
        draft.name = report.text(item, "name", "name", limit=128)
        draft.title = report.text(item, "title", "title", limit=256)
        draft.description = report.text(item, "description", "description")
        draft.level = self._level()
        draft.tags = self._tags()
        texts = report.texts(item, "falsepositives", "falsepositives")
        draft.falsepositives = tuple(text.value for text in texts)
        draft.block = self._block()
        draft.covered_by = report.texts(item, "covered-by", "covered-by")
        self._read_matching(draft)
        draft.suppress_ns = report.duration(item, "suppress", "suppress", _default_suppress_ns(draft.spec))
        draft.broken = len(report.problems) > before
        return draft

    def _required(self) -> list[str]:
        """What a rule must have; one that names other rules has no need of a detection."""
        items = self._item.items
        correlation = items.get("correlation")
        by_name = "absent" in items or "sequential_test" in items
        names = by_name or (isinstance(correlation, Mapping) and "rules" in correlation.items)
        has_none = "event" not in items and "detection" not in items
        return ["id", "title", "level"] + ([] if names and has_none else ["event", "detection"])

    def _read_matching(self, draft: Draft) -> None:
        """What the rule looks at, and what has to come together."""
        report, item = self._report, self._item
        names = report.texts(item, "event", "event")
        if isinstance(node := item.items.get("event"), Sequence) and not node.items:
            report.add(item.keys["event"], "event", "expected at least one event kind")
        for name in names:
            if report.choice(name.value, self._kinds, name, "event", "event kind"):
                draft.kinds += (self._kinds[name.value],)
        block = report.mapping(item.items.get("detection"), item.keys.get("detection", item), "detection")
        if block is not None and draft.kinds:
            draft.detection = Detection(report, block, draft.kinds, self._lists)
            draft.predicate = draft.detection.condition()
        draft.spec = read_block(report, item)
        if draft.spec is None and any(name in item.items for name in BLOCKS):
            draft.predicate = None

    def _block(self) -> Block | None:
        """What the rule asks the guard to block."""
        report, item = self._report, self._item
        block = report.mapping(item.items.get("block"), item.keys.get("block", item), "block")
        if block is None:
            return None
        report.check_keys(block, "block", BLOCK_KEYS, ("field", "for"))
        field = report.text(block, "field", "block.field", limit=128)
        for_ns = report.duration(block, "for", "block.for", 1)
        if for_ns <= 0:
            report.add(block.keys["for"], "block.for", "must be > 0: every block ends, and begins")
        spoofable = report.text(block, "spoofable", "block.spoofable")
        if spoofable:
            report.choice(spoofable, ("allow",), block.keys["spoofable"], "block.spoofable", "word")
        return Block(field, for_ns, bool(spoofable)) if field and for_ns > 0 else None

    def _tags(self) -> tuple[str, ...]:
        tags = [tag.value for tag in self._report.texts(self._item, "tags", "tags")]
        for tag in tags:
            if not _TAG.fullmatch(tag):
                message = f"expected a tag such as attack.t1046, got {tag!r}"
                self._report.add(self._item.keys["tags"], "tags", message)
        return tuple(tags)

    def _level(self) -> str:
        node = self._item.items.get("level")
        if node is None:
            return ""
        value = node.value if isinstance(node, Scalar) else None
        self._report.choice(value, LEVELS, self._item.keys["level"], "level", "level")
        return str(value)


def _default_suppress_ns(spec: Spec | None) -> int:
    """The quiet time of a rule that says nothing: each match of a single event is an alert of its own."""
    return max(spec.timespan_ns, DEFAULT_SUPPRESS_NS) if spec else 0
