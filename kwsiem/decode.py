"""Stage 2, line to event: bpftrace's JSON lines to event objects; never raises, counts what is wrong.

One decoder for each run of a probe. The common case, a block of nothing but valid ``value`` records, is
one call into msgspec; a block with anything else in it is taken line by line. bpftrace's versions differ:
integers may come as text, bytes >= 0x80 as ``\\uffffffXX`` or raw, the count of lost events in hexadecimal,
a field of type ``bytes`` as text with ``\\xNN`` or as a list of numbers.
"""

from __future__ import annotations

import re
from typing import Any, Final, Union

import msgspec

from kwsiem.event import HEARTBEAT_KIND, HEARTBEAT_NUMBER, Event, EventKind, event_class
from kwsiem.messages import ProbeKinds

#: A longer line is dropped and counted; the longest legal record is a map of 8,192 keys: 350 kB.
MAX_LINE_BYTES: Final = 512 * 1024

#: Records that bpftrace writes by itself: at start, and every map at its end. They say nothing to us.
_CONTROL_TYPES: Final = frozenset({"attached_probes", "map"})
#: bpftrace's other record types: legal, but nothing that a probe of ours prints. Counted by type.
_OTHER_TYPES: Final = frozenset(
    {"hist", "stats", "helper_error", "printf", "time", "cat", "join", "syscall"}
    | {"errorf", "warnf", "runtime_error"}
)
#: bpftrace 0.24 to 0.27 writes the number in hexadecimal once it has written an escape: ``6007b``.
_LOST: Final = re.compile(rb'^\{"type": *"lost_events".*"events": *([0-9a-f]{1,16})\b')
#: A byte >= 0x80 as bpftrace 0.17 and later print it on x86-64: U+FFFF, then ``ff`` and two hex digits.
_ESCAPED_BYTES: Final = re.compile("(?:\uffffff[89a-f][0-9a-f])+")
#: A byte as ``buf()`` prints it up to 0.23, one as ``str()`` does, and what 0.14 to 0.16 passed through.
_ONE_BYTE: Final = re.compile("\\\\x([0-9A-Fa-f]{2})|\uffffff([89a-f][0-9a-f])|([^\0-\x7f]+?)")

#: A byte that is not part of UTF-8, as Python's surrogateescape marks it.
_RAW_BYTE: Final = re.compile("[\udc80-\udcff]")

#: What number 0 is in every probe: only its time.
_BARE_HEARTBEAT: Final = EventKind(HEARTBEAT_KIND, ())


