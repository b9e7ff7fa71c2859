"""RELP: syslog over TCP where the receiver acknowledges each message.

A frame is ``TXNR SP COMMAND SP DATALEN [SP DATA] LF``. We offer relp_version 0, which deployed receivers
speak (librelp 1.11.0, measured). What a receiver answers is read strictly and within bounds. A receiver
that takes only so much of a message cuts it and acknowledges it all the same, so the size is the
renderer's business.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from kwsiem import __version__
from kwsiem.clock import monotonic_s
from kwsiem.errors import OutputError
from kwsiem.outputs.base import BaseOutput, Rendered
from kwsiem.outputs.connection import SLOW_TIMES, Connection

#: Messages on the way without an answer: what librelp's own client has at most.
WINDOW: Final = 128
MAX_TXNR: Final = 999_999_999
#: The longest answer that is read; that to ``open`` has about 100 bytes.
MAX_ANSWER_BYTES: Final = 4096
#: An alert that is answered with an error so often, while others are taken, is refused for good.
MAX_ERRORS: Final = 3
#: So long an orderly close waits for its answer.
_CLOSE_S: Final = 0.5
_HEADER: Final = re.compile(rb"(0|[1-9][0-9]{0,8}) ([A-Za-z]{1,32}) (0|[1-9][0-9]{0,8})([ \n])")
_MAX_HEADER_BYTES: Final = 9 + 1 + 32 + 1 + 9 + 1
_CODE: Final = re.compile(rb"([0-9]{3})(?![0-9])")


class Answer(NamedTuple):
    """One frame from the receiver."""

    txnr: int
    command: str
    data: bytes

    @property
    def is_ok(self) -> bool:
        """Whether its code is 200."""
        found = _CODE.match(self.data)
        return found is not None and found[1] == b"200"


class Answers:
    """Bytes from the receiver to answers; holds at most one unfinished answer."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Answer]:
        """The answers that are complete now; raises OutputError for what is none."""
        self._rest += data
        answers: list[Answer] = []
        at = 0
        while at < len(self._rest):
            found = _HEADER.match(self._rest, at)
            if not found:
                if len(self._rest) - at >= _MAX_HEADER_BYTES or b"\n" in self._rest[at:]:
                    raise OutputError("not RELP: the receiver's answer has no valid header")
                break
            length = int(found[3])
            if length > MAX_ANSWER_BYTES:
                raise OutputError(f"the receiver's answer has {length} bytes, most is {MAX_ANSWER_BYTES}")
            end = found.end() + length if found[4] == b" " else found.end() - 1
            if found[4] == b"\n" and length:
                raise OutputError("not RELP: the receiver's answer has no data")
            if end >= len(self._rest):
                break
            if self._rest[end : end + 1] != b"\n":
                raise OutputError("not RELP: the receiver's answer does not end where it says")
            answers.append(Answer(int(found[1]), found[2].decode(), self._rest[found.end() : end]))
            at = end + 1
        self._rest = self._rest[at:]
        return answers


