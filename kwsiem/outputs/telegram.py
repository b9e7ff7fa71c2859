"""Telegram: one message for each incident, edited as the incident grows and closes (Bot API 10.1).

The Bot API has no id by which a repeat is recognised: when an answer is lost, a message may come twice.
What was answered is noted, so that a restart never sends twice what Telegram has taken.
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from kwsiem import secret
from kwsiem.alert import LEVELS
from kwsiem.errors import ConfigError, OutputError
from kwsiem.output_settings import TelegramSettings
from kwsiem.outputs.base import BaseOutput, Notes, PassingNotes, Rendered
from kwsiem.outputs.http import Answer, HttpClient
from kwsiem.text import clean

log = logging.getLogger("kwsiem.outputs")

#: What Telegram lets through ("My bot is hitting limits", core.telegram.org/bots/faq): 1 a second in a
#: chat, and 20 a minute in a group or channel. 5 at once that come back in 20 s are at most 20 in any
#: minute; 20 at once that come back in a minute would be 40 in the first.
CHAT_LIMIT: Final = (1, 1.0)
GROUP_LIMIT: Final = (5, 20.0)
_TOKEN: Final = re.compile(r"\d{1,20}:[A-Za-z0-9_-]{1,100}\Z", re.ASCII)
_CHAT: Final = re.compile(r"-?\d{1,18}\Z|@[A-Za-z][A-Za-z0-9_]{3,40}\Z", re.ASCII)
_MAX_WORDS: Final = 160
_TAG: Final = re.compile(r"</?[a-z]+>")
#: 400 has no code for what is wrong. These words say that it is the text; everything else that Telegram
#: refuses twice is about the chat, and waits for an operator.
_ABOUT_THE_TEXT: Final = ("too long", "is empty", "entit", "utf-8")
_UNCHANGED: Final = "not modified"
_HINTS: Final = {
    401: "the bot's token is wrong or was revoked",
    403: "the bot was blocked or is not in the chat",
    404: "the bot's token is malformed, or url is no Bot API",
}


class _Parameters(msgspec.Struct):
    retry_after: float | None = None
    migrate_to_chat_id: int | None = None


class _Message(msgspec.Struct):
    message_id: int = 0


class _Reply(msgspec.Struct):
    """The envelope of every answer of the Bot API."""

    ok: bool
    error_code: int = 0
    description: str = ""
    parameters: _Parameters = msgspec.field(default_factory=_Parameters)
    result: Any = None


class _Sent(msgspec.Struct):
    """What is noted of an incident: its message, and the alert that the message shows."""

    chat: str
    message_id: int
    alert_id: str
    severity: int


class _Alert(msgspec.Struct):
    incident_id: str = ""


class _Kwsiem(msgspec.Struct):
    alert: _Alert = msgspec.field(default_factory=_Alert)
    digest: Any = None


class _Facts(msgspec.Struct):
    """What is needed of a document; msgspec passes over the rest."""

    kwsiem: _Kwsiem = msgspec.field(default_factory=_Kwsiem)

    @property
    def incident(self) -> str:
        """The id that the alerts of an incident share; a digest belongs to none."""
        return "" if self.kwsiem.digest is not None else self.kwsiem.alert.incident_id


class TelegramOutput(BaseOutput):
    """Sends to one chat through a bot; ``Rendered.data`` is the message as Telegram's HTML.

    ``chat_id`` is used where the settings have none. ``markup_errors`` counts messages that Telegram took
    as plain text only: each is a fault of the format. Raises ConfigError.
    """

    batch_alerts = 20

    def __init__(
        self, settings: TelegramSettings, token: str, chat_id: str, notes: Notes | None = None
    ) -> None:
        self._settings = settings
        token = token.strip()
        secret.learn(token)
        where = f"output {settings.name!r}"
        if not _TOKEN.match(token):
            raise ConfigError(f"{where}: secret {settings.token_secret}: expected a bot's token, 123456:ABC…")
        chat = (settings.chat_id or chat_id).strip()
        if not _CHAT.match(chat):
            raise ConfigError(f"{where}: chat_id: expected a number (negative for groups) or @channel")
        self._client = HttpClient(settings)
        if not self._client.is_https:
            log.warning("output %s: the bot's token is sent in clear text (http)", settings.name)
        self._prefix = f"/bot{token}/"
        self._configured_chat = chat
        self._chat = chat
        self._notes = notes or PassingNotes()
        self._silent_below = LEVELS[settings.silent_below]
        self._is_known = False
        self.limits = limits(chat)
        self.markup_errors = 0

    def open(self) -> None:
        """Ask once who the bot is, so that a wrong token shows before the first alert."""
        self._chat = self._notes.get(self._moved_key()) or self._configured_chat
        if not self._is_known:
            answer, reply = self._call("getMe", {})
            if not reply.ok:
                raise self._client.error(answer, _words(reply), misconfigured=True)
            self._is_known = True

    def check(self) -> None:
        """Nothing: there is no connection to be lost."""

    def send(self, batch: Sequence[Rendered]) -> None:
        """Send or edit one message after the other."""
        for index, alert in enumerate(batch):
            try:
                self._say(alert)
            except OutputError as error:
                raise OutputError(
                    str(error),
                    retryable=error.retryable,
                    sent=index,
                    retry_after_s=error.retry_after_s,
                ) from None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _say(self, alert: Rendered) -> None:
        """Edit the message of the alert's incident, or send a new one and note it.

        A raised level must be heard, and an edit makes no sound: then a new message answers the old one.
        """
        incident = msgspec.json.decode(alert.source, type=_Facts).incident if self._settings.edit else ""
        sent = self._sent(incident)
        if sent and (sent.alert_id == alert.id or _is_older(alert.id, sent.alert_id)):
            return  # the message shows this, or a later state with a greater count
        is_silent = alert.severity < self._silent_below
        is_raised = sent is not None and alert.severity > sent.severity and not is_silent
        text = alert.data.decode()
        if sent and not is_raised and self._edit(sent.message_id, text):
            message_id = sent.message_id
        else:
            message_id = self._send(text, is_silent, sent.message_id if sent else 0)
        self.answer = f"message {message_id}"
        if incident:
            severity = max(alert.severity, sent.severity if sent else 0)
            note = _Sent(self._chat, message_id, alert.id, severity)
            self._notes.set(incident, msgspec.json.encode(note).decode())

    def _sent(self, incident: str) -> _Sent | None:
        """The message of an incident, when there is one in this chat."""
        try:
            sent = msgspec.json.decode(self._notes.get(incident) or "null", type=_Sent | None)
        except msgspec.DecodeError:
            return None
        return sent if incident and sent and sent.chat == self._chat else None

    def _edit(self, message_id: int, text: str) -> bool:
        """Whether the message shows the text now; False when it is gone or can no longer be edited."""
        _, reply = self._call(
            "editMessageText", {"message_id": message_id, **_content(text), "parse_mode": "HTML"}
        )
        return reply.ok or _UNCHANGED in reply.description.lower()

    def _send(self, text: str, is_silent: bool, replies_to: int) -> int:
        """The id of a new message; the text goes without markup when Telegram does not take the markup."""
        more: dict[str, Any] = {"disable_notification": is_silent}
        if self._settings.topic_id:
            more["message_thread_id"] = self._settings.topic_id
        if replies_to:
            more["reply_parameters"] = {"message_id": replies_to, "allow_sending_without_reply": True}
        answer, reply = self._call("sendMessage", {**_content(text), "parse_mode": "HTML", **more})
        if not reply.ok:
            said = _words(reply)
            answer, reply = self._call("sendMessage", {**_content(_plain(text)), **more})
            if not reply.ok:
                raise self._refusal(answer, reply)
            self.markup_errors += 1
            log.error("output %s: message sent without markup: %s", self._settings.name, said)
        try:
            return msgspec.convert(reply.result, _Message).message_id
        except msgspec.ValidationError:
            raise self._client.error(answer, "no message_id: is url a Bot API?", misconfigured=True) from None

    def _refusal(self, answer: Answer, reply: _Reply) -> OutputError:
        """What to do with a message that was refused with and without markup."""
        said = _words(reply)
        if any(word in said.lower() for word in _ABOUT_THE_TEXT):
            return OutputError(f"{self._client.where}: {said}", retryable=False)
        return self._client.error(answer, f"{said}; see chat_id and topic_id", misconfigured=True)

    def _call(self, method: str, content: dict[str, Any]) -> tuple[Answer, _Reply]:
        """The answer to one method, after following the chat when it has moved.

        The reply is ``ok`` or a 400 that the caller knows what to do with. Raises OutputError for all else.
        """
        answer, reply = self._ask(method, content)
        moved_to = reply.parameters.migrate_to_chat_id
        if not reply.ok and moved_to is not None and str(moved_to) != self._chat:
            log.warning("output %s: the group became a supergroup with a new id", self._settings.name)
            self._chat = str(moved_to)
            self._notes.set(self._moved_key(), self._chat)
            if "message_id" not in content:  # the new chat counts its messages anew
                answer, reply = self._ask(method, content)
        return answer, reply

    def _ask(self, method: str, content: dict[str, Any]) -> tuple[Answer, _Reply]:
        chat: str | int = self._chat if self._chat.startswith("@") else int(self._chat)
        body = msgspec.json.encode({"chat_id": chat, **content} if content else {})
        answer = self._client.post(f"{self._prefix}{method}", body, {"Content-Type": "application/json"})
        try:
            reply = msgspec.json.decode(answer.body, type=_Reply)
        except msgspec.DecodeError:
            raise self._client.error(
                answer, _HINTS.get(answer.status, "no answer of a Bot API"), misconfigured=answer.status < 500
            ) from None
        code = reply.error_code or answer.status
        if reply.ok or code == 400:
            return answer, reply
        if code == 429:
            pause_s = max(reply.parameters.retry_after or 1.0, answer.retry_after_s or 0.0)
            raise OutputError(f"{self._client.where}: too many messages", retry_after_s=pause_s)
        hint = _HINTS.get(code)
        raise self._client.error(
            answer, f"{hint}: {_words(reply)}" if hint else _words(reply), misconfigured=hint is not None
        )

    def _moved_key(self) -> str:
        return f"chat {self._configured_chat}"


def limits(chat_id: str) -> tuple[tuple[int, float], ...]:
    """What may be sent to a chat: so many messages in so many seconds, by the kind of chat."""
    return (CHAT_LIMIT,) if chat_id.isdigit() else (CHAT_LIMIT, GROUP_LIMIT)


def _content(text: str) -> dict[str, Any]:
    """A text without link previews: Telegram's servers would fetch what an attacker wrote."""
    return {"text": text, "link_preview_options": {"is_disabled": True}}


def _plain(text: str) -> str:
    return html.unescape(_TAG.sub("", text))


def _is_older(one: str, other: str) -> bool:
    """Whether an alert's id is of an earlier millisecond: the first ten letters of a ULID are its time."""
    return one[:10] < other[:10]


def _words(reply: _Reply) -> str:
    return clean(secret.mask(reply.description), _MAX_WORDS)
