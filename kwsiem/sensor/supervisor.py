"""Keeps every probe in its wanted state: starts, watches, restarts and ends bpftrace children.

One loop of small steps, driven by the appliance: it calls :meth:`Supervisor.tick`, passes on heartbeats, and
registers what :class:`Supervisor` gives it to wait for. Nothing here reads what a probe prints.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from kwsiem import clock
from kwsiem.errors import UnavailableError
from kwsiem.messages import ProbeKinds
from kwsiem.sensor.catalog import ProbeSpec, pam_target, preflight
from kwsiem.sensor.child import BpftraceChild, Version, environment
from kwsiem.sensor.lifecycle import Lifecycle, State

TRACING: Final = Path("/sys/kernel/tracing")
#: Transitions that are worth an event; starting and stopping are only steps on the way.
_TOLD: Final = frozenset({State.READY, State.BACKOFF, State.UNSUPPORTED, State.FAILED, State.GONE})

log = logging.getLogger("kwsiem.sensor")


def argument(name: str) -> str:
    """The value of a positional argument that a probe's header asks for (``catalog`` knows the names)."""
    if name == "netns":
        return str(Path("/proc/self/ns/net").stat().st_ino)
    if name == "seed":
        return str(secrets.randbits(32))
    if name in ("pam_module", "pam_function"):
        return pam_target()[name == "pam_function"]
    raise ValueError(f"unknown probe argument {name!r}")


class Wiring(Protocol):
    """What the supervisor asks of the process it lives in."""

    def wait_for(self, fd: int, call: Callable[[], None]) -> None:
        """Call when the descriptor is readable."""

    def forget(self, fd: int) -> None:
        """Do not wait for it any more."""

    def attach(self, kinds: ProbeKinds, generation: int, fd: int) -> None:
        """Hand the read end of a probe's pipe to the engine."""

    def tell(self, kind: str, fields: Mapping[str, Any]) -> None:
        """An event of our own."""


class _Slot:
    """One wanted probe: its file, its state, and its process while there is one."""

    def __init__(self, spec: ProbeSpec, problems: str, now_s: float) -> None:
        self.spec = spec
        self.problems = problems
        self.lifecycle = Lifecycle(now_s)
        self.child: BpftraceChild | None = None
        self.generation = 0
        self.told = State.WAITING
        self.next: _Slot | None = None
        self.removed = False

    @property
    def kinds(self) -> ProbeKinds:
        return ProbeKinds(self.spec.name, dict(self.spec.kinds))


