"""One worker for each output: takes what waits in the outbox, sends it, and counts what became of it.

The same for all outputs: routing, rendering, batches, rates with digests, retries with exponential back-off
and jitter, dead letters, replay after a reconnect. :meth:`Worker.step` does one round and
says when to come back; it reads no clock and never sleeps, :class:`WorkerThread` does that.
"""

from __future__ import annotations

import logging
import random
import sqlite3
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

import msgspec

from kwsiem import failpoint
from kwsiem.alert import URGENT_SEVERITY
from kwsiem.clock import iso, monotonic_s, wall_ns
from kwsiem.errors import OutputError
from kwsiem.outputs.base import Output, Rendered
from kwsiem.outputs.pace import Pace
from kwsiem.secret import mask
from kwsiem.text import clean

log = logging.getLogger("kwsiem.outputs")

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MOST_S: Final = 60.0
#: A destination that asks for a longer pause than this does not get it.
RETRY_AFTER_MOST_S: Final = 3600.0
#: A connection that held for so long counts as good: the next error begins with the shortest pause.
STABLE_S: Final = 5.0
#: How often an idle output is asked whether its destination is still there.
CHECK_S: Final = 1.0
#: Between two portions of work on a summary: others get the processor.
PORTION_S: Final = 0.01
#: The most alerts in one digest.
DIGEST_ALERTS: Final = 1000
_MAX_REASON: Final = 256


class Waiting(Protocol):
    """One alert as the outbox gives it."""

    @property
    def seq(self) -> int:
        """Its sequence number."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def severity(self) -> int:
        """Its severity, 0 to 10."""

    @property
    def document(self) -> bytes:
        """Its document as JSON."""


class Source(Protocol):
    """What a worker asks of the outbox; ``output`` is the worker's name."""

    def waiting(self, output: str, limit: int) -> Sequence[Waiting]:
        """The oldest alerts not settled yet."""

    def urgent(self, output: str, after: int, limit: int) -> Sequence[Waiting]:
        """The oldest high and critical alerts behind sequence number ``after`` that are not settled yet."""

    def settle(
        self,
        output: str,
        delivered: Sequence[int],
        filtered: Sequence[int],
        dead: Sequence[tuple[int, str]],
        *,
        replays: bool = False,
    ) -> None:
        """What became of alerts: sequence numbers, with a reason for the dead.

        With ``replays`` it is remembered when they were sent.
        """

    def replay_after(self, output: str) -> int:
        """The sequence number behind which what was sent may have been lost with the connection."""

    def sent(self, output: str, after: int, limit: int) -> Sequence[Waiting]:
        """Alerts behind ``after`` that were settled, oldest first."""


class Extras(Protocol):
    """Messages of an output that are no alerts (outputs.summaries)."""

    is_busy: bool

    def due(self, now_s: float) -> Rendered | None:
        """What is to be sent now; a portion of work each call, more at once while ``is_busy``."""

    def sent(self, now_s: float) -> None:
        """The destination has taken it."""

    def failed(self, error: OutputError, now_s: float) -> None:
        """The destination has not taken it."""

    def stats(self) -> dict[str, int]:
        """For the courier's counters."""


class Parcel(msgspec.Struct, frozen=True):
    """One message, and the sequence numbers of the alerts in it (several in a digest)."""

    seqs: tuple[int, ...]
    rendered: Rendered


class Route(msgspec.Struct, frozen=True):
    """Which alerts an output gets, in what form, and how fast.

    ``wants`` looks at a document (None: all of them); ``render`` makes its bytes and may raise OutputError
    when it cannot (too large for the destination). When more than ``digest_over`` alerts wait and ``pace``
    lets fewer through, ``digest`` makes one document of many; without it they wait their turn.
    """

    render: Callable[[bytes], bytes]
    min_severity: int = 0
    wants: Callable[[bytes], bool] | None = None
    pace: Pace | None = None
    digest: Callable[[Sequence[bytes]], bytes] | None = None
    digest_over: int = 5


