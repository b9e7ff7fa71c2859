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
#: Failed logins: of one address, and of all together, within a minute.
MAX_FAILED: Final = 5
MAX_FAILED_TOGETHER: Final = 60
#: Addresses whose failures are remembered.
MAX_ADDRESSES: Final = 1024
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
    """Compares tokens in constant time, and only so often."""

    def __init__(self, token_digest: bytes) -> None:
        self._token = token_digest
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()
        self._together: deque[float] = deque(maxlen=MAX_FAILED_TOGETHER)
        self.failures = 0

    def is_shut(self, peer: str, now_s: float) -> bool:
        """Whether this address has failed too often, or all of them have."""
        mine = self._failed.get(peer, deque())
        return (len(mine) == MAX_FAILED and now_s - mine[0] < 60.0) or (
            len(self._together) == MAX_FAILED_TOGETHER and now_s - self._together[0] < 60.0
        )

    def opens(self, token: str, peer: str, now_s: float) -> bool:
        """Whether the token is right; a wrong one is counted."""
        if hmac.compare_digest(_digest(token), self._token):
            return True
        self.failures += 1
        self._together.append(now_s)
        self._failed.setdefault(peer, deque(maxlen=MAX_FAILED)).append(now_s)
        self._failed.move_to_end(peer)
        while len(self._failed) > MAX_ADDRESSES:
            self._failed.popitem(last=False)
        return False


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
