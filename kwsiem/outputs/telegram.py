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

from kwsiem.alert import LEVELS
from kwsiem.errors import ConfigError, OutputError
from kwsiem.output_settings import TelegramSettings
from kwsiem.outputs.base import BaseOutput, Notes, PassingNotes, Rendered
from kwsiem.outputs.http import Answer
from kwsiem.outputs.telegram_bot import Bot, Reply

log = logging.getLogger("kwsiem.outputs")

#: What Telegram lets through ("My bot is hitting limits", core.telegram.org/bots/faq): 1 a second in a
#: chat, and 20 a minute in a group or channel. 5 at once that come back in 20 s are at most 20 in any
#: minute; 20 at once that come back in a minute would be 40 in the first.
CHAT_LIMIT: Final = (1, 1.0)
GROUP_LIMIT: Final = (5, 20.0)
_CHAT: Final = re.compile(r"-?\d{1,18}\Z|@[A-Za-z][A-Za-z0-9_]{3,40}\Z", re.ASCII)
#: The longest IPv6 address as text.
_MAX_ADDRESS: Final = 45
_TAG: Final = re.compile(r"</?[a-z]+>")
#: 400 has no code for what is wrong. These words say that it is the text; everything else that Telegram
#: refuses twice is about the chat, and waits for an operator.
_ABOUT_THE_TEXT: Final = ("too long", "is empty", "entit", "utf-8")
_UNCHANGED: Final = "not modified"


class _Message(msgspec.Struct):
    message_id: int = 0


class Sent(msgspec.Struct):
    """What is noted of an incident: its message, the alert that it shows, and what its buttons act on.

    ``address`` is the source that a button blocks; empty when there is none.
    """

    chat: str
    message_id: int
    alert_id: str
    severity: int
    rule_id: str = ""
    address: str = ""
    state: str = ""


class _Alert(msgspec.Struct):
    incident_id: str = ""
    state: str = ""
    block: Any = None


class _Kwsiem(msgspec.Struct):
    alert: _Alert = msgspec.field(default_factory=_Alert)
    digest: Any = None


class _Source(msgspec.Struct):
    ip: Any = None


class _Rule(msgspec.Struct):
    id: str = ""


