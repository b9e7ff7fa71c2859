"""text: one line for people's eyes.

Nothing in it can end the line, move a terminal's cursor, or reorder or hide the text beside it; the facts
in the last parentheses are ours, with values from outside in quotes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kwsiem.formats.facts import fact, labels, texts
from kwsiem.formats.fields import ACTIONS
from kwsiem.text import harmless

_MAX_TEXT: Final = 512
#: Shown after the message when the alert has them, in this order.
_SHOWN: Final[Mapping[str, str]] = {
    "from": "source.address",
    "to": "destination.address",
    "port": "destination.port",
    "user": "user.name",
    "service": "service.name",
    "process": "process.name",
    "file": "file.path",
}


def render(document: Mapping[str, Any]) -> str:
    """``TIME LEVEL RULE: message (from="…", count=5, open, id=…)``; values from outside stand in quotes."""
    facts = [f"{key}={_quoted(value)}" for key, name in _SHOWN.items() if (value := fact(document, name))]
    facts.append(f"count={fact(document, 'kwsiem.alert.count') or 0}")
    techniques = texts(document, "threat.technique.id")
    if techniques:
        facts.append(f"attack={_safe('+'.join(techniques))}")
    decision = fact(document, "kwsiem.alert.block.decision")
    if isinstance(decision, str) and decision in ACTIONS:
        facts.append(ACTIONS[decision].word)
    facts += [f"{name}={_quoted(value)}" for name, value in labels(document).items()]
    facts += [_safe(fact(document, "kwsiem.alert.state")), f"id={_safe(fact(document, 'event.id'))}"]
    level = _safe(fact(document, "kwsiem.alert.level")).upper()
    rule = _safe(fact(document, "rule.id"))
    message = _safe(fact(document, "message"))
    return f"{_safe(fact(document, '@timestamp'))} {level} {rule}: {message} ({', '.join(facts)})"


def _safe(value: Any) -> str:
    return harmless(str(value), _MAX_TEXT)


def _quoted(value: Any) -> str:
    """A number as it is, a text in double quotes with ``"`` and ``\\`` escaped."""
    if isinstance(value, int):
        return str(value)
    return '"' + _safe(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
