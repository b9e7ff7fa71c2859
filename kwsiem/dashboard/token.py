"""The token that opens the dashboard: a secret of the settings, or a file of root's that is made once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from kwsiem import secret
from kwsiem.errors import ConfigError, UnavailableError

#: The secret (systemd credential or env file) that is asked for first.
NAME: Final = "DASHBOARD_TOKEN"
FILE_NAME: Final = "token"
#: A token that a person chose must not be guessed.
LEAST: Final = 20
_MAX: Final = 1024
DIGEST_BYTES: Final = 32


def token_of(env_file: Path, state_dir: Path) -> str:
    """The token; the file is made when there is none. Raises ConfigError or UnavailableError."""
    token = secret.find(NAME, env_file)
    if token is None:
        token = _from_folder(folder_of(state_dir))
        secret.learn(token)
    if not LEAST <= len(token) <= _MAX:
        raise ConfigError(f"the secret {NAME} must have {LEAST} to {_MAX} characters")
    return token


def check_environment() -> None:
    """Raises ConfigError when the token stands in the environment: who speaks HTTP would inherit it."""
    if NAME in os.environ:
        raise ConfigError(
            f"{NAME}: must not stand in the environment; put it into the env file or a systemd credential"
        )


def folder_of(state_dir: Path) -> Path:
    """Where the token lies: beside the state folder, for that one belongs to a user without rights."""
    return state_dir.with_name(f"{state_dir.name}-dashboard")


def digest_of(token: str) -> bytes:
    """What the process that speaks HTTP is given of it."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _from_folder(folder: Path) -> str:
    """Believed is a file of ours in a folder of ours, neither of which anybody else may use."""
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(0o700, parents=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise UnavailableError(f"{folder}: the token cannot be kept there: {error.strerror}") from None
    try:
        if not _is_ours(os.fstat(fd)):
            raise UnavailableError(f"{folder}: not a folder that its owner alone may use; remove it")
        return _from_file(fd, folder / FILE_NAME)
    finally:
        os.close(fd)


def _from_file(folder_fd: int, path: Path) -> str:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path.name, flags, 0o600, dir_fd=folder_fd)
    except FileExistsError:
        return _read(folder_fd, path)
    except OSError as error:
        raise UnavailableError(f"{path}: the token cannot be written: {error.strerror}") from None
    with open(fd, "w", encoding="ascii") as file:
        token = secrets.token_urlsafe(32)
        file.write(token + "\n")
    return token


def _read(folder_fd: int, path: Path) -> str:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with open(os.open(path.name, flags, dir_fd=folder_fd), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or not _is_ours(found):
                raise UnavailableError(
                    f"{path}: not a file that its owner alone may read; remove it, a new token is made then"
                )
            return file.read(_MAX + 1).decode("utf-8", "replace").strip()
    except OSError as error:
        raise UnavailableError(f"{path}: the token cannot be read: {error.strerror}") from None


def _is_ours(found: os.stat_result) -> bool:
    return found.st_uid == os.getuid() and not found.st_mode & 0o077
