"""Probe files and their contracts: the header comment of ``probes/NAME.bt``, read and held to.

::

    /*
     * net - TCP segments that arrive at this host.        name (as the file) and one sentence
     *
     * sees:      free text, going on on indented lines
     * blind:     what it cannot see
     * overhead:  what it costs
     * needs:     tracepoint net:netif_receive_skb              also: uprobe libpam:pam_authenticate, btf
     * argument:  netns                                         $1, $2 … in this order (see ARGUMENTS)
     * setting:   strlen 64                                     also: map_keys, buffer_pages
     * retracts:  auth.retracted auth.attempt                   a kind that takes events of another one back
     * event 1 tcp.syn source.ip:ip destination.port:port       number, kind, fields in the tuple's order
     *         indented lines below describe the kind
     */

The kind number stands first in every tuple and ``nsecs`` last; neither is named in the event line. Number 0
is the heartbeat of every probe.
"""

from __future__ import annotations

import hashlib
import keyword
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from kwsiem.errors import ProbeError, Problem
from kwsiem.event import (
    HEARTBEAT_KIND,
    HEARTBEAT_NUMBER,
    INTEGER_BOUNDS,
    OWN_KINDS,
    EventKind,
    parse_fields,
)

MAX_PROBE_BYTES: Final = 256 * 1024
#: ``netns``: inode of the sensor's network namespace. ``seed``: a number that nobody else knows, for hashes,
#: new each time the probe starts. ``pam_module`` and ``pam_function``: see :func:`pam_target`.
ARGUMENTS: Final = ("netns", "seed", "pam_module", "pam_function")
#: Settings with their bounds; bpftrace before 0.21 refuses strings above 200 bytes.
SETTINGS: Final[Mapping[str, tuple[int, int]]] = {
    "strlen": (16, 200),
    "map_keys": (1, 1_000_000),
    "buffer_pages": (1, 65536),
}
MAX_FIELDS: Final = 32
BTF: Final = Path("/sys/kernel/btf/vmlinux")

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_KIND: Final = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
_KEY: Final = re.compile(r"(sees|blind|overhead|needs|argument|setting|proven|retracts):\s*(.*)")
_EVENT: Final = re.compile(r"event\s+([0-9]{1,3})\s+(\S+)\s*(.*)")
#: Letters, digits, dots: the name becomes an attribute and part of generated code.
_FIELD: Final = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
_TRACEPOINT: Final = re.compile(r"[A-Za-z0-9_]+:[A-Za-z0-9_]+")
#: A kind, and the conditions under which its events prove their source.
_PROOF: Final = re.compile(r"(\S+)((?:\s+[a-z][a-z0-9_.]*=[0-9]{1,18})*)")
_UPROBE: Final = re.compile(r"[A-Za-z0-9_./+-]+:[A-Za-z0-9_@.]+")


@dataclass(slots=True)
class ProbeSpec:
    """What the header of one probe says; ``kinds`` by number, the heartbeat included."""

    name: str
    path: Path
    sha256: str
    summary: str = ""
    sees: str = ""
    blind: str = ""
    overhead: str = ""
    tracepoints: tuple[str, ...] = ()
    uprobes: tuple[str, ...] = ()
    needs_btf: bool = False
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    kinds: dict[int, EventKind] = field(default_factory=dict)


@dataclass(slots=True)
class Catalog:
    """The probes of some folders by name, and what is wrong with those that could not be read."""

    probes: dict[str, ProbeSpec]
    problems: list[Problem]

    def kinds(self) -> dict[str, EventKind]:
        """All kinds by name: ours, and those of the probes."""
        found = dict(OWN_KINDS)
        for spec in self.probes.values():
            for kind in spec.kinds.values():
                found.setdefault(kind.name, kind)
        return found


