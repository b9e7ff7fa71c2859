"""``kwsiem stats --since``: the history of figures, totals and how they went; also while nothing runs."""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from kwsiem import apart
from kwsiem.alert import LEVELS
from kwsiem.cli.common import paint, table
from kwsiem.clock import NS_PER_S, iso, wall_ns
from kwsiem.config import load_settings
from kwsiem.errors import UnavailableError
from kwsiem.series import FILE_NAME, GAUGES, MINUTE_S, NAMES, OTHER, Series
from kwsiem.text import harmless

#: What is shown without ``--name``, most asked for first.
_OVERVIEW: Final = ("alerts", "events", "packets", "ports", "sources", "lost", "blocks", "waiting")
_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_ASCII: Final = " .:-=+*#@"
#: Steps of the table of one figure, and those of a line.
_MAX_ROWS: Final = 60
_MAX_CELLS: Final = 60
_BAR: Final = 30
_MAX_LABEL: Final = 48
_MAX_TOP: Final = 1000
_WIDTHS_MIN: Final = (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440)


def add_figures(parser: argparse.ArgumentParser) -> None:
    """``--until``, ``--name`` and ``--top``."""
    parser.add_argument("--name", choices=NAMES, help="one figure, step by step (with --since)")
    parser.add_argument(
        "--top", type=_top, default=10, metavar="N", help="labels of each figure at most (default 10)"
    )


