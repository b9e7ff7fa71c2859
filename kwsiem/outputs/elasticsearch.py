"""Elasticsearch and OpenSearch by ``_bulk``; an alert's id is the document's, so none is stored twice.

``create`` with an ``_id`` is the one operation that data streams take and that says when a document is there
already (409). The answer has a fate for each document, whatever its HTTP status says.

Sources: Elasticsearch reference, "Bulk API", "Data streams", "Response filtering"; OpenSearch, "Bulk";
Elastic's data stream naming scheme (type-dataset-namespace).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from kwsiem.errors import ConfigError
from kwsiem.output_settings import ElasticsearchSettings, format_of
from kwsiem.outputs.base import BaseOutput, Rendered
from kwsiem.outputs.http import MISCONFIGURED_S, Answer, HttpClient, basic, describe
from kwsiem.outputs.push import Verdict, encode, facts, is_json, push
from kwsiem.text import clean

MAX_REQUEST_BYTES: Final = 2_000_000
_MAX_REASON: Final = 220
#: Index names: lower case, 255 bytes, none of \ / * ? " < > | space , # : and not - _ + first.
_STREAM: Final = re.compile(r"[a-z0-9.][a-z0-9._+@-]{0,254}\Z", re.ASCII)
_NAMED_STREAM: Final = re.compile(r"([a-z0-9._]+)-([a-z0-9._]{1,100})-([a-z0-9._]{1,100})\Z", re.ASCII)
#: Errors with status 400 that are no fault of the document (too many shards; a closed index …).
_DESTINATION_ERRORS: Final = frozenset(
    {"validation_exception", "invalid_index_name_exception", "index_closed_exception"}
)
#: Errors of a whole request with status 400 that are one.
_DOCUMENT_ERRORS: Final = frozenset(
    {"mapper_parsing_exception", "document_parsing_exception", "parse_exception", "parsing_exception",
     "x_content_parse_exception", "json_parse_exception", "strict_dynamic_mapping_exception"}
)  # fmt: skip


class _Error(msgspec.Struct):
    type: str = ""
    reason: str | None = None


class _Result(msgspec.Struct):
    status: int
    error: _Error | None = None


class _Item(msgspec.Struct):
    create: _Result


class _Bulk(msgspec.Struct):
    errors: bool
    items: list[_Item] = []


class ElasticsearchOutput(BaseOutput):
    """Posts to ``<stream>/_bulk``."""

    batch_alerts = 500

    def __init__(self, settings: ElasticsearchSettings, secrets: Mapping[str, str]) -> None:
        if not _STREAM.match(settings.stream):
            raise ConfigError(
                f"output {settings.name!r}: stream: {settings.stream!r} is not the name of a data stream:"
                " lower case letters, digits and ._-+@"
            )
        self._http = HttpClient(settings)
        self._path = (
            f"/{settings.stream}/_bulk"
            "?filter_path=errors,error,items.*.status,items.*.error.type,items.*.error.reason"
        )
        self._headers = {"Content-Type": "application/x-ndjson", **_authorization(settings, secrets)}
        self._format = format_of(settings)
        self._is_json = is_json(settings)
        self._tail = _stream_fields(settings.stream) if self._format == "ecs" else b"}"

    def open(self) -> None:
        """Nothing: the first request connects."""

    def check(self) -> None:
        """Nothing: a request each second would be noise in the receiver's log."""

    def send(self, batch: Sequence[Rendered]) -> None:
        """Post the batch; each alert is taken, refused, or tried again by itself."""
        push(batch, self._lines, len, MAX_REQUEST_BYTES, self._post)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _lines(self, alert: Rendered) -> bytes:
        action = encode({"create": {"_id": alert.id}})
        return b"%b\n%b\n" % (action, self._document(alert))

    def _document(self, alert: Rendered) -> bytes:
        """The rendered alert, with ``@timestamp`` (data streams want it) and the fields of its stream."""
        line = alert.data.rstrip(b"\n")
        if self._format == "ecs":
            return line[:-1] + self._tail
        stamp = facts(alert.source).timestamp
        if self._is_json:
            return b'{"@timestamp":%b,%b' % (encode(stamp), line[1:])
        return encode({"@timestamp": stamp, "message": line.decode("utf-8", "replace")})

    def _post(self, items: Mapping[int, bytes]) -> Verdict:
        answer = self._http.post(self._path, b"".join(items.values()), self._headers, compress=True)
        self.answer = describe(answer, "" if answer.ok else _words(answer))
        if answer.status == 200:
            return self._verdict(answer, list(items))
        if answer.status == 413:
            return Verdict(too_much="larger than the server takes")
        if answer.status == 400 and _error(answer).type in _DOCUMENT_ERRORS:
            return Verdict(too_much=_words(answer))
        if answer.status in {408, 429} or answer.status >= 500:
            raise self._http.error(answer, _words(answer))
        raise self._http.error(answer, _words(answer), misconfigured=True)

    def _verdict(self, answer: Answer, indexes: Sequence[int]) -> Verdict:
        try:
            bulk = msgspec.json.decode(answer.body, type=_Bulk)
        except (msgspec.DecodeError, UnicodeDecodeError):
            bulk = None
        if bulk is None or len(bulk.items) != len(indexes):
            raise self._http.error(answer, f"not a _bulk answer: {answer.text}", misconfigured=True)
        self.answer = f"HTTP 200 ({len(indexes)} documents, errors: {str(bulk.errors).lower()})"
        refused: dict[int, str] = {}
        left: list[int] = []
        slow, words = False, ""
        for index, item in zip(indexes, bulk.items, strict=True):
            found = item.create
            if found.status in {200, 201, 409}:
                continue  # 409: it is there already
            said = _said(found.status, found.error)
            if _is_refused(found):
                refused[index] = said
            else:
                left.append(index)
                words = words or said
                slow = slow or not _is_passing(found.status)
        if not left:
            return Verdict(refused=refused)
        pause_s = max(answer.retry_after_s or 0.0, MISCONFIGURED_S if slow else 0.0)
        error = self._http.error(msgspec.structs.replace(answer, retry_after_s=pause_s or None), words)
        return Verdict(refused=refused, left=left, error=error)


