"""The sensor process (root): starts bpftrace, the engine and the courier, and keeps them running.

The composition root of the appliance: one loop, one thread (watchdog's own apart), no stage's work. It reads
no byte that a probe prints; it hands pipes over and passes on what the three parts tell each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pwd
import re
import selectors
import signal
import socket
import stat
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from kwsiem import __version__, clock, logs, rights
from kwsiem.blocking import RouteWatch, make_blocker
from kwsiem.chatdesk import MAX_SHOWN, ChatDesk
from kwsiem.config import Settings
from kwsiem.control import ControlServer
from kwsiem.errors import EXIT_GOOD, ConfigError, LinkError, UnavailableError
from kwsiem.link import Link, link_pair
from kwsiem.messages import (
    Acknowledge,
    BlockRequest,
    BlockWithdrawn,
    ChatAnswer,
    ChatRequest,
    ClockOffset,
    CourierRestarted,
    CourierStart,
    EngineStart,
    EventLogStart,
    ExporterStart,
    Figures,
    FromCourier,
    FromEngine,
    FromExporter,
    Heartbeat,
    OwnEvent,
    ProbeAttach,
    ProbeDrained,
    ProbeKinds,
    Ready,
    RetryDead,
    RulesOffer,
    RulesTaken,
    RuleStats,
    SeriesTold,
    Stats,
    Stop,
)
from kwsiem.rule_figures import RuleFigures
from kwsiem.rules.watch import Loaded, RuleFiles
from kwsiem.sensor.catalog import BTF, Catalog, lint_probe, read_catalog
from kwsiem.sensor.child import bpftrace_version
from kwsiem.sensor.supervisor import TRACING, Supervisor
from kwsiem.sensor.worker import Worker
from kwsiem.series_feed import SensorFigures
from kwsiem.text import clean, harmless
from kwsiem.usage import usage_of
from kwsiem.watch import LOOK_S, FolderWatch, signature

STOP_S: Final = 5.0
OFFSET_S: Final = 60.0
TICK_S: Final = 0.2
#: How often the exporter gets new figures: a fraction of any interval of scrapes.
FIGURES_S: Final = 2.0

#: What a chat shows of an output.
_IN_SHORT: Final = ("name", "state", "waiting")

#: What alert.py makes, and room for more.
INCIDENT_ID: Final = re.compile(r"[0-9A-Za-z-]{1,64}")
MAX_WHO: Final = 128

log = logging.getLogger("kwsiem.sensor")
audit = logging.getLogger("kwsiem.audit")


class Appliance:
    """All parts of the running appliance and the loop that joins them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.version = check_host(settings)
        self.began_ns = clock.wall_ns()
        self.selector = selectors.DefaultSelector()
        self.stopping = False
        self._alert_ends = link_pair()
        self.engine: Worker[FromEngine] = Worker("engine", FromEngine, self._alert_ends[0])
        self.courier: Worker[FromCourier] = Worker("courier", FromCourier, self._alert_ends[1])
        self.exporter: Worker[FromExporter] = Worker("exporter", FromExporter)
        self.exporter.stopping = not settings.metrics.listen
        self._workers: list[Worker[Any]] = [self.engine, self.courier]
        if settings.metrics.listen:
            self._workers.append(self.exporter)
        self.rule_figures = RuleFigures()
        self.series = SensorFigures(settings.history.every_s, self._tell_courier)
        self.supervisor = Supervisor(self, settings.bpftrace, self.version)
        self.rules = RuleFiles(Path(settings.rules), Path(settings.rules_dir), settings.user)
        self.catalog: Catalog = read_catalog([Path(folder) for folder in settings.probes])
        self._probe_files: dict[Path, Any] = {}
        #: The rules that the engine took last, and those it has not answered to: a new engine gets both.
        self._offers: list[tuple[RulesOffer, int]] = []
        self._record_fd = -1
        self._state_fds: list[int] = []
        self._pending: list[OwnEvent] = []
        self._courier_is_new = False
        self._bad_messages = 0

    # -- start and loop ------------------------------------------------------------------------------

    def start(self) -> None:
        """Bring everything up; raises ConfigError when the rules cannot be used."""
        self._lock = _lock_runtime(Path(self.settings.runtime_dir))
        prepare_state(self.settings)
        self._signals()
        self.blocker = make_blocker(self.settings, self.tell)
        self.blocker.start()
        self.chats = ChatDesk(
            self.settings.outputs, self.blocker.answer, self._in_short, lambda: self.rule_figures.counts
        )
        self.routes = RouteWatch(self.blocker.addresses_changed)
        self.wait_for(self.routes.fileno(), self.routes.clear)
        self._first_rules()
        self._state_fds = open_state(self.settings)
        if self.settings.record:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._record_fd = os.open(self.settings.record, flags, 0o600)
        self.watch = FolderWatch()
        self.wait_for(self.watch.fileno(), self._hinted)
        self.control = ControlServer(self.settings.control_socket, self.answer)
        self.wait_for(self.control.fileno(), self.control.serve)
        self._start_workers(clock.monotonic_s())
        self._want_probes(clock.monotonic_s())

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT, then end everything in the order of the path."""
        next_look_s = next_offset_s = next_figures_s = 0.0
        while not self.stopping:
            self._step(0.0 if self.blocker.busy else TICK_S)
            self.blocker.work()
            now_s = clock.monotonic_s()
            self._start_workers(now_s)
            self.supervisor.tick(now_s, listening=self.engine.listening(now_s))
            self._follow_rules(now_s)
            self.blocker.tick()
            if now_s >= next_look_s:
                next_look_s = now_s + LOOK_S
                self._follow_probes(now_s)
                self.watch.watch(self.rules.folders | {Path(folder) for folder in self.settings.probes})
            if now_s >= next_offset_s:
                next_offset_s = now_s + OFFSET_S
                self._to_engine(ClockOffset(offset_ns=clock.wall_offset_ns()))
            self.series.tick(self._running_probes, self._blocks_by_mode, self._usages)
            if self.exporter.ready and now_s >= next_figures_s:
                next_figures_s = now_s + FIGURES_S
                self._export()
        self._shut_down()
        return EXIT_GOOD

    def _step(self, timeout_s: float) -> None:
        for key, _ in self.selector.select(timeout_s):
            # An earlier call of this round may have closed it.
            if key.fd in self.selector.get_map():
                key.data()
        self.blocker.flush()

    def _signals(self) -> None:
        reader, writer = socket.socketpair()
        for end in (reader, writer):
            end.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._signal_ends = (reader, writer)
        self.wait_for(reader.fileno(), lambda: reader.recv(64) and None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "stopping", True))
        signal.signal(signal.SIGHUP, lambda *_: self.reload())
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def _shut_down(self) -> None:
        """Probes first, then the engine (it reads their pipes to the end), then the courier."""
        log.info("stopping")
        now_s = clock.monotonic_s()
        for worker in self._workers:
            worker.stopping = True
        self.supervisor.stop(now_s)
        self._until(lambda: not self.supervisor.running)
        for worker in self._workers:
            if worker.link:
                worker.link.send(Stop())
            self._until(lambda worker=worker: not worker.running)  # type: ignore[misc]
            if worker.running:
                log.error("process did not end, killed", extra={"which": worker.name})
                worker.kill()
                self._until(lambda worker=worker: not worker.running)  # type: ignore[misc]
        self.control.close()
        self.watch.close()
        self.routes.close()
        self.blocker.close()
        log.info("stopped")

    def _until(self, done: Callable[[], bool]) -> None:
        deadline_s = clock.monotonic_s() + STOP_S
        while not done() and clock.monotonic_s() < deadline_s:
            self._step(0.05)
            self.supervisor.tick(clock.monotonic_s(), listening=False)

    # -- wiring of the supervisor --------------------------------------------------------------------

    def wait_for(self, fd: int, call: Callable[[], object]) -> None:
        """Call when the descriptor is readable."""
        self.selector.register(fd, selectors.EVENT_READ, call)

    def forget(self, fd: int) -> None:
        """Do not wait for it any more."""
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(fd)

    def attach(self, kinds: ProbeKinds, generation: int, fd: int) -> None:
        """Hand a probe's pipe to the engine; one that is not there yet gets all of them when it is."""
        if self.engine.ready:
            self._to_engine(ProbeAttach(kinds=kinds, generation=generation), fd)

    def tell(self, kind: str, fields: Mapping[str, Any]) -> None:
        """An event of our own, kept until the engine is there (the first thousand)."""
        event = OwnEvent(kind=kind, fields=dict(fields), ts_ns=clock.boot_ns())
        if not (self.engine.ready and self._to_engine(event)) and len(self._pending) < 1000:
            self._pending.append(event)

    def _to_engine(self, message: msgspec.Struct, *fds: int) -> bool:
        return self.engine.link is not None and self.engine.ready and self.engine.link.send(message, fds)

    # -- engine and courier --------------------------------------------------------------------------

    def _start_workers(self, now_s: float) -> None:
        for worker in self._workers:
            if worker.hangs(now_s):
                log.error("process hangs, is killed", extra={"which": worker.name, "pid": worker.pid})
                worker.heard_s = now_s
                worker.kill()
        if self.courier.due(now_s):
            link = self.courier.start(now_s)
            settings: dict[str, Any] = msgspec.to_builtins(self.settings)
            link.send(CourierStart(host=self.settings.host, settings=settings))
            self._serve(self.courier, self._from_courier)
            self._courier_is_new = True
        if self._courier_is_new and self._to_engine(CourierRestarted()):
            self._courier_is_new = False
        if self.engine.due(now_s):
            engine = self.engine.start(now_s)
            recording = [self._record_fd] if self._record_fd >= 0 else []
            start = EngineStart(
                host=self.settings.host,
                user=self.settings.user,
                offset_ns=clock.wall_offset_ns(),
                log_level=self.settings.log_level,
                record=bool(recording),
                snapshots=True,
                event_log=event_log_of(self.settings),
                figures_s=self.settings.history.every_s,
            )
            engine.send(start, [*self._state_fds, *recording])
            self._serve(self.engine, self._from_engine)
        if self.exporter.due(now_s):
            exporter = self.exporter.start(now_s)
            wanted = self.settings.metrics.listen
            log_level = self.settings.log_level
            exporter.send(ExporterStart(user=self.settings.user, listen=wanted, log_level=log_level))
            self._serve(self.exporter, self._from_exporter)

    def _serve(self, worker: Worker[Any], take: Callable[[Any], None]) -> None:
        link: Link[Any] | None = worker.link
        assert link is not None
        self.wait_for(link.fileno(), lambda: self._receive(worker, link, take))
        self.wait_for(worker.pidfd, lambda: self._worker_ended(worker))

    def _receive(self, worker: Worker[Any], link: Link[Any], take: Callable[[Any], None]) -> None:
        """Messages of one process; a bad one is counted and that is all it can do."""
        worker.heard_s = clock.monotonic_s()
        bad = link.bad
        for _ in range(256):
            message = link.take_message()
            if message is None:
                break
            try:
                take(message)
            except Exception as error:
                # What a process without rights says must not end this one; the first time says why.
                if not self._bad_messages:
                    log.exception("message refused", extra={"which": worker.name, "error": str(error)})
                self._bad_messages += 1
        self._bad_messages += link.bad - bad
        if link.closed:
            self.forget(link.fileno())

    def _worker_ended(self, worker: Worker[Any]) -> None:
        if worker.link:
            self.forget(worker.link.fileno())
        self.forget(worker.pidfd)
        status = worker.ended(clock.monotonic_s())
        if not self.stopping:
            log.error("process ended, is started again", extra={"which": worker.name, "status": status})

    def _from_engine(self, message: FromEngine) -> None:
        now_s = clock.monotonic_s()
        if isinstance(message, Heartbeat):
            self.supervisor.heartbeat(message.probe, message.generation, now_s)
        elif isinstance(message, Stats):
            self.engine.stats = message.values
        elif isinstance(message, RuleStats):
            self.rule_figures.take(message.sha256, message.rules)
            if self.exporter.ready:
                self._to_exporter(message)
        elif isinstance(message, ProbeDrained):
            self.supervisor.drained(message.probe, message.generation)
        elif isinstance(message, RulesTaken):
            self._rules_taken(message)
        elif isinstance(message, BlockRequest):
            self.blocker.request(message)
        elif isinstance(message, BlockWithdrawn):
            self.blocker.flush()  # it may wait in the queue still
            self.blocker.withdraw(message.value, message.alert_id)
        elif isinstance(message, Ready):
            self.engine.ready = True
            for offer, fd in self._offers:
                self._to_engine(offer, fd)
            self.supervisor.attach_all()
            for event in self._pending:
                self._to_engine(event)
            self._pending.clear()

    def _from_courier(self, message: FromCourier) -> None:
        if isinstance(message, Stats):
            self.courier.stats = message.values
        elif isinstance(message, OwnEvent):
            self.tell(message.kind, message.fields)
        elif isinstance(message, ChatRequest):
            self._to_courier(self.chats.answer(message))
        elif isinstance(message, Ready):
            self.courier.ready = True

    def _to_courier(self, message: ChatAnswer) -> None:
        """What the courier does not take now is left out: the chat is told that no answer came."""
        if self.courier.link is None:
            return
        try:
            self.courier.link.send(message)
        except LinkError as error:
            log.error("answer is too large for a chat", extra={"error": str(error)})

    def _from_exporter(self, message: FromExporter) -> None:
        if isinstance(message, Stats):
            self.exporter.stats = message.values
        elif isinstance(message, Ready):
            self.exporter.ready = True
            for sha256, rules in self.rule_figures.parts():
                self._to_exporter(RuleStats(sha256=sha256, rules=rules))
            self._export()

    def _to_exporter(self, message: Figures | RuleStats) -> None:
        """What does not fit or is not taken is left out: the next figures come soon."""
        if self.exporter.link is None:
            return
        try:
            self.exporter.link.send(message)
        except LinkError as error:
            log.error("figures are too large for metrics", extra={"error": str(error)})

    def _export(self) -> None:
        """The latest figures to the exporter, each part in a message of its own."""
        self._to_exporter(Figures(values=self.figures()))
        for worker in (self.engine, self.courier):
            self._to_exporter(Figures(part=worker.name, values=worker.stats))

    # -- rules ---------------------------------------------------------------------------------------

    def _first_rules(self) -> None:
        """At start the rules must load: there are no old ones to keep."""
        loaded: Loaded | None = None
        while loaded is None:
            self.rules.begin(self.catalog.kinds(), clock.monotonic_s())
            while not _readable(self.rules.pidfd):
                self.rules.enforce(clock.monotonic_s())
            loaded = self.rules.finish(clock.monotonic_s())
        if loaded.problems:
            raise ConfigError("\n".join(loaded.problems))
        self._offers = [(RulesOffer(sha256=loaded.sha256, size=loaded.size), loaded.fd)]

    def _hinted(self) -> None:
        """Something changed in a folder that is watched."""
        self.watch.clear()
        self.rules.hint()

    def _follow_rules(self, now_s: float) -> None:
        self.rules.enforce(now_s)
        if not self.rules.due(now_s):
            return
        try:
            pidfd = self.rules.begin(self.catalog.kinds(), now_s)
        except ConfigError as error:
            self._rules_loaded(self.rules.failed(str(error).split("\n"), now_s))
            return
        self.wait_for(pidfd, lambda: self._loader_ended(pidfd))

    def _loader_ended(self, pidfd: int) -> None:
        self.forget(pidfd)
        self._rules_loaded(self.rules.finish(clock.monotonic_s()))

    def _rules_loaded(self, loaded: Loaded | None) -> None:
        if loaded is None:
            return  # it gets a second look
        if loaded.problems:
            log.error("rules not taken, the old ones stay", extra={"problems": loaded.problems[:20]})
            self._tell_reload("failure", loaded.problems[0])
            return
        if len(self._offers) == 2:
            os.close(self._offers.pop()[1])
        offer = RulesOffer(sha256=loaded.sha256, size=loaded.size)
        self._offers.append((offer, loaded.fd))
        self._to_engine(offer, loaded.fd)

    def _answered(self, message: RulesTaken) -> None:
        """Keep the rules that run now, for the next engine; not those before them, nor refused ones."""
        if len(self._offers) == 2 and message.sha256 == self._offers[1][0].sha256:
            os.close(self._offers.pop(1 if message.error else 0)[1])

    def _rules_taken(self, message: RulesTaken) -> None:
        self._answered(message)
        if message.error:
            self.rules.refused([message.error])
            self._tell_reload("failure", message.error)
            return
        first = not self.rules.loaded_ns
        self.rules.taken(message.sha256, message.rules, message.skipped, message.skipped_count)
        log.info("rules taken", extra={"rules": message.rules, "took_ms": round(message.took_ms, 1)})
        if not first:
            self._tell_reload("success", "")

    def _tell_reload(self, outcome: str, error: str) -> None:
        fields = {"event.outcome": outcome, "file.path": str(self.rules.path), "error.message": error[:500]}
        self.tell("rules.reload", fields)

    def reload(self) -> None:
        """Look at rules and probes again as if their files had changed (SIGHUP)."""
        self.rules.forget_tried()
        self._probe_files.clear()

    # -- probes --------------------------------------------------------------------------------------

    def _follow_probes(self, now_s: float) -> None:
        """Look whether a probe file came, changed or went."""
        files = {
            path: signature(path)
            for folder in self.settings.probes
            for path in (sorted(Path(folder).glob("*.bt")) if Path(folder).is_dir() else [])
        }
        if files == self._probe_files:
            return
        self._probe_files = files
        before = self.catalog.kinds()
        self.catalog = read_catalog([Path(folder) for folder in self.settings.probes])
        self._want_probes(now_s)
        if self.catalog.kinds() != before:
            self.rules.forget_tried()

    def _want_probes(self, now_s: float) -> None:
        problems = {}
        for name, spec in self.catalog.probes.items():
            wrong = lint_probe(spec, spec.path.read_text(encoding="utf-8"))
            if wrong:
                problems[name] = "; ".join(str(problem) for problem in wrong[:5])
        for problem in self.catalog.problems:
            log.error("probe file not usable", extra={"problem": str(problem)})
        self.supervisor.want(self.catalog.probes, problems, now_s)

    # -- what people ask -----------------------------------------------------------------------------

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request on the control socket."""
        if request.get("command") == "status":
            return self.status()
        if request.get("command") == "metrics":
            parts = {worker.name: worker.stats for worker in (self.engine, self.courier)}
            return {"figures": self.figures() | parts, "rules": self.rule_figures.counts}
        if request.get("command") == "blocks":
            return self.blocker.answer(request)
        if request.get("command") == "retry_dead":
            return self._retry_dead(str(request.get("output", "")))
        if request.get("command") == "acknowledge":
            return self._acknowledge(request)
        known = "status, metrics, blocks, retry_dead, acknowledge"
        return {"error": f"unknown command {request.get('command')!r}, known: {known}"}

    def _acknowledge(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Somebody on this host who may use the control socket acknowledges an incident."""
        incident = request.get("incident_id")
        who = harmless(str(request.get("who") or ""), MAX_WHO).strip()
        error = ""
        if not (isinstance(incident, str) and INCIDENT_ID.fullmatch(incident)):
            error, incident = "incident_id: expected the id of an incident", clean(str(incident), MAX_WHO)
        elif not who:
            error = "who: expected a name"
        elif not self._tell_courier(Acknowledge(incident_id=incident, who=who, at_ns=clock.wall_ns())):
            error = "the courier does not answer"
        extra = {"action": "acknowledge", "user_name": who, "incident": incident}
        audit.info("control", extra=extra | {"outcome": "refused" if error else "done", "reason": error})
        return {"error": error} if error else {"acknowledged": incident}

    def _retry_dead(self, output: str) -> dict[str, Any]:
        if output not in {settings.name for settings in self.settings.outputs}:
            return {"error": f"no output {output!r}"}
        link = self.courier.link
        if not (link and self.courier.ready and link.send(RetryDead(output=output))):
            return {"error": "the courier does not answer"}
        return {"output": output, "asked": True}

    def status(self) -> dict[str, Any]:
        """Everything that ``kwsiem status`` shows."""
        now_s = clock.monotonic_s()
        return {
            "version": __version__,
            "host": self.settings.host,
            "pid": os.getpid(),
            "since": clock.iso(self.began_ns),
            "bpftrace": ".".join(map(str, self.version)),
            "probes": self.supervisor.status(now_s),
            "probe_problems": [str(problem) for problem in self.catalog.problems],
            "rules": self.rules.status(),
            "processes": self._processes(now_s),
            "engine": self.engine.stats,
            "courier": self.courier.stats,
            "blocking": self.blocker.status(),
            "metrics": self.exporter.stats,
            "bad_messages": self._bad_messages,
        }

    def _in_short(self) -> dict[str, Any]:
        """The few figures that a chat shows of the status."""
        probes = self.supervisor.status(clock.monotonic_s())
        ready = sum(probe["state"] == "ready" for probe in probes)
        rules, blocking = self.rules.status(), self.blocker.status()
        # What the engine and the courier say of themselves may be anything: they may have been taken over.
        outputs, alerts = self.courier.stats.get("outputs"), self.engine.stats.get("alerts")
        rows = [each for each in outputs if isinstance(each, dict)] if isinstance(outputs, list) else []
        return {
            "version": __version__,
            "host": self.settings.host,
            "probes": f"{ready} of {len(probes)} ready",
            "rules": f"{rules['rules']}{' (stale)' if rules['stale'] else ''}",
            "alerts": alerts.get("raised", 0) if isinstance(alerts, dict) else 0,
            "blocking": f"{blocking['mode']}, {blocking['blocks']} blocks",
            "outputs": [{key: each.get(key) for key in _IN_SHORT} for each in rows[:MAX_SHOWN]],
        }

    def _processes(self, now_s: float) -> list[dict[str, Any]]:
        return [
            {
                "name": worker.name,
                "pid": worker.pid if worker.running else None,
                "state": "ready" if worker.ready else ("starting" if worker.running else "ended"),
                "since_s": round(now_s - worker.since_s, 3),
                "restarts": worker.restarts,
            }
            for worker in self._workers
        ]

    def _running_probes(self) -> list[str]:
        return [
            probe["name"]
            for probe in self.supervisor.status(clock.monotonic_s())
            if probe["state"] == "ready"
        ]

    def _blocks_by_mode(self) -> dict[str, int]:
        return Counter(decision.mode for decision in self.blocker.decisions)

    def _usages(self) -> list[dict[str, Any]]:
        now_s = clock.monotonic_s()
        return _usages(self.supervisor.status(now_s), self._processes(now_s))

    def _tell_courier(self, message: SeriesTold | Acknowledge) -> bool:
        """False when the courier does not take it now."""
        return bool(self.courier.link and self.courier.ready and self.courier.link.send(message))

    def figures(self) -> dict[str, Any]:
        """What metrics are made of, but for what the engine and the courier say of themselves."""
        now_s = clock.monotonic_s()
        probes, processes = self.supervisor.status(now_s), self._processes(now_s)
        blocking = self.blocker.status()
        rules = self.rules.status()
        return {
            "version": __version__,
            "bpftrace": ".".join(map(str, self.version)),
            "at_s": clock.wall_ns() / clock.NS_PER_S,
            "began_s": self.began_ns / clock.NS_PER_S,
            "probes": [{key: probe[key] for key in ("name", "state", "restarts")} for probe in probes],
            "rules": {key: rules[key] for key in ("rules", "stale", "skipped")},
            "processes": processes,
            "usage": _usages(probes, processes),
            "series_lost": self.series.lost,
            "blocking": {
                "mode": blocking["mode"],
                "counters": blocking["counters"],
                "by_mode": self._blocks_by_mode(),
                "firewall_error": bool(blocking["firewall_error"]),
            },
            "chat": self.chats.figures(),
            "bad_messages": self._bad_messages,
        }


