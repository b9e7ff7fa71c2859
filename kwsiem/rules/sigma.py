"""Plain Sigma documents: rules and correlations as others write them, read for this host.

Two tables say what they mean here: :data:`LOGSOURCES` which event kinds a log source stands for, and
:data:`FIELDS` which of our fields a field name stands for. ``docs/sigma-fields.md`` is what :func:`render`
makes of them.

A document that is wrong is a problem like any other. One that is right and cannot be evaluated here (another
system's log, a field that no kernel event has) is skipped, with its place and the reason.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator
from collections.abc import Mapping as MappingType
from collections.abc import Sequence as SequenceType
from dataclasses import dataclass
from typing import Any, Final

import re2
from sigma.modifiers import modifier_mapping

from kwsiem.alert import LEVELS
from kwsiem.event import EventKind
from kwsiem.rules.compile import Draft, both
from kwsiem.rules.correlation import DEFAULT_SUPPRESS_NS, UnfitError, named_in, read_block
from kwsiem.rules.detection import Detection
from kwsiem.rules.model import Expr, Text
from kwsiem.rules.report import Report, nearest
from kwsiem.rules.values import MODIFIERS, TIME_PARTS, TIMESTAMP, common_field, family
from kwsiem.yamltree import Mapping, Node, Place, Scalar, Sequence, kind_of

# The tables -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Logsource:
    """A log source of Sigma, and the event kinds that stand for it here.

    ``only`` are fields that must have a value besides; of a log whose ``words`` are not to be had, rules that
    look for words in its lines cannot be evaluated.
    """

    category: str
    service: str
    kinds: tuple[str, ...]
    note: str = ""
    only: tuple[tuple[str, str], ...] = ()
    words: bool = True


@dataclass(frozen=True)
class SigmaField:
    """A field name of Sigma, and our fields in its stead: the first that the event kind has.

    ``fixed`` is what the field is for a kind in which it cannot be anything else.
    """

    sigma: str
    ours: tuple[str, ...]
    fixed: tuple[tuple[str, str], ...] = ()


_PAM: Final = ("auth.attempt",)

#: The first row that fits counts. A product other than linux (or none) never fits.
LOGSOURCES: Final = (
    Logsource("process_creation", "", ("process.exec",)),
    Logsource("process_termination", "", ("process.exit",)),
    Logsource("network_connection", "", ("tcp.connect",), "connections that this host opens"),
    Logsource("file_event", "", ("file.change",), "on the watched paths"),
    Logsource("file_access", "", ("file.open",), "of the watched paths"),
    Logsource("dns_query", "", ("dns.query",)),
    Logsource("dns", "", ("dns.query",)),
    Logsource("network", "dns", ("dns.query",)),
    Logsource(
        "network", "connection", ("tcp.open", "tcp.connect"), "those that have all the fields of the rule"
    ),
    Logsource("webserver", "", ("http.request",), "plain HTTP"),
    Logsource(
        "", "sshd", _PAM, "sign-ins through PAM, not lines of a log", (("service.name", "sshd"),), False
    ),
    Logsource(
        "", "sudo", _PAM, "sign-ins through PAM, not lines of a log", (("service.name", "sudo"),), False
    ),
    Logsource("", "auth", _PAM, "sign-ins through PAM, not lines of a log", (), False),
)

FIELDS: Final[MappingType[str, SigmaField]] = {
    row.sigma: row
    for row in (
        SigmaField("Image", ("process.executable",)),
        SigmaField("ProcessName", ("process.name",)),
        SigmaField("CommandLine", ("process.command_line",)),
        SigmaField("CurrentDirectory", ("process.working_directory",)),
        SigmaField("ProcessId", ("process.pid",)),
        SigmaField("User", ("user.name", "process.user.name")),
        SigmaField("UserId", ("user.id", "process.user.id")),
        SigmaField("ParentImage", ("process.parent.executable",)),
        SigmaField("ParentCommandLine", ("process.parent.command_line",)),
        SigmaField("ParentProcessId", ("process.parent.pid",)),
        SigmaField("ParentUser", ("process.parent.user.name",)),
        SigmaField("Initiated", (), (("tcp.connect", "true"), ("tcp.open", "false"))),
        SigmaField(
            "Protocol",
            ("network.transport",),
            (("tcp.connect", "tcp"), ("tcp.open", "tcp")),
        ),
        SigmaField("SourceIp", ("source.ip",)),
        SigmaField("SourcePort", ("source.port",)),
        SigmaField("SourceHostname", ("source.domain",)),
        SigmaField("DestinationIp", ("destination.ip",)),
        SigmaField("DestinationPort", ("destination.port",)),
        SigmaField("DestinationHostname", ("destination.domain",)),
        SigmaField("src_ip", ("source.ip",)),
        SigmaField("src_port", ("source.port",)),
        SigmaField("dst_ip", ("destination.ip",)),
        SigmaField("dst_port", ("destination.port",)),
        SigmaField("TargetFilename", ("file.path",)),
        SigmaField("QueryName", ("dns.question.name",)),
        SigmaField("query", ("dns.question.name",)),
        SigmaField("record_type", ("dns.question.type",)),
        SigmaField("c-ip", ("source.ip",)),
        SigmaField("c-uri", ("url.original",)),
        SigmaField("c-useragent", ("user_agent.original",)),
        SigmaField("cs-host", ("url.domain",)),
        SigmaField("cs-method", ("http.request.method",)),
        SigmaField("cs-referer", ("http.request.referrer",)),
        SigmaField("cs-uri-query", ("url.query",)),
        SigmaField("cs-uri-stem", ("url.path",)),
        SigmaField("cs-user-agent", ("user_agent.original",)),
        SigmaField("cs-username", ("user.name",)),
    )
}
#: Names of the host: all events are of this one, so a group is never told apart by them.
HOST_FIELDS: Final = ("Computer", "ComputerName", "Hostname", "host.name", "host.hostname")


def render() -> str:
    """``docs/sigma-fields.md``."""
    lines = [
        "# Sigma's log sources and fields",
        "",
        "Made from the tables in `kwsiem/rules/sigma.py` (a test keeps it so). Skipped are rules whose log",
        "source or field is not here, or whose event kind no probe emits: `kwsiem check` says which and why.",
        "",
        "## Log sources",
        "",
        "`product` is `linux` or left out. The first row that fits counts. `product: kwsiem, category: KIND`",
        "is the event kind of that name.",
        "",
        "| category | service | event kinds | |",
        "|---|---|---|---|",
    ]
    for row in LOGSOURCES:
        only = [f"{name} is {value}" for name, value in row.only]
        cells = (
            row.category,
            row.service,
            _listed(row.kinds),
            "; ".join([*only, row.note] if row.note else only),
        )
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "## Fields",
        "",
        "The first of our fields that the event kind has. Our own names may be used as they are.",
        "",
        "| Sigma | ours | always |",
        "|---|---|---|",
    ]
    for field in FIELDS.values():
        fixed = ", ".join(f"{value} in `{kind}`" for kind, value in field.fixed)
        lines.append(f"| `{field.sigma}` | {_listed(field.ours)} | {fixed} |")
    lines += [
        "",
        f"In `group-by` {_listed(HOST_FIELDS)} are left out: all events are of this host.",
        "",
    ]
    return "\n".join(line.rstrip() for line in lines)


def _listed(names: SequenceType[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def candidates(name: str) -> tuple[str, ...]:
    """Our fields that a field name of a Sigma document may mean, in the order in which they are tried."""
    row = FIELDS.get(name)
    return (*row.ours, name) if row else (name,)


# Documents --------------------------------------------------------------------------------------------

Lists = MappingType[str, SequenceType[Any]]
_SIGMA_1: Final = "counting in a rule is Sigma 1, write a correlation"
_RETIRED: Final = frozenset({"deprecated", "unsupported"})
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_TAG: Final = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_.-]+)?", re.ASCII)
_UNFIT_SIGN: Final = re.compile(r"[^A-Za-z0-9_-]", re.ASCII)
_NUMBER: Final = re.compile(r"-?[0-9]{1,20}", re.ASCII)


def read_sigma(
    report: Report, documents: SequenceType[Node], kinds: MappingType[str, EventKind], lists: Lists
) -> list[Draft]:
    """The rules and correlations of a file; those that are not for here are marked as skipped."""
    mappings = [document for document in documents if isinstance(document, Mapping)]
    for document in documents:
        if not isinstance(document, Mapping):
            message = f"expected the keys version, lists, rules, or a Sigma rule, got {kind_of(document)}"
            report.add(document, "", message)
    collection = any("action" in document.items for document in mappings)
    drafts = []
    for document in mappings:
        reader = _DocumentReader(report, document, kinds, lists)
        drafts.append(reader.part_of_collection() if collection else reader.draft())
    report.where = ""
    return drafts


class _DocumentReader:
    """Reads one document. Keys that Sigma does not know are allowed: people add their own."""

    def __init__(
        self, report: Report, item: Mapping, kinds: MappingType[str, EventKind], lists: Lists
    ) -> None:
        self._report = report
        self._item = item
        self._kinds = kinds
        self._lists = lists
        report.where = ""

    def part_of_collection(self) -> Draft:
        """A document of a file with ``action``: its parts complete each other, as in Sigma 1."""
        item = self._item
        draft = Draft(self._report, "", item.keys.get("title", item), title=self._text("title"), sigma=True)
        draft.skip(item.keys.get("action", item), "action: collections are Sigma 1, write whole documents")
        return draft

    def draft(self) -> Draft:
        """The draft of the document, skipped when it is not for here, broken after a problem."""
        report, item = self._report, self._item
        before = len(report.problems)
        title = report.text(item, "title", "title", limit=256)
        if "title" not in item.items:
            report.add(item, "", "key 'title' is missing")
        rule_id = self._id(title)
        report.where = f"rule {rule_id}" if rule_id else ""
        place = item.keys.get("id") or item.keys.get("title") or item
        draft = Draft(report, report.where, place, rule_id, title, sigma=True, candidates=candidates)
        draft.name = self._text("name")[:128]
        draft.description = self._text("description")[:4096]
        draft.level = self._level()
        draft.tags = tuple(tag for tag in map(str.lower, self._texts("tags")) if _TAG.fullmatch(tag))
        draft.falsepositives = tuple(text[:4096] for text in self._texts("falsepositives"))
        try:
            self._read(draft)
        except UnfitError as error:
            draft.skip(error.place, str(error))
        draft.broken = len(report.problems) > before
        return draft

    def _read(self, draft: Draft) -> None:
        items = self._item.items
        if "correlation" in items:
            if "detection" in items:
                message = "a document has a detection or a correlation, not both"
                self._report.add(self._item.keys["correlation"], "correlation", message)
                return
            self._read_correlation(draft)
        elif "filter" in items and "detection" not in items:
            raise UnfitError(self._item.keys["filter"], "filter: filters of other rules are not supported")
        else:
            self._read_detection(draft)

    def _read_correlation(self, draft: Draft) -> None:
        draft.spec = named_in(self._item)
        self._generate(draft)
        self._check_status()
        spec = draft.spec = read_block(self._report, self._item, sigma=True)
        if spec is None:
            return
        self._generate(draft)
        spec.group_by = [name for name in spec.group_by if name.value not in HOST_FIELDS]
        draft.suppress_ns = max(spec.timespan_ns, DEFAULT_SUPPRESS_NS)

    def _generate(self, draft: Draft) -> None:
        """``generate`` may stand beside the correlation too."""
        node = self._item.items.get("generate")
        if draft.spec and isinstance(node, Scalar) and node.value is True:
            draft.spec.generate = True

    def _read_detection(self, draft: Draft) -> None:
        report, item = self._report, self._item
        for name in ("logsource", "detection"):
            if name not in item.items:
                report.add(item, "", f"key {name!r} is missing")
        logsource = report.mapping(item.items.get("logsource"), item.keys.get("logsource", item), "logsource")
        block = report.mapping(item.items.get("detection"), item.keys.get("detection", item), "detection")
        if block is not None and "condition" not in block.items:
            report.add(block, "detection", "key 'condition' is missing")
            return
        if block is None or logsource is None:
            return
        self._check_status()
        row, kinds = self._logsource(logsource)
        reader = _DetectionReader(report, block, row, kinds)
        rewritten = reader.rewritten()
        if rewritten is None:
            return
        draft.kinds = reader.kinds
        draft.predicate = self._predicate(rewritten, draft.kinds)
        for name, value in row.only:
            if draft.predicate is not None:
                draft.predicate = both(Text(name, "equals", (value,)), draft.predicate)

    def _predicate(self, block: Mapping, kinds: tuple[EventKind, ...]) -> Expr | None:
        """The predicate of a detection in our own words.

        What is wrong with its form is a problem; a value or modifier that does not go with our field is not
        the rule's fault.
        """
        scratch = Report(self._report.file, self._report.where)
        predicate = Detection(scratch, block, kinds, self._lists).condition()
        wrong = [p for p in scratch.problems if p.message.startswith(("detection.condition:", "detection:"))]
        for problem in wrong:
            self._report.add(Scalar(None, problem.line, problem.column), "", problem.message)
        if scratch.problems and not wrong:
            first = scratch.problems[0]
            raise UnfitError(Scalar(None, first.line, first.column), first.message)
        return predicate

    def _check_status(self) -> None:
        status = self._text("status")
        if status in _RETIRED:
            raise UnfitError(self._item.keys["status"], f"status: the rule is {status}")

    def _logsource(self, block: Mapping) -> tuple[Logsource, list[EventKind]]:
        """The row of the table, and its event kinds that are there."""
        source = {}
        for name in ("product", "category", "service"):
            node = block.items.get(name)
            value = node.value if isinstance(node, Scalar) else None
            source[name] = value.lower() if isinstance(value, str) else ""
        place = self._item.keys["logsource"]
        said = ", ".join(f"{name}: {value}" for name, value in source.items() if value) or "nothing"
        if source["product"] == "kwsiem":
            row: Logsource | None = Logsource(source["category"], "", (source["category"],))
        elif source["product"] not in ("", "linux"):
            raise UnfitError(place, f"logsource: {said} is not of this host")
        else:
            row = next((row for row in LOGSOURCES if _fits(row, source)), None)
        if row is None:
            raise UnfitError(place, f"logsource: no event kind stands for {said}")
        kinds = [self._kinds[name] for name in row.kinds if name in self._kinds]
        if not kinds:
            raise UnfitError(place, f"logsource: no probe emits {' or '.join(row.kinds)}")
        return row, kinds

    # -- keys

    def _id(self, title: str) -> str:
        """The id, or else the name, or else the title, fit to be an id."""
        node = self._item.items.get("id")
        value = node.value if isinstance(node, Scalar) else None
        if node is not None and (not isinstance(value, str) or not _ID.fullmatch(value)):
            message = f"letters, digits, '.', '_' and '-' only, got {kind_of(node)}"
            self._report.add(self._item.keys["id"], "id", message)
            return ""
        name = self._text("name")
        return value or (name if _ID.fullmatch(name) else "") or _slug(name or title)

    def _text(self, name: str) -> str:
        node = self._item.items.get(name)
        return node.value.strip() if isinstance(node, Scalar) and isinstance(node.value, str) else ""

    def _texts(self, name: str) -> list[str]:
        node = self._item.items.get(name)
        nodes = node.items if isinstance(node, Sequence) else [node]
        texts = [item.value for item in nodes if isinstance(item, Scalar) and isinstance(item.value, str)]
        return list(dict.fromkeys(texts))

    def _level(self) -> str:
        node = self._item.items.get("level")
        value = node.value if isinstance(node, Scalar) else None
        if node is None or (isinstance(node, Scalar) and value is None):
            return "medium"
        self._report.choice(value, LEVELS, self._item.keys["level"], "level", "level")
        return str(value)


def _fits(row: Logsource, source: MappingType[str, str]) -> bool:
    """Whether a log source is one of the row; it may say more than the row."""
    return row.category in ("", source["category"]) and row.service in ("", source["service"])


def _slug(title: str) -> str:
    """A title as an id: ``Many failed logins`` is ``many-failed-logins``."""
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:128].strip("-")
    if slug or not title:
        return slug
    return "sigma-" + hashlib.blake2b(title.encode(), digest_size=8).hexdigest()


# Detections -------------------------------------------------------------------------------------------


class _DetectionReader:
    """Rewrites a ``detection`` block with our fields in place of Sigma's, every line at its own place."""

    def __init__(self, report: Report, block: Mapping, row: Logsource, kinds: list[EventKind]) -> None:
        self._report = report
        self._block = block
        self._row = row
        self.kinds = tuple(kinds)

    def rewritten(self) -> Mapping | None:
        """The block for :class:`Detection`, or None after a problem. Raises UnfitError."""
        before = len(self._report.problems)
        selections = {name: node for name, node in self._block.items.items() if name != "condition"}
        if "timeframe" in selections:
            raise UnfitError(self._block.keys["timeframe"], f"detection.timeframe: {_SIGMA_1}")
        for name, node in selections.items():
            self._check_form(name, node, self._block.keys[name])
        condition = self._condition()
        if len(self._report.problems) > before:
            return None
        self._choose_kinds(selections)
        made = Mapping(self._block.line, self._block.column, {"condition": condition}, dict(self._block.keys))
        for name, node in selections.items():
            # A name such as filter_main_a.conf: a condition can only mean it with a pattern.
            fit = _UNFIT_SIGN.sub("-", name)
            if fit in made.items:
                raise UnfitError(self._block.keys[name], f"detection.{name}: there is another {fit}")
            made.items[fit] = self._selection(node)
            made.keys[fit] = self._block.keys[name]
        return made

    def _condition(self) -> Scalar:
        """The condition; of a list of them any may hold."""
        node, place = self._block.items["condition"], self._block.keys["condition"]
        nodes = node.items if isinstance(node, Sequence) else [node]
        texts = []
        for item in nodes:
            value = item.value if isinstance(item, Scalar) else None
            if not isinstance(value, str) or not value.strip():
                self._report.add(place, "detection.condition", f"expected text, got {kind_of(item)}")
                continue
            if "|" in value:
                raise UnfitError(place, f"detection.condition: {_SIGMA_1}")
            texts.append(value)
        if not nodes:
            self._report.add(place, "detection.condition", "the list is empty")
        joined = texts[0] if len(texts) == 1 else " or ".join(f"({text})" for text in texts)
        return Scalar(joined, place.line, place.column)

    # -- form: what is wrong wherever the rule is read

    def _check_form(self, name: str, node: Node, place: Place) -> None:
        path = f"detection.{name}"
        if name.startswith("_"):
            raise UnfitError(place, f"{path}: names that begin with _ are not supported")
        if isinstance(node, Mapping):
            if not node.items:
                self._report.add(place, path, "the selection is empty")
            for key, value in node.items.items():
                self._check_line(key, value, node.keys[key], path)
        elif isinstance(node, Sequence) and any(isinstance(item, Mapping) for item in node.items):
            for item in node.items:
                if isinstance(item, Mapping):
                    self._check_form(name, item, item)
                else:
                    message = f"a list holds mappings or keywords, not both, got {kind_of(item)}"
                    self._report.add(item, path, message)
        else:
            self._check_values(node, place, path)

    def _check_line(self, key: str, node: Node, place: Place, path: str) -> None:
        path = f"{path}.{key}"
        modifiers = key.split("|")[1:]
        for modifier in modifiers:
            if modifier not in MODIFIERS and modifier not in modifier_mapping:
                hint = nearest(modifier, MODIFIERS | modifier_mapping.keys())
                self._report.add(place, path, f"unknown modifier {modifier!r}{hint}")
        self._check_values(node, place, path)
        for item in _scalars(node) if "re" in modifiers else ():
            problem = _pattern_problem(item.value)
            if problem:
                where = item if isinstance(node, Sequence) else place
                self._report.add(where, path, problem)

    def _check_values(self, node: Node, place: Place, path: str) -> None:
        nodes = node.items if isinstance(node, Sequence) else [node]
        if not nodes:
            self._report.add(place, path, "the list of values is empty")
        for item in nodes:
            if not isinstance(item, Scalar):
                where = item if isinstance(node, Sequence) else place
                self._report.add(where, path, f"expected a value, got {kind_of(item)}")

    # -- kinds

    def _choose_kinds(self, selections: MappingType[str, Node]) -> None:
        """Keep the event kinds that have all the fields. Raises UnfitError when there is none."""
        wanted: list[tuple[str, Place]] = [(name, self._block) for name, _ in self._row.only]
        for node in selections.values():
            wanted += _fields_of(node)
        for name, place in wanted:
            row = FIELDS.get(name)
            fixed = dict(row.fixed) if row else {}
            having = [kind for kind in self.kinds if kind.name in fixed or self._field(name, [kind])]
            if not having:
                said = " or ".join(kind.name for kind in self.kinds)
                raise UnfitError(place, f"detection: event kind {said} has no field for {name!r}")
            self.kinds = tuple(having)

    def _field(self, name: str, kinds: SequenceType[EventKind]) -> str:
        """Our field for a name in these kinds, or an empty text."""
        if name == TIMESTAMP:
            return name
        for ours in candidates(name):
            try:
                return common_field(ours, kinds).name
            except ValueError:
                continue
        return ""

    # -- lines

    def _selection(self, node: Node) -> Node:
        if isinstance(node, Mapping):
            made = Mapping(node.line, node.column)
            for key, value in node.items.items():
                name, values = self._line(key, value, node.keys[key])
                if name in made.items and values != made.items[name]:
                    message = f"detection: two fields of this selection are {name.partition('|')[0]} here"
                    raise UnfitError(node.keys[key], message)
                made.items[name] = values
                made.keys[name] = Scalar(name, node.keys[key].line, node.keys[key].column)
            return made
        if isinstance(node, Sequence) and any(isinstance(item, Mapping) for item in node.items):
            return Sequence(node.line, node.column, [self._selection(item) for item in node.items])
        return self._keywords(node, node)

    def _line(self, key: str, node: Node, place: Place) -> tuple[str, Node]:
        """One ``field|modifier: value`` line in our words."""
        name, *modifiers = key.split("|")
        if not name:
            return key, self._keywords(node, place)
        row = FIELDS.get(name)
        if row and any(kind.name in dict(row.fixed) for kind in self.kinds):
            return self._fixed_line(row, modifiers, node, place)
        ours = self._field(name, self.kinds)
        if not ours:
            said = " and ".join(kind.name for kind in self.kinds)
            raise UnfitError(place, f"detection: event kinds {said} have no common field for {name!r}")
        convert = self._convert(ours, modifiers)
        return "|".join([ours, *modifiers]), _mapped(node, convert)

    def _convert(self, ours: str, modifiers: SequenceType[str]) -> Any:
        """What makes a value one of our field: Sigma tells 443 from '443' less strictly than we do."""
        if "fieldref" in modifiers:
            return lambda value: (
                (self._field(value, self.kinds) or value) if isinstance(value, str) else value
            )
        if "exists" in modifiers:
            return _as_truth
        if ours == TIMESTAMP or TIME_PARTS.keys() & set(modifiers):
            return _as_number
        kind = family(common_field(ours, self.kinds).type)
        return {"number": _as_number, "truth": _as_truth, "text": _as_text}.get(kind, lambda value: value)

    def _fixed_line(
        self, row: SigmaField, modifiers: list[str], node: Node, place: Place
    ) -> tuple[str, Node]:
        """A line about what cannot be otherwise here: a test that always holds, or no rule for here."""
        fixed = {dict(row.fixed).get(kind.name) for kind in self.kinds}
        values = {str(item.value).lower() for item in _scalars(node)}
        always = next((field.name for field in self.kinds[0].fields if family(field.type) == "number"), "")
        if modifiers or len(fixed) != 1 or not fixed <= values or not always:
            said = ", ".join(f"{value} in {kind}" for kind, value in row.fixed)
            raise UnfitError(place, f"detection: {row.sigma} is always {said}")
        return f"{always}|exists", Scalar(True, place.line, place.column)

    def _keywords(self, node: Node, place: Place) -> Node:
        if not self._row.words:
            message = (
                "detection: words of a log's lines are looked for, and there are only the facts of each event"
            )
            raise UnfitError(place, message)
        return _mapped(node, _as_text)


