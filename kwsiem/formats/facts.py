"""Reading a document: one value by its dotted name, whatever is missing on the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def fact(document: Mapping[str, Any], name: str) -> Any:
    """The value at a dotted name of a nested document, or None."""
    node: Any = document
    for part in name.split("."):
        if not isinstance(node, Mapping):
            return None
        node = node.get(part)
    return node


def texts(document: Mapping[str, Any], name: str) -> list[str]:
    """The list of texts at a dotted name, empty when there is none."""
    value = fact(document, name)
    return [str(item) for item in value] if isinstance(value, list) else []
