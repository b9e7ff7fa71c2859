"""Fields that follow from another field of the same event: computed when a rule asks or an alert is made.

Each :class:`Derivation` says from which field, how, and, where that is possible, how back: then a rule's own
tests may name the derived field in place of the one it comes from. Unknown is empty text, or 0 for a number.
What comes in was chosen by strangers: nothing here raises for it, and what comes out is bounded.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

#: Bytes of a name on the wire (RFC 1035 section 2.3.4), and of one label.
MAX_NAME: Final = 255
MAX_LABEL: Final = 63
#: Two-label suffixes below which everybody may register a name. A short list of the well-known ones, not the
#: Public Suffix List: below any other suffix of two labels the registered domain is one label too short.
SECOND_LEVEL: Final = frozenset(
    f"{second}.{country}"
    for country, seconds in {
        "uk": "co org gov ac net ltd plc me sch nhs",
        "au": "com net org edu gov id asn",
        "nz": "co net org ac govt school geek",
        "jp": "co ne or ac go ad ed gr lg",
        "br": "com net org gov edu",
        "cn": "com net org gov edu ac",
        "in": "co net org gov ac firm gen ind",
        "kr": "co ne or go ac re pe",
        "za": "co net org gov ac web",
        "tr": "com net org gov edu k12 bel",
        "mx": "com net org gob edu",
        "ar": "com net org gob edu",
        "tw": "com net org gov edu idv",
        "hk": "com net org gov edu idv",
        "sg": "com net org gov edu per",
        "my": "com net org gov edu",
        "th": "co in or ac go net",
        "id": "co or ac go net web sch",
        "il": "co org net ac gov muni",
        "ua": "com net org gov edu kiev",
        "pl": "com net org gov edu",
        "at": "co or ac gv",
        "hu": "co org",
        "es": "com nom org gob edu",
        "eg": "com net org gov edu",
        "sa": "com net org gov edu",
        "vn": "com net org gov edu",
        "ph": "com net org gov edu",
        "pk": "com net org gov edu",
        "co": "com net org gov edu",
        "pe": "com net org gob edu",
        "ve": "com net org gob co",
        "ke": "co or ne go ac",
    }.items()
    for second in seconds.split()
)
#: Types of a DNS record (IANA); any other is TYPE and its number (RFC 3597).
RECORD_TYPES: Final[Mapping[int, str]] = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 7: "MB", 8: "MG", 9: "MR", 10: "NULL", 11: "WKS", 12: "PTR",
    13: "HINFO", 14: "MINFO", 15: "MX", 16: "TXT", 17: "RP", 18: "AFSDB", 24: "SIG", 25: "KEY", 28: "AAAA",
    29: "LOC", 33: "SRV", 35: "NAPTR", 36: "KX", 37: "CERT", 39: "DNAME", 41: "OPT", 42: "APL", 43: "DS",
    44: "SSHFP", 45: "IPSECKEY", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 49: "DHCID", 50: "NSEC3",
    51: "NSEC3PARAM", 52: "TLSA", 53: "SMIMEA", 55: "HIP", 59: "CDS", 60: "CDNSKEY", 61: "OPENPGPKEY",
    62: "CSYNC", 63: "ZONEMD", 64: "SVCB", 65: "HTTPS", 99: "SPF", 249: "TKEY", 250: "TSIG", 251: "IXFR",
    252: "AXFR", 255: "ANY", 256: "URI", 257: "CAA",
}  # fmt: skip
#: What ``flow.class`` counts.
FLOW_KINDS: Final[Mapping[int, str]] = {
    1: "tcp.syn",
    2: "tcp.probe",
    3: "udp",
    4: "icmp.echo",
    5: "dns.query",
    6: "http.request",
    9: "ip.probe",
}
LOOPBACK: Final = "lo"
_METHOD: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}", re.ASCII)
_VERSION: Final = re.compile(r" HTTP/[0-9.]*\s*\Z", re.ASCII)
_ESCAPE: Final = re.compile(r"\\x([0-9A-Fa-f]{2})")
#: Fractional bits of the logarithms.
_BITS: Final = 20


@lru_cache(maxsize=65536)
def as_ip(text: str) -> str | None:
    """The canonical form of an address written as text, or None when it is none.

    An IPv4-mapped IPv6 address becomes plain IPv4, so that one host has one name in every rule.
    """
    try:
        socket.inet_pton(socket.AF_INET, text)  # four decimal numbers without leading zeros: canonical
    except (OSError, ValueError):
        return _as_ipv6(text)
    return text


@functools.lru_cache(maxsize=8192)
def _as_ipv6(text: str) -> str | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


# -- network


def _arrival(interface: str) -> str:
    return "" if not interface else "internal" if interface == LOOPBACK else "ingress"


def _departure(interface: str) -> str:
    return "" if not interface else "internal" if interface == LOOPBACK else "egress"


def _arrival_or_departure(interface: str) -> str:
    """Of a kind that knows both interfaces: what did not arrive leaves."""
    return _arrival(interface) or "egress"


def _flow_kind(number: int) -> str:
    return FLOW_KINDS.get(number, "")


def _flow_class(name: str) -> int:
    return _number(FLOW_KINDS, name)


def _number(names: Mapping[int, str], wanted: str) -> int:
    for number, name in names.items():
        if name == wanted:
            return number
    raise ValueError(f"expected one of {', '.join(names.values())}, got {wanted!r}")


# -- DNS


class Question(NamedTuple):
    """A name that was asked for; what the registered domain leaves is the subdomain."""

    name: str
    registered_domain: str
    subdomain: str
    length: int
    entropy: int


@lru_cache(maxsize=4096)
def question(wire: str) -> Question:
    """The parts of a name as on the wire, each character of ``wire`` one byte.

    Of a long name the probe gives the end, which may begin within a label: what is there of it counts. A
    label that is cut at its own end is taken as far as it goes, and then the registered domain is unknown
    and everything counts as subdomain. A compression pointer ends the name. Letters are lower case; bytes
    that are no visible ASCII, dots and backslashes within a label are written ``\\xNN``.
    """
    labels, whole = _labels(wire)
    if not whole:
        labels, whole = _end_of_name(wire) or (labels, whole)
    texts = [_label_text(label) for label in labels]
    kept = 0
    if whole and len(texts) >= 2:
        kept = 3 if len(texts) >= 3 and ".".join(texts[-2:]) in SECOND_LEVEL else 2
    below = len(labels) - kept
    data = "".join(labels[:below]).lower()
    return Question(
        name=".".join(texts) or ("." if wire.startswith("\0") else ""),
        registered_domain=".".join(texts[below:]) if kept else "",
        subdomain=".".join(texts[:below]),
        length=len(data),
        entropy=entropy(data),
    )


def _labels(wire: str) -> tuple[list[str], bool]:
    """The labels of a name, and whether none of them is cut."""
    labels: list[str] = []
    position, end = 0, min(len(wire), MAX_NAME)
    while position < end:
        length = ord(wire[position])
        if length == 0:
            return labels, True
        if length > MAX_LABEL:  # a pointer, or no name at all
            return labels, False
        label = wire[position + 1 : min(position + 1 + length, end)]
        if len(label) < length:
            return [*labels, label] if label else labels, False
        labels.append(label)
        position += 1 + length
    return labels, bool(labels)  # text that str() printed ends before the zero


def _end_of_name(wire: str) -> tuple[list[str], bool] | None:
    """The labels of a name whose beginning is missing: a chain that leads from some byte to the final zero.

    A digit can pass for a length. Of several chains the one with the most labels counts, the shortest of
    those, so that none swallows the registered domain.
    """
    best: list[str] = []
    for start in range(1, min(len(wire) - 1, MAX_LABEL + 1)):
        labels, whole = _labels(wire[start:])
        reached = start + sum(map(len, labels)) + len(labels) + 1
        if whole and reached == len(wire) and len(labels) + 1 >= len(best):
            best = [wire[:start], *labels]
    return (best, True) if best else None


def _label_text(label: str) -> str:
    return "".join(
        character.lower()
        if "!" <= character <= "~" and character not in ".\\"
        else f"\\x{ord(character):02x}"
        for character in label
    )


def _wire(name: str) -> str:
    """A name as on the wire. Raises ValueError for one that no packet can hold."""
    parts = [] if name in ("", ".") else name.removesuffix(".").split(".")
    made = ""
    for part in parts:
        label = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), part)
        if not 1 <= len(label) <= MAX_LABEL or max(label) > "\xff":
            raise ValueError(f"expected labels of 1 to {MAX_LABEL} bytes, got {part!r}")
        made += chr(len(label)) + label
    if len(made) >= MAX_NAME:
        raise ValueError(f"a name has at most {MAX_NAME} bytes")
    return made + "\0" if name else ""


def entropy(text: str) -> int:
    """Shannon's entropy of a text in hundredths of a bit for each character, in whole numbers.

    Texts have at most MAX_NAME characters.
    """
    total = len(text)
    if not total:
        return 0
    spread = total * _log2(total) - sum(count * _log2(count) for count in Counter(text).values())
    return 100 * spread // (total << _BITS)


@lru_cache(maxsize=MAX_NAME + 1)
def _log2(number: int) -> int:
    """The logarithm in units of 2 ** -_BITS, bit by bit: the same on every machine."""
    whole = number.bit_length() - 1
    found, fraction = whole, (number << 64) >> whole  # 64 bits after the point, from 1 to 2
    for _ in range(_BITS):
        fraction = fraction * fraction >> 64
        found <<= 1
        if fraction >> 65:
            found |= 1
            fraction >>= 1
    return found


def _question_name(wire: str) -> str:
    return question(wire).name


def _registered_domain(wire: str) -> str:
    return question(wire).registered_domain


def _subdomain(wire: str) -> str:
    return question(wire).subdomain


def _length(wire: str) -> int:
    return question(wire).length


def _entropy(wire: str) -> int:
    return question(wire).entropy


def _record_type(number: int) -> str:
    return RECORD_TYPES.get(number) or f"TYPE{number}"


def _record_number(name: str) -> int:
    number = name.removeprefix("TYPE")
    return int(number) if number != name and number.isdecimal() else _number(RECORD_TYPES, name)


# -- HTTP


def _method(line: str) -> str:
    """The first word of a request line, when it can be a method."""
    word, blank, _ = line.partition(" ")
    return word if blank and _METHOD.fullmatch(word) else ""


def _target(line: str) -> str:
    """What stands between the method and the version; a line that is cut has no version."""
    return _VERSION.sub("", line.partition(" ")[2]).strip() if _method(line) else ""


# -- the table


class Derivation(NamedTuple):
    """How one field follows from another: ``source`` must be in the tuple of the kind, and ``beside`` too.

    ``back`` gives the source of a derived value and raises ValueError for one that nothing gives; None when
    many sources give the same.
    """

    name: str
    type: str
    source: str
    get: Callable[[Any], Any]
    back: Callable[[Any], Any] | None = None
    beside: str = ""


def _same(text: str) -> str:
    return text


_INGRESS: Final = "observer.ingress.interface.name"
_EGRESS: Final = "observer.egress.interface.name"
_QUESTION: Final = "dns.question.wire"
#: Of several with one name the first counts whose sources a kind has. ECS: ``source.address`` may be a name;
#: ``source.ip`` is set when it is an address.
DERIVATIONS: Final = (
    Derivation("source.ip", "ip", "source.address", as_ip, _same),
    Derivation("destination.ip", "ip", "destination.address", as_ip, _same),
    Derivation("network.direction", "str", _INGRESS, _arrival_or_departure, beside=_EGRESS),
    Derivation("network.direction", "str", _INGRESS, _arrival),
    Derivation("network.direction", "str", _EGRESS, _departure),
    Derivation("flow.kind", "str", "flow.class", _flow_kind, _flow_class),
    Derivation("dns.question.name", "str", _QUESTION, _question_name, _wire),
    Derivation("dns.question.registered_domain", "str", _QUESTION, _registered_domain),
    Derivation("dns.question.subdomain", "str", _QUESTION, _subdomain),
    Derivation("dns.question.length", "u64", _QUESTION, _length),
    Derivation("dns.question.entropy", "u64", _QUESTION, _entropy),
    Derivation("dns.question.type", "str", "dns.question.number", _record_type, _record_number),
    Derivation("http.request.method", "str", "http.request.line", _method),
    Derivation("url.original", "str", "http.request.line", _target),
)
