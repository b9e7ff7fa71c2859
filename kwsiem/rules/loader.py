"""The loader child: a rule file in, compiled rules out, without any rights.

``python -I -m kwsiem.rules.loader`` reads a :class:`~kwsiem.rules.watch.LoadRequest` from standard input and
leaves the encoded rule set on standard output (exit 0), or a JSON list of problems (exit 78). Memory and CPU
time are limited, because the file may have been written by anybody who can write it.
"""

from __future__ import annotations

import os
import resource
import sys
from typing import Final

import msgspec

from kwsiem import rights
from kwsiem.errors import EXIT_CONFIG, RuleFileError
from kwsiem.rules.load import load_rules
from kwsiem.rules.watch import LoadRequest

MAX_MEMORY_BYTES: Final = 2 * 2**30
MAX_CPU_S: Final = 50
#: More than anybody reads, and less than what the sensor takes (1 MiB).
MAX_PROBLEMS: Final = 200
MAX_PROBLEM: Final = 1000


def main() -> int:
    """Entry of the process."""
    request = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=LoadRequest)
    rights.drop(request.user)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    try:
        result, status = load_rules(request.sources, request.kinds).encode(), 0
    except RuleFileError as error:
        problems = [str(problem)[:MAX_PROBLEM] for problem in error.problems[:MAX_PROBLEMS]]
        result, status = msgspec.json.encode(problems), EXIT_CONFIG
    except (MemoryError, RecursionError) as error:
        problems = [f"{request.sources[0].name}: too much to load: {type(error).__name__}"]
        result, status = msgspec.json.encode(problems), EXIT_CONFIG
    view = memoryview(result)
    while view:
        view = view[os.write(sys.stdout.fileno(), view) :]
    return status


if __name__ == "__main__":
    raise SystemExit(main())