def _fields_of(node: Node) -> Iterator[tuple[str, Place]]:
    """The field names of a selection, each with its place; those that values name too."""
    if isinstance(node, Sequence):
        for item in node.items:
            yield from _fields_of(item)
    elif isinstance(node, Mapping):
        for key, value in node.items.items():
            name, *modifiers = key.split("|")
            if name:
                yield name, node.keys[key]
            for item in _scalars(value) if "fieldref" in modifiers else ():
                if isinstance(item.value, str):
                    yield item.value, node.keys[key]


def _scalars(node: Node) -> list[Scalar]:
    nodes = node.items if isinstance(node, Sequence) else [node]
    return [item for item in nodes if isinstance(item, Scalar)]


def _mapped(node: Node, convert: Any) -> Node:
    """The same values, each converted."""
    if isinstance(node, Sequence):
        return Sequence(node.line, node.column, [_mapped(item, convert) for item in node.items])
    return Scalar(convert(node.value), node.line, node.column) if isinstance(node, Scalar) else node


def _as_number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _as_truth(value: Any) -> Any:
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


def _as_text(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, float)) else value


def _pattern_problem(value: Any) -> str:
    """Why a pattern is no regular expression in any syntax, or an empty text.

    One that only re2 refuses (it looks around, or back) is right, and cannot be evaluated here.
    """
    if not isinstance(value, str):
        return ""
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(value, options)
    except (re2.error, UnicodeEncodeError):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                re.compile(value)
        except (re.error, RecursionError, OverflowError) as error:
            return f"not a regular expression: {error}, got {value[:200]!r}"
    return ""