class RelpOutput(BaseOutput):
    """Alerts to a RELP receiver; :meth:`send` returns when every one is acknowledged.

    After a lost connection what was acknowledged stands, and the rest goes again: an alert may arrive twice.
    """

    batch_alerts = 512

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self._host = host
        self._port = port
        self._timeout_s = timeout_s
        self._connection: Connection | None = None
        self._answers = Answers()
        self._txnr = 0
        self._errors: dict[str, int] = {}

    def open(self) -> None:
        """Connect and agree on the session: the receiver must offer the command ``syslog``."""
        self._drop()
        self._connection = Connection(self._host, self._port, self._timeout_s, protocol="relp")
        self._answers = Answers()
        self._txnr = 0
        offers = f"relp_version=0\nrelp_software=kwsiem,{__version__}\ncommands=syslog"
        try:
            self._connection.write(self._frame(b"open", offers.encode()))
            answer = self._wait(monotonic_s() + self._timeout_s)[0]
            if answer.txnr != 1 or answer.command != "rsp" or not answer.is_ok:
                raise OutputError(f"the receiver does not open a session: {_words(answer)}")
            _require_syslog(answer)
        except OutputError as error:
            raise self._broken(error) from None

    def check(self) -> None:
        """Raise OutputError when the receiver has ended the session."""
        connection = self._live
        try:
            for answer in self._answers.feed(connection.read(0.0)):
                raise OutputError(_unexpected(answer))
            connection.check_end()
        except OutputError as error:
            raise self._broken(error) from None

    def send(self, batch: Sequence[Rendered]) -> None:
        """Send alerts, at most WINDOW of them unanswered; an OutputError says which were acknowledged."""
        on_the_way: dict[int, int] = {}
        taken: set[int] = set()
        errors: dict[int, str] = {}
        following = 0
        end_s = monotonic_s() + SLOW_TIMES * self._timeout_s
        try:
            while following < len(batch) or on_the_way:
                if len(on_the_way) <= WINDOW // 2 and following < len(batch):
                    some = batch[following : following + WINDOW - len(on_the_way)]
                    frames = []
                    for index, alert in enumerate(some, following):
                        frames.append(self._frame(b"syslog", alert.data))
                        on_the_way[self._txnr] = index
                    following += len(some)
                    self._live.write(b"".join(frames))
                for answer in self._wait(min(end_s, monotonic_s() + self._timeout_s)):
                    if answer.command != "rsp" or answer.txnr not in on_the_way:
                        raise OutputError(_unexpected(answer))
                    index = on_the_way.pop(answer.txnr)
                    if answer.is_ok:
                        taken.add(index)
                    else:
                        errors[index] = _words(answer)
        except OutputError as error:
            raise self._broken(error, taken) from None
        self._judge(batch, taken, errors)

    def close(self) -> None:
        """End the session in order, waiting for the receiver's answer for a moment."""
        if self._connection:
            with contextlib.suppress(OutputError):
                self._connection.write(self._frame(b"close", b""))
                self._wait(monotonic_s() + min(_CLOSE_S, self._timeout_s))
        self._drop()

    @property
    def _live(self) -> Connection:
        if self._connection is None:
            raise OutputError("not connected")
        return self._connection

    def _drop(self) -> None:
        """Let the connection go, without a word."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def _frame(self, command: bytes, data: bytes) -> bytes:
        self._txnr = 1 if self._txnr >= MAX_TXNR else self._txnr + 1
        head = b"%d %s %d" % (self._txnr, command, len(data))
        return head + b" " + data + b"\n" if data else head + b"\n"

    def _wait(self, end_s: float) -> list[Answer]:
        """At least one answer, by ``end_s`` (monotonic)."""
        while (left_s := end_s - monotonic_s()) > 0:
            self._live.acknowledge()
            data = self._live.read(left_s)
            if data and (answers := self._answers.feed(data)):
                return answers
        raise OutputError("timed out: the receiver does not answer")

    def _judge(self, batch: Sequence[Rendered], taken: set[int], errors: Mapping[int, str]) -> None:
        """What becomes of alerts that were answered with an error.

        They are tried again; one that fails MAX_ERRORS times while others are taken is itself the cause.
        """
        counts = {batch[index].id: self._errors.get(batch[index].id, 0) + 1 for index in errors}
        self._errors = counts
        if not errors:
            return
        refused = {
            index: reason
            for index, reason in errors.items()
            if taken and counts[batch[index].id] >= MAX_ERRORS
        }
        reason = next(iter(errors.values()))
        raise OutputError(
            f"{self._where}: {reason}", retryable=len(refused) < len(errors), taken=taken, refused=refused
        )

    @property
    def _where(self) -> str:
        return f"{self._host}:{self._port} (relp)"

    def _broken(self, error: OutputError, taken: Iterable[int] = ()) -> OutputError:
        """The error with the receiver's name before it; the session is not used again."""
        self._drop()
        message = str(error).removeprefix(f"{self._where}: ")
        return OutputError(f"{self._where}: {message}", taken=taken)


def _require_syslog(answer: Answer) -> None:
    """Raise OutputError unless the offers of the receiver have a version and the command syslog."""
    offers = dict(line.partition(b"=")[::2] for line in answer.data.split(b"\n")[1:])
    if b"relp_version" not in offers or b"syslog" not in offers.get(b"commands", b"").split(b","):
        raise OutputError(f"the receiver does not offer the command syslog: {_words(answer)}")


def _unexpected(answer: Answer) -> str:
    if answer.command == "serverclose":
        return "the receiver ends the session"
    return f"unexpected answer {answer.txnr} {answer.command}: {_words(answer)}"


def _words(answer: Answer) -> str:
    return ascii(answer.data[:200].decode("utf-8", "replace"))
