"""A rule file as it was read; apart from the loader, so that who only reads files need not import pySigma."""

from __future__ import annotations

import msgspec


class Source(msgspec.Struct, frozen=True):
    """The name and the bytes of one rule file."""

    name: str
    data: bytes