class Worker:
    """Carries alerts from the outbox to one output.

    ``on_state`` is called with (state, previous state, reason) when the state changes. ``extras`` are sent
    between alerts; one that the destination does not take holds up no alert.
    """

    def __init__(
        self,
        name: str,
        output: Output,
        source: Source,
        route: Route,
        *,
        extras: Extras | None = None,
        on_state: Callable[[str, str, str], None] = lambda *_: None,
        random_source: random.Random | None = None,
    ) -> None:
        self.name = name
        self.state = "starting"
        self.since_ns = wall_ns()
        self.last_error = ""
        self.retries = 0
        self.replayed = 0
        self.digested = 0
        self._output = output
        self._source = source
        self._route = route
        self._extras = extras
        self._on_state = on_state
        self._random = random_source or random.Random()  # noqa: S311 jitter is no secret
        self._is_open = False
        self._opened_s = 0.0
        self._failures = 0
        self._next_try_s = 0.0
        self._replay_after: int | None = None
        self._is_digest_due = False

    def step(self, now_s: float) -> float:
        """One round at time ``now_s`` (monotonic); gives the seconds until the next one is due.

        0 means that more may be waiting; an output error gives the back-off, an idle round CHECK_S.
        """
        if now_s < self._next_try_s:
            return self._next_try_s - now_s
        try:
            self._ensure_open(now_s)
            most_s = self._extra(now_s)
            wait_s = 0.0 if self._replay() else min(most_s, self._forward(now_s))
        except OutputError as error:
            return self._failed(str(error), now_s, error.retry_after_s or 0.0)
        except sqlite3.Error as error:
            log.exception("output %s cannot read the outbox", self.name)
            return self._failed(f"outbox: {error}", now_s)
        except Exception as error:
            # The edge of the stage: a fault in one output must not end its thread, nor go unnoticed.
            log.exception("output %s failed unexpectedly", self.name)
            return self._failed(f"{type(error).__name__}: {error}", now_s)
        if not self._output.replays or now_s - self._opened_s >= STABLE_S:
            self._failures = 0
        self._change("ready", "")
        return wait_s

    def stats(self) -> dict[str, Any]:
        """State and last error, for the courier's counters."""
        extras = {"summaries": self._extras.stats()} if self._extras else {}
        return {
            "state": self.state,
            "since": iso(self.since_ns),
            "last_error": self.last_error,
            "retries": self.retries,
            "replayed": self.replayed,
            "digested": self.digested,
            "label": self._output.label,
            **extras,
        }

    def close(self) -> None:
        """Close the output."""
        self._output.close()
        self._is_open = False

    def _ensure_open(self, now_s: float) -> None:
        if self._is_open:
            return
        self._output.open()
        self._is_open = True
        self._opened_s = now_s
        if self._output.replays:
            self._replay_after = self._source.replay_after(self.name)

    def _replay(self) -> bool:
        """Send again a batch of what an earlier connection may have lost; False when nothing is left.

        It is settled already, so nothing is counted but ``replayed``; an error begins it anew.
        """
        if self._replay_after is None:
            return False
        batch = self._source.sent(self.name, self._replay_after, self._output.batch_alerts)
        if not batch:
            self._replay_after = None
            return False
        parcels, _, _ = self._sorted_out(batch)
        if parcels:
            self._output.send([parcel.rendered for parcel in parcels])
        self.replayed += len(parcels)
        self._replay_after = batch[-1].seq
        return True

    def _extra(self, now_s: float) -> float:
        """Send a message that is no alert, when one is due; gives the longest time until the next round."""
        message = self._extras.due(now_s) if self._extras else None
        if self._extras is None or message is None:
            return PORTION_S if self._extras and self._extras.is_busy else CHECK_S
        pace = self._route.pace
        if pace and not pace.free(now_s):
            return CHECK_S
        if pace:
            pace.take(1, now_s)
        try:
            self._output.send([message])
        except OutputError as error:
            self._extras.failed(error, now_s)
            if error.retryable:
                raise
        except Exception as error:
            # The edge of the stage, as in step; put off, or it would come before all alerts for ever.
            self._extras.failed(OutputError(f"{type(error).__name__}: {error}"), now_s)
            raise
        else:
            self._extras.sent(now_s)
        return CHECK_S

    def _forward(self, now_s: float) -> float:
        """Send what waits, as far as the pace allows; gives the seconds until the next round."""
        pace = self._route.pace
        if pace and not pace.free(now_s):
            return min(CHECK_S, pace.wait_s(now_s))
        batch = self._batch(DIGEST_ALERTS if pace and self._route.digest else self._output.batch_alerts)
        if not batch:
            self._output.check()
            return CHECK_S
        parcels, filtered, dead = self._sorted_out(batch)
        chosen = self._paced(parcels, now_s) if pace else parcels
        done, refused, error = self._send(chosen)
        self._settle(batch, done, filtered, dead, refused)
        if error:
            raise error
        return 0.0

    def _batch(self, limit: int) -> list[Waiting]:
        """The oldest alerts; in a long queue a quarter of the places is for high ones, also from behind.

        They go first; without the others' three quarters a storm of high alerts would hold up all others.
        """
        batch = list(self._source.waiting(self.name, limit))
        ordinary = [item for item in batch if item.severity < URGENT_SEVERITY]
        if len(batch) < limit or not ordinary:
            return batch
        high = [item for item in batch if item.severity >= URGENT_SEVERITY]
        if len(high) < limit // 4:
            high += self._source.urgent(self.name, batch[-1].seq, limit // 4 - len(high))
        return [*high, *ordinary[: limit - len(high)]]

    def _sorted_out(self, batch: Sequence[Waiting]) -> tuple[list[Parcel], list[int], list[tuple[int, str]]]:
        """The batch apart: what is to be sent, what this output does not want, what cannot be rendered."""
        parcels: list[Parcel] = []
        filtered: list[int] = []
        dead: list[tuple[int, str]] = []
        for item in batch:
            try:
                if not self._wants(item):
                    filtered.append(item.seq)
                    continue
                rendered = Rendered(item.id, item.severity, self._route.render(item.document), item.document)
                parcels.append(Parcel((item.seq,), rendered))
            except OutputError as error:
                dead.append((item.seq, str(error)))
            except sqlite3.Error:
                raise  # the outbox, which a filter may ask, is no fault of the alert
            except Exception as error:
                # A document that cannot be rendered must not hold up all that come after it.
                log.exception("alert %s cannot be rendered for output %s", item.id, self.name)
                dead.append((item.seq, f"cannot be rendered: {type(error).__name__}: {error}"))
        return parcels, filtered, dead

    def _wants(self, item: Waiting) -> bool:
        if item.severity < self._route.min_severity:
            return False
        return self._route.wants is None or self._route.wants(item.document)

    def _paced(self, parcels: list[Parcel], now_s: float) -> list[Parcel]:
        """What may go now, the most severe first: each by itself, or when too many wait some and a digest.

        Where one message may go, the most severe alert and a digest take turns: a high alert in a storm is
        said by itself, and no run of high alerts holds back all others.
        """
        assert self._route.pace
        free = self._route.pace.free(now_s)
        by_severity = sorted(parcels, key=lambda parcel: -parcel.rendered.severity)
        if not self._route.digest or len(parcels) <= max(free, self._route.digest_over):
            chosen = by_severity[:free]
        elif free > 1 or self._is_digest_due or by_severity[0].rendered.severity < URGENT_SEVERITY:
            digest = self._digest(by_severity[free - 1 :])
            chosen = [*by_severity[: free - 1], digest] if digest else by_severity[:free]
            self._is_digest_due = False
        else:
            chosen = by_severity[:1]
            self._is_digest_due = True
        self._route.pace.take(len(chosen), now_s)
        return chosen

    def _digest(self, parcels: Sequence[Parcel]) -> Parcel | None:
        """One message of many; None when it cannot be made, then they go one by one."""
        assert self._route.digest
        try:
            source = self._route.digest([parcel.rendered.source for parcel in parcels])
            data = self._route.render(source)
        except Exception:
            # The edge of the stage: a fault of the digest must not hold up what it would sum up.
            log.exception("output %s: no digest of %d alerts", self.name, len(parcels))
            return None
        ids = (parcels[0].rendered.id, parcels[-1].rendered.id)
        severity = max(parcel.rendered.severity for parcel in parcels)
        rendered = Rendered(f"digest-{'-'.join(ids)}", severity, data, source)
        return Parcel(tuple(seq for parcel in parcels for seq in parcel.seqs), rendered)

    def _send(
        self, parcels: Sequence[Parcel]
    ) -> tuple[list[Parcel], list[tuple[int, str]], OutputError | None]:
        """Send; gives what was taken, what was refused for good, and the error that stopped it, if any."""
        done: list[Parcel] = []
        refused: list[tuple[int, str]] = []
        pending = list(parcels)
        while pending:
            batch = [parcel.rendered for parcel in pending]
            half = partial(self._output.send, batch[: (len(batch) + 1) // 2])
            try:
                failpoint.reach("worker.sending")
                failpoint.reach("worker.half_sent", half)
                self._output.send(batch)
            except OutputError as error:
                done += [parcel for index, parcel in enumerate(pending) if index in error.taken]
                for index, reason in error.refused.items():
                    if index < len(pending):
                        refused += [(seq, reason) for seq in pending[index].seqs]
                        log.warning(
                            "output %s refused alert %s: %s", self.name, pending[index].rendered.id, reason
                        )
                left = [
                    parcel
                    for index, parcel in enumerate(pending)
                    if index not in error.taken and index not in error.refused
                ]
                if error.retryable or len(left) == len(pending):
                    return done, refused, error
                pending = left
            else:
                failpoint.reach("worker.sent")
                done += pending
                pending = []
        return done, refused, None

    def _settle(
        self,
        batch: Sequence[Waiting],
        done: Sequence[Parcel],
        filtered: Sequence[int],
        dead: Sequence[tuple[int, str]],
        refused: Sequence[tuple[int, str]],
    ) -> None:
        """Settle what is done with.

        Filtered and unrenderable alerts count only up to the first one that goes on waiting: behind it they
        would be looked at again and again, and remembered one by one.
        """
        delivered = [seq for parcel in done for seq in parcel.seqs]
        self.digested += sum(len(parcel.seqs) for parcel in done if len(parcel.seqs) > 1)
        settled = {*delivered, *filtered, *(seq for seq, _ in (*dead, *refused))}
        border = min((item.seq for item in batch if item.seq not in settled), default=None)
        self._source.settle(
            self.name,
            delivered,
            [seq for seq in filtered if border is None or seq < border],
            [
                (seq, clean(mask(reason), _MAX_REASON))
                for seq, reason in (*(d for d in dead if border is None or d[0] < border), *refused)
            ],
            replays=self._output.replays,
        )

    def _failed(self, reason: str, now_s: float, least_s: float = 0.0) -> float:
        """Close, remember why, and wait: full jitter below a ceiling that doubles from 0.1 s to 60 s.

        It is never shorter than ``least_s``, the pause that the destination asked for.
        """
        self._output.close()
        self._is_open = False
        ceiling_s = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0 ** min(self._failures, 16))
        self._failures += 1
        self.retries += 1
        self.last_error = clean(mask(reason), _MAX_REASON)
        wait_s = self._random.uniform(BACKOFF_FIRST_S, max(BACKOFF_FIRST_S, ceiling_s))
        wait_s = max(wait_s, min(least_s, RETRY_AFTER_MOST_S))
        self._next_try_s = now_s + wait_s
        self._change("failing", self.last_error)
        return wait_s

    def _change(self, state: str, reason: str) -> None:
        if state == self.state:
            return
        previous, self.state, self.since_ns = self.state, state, wall_ns()
        log.log(
            logging.INFO if state == "ready" else logging.WARNING,
            "output %s: %s %s",
            self.name,
            state,
            reason,
        )
        self._on_state(state, previous, reason)


class WorkerThread:
    """Runs one worker in a thread of its own; the thread never keeps the process alive."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._wake = threading.Event()
        self._stopping = False
        self._deadline_s = 0.0
        self._thread = threading.Thread(target=self._run, name=f"output-{worker.name}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Say that alerts are waiting."""
        self._wake.set()

    def stop(self, deadline_s: float) -> None:
        """Ask it to end once nothing waits any more, or at ``deadline_s`` (monotonic)."""
        self._deadline_s = deadline_s
        self._stopping = True
        self._wake.set()

    def join(self, timeout_s: float) -> bool:
        """Whether the thread has ended within the time."""
        self._thread.join(max(0.0, timeout_s))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not (self._stopping and monotonic_s() >= self._deadline_s):
            self._wake.clear()
            # Read before the round: an alert that was stored before the stop is still seen by it.
            stopping = self._stopping
            wait_s = self.worker.step(monotonic_s())
            if stopping and wait_s and self.worker.state == "ready":
                break
            if wait_s:
                left_s = self._deadline_s - monotonic_s() if self._stopping else wait_s
                self._wake.wait(max(0.0, min(wait_s, left_s)))
        self.worker.close()
