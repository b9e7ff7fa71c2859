"""What the sensor does for people in a chat: checks who asks, does what needs rights, writes all of it down.

The courier, which reads what Telegram sends, has no rights and may be taken over. So nothing it says is
trusted: only users of the settings, only single addresses, only two lengths of a block, so many a minute.
A block is judged by the guard like one of ``kwsiem blocks``; a release is not, it only opens.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from kwsiem import clock
from kwsiem.messages import ChatAnswer, ChatRequest
from kwsiem.output_settings import OutputSettings, TelegramSettings
from kwsiem.text import clean, harmless

BLOCK_S: Final = (3600, 86_400)
MUTE_MOST_S: Final = 86_400
#: Blocks and unblocks of all chats together: more than a person presses, little for a courier gone bad.
MAX_CHANGES_PER_MIN: Final = 20
#: All requests together: what a few people press, and little for a sensor or its log.
MAX_REQUESTS_PER_MIN: Final = 120
MAX_SHOWN: Final = 20
_MAX_NAME: Final = 64
_MAX_ID: Final = 128

audit = logging.getLogger("kwsiem.audit")


class ChatDesk:
    """Answers requests from chats.

    ``blocks`` answers a request as ``Blocker.answer`` does, ``status`` gives the few figures of ``/status``,
    ``rules`` the ids of the rules that run (empty: not known yet).
    """

    def __init__(
        self,
        outputs: Collection[OutputSettings],
        blocks: Callable[[Mapping[str, Any]], dict[str, Any]],
        status: Callable[[], dict[str, Any]],
        rules: Callable[[], Collection[str]],
    ) -> None:
        self._users = {
            output.name: frozenset(output.chatops.users)
            for output in outputs
            if isinstance(output, TelegramSettings)
        }
        self._blocks = blocks
        self._status = status
        self._rules = rules
        self._counts: Counter[tuple[str, str]] = Counter()
        self._requests_s: deque[float] = deque(maxlen=MAX_REQUESTS_PER_MIN)
        self._is_flooded = False
        self._changes_s: deque[float] = deque(maxlen=MAX_CHANGES_PER_MIN)

    def answer(self, request: ChatRequest) -> ChatAnswer:
        """Do it, or say why not; one line in the audit log either way, but for what floods it."""
        if self._floods():
            self._counts[request.action, "refused"] += 1
            return ChatAnswer(
                number=request.number, error=f"more than {MAX_REQUESTS_PER_MIN} requests a minute"
            )
        error, values = self._done(request)
        outcome = "refused" if error else "done"
        self._counts[request.action, outcome] += 1
        audit.info(
            "chat",
            extra={
                "action": request.action,
                "output": clean(request.output, _MAX_NAME),
                "user_id": request.user_id,
                "user_name": _shown(request.user_name),
                "incident": clean(request.incident_id, _MAX_ID),
                "rule": clean(request.rule_id, _MAX_ID),
                "network": clean(request.address, _MAX_NAME),
                "for_s": request.for_s,
                "outcome": outcome,
                "reason": error,
            },
        )
        return ChatAnswer(number=request.number, error=error, values=values)

    def _floods(self) -> bool:
        """Whether there are too many requests; the first one of them is logged, the others only counted."""
        now_s = clock.monotonic_s()
        if len(self._requests_s) < MAX_REQUESTS_PER_MIN or now_s - self._requests_s[0] >= 60.0:
            self._requests_s.append(now_s)
            self._is_flooded = False
            return False
        if not self._is_flooded:
            audit.warning(
                "chat", extra={"outcome": "refused", "reason": "too many requests, now only counted"}
            )
        self._is_flooded = True
        return True

    def figures(self) -> dict[str, dict[str, int]]:
        """How many requests there were, by action (a closed set) and outcome (done, refused)."""
        found: dict[str, dict[str, int]] = {}
        for (action, outcome), count in self._counts.items():
            found.setdefault(action, {})[outcome] = count
        return found

    def _done(self, request: ChatRequest) -> tuple[str, dict[str, Any]]:
        if request.user_id not in self._users.get(request.output, ()):
            return "this user may not", {}
        if request.action in {"block", "unblock"}:
            return self._change(request)
        if request.action in {"mute", "unmute"}:
            return self._mute(request), {}
        if request.action == "blocks":
            found = self._blocks({"verb": "list", "limit": MAX_SHOWN})
            return clean(str(found.pop("error", "")), 256), found
        return "", self._status() if request.action == "status" else {}

    def _mute(self, request: ChatRequest) -> str:
        known = self._rules()
        if request.action == "unmute":
            return ""
        if known and request.rule_id not in known:
            return "no such rule runs"
        return "" if 1 <= request.for_s <= MUTE_MOST_S else "a rule is muted for 24 h at most"

    def _change(self, request: ChatRequest) -> tuple[str, dict[str, Any]]:
        """A block or the end of one; what is refused here never comes to the guard."""
        if "/" in request.address:
            return "only single addresses", {}
        now_s = clock.monotonic_s()
        if len(self._changes_s) == MAX_CHANGES_PER_MIN and now_s - self._changes_s[0] < 60.0:
            return f"more than {MAX_CHANGES_PER_MIN} changes within a minute", {}
        self._changes_s.append(now_s)
        return self._block(request) if request.action == "block" else self._unblock(request)

    def _block(self, request: ChatRequest) -> tuple[str, dict[str, Any]]:
        if request.for_s not in BLOCK_S:
            return "blocked is for 1 hour or 1 day", {}
        reason = f"chat user {request.user_id} {_shown(request.user_name)}"
        entry = {"network": request.address, "for_s": request.for_s, "reason": reason}
        found = self._blocks({"verb": "add", "entries": [entry]})
        if "error" in found:
            return clean(str(found["error"]), 256), {}
        result: dict[str, Any] = found["results"][0]
        return ("", result) if result["blocked"] else (clean(str(result["reason"]), 256), {})

    def _unblock(self, request: ChatRequest) -> tuple[str, dict[str, Any]]:
        """End what blocks an address: its own block, or that of its /64, which is one host in IPv6."""
        found = self._blocks({"verb": "explain", "network": request.address})
        network = found.get("blocked_by")
        if "error" not in found and not network:
            found = {"error": f"{request.address} is not blocked"}
        elif network and "/" in network and not (":" in network and network.endswith("/64")):
            found = {"error": f"it is within {network}: kwsiem blocks remove {network}"}
        elif network:
            found = self._blocks({"verb": "remove", "network": network})
        return clean(str(found.get("error", "")), 256), found


def _shown(name: str) -> str:
    return harmless(name, _MAX_NAME)