def read_catalog(folders: Sequence[Path]) -> Catalog:
    """Every ``*.bt`` of the folders; a later folder overrides an earlier one by file name.

    A file that cannot be read is a problem and hides no other; so is one that gives a known kind other
    fields.
    """
    paths = {path.stem: path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.bt"))}
    catalog = Catalog({}, [])
    known = dict(OWN_KINDS)
    for name, path in sorted(paths.items()):
        try:
            spec = read_probe(path)
            _agree(spec, known)
        except ProbeError as error:
            catalog.problems.append(_as_problem(path, error))
            continue
        known.update({kind.name: kind for kind in spec.kinds.values()})
        catalog.probes[name] = spec
    return catalog


def _as_problem(path: Path, error: ProbeError) -> Problem:
    """``PATH:LINE: message`` taken apart; the path is known, for it may hold colons itself."""
    line, _, message = str(error)[len(f"{path}:") :].partition(": ")
    return Problem(str(path), int(line), 1, "", message)


def _agree(spec: ProbeSpec, known: Mapping[str, EventKind]) -> None:
    for number, kind in spec.kinds.items():
        other = known.get(kind.name)
        if number != HEARTBEAT_NUMBER and other is not None and other.fields != kind.fields:
            fields = " ".join(f"{f.name}:{f.type}" for f in other.wire_fields)
            raise ProbeError(f"{spec.path}:1: kind {kind.name} is known with other fields: {fields}")


def read_probe(path: Path) -> ProbeSpec:
    """The contract in the header of one file; raises ProbeError that names file, line and what is wrong."""
    text = read_source(path)
    if not _NAME.fullmatch(path.stem):
        raise ProbeError(
            f"{path}:1: a probe's name is a small letter, then letters, digits, '_'; got {path.stem!r}"
        )
    begin, end = text.find("/*"), text.find("*/")
    if begin < 0 or end < begin or text[:begin].strip():
        raise ProbeError(f"{path}:1: expected a header comment /* … */ at the beginning of the file")
    spec = ProbeSpec(path.stem, path, hashlib.sha256(text.encode()).hexdigest())
    spec.kinds[HEARTBEAT_NUMBER] = EventKind(HEARTBEAT_KIND, ())
    reader = _HeaderReader(spec)
    first = text.count("\n", 0, begin) + 1
    for offset, line in enumerate(text[begin + 2 : end].split("\n")):
        reader.line(first + offset, line)
    reader.finish(first)
    return spec


def read_source(path: Path) -> str:
    """The text of a probe file; raises ProbeError when it is unreadable, too large or no UTF-8."""
    try:
        # Not blocking: a FIFO among the probes must not hang the sensor.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ProbeError(f"{path}:1: cannot be read: not a regular file")
            data = file.read(MAX_PROBE_BYTES + 1)
        if len(data) > MAX_PROBE_BYTES:
            raise ProbeError(f"{path}:1: larger than {MAX_PROBE_BYTES} bytes")
        return data.decode("utf-8")
    except OSError as error:
        raise ProbeError(f"{path}:1: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ProbeError(f"{path}:1: not UTF-8") from None


class _HeaderReader:
    """Takes the lines of a header comment one by one."""

    def __init__(self, spec: ProbeSpec) -> None:
        self._spec = spec
        self._key = ""
        self._number = -1
        self._texts: dict[str, str] = {"sees": "", "blind": "", "overhead": ""}
        self._indent = 0
        self._proofs: list[tuple[str, str]] = []
        self._retractions: list[tuple[str, str]] = []

    def line(self, number: int, raw: str) -> None:
        """One line; what it belongs to is known from the lines before."""
        content = re.sub(r"^\s*\*", "", raw).rstrip()
        text = content.strip()
        if not text:
            self._key = ""
            return
        indent = len(content) - len(content.lstrip())
        event = _EVENT.fullmatch(text)
        key = _KEY.fullmatch(text)
        if not self._spec.summary:
            self._summary(number, text)
        elif event:
            self._event(number, *event.groups())
        elif key:
            self._value(number, key[1], key[2])
        elif self._key and indent > self._indent:
            self._continue(text)
            return
        elif self._key or re.match(r"[a-z]+:", text):
            known = "sees, blind, overhead, needs, argument, setting, proven, retracts or event"
            raise ProbeError(f"{self._spec.path}:{number}: expected {known}, got {text!r}")
        self._indent = indent

    def _summary(self, number: int, text: str) -> None:
        name, dash, summary = text.partition(" - ")
        if not dash or name != self._spec.name or not summary:
            raise ProbeError(
                f"{self._spec.path}:{number}: expected '{self._spec.name} - One sentence.', got {text!r}"
            )
        self._spec.summary = summary

    def _event(self, number: int, digits: str, name: str, fields: str) -> None:
        where = f"{self._spec.path}:{number}"
        kind_number = int(digits)
        if kind_number in self._spec.kinds:
            raise ProbeError(f"{where}: event number {kind_number} stands twice (0 is the heartbeat)")
        if not _KIND.fullmatch(name):
            raise ProbeError(f"{where}: expected a kind such as tcp.syn, got {name!r}")
        if any(kind.name == name for kind in self._spec.kinds.values()):
            raise ProbeError(f"{where}: kind {name} stands twice")
        try:
            parsed = parse_fields(fields)
        except ValueError as error:
            raise ProbeError(f"{where}: event {name}: {error}") from None
        if unusable := _unusable_field([f.name for f in parsed if not f.derived_from]):
            raise ProbeError(f"{where}: event {name}: {unusable}")
        proof = OWN_KINDS[name].proof if name in OWN_KINDS else None
        self._spec.kinds[kind_number] = EventKind(name, parsed, proof=proof)
        self._key, self._number = "event", kind_number

    def _value(self, number: int, key: str, value: str) -> None:
        self._key = key
        where = f"{self._spec.path}:{number}"
        if key in self._texts:
            self._texts[key] = value
        elif key == "argument":
            if value not in ARGUMENTS:
                raise ProbeError(f"{where}: unknown argument {value!r}, known: {', '.join(ARGUMENTS)}")
            self._spec.arguments += (value,)
        elif key == "setting":
            name, _, amount = value.partition(" ")
            self._spec.environment[name] = _setting_amount(where, name, amount.strip())
        elif key == "proven":
            self._proofs.append((where, value))
        elif key == "retracts":
            self._retractions.append((where, value))
        else:
            self._need(where, value)

    def _need(self, where: str, value: str) -> None:
        kind, _, what = value.partition(" ")
        what = what.strip()
        if kind == "tracepoint" and _TRACEPOINT.fullmatch(what):
            self._spec.tracepoints += (what,)
        elif kind == "uprobe" and _UPROBE.fullmatch(what):
            self._spec.uprobes += (what,)
        elif value == "btf":
            self._spec.needs_btf = True
        else:
            expected = "'tracepoint CATEGORY:NAME', 'uprobe LIBRARY:FUNCTION' or 'btf'"
            raise ProbeError(f"{where}: needs: expected {expected}, got {value!r}")

    def _continue(self, text: str) -> None:
        if self._key in self._texts:
            self._texts[self._key] += f" {text}"
        elif self._key == "event":
            kind = self._spec.kinds[self._number]
            description = f"{kind.description} {text}".strip()
            self._spec.kinds[self._number] = replace(kind, description=description)

    def finish(self, line: int) -> None:
        """What must not be missing."""
        spec = self._spec
        if not spec.summary:
            raise ProbeError(
                f"{spec.path}:{line}: the header is empty, expected '{spec.name} - One sentence.'"
            )
        for key, text in self._texts.items():
            if not text:
                raise ProbeError(f"{spec.path}:{line}: the header says nothing under '{key}:'")
        if len(spec.kinds) == 1:
            raise ProbeError(f"{spec.path}:{line}: the header declares no event")
        for where, value in self._proofs:
            self._prove(where, value)
        for where, value in self._retractions:
            self._retract(where, value)
        spec.sees, spec.blind, spec.overhead = (self._texts[key] for key in ("sees", "blind", "overhead"))

    def _prove(self, where: str, value: str) -> None:
        """``proven: KIND FIELD=NUMBER …``: such events prove their source."""
        found = _PROOF.fullmatch(value)
        numbers = {kind.name: number for number, kind in self._spec.kinds.items()}
        if not found or found[1] not in numbers:
            known = ", ".join(name for name in numbers if name != HEARTBEAT_KIND)
            raise ProbeError(
                f"{where}: proven: expected 'KIND FIELD=NUMBER …' with a kind of {known}, got {value!r}"
            )
        kind = self._spec.kinds[numbers[found[1]]]
        pairs = [pair.partition("=")[::2] for pair in found[2].split()]
        for name, _ in pairs:
            field = kind.field(name)
            if field is None or field.type not in INTEGER_BOUNDS:
                raise ProbeError(f"{where}: proven: kind {kind.name} has no number {name!r}")
        proof = tuple((name, int(number)) for name, number in pairs)
        self._spec.kinds[numbers[kind.name]] = replace(kind, proof=proof)

    def _retract(self, where: str, value: str) -> None:
        """``retracts: KIND OTHER``: an event of KIND takes one of OTHER back (see :class:`EventKind`)."""
        kinds = {kind.name: (number, kind) for number, kind in self._spec.kinds.items() if number}
        names = value.split()
        if len(names) != 2 or names[0] == names[1] or not set(names) <= kinds.keys():
            known = ", ".join(kinds)
            raise ProbeError(f"{where}: retracts: expected two kinds of {known}, got {value!r}")
        (number, kind), (_, other) = kinds[names[0]], kinds[names[1]]
        shared = [field for field in kind.wire_fields if field.type != "ts"]
        if len(kind.wire_fields) - len(shared) != 1:
            raise ProbeError(f"{where}: retracts: kind {kind.name} needs one field of type ts")
        for missing in [each for each in shared if each not in other.wire_fields]:
            raise ProbeError(f"{where}: retracts: {other.name} has no {missing.name}:{missing.type}")
        self._spec.kinds[number] = replace(kind, retracts=other.name)


def _setting_amount(where: str, name: str, amount: str) -> str:
    low, high = SETTINGS.get(name, (1, 0))
    if not (re.fullmatch(r"[0-9]{1,9}", amount) and low <= int(amount) <= high):
        known = ", ".join(f"{key} {low} to {high}" for key, (low, high) in SETTINGS.items())
        raise ProbeError(f"{where}: expected a setting and a number ({known}), got {name!r} {amount!r}")
    return amount


def _unusable_field(names: Sequence[str]) -> str:
    """Why these names cannot be the fields of one event class, or an empty text."""
    if len(names) > MAX_FIELDS:
        return f"more than {MAX_FIELDS} fields"
    attributes = [name.replace(".", "_") for name in names]
    for name, attribute in zip(names, attributes, strict=True):
        if not _FIELD.fullmatch(name) or keyword.iskeyword(attribute) or attribute == "ts_ns":
            return f"{name!r} cannot be the name of a field"
        if attributes.count(attribute) > 1:
            return f"field {name!r} cannot be told from another ('.' and '_' are the same in a name)"
    return ""


# -- the script itself -------------------------------------------------------------------------------

#: Functions whose output can be forged by whoever chose the text, or is not valid JSON on some version.
_UNSAFE_CALLS: Final = (
    "printf|join|time|cat|system|strftime|cgroup_path|strerror|username|macaddr|hist|lhist|stats"
)
_FORBIDDEN: Final = (
    (rf"\b({_UNSAFE_CALLS})\s*\(", "{} is not allowed: its output can be forged or is not valid JSON"),
    (r"(?:^|(?<=[};,\n]))\s*(BEGIN|END|begin|end)\s*[{,]", "{} is not allowed: it fails on Ubuntu 22.04"),
    (r"\bconfig\s*=\s*\{", "no config block: bpftrace before 0.20 does not know it"),
    (r"\bargs\.[a-z_]", "write args->field, not args.field"),
    (r"\bdelete\s*\(\s*@\w+\s*,", "write delete(@m[k]), not delete(@m, k)"),
    (r"#\s*include\b", "no #include: kernel headers clash with BTF"),
    (r"\b(signal|override|skboutput)\s*\(", "{} is not allowed: a probe only watches"),
)


#: The heartbeat's print in a block that runs at least once a second (blocks in it nest once at most).
_EACH_SECOND: Final = re.compile(
    r"\b(?:interval|i):(?:s:1|ms:(?:1000|[1-9][0-9]{0,2}))\s*\{"
    r"(?:[^{}]|\{[^{}]*\})*?\bprint\s*\(\s*\(\s*0\s*,\s*nsecs\s*\)\s*\)"
)


def lint_probe(spec: ProbeSpec, text: str) -> list[Problem]:
    """Where a script breaks the rules that every probe keeps; empty when it is good."""
    code = _without_comments(text)
    problems = []

    def wrong(position: int, message: str) -> None:
        line = code.count("\n", 0, position) + 1
        column = position - code.rfind("\n", 0, position)
        problems.append(Problem(str(spec.path), line, column, "", message))

    plain = _without_strings(code)
    for pattern, message in _FORBIDDEN:
        for found in re.finditer(pattern, plain):
            wrong(found.start(found.lastindex or 0), message.format(found[1] if found.groups() else ""))
    for position, arguments in _prints(plain):
        elements = _elements(arguments)
        if elements is None:
            if not re.fullmatch(r"\s*@\w+\s*(,[^()]*)?", arguments):
                wrong(
                    position, "print a tuple whose first element is the kind number and whose last is nsecs"
                )
            continue
        problem = _tuple_problem(spec, elements, plain)
        if problem:
            wrong(position, problem)
    if not _EACH_SECOND.search(plain):
        wrong(0, "no heartbeat: interval:s:1 { print((0, nsecs)); } is missing")
    return sorted(problems, key=lambda problem: (problem.line, problem.column))


def _tuple_problem(spec: ProbeSpec, elements: list[str], code: str) -> str:
    """Why a printed tuple is none that the header declares, or an empty text."""
    if not elements[0].isdecimal():
        return f"the first element of a tuple is the kind number as a literal, got {elements[0]!r}"
    number = int(elements[0])
    kind = spec.kinds.get(number)
    if kind is None:
        return f"event number {number} is not declared in the header"
    if elements[-1] != "nsecs" and not _is_now(elements[-1], code):
        return f"the last element of a tuple is nsecs, got {elements[-1]!r}"
    expected = len(kind.wire_fields) + 2
    if len(elements) != expected:
        return f"{kind.name} has {expected} elements, number and nsecs included; here are {len(elements)}"
    return ""


def _is_now(variable: str, code: str) -> bool:
    """Whether a variable is never anything but ``nsecs``: a probe can keep the time it printed."""
    if not re.fullmatch(r"\$[a-z_]+", variable):
        return False
    name = re.escape(variable)
    assigned = re.findall(rf"{name}\s*([-+*/%&|^<>]*)=(?!=)\s*([^;]*);", code)
    stepped = re.search(rf"{name}\s*(?:\+\+|--)|(?:\+\+|--)\s*{name}\b", code)
    return bool(assigned) and {(o, text.strip()) for o, text in assigned} == {("", "nsecs")} and not stepped


def _without_comments(text: str) -> str:
    """The text with comments blanked, every other character in its place."""
    pattern = re.compile(r'"(?:\\.|[^"\\\n])*"|/\*.*?\*/|//[^\n]*', re.DOTALL)
    return pattern.sub(lambda m: m[0] if m[0].startswith('"') else re.sub(r"[^\n]", " ", m[0]), text)


def _without_strings(code: str) -> str:
    """The code with the inside of string literals blanked."""
    return re.sub(r'"(?:\\.|[^"\\\n])*"', lambda m: '"' + "_" * (len(m[0]) - 2) + '"', code)


def _prints(code: str) -> list[tuple[int, str]]:
    """Position and arguments of each print call."""
    found = []
    for call in re.finditer(r"\bprint\s*\(", code):
        depth, end = 1, call.end()
        while end < len(code) and depth:
            depth += {"(": 1, ")": -1}.get(code[end], 0)
            end += 1
        found.append((call.start(), code[call.end() : end - 1]))
    return found


def _elements(arguments: str) -> list[str] | None:
    """The elements of a tuple ``(a, b, c)``; None when it is none."""
    text = arguments.strip()
    if not (text.startswith("(") and text.endswith(")")):
        return None
    parts, depth, current = [], 0, ""
    for character in text[1:-1]:
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(character, 0)
        if depth < 0:
            return None
        if character == "," and not depth:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    return [*parts, current.strip()]


# -- the host ----------------------------------------------------------------------------------------


def preflight(spec: ProbeSpec, tracing: Path) -> str:
    """Why this host cannot run a probe and what to do, in a sentence; empty when it can."""
    if spec.tracepoints and not (tracing / "events").is_dir():
        return f"{tracing}/events is not there: mount -t tracefs tracefs {tracing}"
    for tracepoint in spec.tracepoints:
        category, _, name = tracepoint.partition(":")
        if not (tracing / "events" / category / name).is_dir():
            return f"this kernel has no tracepoint {tracepoint}"
    if spec.needs_btf and not BTF.exists():
        return f"this kernel has no BTF ({BTF}); it needs CONFIG_DEBUG_INFO_BTF=y"
    for uprobe in spec.uprobes:
        library, _, symbol = uprobe.rpartition(":")
        path = find_library(library)
        if path is None:
            return f"library {library} is not installed"
        if symbol.encode() + b"\0" not in path.read_bytes():
            return f"{path} has no function {symbol}"
    return ""


def find_library(name: str) -> Path | None:
    """The file of a library (``libpam``) as the dynamic linker finds it, or None."""
    if "/" in name:
        return Path(name) if Path(name).is_file() else None
    ldconfig = shutil.which("ldconfig", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if ldconfig is None:
        return None
    done = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, timeout=10, check=False)
    for line in done.stdout.splitlines():
        if re.match(rf"\s*{re.escape(name)}\.so", line):
            path = Path(line.rpartition("=> ")[2].strip())
            if path.is_file():
                return path
    return None


#: A PAM module's function that refuses a password long before pam_authenticate says so.
_PAM_MODULE: Final = ("pam_unix.so", "pam_sm_authenticate")
#: What is watched on a host without it: never called within pam_authenticate, and then it fails otherwise.
_NO_PAM_MODULE: Final = ("libpam", "pam_start")


def pam_target() -> tuple[str, str]:
    """File and function for a probe that looks into pam_unix.so, or else into what it never hears from.

    The module lies in the folder ``security`` beside the libpam that the dynamic linker finds (Debian,
    Fedora, SUSE, Arch); bpftrace has no attach point that may be missing.
    """
    library = find_library("libpam")
    name, function = _PAM_MODULE
    for beside in (library, library.resolve()) if library else ():
        module = beside.with_name("security") / name
        if module.is_file() and function.encode() + b"\0" in module.read_bytes():
            return str(module), function
    return _NO_PAM_MODULE
