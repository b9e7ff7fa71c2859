"""When an output gets its daily or weekly summary, and of which span; made in portions, sent once.

A summary covers the time from the end of the last one until the latest time at which one was due: what was
missed while the appliance or the destination was down comes as one, for the whole gap. Where the last one
ended is noted when the destination has taken it: after a crash just then it may come a second time, as an
alert may, under the same id. It is no alert: no ledger counts it.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Final

from kwsiem.clock import NS_PER_S, wall_ns
from kwsiem.errors import OutputError
from kwsiem.output_settings import SummarySettings
from kwsiem.outputs.base import Rendered
from kwsiem.outputs.chatstate import ChatState, SummedUp
from kwsiem.secret import mask
from kwsiem.text import clean

log = logging.getLogger("kwsiem.outputs")

#: How often it is looked whether one is due.
LOOK_S: Final = 1.0
BACKOFF_FIRST_S: Final = 30.0
BACKOFF_MOST_S: Final = 3600.0
#: Two summaries lie at least so far apart, whatever the clock does.
LEAST_APART_S: Final = 3600.0
#: A summary that was sent this far in the future was sent while the clock was wrong, when the clock still
#: says so after an hour of running; before that it is rather the clock that has not been set yet.
FUTURE_S: Final = 2 * 86_400
FUTURE_FOR_S: Final = 3600.0
#: Before this (2020) the clock was not set.
_CLOCK_WAS_SET_S: Final = 1_577_836_800
_WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MAX_REASON: Final = 256

Ledgers = Mapping[str, tuple[int, int, int]]
#: From the span (ns since 1970) and the ledgers at its beginning to the message and the ledgers now. None
#: comes after each portion of work that leaves more to do.
Make = Callable[[int, int, Ledgers], Iterator["tuple[Rendered, Ledgers] | None"]]


def latest_due(settings: SummarySettings, now_ns: int) -> int:
    """The latest moment at or before ``now_ns`` at which a summary was due, in ns since 1970.

    By the host's local time. A time of day that a change to summer time leaves out comes as much later as
    the clocks were put; one that comes twice counts the first time.
    """
    now_s = now_ns // NS_PER_S
    hour, minute = settings.at.split(":")
    today = datetime.fromtimestamp(now_s).replace(hour=int(hour), minute=int(minute), second=0)
    for days in range(9):
        day = today - timedelta(days=days)
        if settings.every == "week" and _WEEKDAYS[day.weekday()] != settings.weekday:
            continue
        at_s = int(day.timestamp())
        if at_s <= now_s:
            return at_s * NS_PER_S
    raise AssertionError("a week has seven days")


class Summaries:
    """The summaries of one output; for its worker's thread.

    ``make`` is a generator, so that alerts of the output go out between two portions; ``ledgers`` gives those
    of all outputs, where the first summary begins. ``taken``,
    ``failures`` and ``refused`` count for the courier's counters.
    """

    def __init__(
        self,
        output: str,
        settings: SummarySettings,
        kept: ChatState,
        make: Make,
        ledgers: Callable[[], Ledgers],
    ) -> None:
        self.taken = self.failures = self.refused = 0
        self.is_busy = False
        self._output = output
        self._settings = settings
        self._kept = kept
        self._make = make
        self._ledgers = ledgers
        self._until_ns = 0
        self._work: Iterator[tuple[Rendered, Ledgers] | None] | None = None
        self._ready: tuple[Rendered, Ledgers] | None = None
        self._unsaved: SummedUp | None = None
        self._next_s = 0.0
        self._failed = 0
        self._ahead_since_s: float | None = None

    def due(self, now_s: float) -> Rendered | None:
        """The summary that is to be sent now, or None; ``now_s`` is monotonic.

        One portion of work each call: ``is_busy`` says that more is to be done at once.
        """
        if now_s < self._next_s:
            return None
        try:
            self._advance(now_s)
        except (sqlite3.Error, OSError) as error:
            self._put_off(f"cannot be made: {error}", now_s)
        except Exception as error:
            # The edge of the stage: a fault here must not hold up the output's alerts, nor go unnoticed.
            log.exception("output %s: no summary", self._output)
            self._put_off(f"cannot be made: {type(error).__name__}", now_s)
        return self._ready[0] if self._ready else None

    def sent(self, now_s: float) -> None:
        """The destination has taken it."""
        self._done(now_s)
        self.taken += 1
        log.info("output %s: summary sent", self._output)

    def failed(self, error: OutputError, now_s: float) -> None:
        """The destination has not taken it: it is tried again later, unless it never will be taken."""
        if error.retryable:
            self._put_off(str(error), now_s)
            return
        self.refused += 1
        log.error("output %s: summary refused for good: %s", self._output, _reason(str(error)))
        self._done(now_s)

    def stats(self) -> dict[str, int]:
        """For the courier's counters."""
        return {"taken": self.taken, "failures": self.failures, "refused": self.refused}

    def _advance(self, now_s: float) -> None:
        """Find out what is due, or go on with making it."""
        self._save()
        until_ns = latest_due(self._settings, wall_ns())
        if until_ns != self._until_ns:  # what was made before is of too short a span now
            self._until_ns = until_ns
            self._forget()
        if self._ready:
            return
        if self._work is None:
            since = self._since(until_ns, now_s)
            if since is None:
                self._next_s = now_s + LOOK_S
                return
            self._work = self._make(since.until_ns, until_ns, since.ledgers)
        self._ready = next(self._work)
        self.is_busy = self._ready is None

    def _since(self, until_ns: int, now_s: float) -> SummedUp | None:
        """Where the summary begins; None when none is due. The first one covers one span."""
        if until_ns < _CLOCK_WAS_SET_S * NS_PER_S:
            return None
        last = self._kept.summed_up(self._output)
        if last is None or self._is_from_the_future(last, now_s):
            self._kept.sum_up(self._output, SummedUp(until_ns, dict(self._ledgers())))
            return None
        return last if last.until_ns < until_ns else None

    def _is_from_the_future(self, last: SummedUp, now_s: float) -> bool:
        if last.until_ns - wall_ns() < FUTURE_S * NS_PER_S:
            self._ahead_since_s = None
            return False
        if self._ahead_since_s is None:
            self._ahead_since_s = now_s
        return now_s - self._ahead_since_s >= FUTURE_FOR_S

    def _done(self, now_s: float) -> None:
        assert self._ready
        self._unsaved = SummedUp(self._until_ns, dict(self._ready[1]))
        self._forget()
        self._failed = 0
        self._next_s = now_s + LEAST_APART_S
        try:
            self._save()
        except OSError as error:
            log.error("output %s: it cannot be noted that the summary was sent: %s", self._output, error)
            self._next_s = now_s + LOOK_S

    def _save(self) -> None:
        """Note what was sent; until that is on disk no other summary is made."""
        if self._unsaved:
            self._kept.sum_up(self._output, self._unsaved)
            self._unsaved = None

    def _put_off(self, reason: str, now_s: float) -> None:
        self.failures += 1
        wait_s = min(BACKOFF_FIRST_S * 2.0 ** min(self._failed, 16), BACKOFF_MOST_S)
        self._failed += 1
        self._next_s = now_s + wait_s
        self._work, self.is_busy = None, False
        log.warning("output %s: summary put off for %.0f s: %s", self._output, wait_s, _reason(reason))

    def _forget(self) -> None:
        self._work = self._ready = None
        self.is_busy = False


def _reason(words: str) -> str:
    return clean(mask(words), _MAX_REASON)
