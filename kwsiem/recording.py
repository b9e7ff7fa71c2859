"""A recording is what the engine read, byte for byte, in the order it was read; ``kwsiem replay`` reads it.

Lines of ours between the probes' lines say whose lines follow and what they mean::

    {"type":"kwsiem_host","data":{"host":"web1","offset_ns":…}}
    {"type":"kwsiem_contract","data":{"probe":"net","numbers":{"1":{"name":"tcp.syn","fields":[…]}}}}
    {"type":"kwsiem_probe","data":"net"}
    {"type":"kwsiem_advanced","data":381731000000}
    {"type": "value", "data": [1, "198.51.100.7", …, 381731022702]}

A probe cannot forge them: bpftrace writes the ``type`` of its own records, and none begins with ``kwsiem_``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, Final, Union

import msgspec

from kwsiem.messages import ProbeKinds

MARK: Final = b'{"type":"kwsiem_'
_FLUSH_BYTES: Final = 64 * 1024
_MAX_HELD: Final = 8 * 2**20


class Recorder:
    """Writes a recording to a descriptor that somebody with the right to do so has opened.

    A partly read line is held until its end, so that lines of two probes never mix. When the disk is full
    recording stops and ``failed`` says why; detection goes on.
    """

    def __init__(self, fd: int, host: str, offset_ns: int) -> None:
        self.failed = ""
        self._fd = fd
        self._host = host
        self._probe = ""
        self._tails: dict[str, bytes] = {}
        self._out: list[bytes] = []
        self._size = 0
        self.offset(offset_ns)

    def offset(self, offset_ns: int) -> None:
        """Wall time is event time plus this, from here on."""
        self._mark("host", {"host": self._host, "offset_ns": offset_ns})

    def contract(self, kinds: ProbeKinds) -> None:
        """What the numbers of a probe mean, from here on."""
        self._mark("contract", kinds)

    def advanced(self, until_ns: int) -> None:
        """Everything up to this time of events had come."""
        self._mark("advanced", until_ns)

    def clock(self, now_ns: int) -> None:
        """What time it was when the next lines were read; said when some of them were dated later."""
        self._mark("clock", now_ns)

    def lines(self, probe: str, data: bytes) -> None:
        """Bytes as they were read from a probe's pipe."""
        cut = data.rfind(b"\n") + 1
        tail = self._tails.get(probe, b"")
        self._tails[probe] = data[cut:] if cut else (tail + data)[-_MAX_HELD:]
        if not cut:
            return
        if probe != self._probe:
            self._probe = probe
            self._mark("probe", probe)
        self._write(tail + data[:cut])

    def flush(self) -> None:
        """Hand what is gathered to the kernel."""
        if self._out and not self.failed:
            data = memoryview(b"".join(self._out))
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError as error:
                self.failed = str(error.strerror)
        self._out = []
        self._size = 0

    def _mark(self, name: str, data: Any) -> None:
        self._write(mark_line(name, data))

    def _write(self, data: bytes) -> None:
        self._out.append(data)
        self._size += len(data)
        if self._size >= _FLUSH_BYTES:
            self.flush()


def mark_line(name: str, data: Any) -> bytes:
    """One line of ours between those of the probes."""
    return MARK + name.encode() + b'","data":' + msgspec.json.encode(data) + b"}\n"


class _Mark(msgspec.Struct):
    type: str
    data: msgspec.Raw


class AdvancedMark(msgspec.Struct):
    """Everything up to this time of events had come."""

    until_ns: int


class ClockMark(msgspec.Struct):
    """What time it was when the next lines were read."""

    now_ns: int


class HostMark(msgspec.Struct):
    """Which host recorded, and its wall-clock offset from here on."""

    host: str
    offset_ns: int


Mark = Union[HostMark, ProbeKinds, AdvancedMark, ClockMark, str]


def read_recording(lines: Iterable[bytes]) -> Iterator[Mark | bytes]:
    """The parts of a recording in order: marks as objects (a probe's name as str), other lines as bytes.

    Raises msgspec.DecodeError for a mark that is not valid.
    """
    for line in lines:
        if not line.startswith(MARK):
            yield line
            continue
        mark = msgspec.json.decode(line, type=_Mark)
        name = mark.type.removeprefix("kwsiem_")
        if name == "host":
            yield msgspec.json.decode(mark.data, type=HostMark)
        elif name == "contract":
            yield msgspec.json.decode(mark.data, type=ProbeKinds)
        elif name == "probe":
            yield msgspec.json.decode(mark.data, type=str)
        elif name == "advanced":
            yield AdvancedMark(msgspec.json.decode(mark.data, type=int))
        elif name == "clock":
            yield ClockMark(msgspec.json.decode(mark.data, type=int))
        else:
            raise msgspec.ValidationError(f"unknown mark {mark.type!r}")
