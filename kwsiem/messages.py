"""What our processes say to each other: a handful of typed messages, msgpack on a link.

Every message is a tagged msgspec struct; a receiver decodes only the union that its peer may send, so a
taken-over engine cannot make the sensor do anything that is not listed here. Bulk (compiled rules) never
travels in a message: it is a sealed memory file whose descriptor is passed along.
"""

from __future__ import annotations

from typing import Any, Literal, Union

import msgspec

from kwsiem.alert import Alert
from kwsiem.event import EventKind
from kwsiem.rule_figures import RuleCounts


class _Message(msgspec.Struct, kw_only=True, tag_field="type", omit_defaults=True):
    pass


# sensor -> engine -----------------------------------------------------------------------------------


class EventLogStart(msgspec.Struct, frozen=True, kw_only=True):
    """Where the engine keeps the event log once it has no rights any more, and its bounds."""

    path: str
    max_bytes: int
    max_age_s: float
    keep: int
    compress: bool


class EngineStart(_Message, tag="engine_start"):
    """First message to the engine: who we are, whom to become, and where wall time is.

    With ``snapshots`` the descriptors of the two state files come along, with ``record`` then that of the
    recording. Figures go to the courier each ``figures_s``.
    """

    host: str
    user: str
    offset_ns: int
    log_level: str = "info"
    record: bool = False
    snapshots: bool = False
    event_log: Union[EventLogStart, None] = None
    figures_s: float = 10.0


class ProbeKinds(msgspec.Struct, frozen=True):
    """The kinds of one probe by their number on the wire."""

    probe: str
    numbers: dict[int, EventKind]


class ProbeAttach(_Message, tag="probe_attach"):
    """A probe's pipe (the descriptor comes along); ``generation`` tells its runs apart."""

    kinds: ProbeKinds
    generation: int


class RulesOffer(_Message, tag="rules_offer"):
    """A compiled rule set (its memory file comes along), to be swapped in between two events."""

    sha256: str
    size: int


class OwnEvent(_Message, tag="own_event"):
    """An event of ours (kinds of ``event.OWN_KINDS``), for rules to use like any other."""

    kind: str
    fields: dict[str, Any]
    ts_ns: int


class ClockOffset(_Message, tag="clock_offset"):
    """The wall-clock offset, measured again."""

    offset_ns: int


class CourierRestarted(_Message, tag="courier_restarted"):
    """The courier is a new process: send it again what is not acknowledged."""


class Stop(_Message, tag="stop"):
    """End cleanly: take what is on its way, pass it on, exit with 0."""


# engine -> sensor -----------------------------------------------------------------------------------


class Ready(_Message, tag="ready"):
    """The process has dropped its rights and serves its links."""

    pid: int


class Heartbeat(_Message, tag="heartbeat"):
    """A probe's heartbeat line was read."""

    probe: str
    generation: int
    ts_ns: int


class ProbeDrained(_Message, tag="probe_drained"):
    """The pipe of a run has ended and all of it was read."""

    probe: str
    generation: int


class RulesTaken(_Message, tag="rules_taken"):
    """The engine runs the offered rule set; or refused it, and ``error`` says why.

    ``skipped`` are the first of the Sigma rules that cannot be evaluated here: place, rule and reason.
    """

    sha256: str
    rules: int
    took_ms: float
    error: str = ""
    skipped: list[str] = []
    skipped_count: int = 0


class BlockRequest(_Message, tag="block_request"):
    """A rule asks for a block; the guard decides.

    ``evidence`` is ``proven`` or ``spoofable``; ``spoofable`` says that the rule wants it all the same.
    """

    alert_id: str
    rule_id: str
    value: str
    for_s: int
    evidence: str
    spoofable: bool = False
    reason: str = ""


class BlockWithdrawn(_Message, tag="block_withdrawn"):
    """Events were taken back: the block of ``value`` that an alert asked for is not wanted any more."""

    alert_id: str
    rule_id: str
    value: str


class Stats(_Message, tag="stats"):
    """The sender's counters, once a second: plain numbers and short strings, nested by name."""

    values: dict[str, Any]


class RuleStats(_Message, tag="rule_stats"):
    """The counts of some rules of the rule set that runs; all have their turn (engine, sensor, exporter)."""

    sha256: str
    rules: dict[str, RuleCounts]


# engine <-> courier ---------------------------------------------------------------------------------


class AlertRaised(_Message, tag="alert"):
    """One alert with the engine's running number; the courier acknowledges it once it is durable."""

    number: int
    alert: Alert


class AlertsDurable(_Message, tag="alerts_durable"):
    """Acknowledgement: these numbers are on disk (or were known already)."""

    numbers: list[int]


# engine and sensor -> courier -----------------------------------------------------------------------


class JournalEntry(msgspec.Struct, frozen=True):
    """An event of ours for the journal; wall time."""

    at_ns: int
    kind: str
    fields: dict[str, Any]


class SeriesTold(_Message, tag="series"):
    """What is new for the history of figures (``kwsiem.series``); not acknowledged."""

    at_s: int
    figures: dict[str, dict[str, int]] = {}
    journal: list[JournalEntry] = []


# sensor -> courier ----------------------------------------------------------------------------------


class CourierStart(_Message, tag="courier_start"):
    """First message to the courier: its settings (``config.Settings`` as plain data) and the host's name."""

    host: str
    settings: dict[str, Any]


class RetryDead(_Message, tag="retry_dead"):
    """An operator wants the dead letters of an output to be tried once more."""

    output: str


class Acknowledge(_Message, tag="acknowledge"):
    """Somebody who may do so has acknowledged an incident."""

    incident_id: str
    who: str
    at_ns: int


class ChatAnswer(_Message, tag="chat_answer"):
    """What became of a request from a chat; ``error`` says why it was refused."""

    number: int
    error: str = ""
    values: dict[str, Any] = {}


# courier -> sensor ----------------------------------------------------------------------------------


class ChatRequest(_Message, tag="chat_request"):
    """Somebody did something in a chat: the sensor checks who, writes it down, and does what needs rights.

    A block or an unblock of ``address`` is judged by the guard like one of ``kwsiem blocks``.
    """

    number: int
    output: str
    user_id: int
    user_name: str
    action: Literal[
        "acknowledge", "block", "unblock", "mute", "unmute", "evidence", "status", "alerts", "blocks", "help"
    ]
    incident_id: str = ""
    rule_id: str = ""
    address: str = ""
    for_s: int = 0


# sensor -> exporter ---------------------------------------------------------------------------------


class ExporterStart(_Message, tag="exporter_start"):
    """First message to the exporter: whom to become and where to listen (``127.0.0.1:9464``)."""

    user: str
    listen: str
    log_level: str = "info"


class Figures(_Message, tag="figures"):
    """What the exporter shows: the figures of the sensor, or those of ``part`` (``engine``, ``courier``)."""

    values: dict[str, Any]
    part: str = ""


ToEngine = Union[EngineStart, ProbeAttach, RulesOffer, OwnEvent, ClockOffset, CourierRestarted, Stop]
FromEngine = Union[Ready, Heartbeat, ProbeDrained, RulesTaken, BlockRequest, BlockWithdrawn, Stats, RuleStats]
ToCourier = Union[CourierStart, RetryDead, ChatAnswer, SeriesTold, Acknowledge, Stop]
FromCourier = Union[Ready, Stats, OwnEvent, ChatRequest]
ToExporter = Union[ExporterStart, Figures, RuleStats, Stop]
FromExporter = Union[Ready, Stats]
EngineToCourier = Union[AlertRaised, SeriesTold]
CourierToEngine = AlertsDurable
