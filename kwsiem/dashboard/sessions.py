"""Who is logged in: a token opens a session, a session is a cookie; all of it bounded.

Only digests are kept: neither the token nor a cookie's value can be read out of this process' tables.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict, deque
from typing import Final

import msgspec

MAX_SESSIONS: Final = 32
SESSION_S: Final = 12 * 3600
#: Refused logins that are logged within a minute; each line says how many there were.
MAX_LOGGED_PER_MIN: Final = 10
#: Bytes of randomness in a session's id, as in a token.
RANDOM_BYTES: Final = 32


class Session(msgspec.Struct, frozen=True):
    """One login: until when (monotonic), what each change must bring along, what the audit log calls it."""

    until_s: float
    csrf: str
    name: str


class Sessions:
    """At most MAX_SESSIONS; one more ends the oldest."""

    def __init__(self) -> None:
        self._all: OrderedDict[bytes, Session] = OrderedDict()

    def open(self, peer: str, now_s: float) -> tuple[str, Session]:
        """A new session and the value of its cookie."""
        value = secrets.token_urlsafe(RANDOM_BYTES)
        key = _digest(value)
        session = Session(now_s + SESSION_S, secrets.token_urlsafe(RANDOM_BYTES), f"{peer} {key.hex()[:8]}")
        self._all[key] = session
        while len(self._all) > MAX_SESSIONS:
            self._all.popitem(last=False)
        return value, session

    def find(self, value: str, now_s: float) -> Session | None:
        """The session of a cookie; an old one is gone."""
        key = _digest(value)
        session = self._all.get(key)
        if session and session.until_s <= now_s:
            del self._all[key]
            return None
        return session

    def close(self, value: str) -> None:
        """Log out."""
        self._all.pop(_digest(value), None)

    def __len__(self) -> int:
        return len(self._all)


class Door:
    """Compares tokens in constant time. A right one always opens, however often others failed.

    Through ``ssh -L`` all have the same address: whoever may be shut out by it, anybody can shut out.
    """

    def __init__(self, token_digest: bytes) -> None:
        self._token = token_digest
        self._logged_s: deque[float] = deque(maxlen=MAX_LOGGED_PER_MIN)
        self.failures = 0

    def opens(self, token: str) -> bool:
        """Whether the token is right."""
        if hmac.compare_digest(_digest(token), self._token):
            return True
        self.failures += 1
        return False

    def is_news(self, now_s: float) -> bool:
        """Whether a failure is to be logged: whoever reaches the port must not fill the log."""
        if len(self._logged_s) == MAX_LOGGED_PER_MIN and now_s - self._logged_s[0] < 60.0:
            return False
        self._logged_s.append(now_s)
        return True


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
