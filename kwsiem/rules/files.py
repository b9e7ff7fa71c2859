"""Which files hold the rules, and reading them: ``rules.yaml`` first, then those in ``rules.d``.

Bounded, regular files only; nothing here looks at what is in them. What editors leave behind (hidden files,
``.swp``, ``~``) is no rule file, since only ``*.yml`` and ``*.yaml`` are.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from kwsiem.errors import ConfigError
from kwsiem.rules.source import Source
from kwsiem.watch import Signature, signature

#: Of one file, and of all together.
MAX_FILE_BYTES: Final = 16 * 2**20
MAX_FILES: Final = 500
_SUFFIXES: Final = (".yml", ".yaml")


def files_of(path: Path, folder: Path) -> list[Path]:
    """The rule file and those in the folder, which need not exist, in the order in which they are read.

    No more than MAX_FILES of the folder: where there are more, none of them is read.
    """
    return [path, *(folder / name for name in _listing(folder)[0][:MAX_FILES])]


def _listing(folder: Path) -> tuple[list[str], str]:
    """The names of the rule files in the folder, and why they cannot be told; no folder is no mistake."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 - a path of each name costs more than all else
    except FileNotFoundError:
        return [], "is a link to nothing" if folder.is_symlink() else ""
    except OSError as error:
        return [], f"cannot be read: {error.strerror}"
    return sorted(name for name in names if name.endswith(_SUFFIXES) and not name.startswith(".")), ""


def signature_of(path: Path, folder: Path) -> Signature:
    """What tells one state of all these files from another without reading them.

    It is taken several times a second: names as text, one stat for each, which follows links to where they
    lead now (0.8 ms for 500 files, measured).
    """
    names, problem = _listing(folder)
    # More files than are read need no look at each.
    inside = [signature(f"{folder}/{name}") for name in names[: MAX_FILES + 1]]
    return (signature(path), problem, tuple(names), *inside)


def shown(path: Path) -> str:
    """The name of a file as text that can be sent: a name need not be UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_rule_files(path: Path, folder: Path) -> list[Source]:
    """All rule files. Raises ConfigError that names every one that cannot be read, or when it is too much."""
    names, problem = _listing(folder)
    if problem:
        raise ConfigError(f"{shown(folder)}: {problem}")
    if len(names) > MAX_FILES:
        raise ConfigError(f"{shown(folder)}: at most {MAX_FILES} rule files, there are {len(names)}")
    sources: list[Source] = []
    problems: list[str] = []
    left = MAX_FILE_BYTES
    for file in (path, *(folder / name for name in names)):
        try:
            sources.append(Source(shown(file), read_rule_file(file)))
        except ConfigError as error:
            problems.append(str(error))
            continue
        left -= len(sources[-1].data)
        if left < 0:  # no more of them is read: 500 times the most would be 8 GB
            problems.append(f"{shown(folder)}: all rule files together have more than {MAX_FILE_BYTES} bytes")
            break
    if problems:
        raise ConfigError("\n".join(problems))
    return sources


def read_rule_file(path: Path) -> bytes:
    """The bytes of a rule file; raises ConfigError when it is absent, no regular file, or too large."""
    name = shown(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from None
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)  # before fdopen, which fails for a folder in its own way
        raise ConfigError(f"{name}: is not a regular file")
    with os.fdopen(fd, "rb") as file:
        # What is too large by its size is not read at all; it may grow, hence the bound of the reading.
        try:
            data = file.read(MAX_FILE_BYTES + 1) if found.st_size <= MAX_FILE_BYTES else None
        except OSError as error:
            raise ConfigError(f"{name}: cannot be read: {error.strerror}") from None
    if data is None or len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{name}: has more than {MAX_FILE_BYTES} bytes")
    return data
