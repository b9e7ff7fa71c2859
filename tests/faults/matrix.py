"""Runs the matrix, several cases at a time, and writes the table."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
import tempfile
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from faults.cases import MATRIX
from faults.trial import Row, run_case

_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000
_MS_REC_PRIVATE = 0x4000 | 1 << 18


def own_namespaces() -> None:
    """Mounts and a network of our own.

    What a case mounts goes with us, and a port stays free while its receiver is away: nobody else is there.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET) or libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "no namespaces of our own: the matrix needs root")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def run_named(name: str, scale: float) -> tuple[Sequence[Row], str]:
    """Run one case by its name in this process; gives its rows, or what went wrong."""
    case = next(case for case in MATRIX if case.name == name)
    folder = Path(tempfile.mkdtemp(prefix="kwsiem-faults-"))
    folder.chmod(0o755)
    try:
        return run_case(case, folder, case.count(scale)), ""
    except Exception:  # noqa: BLE001 - the edge of a case: the others go on
        return [], traceback.format_exc()
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)


class Runner:
    """So many cases at a time, each in a process of its own."""

    def __init__(self, jobs: int) -> None:
        self._pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=own_namespaces)

    def start(self, name: str, scale: float) -> Future[tuple[Sequence[Row], str]]:
        """Run a case as soon as there is room."""
        return self._pool.submit(run_named, name, scale)

    def close(self) -> None:
        """Wait for what runs; begin nothing new."""
        self._pool.shutdown(cancel_futures=True)


def scale_for(total: int) -> float:
    """How many alerts weight 1 must mean, so that the whole matrix raises ``total``."""
    low, high = 0.0, float(total)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(case.count(middle) for case in MATRIX) >= total else (middle, high)
    return high


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| case | receiver and transport | what was done | alerts | received | duplicates | lost | ledger balanced | seconds |",
        "|---|---|---|--:|--:|--:|--:|---|--:|",
    ]
    for row in rows:
        case = row.case.partition(" / ")[0]
        done = f"{row.done} ({row.note})" if row.note else row.done
        balanced = f"yes, {row.samples} samples" if row.balanced else "NO"
        lines.append(
            f"| {case} | {row.peer} | {done} | {row.alerts:,} | {row.received:,} | {row.duplicates:,}"
            f" | {row.lost:,} | {balanced} | {row.seconds:.1f} |"
        )
    return "\n".join(lines) + "\n"
