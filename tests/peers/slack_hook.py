"""A Slack incoming webhook for tests: Slack's answers, its limits, and a check of the blocks."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from typing import Any

from peers.chat_server import Answer, ChatServer

PATH = "/services/T000/B000/test-secret-of-a-hook"
#: Slack's own limits (Block Kit reference).
MAX_HEADER, MAX_SECTION, MAX_BLOCKS = 150, 3000, 50


class SlackHook(ChatServer):
    """``bodies`` are the messages taken; ``trouble`` is what the webhook answers instead (status, word)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, burst=3, context=None):
        self.bodies: list[dict[str, Any]] = []
        self.trouble: tuple[int, str] | None = None
        self.floods = 0
        self._clock = clock
        self._burst = burst
        self._tokens, self._last_s = float(burst), clock()
        super().__init__(context)
        self.hook = self.url + PATH

    def take(self, path: str, body: bytes) -> Answer:
        if path != PATH:
            return 404, b"no_service", {}
        if self.trouble:
            return self.trouble[0], self.trouble[1].encode(), {}
        now_s = self._clock()
        self._tokens = min(self._burst, self._tokens + now_s - self._last_s)
        self._last_s = now_s
        if self._tokens < 1 - 1e-6:
            self.floods += 1
            return 429, b"rate_limited", {"Retry-After": str(max(1, math.ceil(1 - self._tokens)))}
        try:
            found = json.loads(body)
            check(found)
        except (ValueError, KeyError, TypeError) as error:
            return 400, f"invalid_payload: {error}".encode(), {}
        self._tokens -= 1
        self.bodies.append(found)
        return 200, b"ok", {"Content-Type": "text/html"}


def check(body: dict[str, Any]) -> None:
    """Raise ValueError for a body that Slack would refuse, or in which something pings or links."""
    if not body.get("text"):
        raise ValueError("no_text")
    _inert(body["text"])
    blocks = body["blocks"]
    if not 1 <= len(blocks) <= MAX_BLOCKS:
        raise ValueError("number of blocks")
    for block in blocks:
        parts = {
            "header": [block.get("text")],
            "section": [block.get("text")],
            "context": block.get("elements"),
        }
        most = MAX_HEADER if block["type"] == "header" else MAX_SECTION
        for part in parts[block["type"]]:
            if not 1 <= len(part["text"].encode("utf-16-le")) // 2 <= most:
                raise ValueError(f"length of a {block['type']}")
            if block["type"] == "header":
                if part["type"] != "plain_text" or part["emoji"] or set("<>&") & set(part["text"]):
                    raise ValueError("header")
            else:
                if part["type"] != "mrkdwn" or part["verbatim"] is not True:
                    raise ValueError("mrkdwn without verbatim")
                _inert(part["text"])
    if body["unfurl_links"] or body["unfurl_media"]:
        raise ValueError("unfurls")


def _inert(text: str) -> None:
    """No control sequence, every ``&`` an entity, and backticks in pairs on each line."""
    if "<" in text or ">" in text or re.search(r"&(?!amp;|lt;|gt;)", text):
        raise ValueError(f"not escaped: {text!r}")
    if any(line.count("`") % 2 for line in text.split("\n")):
        raise ValueError("odd backticks")
