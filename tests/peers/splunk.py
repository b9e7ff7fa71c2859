"""Splunk's HTTP Event Collector as its documents describe it.

"Format events for HTTP Event Collector", "HTTP Event Collector REST API endpoints", "Troubleshoot HTTP Event
Collector", "About HTTP Event Collector Indexer Acknowledgment". Events before a bad one of a batch are stored.
"""

from __future__ import annotations

import json
import uuid
from decimal import Decimal
from typing import Any

from peers.web import Peer, Refused, Reply, Request, alert_id

TOKEN = "b0221cd8-c4b4-465a-9a3c-273e3a75aa29"
_KEYS = {"time", "host", "source", "sourcetype", "index", "event", "fields"}
_EVENT_PATHS = {"/services/collector", "/services/collector/event", "/services/collector/event/1.0"}
_TEXTS = {
    0: (200, "Success"), 1: (403, "Token disabled"), 2: (401, "Token is required"),
    3: (401, "Invalid authorization"), 4: (403, "Invalid token"), 5: (400, "No data"),
    6: (400, "Invalid data format"), 7: (400, "Incorrect index"), 8: (500, "Internal server error"),
    9: (503, "Server is busy"), 10: (400, "Data channel is missing"), 11: (400, "Invalid data channel"),
    12: (400, "Event field is required"), 13: (400, "Event field cannot be blank"),
    14: (400, "ACK is disabled"), 15: (400, "Error in handling indexed fields"),
}  # fmt: skip


def reply(code: int, **more: Any) -> Reply:
    status, text = _TEXTS[code]
    return Reply.json({"text": text, "code": code, **more}, status)


class Stop(Exception):
    """An answer with one of the collector's codes."""

    def __init__(self, code: int, **more: Any) -> None:
        super().__init__(code)
        self.reply = reply(code, **more)


class Splunk(Peer):
    """``bad`` are alert ids refused with a code. ``ack_after``: so many questions are answered with false."""

    def __init__(self, **options: Any) -> None:
        self.token_enabled = True
        self.indexes = {"main", "security"}
        self.bad: dict[str, int] = {}
        self.numbers = True
        self.max_bytes = 1_000_000
        self.takes_gzip = True
        self.acks = False
        self.ack_after = 0
        self.lost_acks: set[int] = set()
        self.events: list[dict[str, Any]] = []
        self._channels: dict[str, dict[int, int]] = {}
        self._next_ack: dict[str, int] = {}
        super().__init__(**options)

    def serve(self, request: Request) -> Reply:
        try:
            self._authorize(request)
            if request.path in _EVENT_PATHS:
                return self._events(request)
            if request.path == "/services/collector/ack":
                return self._ack(request)
        except Stop as stop:
            return stop.reply
        return Reply(404, b"not found")

    def _authorize(self, request: Request) -> None:
        if request.method != "POST":
            raise Refused(405, "method not allowed")
        given = request.headers.get("authorization", "")
        if not given:
            raise Stop(2)
        word, _, token = given.partition(" ")
        if word != "Splunk":
            raise Stop(3)
        if token != TOKEN:
            raise Stop(4)
        if not self.token_enabled:
            raise Stop(1)

    def _channel(self, request: Request) -> str:
        channel = request.headers.get("x-splunk-request-channel") or request.query.get("channel", "")
        if not channel:
            raise Stop(10)
        try:
            return str(uuid.UUID(channel))
        except ValueError:
            raise Stop(11) from None

    def _events(self, request: Request) -> Reply:
        channel = self._channel(request) if self.acks else ""
        if not self.takes_gzip and "content-encoding" in request.headers:
            return Reply(415, b"unsupported media type")
        if len(request.body) > self.max_bytes:
            return Reply(413, b"content length too large")
        self._take(request.body.decode())
        if not self.acks:
            return reply(0)
        number = self._next_ack.get(channel, 0)
        self._next_ack[channel] = number + 1
        if number not in self.lost_acks:
            self._channels.setdefault(channel, {})[number] = self.ack_after
        return reply(0, ackId=number)

    def _take(self, text: str) -> None:
        decoder = json.JSONDecoder(parse_float=Decimal)
        place, number = 0, 0
        while place < len(text):
            if text[place].isspace():
                place += 1
                continue
            try:
                event, place = decoder.raw_decode(text, place)
            except ValueError:
                raise Stop(6, **self._number(number)) from None
            self._store(event, number)
            number += 1
        if not number:
            raise Stop(5)

    def _store(self, event: Any, number: int) -> None:
        where = self._number(number)
        if not isinstance(event, dict) or set(event) - _KEYS:
            raise Stop(6, **where)
        if not isinstance(event.get("time"), (int, Decimal)):
            raise Stop(6, **where)
        if "event" not in event or event["event"] is None:
            raise Stop(12, **where)
        if event["event"] in ("", {}, False):
            raise Stop(13, **where)
        if event.get("index", "main") not in self.indexes:
            raise Stop(7, **self._number(number + 1))
        found = alert_id(event["event"])
        if found in self.bad:
            raise Stop(self.bad[found], **where)
        self.events.append(event)
        self.stored.append(found)

    def _number(self, number: int) -> dict[str, int]:
        return {"invalid-event-number": number} if self.numbers else {}

    def _ack(self, request: Request) -> Reply:
        if not self.acks:
            raise Stop(14)
        known = self._channels.get(self._channel(request), {})
        answer = {}
        for number in json.loads(request.body)["acks"]:
            left = known.get(number)
            answer[str(number)] = left == 0
            if left == 0:
                del known[number]  # said once, then forgotten
            elif left is not None:
                known[number] = left - 1
        return Reply.json({"acks": answer})
