"""A webhook: one signed POST for each alert, as in Standard Webhooks.

The receiver checks ``webhook-signature`` over id, time and the exact body, refuses what is older than five
minutes, and remembers ids: an alert keeps its id over all tries, the time is that of the try.

Source: the Standard Webhooks specification (standardwebhooks.com), "Signature scheme", "Operational
considerations".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Final

from kwsiem.clock import NS_PER_S, wall_ns
from kwsiem.errors import ConfigError, OutputError
from kwsiem.output_settings import WebhookSettings
from kwsiem.outputs.base import BaseOutput, Rendered
from kwsiem.outputs.http import Answer, HttpClient, describe
from kwsiem.outputs.push import content_type

log = logging.getLogger("kwsiem.outputs")

#: The destination must be mended; nothing is wrong with the alert.
_MISCONFIGURED: Final[Mapping[int, str]] = {
    401: "not authorized",
    403: "forbidden",
    404: "nothing at this URL",
    405: "this URL takes no POST",
    407: "the proxy wants a password",
    410: "the destination is gone for good: remove this output",
}
_PREFIX: Final = "whsec_"
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}\Z", re.ASCII)  # RFC 9110 section 5.6.2
_HEADER_VALUE: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,1022}[\x21-\x7e])?\Z", re.ASCII)
_OWN_HEADERS: Final = frozenset(
    {"content-type", "content-length", "content-encoding", "transfer-encoding", "connection", "host",
     "webhook-id", "webhook-timestamp", "webhook-signature"}
)  # fmt: skip


class WebhookOutput(BaseOutput):
    """Posts each alert to the URL."""

    batch_alerts = 20

    def __init__(self, settings: WebhookSettings, secrets: Mapping[str, str]) -> None:
        self._http = HttpClient(settings)
        if not self._http.is_https and not settings.allow_http:
            raise ConfigError(
                f"output {settings.name!r}: url: expected https://; allow_http: true permits http://"
            )
        self._key = signing_key(settings.name, secrets.get("signing", ""))
        self._headers = {"Content-Type": content_type(settings), **_checked_headers(settings)}

    def open(self) -> None:
        """Nothing: the first request connects."""

    def check(self) -> None:
        """Nothing: there is no request that would not be taken for an alert."""

    def send(self, batch: Sequence[Rendered]) -> None:
        """Post one alert after the other."""
        for index, alert in enumerate(batch):
            try:
                answer = self._post(alert)
            except OutputError as error:
                raise OutputError(str(error), sent=index) from None
            if not answer.ok:
                raise self._error(answer, index)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _post(self, alert: Rendered) -> Answer:
        body = alert.data.rstrip(b"\n")
        sent_s = wall_ns() // NS_PER_S
        headers = {**self._headers, "webhook-id": alert.id, "webhook-timestamp": str(sent_s)}
        if self._key:
            headers["webhook-signature"] = signature(self._key, alert.id, sent_s, body)
        answer = self._http.post("", body, headers)
        self.answer = describe(answer)
        return answer

    def _error(self, answer: Answer, index: int) -> OutputError:
        taken = tuple(range(index))
        if answer.status in {408, 429} or answer.status >= 500:
            return self._http.error(answer, taken=taken)
        if answer.status in _MISCONFIGURED or answer.status < 400:
            words = _MISCONFIGURED.get(answer.status, "an answer that is no 2xx; redirects are not followed")
            return self._http.error(answer, words, misconfigured=True, taken=taken)
        return OutputError(f"{self._http.where}: {describe(answer)}", retryable=False, sent=index)


def signature(key: bytes, message_id: str, sent_s: int, body: bytes) -> str:
    """The value of ``webhook-signature``; ``sent_s`` in seconds since 1970."""
    signed = b"%b.%d.%b" % (message_id.encode(), sent_s, body)
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def signing_key(name: str, secret: str) -> bytes:
    """The key of a secret: ``whsec_`` and base64, or any text as it is; raises ConfigError."""
    if not secret.startswith(_PREFIX):
        if not secret:
            log.warning("output %s: alerts are not signed (signing_secret is empty)", name)
        return secret.encode()
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not key:
        raise ConfigError(f"output {name!r}: signing_secret: what follows whsec_ is not base64")
    return key


def _checked_headers(settings: WebhookSettings) -> dict[str, str]:
    for name, value in settings.headers.items():
        if not _HEADER_NAME.match(name) or name.lower() in _OWN_HEADERS:
            raise ConfigError(f"output {settings.name!r}: headers: {name!r} is not allowed")
        if not _HEADER_VALUE.match(value):
            raise ConfigError(f"output {settings.name!r}: headers: {name}: expected printable ASCII")
    return dict(settings.headers)
