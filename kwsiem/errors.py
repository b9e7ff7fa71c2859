"""The exceptions of kwsiem; what can happen in normal operation is a counted result instead.

::

    KwsiemError
    ├── ConfigError        settings or rules that cannot be used         exit 78
    │   └── RuleFileError  every error of the rule files, with positions
    ├── ProbeError         a probe file that breaks its header contract
    ├── LinkError          a message between our processes that is not valid
    ├── OutputError        a destination that did not take an alert (retryable or not)
    └── UnavailableError   something this host lacks: root, bpftrace, BTF …   exit 69
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

EXIT_GOOD = 0
EXIT_CHECK_FAILED = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 69  # EX_UNAVAILABLE, sysexits.h
EXIT_CONFIG = 78  # EX_CONFIG, sysexits.h


class KwsiemError(Exception):
    """Base of all errors that kwsiem raises on purpose."""


class ConfigError(KwsiemError):
    """Settings that cannot be used; the message names file, key, value and what was expected."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a file that an operator edits, with its place (1-based line and column)."""

    file: str
    line: int
    column: int
    where: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {self.where}: {self.message}" if self.where else f"{place}: {self.message}"


class RuleFileError(ConfigError):
    """All problems of the rule files at once; ``problems`` is never empty."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ProbeError(KwsiemError):
    """A probe file whose header does not keep the contract; the message names file and line."""


class LinkError(KwsiemError):
    """A message on a link between two of our processes that is oversized, cut or not of a known type."""


class UnavailableError(KwsiemError):
    """Something this host lacks; the message says what to do about it."""


class OutputError(KwsiemError):
    """A destination did not take what was sent, or only some of it.

    The first ``sent`` alerts of the batch were taken, and so were those whose index is in ``taken``;
    ``refused`` says of an index why it will never be taken. ``retryable`` tells whether the others may
    succeed later (receiver down, time-out, queue full): then the worker waits, for ``retry_after_s`` at
    least when the destination named it. When not retryable the others are sent at once again, and without
    any index in ``refused`` it is the one after ``sent`` that was refused.
    """

    def __init__(
        self,
        message: str,
        *,
        retryable: bool = True,
        sent: int = 0,
        taken: Iterable[int] = (),
        refused: Mapping[int, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.sent = sent
        self.retry_after_s = retry_after_s
        self.refused = dict(refused or ({} if retryable else {sent: message}))
        self.taken = frozenset((*range(sent), *taken)) - self.refused.keys()
