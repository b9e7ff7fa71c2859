"""ChatOps: buttons and commands in the chat of a Telegram output (Bot API 10.1, getUpdates).

One long poll for each output, in a thread of the courier, which has no rights: what needs rights is asked of
the sensor. An update is noted on disk before it is acted on, so that one that comes twice, or again after a
crash, acts once at most; what a crash cut off is pressed again by a person. Everything here was written by a
stranger until its user and its chat are found in the settings.
"""

from __future__ import annotations

import logging
import re
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, Protocol

import msgspec

from kwsiem.clock import NS_PER_S, monotonic_s, wall_ns
from kwsiem.errors import OutputError
from kwsiem.messages import ChatAnswer, ChatRequest
from kwsiem.output_settings import TelegramSettings
from kwsiem.outputs import chatwords
from kwsiem.outputs.base import Notes
from kwsiem.outputs.chatstate import ChatState
from kwsiem.outputs.chatwords import code, plain
from kwsiem.outputs.telegram import Sent, acknowledged_key, moved_key
from kwsiem.outputs.telegram_bot import Bot, UndecodableError
from kwsiem.secret import mask
from kwsiem.text import clean

log = logging.getLogger("kwsiem.outputs")

POLL_S: Final = 25
#: So many updates at once: each may have 20 KB, and an answer is read up to 1 MiB.
POLL_UPDATES: Final = 20
#: A server that answers an empty poll at once is not asked more often than this.
POLL_LEAST_S: Final = 1.0
BACKOFF_MOST_S: Final = 60.0
#: Telegram does not get a longer pause than this.
PAUSE_MOST_S: Final = 3600.0
#: A command that is older (the host was down) is not done any more.
STALE_S: Final = 600
MAX_ANSWERS: Final = 100
#: Strangers that are told of, one by one; so many at once, and so often.
MAX_STRANGERS: Final = 100
STRANGERS_AT_ONCE: Final = 10
STRANGERS_S: Final = 10.0
_SHOWN_ALERTS: Final = 10
_MAX_COMMAND: Final = 256
_MAX_NAME: Final = 64
_MAX_REASON: Final = 256
_COMMAND: Final = re.compile(r"/([a-z]{1,16})(?:@([A-Za-z0-9_]{1,64}))?(?:\s+(.*))?\Z", re.ASCII | re.DOTALL)
_BUTTON: Final = re.compile(r"([a-z0-9]{1,16}):([0-9A-HJKMNP-TV-Z]{26})\Z", re.ASCII)
_RULE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z", re.ASCII)
_TIME: Final = re.compile(r"([1-9][0-9]{0,3})(m|h)\Z", re.ASCII)
_UPDATE_ID: Final = re.compile(rb'"update_id"\s*:\s*([0-9]{1,18})')

Action = Literal[
    "acknowledge", "block", "unblock", "mute", "unmute", "evidence", "status", "alerts", "blocks", "help"
]
_BUTTONS: Final[Mapping[str, tuple[Action, int]]] = {
    "ack": ("acknowledge", 0),
    "evidence": ("evidence", 0),
    "block1h": ("block", 3600),
    "block1d": ("block", 86_400),
    "unblock": ("unblock", 0),
    "mute": ("mute", 3600),
}
_COMMANDS: Final[Mapping[str, Action]] = {
    "status": "status",
    "alerts": "alerts",
    "blocks": "blocks",
    "mute": "mute",
    "unmute": "unmute",
    "help": "help",
    "start": "help",
}


class _User(msgspec.Struct):
    id: int
    is_bot: bool = True
    first_name: str = ""
    last_name: str = ""
    username: str = ""

    @property
    def name(self) -> str:
        """What the person is called, bounded; anybody chooses that freely, only the id is theirs."""
        full = f"{self.first_name[:_MAX_NAME]} {self.last_name[:_MAX_NAME]}".strip()
        return clean(f"@{self.username}" if self.username else full, _MAX_NAME)


class _Chat(msgspec.Struct):
    id: int
    type: str = ""


class _Message(msgspec.Struct):
    chat: _Chat
    message_id: int = 0
    date: int = 0
    sender: _User | None = msgspec.field(default=None, name="from")
    text: str = ""


