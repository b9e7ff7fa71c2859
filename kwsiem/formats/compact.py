"""json: the facts that a person or a script asks for first, as one flat JSON object with fixed key order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from kwsiem.formats.facts import fact, labels
from kwsiem.formats.fields import FACTS

#: Key of the line -> dotted name in the document; own keys are short, ECS facts keep their ECS names.
KEYS: Final[Mapping[str, str]] = {row.json: row.name for row in FACTS if row.json}
_ENCODER: Final = msgspec.json.Encoder()


def render(document: Mapping[str, Any]) -> str:
    """One flat JSON object on one line; facts that the alert does not have are absent."""
    flat = {key: value for key, name in KEYS.items() if (value := fact(document, name)) is not None}
    for side in ("source", "destination"):
        if flat.get(f"{side}.address") == flat.get(f"{side}.ip"):
            flat.pop(f"{side}.address", None)
    flat |= {f"labels.{name}": value for name, value in labels(document).items()}
    return _ENCODER.encode(flat).decode()
