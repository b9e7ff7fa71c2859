"""The rules that a probe's source must keep, as far as its text alone can tell.

They make records unforgeable (tuples in JSON mode only, never text built by the probe) and portable over
bpftrace 0.14 to 0.27. The supervisor refuses a probe with a problem, so each check is exact: comments and
strings are blanked out first, and what cannot be judged from the text is left to bpftrace.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from kwsiem.errors import Problem
from kwsiem.event import HEARTBEAT_NUMBER

if TYPE_CHECKING:
    from kwsiem.sensor.catalog import ProbeSpec

MAX_SOURCE_BYTES: Final = 256 * 1024

_FREE_TEXT: Final = "prints text that is not JSON-safe: print a tuple"
_NO_RECORD: Final = "cannot be part of a record"
_UNSAFE: Final = "changes the system: a probe only watches"
#: Functions that a probe must not call, and why.
BANNED_CALLS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("printf", "errorf", "warnf", "join", "time", "cat"), _FREE_TEXT),
    **dict.fromkeys(("system", "signal", "override", "skboutput"), _UNSAFE),
    **dict.fromkeys(("hist", "lhist", "stats"), _NO_RECORD),
    **dict.fromkeys(
        ("strftime", "macaddr", "cgroup_path", "strerror"), "is invalid JSON before bpftrace 0.27"
    ),
}
#: Builtins that a tuple must not hold.
_BANNED_WORDS: Final = ("kstack", "ustack", "username")

_CALL: Final = re.compile(r"(?<![\w$@.>])(" + "|".join(BANNED_CALLS) + r")\s*\(")
_WORD: Final = re.compile(r"(?<![\w$@.>])(" + "|".join(_BANNED_WORDS) + r")\b")
_PRINT: Final = re.compile(r"(?<![\w$@.>])print\s*\(")
_DELETE: Final = re.compile(r"(?<![\w$@.>])delete\s*\(")
_ARGS_DOT: Final = re.compile(r"(?<![\w$@.>])args\s*\.\s*[A-Za-z_]")
_INCLUDE: Final = re.compile(r"^[ \t]*(?:#[ \t]*include|import)\b", re.MULTILINE)
_CONFIG: Final = re.compile(r"\bconfig\s*=\s*$")
_BEGIN_END: Final = re.compile(r"(?:BEGIN|END|begin|end)")
_INTEGER: Final = re.compile(r"0[xX][0-9a-fA-F]+|\d+")
#: Attach points that fire at least once a second.
_EACH_SECOND: Final = re.compile(r"(?:interval|i):(?:s:1|ms:(?:1000|[1-9]\d{0,2})|hz:[1-9]\d*)")
_HIDDEN: Final = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', re.DOTALL)


def lint_probe(spec: ProbeSpec, text: str) -> list[Problem]:
    """Everything that is wrong with the source of a probe, in the order of its lines; empty when clean."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_SOURCE_BYTES:
        return [Problem(str(spec.path), 0, 0, "", f"larger than {MAX_SOURCE_BYTES} bytes")]
    return _Lint(spec, text).problems()


