"""Host names that the guard must know the addresses of, looked up in a thread: a slow DNS holds up nobody.

What a name has once led to stays protected for KEPT_S after it was last seen: a pool gives other addresses
each time, and a name server that is down must not make a receiver blockable.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from kwsiem.clock import monotonic_s

log = logging.getLogger("kwsiem.names")

REFRESH_S: Final = 300.0
RETRY_S: Final = 10.0
KEPT_S: Final = 86400.0
MAX_NAMES: Final = 1000
MAX_ADDRESSES: Final = 256


def look_up(name: str) -> list[str]:
    """The addresses of a name, both families; raises OSError."""
    return list({str(found[4][0]) for found in socket.getaddrinfo(name, None, proto=socket.IPPROTO_TCP)})


class Names:
    """Keeps the addresses of some names fresh; ``changed`` is set whenever there is something new."""

    def __init__(self, resolve: Callable[[str], list[str]] = look_up) -> None:
        self.changed = threading.Event()
        self._resolve = resolve
        self._lock = threading.Lock()
        self._wanted: frozenset[str] = frozenset()
        self._seen: dict[str, dict[str, float]] = {}
        self._failing: dict[str, str] = {}
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def want(self, names: Iterable[str]) -> None:
        """The names to follow from now on (the first MAX_NAMES); new ones are looked up at once."""
        wanted = frozenset(list(names)[:MAX_NAMES])
        with self._lock:
            if wanted == self._wanted:
                return
            self._wanted = wanted
        if wanted and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="names", daemon=True)
            self._thread.start()
        self._wake.set()

    def addresses(self) -> Mapping[str, tuple[str, ...]]:
        """The addresses of each wanted name that are known now."""
        with self._lock:
            return {name: tuple(self._seen.get(name, ())) for name in self._wanted}

    def failing(self) -> Mapping[str, str]:
        """Names that could not be looked up at the last try, with the reason."""
        with self._lock:
            return {name: why for name, why in self._failing.items() if name in self._wanted}

    def close(self) -> None:
        """End the thread (it may be within a look-up for a while; nobody waits for it)."""
        self._stopping = True
        self._wake.set()

    def round(self) -> None:
        """Look every wanted name up once."""
        for name in sorted(self._wanted):
            if self._stopping:
                return
            try:
                found = self._resolve(name)
            except (OSError, UnicodeError) as error:
                with self._lock:
                    self._failing[name] = str(error)[:200]
                continue
            self._note(name, found)

    def _note(self, name: str, found: Iterable[str]) -> None:
        now_s = monotonic_s()
        with self._lock:
            self._failing.pop(name, None)
            known = self._seen.get(name, {})
            fresh = {address: seen_s for address, seen_s in known.items() if now_s - seen_s < KEPT_S}
            fresh.update(dict.fromkeys(list(found)[:MAX_ADDRESSES], now_s))
            self._seen[name] = dict(sorted(fresh.items(), key=lambda item: -item[1])[:MAX_ADDRESSES])
            if set(fresh) != set(known):
                self.changed.set()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            self.round()
            self._wake.wait(RETRY_S if self.failing() else REFRESH_S)
