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
    """The rule file and those in the folder, which need not exist, in the order in which they are read."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        names = []  # there is none, or it is not ours to read
    return [path, *(folder / n for n in names if n.endswith(_SUFFIXES) and not n.startswith("."))]


def signature_of(path: Path, folder: Path) -> Signature:
    """What tells one state of all these files from another without reading them."""
    return tuple((str(file), signature(file)) for file in files_of(path, folder))


def read_rule_files(path: Path, folder: Path) -> list[Source]:
    """All rule files. Raises ConfigError that names every one that cannot be read, or when it is too much."""
    files = files_of(path, folder)
    if len(files) - 1 > MAX_FILES:
        raise ConfigError(f"{files[1].parent}: at most {MAX_FILES} rule files, there are {len(files) - 1}")
    sources: list[Source] = []
    problems: list[str] = []
    for file in files:
        try:
            sources.append(Source(str(file), read_rule_file(file)))
        except ConfigError as error:
            problems.append(str(error))
    if not problems and sum(len(source.data) for source in sources) > MAX_FILE_BYTES:
        problems = [f"{files[1].parent}: all rule files together have more than {MAX_FILE_BYTES} bytes"]
    if problems:
        raise ConfigError("\n".join(problems))
    return sources


def read_rule_file(path: Path) -> bytes:
    """The bytes of a rule file; raises ConfigError when it is absent, no regular file, or too large."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)  # before fdopen, which fails for a folder in its own way
        raise ConfigError(f"{path}: is not a regular file")
    with os.fdopen(fd, "rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: has more than {MAX_FILE_BYTES} bytes")
    return data