class LineDecoder:
    """Decodes the lines of one run of one probe.

    :meth:`feed` takes bytes as they were read, cut anywhere. The ledger: every line is counted in
    ``received``, and either in ``accepted`` (event, heartbeat, loss record) or in ``rejected`` by reason.
    """

    def __init__(self, kinds: ProbeKinds) -> None:
        self.probe = kinds.probe
        self.received = 0
        self.accepted = 0
        self.rejected: dict[str, int] = {}
        self.lost = 0
        self.heartbeat_ns = 0
        self.last_rejected = ""
        numbers = {number: kind for number, kind in kinds.numbers.items() if kind.name != HEARTBEAT_KIND}
        self.classes: list[type[Event]] = [event_class(kind, number) for number, kind in numbers.items()]
        self._heartbeat = event_class(_BARE_HEARTBEAT, HEARTBEAT_NUMBER)
        self._arity = {number: len(kind.wire_fields) + 2 for number, kind in numbers.items()}
        self._arity[HEARTBEAT_NUMBER] = 2
        self._text_attributes: dict[type[Event], tuple[str, ...]] = {
            cls: tuple(f.attribute for f in cls.KIND.wire_fields if f.type == "str") for cls in self.classes
        }
        record = msgspec.defstruct(
            "Value",
            [("data", Union[tuple([*self.classes, self._heartbeat])])],  # noqa: C409 (3.10 has no * here)
            tag="value",
            tag_field="type",
            gc=False,
        )
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(record, strict=False, dec_hook=_bytes)
        self._tail = b""
        self._skipping = False

    def feed(self, data: bytes) -> list[Event]:
        """The events in ``data`` and in the rest of the call before, in the order they were printed."""
        block = self._complete_lines(data)
        if not block:
            return []
        try:
            records = self._decoder.decode_lines(block)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return self._line_by_line(block)
        self.received += len(records)
        self.accepted += len(records)
        heartbeat = self._heartbeat
        events = [event for record in records if (event := record.data).__class__ is not heartbeat]
        if len(events) != len(records):
            self.heartbeat_ns = max(r.data.ts_ns for r in records if r.data.__class__ is heartbeat)
        if b"\\uffff" in block:
            self._repair(events)
        return events

    def finish(self) -> list[Event]:
        """What is left at the end of the pipe: a last line without its newline is cut, and rejected."""
        if self._tail or self._skipping:
            self._reject("cut_line", self._tail)
        self._tail = b""
        self._skipping = False
        return []

    def _complete_lines(self, data: bytes) -> bytes:
        """Whole lines; keeps the rest for later and drops a line that is too long, to its end."""
        if self._skipping:
            end = data.find(b"\n")
            if end < 0:
                return b""
            data = data[end + 1 :]
            self._skipping = False
        cut = data.rfind(b"\n") + 1
        if not cut:
            self._tail += data
            if len(self._tail) > MAX_LINE_BYTES:
                self._reject("too_long", self._tail)
                self._tail = b""
                self._skipping = True
            return b""
        block = self._tail + data[:cut]
        self._tail = data[cut:]
        return block

    def _line_by_line(self, block: bytes) -> list[Event]:
        events: list[Event] = []
        for line in block.split(b"\n"):
            if not line.strip():
                continue  # bpftrace ends its output with blank lines
            event = self._one(line)
            if event is not None:
                events.append(event)
        self._repair(events)
        return events

    def _one(self, line: bytes) -> Event | None:
        """One line of any kind, counted; the event in it, if it is one."""
        if len(line) > MAX_LINE_BYTES:
            self._reject("too_long", line)
            return None
        try:
            event: Event = self._decoder.decode(line).data
        except UnicodeDecodeError:
            # bpftrace 0.14 to 0.16 pass bytes through; one that is not UTF-8 becomes visible text: \xff.
            text = line.decode("utf-8", "surrogateescape")
            return self._one(_RAW_BYTE.sub(lambda m: f"\\\\x{ord(m[0]) - 0xDC00:02x}", text).encode())
        except msgspec.ValidationError:
            self._other(line)
            return None
        except msgspec.DecodeError:
            if not self._lost_events(line):
                self._reject("not_json" if line.startswith(b"{") else "plain_text", line)
            return None
        self.received += 1
        self.accepted += 1
        if event.__class__ is self._heartbeat:
            self.heartbeat_ns = max(self.heartbeat_ns, event.ts_ns)
            return None
        return event

    def _other(self, line: bytes) -> None:
        """A line of JSON that is no valid value record: a loss record, another type, or a bad tuple."""
        if self._lost_events(line):
            return
        try:
            record = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._reject("not_json", line)
            return
        kind = record.get("type") if isinstance(record, dict) else None
        if isinstance(kind, str) and kind in _CONTROL_TYPES:
            self.received += 1
            self.accepted += 1
            return
        if kind == "value":
            reason = self._wrong_tuple(record.get("data"))
        elif isinstance(kind, str) and kind in _OTHER_TYPES:
            reason = f"record_{kind}"
        else:
            reason = "unknown_type"
        self._reject(reason, line)

    def _wrong_tuple(self, data: Any) -> str:
        """Why a value record is none that the probe's header declares."""
        if not isinstance(data, list) or not data or type(data[0]) is not int:
            return "wrong_type"
        if data[0] not in self._arity:
            return "unknown_kind"
        return "wrong_type" if len(data) == self._arity[data[0]] else "wrong_arity"

    def _lost_events(self, line: bytes) -> bool:
        found = _LOST.match(line)
        if not found:
            return False
        digits = found[1].decode()
        self.received += 1
        self.accepted += 1
        self.lost += int(digits, 10 if digits.isdecimal() else 16)
        return True

    def _repair(self, events: list[Event]) -> None:
        """Put bytes >= 0x80 back together where bpftrace escaped them one by one."""
        for event in events:
            for name in self._text_attributes[event.__class__]:
                text = getattr(event, name)
                if "\uffff" in text:
                    setattr(event, name, _ESCAPED_BYTES.sub(_bytes_to_text, text))

    def _reject(self, reason: str, line: bytes) -> None:
        self.received += 1
        self.rejected[reason] = self.rejected.get(reason, 0) + 1
        self.last_rejected = line[:200].decode("utf-8", "backslashreplace")


def _bytes_to_text(found: re.Match[str]) -> str:
    run = found[0]
    data = bytes(int(run[start + 3 : start + 5], 16) for start in range(0, len(run), 5))
    return data.decode("utf-8", "backslashreplace")


def _bytes(_type: type, value: Any) -> str:
    """Bytes in any of bpftrace's forms as text, each character one byte. Raises ValueError for what is none.

    A backslash that was in the data itself cannot be told from one that bpftrace put before ``xNN``.
    """
    if isinstance(value, str):
        if value.isascii() and "\\" not in value:
            return value
        return _ONE_BYTE.sub(_to_bytes, value)
    if isinstance(value, list) and all(type(number) is int and -128 <= number <= 255 for number in value):
        return "".join([chr(number & 255) for number in value])
    raise ValueError("expected bytes as text or as a list of numbers")


def _to_bytes(found: re.Match[str]) -> str:
    if digits := found[1] or found[2]:
        return chr(int(digits, 16))
    return found[3].encode("utf-8", "surrogatepass").decode("latin-1")