def _top(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _MAX_TOP:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to {_MAX_TOP}, got {text!r}")
    return int(text)


class Figures:
    """Asks for the figures of a span; :meth:`read` may be called again, time goes on between."""

    def __init__(self, path: Path, length_s: int, until_s: int | None, name: str, top: int) -> None:
        self._series = Series(path)
        self._path = path
        self._length_s, self._until_s = length_s, until_s
        self._names = (name,) if name else _OVERVIEW
        self._top = top

    def read(self) -> dict[str, Any]:
        """The answer, as ``--json`` prints it; raises UnavailableError when the file cannot be read."""
        until_s = self._until_s if self._until_s is not None else wall_ns() // NS_PER_S
        since_s = max(0, until_s - self._length_s)
        step_s = step_of(until_s - since_s, _MAX_ROWS)
        since_s -= since_s % step_s
        try:
            self._path.stat()
            figures = {name: self._figure(name, since_s, until_s, step_s) for name in self._names}
        except FileNotFoundError:
            raise UnavailableError(
                f"{self._path}: no such file; has the appliance run on this host?"
            ) from None
        except (sqlite3.Error, OSError) as error:
            if not os.access(self._path, os.R_OK):
                raise UnavailableError(f"{self._path}: this user may not read it; run it with sudo") from None
            raise UnavailableError(f"the history of figures cannot be read: {error}") from None
        return {
            "since": iso(since_s * NS_PER_S),
            "until": iso(until_s * NS_PER_S),
            "step_s": step_s,
            "figures": figures,
        }

    def _figure(self, name: str, since_s: int, until_s: int, step_s: int) -> dict[str, Any]:
        steps = self._series.steps(name, since_s, until_s, step_s)
        is_gauge = name in GAUGES
        totals = {label: max(values) if is_gauge else sum(values) for label, values in steps.items()}
        shown = sorted(totals.keys() - {OTHER}, key=lambda label: (-totals[label], label))[: self._top]
        shown += [OTHER] if OTHER in totals else []
        columns = zip(*steps.values(), strict=True)
        together = [max(values) if is_gauge else sum(values) for values in columns]
        return {
            "kind": "gauge" if is_gauge else "sum",
            "labels": len(totals),
            "total": max(together, default=0) if is_gauge else sum(together),
            "all": together,
            "totals": {label: totals[label] for label in shown},
            "steps": {label: steps[label] for label in shown},
        }


def step_of(length_s: int, most: int) -> int:
    """The shortest step, in seconds, with at most so many steps in a span."""
    minutes = max(1, -(-length_s // MINUTE_S))
    width = next((width for width in _WIDTHS_MIN if minutes <= width * most), 0)
    return (width or -(-minutes // (most * 1440)) * 1440) * MINUTE_S


def figures_of(options: argparse.Namespace) -> Figures:
    """What reads them, once all rights are given up: another user writes that file."""
    settings = load_settings(options.config)
    state = Path(options.state_dir or settings.state_dir)
    now_ns = wall_ns()
    until_ns = options.until if options.until is not None else now_ns
    length_s = max(1, (until_ns - options.since) // NS_PER_S)
    apart.drop_here(settings.user)
    until_s = None if options.until is None else until_ns // NS_PER_S
    return Figures(state / FILE_NAME, length_s, until_s, options.name or "", options.top)


# words ------------------------------------------------------------------------------------------------


def render(answer: Mapping[str, Any]) -> str:
    """The answer for people: one figure step by step, or a line for each label of several."""
    figures = answer["figures"]
    head = f"{_local(answer['since'])} to {_local(answer['until'])}, steps of {answer['step_s'] // 60} min"
    if len(figures) == 1:
        ((name, figure),) = figures.items()
        return "\n".join([paint(head, "dim"), "", *_one(name, figure, answer)])
    lines = [paint(head, "dim")]
    for name, figure in figures.items():
        if figure["totals"]:
            lines += ["", *_several(name, figure)]
    if nothing := [name for name, figure in figures.items() if not figure["totals"]]:
        lines += ["", f"no figures of {', '.join(nothing)}"]
    return "\n".join(lines)


def _several(name: str, figure: Mapping[str, Any]) -> list[str]:
    word = "highest" if figure["kind"] == "gauge" else "in all"
    head = paint(f"{name.upper()}", "bold") + f"  {figure['total']:,} {word}"
    labels = _ordered(name, figure["totals"])
    rows = [
        [f"  {safe(label)}", f"{figure['totals'][label]:>14,}", spark(figure["steps"][label])]
        for label in labels
    ]
    return [head, table(rows), *_more(figure)]


def _one(name: str, figure: Mapping[str, Any], answer: Mapping[str, Any]) -> list[str]:
    """Totals, then a row for each step with a bar and what the largest labels had."""
    if not figure["totals"]:
        return [f"no figures of {name} in this span"]
    labels = _ordered(name, figure["totals"])
    lines = [*_several(name, figure), ""]
    columns = labels[: max(1, min(6, (shutil.get_terminal_size((110, 24)).columns - 60) // 12))]
    most = max(figure["all"]) or 1
    start = datetime.fromisoformat(answer["since"].replace("Z", "+00:00")).timestamp()
    rows = [["TIME", "ALL".rjust(12), "", *(safe(label)[:12].rjust(12) for label in columns), ""]]
    for index, value in enumerate(figure["all"]):
        moment = datetime.fromtimestamp(start + index * answer["step_s"]).astimezone()
        parts = [f"{figure['steps'][label][index]:>12,}" for label in columns]
        rows.append([f"{moment:%Y-%m-%d %H:%M}", f"{value:>12,}", bar(value, most), *parts, ""])
    return [*lines, table(rows)]


def _more(figure: Mapping[str, Any]) -> list[str]:
    left = figure["labels"] - len(figure["totals"])
    return [f"  … and {left} more; --top shows them"] if left > 0 else []


def _ordered(name: str, totals: Mapping[str, int]) -> Sequence[str]:
    """Levels stand in their order, everything else the largest first."""
    if name != "alerts":
        return list(totals)
    return sorted(totals, key=lambda label: -LEVELS.get(label, -1))


def spark(values: Sequence[int]) -> str:
    """A line of at most 60 cells, as high as the values; the highest of those that share a cell."""
    width = -(-len(values) // _MAX_CELLS) or 1
    cells = [max(values[first : first + width]) for first in range(0, len(values), width)]
    most = max(cells, default=0) or 1
    signs = _BLOCKS if _speaks_unicode() else _ASCII
    # Whatever is there is seen.
    return "".join(signs[-(-8 * max(0, value) // most)] for value in cells)


def bar(value: int, most: int) -> str:
    """A bar of 30 cells for the highest value; what is there has at least one."""
    filled = max(0, -(-_BAR * value // most))
    return ("█" if _speaks_unicode() else "#") * filled + " " * (_BAR - filled)


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def safe(text: str) -> str:
    """A label on one line, short, and nothing in it that moves a cursor or reorders text."""
    return harmless(text, _MAX_LABEL)


def _local(text: str) -> str:
    return f"{datetime.fromisoformat(text.replace('Z', '+00:00')).astimezone():%Y-%m-%d %H:%M:%S}"
