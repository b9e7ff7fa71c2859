"""Recorded events through the real decoder and engine, as fast as they can be read.

Three forms are understood, line by line: a recording of ours (``kwsiem run --record``), objects
``{"kind": …, "ts_ns": …, "source.ip": …}``, and bare bpftrace lines of one named probe. Time is that of the
events; nothing waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, Final

import msgspec

from kwsiem.alert import Alert
from kwsiem.compare import LEAST_NS, Difference, Opened, difference
from kwsiem.correlate.engine import Engine
from kwsiem.decode import LineDecoder
from kwsiem.event import Event, EventKind, event_class, event_from_fields
from kwsiem.messages import ProbeKinds
from kwsiem.recording import AdvancedMark, ClockMark, HostMark, Mark, read_recording
from kwsiem.rules.model import RuleSet

BATCH_BYTES: Final = 64 * 1024
#: Lines that one rule set sees before the other sees them too: the input may be a pipe, read once.
CHUNK_LINES: Final = 10_000


class Replay:
    """One replay: feed it lines, it calls ``emit`` for each alert; ``finish`` when no more will come.

    ``rejected`` counts what could not be used, by reason; ``events`` what went through the rules.
    ``probe`` is whose lines bare bpftrace lines are.
    """

    def __init__(
        self,
        ruleset: RuleSet,
        kinds: Mapping[str, EventKind],
        emit: Callable[[Alert], None],
        *,
        host: str,
        probe: ProbeKinds | None = None,
    ) -> None:
        self.events = 0
        self.lines = 0
        self._rejected: dict[str, int] = {}
        self._emit = emit
        self._host = host
        self._engine = Engine(self._with_host, host=host)
        self._engine.set_rules(ruleset)
        self._objects = {name: event_class(kind, 0) for name, kind in kinds.items()}
        for cls in self._objects.values():
            self._engine.bind(cls)
        self._decoders: dict[str, LineDecoder] = {}
        self._contracts: dict[str, ProbeKinds] = {}
        self._current: LineDecoder | None = None
        self._ticking = False
        self._now_ns = 0
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        if probe:
            self._contract(probe)
            self._current = self._decoders[probe.probe]

    @property
    def rejected(self) -> dict[str, int]:
        """Lines that could not be used, by reason."""
        total = dict(self._rejected)
        for decoder in self._decoders.values():
            for reason, count in decoder.rejected.items():
                total[reason] = total.get(reason, 0) + count
        return total

    def feed(self, lines: Iterable[bytes]) -> None:
        """Lines of one file, in order, each with its newline."""
        for part in read_recording(lines):
            if isinstance(part, bytes):
                self.lines += 1
                self._line(part)
            else:
                self._flush()
                self._mark(part)
        self._flush()

    def finish(self) -> None:
        """All input has been fed: what waits for events that may come late is decided.

        Time does not go on after the last event: nobody knows what a longer recording would hold.
        """
        self._engine.finish()

    def _mark(self, mark: Mark) -> None:
        if isinstance(mark, HostMark):
            self._engine.offset_ns = mark.offset_ns
            self._host = mark.host
        elif isinstance(mark, ProbeKinds):
            self._contract(mark)
        elif isinstance(mark, AdvancedMark):
            self._ticking = True
            self._engine.advance(mark.until_ns)
        elif isinstance(mark, ClockMark):
            self._now_ns = mark.now_ns
        else:
            self._current = self._decoders.get(mark)

    def _with_host(self, alert: Alert) -> None:
        alert.host = self._host
        self._emit(alert)

    def _contract(self, kinds: ProbeKinds) -> None:
        if self._contracts.get(kinds.probe) == kinds:
            return  # each file of an event log says it again
        decoder = LineDecoder(kinds)
        self._contracts[kinds.probe] = kinds
        self._decoders[kinds.probe] = decoder
        for cls in decoder.classes:
            self._engine.bind(cls)

    def _line(self, line: bytes) -> None:
        if line.startswith((b'{"kind"', b'{ "kind"')) or (self._current is None and b'"kind"' in line):
            self._flush()
            self._object(line)
        elif self._current is not None:
            self._batch.append(line)
            self._batch_bytes += len(line)
            if self._batch_bytes >= BATCH_BYTES:
                self._flush()
        elif line.strip():
            self._reject("no_probe")

    def _object(self, line: bytes) -> None:
        try:
            values: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
            kind, ts_ns = values.pop("kind"), values.pop("ts_ns")
            values.pop("grade", None)  # stands in an alert's evidence; the kind says it
            cls = self._objects[kind]
            event = event_from_fields(cls, cls.KIND, values, int(ts_ns))
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._reject("not_json")
        except KeyError as error:
            self._reject(
                "unknown_kind" if error.args[0] not in ("kind", "ts_ns") else f"without_{error.args[0]}"
            )
        except (ValueError, TypeError):
            self._reject("wrong_type")
        else:
            self._process([event], ts_ns)

    def _flush(self) -> None:
        if self._batch and self._current:
            events = self._current.feed(b"".join(self._batch))
            latest = max((event.ts_ns for event in events), default=0)
            self._process(events, max(latest, self._current.heartbeat_ns))
        self._batch = []
        self._batch_bytes = 0

    def _process(self, events: list[Event], now_ns: int) -> None:
        self.events += len(events)
        self._engine.process(events, self._now_ns)
        self._now_ns = 0
        if not self._ticking:  # a recording of ours says itself how far time had come
            self._engine.advance(now_ns)

    def _reject(self, reason: str) -> None:
        self._rejected[reason] = self._rejected.get(reason, 0) + 1


class Comparison:
    """Two replays of the same lines, one for each rule set, to see what the second one would change."""

    def __init__(
        self,
        before: RuleSet,
        after: RuleSet,
        kinds: Mapping[str, EventKind],
        *,
        host: str,
        probe: ProbeKinds | None = None,
    ) -> None:
        self._rulesets = (before, after)
        self._opened: tuple[list[Opened], list[Opened]] = ([], [])
        self._replays = [
            Replay(ruleset, kinds, _keeping(opened), host=host, probe=probe)
            for ruleset, opened in zip(self._rulesets, self._opened, strict=True)
        ]

    @property
    def replay(self) -> Replay:
        """The first set's replay, for what was read and rejected; the other has read the same."""
        return self._replays[0]

    def feed(self, lines: Iterable[bytes]) -> None:
        """Lines of one file, in order, each with its newline."""
        rest = iter(lines)
        while chunk := list(islice(rest, CHUNK_LINES)):
            for replay in self._replays:
                replay.feed(chunk)

    def finish(self) -> Difference:
        """The difference, after the last line."""
        for replay in self._replays:
            replay.finish()
        return difference(*self._opened, self._slack_ns())

    def _slack_ns(self) -> dict[str, int]:
        """The longer timespan of each rule: so far apart its incidents may open and still be one."""
        slack: dict[str, int] = {}
        for ruleset in self._rulesets:
            for rule in ruleset.rules:
                slack[rule.id] = max(slack.get(rule.id, LEAST_NS), rule.correlation.timespan_ns)
        return slack


def _keeping(opened: list[Opened]) -> Callable[[Alert], None]:
    def keep(alert: Alert) -> None:
        if alert.state == "open":
            opened.append(Opened.of(alert))

    return keep
