"""The token that opens the dashboard: a secret of the settings, or a file of root's that is made once."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from kwsiem import secret
from kwsiem.errors import ConfigError, UnavailableError

#: The secret (systemd credential, env file, environment) that is asked for first.
NAME: Final = "DASHBOARD_TOKEN"
FILE_NAME: Final = "dashboard.token"
#: A token that a person chose must not be guessed.
LEAST: Final = 20
_MAX: Final = 1024


def token_of(env_file: Path, state_dir: Path) -> str:
    """The token; the file is made when there is none. Raises ConfigError or UnavailableError.

    The folder belongs to the user without rights, so a file is believed only when it is root's own, a
    regular one, and nobody else may read it.
    """
    token = secret.find(NAME, env_file)
    if token is None:
        token = _from_file(state_dir / FILE_NAME)
        secret.learn(token)
    if not LEAST <= len(token) <= _MAX:
        raise ConfigError(f"the secret {NAME} must have {LEAST} to {_MAX} characters")
    return token


def digest_of(token: str) -> bytes:
    """What the process that speaks HTTP is given of it."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _from_file(path: Path) -> str:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return _read(path)
    except OSError as error:
        raise UnavailableError(f"{path}: the token cannot be written: {error.strerror}") from None
    with open(fd, "w", encoding="ascii") as file:
        token = secrets.token_urlsafe(32)
        file.write(token + "\n")
    return token


def _read(path: Path) -> str:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
                raise UnavailableError(
                    f"{path}: not a file that its owner alone may read; remove it, a new token is made then"
                )
            return file.read(_MAX + 1).decode("utf-8", "replace").strip()
    except OSError as error:
        raise UnavailableError(f"{path}: the token cannot be read: {error.strerror}") from None
