"""Secrets: where they are found, and that they never show.

A secret has a name (``TELEGRAM_BOT_TOKEN``). Its value is looked for among the systemd credentials
(``$CREDENTIALS_DIRECTORY``), in the env file, and in the environment, in this order. Every value that was
found is masked in whatever passes through :func:`mask`: the appliance's own log and every output error do.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec

from kwsiem.errors import ConfigError

MASK: Final = "***"
_MAX_FILE: Final = 64 * 1024
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z", re.ASCII)
#: A bot's token stands in the path of each request (Telegram Bot API); also one we were never told.
_BOT_TOKEN: Final = re.compile(r"bot\d+:[A-Za-z0-9_-]+")
#: Shorter values are not masked: they would blank out ordinary words.
_LEAST: Final = 4
_known: set[str] = set()


def find(name: str, env_file: Path) -> str | None:
    """The value of a secret, or None when it is nowhere; raises ConfigError for a bad name or file."""
    if not _NAME.match(name):
        raise ConfigError(f"{name!r} is not the name of a secret: letters, digits and _ only")
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    value = _credential(Path(folder) / name) if folder else None
    if value is None:
        value = read_env(env_file).get(name)
    if value is None:
        value = os.environ.get(name)
    if value:
        learn(value)
    return value or None


def secrets_of(settings: Any, env_file: Path, *, optional: frozenset[str] = frozenset()) -> dict[str, str]:
    """The values for the keys of an output that end in ``_secret``, by the key without that ending.

    Where the settings have a value under that key (``chat_id``) it wins, and no secret is looked for. Raises
    ConfigError that names key and secret when a named one is nowhere, unless it is ``optional``.
    """
    found: dict[str, str] = {}
    for field in msgspec.structs.fields(settings):
        name = getattr(settings, field.name)
        if not field.name.endswith("_secret") or not name:
            continue
        if getattr(settings, field.name.removesuffix("_secret"), ""):
            continue
        value = find(name, env_file)
        if value is not None:
            found[field.name.removesuffix("_secret")] = value
        elif field.name not in optional:
            raise ConfigError(
                f"output {settings.name!r}: {field.name}: no secret {name}; put {name}=… into {env_file}"
            )
    return found


def read_env(path: Path) -> dict[str, str]:
    """``KEY=value`` lines as systemd's EnvironmentFile= has them; empty when there is no such file.

    Empty lines and lines that begin with ``#`` or ``;`` are passed over, one pair of quotes around a value
    goes. Raises ConfigError for a line that is none of these, without showing it.
    """
    try:
        data = path.read_bytes()[: _MAX_FILE + 1]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > _MAX_FILE:
        raise ConfigError(f"{path}: larger than {_MAX_FILE} bytes")
    values: dict[str, str] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
        text = line.strip()
        if not text or text[0] in "#;":
            continue
        name, equals, value = text.partition("=")
        if not equals or not _NAME.match(name.strip()):
            raise ConfigError(f"{path}:{number}: expected KEY=value")
        values[name.strip()] = _unquoted(value.strip())
    return values


def learn(value: str) -> None:
    """Mask this value from now on, as it is and as it stands in a URL."""
    if len(value) >= _LEAST:
        _known.update({value, quote(value, safe="")})


def mask(text: str) -> str:
    """The text with every known secret, and every bot token, taken out."""
    for value in sorted(_known, key=len, reverse=True):
        text = text.replace(value, MASK)
    return _BOT_TOKEN.sub(f"bot{MASK}", text)


def masked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as plain data with every known secret in any text masked, for people to see."""
    return {key: _masked_value(value) for key, value in settings.items()}


class MaskFilter(logging.Filter):
    """Masks secrets in the message, the arguments, the extra fields and the traceback of each record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always true; the record is changed in place."""
        record.msg = mask(record.getMessage())
        record.args = ()
        for name, value in list(record.__dict__.items()):
            if isinstance(value, str) and name not in {"msg", "name", "levelname"}:
                setattr(record, name, mask(value))
        if record.exc_info:
            record.exc_text = mask(logging.Formatter().formatException(record.exc_info))
            record.exc_info = None
        return True


def _masked_value(value: Any) -> Any:
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, Mapping):
        return masked(value)
    return [_masked_value(item) for item in value] if isinstance(value, (list, tuple)) else value


def _credential(path: Path) -> str | None:
    try:
        return path.read_bytes()[:_MAX_FILE].decode("utf-8", "replace").rstrip("\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _unquoted(value: str) -> str:
    pair = len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if pair else value