class _Lint:
    """One run over one source; offsets in the blanked text are those in the file."""

    def __init__(self, spec: ProbeSpec, text: str) -> None:
        self._spec = spec
        self._code = _HIDDEN.sub(_blank, text)
        self._found: list[tuple[int, str]] = []

    def problems(self) -> list[Problem]:
        self._calls()
        self._prints()
        self._blocks()
        return [self._problem(offset, message) for offset, message in sorted(self._found)]

    def _problem(self, offset: int, message: str) -> Problem:
        line = self._code.count("\n", 0, offset) + 1
        column = offset - self._code.rfind("\n", 0, offset)
        return Problem(str(self._spec.path), line, column, "", message)

    def _calls(self) -> None:
        code = self._code
        for match in _CALL.finditer(code):
            self._found.append((match.start(), f"{match[1]}() {BANNED_CALLS[match[1]]}"))
        for match in _DELETE.finditer(code):
            if len(_split(_inside(code, match.end()))) > 1:
                self._found.append(
                    (match.start(), "delete(@map, key) needs bpftrace 0.24: delete(@map[key])")
                )
        for match in _ARGS_DOT.finditer(code):
            self._found.append((match.start(), "args.field needs bpftrace 0.19: args->field"))
        for match in _INCLUDE.finditer(code):
            self._found.append((match.start(), "a probe is one file: no include or import"))

    def _prints(self) -> None:
        for match in _PRINT.finditer(self._code):
            message = self._print(_inside(self._code, match.end()))
            if message:
                self._found.append((match.start(), message))

    def _print(self, argument: str) -> str:
        """What is wrong with the argument of a print; empty when nothing is."""
        argument = argument.strip()
        elements = _split(argument[1:-1]) if _is_tuple(argument) else []
        if len(elements) < 2:
            return "print takes one tuple: print((NUMBER, …, nsecs))"
        if not _INTEGER.fullmatch(elements[0]):
            return f"the first element must be the event number, an integer literal, not '{elements[0][:40]}'"
        if elements[-1] != "nsecs":
            return f"the last element must be nsecs, not '{elements[-1][:40]}'"
        if word := _WORD.search(argument):
            return f"{word[1]} {_NO_RECORD}"
        number = int(elements[0], 0) if elements[0][:2] in {"0x", "0X"} else int(elements[0][:9])
        kind = self._spec.kinds.get(number)
        if kind is None:
            return f"event {number} is not declared in the header"
        expected = len(kind.wire_fields) + 2
        if len(elements) != expected:
            return f"event {number} ({kind.name}) has {expected} elements in the header, here {len(elements)}"
        return ""

    def _blocks(self) -> None:
        beats = False
        for start, attach_points, body in _blocks(self._code):
            if _CONFIG.search(attach_points):
                self._found.append(
                    (start, "a config block needs bpftrace 0.20: use 'environment:' in the header")
                )
            points = [point.strip() for point in attach_points.split("/", 1)[0].split(",")]
            for point in points:
                if _BEGIN_END.fullmatch(point):
                    self._found.append((start, f"{point} does not work in the bpftrace of Ubuntu 22.04"))
            if any(_EACH_SECOND.fullmatch(point) for point in points):
                beats = beats or _prints_heartbeat(body)
        if not beats:
            message = f"no heartbeat: interval:s:1 {{ print(({HEARTBEAT_NUMBER}, nsecs)); }} is missing"
            self._found.append((len(self._code), message))


def _blank(match: re.Match[str]) -> str:
    """Spaces of the same length, lines kept; a string keeps its quotes, so that it is still an element."""
    text = match[0]
    if text[0] == '"':
        return '"' + " " * (len(text) - 2) + '"'
    return re.sub(r"[^\n]", " ", text)


def _inside(code: str, start: int) -> str:
    """The text from just behind an opening bracket to the bracket that closes it (or to the end)."""
    depth = 1
    for match in re.compile(r"[(){}\[\]]").finditer(code, start):
        depth += 1 if match[0] in "({[" else -1
        if depth == 0:
            return code[start : match.start()]
    return code[start:]


def _split(text: str) -> list[str]:
    """The parts of a list at the commas of its own level, stripped."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[(){}\[\],]", text):
        if match[0] == ",":
            if depth == 0:
                parts.append(text[start : match.start()].strip())
                start = match.end()
        else:
            depth += 1 if match[0] in "({[" else -1
    parts.append(text[start:].strip())
    return parts


def _is_tuple(argument: str) -> bool:
    """Whether one pair of parentheses encloses all of it: ``(1, nsecs)``, not ``(1), (2)``."""
    return argument.startswith("(") and len(_inside(argument, 1)) == len(argument) - 2


def _blocks(code: str) -> Iterator[tuple[int, str, str]]:
    """Offset, attach points and body of each top-level block."""
    # Preprocessor lines stand outside of blocks and would read as part of the attach points.
    code = re.sub(r"^[ \t]*#[^\n]*", lambda match: " " * len(match[0]), code, flags=re.MULTILINE)
    position = 0
    while (brace := code.find("{", position)) >= 0:
        body = _inside(code, brace + 1)
        head = code[position:brace]
        start = position + len(head) - len(head.lstrip(" \t\n;"))
        yield start, code[start:brace].strip(), body
        position = brace + 1 + len(body) + 1


def _prints_heartbeat(body: str) -> bool:
    return any(
        _split(_inside(body, match.end()).strip()[1:-1]) == [str(HEARTBEAT_NUMBER), "nsecs"]
        for match in _PRINT.finditer(body)
    )
