"""Grafana Loki's push endpoint, as its API and limits_config describe it; valid entries beside bad ones are stored."""

from __future__ import annotations

import base64
import re
from typing import Any

from peers.web import Peer, Reply, Request, alert_id, strict_json

TOKEN = "glsa_loki-token-0123"
USER, PASSWORD = "tenant-7", "loki password"
_BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
HOUR_NS = 3600 * 10**9


class Loki(Peer):
    """``now_ns`` is its clock. ``bad`` are alert ids whose entry is refused."""

    def __init__(self, *, now_ns: int, **options: Any) -> None:
        self.now_ns = now_ns
        self.tenants = False
        self.authorization: str | None = None
        self.structured_metadata = True
        self.bad: set[str] = set()
        self.max_bytes = 4_000_000
        self.entries: dict[tuple[Any, ...], dict[str, str]] = {}
        self.repeated = 0
        self._newest: dict[tuple[Any, ...], int] = {}
        super().__init__(**options)

    def serve(self, request: Request) -> Reply:
        if (request.method, request.path) != ("POST", "/loki/api/v1/push"):
            return Reply(404, b"page not found")
        if self.authorization and request.headers.get("authorization") != self.authorization:
            return Reply(401, b"unauthorized")
        if self.tenants and not request.headers.get("x-scope-orgid"):
            return Reply(401, b"no org id")
        if request.headers.get("content-type") != "application/json":
            return Reply(400, b"snappy: corrupt input")
        body = request.body
        if len(body) > self.max_bytes:
            return Reply(413, b"request body too large")
        try:
            streams = strict_json(body)["streams"]
            problems = [self._entry(stream, value) for stream in streams for value in self._values(stream)]
        except (ValueError, KeyError, TypeError) as error:
            return Reply(400, f"parse error: {error}".encode())
        found = [problem for problem in problems if problem]
        return Reply(400, f"{found[0]}, total ignored: {len(found)}".encode()) if found else Reply(204)

    def _values(self, stream: dict[str, Any]) -> list[Any]:
        labels = stream["stream"]
        if not labels:
            raise ValueError("at least one label pair is required per stream")
        if len(labels) > 15:
            raise ValueError(f"stream has {len(labels)} label names; limit 15")
        for name, value in labels.items():
            if not _LABEL.fullmatch(name) or name.startswith("__"):
                raise ValueError(f"invalid label name {name}")
            if not isinstance(value, str) or len(value.encode()) > 2048 or not value:
                raise ValueError(f"invalid value of label {name}")
        return stream["values"]  # type: ignore[no-any-return]

    def _entry(self, stream: dict[str, Any], value: list[Any]) -> str:
        labels = tuple(sorted(stream["stream"].items()))
        stamp, line, *more = value
        if not isinstance(stamp, str) or not re.fullmatch(r"[0-9]{19}", stamp) or not isinstance(line, str):
            raise ValueError("looking for beginning of value: timestamps are strings of nanoseconds")
        metadata = more[0] if more else {}
        if not all(isinstance(item, str) for pair in metadata.items() for item in pair):
            raise ValueError("structured metadata must be strings")
        if metadata and not self.structured_metadata:
            return f"stream '{dict(labels)}' includes structured metadata, but this feature is disallowed"
        if len(line.encode()) > 256 * 1024:
            return "Max entry size '262144' bytes exceeded"
        at_ns = int(stamp)
        if at_ns < self.now_ns - 168 * HOUR_NS:
            return f"entry for stream '{dict(labels)}' has timestamp too old: {stamp}"
        if at_ns > self.now_ns + HOUR_NS // 6:
            return f"entry for stream '{dict(labels)}' has timestamp too new: {stamp}"
        if at_ns < self._newest.get(labels, 0) - HOUR_NS:
            return f"entry too far behind, entry timestamp is: {stamp}"
        found = alert_id(strict_json(line) if line.startswith("{") else line)
        if found in self.bad:
            return f"entry for stream '{dict(labels)}' is refused"
        self._newest[labels] = max(at_ns, self._newest.get(labels, 0))
        if (labels, stamp, line) in self.entries:
            self.repeated += 1
        else:
            self.entries[labels, stamp, line] = metadata
            self.stored.append(found)
        return ""