class _Facts(msgspec.Struct):
    """What is needed of a document; msgspec passes over the rest."""

    kwsiem: _Kwsiem = msgspec.field(default_factory=_Kwsiem)
    source: _Source = msgspec.field(default_factory=_Source)
    rule: _Rule = msgspec.field(default_factory=_Rule)

    @property
    def incident(self) -> str:
        """The id that the alerts of an incident share; a digest belongs to none."""
        return "" if self.kwsiem.digest is not None else self.kwsiem.alert.incident_id

    @property
    def address(self) -> str:
        """The source: what the rule would block, or where the events came from."""
        block = self.kwsiem.alert.block
        value = block.get("value") if isinstance(block, dict) else None
        found = value or self.source.ip
        return found if isinstance(found, str) and len(found) <= _MAX_ADDRESS else ""


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
        where = f"output {settings.name!r}"
        self._bot = Bot(settings, token)
        chat = (settings.chat_id or chat_id).strip()
        if not _CHAT.match(chat):
            raise ConfigError(f"{where}: chat_id: expected a number (negative for groups) or @channel")
        self._client = self._bot.client
        if settings.chatops.users:
            check_chatops(settings, chat)
        if not self._client.is_https:
            log.warning("output %s: the bot's token is sent in clear text (http)", settings.name)
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
                raise self._client.error(answer, reply.words, misconfigured=True)
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
        self._bot.close()

    def _say(self, alert: Rendered) -> None:
        """Edit the message of the alert's incident, or send a new one and note it.

        A raised level must be heard, and an edit makes no sound: then a new message answers the old one.
        """
        facts = msgspec.json.decode(alert.source, type=_Facts)
        incident = facts.incident if self._settings.edit else ""
        sent = self._sent(incident)
        if sent and (sent.alert_id == alert.id or _is_older(alert.id, sent.alert_id)):
            return  # the message shows this, or a later state with a greater count
        is_silent = alert.severity < self._silent_below
        is_open = facts.kwsiem.alert.state != "close"  # an end is no alarm
        is_raised = sent is not None and alert.severity > sent.severity and is_open and not is_silent
        note = Sent(
            self._chat, 0, alert.id, max(alert.severity, sent.severity if sent else 0),
            facts.rule.id, facts.address, facts.kwsiem.alert.state,
        )  # fmt: skip
        text = alert.data.decode()
        markup: dict[str, Any] = {}
        if incident and self._settings.chatops.users:
            acknowledged = self._notes.get(acknowledged_key(incident)) or ""
            text += acknowledged and f"\n{acknowledged}"
            markup = {"reply_markup": buttons(incident, note, acknowledged=bool(acknowledged))}
        if sent and not is_raised and self._edit(sent.message_id, text, markup):
            note.message_id = sent.message_id
        else:
            note.message_id = self._send(text, is_silent, sent.message_id if sent else 0, markup)
        self.answer = f"message {note.message_id}"
        if incident:
            note.chat = self._chat  # it may have moved
            self._notes.set(incident, msgspec.json.encode(note).decode())

    def _sent(self, incident: str) -> Sent | None:
        """The message of an incident, when there is one in this chat."""
        try:
            sent = msgspec.json.decode(self._notes.get(incident) or "null", type=Sent | None)
        except msgspec.DecodeError:
            return None
        return sent if incident and sent and sent.chat == self._chat else None

    def _edit(self, message_id: int, text: str, markup: dict[str, Any]) -> bool:
        """Whether the message shows the text now; False when it is gone or can no longer be edited."""
        content = {"message_id": message_id, **_content(text), "parse_mode": "HTML", **markup}
        _, reply = self._call("editMessageText", content)
        return reply.ok or _UNCHANGED in reply.description.lower()

    def _send(self, text: str, is_silent: bool, replies_to: int, markup: dict[str, Any]) -> int:
        """The id of a new message; the text goes without markup when Telegram does not take the markup."""
        more: dict[str, Any] = {"disable_notification": is_silent, **markup}
        if self._settings.topic_id:
            more["message_thread_id"] = self._settings.topic_id
        if replies_to:
            more["reply_parameters"] = {"message_id": replies_to, "allow_sending_without_reply": True}
        answer, reply = self._call("sendMessage", {**_content(text), "parse_mode": "HTML", **more})
        if not reply.ok:
            said = reply.words
            answer, reply = self._call("sendMessage", {**_content(_plain(text)), **more})
            if not reply.ok:
                raise self._refusal(answer, reply)
            self.markup_errors += 1
            log.error("output %s: message sent without markup: %s", self._settings.name, said)
        try:
            return msgspec.json.decode(reply.result, type=_Message).message_id
        except msgspec.DecodeError:
            raise self._client.error(answer, "no message_id: is url a Bot API?", misconfigured=True) from None

    def _refusal(self, answer: Answer, reply: Reply) -> OutputError:
        """What to do with a message that was refused with and without markup."""
        said = reply.words
        if any(word in said.lower() for word in _ABOUT_THE_TEXT):
            return OutputError(f"{self._client.where}: {said}", retryable=False)
        return self._client.error(answer, f"{said}; see chat_id and topic_id", misconfigured=True)

    def _call(self, method: str, content: dict[str, Any]) -> tuple[Answer, Reply]:
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

    def _ask(self, method: str, content: dict[str, Any]) -> tuple[Answer, Reply]:
        chat: str | int = self._chat if self._chat.startswith("@") else int(self._chat)
        return self._bot.ask(method, {"chat_id": chat, **content} if content else {})

    def _moved_key(self) -> str:
        return moved_key(self._configured_chat)


def check_chatops(settings: TelegramSettings, chat: str) -> None:
    """Whether ChatOps can work with these settings; raises ConfigError."""
    where = f"output {settings.name!r}: chatops"
    if not settings.edit:
        raise ConfigError(f"{where}: needs edit: true, so that a message belongs to one incident")
    if chat.startswith("@"):
        raise ConfigError(f"{where}: a channel has no users; chat_id must be a number")
    if not all(0 < user < 2**53 for user in settings.chatops.users):
        raise ConfigError(f"{where}: users: expected the numbers of people, above 0")


def moved_key(chat: str) -> str:
    """Under what the new id of a chat is noted that became a supergroup."""
    return f"chat {chat}"


def acknowledged_key(incident: str) -> str:
    """Under what it is noted who acknowledged an incident, as Telegram's HTML."""
    return f"acknowledged {incident}"


def buttons(incident: str, sent: Sent, *, acknowledged: bool = False) -> dict[str, Any]:
    """The inline keyboard of an incident; ``callback_data`` is an action and the incident's id, no more.

    Nothing that is done is read from it: rule and address are those that were noted with the message.
    """
    is_open = sent.state != "close"
    rows = [
        [("Acknowledge", "ack", is_open and not acknowledged), ("Evidence", "evidence", True)],
        [
            ("Block 1 h", "block1h", is_open),
            ("Block 1 day", "block1d", is_open),
            ("Unblock", "unblock", True),
        ],
        [("Mute the rule 1 h", "mute", is_open)],
    ]
    if not sent.address:
        del rows[1]
    shown = [
        [{"text": text, "callback_data": f"{verb}:{incident}"} for text, verb, wanted in row if wanted]
        for row in rows
    ]
    return {"inline_keyboard": [row for row in shown if row]}


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
