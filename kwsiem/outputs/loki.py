"""Grafana Loki: alerts as lines of streams with few labels; the id stands in the structured metadata.

Labels are job, host, level and rule, and those of the settings; never an address, a user or an id: each value
of a label makes a stream. After a 400 nothing is known of the other entries of the push, so it is sent in
halves until the bad one stands alone; what Loki has already it stores once (same stream, time and line).

Sources: Grafana Loki HTTP API ("Ingest logs"), "limits_config" (label names, line size, 168 h), "Structured
metadata", "Labels".
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from kwsiem.errors import ConfigError
from kwsiem.output_settings import LokiSettings
from kwsiem.outputs.base import BaseOutput, Rendered
from kwsiem.outputs.http import HttpClient, basic, describe
from kwsiem.outputs.push import Verdict, encode, facts, push
from kwsiem.text import clean, cut_bytes

log = logging.getLogger("kwsiem.outputs")

PUSH_PATH: Final = "/loki/api/v1/push"
MAX_REQUEST_BYTES: Final = 1_000_000
#: limits_config: max_line_size, max_label_names_per_series, max_label_value_length.
MAX_LINE_BYTES: Final = 256 * 1024
MAX_LABELS: Final = 15
MAX_LABEL_BYTES: Final = 1024
OWN_LABELS: Final = ("job", "host", "level", "rule")
_LABEL: Final = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]{0,127}\Z", re.ASCII)


class Entry(msgspec.Struct, frozen=True):
    """One alert for the push: the labels of its stream in order, its time, line and id."""

    labels: tuple[tuple[str, str], ...]
    ns: str
    line: str
    id: str


class LokiOutput(BaseOutput):
    """Posts to the push endpoint."""

    batch_alerts = 500

    def __init__(self, settings: LokiSettings, secrets: Mapping[str, str]) -> None:
        self._http = HttpClient(settings)
        self._name = settings.name
        self._labels = _checked_labels(settings)
        self._headers = {"Content-Type": "application/json"}
        if settings.tenant:
            self._headers["X-Scope-OrgID"] = settings.tenant
        if "token" in secrets:
            self._headers["Authorization"] = f"Bearer {secrets['token']}"
        elif settings.user:
            self._headers["Authorization"] = basic(settings.name, settings.user, secrets)
        self._metadata = True

    def open(self) -> None:
        """Nothing: the first request connects."""

    def check(self) -> None:
        """Nothing: a request each second would be noise in the receiver's log."""

    def send(self, batch: Sequence[Rendered]) -> None:
        """Post the batch."""
        push(batch, self._entry, lambda entry: len(entry.line) + 512, MAX_REQUEST_BYTES, self._post)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _entry(self, alert: Rendered) -> Entry:
        line = alert.data.rstrip(b"\n")
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"line of {len(line)} bytes, Loki takes {MAX_LINE_BYTES}")
        found = facts(alert.source)
        labels = {
            "job": "kwsiem",
            "host": found.host.name,
            "level": found.kwsiem.alert.level,
            "rule": found.rule.id,
            **self._labels,
        }
        return Entry(
            tuple((name, cut_bytes(value, MAX_LABEL_BYTES)) for name, value in labels.items() if value),
            found.ns,
            line.decode("utf-8", "replace"),
            alert.id,
        )

    def _post(self, items: Mapping[int, Entry]) -> Verdict:
        answer = self._http.post(PUSH_PATH, self._body(items.values()), self._headers, compress=True)
        self.answer = describe(answer)
        if answer.status == 204 or (answer.status == 200 and not answer.body):
            return Verdict()
        if answer.status == 400:
            if self._metadata and b"structured metadata" in answer.body:
                log.warning("output %s: this Loki takes no structured metadata; sent without", self._name)
                self._metadata = False
                return Verdict(again=list(items))
            return Verdict(too_much=f"400 {answer.text}")
        if answer.status == 413:
            return Verdict(too_much="larger than the server takes")
        if answer.status in {408, 429} or answer.status >= 500:
            raise self._http.error(answer)
        raise self._http.error(answer, misconfigured=True)

    def _body(self, entries: Any) -> bytes:
        """One stream for each set of labels, its entries oldest first."""
        streams: dict[tuple[tuple[str, str], ...], list[Entry]] = {}
        for entry in entries:
            streams.setdefault(entry.labels, []).append(entry)
        return encode(
            {
                "streams": [
                    {
                        "stream": dict(labels),
                        "values": [self._value(e) for e in sorted(found, key=lambda e: int(e.ns))],
                    }
                    for labels, found in streams.items()
                ]
            }
        )

    def _value(self, entry: Entry) -> list[Any]:
        return [entry.ns, entry.line, *([{"alert_id": entry.id}] if self._metadata else [])]


def _checked_labels(settings: LokiSettings) -> dict[str, str]:
    where = f"output {settings.name!r}: labels"
    if len(settings.labels) > MAX_LABELS - len(OWN_LABELS):
        raise ConfigError(f"{where}: at most {MAX_LABELS - len(OWN_LABELS)} labels of your own")
    for name, value in settings.labels.items():
        if name in OWN_LABELS or not _LABEL.match(name):
            raise ConfigError(f"{where}: {name!r}: letters, digits and _ only, and none of {OWN_LABELS}")
        if not value or clean(value, len(value)) != value:
            raise ConfigError(f"{where}: {name}: empty, or with control characters")
    return dict(settings.labels)
