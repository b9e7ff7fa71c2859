"""ECS: the whole document as one JSON line (Elastic Common Schema, NDJSON)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

_ENCODER: Final = msgspec.json.Encoder()


def render(document: Mapping[str, Any]) -> str:
    """One JSON object on one line, UTF-8 as it is; JSON escapes what could end the line."""
    return _ENCODER.encode(document).decode()
