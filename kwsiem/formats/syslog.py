"""Syslog around a line: the header (RFC 5424, RFC 3164, or the local socket's), PRI, and framing.

Severity 0 (emerg) is never sent: the stock configuration of rsyslog writes it to every terminal. Structured
data is always the nil value, since leaving it out breaks syslog-ng; no byte order mark, since rsyslog keeps
it in the message and an anchored ``CEF:`` no longer matches (both measured). RFC 5424 section 6.4 allows
that as MSG-ANY.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Final

from kwsiem.formats.facts import fact
from kwsiem.formats.fields import severity

#: RFC 5424 table 1 with the names of syslog.conf(5); facilities of the system itself are left out.
FACILITIES: Final[Mapping[str, int]] = {
    "user": 1,
    "daemon": 3,
    "auth": 4,
    "syslog": 5,
    "authpriv": 10,
    **{f"local{number}": 16 + number for number in range(8)},
}
#: What every receiver is sure to take whole: RFC 5426 for UDP (a should of RFC 5424 is 2048), and for
#: streams what stays under rsyslog's built-in maximum of 8096 bytes, header included.
MAX_UDP_BYTES: Final = 1024
#: ECS and OCSF name everything in full: they need what every receiver should take (RFC 5426 section 3.2).
MAX_WORDY_UDP_BYTES: Final = 2048
MAX_STREAM_BYTES: Final = 8000

_NOT_PRINTABLE: Final = re.compile(r"[^\x21-\x7e]")
_TIMESTAMP: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{3})Z\Z", re.ASCII)
_NIL: Final = "-"
_NOT_HOST: Final = re.compile(r"[^A-Za-z0-9._-]")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
#: The time of a document that has none, which :mod:`kwsiem.document` never makes.
_EPOCH: Final = datetime.fromtimestamp(0, timezone.utc)


def priority(document: Mapping[str, Any], facility: str) -> int:
    """PRI of an alert: facility times 8 plus the syslog severity of its level, 1 (alert) to 6 (info)."""
    return FACILITIES[facility] * 8 + severity(fact(document, "event.severity")).syslog


def header(document: Mapping[str, Any], facility: str, app_name: str, process_id: int) -> str:
    """The RFC 5424 header of an alert with the space before the message: MSGID is the rule.

    The time has all six digits of a fraction: rsyslog 8.2302 makes .000123 of .123 where a template asks
    for UTC (measured).
    """
    timestamp = fact(document, "@timestamp")
    found = _TIMESTAMP.match(timestamp) if isinstance(timestamp, str) else None
    fields = (
        f"{found[1]}.{found[2]}000Z" if found else _NIL,
        _printable(fact(document, "host.name"), 255),
        _printable(app_name, 48),
        str(process_id),
        _printable(fact(document, "rule.id"), 32),
        _NIL,
    )
    return f"<{priority(document, facility)}>1 {' '.join(fields)} "


def local_header(document: Mapping[str, Any], facility: str, app_name: str, process_id: int) -> str:
    """The header for the local socket (/dev/log): ``<PRI>tag[pid]: ``, no host.

    rsyslog's parser of that socket misreads RFC 5424, takes a host for the tag, and puts the receiver's
    time whatever is sent (measured); the alert's own time is in the message. A tag has 32 letters and
    digits at most (RFC 3164 section 4.1.3).
    """
    return f"<{priority(document, facility)}>{_tag(app_name)}[{process_id}]: "


def bsd_header(document: Mapping[str, Any], facility: str, app_name: str, process_id: int) -> str:
    """The RFC 3164 header of an alert: ``<PRI>Mmm dd hh:mm:ss host tag[pid]: ``.

    The months are English whatever the locale, the day is padded with a space, and the time is local time,
    as receivers take it for theirs; it has no year and no zone. A host with a colon would be taken for the
    tag, and one that does not end in a letter or digit is no host for rsyslog (measured).
    """
    timestamp = fact(document, "@timestamp")
    found = _TIMESTAMP.match(timestamp) if isinstance(timestamp, str) else None
    try:
        moment = datetime.fromisoformat(f"{found[1]}+00:00") if found else _EPOCH
    except ValueError:
        moment = _EPOCH
    local = moment.astimezone()
    host = _NOT_HOST.sub("_", _printable(fact(document, "host.name"), 255)).strip("._-") or "unknown"
    return (
        f"<{priority(document, facility)}>{_MONTHS[local.month - 1]} {local.day:2d} {local:%H:%M:%S}"
        f" {host} {_tag(app_name)}[{process_id}]: "
    )


def frame_octets(message: bytes) -> bytes:
    """Octet counting (RFC 6587 section 3.4.1): the number of bytes, a space, the message, nothing else."""
    return b"%d %s" % (len(message), message)


def frame_newline(message: bytes) -> bytes:
    """Non-transparent framing (RFC 6587 section 3.4.2): a line end after the message, and none within.

    A line end within would make a second, forged record of the rest.
    """
    return message.replace(b"\n", b" ").replace(b"\0", b" ") + b"\n"


def _tag(app_name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "", app_name)[:32] or "kwsiem"


def _printable(value: Any, limit: int) -> str:
    """A header field: printable ASCII without spaces, cut; the nil value when nothing is left."""
    text = _NOT_PRINTABLE.sub("_", value)[:limit] if isinstance(value, str) else ""
    return text or _NIL
