"""A receiver of Standard Webhooks, from the specification: signature, five minutes, and no id twice."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import datetime, timezone
from typing import Any

from peers.web import Peer, Reply, Request, alert_id

SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
TOLERANCE_S = 300


class Webhook(Peer):
    """``key`` None takes unsigned messages. ``fates`` are answers for the next tries of an alert id."""

    def __init__(self, *, key: bytes | None = base64.b64decode(SECRET[6:]), **options: Any) -> None:
        self.key = key
        self.fates: dict[str, list[Reply]] = {}
        self.repeated: list[str] = []
        self.rejected: list[str] = []
        self.bodies: dict[str, bytes] = {}
        super().__init__(**options)

    def serve(self, request: Request) -> Reply:
        problem = self._problem(request)
        if problem:
            self.rejected.append(problem)
            return Reply(400, problem.encode())
        found = request.headers["webhook-id"]
        if self.fates.get(found):
            return self.fates[found].pop(0)
        if found in self.bodies:
            self.repeated.append(found)
            return Reply(200)
        self.bodies[found] = request.body
        self.stored.append(found)
        return Reply(204)

    def _problem(self, request: Request) -> str:
        head = request.headers
        if request.method != "POST" or not head.get("webhook-id") or "webhook-timestamp" not in head:
            return "no webhook"
        if not head["webhook-timestamp"].isdecimal():
            return "timestamp"
        if abs(datetime.now(timezone.utc).timestamp() - int(head["webhook-timestamp"])) > TOLERANCE_S:
            return "too old or too new"
        if self.key is not None and not self._is_signed(request):
            return "signature"
        if head.get("content-type") == "application/json":
            body = json.loads(request.body)
        elif head.get("content-type") == "text/plain; charset=utf-8":
            body = request.body.decode()
        else:
            return "content type"
        return "" if alert_id(body) == head["webhook-id"] else "id"

    def _is_signed(self, request: Request) -> bool:
        head = request.headers
        signed = ".".join((head["webhook-id"], head["webhook-timestamp"], "")).encode() + request.raw
        mac = hmac.new(self.key or b"", signed, hashlib.sha256)
        wanted = "v1," + base64.standard_b64encode(mac.digest()).decode("ascii")
        return wanted in head.get("webhook-signature", "").split(" ")
