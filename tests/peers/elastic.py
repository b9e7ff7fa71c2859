"""Elasticsearch's ``_bulk`` for one data stream, as its reference describes it ("Bulk API", "Data streams")."""

from __future__ import annotations

import base64
import ipaddress
import re
from datetime import datetime
from typing import Any

from peers.web import Peer, Reply, Request, alert_id, strict_json

API_KEY = base64.b64encode(b"kwsiem-id:kwsiem-key").decode()
USER, PASSWORD = "kwsiem", "correct horse"
_BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
_PATH = re.compile(r"/(?P<stream>[^/]+)/_bulk")
_WANTED = {"errors", "error", "items.*.status", "items.*.error.type", "items.*.error.reason"}


def error(status: int, kind: str, reason: str) -> Reply:
    return Reply.json({"error": {"type": kind, "reason": reason}, "status": status}, status)


class Elastic(Peer):
    """``fates`` are (status, type, reason) for the next tries of an alert id; the last one stays."""

    def __init__(self, *, stream: str = "logs-kwsiem.alert-default", **options: Any) -> None:
        self.stream = stream
        self.fates: dict[str, list[tuple[int, str, str] | None]] = {}
        self.max_bytes = 100_000_000
        self.takes_gzip = True
        self.documents: dict[str, dict[str, Any]] = {}
        self.conflicts = 0
        super().__init__(**options)

    def serve(self, request: Request) -> Reply:
        if request.headers.get("authorization") not in {f"ApiKey {API_KEY}", f"Basic {_BASIC}"}:
            return error(401, "security_exception", "missing authentication credentials")
        if request.method != "POST" or not (found := _PATH.fullmatch(request.path)):
            return error(405, "method_not_allowed", "not allowed")
        if request.headers.get("content-type") not in {"application/x-ndjson", "application/json"}:
            return error(406, "media_type_header_exception", "Content-Type not supported")
        if not self.takes_gzip and "content-encoding" in request.headers:
            return error(415, "unsupported", "no gzip")
        body = request.body
        if len(body) > self.max_bytes:
            return Reply(413, b"")
        if not body.endswith(b"\n"):
            return error(
                400, "illegal_argument_exception", "The bulk request must be terminated by a newline [\\n]"
            )
        lines = body[:-1].split(b"\n")
        if len(lines) % 2:
            return error(400, "illegal_argument_exception", "Malformed action/metadata line")
        items = [self._item(found["stream"], *lines[place : place + 2]) for place in range(0, len(lines), 2)]
        return self._answer(request, items)

    def _answer(self, request: Request, items: list[dict[str, Any]]) -> Reply:
        wanted = set(request.query.get("filter_path", "").split(",")) - {""}
        if wanted and wanted != _WANTED:
            self.violations.append(f"unknown filter_path {wanted}")
        failed = any("error" in item["create"] for item in items)
        if wanted:
            items = [
                {"create": {key: item["create"][key] for key in ("status", "error") if key in item["create"]}}
                for item in items
            ]
        return Reply.json({"errors": failed, "items": items})

    def _item(self, stream: str, action_line: bytes, document_line: bytes) -> dict[str, Any]:
        ((action, meta),) = strict_json(action_line).items()
        found = str(meta.get("_id", ""))
        if action != "create":
            return _failed(action, found, 400, "illegal_argument_exception", "only op_type create")
        if stream != self.stream:
            return _failed(action, found, 404, "index_not_found_exception", f"no such index [{stream}]")
        if found in self.documents:
            self.conflicts += 1
            return _failed(action, found, 409, "version_conflict_engine_exception", "document already exists")
        fates = self.fates.get(found)
        fate = (fates.pop(0) if len(fates) > 1 else fates[0]) if fates else None
        if fate:
            return _failed(action, found, *fate)
        try:
            document = strict_json(document_line)
            self._map(document)
            if alert_id(document) != found:
                raise ValueError(f"_id {found} of another alert")
        except ValueError as problem:
            return _failed(action, found, 400, "document_parsing_exception", str(problem))
        self.documents[found] = document
        self.stored.append(found)
        return {action: {"_index": f".ds-{stream}-000001", "_id": found, "_version": 1, "status": 201}}

    def _map(self, document: dict[str, Any]) -> None:
        """What the mapping of logs-*-* would not take."""
        if not isinstance(document, dict) or "@timestamp" not in document:
            raise ValueError("data stream timestamp field [@timestamp] is missing")
        datetime.fromisoformat(document["@timestamp"].replace("Z", "+00:00"))
        kind, dataset, namespace = self.stream.split("-")
        own = document.get("data_stream", {"type": kind, "dataset": dataset, "namespace": namespace})
        if own != {"type": kind, "dataset": dataset, "namespace": namespace}:
            raise ValueError("[constant_keyword] field [data_stream.*] only accepts values of this stream")
        for side in ("source", "destination"):
            if "ip" in document.get(side, {}):
                ipaddress.ip_address(document[side]["ip"])


def _failed(action: str, found: str, status: int, kind: str, reason: str) -> dict[str, Any]:
    return {action: {"_id": found, "status": status, "error": {"type": kind, "reason": reason}}}
