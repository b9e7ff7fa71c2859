"""An event is one fact from the kernel: a kind, typed fields with ECS names, and a kernel time stamp.

On the hot path an event is an instance of a class made by :func:`event_class`: a msgspec struct whose
attributes are the fields in the order of the probe's tuple, decoded straight from bpftrace's JSON. The
contract of a kind (:class:`EventKind`) comes from the header of the probe that emits it, or from
:data:`OWN_KINDS` for the kinds that kwsiem itself emits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import msgspec

from kwsiem.derive import DERIVATIONS, Derivation

#: Wire types of a probe header, and the Python type that carries each.
FIELD_TYPES: Final[Mapping[str, type]] = {
    "u64": int,
    "i64": int,
    "u32": int,
    "u16": int,
    "u8": int,
    "bool": bool,
    "port": int,
    "str": str,
    "bytes": str,
    "ip": str,
    "ts": int,
}
#: Types whose text an attacker may choose; bpftrace's byte escapes are repaired in these alone.
TEXT_TYPES: Final = frozenset({"str", "bytes"})
#: Inclusive bounds of the integer types; ``ts`` and ``u64`` need no check beyond the sign.
INTEGER_BOUNDS: Final[Mapping[str, tuple[int, int]]] = {
    "u8": (0, 2**8 - 1),
    "u16": (0, 2**16 - 1),
    "port": (0, 2**16 - 1),
    "u32": (0, 2**32 - 1),
    "u64": (0, 2**64 - 1),
    "ts": (0, 2**64 - 1),
    "i64": (-(2**63), 2**63 - 1),
}


class _AnyText(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, str)


class WireBytes(metaclass=_AnyText):
    """What the struct of an event declares a field of type ``bytes`` as: text, each character one byte.

    bpftrace's versions print bytes as text or as a list of numbers. A type that msgspec does not know goes
    through the decoder's hook, which makes one form of them; all other fields are none the slower.
    """


HEARTBEAT_NUMBER: Final = 0
HEARTBEAT_KIND: Final = "sensor.heartbeat"
LOST_KIND: Final = "sensor.lost"
#: Reasons of ``sensor.lost`` for which an event that is missing may have happened.
LOSSES: Final = frozenset({"budget", "ring_buffer", "map_full"})


def _attribute(name: str) -> str:
    return name.replace(".", "_").replace("-", "_").replace("@", "")


class Field(msgspec.Struct, frozen=True):
    """One field of an event kind.

    ``name`` is the ECS name (``destination.port``), ``type`` a key of :data:`FIELD_TYPES`. A field with
    ``derived_from`` is not in the tuple: it is computed from another field when a rule asks for it.
    """

    name: str
    type: str
    derived_from: str = ""

    @property
    def attribute(self) -> str:
        """The name of the field on the event object: ``destination.port`` is ``destination_port``."""
        return _attribute(self.name)


class EventKind(msgspec.Struct, frozen=True):
    """The contract of one kind: its name and its fields in tuple order (number and time left out).

    ``proof`` says when an event of this kind proves its source, so that it may block: None is never (anybody
    can forge a lone packet), else the fields and the numbers they must have, none of them for always.
    ``retracts`` names another kind of the same probe: each event of this kind takes one event of that kind
    back, the one whose time stands in this kind's only field of type ``ts`` and which has the same values in
    this kind's other fields.
    """

    name: str
    fields: tuple[Field, ...]
    description: str = ""
    proof: tuple[tuple[str, int], ...] | None = None
    retracts: str = ""

    def proven(self, event: Event) -> bool:
        """Whether an event of this kind proves its source."""
        return self.proof is not None and all(
            getattr(event, _attribute(name)) == value for name, value in self.proof
        )

    def field(self, name: str) -> Field | None:
        """The field of that ECS name, or None."""
        for field in self.fields:
            if field.name == name:
                return field
        return None

    @property
    def wire_fields(self) -> tuple[Field, ...]:
        """The fields that stand in the tuple, in its order."""
        return tuple(field for field in self.fields if not field.derived_from)

    @property
    def derivations(self) -> dict[str, Derivation]:
        """How each of its derived fields follows, by name."""
        return derivations_of({field.name for field in self.wire_fields})


def derivations_of(names: Collection[str]) -> dict[str, Derivation]:
    """How each field follows that a tuple with these fields does not have and gives, by name."""
    found: dict[str, Derivation] = {}
    for each in DERIVATIONS:
        if each.source in names and each.name not in names and (not each.beside or each.beside in names):
            found.setdefault(each.name, each)
    return found


def with_derived(fields: Sequence[Field]) -> tuple[Field, ...]:
    """The fields of a tuple followed by those that can be derived from them."""
    derived = derivations_of([field.name for field in fields])
    return (*fields, *(Field(each.name, each.type, each.source) for each in derived.values()))


def parse_fields(text: str) -> tuple[Field, ...]:
    """Fields written as in a probe header (``source.ip:ip destination.port:port``), derived ones added.

    Raises ValueError that names the part which is wrong.
    """
    fields: list[Field] = []
    for part in text.split():
        name, colon, kind = part.partition(":")
        if not colon or not name:
            raise ValueError(f"expected NAME:TYPE, got {part!r}")
        if kind not in FIELD_TYPES:
            raise ValueError(f"unknown type {kind!r} in {part!r}, expected one of {' '.join(FIELD_TYPES)}")
        if any(field.name == name for field in fields):
            raise ValueError(f"field {name!r} stands twice")
        fields.append(Field(name, kind))
    return with_derived(fields)


class Event(msgspec.Struct, array_like=True, gc=False, forbid_unknown_fields=True):
    """Base of the generated event classes; every event ends with ``ts_ns``.

    ``ts_ns`` is CLOCK_BOOTTIME in nanoseconds, as bpftrace's ``nsecs`` gives it. The class attributes
    ``KIND`` (an :class:`EventKind`) and ``NUMBER`` are set by :func:`event_class`.
    """

    if TYPE_CHECKING:
        KIND: ClassVar[EventKind]
        NUMBER: ClassVar[int]
        ACCESSORS: ClassVar[tuple[tuple[str, str, Callable[[Any], Any] | None], ...]]
        ts_ns: int


def event_class(kind: EventKind, number: int) -> type[Event]:
    """The struct class that decodes tuples ``(number, field…, ts_ns)`` of a kind.

    Arity is exact (too few and too many elements are both refused by msgspec); a class is made once for
    each (probe, kind) and lives as long as the probe.
    """
    fields: list[tuple[str, Any]] = [
        (f.attribute, WireBytes if f.type == "bytes" else FIELD_TYPES[f.type]) for f in kind.wire_fields
    ]
    fields.append(("ts_ns", int))
    made = msgspec.defstruct(
        "Event_" + kind.name.replace(".", "_"),
        fields,
        bases=(Event,),
        tag=number,
        array_like=True,
        gc=False,
        forbid_unknown_fields=True,
        namespace={
            "KIND": kind,
            "NUMBER": number,
            "ACCESSORS": _accessors(kind),
            "__doc__": kind.description,
        },
    )
    return cast(type[Event], made)


def event_fields(event: Event) -> dict[str, Any]:
    """All known fields of an event by ECS name; empty text and unknown values are left out."""
    found: dict[str, Any] = {}
    for name, attribute, derive in event.ACCESSORS:
        value = getattr(event, attribute)
        if derive is not None:
            value = derive(value)
        if value is not None and value != "":
            found[name] = value
    return found


def _accessors(kind: EventKind) -> tuple[tuple[str, str, Callable[[Any], Any] | None], ...]:
    """For each field its name, the attribute that holds it, and what derives it from that."""
    known = kind.derivations
    return tuple(
        (f.name, _attribute(known[f.name].source), known[f.name].get)
        if f.derived_from
        else (f.name, f.attribute, None)
        for f in kind.fields
        if not f.derived_from or f.name in known  # a snapshot may be of a version that derived more
    )


def event_from_fields(cls: type[Event], kind: EventKind, values: Mapping[str, Any], ts_ns: int) -> Event:
    """An event from named values, as rule tests and recorded objects give them.

    A derived field may stand in place of the one it follows from, where that can be told; otherwise it must
    be what follows. Fields that are not named are empty text or 0. Raises ValueError for a field the kind
    does not have and for a value of the wrong type or out of its type's bounds.
    """
    known = {field.name: field for field in kind.wire_fields}
    derived = kind.derivations
    given = {name: value for name, value in values.items() if name in known}
    for name, value in values.items():
        if name in known:
            continue
        if name not in derived:
            raise ValueError(f"kind {kind.name} has no field {name!r}")
        _put_source(given, derived[name], value)
    arguments = [
        _checked(field, given[name]) if name in given else FIELD_TYPES[field.type]()
        for name, field in known.items()
    ]
    made: Any = cls
    event = cast(Event, made(*arguments, ts_ns))
    for name, each in derived.items():
        if name in values and each.back is None:
            follows = each.get(getattr(event, _attribute(each.source)))
            if follows != values[name]:
                said = f"{name} cannot be set: it follows from {each.source}, and is {follows!r} here"
                raise ValueError(f"{said}, not {values[name]!r}")
    return event


def _put_source(given: dict[str, Any], derived: Derivation, value: Any) -> None:
    """Put what a derived value follows from beside the given ones; what is given itself counts more."""
    if type(value) is not FIELD_TYPES[derived.type]:
        raise ValueError(f"{derived.name}: expected {derived.type}, got {value!r}")
    if derived.back is not None and derived.source not in given:
        try:
            given[derived.source] = derived.back(value)
        except ValueError as error:
            raise ValueError(f"{derived.name}: {error}") from None


def _checked(field: Field, value: Any) -> Any:
    """A value of that field's type. Raises ValueError."""
    expected = FIELD_TYPES[field.type]
    if type(value) is not expected:
        raise ValueError(f"{field.name}: expected {field.type}, got {value!r}")
    bounds = INTEGER_BOUNDS.get(field.type)
    if bounds and isinstance(value, int) and not bounds[0] <= value <= bounds[1]:
        raise ValueError(f"{field.name}: {value} is out of range for {field.type}")
    if field.type == "bytes" and isinstance(value, str) and max(value, default="") > "\xff":
        raise ValueError(f"{field.name}: expected text of one character for each byte, got {value!r}")
    return value


