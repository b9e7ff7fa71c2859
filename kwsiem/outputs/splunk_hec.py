"""Splunk HTTP Event Collector: batches of JSON envelopes, with the indexer's acknowledgement if wanted.

Envelopes are put one behind the other, not into an array. A 400 that names an event means that those before
it are in, and neither it nor those behind it (seen by others on 10.4): it is refused and the rest goes on.
With ``acknowledge`` an alert is delivered when the indexer has it on disk; a Splunk that was killed before
that gets it again.

Sources: Splunk Enterprise, "Format events for HTTP Event Collector", "HTTP Event Collector REST API
endpoints", "About HTTP Event Collector Indexer Acknowledgment", "Troubleshoot HTTP Event Collector" (codes).
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from kwsiem.clock import monotonic_s, sleep_s
from kwsiem.errors import ConfigError, OutputError
from kwsiem.output_settings import SplunkHecSettings
from kwsiem.outputs.base import BaseOutput, Rendered
from kwsiem.outputs.http import Answer, HttpClient, describe
from kwsiem.outputs.push import Verdict, encode, facts, is_json, push

log = logging.getLogger("kwsiem.outputs")

EVENT_PATH: Final = "/services/collector/event"
ACK_PATH: Final = "/services/collector/ack"
#: Splunk Cloud takes 1 MB in a request.
MAX_REQUEST_BYTES: Final = 900_000
#: An acknowledgement is asked for after this, then after twice as long, up to the most.
_POLL_FIRST_S: Final = 0.1
_POLL_MOST_S: Final = 2.0

#: What an operator must mend, by the code in the answer.
_MISCONFIGURED: Final[Mapping[int, str]] = {
    1: "the token is disabled",
    2: "a token is required",
    3: "the token is not sent as Splunk wants it",
    4: "the token is not valid",
    7: "the token may not write to this index",
    10: "the token wants acknowledge: true",
    11: "the channel is not valid",
    16: "the token must stand in a header",
    21: "the token is not valid",
    22: "the token is disabled",
}
#: What is wrong with one event.
_REFUSED: Final[Mapping[int, str]] = {
    5: "no data",
    6: "invalid data format",
    12: "event field is required",
    13: "event field is blank",
    15: "error in indexed fields",
}
_ACK_DISABLED: Final = 14


class _Said(msgspec.Struct):
    """The body of an answer; -1 is absent."""

    code: int = -1
    ack_id: int = msgspec.field(default=-1, name="ackId")
    invalid_event: int = msgspec.field(default=-1, name="invalid-event-number")


class SplunkHecOutput(BaseOutput):
    """Posts to the collector; ``sleep`` waits between two questions for an acknowledgement."""

    batch_alerts = 500

    def __init__(
        self,
        settings: SplunkHecSettings,
        secrets: Mapping[str, str],
        *,
        sleep: Callable[[float], None] = sleep_s,
    ) -> None:
        if not secrets.get("token"):
            raise ConfigError(f"output {settings.name!r}: token_secret: expected the name of a secret")
        # A load balancer keeps us at the node that has our acknowledgements by a cookie.
        self._http = HttpClient(settings, cookies=settings.acknowledge)
        self._settings = settings
        self._is_json = is_json(settings)
        self._headers = {"Authorization": f"Splunk {secrets['token']}", "Content-Type": "application/json"}
        self._acknowledge = settings.acknowledge
        self._channel = ""
        self._pending: dict[int, Sequence[int]] = {}
        self._sleep = sleep

    def open(self) -> None:
        """Nothing: the first request connects. A new channel, what was not acknowledged is sent again."""
        self._channel = str(uuid.uuid4())

    def check(self) -> None:
        """Nothing: a request each second would be noise in the receiver's log."""

    def send(self, batch: Sequence[Rendered]) -> None:
        """Post the batch, and wait for its acknowledgement if wanted (``acknowledge_timeout_s`` at most)."""
        self._pending = {}
        failed: OutputError | None = None
        try:
            push(batch, self._envelope, len, MAX_REQUEST_BYTES, self._post)
        except OutputError as error:
            failed = error
        unacknowledged = self._await_acknowledgements() if self._pending else set()
        if unacknowledged:
            raise self._late(len(batch), failed, unacknowledged)
        if failed:
            raise failed

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _envelope(self, alert: Rendered) -> bytes:
        found = facts(alert.source)
        line = alert.data.rstrip(b"\n")
        event: Any = msgspec.Raw(line) if self._is_json else line.decode("utf-8", "replace")
        envelope = {
            "time": msgspec.Raw(found.seconds.encode()),
            "host": found.host.name,
            "source": self._settings.source,
            "sourcetype": self._settings.sourcetype,
            "index": self._settings.index,
            "event": event,
        }
        return encode({key: value for key, value in envelope.items() if value != ""})

    def _post(self, items: Mapping[int, bytes]) -> Verdict:
        headers = dict(self._headers)
        if self._acknowledge:
            headers["X-Splunk-Request-Channel"] = self._channel
        answer = self._http.post(EVENT_PATH, b"\n".join(items.values()), headers, compress=True)
        said = _said(answer)
        self.answer = describe(answer)
        if answer.status == 200 and said.code == 0:
            self._note_acknowledgement(said.ack_id, list(items))
            return Verdict()
        if answer.status == 413:
            return Verdict(too_much="larger than the server takes")
        if said.code in _MISCONFIGURED:
            raise self._misconfigured(answer, said, list(items))
        if answer.status == 400 and said.code in _REFUSED:
            return self._without_the_bad_one(said, list(items))
        if answer.status in {408, 429} or answer.status >= 500:
            raise self._http.error(answer)
        raise self._http.error(answer, f"not a HEC answer: {answer.text}", misconfigured=True)

    def _note_acknowledgement(self, ack_id: int, indexes: Sequence[int]) -> None:
        if not self._acknowledge:
            return
        if ack_id < 0:
            self._give_up_acknowledgements()
        else:
            self._pending[ack_id] = indexes

    def _misconfigured(self, answer: Answer, said: _Said, indexes: Sequence[int]) -> OutputError:
        """For an index that is not allowed (7) the number is that of the event behind the bad one."""
        before = max(0, said.invalid_event - 1) if said.code == 7 else 0
        words = f"{_MISCONFIGURED[said.code]}, code {said.code}"
        return self._http.error(answer, words, misconfigured=True, taken=tuple(indexes[:before]))

    def _without_the_bad_one(self, said: _Said, indexes: Sequence[int]) -> Verdict:
        words = f"{_REFUSED[said.code]}, code {said.code}"
        bad = 0 if len(indexes) == 1 else said.invalid_event
        if not 0 <= bad < len(indexes):
            return Verdict(too_much=words)
        return Verdict(refused={indexes[bad]: words}, again=indexes[bad + 1 :])

    # acknowledgements ---------------------------------------------------------------------------

    def _await_acknowledgements(self) -> set[int]:
        """Ask until all are there; gives the indexes of those that are not within the time."""
        deadline_s = monotonic_s() + self._settings.acknowledge_timeout_s
        pause_s = _POLL_FIRST_S
        while self._pending:
            try:
                self._ask()
            except OutputError as error:
                log.info("output %s: acknowledgements cannot be read: %s", self._settings.name, error)
            if not self._pending or monotonic_s() >= deadline_s:
                break
            self._sleep(pause_s)
            pause_s = min(_POLL_MOST_S, 2 * pause_s)
        return {index for indexes in self._pending.values() for index in indexes}

    def _ask(self) -> None:
        answer = self._http.post(
            f"{ACK_PATH}?channel={self._channel}", encode({"acks": list(self._pending)}), self._headers
        )
        found = answer.json()
        if answer.status == 400 and _said(answer).code == _ACK_DISABLED:
            self._give_up_acknowledgements()
        elif answer.ok and isinstance(found, dict) and isinstance(found.get("acks"), dict):
            for ack_id, is_there in found["acks"].items():
                if is_there is True and ack_id.isdecimal():
                    self._pending.pop(int(ack_id), None)
        else:
            raise self._http.error(answer)

    def _give_up_acknowledgements(self) -> None:
        log.warning(
            "output %s: this token gives no acknowledgements; 'taken' now means parsed, not indexed",
            self._settings.name,
        )
        self._acknowledge = False
        self._pending = {}

    def _late(self, alerts: int, failed: OutputError | None, unacknowledged: set[int]) -> OutputError:
        """All that was posted is taken but for what was not acknowledged."""
        taken = set(range(alerts)) if failed is None or not failed.retryable else set(failed.taken)
        return OutputError(
            f"{self._http.where}: not acknowledged within {self._settings.acknowledge_timeout_s:g} s",
            taken=taken - unacknowledged,
            refused=failed.refused if failed else None,
            retry_after_s=failed.retry_after_s if failed else None,
        )


def _said(answer: Answer) -> _Said:
    try:
        return msgspec.json.decode(answer.body, type=_Said)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Said()
