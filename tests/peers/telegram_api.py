"""A Telegram Bot API server for tests, as strict as the documentation (Bot API 10.1).

It knows sendMessage, editMessageText, getMe, getUpdates and answerCallbackQuery; parses HTML by a parser of
its own, stricter than Telegram's; keeps the limits, and counts every request that comes earlier than ``retry_after`` allowed. A person
writes with :meth:`TelegramApi.write` and presses a button with :meth:`TelegramApi.press`.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kwsiem.clock import wall_ns
from peers.chat_server import Answer, ChatServer, json_answer

TOKEN = "123456:test-Token_of-a-bot"
MAX_TEXT = 4096
_ENTITIES = {"lt": "<", "gt": ">", "amp": "&", "quot": '"'}
_TAGS = {
    "b",
    "strong",
    "i",
    "em",
    "u",
    "ins",
    "s",
    "strike",
    "del",
    "code",
    "pre",
    "blockquote",
    "tg-spoiler",
}
_FIELDS = {
    "getMe": set(),
    "sendMessage": {
        "chat_id", "text", "parse_mode", "link_preview_options", "disable_notification", "message_thread_id",
        "reply_parameters", "protect_content", "reply_markup",
    },
    "editMessageText": {
        "chat_id", "message_id", "text", "parse_mode", "link_preview_options", "reply_markup",
    },
    "getUpdates": {"offset", "limit", "timeout", "allowed_updates"},
    "answerCallbackQuery": {"callback_query_id"},
}  # fmt: skip


class Refused(Exception):
    """The answer is not ok."""

    def __init__(self, code: int, description: str, **parameters: Any) -> None:
        super().__init__(description)
        self.code, self.description, self.parameters = code, description, parameters


@dataclass
class Message:
    """One message as the chat shows it; ``history`` are all the texts it has had."""

    chat: int
    id: int
    text: str
    entities: list[tuple[str, int, int]]
    is_silent: bool = False
    topic: int = 0
    replies_to: int = 0
    history: list[str] = field(default_factory=list)
    buttons: list[tuple[str, str]] = field(default_factory=list)


class TelegramApi(ChatServer):
    """One bot and its chats: ``chats`` are those it is in, ``blocked`` those that put it out.

    ``migrated`` maps the old id of a group to that of its supergroup. ``clock`` gives seconds; a chat takes
    ``burst`` messages at once and then 1 a second, a group 20 a minute. ``too_old`` are messages that can
    no longer be edited. ``updates`` are those that were not confirmed by an offset; with ``replays`` they are
    never taken away, and an offset is passed over. ``answered`` are queries of buttons that were answered,
    ``old_queries`` those that came too late.
    """

    def __init__(self, chats=(1000,), clock: Callable[[], float] = time.monotonic, burst=3, context=None):
        self.chats = set(chats)
        self.blocked: set[int] = set()
        self.migrated: dict[int, int] = {}
        self.too_old: set[int] = set()
        self.topics = {0}
        self.messages: dict[tuple[int, int], Message] = {}
        self.updates: list[dict[str, Any]] = []
        self.replays = False
        self.answered: list[str] = []
        self.old_queries: set[str] = set()
        self._next_update = 1000
        self.edits = 0
        self.floods = 0
        self.too_early = 0
        self.parse_errors: list[str] = []
        self._clock = clock
        self._burst = burst
        self._next_id = dict.fromkeys(chats, 1)
        self._times: dict[int, list[float]] = {}
        self._held_until: dict[int, float] = {}
        super().__init__(context)

    @property
    def shown(self) -> list[Message]:
        """All messages in the order in which they came."""
        return list(self.messages.values())

    def take(self, path: str, body: bytes) -> Answer:
        try:
            token, method = re.fullmatch(r"/bot([^/]*)/([A-Za-z]+)", path).groups()
        except AttributeError:
            return _failed(404, "Not Found")
        if not re.fullmatch(r"\d+:[A-Za-z0-9_-]+", token) or method not in _FIELDS:
            return _failed(404, "Not Found")
        if token != TOKEN:
            return _failed(401, "Unauthorized")
        try:
            given = json.loads(body) if body else {}
            unknown = given.keys() - _FIELDS[method]
            if unknown:
                raise Refused(400, f"Bad Request: no such parameters: {unknown}")
            if method == "getMe":
                return json_answer(
                    200,
                    {
                        "ok": True,
                        "result": {"id": 123456, "is_bot": True, "first_name": "k", "username": "kbot"},
                    },
                )
            if method == "getUpdates":
                return json_answer(200, {"ok": True, "result": self._updates(given)})
            if method == "answerCallbackQuery":
                return json_answer(200, {"ok": True, "result": self._answer_query(given)})
            chat = self._chat(given)
            self._hold(chat)
            message = self._edited(chat, given) if method == "editMessageText" else self._sent(chat, given)
            self._count(chat)
        except Refused as refused:
            return _failed(refused.code, refused.description, **refused.parameters)
        return json_answer(
            200,
            {
                "ok": True,
                "result": {"message_id": message.id, "date": 0, "chat": {"id": chat}, "text": message.text},
            },
        )

    def write(self, user: Any, text: str, chat: int = 1000, **more: Any) -> dict[str, Any]:
        """A person writes into a chat; ``user`` is an id, or a user as Telegram has it."""
        kind = "private" if chat > 0 else "group"
        message = {"message_id": 9000, "date": wall_ns() // 10**9, "chat": {"id": chat, "type": kind}}
        return self._update(message={**message, "text": text, **more, "from": _person(user)})

    def press(self, user: Any, data: str, chat: int = 1000, message_id: int = 1) -> dict[str, Any]:
        """A person presses a button."""
        shown = {"message_id": message_id, "date": 0, "chat": {"id": chat, "type": "private"}}
        query = {"id": str(self._next_update), "from": _person(user), "message": shown, "data": data}
        return self._update(callback_query=query)

    def _update(self, **content: Any) -> dict[str, Any]:
        found = {"update_id": self._next_update, **content}
        self._next_update += 1
        self.updates.append(found)
        return found

    def _updates(self, given: dict[str, Any]) -> list[dict[str, Any]]:
        """What waits; an offset takes away all before it. The test server never keeps anybody waiting."""
        if given["allowed_updates"] != ["message", "callback_query"] or not 0 < given["timeout"] <= 50:
            raise Refused(400, "Bad Request: this test wants a long poll for two kinds of updates")
        if not self.replays:
            self.updates = [each for each in self.updates if each["update_id"] >= given["offset"]]
        return self.updates[: given["limit"]]

    def _answer_query(self, given: dict[str, Any]) -> bool:
        number = given["callback_query_id"]
        if number in self.old_queries:
            raise Refused(
                400, "Bad Request: query is too old and response timeout expired or query ID is invalid"
            )
        self.answered.append(number)
        return True

    def _chat(self, given: dict[str, Any]) -> int:
        chat = given.get("chat_id")
        if not isinstance(chat, int):
            raise Refused(400, "Bad Request: chat not found")
        if chat in self.blocked:
            raise Refused(403, "Forbidden: bot was kicked from the group chat")
        if chat in self.migrated:
            raise Refused(
                400,
                "Bad Request: group chat was upgraded to a supergroup chat",
                migrate_to_chat_id=self.migrated[chat],
            )
        if chat not in self.chats:
            raise Refused(400, "Bad Request: chat not found")
        return chat

    def _hold(self, chat: int) -> None:
        """Refuse while the chat is held, or when one more message would break a limit."""
        now_s = self._clock()
        if now_s < self._held_until.get(chat, -math.inf) - 1e-6:
            self.too_early += 1
            self._flood(chat, self._held_until[chat] - now_s)
        times = self._times.setdefault(chat, [])
        times[:] = [at_s for at_s in times if at_s > now_s - 60.0 + 1e-6]
        tokens, last_s = float(self._burst), -math.inf
        for at_s in times:
            tokens, last_s = min(self._burst, tokens + at_s - max(last_s, at_s - 60)) - 1.0, at_s
        tokens = min(self._burst, tokens + (now_s - last_s if times else 0))
        if tokens < 1 - 1e-6:
            self._flood(chat, 1 - tokens)
        if chat < 0 and len(times) >= 20:
            self._flood(chat, times[0] + 60.0 - now_s)

    def _flood(self, chat: int, wait_s: float) -> None:
        self.floods += 1
        wait = max(1, math.ceil(wait_s - 1e-6))
        self._held_until[chat] = self._clock() + wait
        raise Refused(429, f"Too Many Requests: retry after {wait}", retry_after=wait)

    def _count(self, chat: int) -> None:
        self._times[chat].append(self._clock())

    def _sent(self, chat: int, given: dict[str, Any]) -> Message:
        text, entities = self._parsed(given)
        topic = given.get("message_thread_id", 0)
        if topic not in self.topics:
            raise Refused(400, "Bad Request: message thread not found")
        reply = given.get("reply_parameters", {})
        if (
            reply
            and (chat, reply["message_id"]) not in self.messages
            and not reply.get("allow_sending_without_reply")
        ):
            raise Refused(400, "Bad Request: message to be replied not found")
        number = self._next_id.setdefault(chat, 1)
        self._next_id[chat] = number + 1
        message = Message(
            chat, number, text, entities, given.get("disable_notification", False), topic,
            reply.get("message_id", 0), [text], _buttons(given),
        )  # fmt: skip
        self.messages[chat, number] = message
        return message

    def _edited(self, chat: int, given: dict[str, Any]) -> Message:
        message = self.messages.get((chat, given.get("message_id")))
        if message is None:
            raise Refused(400, "Bad Request: message to edit not found")
        if message.id in self.too_old:
            raise Refused(400, "Bad Request: message can't be edited")
        text, entities = self._parsed(given)
        if (text, entities, _buttons(given)) == (message.text, message.entities, message.buttons):
            raise Refused(
                400, "Bad Request: message is not modified: specified new message content is the same"
            )
        message.text, message.entities, message.buttons = text, entities, _buttons(given)
        message.history.append(text)
        self.edits += 1
        return message

    def _parsed(self, given: dict[str, Any]) -> tuple[str, list[tuple[str, int, int]]]:
        text = given.get("text")
        if not isinstance(text, str):
            raise Refused(400, "Bad Request: message text is empty")
        if given.get("link_preview_options") != {"is_disabled": True}:
            raise Refused(400, "Bad Request: this test wants no link previews")
        mode = given.get("parse_mode")
        if mode not in {None, "HTML"}:
            raise Refused(400, "Bad Request: unsupported parse_mode")
        try:
            plain, entities = parse_html(text) if mode else (text, [])
        except ValueError as error:
            self.parse_errors.append(str(error))
            raise Refused(400, f"Bad Request: can't parse entities: {error}") from None
        if not plain.strip():
            raise Refused(400, "Bad Request: message text is empty")
        if utf16_units(plain) > MAX_TEXT:
            raise Refused(400, "Bad Request: message is too long")
        return plain, entities


def _person(user: Any) -> dict[str, Any]:
    return user if isinstance(user, dict) else {"id": user, "is_bot": False, "first_name": f"user {user}"}


def _buttons(given: dict[str, Any]) -> list[tuple[str, str]]:
    """Text and data of each button; data has 1 to 64 bytes."""
    rows = given.get("reply_markup", {}).get("inline_keyboard", [])
    found = [(button["text"], button["callback_data"]) for row in rows for button in row]
    if not all(1 <= len(data.encode()) <= 64 for _, data in found):
        raise Refused(400, "Bad Request: BUTTON_DATA_INVALID")
    if not all(text.strip() and len(text) <= 64 for text, _ in found) or not all(rows) or len(found) > 100:
        raise Refused(400, "Bad Request: can't parse inline keyboard button: Text buttons are not allowed")
    return found


def parse_html(text: str) -> tuple[str, list[tuple[str, int, int]]]:
    """Plain text, and (tag, begin, end) of each entity; ValueError for whatever the documentation forbids.

    A tag not in the list, one that is not closed or closed in the wrong order, one within ``code`` or ``pre``, an
    attribute, a bare ``<``, ``>`` or ``&``, an entity that is neither one of four names nor a number.
    """
    plain: list[str] = []
    entities: list[tuple[str, int, int]] = []
    open_tags: list[tuple[str, int]] = []
    at = 0
    while at < len(text):
        char = text[at]
        if char == "<":
            found = re.compile(r"<(/?)([a-z-]+)>").match(text, at)
            if not found or found[2] not in _TAGS:
                raise ValueError(f"unsupported start tag at offset {at}: {text[at : at + 20]!r}")
            if not found[1]:
                if open_tags and open_tags[-1][0] in {"code", "pre"}:
                    raise ValueError(f"an entity within {open_tags[-1][0]} at offset {at}")
                open_tags.append((found[2], len(plain)))
            elif not open_tags or open_tags[-1][0] != found[2]:
                raise ValueError(f"unexpected end tag at offset {at}")
            else:
                tag, begin = open_tags.pop()
                entities.append((tag, begin, len(plain)))
            at = found.end()
        elif char == "&":
            found = re.compile(r"&(?:(lt|gt|amp|quot)|#(\d{1,7})|#x([0-9a-fA-F]{1,6}));").match(text, at)
            if not found:
                raise ValueError(f"unknown entity at offset {at}: {text[at : at + 20]!r}")
            plain.append(
                _ENTITIES[found[1]] if found[1] else chr(int(found[2] or found[3], 10 if found[2] else 16))
            )
            at = found.end()
        elif char == ">":
            raise ValueError(f"bare > at offset {at}")
        else:
            plain.append(char)
            at += 1
    if open_tags:
        raise ValueError(f"can't find end tag for {open_tags[-1][0]!r}")
    return "".join(plain), entities


def utf16_units(text: str) -> int:
    """The length that Telegram counts."""
    return len(text.encode("utf-16-le")) // 2


def _failed(code: int, description: str, **parameters: Any) -> Answer:
    found = {"ok": False, "error_code": code, "description": description}
    return json_answer(code, {**found, "parameters": parameters} if parameters else found)