def _own(
    name: str, fields: str, description: str, *, proof: tuple[tuple[str, int], ...] | None = ()
) -> EventKind:
    return EventKind(name, parse_fields(fields), description, proof)


#: The kinds that kwsiem emits about itself. Rules can use them like any other; a probe may emit
#: ``sensor.lost`` too and must then keep these very fields.
OWN_KINDS: Final[Mapping[str, EventKind]] = {
    kind.name: kind
    for kind in (
        _own(
            LOST_KIND,
            "probe.name:str event.reason:str event.count:u64",
            "Events the sensor did not see or did not pass on. event.reason: ring_buffer (bpftrace could"
            " not keep up), budget (held back by the probe), map_full (beyond a map's size); and no loss:"
            " aggregated (told by flow.source and flow.rate), busy (connections and lookups of a busy host),"
            " untracked (connections not followed).",
        ),
        _own(
            "sensor.probe",
            "probe.name:str probe.state:str probe.previous:str event.reason:str",
            "A probe changed its state (see sensor.lifecycle).",
        ),
        _own(HEARTBEAT_KIND, "probe.name:str", "A probe's heartbeat, once a second."),
        _own(
            "rules.reload",
            "event.outcome:str file.path:str error.message:str",
            "The rule files changed. event.outcome: success, or failure (the old rules stay).",
        ),
        _own(
            "rules.limited",
            "rule.id:str event.count:u64",
            "A rule alerted too often; event.count more alerts were held back and only counted.",
        ),
        _own(
            "block.decision",
            "source.address:str event.action:str event.reason:str rule.id:str",
            "What became of a block. event.action: blocked, would_block (dry-run), refused (event.reason"
            " names the rule of the guard), released, ended.",
            proof=None,  # a block that was refused for its evidence must not come back as a proof
        ),
        _own(
            "block.firewall",
            "event.action:str event.reason:str",
            "The firewall. event.action: repaired (somebody else removed sets or rules), failing, full,"
            " throttled (more blocks than a minute allows), rolled_back (arming was not confirmed).",
        ),
        _own(
            "output.state",
            "output.name:str output.state:str output.previous:str event.reason:str",
            "An output changed its state (ready, failing).",
        ),
        _own(
            "output.lost",
            "output.name:str event.reason:str event.count:u64",
            "Alerts that an output will never get, event.count since the event before. event.reason: size"
            " (the outbox was full), age (older than the output wants), corrupt (damaged on disk).",
        ),
        _own(
            "outbox.state",
            "outbox.state:str event.reason:str",
            "Alerts begin to be held in memory, because the disk takes nothing (memory), or all are on disk"
            " again (disk).",
        ),
        _own(
            "chat.denied",
            "output.name:str user.id:str user.name:str chat.id:str event.reason:str event.count:u64",
            "Somebody who may not wrote to the bot of a chat output, or pressed a button; event.count times"
            " since the event before. event.reason: user, chat.",
        ),
    )
}
