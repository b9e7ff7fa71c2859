"""What is seen from outside: a row's first packet, the alerts as they arrive, what the sensor says it lost."""

from __future__ import annotations

import json
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lab import Lab

_SO_TIMESTAMPNS = 35  # include/uapi/asm-generic/socket.h: SO_TIMESTAMPNS_OLD
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_TAIL_PAUSE_S = 0.02


class FirstPacket:
    """The wall time at which a device received its first packet of a family; costs nothing after that."""

    def __init__(self, lab: Lab, name: str, device: str, family: int) -> None:
        self.ts_ns = 0
        self._family = family
        with lab.inside(name):
            self._socket = socket.socket(
                socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETHERTYPE[family])
            )
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.bind((device, _ETHERTYPE[family]))
        self._ended, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._ended, selectors.EVENT_READ)
            while not self.ts_ns:
                if any(key.fileobj is self._ended for key, _ in selector.select()):
                    break
                packet, extra, _, address = self._socket.recvmsg(2048, 64)
                if address[2] != socket.PACKET_OUTGOING and not _is_neighbour_talk(packet, self._family):
                    self.ts_ns = _stamp_ns(extra)
        self._socket.close()

    def close(self) -> None:
        self._end.send(b"x")
        self._thread.join(5)
        self._ended.close()
        self._end.close()


def _is_neighbour_talk(packet: bytes, family: int) -> bool:
    """ICMPv6 of RFC 4861 and 2710/3810: what every link has by itself."""
    if family == 4 or len(packet) < 41:
        return False
    return packet[6] == 0 or (packet[6] == 58 and 130 <= packet[40] <= 143)


def _stamp_ns(extra: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in extra:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = struct.unpack("qq", data[:16])
            return int(seconds * 10**9 + nanoseconds)
    return time.time_ns()


@dataclass(frozen=True)
class Arrival:
    """An alert and the wall time at which it was in the file."""

    ts_ns: int
    alert: dict[str, Any]

    @property
    def rule(self) -> str:
        return str(self.alert["rule"]["id"])


@dataclass(frozen=True)
class Loss:
    """A ``sensor.lost`` event: what a probe held back, or the kernel had no room for."""

    ts_ns: int
    probe: str
    reason: str
    count: int


class Tail:
    """Reads a growing file of lines; ``take`` gets each whole line and the wall time it was read at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0
        self._rest = b""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Any:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(10)

    def _follow(self) -> None:
        while not self._stop.wait(_TAIL_PAUSE_S):
            self.read()
        self.read()

    def read(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        now_ns = time.time_ns()
        self._position += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.take(line, now_ns)

    def take(self, line: bytes, now_ns: int) -> None:
        raise NotImplementedError


class AlertTail(Tail):
    """Every alert that reaches the file output, of any state, with the time it was there."""

    def __init__(self, path: Path, tell: Callable[[Arrival], None] = lambda _: None) -> None:
        super().__init__(path)
        self.arrivals: list[Arrival] = []
        self._tell = tell

    def take(self, line: bytes, now_ns: int) -> None:
        self.arrivals.append(Arrival(now_ns, json.loads(line)))
        self._tell(self.arrivals[-1])


class LossTail(Tail):
    """The ``sensor.lost`` events of the probes, from the recording (its contracts say which number they have)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.losses: list[Loss] = []
        self._numbers: dict[str, int] = {}
        self._probe = ""

    def take(self, line: bytes, now_ns: int) -> None:
        if line.startswith(b'{"type":"kwsiem_'):
            self._mark(line)
        elif (number := self._numbers.get(self._probe)) and b"[%d," % number in line[:40]:
            _, probe, reason, count, *_ = json.loads(line)["data"]
            self.losses.append(Loss(now_ns, probe, reason, count))

    def _mark(self, line: bytes) -> None:
        mark = json.loads(line)
        if mark["type"] == "kwsiem_contract":
            for number, kind in mark["data"]["numbers"].items():
                if kind["name"] == "sensor.lost":
                    self._numbers[mark["data"]["probe"]] = int(number)
        elif mark["type"] == "kwsiem_probe":
            self._probe = mark["data"]