class _Query(msgspec.Struct):
    id: str
    sender: _User = msgspec.field(name="from")
    message: _Message | None = None
    data: str = ""


class _Numbered(msgspec.Struct):
    update_id: int


class _Update(msgspec.Struct):
    message: _Message | None = None
    callback_query: _Query | None = None


class _Me(msgspec.Struct):
    username: str = ""


class Alerts(Protocol):
    """What ChatOps reads of the outbox."""

    def document(self, key: str) -> bytes | None:
        """The document of an alert by its id."""

    def latest(self, limit: int) -> list[dict[str, Any]]:
        """The latest documents, newest first."""


class ChatOps:
    """Buttons and commands of one output; for one thread. To be made as root; raises ConfigError.

    ``ask`` brings a request to the sensor and gives its answer, None when none came; ``tell`` makes an
    event of our own. :meth:`begin` comes before the first :meth:`step`.
    """

    def __init__(
        self,
        settings: TelegramSettings,
        token: str,
        chat_id: str,
        notes: Notes,
        *,
        ask: Callable[[ChatRequest], ChatAnswer | None],
        tell: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self.name = settings.name
        self.state = "starting"
        self.last_error = ""
        self.actions = self.denied = self.stale = self.skipped = self.unsaid = 0
        self.stopping = False
        self._bot = Bot(msgspec.structs.replace(settings, timeout_s=POLL_S + settings.timeout_s), token)
        self._users = frozenset(settings.chatops.users)
        self._configured_chat = (settings.chat_id or chat_id).strip()
        self._topic_id = settings.topic_id
        self._notes = notes
        self._ask = ask
        self._tell = tell
        self._username: str | None = None
        self._limit = POLL_UPDATES
        self._failures = 0
        self._next_s = 0.0
        self._answers: deque[dict[str, Any]] = deque()
        self._strangers: dict[tuple[str, str, str], tuple[int, str]] = {}
        self._strangers_s = 0.0

    def begin(self, kept: ChatState, alerts: Alerts, acknowledge: Callable[[str, str], str]) -> None:
        """What is there only after the rights were given up.

        ``acknowledge`` writes down who acknowledged an incident, and gives who was first.
        """
        self._kept = kept
        self._alerts = alerts
        self._write_down = acknowledge

    def acknowledged(self, incident: str, who: str) -> None:
        """Somebody acknowledged an incident elsewhere: its message says so from the next change on."""
        if self._sent(incident) and not self._notes.get(acknowledged_key(incident)):
            self._notes.set(acknowledged_key(incident), f"acknowledged by {code(who)}")

    def step(self, now_s: float) -> float:
        """One poll, and all that it brought; gives the seconds until the next round is due."""
        if now_s < self._next_s:
            return self._next_s - now_s
        try:
            self._know_ourselves()
            self._say_all()
            began_s = monotonic_s()
            updates = self._poll()
            took_s = monotonic_s() - began_s
            for number, update in updates:
                if self.stopping:
                    break  # not taken: the next run gets it
                self._take(number, update)
                self._say_all()
        except OutputError as error:
            return self._failed(str(error), now_s, error.retry_after_s or 0.0)
        except (OSError, sqlite3.Error) as error:
            return self._failed(f"nothing can be noted: {error}", now_s)
        except Exception as error:
            # The edge of the stage: a fault must not end the thread, nor go unnoticed.
            log.exception("ChatOps of output %s failed unexpectedly", self.name)
            return self._failed(f"{type(error).__name__}: {error}", now_s)
        finally:
            self._tell_strangers(now_s)
        self._failures = 0
        self._change("ready", "")
        return 0.0 if updates or took_s >= POLL_LEAST_S else POLL_LEAST_S

    def stats(self) -> dict[str, Any]:
        """For the courier's counters."""
        return {
            "name": self.name,
            "state": self.state,
            "last_error": self.last_error,
            "actions": self.actions,
            "denied": self.denied,
            "stale": self.stale,
            "skipped": self.skipped,
            "unsaid": self.unsaid,
        }

    def close(self) -> None:
        """Close the connection."""
        self._bot.close()

    # -- updates -------------------------------------------------------------------------------------

    def _know_ourselves(self) -> None:
        if self._username is not None:
            return
        answer, reply = self._bot.ask("getMe", {})
        if not reply.ok:
            raise self._bot.client.error(answer, reply.words, misconfigured=True)
        self._username = msgspec.json.decode(reply.result, type=_Me).username.lower()

    def _poll(self) -> list[tuple[int, msgspec.Raw]]:
        """Updates that were not taken yet, each with its number, in their order."""
        offset = self._kept.offset(self.name)
        wanted = {"timeout": POLL_S, "limit": self._limit, "allowed_updates": ["message", "callback_query"]}
        try:
            answer, reply = self._bot.ask("getUpdates", {"offset": offset, **wanted})
        except UndecodableError as error:
            return self._undecodable(error)
        if not reply.ok:
            raise self._bot.client.error(answer, reply.words, misconfigured=True)
        self._limit = POLL_UPDATES
        found = msgspec.json.decode(reply.result, type=list[msgspec.Raw])
        numbered = [(msgspec.json.decode(raw, type=_Numbered).update_id, raw) for raw in found]
        return sorted((pair for pair in numbered if pair[0] >= offset), key=lambda pair: pair[0])

    def _undecodable(self, error: UndecodableError) -> list[tuple[int, msgspec.Raw]]:
        """An answer that cannot be read: ask for one update, and when it is that one, pass over it."""
        number = _UPDATE_ID.search(error.body)
        if not number:
            raise error
        if self._limit > 1:
            self._limit = 1
        else:
            self.skipped += 1
            self._kept.taken(self.name, int(number[1]))
        return []

    def _take(self, number: int, raw: msgspec.Raw) -> None:
        """Note that it was taken, then act on it."""
        if number < self._kept.offset(self.name):
            return  # twice in one answer
        self._kept.taken(self.name, number)
        try:
            update = msgspec.json.decode(raw, type=_Update)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.skipped += 1
            return
        try:
            if update.callback_query:
                self._press(update.callback_query)
            elif update.message:
                self._read(update.message)
        except (OutputError, OSError, sqlite3.Error):
            raise
        except Exception:
            # It was taken and does not come again: the next one must not wait for it.
            log.exception("output %s: update %d could not be acted on", self.name, number)
            self.skipped += 1

    def _may(self, user: _User | None, chat: _Chat) -> bool:
        """Whether somebody may give orders from there; who may not is told of, and gets no answer."""
        if str(chat.id) != self._chat():
            reason = "chat"
        elif user is None or user.is_bot or user.id not in self._users:
            reason = "user"
        else:
            return True
        self.denied += 1
        key = (str(user.id) if user else "", str(chat.id), reason)
        if key not in self._strangers and len(self._strangers) >= MAX_STRANGERS:
            key = ("", "", reason)
        count = self._strangers.get(key, (0, ""))[0] + 1
        self._strangers[key] = (count, user.name if user else "")
        return False

    def _tell_strangers(self, now_s: float) -> None:
        if not self._strangers or now_s < self._strangers_s:
            return
        self._strangers_s = now_s + STRANGERS_S
        for key in list(self._strangers)[:STRANGERS_AT_ONCE]:
            count, name = self._strangers.pop(key)
            user_id, chat_id, reason = key
            fields = {"output.name": self.name, "user.id": user_id, "user.name": name, "chat.id": chat_id}
            self._tell("chat.denied", {**fields, "event.reason": reason, "event.count": count})

    # -- commands ------------------------------------------------------------------------------------

    def _read(self, message: _Message) -> None:
        text = message.text[:_MAX_COMMAND]
        ours = str(message.chat.id) == self._chat()
        if ours and not text.startswith("/"):
            return  # people talk
        found = _COMMAND.match(text)
        if ours and found and found[2] and found[2].lower() != self._username:
            return  # to another bot of the group
        if not self._may(message.sender, message.chat):
            return
        assert message.sender
        if not abs(wall_ns() // NS_PER_S - message.date) <= STALE_S:
            self.stale += 1
            self._say("by this host's clock that is long ago: nothing was done", message.message_id)
            return
        action = _COMMANDS.get(found[1]) if found else None
        if action is None or found is None:
            self._say("no such command: /help", message.message_id)
            return
        words = (found[3] or "").split()
        if action in {"mute", "unmute"} and words:
            self._mute_command(action, words, message.sender, message.message_id)
            return
        self._say(self._listed(action, message.sender), message.message_id)

    def _listed(self, action: Action, user: _User) -> str:
        """The answer to a command that only asks; ``/mute`` alone lists what is silent."""
        asked: Action = "status" if action in {"mute", "unmute"} else action
        answer = self._asked(asked, user)
        if answer is None or answer.error:
            return _no(answer)
        if action == "status":
            return chatwords.status(answer.values, self._kept.mutes())
        if action == "alerts":
            return chatwords.alerts(self._alerts.latest(_SHOWN_ALERTS))
        if action == "blocks":
            return chatwords.blocks(answer.values)
        if action == "help":
            return chatwords.HELP
        return chatwords.fitted(chatwords.muted(self._kept.mutes())) or "no rule is muted: /mute RULE 1h"

    def _mute_command(self, action: Action, words: list[str], user: _User, message_id: int) -> None:
        time = _TIME.match(words[1]) if len(words) > 1 else None
        for_s = int(time[1]) * (60 if time[2] == "m" else 3600) if time else 3600
        if not _RULE.match(words[0]) or len(words) > 2 or (len(words) == 2 and not time):
            self._say("say /mute RULE 30m, or /unmute RULE", message_id)
            return
        done = self._mute if action == "mute" else self._unmute
        self._say(done(words[0], for_s, user), message_id)

    # -- buttons -------------------------------------------------------------------------------------

    def _press(self, query: _Query) -> None:
        if query.message is None or not self._may(query.sender, query.message.chat):
            return
        message_id = query.message.message_id
        found = _BUTTON.match(query.data)
        action, for_s = _BUTTONS.get(found[1] if found else "", (None, 0))
        if found is None or action is None:
            self._say("this button is not known here", message_id)
            return
        if not self._is_fresh(query.id):
            self.stale += 1
            self._say("that was pressed too long ago: nothing was done, press again", message_id)
            return
        sent = self._sent(found[2])
        if sent is None:
            said = "this incident is not known any more: nothing was done"
        elif sent.state == "close" and action not in {"evidence", "unblock"}:
            said = "this incident is closed: nothing was done"
        else:
            said = self._done(action, for_s, query.sender, found[2], sent)
        self._say(said, message_id)

    def _is_fresh(self, query_id: str) -> bool:
        """Whether Telegram still waits for an answer to this button: a press from long ago must not act."""
        try:
            _, reply = self._bot.ask("answerCallbackQuery", {"callback_query_id": query_id[:256]})
        except OutputError:
            return False
        return reply.ok

    def _sent(self, incident: str) -> Sent | None:
        try:
            sent = msgspec.json.decode(self._notes.get(incident) or "null", type=Sent | None)
        except msgspec.DecodeError:
            return None
        return sent if sent and sent.chat == self._chat() else None

    def _done(self, action: Action, for_s: int, user: _User, incident: str, sent: Sent) -> str:
        """Do what a button says; what became of it, in words."""
        if action == "mute":
            return self._mute(sent.rule_id, for_s, user, incident)
        if action == "acknowledge":
            return self._acknowledge(user, incident, sent)
        if action != "evidence" and not sent.address:
            return "this incident has no source that could be blocked"
        answer = self._asked(action, user, incident, sent, for_s)
        if answer is None or answer.error:
            return _no(answer)
        if action == "evidence":
            document = self._alerts.document(sent.alert_id)
            return (
                chatwords.evidence(msgspec.json.decode(document)) if document else "it is not kept any more"
            )
        if action == "unblock":
            return f"{code(sent.address)} is released, by {code(user.name)}"
        would = "" if answer.values.get("mode") == "on" else "would be (dry run) "
        return f"{code(sent.address)} {would}blocked for {chatwords.span(for_s)}, by {code(user.name)}"

    def _acknowledge(self, user: _User, incident: str, sent: Sent) -> str:
        before = self._notes.get(acknowledged_key(incident))
        if before:
            return f"already {before}"
        answer = self._asked("acknowledge", user, incident, sent)
        if answer is None or answer.error:
            return _no(answer)
        who = f"{user.name} (chat user {user.id})"
        first = self._write_down(incident, who)
        said = f"acknowledged by {code(user.name if first == who else first)}"
        self._notes.set(acknowledged_key(incident), said)
        return said if first == who else f"already {said}"

    # -- mutes ---------------------------------------------------------------------------------------

    def _mute(self, rule_id: str, for_s: int, user: _User, incident: str = "") -> str:
        answer = self._asked("mute", user, incident, Sent("", 0, "", 0, rule_id), for_s)
        if answer is None or answer.error:
            return _no(answer)
        if not self._kept.mute(rule_id, for_s):
            return "too many rules are muted"
        until = chatwords.clock_time(self._kept.mutes()[rule_id])
        return f"{code(rule_id, 128)} is muted in chats until {until}, by {code(user.name)}"

    def _unmute(self, rule_id: str, _: int, user: _User) -> str:
        answer = self._asked("unmute", user, "", Sent("", 0, "", 0, rule_id))
        if answer is None or answer.error:
            return _no(answer)
        if not self._kept.unmute(rule_id):
            return f"{code(rule_id, 128)} was not muted"
        return f"{code(rule_id, 128)} speaks again, by {code(user.name)}"

    # -- both sides ----------------------------------------------------------------------------------

    def _asked(
        self, action: Action, user: _User, incident: str = "", sent: Sent | None = None, for_s: int = 0
    ) -> ChatAnswer | None:
        """Bring it to the sensor, which writes it down: what is not in the audit log is not done."""
        self.actions += 1
        return self._ask(
            ChatRequest(
                number=0,
                output=self.name,
                user_id=user.id,
                user_name=user.name,
                action=action,
                incident_id=incident,
                rule_id=sent.rule_id if sent else "",
                address=sent.address if sent and action in {"block", "unblock"} else "",
                for_s=for_s,
            )
        )

    def _say(self, text: str, replies_to: int) -> None:
        """Answer in the chat; said by :meth:`_say_all`, which waits when Telegram asks for a pause."""
        content: dict[str, Any] = {
            "text": text,
            "parse_mode": "HTML",
            "link_preview_options": {"is_disabled": True},
        }
        if replies_to:
            content["reply_parameters"] = {"message_id": replies_to, "allow_sending_without_reply": True}
        if self._topic_id:
            content["message_thread_id"] = self._topic_id
        if len(self._answers) >= MAX_ANSWERS:
            self._answers.popleft()
            self.unsaid += 1
        self._answers.append(content)

    def _say_all(self) -> None:
        while self._answers:
            _, reply = self._bot.ask("sendMessage", {"chat_id": int(self._chat()), **self._answers[0]})
            if not reply.ok:
                self.unsaid += 1
                log.error("output %s: an answer was not taken: %s", self.name, reply.words)
            self._answers.popleft()

    def _chat(self) -> str:
        return self._notes.get(moved_key(self._configured_chat)) or self._configured_chat

    def _failed(self, reason: str, now_s: float, least_s: float = 0.0) -> float:
        self._bot.close()
        wait_s = max(min(2.0**self._failures, BACKOFF_MOST_S), min(least_s, PAUSE_MOST_S))
        self._failures = min(self._failures + 1, 16)
        self._next_s = now_s + wait_s
        self.last_error = clean(mask(reason), _MAX_REASON)
        self._change("failing", self.last_error)
        return wait_s

    def _change(self, state: str, reason: str) -> None:
        if state != self.state:
            level = logging.INFO if state == "ready" else logging.WARNING
            log.log(level, "ChatOps of output %s: %s %s", self.name, state, reason)
        self.state = state


class ChatThread:
    """Runs ChatOps in a thread of its own; the thread never keeps the process alive."""

    def __init__(self, chat: ChatOps) -> None:
        self.chat = chat
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"chat-{chat.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more updates; a poll that is under way ends with the process."""
        self.chat.stopping = True
        self._wake.set()

    def _run(self) -> None:
        while not self.chat.stopping:
            self._wake.wait(self.chat.step(monotonic_s()))


def _no(answer: ChatAnswer | None) -> str:
    """Why not, for the chat."""
    if answer is None:
        return "no answer of the sensor: look whether it was done"
    return f"refused: {plain(answer.error)}"