class Supervisor:
    """All probes of the appliance; ``now_s`` everywhere is monotonic seconds."""

    def __init__(self, wiring: Wiring, program: str, version: Version) -> None:
        self._wiring = wiring
        self._program = program
        self._version = version
        self._slots: dict[str, _Slot] = {}
        self._pipes: dict[tuple[str, int], tuple[int, ProbeKinds]] = {}
        self._generation = 0
        self._stopping = False

    # -- what is wanted ------------------------------------------------------------------------------

    def want(self, specs: Mapping[str, ProbeSpec], problems: Mapping[str, str], now_s: float) -> None:
        """Run exactly these probes; ``problems`` says why one of them must not be started (by name).

        A probe whose file is unchanged is left alone; a changed one is ended and started anew.
        """
        for name, slot in self._slots.items():
            if name not in specs:
                self._end(slot, None, now_s)
        for name, spec in specs.items():
            current = self._slots.get(name)
            wanted = (current.next or current) if current else None
            why = problems.get(name, "")
            if (
                wanted is None
                or (wanted.spec.sha256, wanted.problems) != (spec.sha256, why)
                or wanted.removed
            ):
                fresh = _Slot(spec, why, now_s)
                if current is None:
                    self._slots[name] = fresh
                else:
                    self._end(current, fresh, now_s)
        self.tick(now_s, listening=True)

    def stop(self, now_s: float) -> None:
        """End all probes; :attr:`running` becomes 0."""
        self._stopping = True
        for slot in self._slots.values():
            self._end(slot, None, now_s)

    @property
    def running(self) -> int:
        """How many bpftrace processes there are."""
        return sum(slot.child is not None for slot in self._slots.values())

    def _end(self, slot: _Slot, successor: _Slot | None, now_s: float) -> None:
        slot.next = successor
        slot.removed = successor is None
        if slot.child:
            slot.child.stop(now_s)
        slot.lifecycle.stop(slot.child is not None, now_s)

    # -- steps ---------------------------------------------------------------------------------------

    def tick(self, now_s: float, *, listening: bool) -> None:
        """Do what is due. ``listening``: the engine reads; without it no probe is blamed for silence."""
        for name, slot in list(self._slots.items()):
            if slot.child:
                self._watch_over(slot, now_s, listening)
            elif slot.lifecycle.state is State.GONE:
                self._tell(slot)
                del self._slots[name]
                if slot.next and not self._stopping:
                    self._slots[name] = slot.next
                    self._start(slot.next, now_s)
            elif slot.lifecycle.due(now_s):
                self._start(slot, now_s)
            self._tell(slot)

    def _watch_over(self, slot: _Slot, now_s: float, listening: bool) -> None:
        assert slot.child is not None
        if not listening:
            slot.lifecycle.forgive(now_s)
        elif not slot.child.killed and (why := slot.lifecycle.overdue(now_s)):
            log.warning("probe is silent", extra={"probe": slot.spec.name, "reason": why})
            slot.child.console += f"\nERROR: {why}"
            slot.child.kill()
        slot.child.enforce(now_s)

    def heartbeat(self, probe: str, generation: int, now_s: float) -> None:
        """The engine read a heartbeat of a run."""
        slot = self._slots.get(probe)
        if slot and slot.child and slot.generation == generation:
            slot.lifecycle.heartbeat(now_s)
            self._tell(slot)

    def drained(self, probe: str, generation: int) -> None:
        """The engine has read the pipe of a run to its end: release our copy."""
        fd, _ = self._pipes.pop((probe, generation), (-1, None))
        if fd >= 0:
            os.close(fd)

    def attach_all(self) -> None:
        """Hand all pipes to a new engine, also those of runs that are over and not read to the end."""
        for (_, generation), (fd, kinds) in self._pipes.items():
            self._wiring.attach(kinds, generation, fd)

    def _start(self, slot: _Slot, now_s: float) -> None:
        if slot.problems:
            slot.lifecycle.refused(State.FAILED, slot.problems, now_s)
        elif why := preflight(slot.spec, TRACING):
            slot.lifecycle.refused(State.UNSUPPORTED, why, now_s)
        else:
            self._spawn(slot, now_s)
        self._tell(slot)

    def _spawn(self, slot: _Slot, now_s: float) -> None:
        spec = slot.spec
        arguments = [argument(name) for name in spec.arguments]
        argv = [self._program, "-q", "--no-warnings", "-f", "json", str(spec.path), *arguments]
        try:
            child = BpftraceChild(argv, environment(self._version, spec.environment))
        except UnavailableError as error:
            slot.lifecycle.refused(State.BACKOFF, str(error), now_s)
            return
        self._generation += 1
        slot.generation = self._generation
        slot.child = child
        self._pipes[spec.name, slot.generation] = (child.output_fd, slot.kinds)
        slot.lifecycle.spawned(now_s)
        self._wiring.wait_for(child.console_fd, lambda: self._console(child))
        self._wiring.wait_for(child.pidfd, lambda: self._exited(slot, child))
        self._wiring.attach(slot.kinds, slot.generation, child.output_fd)

    def _console(self, child: BpftraceChild) -> None:
        if not child.read_console():
            self._wiring.forget(child.console_fd)

    def _exited(self, slot: _Slot, child: BpftraceChild) -> None:
        self._wiring.forget(child.pidfd)
        self._wiring.forget(child.console_fd)
        status = child.reap()
        slot.child = None
        console = child.console or f"bpftrace ended with status {status}"
        slot.lifecycle.exited(console, clock.monotonic_s())
        log.info(
            "bpftrace ended",
            extra={"probe": slot.spec.name, "status": status, "console": child.console[-1000:]},
        )
        self._tell(slot)

    def _tell(self, slot: _Slot) -> None:
        """Say once that a probe came into another state."""
        state = slot.lifecycle.state
        if state is slot.told or state not in _TOLD:
            return
        previous, slot.told = slot.told, state
        fields = {
            "probe.name": slot.spec.name,
            "probe.state": state.value,
            "probe.previous": previous.value,
            "event.reason": slot.lifecycle.reason,
        }
        log.info("probe state", extra=fields)
        self._wiring.tell("sensor.probe", fields)

    # -- what people ask -----------------------------------------------------------------------------

    def status(self, now_s: float) -> list[dict[str, Any]]:
        """One entry for each probe: name, state, since when, why, restarts, pid, kinds."""
        return [
            {
                "name": name,
                "state": slot.lifecycle.state.value,
                "since_s": round(now_s - slot.lifecycle.since_s, 3),
                "reason": slot.lifecycle.reason,
                "restarts": slot.lifecycle.restarts,
                "pid": slot.child.pid if slot.child else None,
                "file": str(slot.spec.path),
                "kinds": sorted(kind.name for kind in slot.spec.kinds.values()),
            }
            for name, slot in sorted(self._slots.items())
        ]
