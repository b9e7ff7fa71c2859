"""The Bot API as both the Telegram output and ChatOps call it: one method, one answer, one kind of error."""

from __future__ import annotations

import logging
import re
from typing import Any, Final

import msgspec

from kwsiem import secret
from kwsiem.errors import ConfigError, OutputError
from kwsiem.output_settings import TelegramSettings
from kwsiem.outputs.http import Answer, HttpClient
from kwsiem.text import clean

log = logging.getLogger("kwsiem.outputs")

_TOKEN: Final = re.compile(r"\d{1,20}:[A-Za-z0-9_-]{1,100}\Z", re.ASCII)
_MAX_WORDS: Final = 160
_HINTS: Final = {
    401: "the bot's token is wrong or was revoked",
    403: "the bot was blocked or is not in the chat",
    404: "the bot's token is malformed, or url is no Bot API",
    409: "somebody else reads this bot's updates, or it has a webhook",
}


class Parameters(msgspec.Struct):
    """What an answer that is not ok may add."""

    retry_after: float | None = None
    migrate_to_chat_id: int | None = None


class Reply(msgspec.Struct):
    """The envelope of every answer of the Bot API; ``result`` stays as it came."""

    ok: bool
    error_code: int = 0
    description: str = ""
    parameters: Parameters = msgspec.field(default_factory=Parameters)
    result: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))

    @property
    def words(self) -> str:
        """What Telegram said, bounded and without secrets."""
        return clean(secret.mask(self.description), _MAX_WORDS)


class UndecodableError(OutputError):
    """The answer is no JSON of the Bot API, or larger than what is read.

    ``body`` is its beginning, empty when the status says that it is an error.
    """

    def __init__(self, error: OutputError, body: bytes) -> None:
        super().__init__(str(error), retry_after_s=error.retry_after_s)
        self.body = body


class Bot:
    """One bot; for one thread. To be made as root; raises ConfigError."""

    def __init__(self, settings: TelegramSettings, token: str) -> None:
        token = token.strip()
        secret.learn(token)
        if not _TOKEN.match(token):
            where = f"output {settings.name!r}: secret {settings.token_secret}"
            raise ConfigError(f"{where}: expected a bot's token, 123456:ABC…")
        self.client = HttpClient(settings)
        self._prefix = f"/bot{token}/"

    def ask(self, method: str, content: dict[str, Any]) -> tuple[Answer, Reply]:
        """The answer to one method: ``ok``, or a 400 that the caller knows what to do with.

        Raises OutputError for all else, with the pause that Telegram asks for.
        """
        body = msgspec.json.encode(content)
        answer = self.client.post(f"{self._prefix}{method}", body, {"Content-Type": "application/json"})
        try:
            reply = msgspec.json.decode(answer.body, type=Reply)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            said = _HINTS.get(answer.status, "no answer of a Bot API")
            error = self.client.error(answer, said, misconfigured=answer.status < 500)
            raise UndecodableError(error, answer.body if answer.ok else b"") from None
        code = reply.error_code or answer.status
        if reply.ok or code == 400:
            return answer, reply
        if code == 429:
            pause_s = max(reply.parameters.retry_after or 1.0, answer.retry_after_s or 0.0)
            raise OutputError(f"{self.client.where}: too many messages", retry_after_s=pause_s)
        hint = _HINTS.get(code)
        said = f"{hint}: {reply.words}" if hint else reply.words
        raise self.client.error(answer, said, misconfigured=hint is not None)

    def close(self) -> None:
        """Close the connection."""
        self.client.close()
