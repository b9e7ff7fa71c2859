"""One picture of ``kwsiem top``: exactly so many lines of so many cells, whatever stands in the data.

Everything from outside goes through :func:`safe`; escape sequences are made here alone, from a closed set.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from kwsiem import clock
from kwsiem.cli.common import plain
from kwsiem.cli.status import faults
from kwsiem.cli.top.model import Model, lines_of, mapping, number, rejected_of, rows
from kwsiem.text import ELLIPSIS, harmless

MIN_COLUMNS: Final = 40
MIN_LINES: Final = 12
#: From so many columns on, panels stand side by side.
_TWO_COLUMNS: Final = 76
_MAX_TEXT: Final = 512
_CODES: Final = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2", "chosen": "7"}
_LEVEL_STYLES: Final = {"critical": "red", "high": "red", "medium": "yellow"}
_STATE_STYLES: Final = {"ready": "green", "starting": "yellow", "unsupported": "dim"}
_HELP: Final = (
    "kwsiem top",
    "",
    "tab          next panel: alerts, sources, blocks",
    "up, down     choose a row (also k and j)",
    "a            acknowledge the chosen incident; asks",
    "b            block the chosen address; asks, and the guard has the last word",
    "r            release the chosen block; asks",
    "s            sort sources: by alerts, latest, level",
    "p            pause the picture, and go on (also space)",
    "h            this help (also ?)",
    "q            quit",
    "",
    "Rates are those of the last 5 seconds. Times are UTC.",
    "Sources are those of the alerts of the last hour.",
)


class Line(NamedTuple):
    """Text of a known width, and how all of it looks."""

    text: str
    style: str = ""


Row = Sequence[Line]  # parts of one line, side by side


def safe(value: Any) -> str:
    """Text from outside on one line of a terminal: bounded, nothing that acts, nothing that hides.

    Marks that stand over or join the letter before them are replaced: there may be any number of them.
    """
    text = value if isinstance(value, str) else str(value)
    text = unicodedata.normalize("NFC", text[: 2 * _MAX_TEXT])
    text = plain(harmless(text, _MAX_TEXT))
    if text.isascii():
        return text
    return "".join("\ufffd" if unicodedata.category(c) in {"Mn", "Me"} else c for c in text)


def cells(text: str) -> int:
    """How many cells of a terminal the text takes (Unicode UAX #11: wide ones take two)."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def fit(text: str, width: int) -> str:
    """The text in exactly ``width`` cells: cut with an ellipsis, or padded."""
    if width <= 0:
        return ""
    used = cells(text)
    if used <= width:
        return text + " " * (width - used)
    kept, used = [], 0
    for c in text:
        size = cells(c)
        if used + size > width - 1:
            break
        kept.append(c)
        used += size
    return "".join(kept) + ELLIPSIS + " " * (width - 1 - used)


def draw(model: Model, columns: int, lines: int) -> list[Row]:
    """The picture: ``lines`` rows, the parts of each ``columns`` cells together."""
    if columns < MIN_COLUMNS or lines < MIN_LINES:
        words = [f"too small: {MIN_COLUMNS}x{MIN_LINES} at least", "q quits"]
        return _filled([[Line(fit(word, columns))] for word in words], columns, lines)
    head = [[Line(fit(text, columns), style)] for text, style in _head(model)]
    foot = [[_foot(model, columns)]]
    height = lines - len(head) - len(foot)
    if model.help:
        body: list[Row] = [[Line(fit(text, columns))] for text in _HELP]
    else:
        body = _body(model, columns, height)
    return [*head, *_filled(body, columns, height), *foot]


def _filled(found: list[Row], columns: int, lines: int) -> list[Row]:
    empty = [Line(" " * columns)]
    return (found + [empty] * lines)[: max(lines, 0)]


def as_text(picture: Sequence[Row]) -> str:
    """The picture without any escape sequence."""
    return "\n".join("".join(part.text for part in row).rstrip() for row in picture)


def as_terminal(row: Row, colour: bool) -> str:
    """One row for a terminal; without ``colour`` no sequence at all."""
    if not colour:
        return "".join(part.text for part in row)
    return "".join(
        f"\033[{_CODES[part.style]}m{part.text}\033[0m" if part.style else part.text for part in row
    )


# -- head and foot -----------------------------------------------------------------------------------


def _head(model: Model) -> list[tuple[str, str]]:
    status = model.sample.status
    rules, blocking = mapping(status.get("rules")), mapping(status.get("blocking"))
    words = [f"kwsiem {safe(status.get('version', ''))} on {safe(status.get('host', '?'))}"]
    words.append(f"{number(rules.get('rules'))} rules" + (" STALE" if rules.get("stale") else ""))
    words.append(f"blocking {safe(blocking.get('mode', '?'))}")
    words.append(f"sources by {model.order}")
    if model.paused:
        words.insert(0, "PAUSED")
    return [
        ("  ".join(words), "bold"),
        (_rates(model), ""),
        (_kinds(model), "dim"),
        _state(model),
    ]


def _rates(model: Model) -> str:
    engine = mapping(model.sample.status.get("engine"))
    lines = lines_of(model.sample.status).values()
    alerts = mapping(engine.get("alerts"))
    lost = sum(number(each.get("lost")) for each in lines)
    rejected = sum(rejected_of(each) for each in lines)
    dropped = number(alerts.get("dropped"))
    return (
        f"events {rate(model, 'events')}/s  lines {rate(model, 'lines')}/s"
        f"  lost {lost} ({rate(model, 'lost')}/s)  rejected {rejected}"
        f"  alerts {number(alerts.get('raised'))}, dropped {dropped}"
    )


def rate(model: Model, name: str) -> str:
    """A rate in words; a dash as long as there is only one sample."""
    found = model.rates.get(name)
    if found is None:
        return "-"
    return f"{found:.1f}" if found < 100 else f"{found:.0f}"


def _kinds(model: Model) -> str:
    kinds = {name.removeprefix("kind "): each for name, each in model.rates.items() if name[:5] == "kind "}
    busy = sorted((name for name, each in kinds.items() if each > 0), key=lambda name: (-kinds[name], name))
    shown = "  ".join(f"{safe(name)} {rate(model, 'kind ' + name)}/s" for name in busy)
    return shown or "no events now"


def _state(model: Model) -> tuple[str, str]:
    if model.latest.error:
        return f"! not answering for {model.silent_s:.0f} s: {safe(model.latest.error)}", "red"
    try:
        wrong = faults(dict(model.sample.status))
    except (KeyError, TypeError, IndexError, AttributeError):
        wrong = ["the appliance answers something unknown"]
    more = f" (and {len(wrong) - 1} more: kwsiem status)" if len(wrong) > 1 else ""
    return (f"! {safe(wrong[0])}{more}", "red") if wrong else ("all is well", "green")


def _foot(model: Model, columns: int) -> Line:
    if model.question:
        return Line(fit(safe(model.question.text), columns), "chosen")
    if model.said:
        return Line(fit(safe(model.said), columns), "bold")
    keys = "q quit  h help  tab panel  a ack  b block  r release  s sort  p pause"
    return Line(fit(keys, columns), "dim")


# -- panels ------------------------------------------------------------------------------------------

Panel = Callable[[Model], tuple[list[str], list[tuple[list[str], str]]]]


def _body(model: Model, columns: int, height: int) -> list[Row]:
    """Alerts in the whole width, the others two by two; or one under the other where it is narrow."""
    if columns < _TWO_COLUMNS:
        share = height // len(_PANELS)
        spare = height - share * (len(_PANELS) - 1)
        return [
            [line]
            for name in _PANELS
            for line in _panel(model, name, columns, spare if name == "alerts" else share)
        ]
    low = height * 3 // 10
    left = max((columns - 2) // 2, min(44, (columns - 2) * 11 // 20))
    right = columns - 2 - left
    body: list[Row] = [[line] for line in _panel(model, "alerts", columns, height - 2 * low)]
    for first, second in (("sources", "blocks"), ("probes", "outputs")):
        pairs = zip(_panel(model, first, left, low), _panel(model, second, right, low), strict=True)
        body += [[one, Line("  "), two] for one, two in pairs]
    return body


def _panel(model: Model, name: str, width: int, height: int) -> list[Line]:
    """A heading and the rows that fit, the chosen one among them; ``height`` lines in all."""
    heads, found = _PANELS[name](model)
    room = height - 1
    here = model.panel == name
    chosen = model.row(name) if here else 0
    first = max(0, min(chosen - room + 1, len(found) - room))
    hidden = len(found) - max(0, min(room, len(found)))
    title = f"{'*' if here else ' '}{name.upper()}" + (f" (+{hidden})" if hidden else "")
    table = _table([[title, *heads], *(row for row, _ in found[first : first + room])], width)
    lines = [Line(table[0], "bold")]
    for index, text in enumerate(table[1:], first):
        is_chosen = here and index == chosen
        mark = ">" if is_chosen else " "
        lines.append(Line(mark + text[1:], "chosen" if is_chosen else found[index][1]))
    return (lines + [Line(" " * width)] * height)[: max(height, 0)]


def _table(table: list[list[str]], width: int) -> list[str]:
    """Columns as wide as they must be, none of them more than half; the last one takes what is left."""
    count = len(table[0])
    widths = [min(max(cells(row[i]) for row in table), width // 2) for i in range(count - 1)]
    lines = []
    for row in table:
        parts = [fit(cell, size) for cell, size in zip(row, widths, strict=False)]
        lines.append(fit("  ".join([*parts, row[-1]]), width))
    return lines


def _alerts(model: Model) -> tuple[list[str], list[tuple[list[str], str]]]:
    found = [
        (
            [
                f" {_time(one.at_ns)}",
                safe(one.level),
                f"{safe(one.state)}{' ack' if one.acknowledged else ''}",
                str(number(one.count)),
                safe(one.source),
                safe(one.title)
                + (f" (acknowledged by {safe(one.acknowledged)})" if one.acknowledged else ""),
            ],
            "dim" if one.acknowledged else _LEVEL_STYLES.get(one.level, ""),
        )
        for one in model.incidents
    ]
    error = safe(model.sample.digest.error)
    return ["LEVEL", "STATE", "COUNT", "SOURCE", f"! {error}" if error else "WHAT"], found


def _sources(model: Model) -> tuple[list[str], list[tuple[list[str], str]]]:
    return ["ALERTS", "LATEST", "LEVEL"], [
        (
            [f" {safe(one.address)}", str(number(one.alerts)), _time(one.last_ns), safe(one.level)],
            _LEVEL_STYLES.get(one.level, ""),
        )
        for one in model.sources
    ]


def _blocks(model: Model) -> tuple[list[str], list[tuple[list[str], str]]]:
    return ["LEFT", "MODE", "WHY"], [
        (
            [
                f" {safe(one.get('network', ''))}",
                _span(number(one.get("left_s"))),
                safe(one.get("mode", "")),
                safe(one.get("rule") or one.get("reason", "")),
            ],
            "",
        )
        for one in model.blocks
    ]


def _probes(model: Model) -> tuple[list[str], list[tuple[list[str], str]]]:
    lines = lines_of(model.sample.status)
    found = sorted(
        rows(model.sample.status.get("probes")),
        key=lambda each: each.get("state") in ("ready", "unsupported"),
    )
    return ["STATE", "LINES/S", "LOST"], [
        (
            [
                f" {safe(one.get('name', ''))}",
                safe(one.get("state", "")),
                rate(model, f"probe {one.get('name', '')}"),
                str(number(lines.get(str(one.get("name", "")), {}).get("lost"))),
            ],
            _STATE_STYLES.get(str(one.get("state")), "red"),
        )
        for one in found
    ]


def _outputs(model: Model) -> tuple[list[str], list[tuple[list[str], str]]]:
    found = rows(mapping(model.sample.status.get("courier")).get("outputs"))
    return ["STATE", "WAITING", "DELIVERED"], [
        (
            [
                f" {safe(one.get('name', ''))}",
                safe(one.get("state", "")),
                str(number(one.get("waiting"))),
                str(number(one.get("delivered"))),
            ],
            "red" if one.get("state") == "failing" else "",
        )
        for one in sorted(found, key=lambda each: each.get("state") != "failing")
    ]


_PANELS: Final[Mapping[str, Panel]] = {
    "alerts": _alerts,
    "sources": _sources,
    "blocks": _blocks,
    "probes": _probes,
    "outputs": _outputs,
}


def _time(ns: int) -> str:
    try:
        return clock.iso(ns)[11:19]
    except (ValueError, OverflowError, OSError):
        return "?"  # no year of a calendar


def _span(seconds: int) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