def _is_passing(status: int) -> bool:
    """Whether it may go by itself: a queue that is full, a node that is down."""
    return status in {408, 429} or status >= 500


def _is_refused(found: _Result) -> bool:
    if found.status in {401, 403, 404} or _is_passing(found.status):
        return False
    return not (found.error and found.error.type in _DESTINATION_ERRORS)


def _said(status: int, error: _Error | None) -> str:
    reason = f" {error.type}: {error.reason or ''}" if error else ""
    return clean(f"{status}{reason}", _MAX_REASON)


def _error(answer: Answer) -> _Error:
    """The error of a whole request; an empty one when the body is something else."""
    found: Any = answer.json()
    error = found.get("error") if isinstance(found, dict) else None
    try:
        return msgspec.convert(error, _Error)
    except msgspec.ValidationError:
        return _Error(reason=error if isinstance(error, str) else None)


def _words(answer: Answer) -> str:
    error = _error(answer)
    return clean(f"{error.type}: {error.reason}", _MAX_REASON) if error.type else answer.text


def _authorization(settings: ElasticsearchSettings, secrets: Mapping[str, str]) -> dict[str, str]:
    key = secrets.get("api_key", "")
    if key:
        # Elasticsearch shows a key as id and secret, and encoded; base64 has no colon.
        encoded = base64.b64encode(key.encode()).decode() if ":" in key else key
        return {"Authorization": f"ApiKey {encoded}"}
    if settings.user:
        return {"Authorization": basic(settings.name, settings.user, secrets)}
    return {}


def _stream_fields(stream: str) -> bytes:
    """What follows the last field of an ECS document: the parts of the stream's name, if it has three."""
    found = _NAMED_STREAM.match(stream)
    if not found:
        return b"}"
    kind, dataset, namespace = found.groups()
    fields = encode({"type": kind, "dataset": dataset, "namespace": namespace})
    return b',"data_stream":%b}' % fields
