"""One worker for each output: takes what waits in the outbox, sends it, and counts what became of it.

The same for all outputs: the minimum level, rendering, batches, retries with exponential back-off and
jitter, dead letters. :meth:`Worker.step` does one round and says when to come back; it reads no clock and
never sleeps, :class:`WorkerThread` does that.
"""

from __future__ import annotations

import logging
import random
import sqlite3
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from kwsiem.clock import iso, monotonic_s, wall_ns
from kwsiem.errors import OutputError
from kwsiem.outputs.base import Output, Rendered
from kwsiem.text import clean

log = logging.getLogger("kwsiem.outputs")

BATCH_ALERTS: Final = 200
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MOST_S: Final = 60.0
#: How often an idle output is asked whether its destination is still there.
CHECK_S: Final = 1.0
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

    def settle(
        self, output: str, delivered: Sequence[int], filtered: Sequence[int], dead: Sequence[tuple[int, str]]
    ) -> None:
        """What became of the oldest alerts: sequence numbers, with a reason for the dead."""


class Worker:
    """Carries alerts from the outbox to one output.

    ``render`` makes the bytes of a document and may raise OutputError when it cannot (too large for the
    destination). ``on_state`` is called with (state, previous state, reason) when the state changes.
    """

    def __init__(
        self,
        name: str,
        output: Output,
        source: Source,
        render: Callable[[bytes], bytes],
        *,
        min_severity: int = 0,
        on_state: Callable[[str, str, str], None] = lambda *_: None,
        random_source: random.Random | None = None,
    ) -> None:
        self.name = name
        self.state = "starting"
        self.since_ns = wall_ns()
        self.last_error = ""
        self.retries = 0
        self._output = output
        self._source = source
        self._render = render
        self._min_severity = min_severity
        self._on_state = on_state
        self._random = random_source or random.Random()  # noqa: S311 jitter is no secret
        self._is_open = False
        self._failures = 0
        self._next_try_s = 0.0

    def step(self, now_s: float) -> float:
        """One round at time ``now_s`` (monotonic); gives the seconds until the next one is due.

        0 means that more may be waiting; an output error gives the back-off, an idle round CHECK_S.
        """
        if now_s < self._next_try_s:
            return self._next_try_s - now_s
        try:
            if not self._is_open:
                self._output.open()
                self._is_open = True
            batch = self._source.waiting(self.name, BATCH_ALERTS)
            if not batch:
                self._output.check()
            else:
                self._carry(batch)
        except OutputError as error:
            return self._failed(str(error), now_s)
        except sqlite3.Error as error:
            log.exception("output %s cannot read the outbox", self.name)
            return self._failed(f"outbox: {error}", now_s)
        except Exception as error:
            # The edge of the stage: a fault in one output must not end its thread, nor go unnoticed.
            log.exception("output %s failed unexpectedly", self.name)
            return self._failed(f"{type(error).__name__}: {error}", now_s)
        self._failures = 0
        self._change("ready", "")
        return 0.0 if batch else CHECK_S

    def stats(self) -> dict[str, Any]:
        """State and last error, for the courier's counters."""
        return {
            "state": self.state,
            "since": iso(self.since_ns),
            "last_error": self.last_error,
            "retries": self.retries,
            "label": self._output.label,
        }

    def close(self) -> None:
        """Close the output."""
        self._output.close()
        self._is_open = False

    def _carry(self, batch: Sequence[Waiting]) -> None:
        """Send one batch and settle it, as far as it went; raises OutputError when it must be tried again.

        What is refused for good becomes a dead letter and the rest goes on.
        """
        filtered = [item.seq for item in batch if item.severity < self._min_severity]
        dead: list[tuple[int, str]] = []
        ready: list[tuple[int, Rendered]] = []
        for item in batch:
            if item.severity >= self._min_severity:
                self._make_ready(item, ready, dead)
        sent = 0
        try:
            while sent < len(ready):
                sent += self._send(ready[sent:], dead)
        except OutputError as error:
            sent += error.sent
            # Only what lies before the first unsent alert is settled: the cursor has no gaps.
            border = ready[sent][0] if sent < len(ready) else batch[-1].seq + 1
            self._settle([seq for seq, _ in ready[:sent]], filtered, dead, border)
            raise
        self._settle([seq for seq, _ in ready], filtered, dead, batch[-1].seq + 1)

    def _make_ready(
        self, item: Waiting, ready: list[tuple[int, Rendered]], dead: list[tuple[int, str]]
    ) -> None:
        try:
            data = self._render(item.document)
        except OutputError as error:
            dead.append((item.seq, str(error)))
        except Exception as error:
            # A document that cannot be rendered must not hold up all that come after it.
            log.exception("alert %s cannot be rendered for output %s", item.id, self.name)
            dead.append((item.seq, f"cannot be rendered: {type(error).__name__}: {error}"))
        else:
            ready.append((item.seq, Rendered(item.id, item.severity, data)))

    def _send(self, ready: Sequence[tuple[int, Rendered]], dead: list[tuple[int, str]]) -> int:
        """Send; gives how many are done with: all of them, or those up to one that was refused for good."""
        try:
            self._output.send([rendered for _, rendered in ready])
        except OutputError as error:
            if error.retryable:
                raise
            dead.append((ready[error.sent][0], str(error)))
            log.warning("output %s refused alert %s: %s", self.name, ready[error.sent][1].id, error)
            return error.sent + 1
        return len(ready)

    def _settle(
        self, done: Sequence[int], filtered: Sequence[int], dead: Sequence[tuple[int, str]], border: int
    ) -> None:
        buried = {seq for seq, _ in dead}
        self._source.settle(
            self.name,
            [seq for seq in done if seq < border and seq not in buried],
            [seq for seq in filtered if seq < border],
            [(seq, clean(reason, _MAX_REASON)) for seq, reason in dead if seq < border],
        )

    def _failed(self, reason: str, now_s: float) -> float:
        """Close, remember why, and wait: full jitter below a ceiling that doubles from 0.1 s to 60 s."""
        self._output.close()
        self._is_open = False
        ceiling_s = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0 ** min(self._failures, 16))
        self._failures += 1
        self.retries += 1
        self.last_error = clean(reason, _MAX_REASON)
        wait_s = self._random.uniform(BACKOFF_FIRST_S, max(BACKOFF_FIRST_S, ceiling_s))
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
