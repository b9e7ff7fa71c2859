"""The appliance's own log: JSON lines (python-json-logger), set up once in each process.

Text that came from outside goes into a record as a field, never into the message format; JSON escapes it.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Final

from pythonjsonlogger.json import JsonFormatter

from kwsiem.secret import MaskFilter

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def setup(process: str, level: str = "info", log_file: str = "") -> None:
    """Log this process to stderr, and to ``log_file`` when one is given, as JSON lines.

    The file is opened now, while we may still be root, and appended to.
    """
    formatter = JsonFormatter(
        "{asctime}{levelname}{name}{message}",
        style="{",
        rename_fields={"asctime": "@timestamp", "levelname": "log.level", "name": "log.logger"},
        static_fields={"process.name": f"kwsiem-{process}"},
    )
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_file:
        Path(log_file).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_file, encoding="utf-8", errors="backslashreplace"))
    for handler in handlers:
        handler.setFormatter(formatter)
        handler.addFilter(MaskFilter())
    logging.basicConfig(level=_LEVELS[level], handlers=handlers, force=True)
