"""What the parent does for the child that speaks HTTP: few requests, checked, limited, written down.

Whoever takes the child over can ask for what stands here and nothing else: the status, the first blocks, the
rules, the end of one block, an acknowledgement; so many changes a minute; and the sensor has the last word.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from select import select
from typing import Any, Final, Literal, Union

import msgspec

from kwsiem import clock
from kwsiem.errors import LinkError, UnavailableError
from kwsiem.link import Link
from kwsiem.text import clean, harmless

#: More than a person presses, little for a child gone bad.
MAX_CHANGES_PER_MIN: Final = 20
#: A child asks for two things a second, however many pages are open; the sensor answers in its own loop.
MAX_LOOKS_PER_S: Final = 10
MAX_BLOCKS: Final = 200
#: The parent waits 10 s for the sensor (control.ANSWER_TIMEOUT_S); a child waits a little longer.
ANSWER_S: Final = 12.0
MAX_ANSWER_BYTES: Final = 64 * 2**20
_MAX_TEXT: Final = 256
_MAX_ID: Final = 128

audit = logging.getLogger("kwsiem.audit")
log = logging.getLogger("kwsiem.dashboard")


class Look(msgspec.Struct, tag="look", frozen=True):
    """One of the things that can be looked at."""

    number: int
    what: Literal["status", "blocks", "rules"]


class Release(msgspec.Struct, tag="release", frozen=True):
    """End one block. ``who`` is what the child says of who asks."""

    number: int
    network: str
    who: str


class Acknowledge(msgspec.Struct, tag="acknowledge", frozen=True):
    """Somebody has seen this incident."""

    number: int
    incident_id: str
    who: str


class Answered(msgspec.Struct, tag="answered", frozen=True):
    """The answer; what was found comes as JSON in a memory file of ``size`` bytes."""

    number: int
    error: str = ""
    size: int = 0


FromChild = Union[Look, Release, Acknowledge]
Ask = Callable[[dict[str, Any]], dict[str, Any]]


class Desk:
    """Answers the child. ``ask`` asks the control socket, ``rules`` gives the rule files by name."""

    def __init__(self, ask: Ask, rules: Callable[[], Mapping[str, bytes]]) -> None:
        self._ask = ask
        self._rules = rules
        self._changes_s: deque[float] = deque(maxlen=MAX_CHANGES_PER_MIN)
        self._looks_s: deque[float] = deque(maxlen=MAX_LOOKS_PER_S)
        self._left_out = 0
        self._complaints: Counter[str] = Counter()

    def answer(self, request: FromChild) -> tuple[str, Any]:
        """What is wrong (empty: nothing), and what was found."""
        if not isinstance(request, Look) and self._floods():
            return f"more than {MAX_CHANGES_PER_MIN} changes within a minute: wait a little", {}
        try:
            if isinstance(request, Look):
                return self._look(request.what)
            error, found = self._change(request)
        except (UnavailableError, OSError) as failure:
            error, found = clean(str(failure), _MAX_TEXT), {}
        if not isinstance(request, Look):
            _write_down(request, error)
        return error, found

    def _floods(self) -> bool:
        """Whether there are too many changes: the first of them is written down, the others are counted."""
        now_s = clock.monotonic_s()
        if len(self._changes_s) < MAX_CHANGES_PER_MIN or now_s - self._changes_s[0] >= 60.0:
            if self._left_out:
                audit.warning("dashboard", extra={"outcome": "refused", "changes": self._left_out})
            self._left_out = 0
            self._changes_s.append(now_s)
            return False
        if not self._left_out:
            reason = "too many changes, now only counted"
            audit.warning("dashboard", extra={"outcome": "refused", "reason": reason})
        self._left_out += 1
        return True

    def complain(self, what: str) -> None:
        """The child misbehaves: the first time is logged, then each that makes ten times as many."""
        self._complaints[what] += 1
        if str(self._complaints[what]).rstrip("0") == "1":
            log.error(what, extra={"times": self._complaints[what]})

    def _look(self, what: str) -> tuple[str, Any]:
        now_s = clock.monotonic_s()
        if len(self._looks_s) == MAX_LOOKS_PER_S and now_s - self._looks_s[0] < 1.0:
            return "asked too often", {}
        self._looks_s.append(now_s)
        if what == "status":
            found = self._ask({"command": "status"})
        elif what == "blocks":
            found = self._ask({"command": "blocks", "verb": "list", "after": "", "limit": MAX_BLOCKS})
        else:
            found = {
                "files": [[name, data] for name, data in self._rules().items()],
                "counts": self._ask({"command": "metrics"}).get("rules", {}),
            }
        return _error_of(found), found

    def _change(self, request: Release | Acknowledge) -> tuple[str, Any]:
        if isinstance(request, Release):
            try:
                network = ipaddress.ip_network(request.network)
            except ValueError:
                return "that is no address and no network", {}
            text = str(network.network_address) if network.num_addresses == 1 else str(network)
            found = self._ask({"command": "blocks", "verb": "remove", "network": text})
        elif not 0 < len(request.incident_id) <= _MAX_ID:
            return "that is no incident", {}
        else:
            found = self._ask(
                {
                    "command": "acknowledge",
                    "incident_id": clean(request.incident_id, _MAX_ID),
                    "who": _shown(request.who),
                }
            )
        return _error_of(found), found


def _write_down(request: Release | Acknowledge, error: str) -> None:
    released = request.network if isinstance(request, Release) else ""
    incident = "" if isinstance(request, Release) else request.incident_id
    audit.info(
        "dashboard",
        extra={
            "action": "release" if isinstance(request, Release) else "acknowledge",
            "who": _shown(request.who),
            "network": _shown(released),
            "incident": _shown(incident),
            "outcome": "refused" if error else "done",
            "reason": error,
        },
    )


def _error_of(found: Mapping[str, Any]) -> str:
    return clean(str(found["error"]), _MAX_TEXT) if "error" in found else ""


def _shown(text: str) -> str:
    return harmless(text, _MAX_ID)


def serve_one(desk: Desk, link: Link[FromChild]) -> None:
    """Take one request, if there is one, and answer it."""
    try:
        received = link.receive()
    except LinkError:
        desk.complain("the dashboard sends what is no request")
        return
    if received is None:
        return
    request, fds = received
    for each in fds:  # nobody wants them
        os.close(each)
    error, found = desk.answer(request)
    data = msgspec.json.encode(found)
    fd = os.memfd_create("kwsiem-dashboard", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        if not link.send(Answered(number=request.number, error=error, size=len(data)), [fd]):
            desk.complain("the dashboard does not read its answers")
    finally:
        os.close(fd)


class Parent:
    """The child's side: asks the parent; calls from several threads take turns."""

    def __init__(self, link: Link[Answered]) -> None:
        self._link = link
        self._lock = threading.Lock()
        self._number = 0

    def look(self, what: Literal["status", "blocks", "rules"]) -> Any:
        """What the parent sees; raises UnavailableError with its words."""
        return self._call(lambda number: Look(number, what))

    def release(self, network: str, who: str) -> Any:
        """End a block; raises UnavailableError that says why not."""
        return self._call(lambda number: Release(number, network, who))

    def acknowledge(self, incident_id: str, who: str) -> Any:
        """Acknowledge an incident; raises UnavailableError that says why not."""
        return self._call(lambda number: Acknowledge(number, incident_id, who))

    def _call(self, make: Callable[[int], FromChild]) -> Any:
        with self._lock:
            self._number += 1
            if not self._link.send(make(self._number)):
                raise UnavailableError("the process with the rights has gone")
            deadline_s = clock.monotonic_s() + ANSWER_S
            while (left_s := deadline_s - clock.monotonic_s()) > 0 and not self._link.closed:
                select([self._link], [], [], left_s)
                found = self._taken()
                if found is not None:
                    return found
        raise UnavailableError("no answer from the process with the rights")

    def _taken(self) -> Any:
        """The answer to the latest request, if that came; one that came too late is thrown away."""
        try:
            received = self._link.take()
        except LinkError:
            return None
        if received is None:
            return None
        answer, fds = received
        data = b""
        for fd in fds:
            with open(fd, "rb") as file:
                file.seek(0)
                data = file.read(min(answer.size, MAX_ANSWER_BYTES))
        if answer.number != self._number:
            return None
        if answer.error:
            raise UnavailableError(answer.error)
        return msgspec.json.decode(data)
