"""Text that an attacker may have chosen, made harmless: bounded, and without control characters."""

from __future__ import annotations

import re
from typing import Final

#: C0, DEL, C1, the two line separators of Unicode, and lone surrogates (which no encoder takes).
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BLANKS: Final = frozenset("\t\n\v\f\r\x85\u2028\u2029")
#: Characters that reorder or hide the text around them (Unicode UAX #9, and zero-width ones).
_REORDERING: Final = re.compile("[\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
ELLIPSIS: Final = "…"


def clean(text: str, limit: int) -> str:
    """At most ``limit`` code points of ``text``, control characters replaced.

    Blanks (tab, line ends) become a space, all others U+FFFD; a cut text ends with an ellipsis. The
    result stands on one line in every consumer, and cleaning it again changes nothing.
    """
    if len(text) > limit:
        text = text[: limit - 1] + ELLIPSIS
    if text.isascii() and text.isprintable():
        return text  # nearly always, and twice as fast
    return _UNSAFE.sub(_replacement, text)


def _replacement(found: re.Match[str]) -> str:
    return " " if found[0] in _BLANKS else "\ufffd"


def without_reordering(text: str) -> str:
    """The text for people's eyes: characters that reorder or hide what stands beside them replaced."""
    return _REORDERING.sub("\ufffd", text)


def harmless(text: str, limit: int) -> str:
    """Text from outside as people may be shown it: cleaned, cut to ``limit``, in the order it is read in."""
    return without_reordering(clean(text, limit))


def cut_bytes(text: str, limit: int) -> str:
    """The longest beginning of ``text`` with at most ``limit`` bytes of UTF-8; no code point is cut."""
    if 4 * len(text) <= limit:
        return text
    encoded = text.encode("utf-8", "replace")
    return text if len(encoded) <= limit else encoded[:limit].decode("utf-8", "ignore")
