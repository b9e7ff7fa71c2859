"""Stage 5: ECS document to text, one pure module per format.

Every format is a function from a document (:func:`kwsiem.document.document`) to one line without a line
end. What each fact is called in each format is one table, :mod:`kwsiem.formats.fields`. The syslog header
and framing that go around a line are in :mod:`kwsiem.formats.syslog`; a line for a receiver with a size
limit is made by :func:`kwsiem.formats.fit.fit`; many alerts in one document by
:func:`kwsiem.formats.digest.digest`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from kwsiem.formats import cef, compact, ecs, gelf, leef, ocsf, text
from kwsiem.text import clean

Format = Callable[[Mapping[str, Any]], str]

FORMATS: Final[Mapping[str, Format]] = {
    "ecs": ecs.render,
    "json": compact.render,
    "cef": cef.render,
    "leef": leef.render,
    "gelf": gelf.render,
    "ocsf": ocsf.render,
    "text": text.render,
}
CEF_VERSIONS: Final = (0, 1)
LEEF_VERSIONS: Final = ("2.0", "1.0")
OCSF_VERSIONS: Final = ocsf.VERSIONS
#: Fields that an operator adds to every alert; together they must leave room in a UDP datagram.
MAX_EXTRA: Final = 16
MAX_EXTRA_BYTES: Final = 128
_NAME: Final = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*\Z", re.ASCII)
_MAX_NAME: Final = 32


def make(
    name: str,
    *,
    cef_version: int = 0,
    leef_version: str = "2.0",
    ocsf_version: str = OCSF_VERSIONS[0],
    extra: Mapping[str, str] = MappingProxyType({}),
) -> Format:
    """The format of that name with its options; ``extra`` are constant fields that every line carries.

    They are ECS ``labels.NAME``, GELF ``_NAME``, JSON ``labels.NAME``, LEEF a custom attribute, CEF a
    custom key ``KernelWatchKwsiemName``, OCSF ``metadata.labels``. Names are lower-case words with
    underscores; at most MAX_EXTRA of them, MAX_EXTRA_BYTES of names and values together. Raises ValueError
    for an unknown format or version and for a field that the format cannot carry.
    """
    _check_choice("format", name, tuple(FORMATS))
    _check_choice("cef_version", cef_version, CEF_VERSIONS)
    _check_choice("leef_version", leef_version, LEEF_VERSIONS)
    _check_choice("ocsf_version", ocsf_version, OCSF_VERSIONS)
    options: Mapping[str, Format] = {
        "cef": partial(cef.render, version=cef_version),
        "leef": partial(leef.render, version=leef_version),
        "ocsf": partial(ocsf.render, version=ocsf_version),
    }
    render = options.get(name, FORMATS[name])
    labels = _labels(name, extra)
    return (lambda document: render({**document, "labels": labels})) if labels else render


def _labels(name: str, extra: Mapping[str, str]) -> dict[str, str]:
    """The fields as they stand in a document, checked."""
    labels = {key: clean(value, MAX_EXTRA_BYTES).strip() for key, value in extra.items()}
    for key, value in labels.items():
        if not _NAME.match(key) or len(key) > _MAX_NAME:
            raise ValueError(f"invalid name {key!r}: must be lower-case words with underscores, at most 32")
        if not value:
            raise ValueError(f"{key}: the value is empty")
        if _is_taken(name, key):
            raise ValueError(f"{key}: {name} has a field of this name itself")
    size = sum(len(f"{key}{value}".encode()) for key, value in labels.items())
    if len(labels) > MAX_EXTRA or size > MAX_EXTRA_BYTES:
        limit = f"at most {MAX_EXTRA} fields and {MAX_EXTRA_BYTES} bytes"
        raise ValueError(f"too much: {len(labels)} fields of {size} bytes, {limit}")
    make_key = {"cef": cef.label_key, "leef": leef.label_key}.get(name, str)
    if len({make_key(key) for key in labels}) < len(labels):
        raise ValueError(f"two names are the same in {name}: {', '.join(labels)}")
    return labels


def _is_taken(name: str, key: str) -> bool:
    """Whether a format has a field of that name itself, upper and lower case taken for the same."""
    if name == "gelf":
        return f"_{key}" in gelf.RESERVED | gelf.KEYS.keys()
    if name == "leef":
        return leef.label_key(key).lower() in {own.lower() for own in leef.PREDEFINED | leef.KEYS.keys()}
    return False


def _check_choice(what: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {what} {value!r}: must be one of {', '.join(map(str, choices))}")
