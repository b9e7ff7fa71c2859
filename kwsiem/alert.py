"""An alert is one finding about one identity: an incident that opens, is updated and closes.

The engine makes :class:`Alert`, the courier and every format work on its ECS document
(:func:`kwsiem.document.document`), a plain nested dictionary with own facts under ``kwsiem``. The id of
an alert is derived from what it says, so that the same alert raised twice (a replay, a restart) has the
same id and every receiver can recognise the repeat.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from kwsiem.clock import NS_PER_MS, wall_ns

ECS_VERSION: Final = "9.4.0"

#: Sigma's levels, from least to most, and the number each has in every format (0 to 10).
LEVELS: Final[Mapping[str, int]] = {"informational": 0, "low": 3, "medium": 5, "high": 8, "critical": 10}

#: High and critical alerts do not wait behind a long queue.
URGENT_SEVERITY: Final = 8

#: An alert's document is never larger than this; evidence is cut first.
MAX_DOCUMENT_BYTES: Final = 60 * 1024
MAX_EVIDENCE_EVENTS: Final = 10
MAX_TEXT: Final = 1024

_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
#: Two letters at a time: 13 look-ups for an id instead of 26 divisions.
_PAIRS: Final = [high + low for high in _CROCKFORD for low in _CROCKFORD]


class Alert(msgspec.Struct, kw_only=True):
    """One message about an incident: that it opened, grew, or closed.

    Times are nanoseconds since 1970 (wall time). ``identity`` maps the rule's group-by fields to their
    values; ``count`` is the number of matching events of the incident so far; ``values`` the distinct
    values that a value_count rule counted (bounded); ``evidence`` the first and the latest events as
    flat ECS fields, each with its ``kind``, ``ts_ns`` (kernel time) and ``grade`` (``proven`` when it proves
    its source, else ``spoofable``). ``block`` is what the rule asks the
    guard for when the incident opens: ``value`` (an address), ``for_s``, ``spoofable`` (the rule wants it on
    evidence that can be forged too), ``evidence`` (``proven`` or ``spoofable``).
    """

    rule_id: str
    title: str
    level: str
    state: str
    identity: dict[str, Any]
    count: int
    first_ns: int
    last_ns: int
    raised_ns: int
    opened_ts_ns: int
    description: str = ""
    reason: str = ""
    tags: list[str] = []
    fields: dict[str, Any] = {}
    values: list[Any] = []
    evidence: list[dict[str, Any]] = []
    falsepositives: list[str] = []
    host: str = ""
    block: dict[str, Any] = {}

    @property
    def incident_id(self) -> str:
        """The id that all messages of one incident share."""
        return _identifier(self.first_ns, self._incident_key())

    @property
    def id(self) -> str:
        """A ULID: 48 bits of wall-clock milliseconds, then 80 bits of a hash of what the alert says."""
        return _identifier(self.raised_ns, f"{self._incident_key()}\0{self.state}\0{self.count}")

    def _incident_key(self) -> str:
        identity = "\0".join(f"{name}={value}" for name, value in self.identity.items())
        return f"{self.host}\0{self.rule_id}\0{identity}\0{self.opened_ts_ns}"


def first_id(wall_ns: int) -> str:
    """The lowest id that an alert raised at this wall time, in whole milliseconds, can have."""
    number = (max(wall_ns, 0) // NS_PER_MS & (2**48 - 1)) << 80
    return "".join([_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])


def _identifier(wall_ns: int, key: str) -> str:
    """26 characters of Crockford base 32 (the ULID layout)."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=10).digest()
    number = ((wall_ns // NS_PER_MS) & (2**48 - 1)) << 80 | int.from_bytes(digest, "big")
    return "".join([_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])


def raised_ns_of(alert_id: str) -> int:
    """When an alert was raised, by its id: nanoseconds since 1970, to the millisecond; now for other ids."""
    digits = [_CROCKFORD.find(letter) for letter in alert_id[:10]]
    if len(alert_id) != 26 or min(digits) < 0:
        return wall_ns()
    return functools.reduce(lambda number, digit: number << 5 | digit, digits, 0) * NS_PER_MS


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names to nested objects: ``{"a.b": 1}`` becomes ``{"a": {"b": 1}}``.

    A name that is both a value and a prefix keeps its value under ``.value`` of the object.
    """
    root: dict[str, Any] = {}
    for name, value in flat.items():
        put(root, name, value)
    return root


def put(root: dict[str, Any], name: str, value: Any) -> None:
    """One value into a nested object at its dotted name, as :func:`nest` does."""
    parents, leaf = _path(name)
    node = root
    for part in parents:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            child = node[part] = {"value": child}
        node = child
    if isinstance(node.get(leaf), dict):
        node[leaf]["value"] = value
    else:
        node[leaf] = value


@functools.lru_cache(maxsize=4096)
def _path(name: str) -> tuple[tuple[str, ...], str]:
    *parents, leaf = name.split(".")
    return tuple(parents), leaf