def _usages(probes: list[dict[str, Any]], processes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Processor time and memory of our own process, of the others, and of each bpftrace."""
    running = [("sensor", "", os.getpid())]
    running += [(process["name"], "", process["pid"]) for process in processes if process["pid"]]
    running += [("bpftrace", probe["name"], probe["pid"]) for probe in probes if probe["pid"]]
    return [
        {"process": name, "probe": probe, "pid": pid, **usage._asdict()}
        for name, probe, pid in running
        if (usage := usage_of(pid)) is not None
    ]


def check_host(settings: Settings) -> tuple[int, int, int]:
    """Whether this host can run the appliance; the version of bpftrace. Raises UnavailableError."""
    if os.geteuid() != 0:
        raise UnavailableError("kwsiem run needs root: bpftrace loads programs into the kernel; try sudo")
    version = bpftrace_version(settings.bpftrace)
    if not (TRACING / "events").is_dir():
        raise UnavailableError(f"no tracefs at {TRACING}; mount it: mount -t tracefs tracefs {TRACING}")
    if not BTF.exists():
        raise UnavailableError(
            f"this kernel has no BTF ({BTF}); it needs CONFIG_DEBUG_INFO_BTF=y,"
            " which the kernels of Debian 11+ and Ubuntu 20.10+ have"
        )
    rights.account(settings.user)
    return version


def prepare_state(settings: Settings) -> None:
    """Make the state folder and give it to the user of the engine and the courier.

    Raises ConfigError when that user cannot get there.
    """
    entry = rights.account(settings.user)
    path = Path(settings.state_dir)
    path.mkdir(parents=True, exist_ok=True, mode=0o750)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchown(fd, entry.pw_uid, entry.pw_gid)
        _give_files(fd, entry)
    finally:
        os.close(fd)
    for parent in path.resolve().parents:
        found = parent.stat()
        shift = 6 if found.st_uid == entry.pw_uid else 3 if found.st_gid == entry.pw_gid else 0
        if not found.st_mode >> shift & 1:
            raise ConfigError(
                f"state_dir: {path}: user {entry.pw_name} cannot get there, because {parent} is closed to"
                f" it (mode {found.st_mode & 0o7777:04o}); choose another folder or: chmod o+x {parent}"
            )


def _give_files(folder_fd: int, entry: pwd.struct_passwd) -> None:
    """Files of an earlier run, perhaps of another user, go along; links of any sort are left alone."""
    for name in os.listdir(folder_fd):
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, dir_fd=folder_fd)
        except OSError:
            continue
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            os.fchown(fd, entry.pw_uid, entry.pw_gid)
        os.close(fd)


def event_log_of(settings: Settings) -> EventLogStart | None:
    """What the engine is told of the event log; None when there is none."""
    wanted = settings.event_log
    if not wanted.path:
        return None
    return EventLogStart(
        path=str(Path(settings.state_dir).absolute() / wanted.path),
        max_bytes=wanted.max_bytes,
        max_age_s=wanted.max_age_s,
        keep=wanted.keep,
        compress=wanted.compress,
    )


def open_state(settings: Settings) -> list[int]:
    """The two files of the engine's state, open for it to write. Raises ConfigError when one is no file."""
    fds = []
    for number in range(2):
        path = Path(settings.state_dir) / f"engine.{number}.state"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        except OSError as error:
            raise ConfigError(f"state_dir: {path}: {error.strerror}") from None
        found = os.fstat(fd)
        # The folder is the engine's: it must not make us open anything else for it.
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise ConfigError(f"state_dir: {path}: not a plain file, remove it")
        fds.append(fd)
    return fds


def _lock_runtime(folder: Path) -> int:
    """One appliance for each runtime folder; the lock goes with the process. Raises UnavailableError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    path = folder / "kwsiem.pid"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(fd, 32).decode("ascii", "replace").strip()
        os.close(fd)
        raise UnavailableError(f"kwsiem is already running with pid {pid} ({path})") from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _readable(fd: int) -> bool:
    with selectors.DefaultSelector() as one:
        one.register(fd, selectors.EVENT_READ)
        return bool(one.select(0.2))


def run(settings: Settings) -> int:
    """Run the appliance in the foreground; its exit code."""
    appliance = Appliance(settings)
    logs.setup("sensor", settings.log_level, settings.log_file)
    appliance.start()
    return appliance.run()
