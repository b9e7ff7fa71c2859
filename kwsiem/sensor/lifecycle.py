"""The states of a probe and its allowed transitions: pure, no clock, no process.

::

    waiting ──spawn──► starting ──heartbeat──► ready
       ▲                  │                      │
       │                  ├─ exit, no heartbeat  ├─ exit, silence
       │                  ▼                      ▼
       └──due── backoff ◄────────────────────────┘
    starting ──exit: kernel cannot──► unsupported     (until the file or the host changes)
    starting ──exit: script wrong───► failed          (until the file changes)
    any ──removed or end of service──► stopping ──exit──► gone
"""

from __future__ import annotations

import enum
import re
from typing import Final

#: The first heartbeat must come within this; bpftrace needs 0.1 to 0.4 s (measured), a loaded host longer.
START_TIMEOUT_S: Final = 30.0
#: A ready probe prints a heartbeat each second; this long without one is a fault.
SILENCE_S: Final = 5.0
BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MOST_S: Final = 60.0
#: After this long without a fault the next one begins at the first back-off again.
STEADY_S: Final = 60.0


class State(str, enum.Enum):
    """What a probe is doing."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    BACKOFF = "backoff"
    UNSUPPORTED = "unsupported"
    FAILED = "failed"
    STOPPING = "stopping"
    GONE = "gone"


_ALLOWED: Final[dict[State, frozenset[State]]] = {
    State.WAITING: frozenset({State.STARTING, State.UNSUPPORTED, State.FAILED, State.BACKOFF, State.GONE}),
    State.STARTING: frozenset(
        {State.READY, State.BACKOFF, State.UNSUPPORTED, State.FAILED, State.STOPPING, State.GONE}
    ),
    State.READY: frozenset({State.BACKOFF, State.STOPPING, State.GONE}),
    State.BACKOFF: frozenset({State.STARTING, State.UNSUPPORTED, State.FAILED, State.STOPPING, State.GONE}),
    State.UNSUPPORTED: frozenset({State.GONE}),
    State.FAILED: frozenset({State.GONE}),
    State.STOPPING: frozenset({State.GONE}),
    State.GONE: frozenset(),
}

#: What bpftrace says when this kernel or host lacks something (texts of 0.14 to 0.27, measured).
_UNSUPPORTED: Final = re.compile(
    r"tracepoint not found|No matches for (tracepoint|uprobe|uretprobe|kprobe|kretprobe|fentry)"
    r"|uprobe target file .* does not exist|Could not resolve symbol|Error attaching probe"
    r"|kernel lockdown|No BTF data|Kernel BTF|Unable to find .*libpam|Missing CAP_"
)
#: What it says when the script itself is wrong.
_BROKEN: Final = re.compile(
    r"syntax error|syntax: |does not contain a field|Unknown (struct|function|identifier|variable|enum)"
    r"|Undefined or undeclared|stack limit|Error loading (BPF )?program|Type mismatch|type mismatch"
    r"|expects an? |Cannot (resolve|use)|unknown type name|ERROR: .*\n.*~~~"
)


def verdict(console: str) -> State:
    """What an exit before the first heartbeat means, from what bpftrace wrote to its console.

    UNSUPPORTED and FAILED are final until something changes; anything not understood is a BACKOFF.
    """
    if _UNSUPPORTED.search(console):
        return State.UNSUPPORTED
    return State.FAILED if _BROKEN.search(console) else State.BACKOFF


class Lifecycle:
    """The state of one probe; every method takes the time (monotonic seconds) and says nothing to anyone."""

    def __init__(self, now_s: float) -> None:
        self.state = State.WAITING
        self.reason = ""
        self.since_s = now_s
        self.restarts = 0
        self._faults = 0
        self._due_s = now_s
        self._heartbeat_s = now_s

    def spawned(self, now_s: float) -> None:
        """A process was started."""
        if self.state is State.BACKOFF:
            self.restarts += 1
        self._enter(State.STARTING, "", now_s)
        self._heartbeat_s = now_s

    def heartbeat(self, now_s: float) -> bool:
        """A heartbeat was read; True when it is the first of its run."""
        self._heartbeat_s = now_s
        if self.state is State.READY and now_s - self.since_s > STEADY_S:
            self._faults = 0
        if self.state is not State.STARTING:
            return False
        self._enter(State.READY, "", now_s)
        return True

    def exited(self, console: str, now_s: float) -> None:
        """The process has ended; ``console`` is the last it wrote."""
        said = _last_words(console)
        if self.state is State.STOPPING:
            self._enter(State.GONE, "", now_s)
        elif self.state is State.STARTING and (final := verdict(console)) is not State.BACKOFF:
            self._enter(final, said, now_s)
        else:
            self._back_off(said or "bpftrace ended", now_s)

    def refused(self, state: State, reason: str, now_s: float) -> None:
        """It was not even started: ``state`` is UNSUPPORTED, FAILED, or BACKOFF (try again later)."""
        if state is State.BACKOFF:
            self._back_off(reason, now_s)
        else:
            self._enter(state, reason, now_s)

    def stop(self, running: bool, now_s: float) -> None:
        """The probe is not wanted any more."""
        if self.state is not State.GONE:
            self._enter(State.STOPPING if running else State.GONE, "", now_s)

    def due(self, now_s: float) -> bool:
        """Whether a process should be started now."""
        return self.state in (State.WAITING, State.BACKOFF) and now_s >= self._due_s

    def overdue(self, now_s: float) -> str:
        """Why the running process must be ended now; empty when it need not."""
        silent_s = now_s - self._heartbeat_s
        if self.state is State.STARTING and silent_s > START_TIMEOUT_S:
            return f"no heartbeat within {START_TIMEOUT_S:.0f} s of the start"
        if self.state is State.READY and silent_s > SILENCE_S:
            return f"no heartbeat for {silent_s:.0f} s"
        return ""

    def forgive(self, now_s: float) -> None:
        """Nobody could listen for a while (the engine was away): count silence from now."""
        self._heartbeat_s = max(self._heartbeat_s, now_s)

    def _back_off(self, reason: str, now_s: float) -> None:
        delay_s = min(BACKOFF_FIRST_S * 2**self._faults, BACKOFF_MOST_S)
        self._faults = min(self._faults + 1, 16)
        self._due_s = now_s + delay_s
        self._enter(State.BACKOFF, reason, now_s)

    def _enter(self, state: State, reason: str, now_s: float) -> None:
        if state not in _ALLOWED[self.state] and state is not self.state:
            raise AssertionError(f"probe cannot go from {self.state.value} to {state.value}")
        self.state = state
        self.reason = reason
        self.since_s = now_s


def _last_words(console: str) -> str:
    """The line of a console that says what was wrong: the last ERROR, else the last line."""
    lines = [line.strip() for line in console.splitlines() if line.strip()]
    # "couldn't set RLIMIT_MEMLOCK" is labelled ERROR up to 0.20 and is harmless.
    errors = [line for line in lines if "ERROR" in line and "RLIMIT_MEMLOCK" not in line]
    words = errors[-1] if errors else (lines[-1] if lines else "")
    return words[:300]
