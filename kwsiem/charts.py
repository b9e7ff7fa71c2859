"""Charts as inline SVG: pure functions from figures to text, nothing else needed to show them.

Colours are classes (``STYLE``), so that a page under a strict content security policy can show them, light
and dark. Every text is cut, cleaned and escaped here: labels come from the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

from kwsiem.text import harmless

#: Classes for parts that have no colour of their own, in the order in which they are given out.
CLASSES: Final = ("c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7")
_NAMED: Final = ("critical", "high", "medium", "low", "informational", "good", "part", "bad", "none")
#: Style sheet of the charts; the page defines the colours as ``--high``, ``--c0``, ``--ink``, ``--grid`` …
STYLE: Final = (
    "".join(f".{name}{{fill:var(--{name})}}" for name in (*_NAMED, *CLASSES))
    + ".chart text{fill:var(--ink);font-size:11px}.chart .grid{stroke:var(--grid)}"
    + ".spark{fill:none;stroke:var(--c0);stroke-width:1.5}"
)
#: Sizes in SVG units; a page scales them.
_WIDTH, _HEIGHT = 760, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 6, 8, 24
_MAX_BARS: Final = 400
_MAX_PARTS: Final = 12
_MAX_TICKS: Final = 8
_MAX_LABEL: Final = 80
_FACTORS: Final = (1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10, 100)


class Part(NamedTuple):
    """One colour of a chart: what it is, its class, and a value for each bar."""

    name: str
    css: str
    values: Sequence[float]


def number(value: float) -> str:
    """A figure as people read it: ``1,234``; one decimal where it is no whole number."""
    value = _good(value)
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def stacked_bars(key: str, title: str, description: str, parts: Sequence[Part], labels: Sequence[str]) -> str:
    """Bars beside each other, each made of the parts on top of each other.

    ``key`` is an id that no other chart of the page has; ``labels`` name the bars, as many as fit are shown.
    Missing values, negative ones and those that are no number count as 0. At most 400 bars and 12 parts.
    """
    parts = [part._replace(values=[_good(v) for v in part.values]) for part in parts[:_MAX_PARTS]]
    count = min(_MAX_BARS, len(labels))
    sums = [sum(_at(part.values, index) for part in parts) for index in range(count)]
    top = _nice(max(sums, default=0))
    drawn = [
        *_grid(top),
        *(_bar(index, count, top, parts, labels[index]) for index in range(count) if sums[index]),
    ]
    drawn += _ticks(labels[:count])
    if not any(sums):
        drawn.append(
            f'<text x="{_WIDTH // 2}" y="{_HEIGHT // 2}" text-anchor="middle">nothing in this span</text>'
        )
    return _svg(key, title, description, "".join(drawn))


def legend(parts: Sequence[Part]) -> str:
    """What the colours of a chart mean, with the sum of each, as an HTML list."""
    rows = (
        '<li><svg class="chip" viewBox="0 0 10 10" aria-hidden="true">'
        f'<rect class="{_css(part.css)}" width="10" height="10"/></svg>'
        f" {_text(part.name)} <b>{number(sum(map(_good, part.values)))}</b></li>"
        for part in parts[:_MAX_PARTS]
    )
    return f'<ul class="legend">{"".join(rows)}</ul>'


def meter(value: float, most: float, css: str = "c0") -> str:
    """A short bar beside a figure: its part of ``most``; decoration, the figure stands in the text."""
    part = min(1.0, _good(value) / most) if _good(most) else 0.0
    width = max(1.0, 100 * part) if _good(value) else 0.0
    return (
        '<svg class="meter" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="none" width="100" height="8"/>'
        f'<rect class="{_css(css)}" width="{width:.1f}" height="8"/></svg>'
    )


def strip(key: str, title: str, parts: Sequence[float | None]) -> str:
    """A row of cells for how much of each step something ran: 1 all of it, 0 nothing, None not known."""
    cells = list(parts[:_MAX_BARS])
    width = 300 / max(1, len(cells))
    drawn = "".join(
        f'<rect class="{_state(part)}" x="{index * width:.2f}" width="{width:.2f}" height="14"/>'
        for index, part in enumerate(cells)
    )
    return (
        '<svg class="strip" viewBox="0 0 300 14" preserveAspectRatio="none" role="img"'
        f' aria-labelledby="{_css(key)}"><title id="{_css(key)}">{_text(title)}</title>{drawn}</svg>'
    )


def spark(values: Sequence[float]) -> str:
    """A small line of how a figure went; decoration."""
    good = [_good(value) for value in values[:_MAX_BARS]]
    top, step = max(good, default=0) or 1.0, 100 / max(1, len(good) - 1)
    points = " ".join(f"{index * step:.1f},{19 - 18 * value / top:.1f}" for index, value in enumerate(good))
    if len(good) == 1:
        points += f" 100,{19 - 18 * good[0] / top:.1f}"
    return (
        '<svg class="sparkline" viewBox="0 0 100 20" preserveAspectRatio="none" aria-hidden="true">'
        f'<polyline class="spark" points="{points}"/></svg>'
    )


def _state(part: float | None) -> str:
    if part is None:
        return "none"
    return "good" if _good(part) >= 0.95 else "part" if _good(part) > 0 else "bad"


def _good(value: float) -> float:
    return float(value) if math.isfinite(value) and value > 0 else 0.0


def _at(values: Sequence[float], index: int) -> float:
    return values[index] if index < len(values) else 0.0


def _text(text: str, limit: int = _MAX_LABEL) -> str:
    return escape(harmless(text, limit))


def _css(name: str) -> str:
    """A name that can stand in an attribute: letters, digits and hyphens."""
    return "".join(c for c in name if c.isascii() and (c.isalnum() or c == "-"))


def _nice(most: float) -> float:
    """A round figure that is not below, and whose quarters are whole."""
    if most <= 8:
        return 4.0 if most <= 4 else 8.0
    size = 10.0 ** max(1, math.floor(math.log10(most)))
    return next(size * factor for factor in _FACTORS if size * factor >= most)


def _x(index: float, count: int) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * index / max(1, count)


def _y(value: float, top: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - value / top)


def _grid(top: float) -> list[str]:
    lines = []
    for quarter in range(5):
        y = _y(top * quarter / 4, top)
        lines.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(top * quarter / 4)}</text>'
        )
    return lines


def _short(value: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _bar(index: int, count: int, top: float, parts: Sequence[Part], label: str) -> str:
    x, width = _x(index, count), _x(1, count) - _LEFT
    width = min(width - (1 if width > 4 else 0.2), 60)
    drawn, words, below = [], [], 0.0
    for part in parts:
        value = _at(part.values, index)
        if value:
            y, y0 = _y(below + value, top), _y(below, top)
            drawn.append(
                f'<rect class="{_css(part.css)}" x="{x:.2f}" y="{y:.2f}"'
                f' width="{width:.2f}" height="{y0 - y:.2f}"/>'
            )
            words.append(f"{_text(part.name)} {number(value)}")
            below += value
    return f"<g><title>{_text(label)}: {', '.join(words)}</title>{''.join(drawn)}</g>"


def _ticks(labels: Sequence[str]) -> list[str]:
    each = max(1, math.ceil(len(labels) / _MAX_TICKS))
    return [
        f'<text x="{_x(index, len(labels)):.1f}" y="{_HEIGHT - 8}">{_text(labels[index])}</text>'
        for index in range(0, len(labels), each)
        if _x(index, len(labels)) + 6.5 * len(labels[index]) <= _WIDTH  # the last one might run out of it
    ]


def _svg(key: str, title: str, description: str, drawn: str) -> str:
    key = _css(key)
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        f' aria-labelledby="{key}-title {key}-text"><title id="{key}-title">{_text(title)}</title>'
        f'<desc id="{key}-text">{_text(description, 1000)}</desc>{drawn}</svg>'
    )
