"""Stage 5: ECS document to text, one pure module per format.

Every format is a function from a document (:func:`kwsiem.document.document`) to one line without a line
end. The syslog header and framing that go around a line are in :mod:`kwsiem.formats.syslog`; a line for a
receiver with a size limit is made by :func:`kwsiem.formats.fit.fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from kwsiem.formats import cef, compact, ecs, text

Format = Callable[[Mapping[str, Any]], str]

FORMATS: Final[Mapping[str, Format]] = {
    "ecs": ecs.render,
    "json": compact.render,
    "cef": cef.render,
    "text": text.render,
}
