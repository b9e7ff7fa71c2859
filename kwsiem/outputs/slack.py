"""Slack: messages to one channel through its incoming webhook, whose URL is a secret."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kwsiem import secret
from kwsiem.errors import ConfigError, OutputError
from kwsiem.output_settings import SlackSettings
from kwsiem.outputs.base import BaseOutput, Rendered
from kwsiem.outputs.http import Answer, HttpClient, describe

#: "1 per second, short bursts" (Slack, rate limits of incoming webhooks).
LIMIT: Final = (1, 1.0)
#: Slack's words for a message that it will never take; all other refusals are about the webhook.
_ABOUT_THE_MESSAGE: Final = (
    b"invalid_payload",
    b"invalid_blocks",
    b"invalid_attachments",
    b"no_text",
    b"too_many_attachments",
    b"msg_too_long",
    b"msg_blocks_too_long",
)


class SlackOutput(BaseOutput):
    """Posts each message; ``Rendered.data`` is the JSON body. Raises ConfigError."""

    batch_alerts = 20
    limits: Sequence[tuple[int, float]] = (LIMIT,)

    def __init__(self, settings: SlackSettings, url: str) -> None:
        url = (settings.url or url).strip()
        secret.learn(url)
        try:
            self._client = HttpClient(settings, url=url)
        except ConfigError as error:
            raise ConfigError(f"{error} (secret {settings.url_secret})") from None

    def open(self) -> None:
        """Nothing: a webhook can only be asked by posting to it."""

    def check(self) -> None:
        """Nothing: there is no connection to be lost."""

    def send(self, batch: Sequence[Rendered]) -> None:
        """Post one message after the other."""
        for index, alert in enumerate(batch):
            try:
                answer = self._client.post("", alert.data, {"Content-Type": "application/json"})
            except OutputError as error:
                raise OutputError(str(error), sent=index) from None
            self._judge(answer, index)
        self.answer = "ok"

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _judge(self, answer: Answer, index: int) -> None:
        """Nothing when Slack took the message: then it says 200 and ``ok``."""
        if answer.ok and answer.body.strip() == b"ok":
            return
        taken = tuple(range(index))
        if answer.ok:
            raise self._client.error(answer, "not Slack's answer", misconfigured=True, taken=taken)
        if answer.status == 429 or answer.status >= 500:
            raise self._client.error(answer, taken=taken)
        if answer.status in {400, 413} and answer.body.strip().startswith(_ABOUT_THE_MESSAGE):
            raise OutputError(f"{self._client.where}: {describe(answer)}", retryable=False, sent=index)
        raise self._client.error(answer, misconfigured=True, taken=taken)
