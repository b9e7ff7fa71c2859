"""A report as one HTML page: no script, nothing from elsewhere, every text escaped.

The only style sheet is the one in the page, named in its content security policy by its digest (CSP level 3):
a style or script that came in with a text would not be applied even if it were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import jinja2
from markupsafe import Markup

from kwsiem import charts
from kwsiem.alert import LEVELS
from kwsiem.charts import Part
from kwsiem.cli.report.facts import Report
from kwsiem.cli.report.tally import safe
from kwsiem.clock import NS_PER_S

_FOLDER: Final = Path(__file__).parent
#: The most severe first, at the foot of each bar.
_LEVELS: Final = tuple(reversed(tuple(LEVELS)))
_DAY_S: Final = 86_400


class Page:
    """The template, read and compiled: make it while the installation may be read."""

    def __init__(self) -> None:
        environment = jinja2.Environment(
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_shown,
        )
        environment.filters.update(
            time=_time, date=_date, number=charts.number, duration=duration, percent=_percent
        )
        self._style = (_FOLDER / "report.css").read_text("utf-8") + charts.STYLE
        self._template = environment.from_string((_FOLDER / "report.html").read_text("utf-8"))

    def render(self, report: Report) -> str:
        """The page of a report."""
        return self._template.render(
            report=report,
            policy=policy(self._style),
            style=Markup(self._style),  # noqa: S704 - ours alone
            levels=_LEVELS,
            words=words(report),
            pictures=_pictures(report),
            most_alerts=max((rule.alerts for rule in report.rules), default=0),
            most_of_source=max((source.alerts for source in report.sources), default=0),
            most_of_port=max((count for _, count in report.ports), default=0),
            meter=lambda value, most, css="c0": _markup(charts.meter(value, most, css)),
            seconds=(report.until_ns - report.since_ns) / NS_PER_S,
        )


def policy(style: str) -> str:
    """The content security policy: nothing but this very style sheet."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def words(report: Report) -> list[str]:
    """The summary in sentences."""
    length = _about((report.until_ns - report.since_ns) / NS_PER_S)
    if not report.alerts:
        said = [f"No alert was raised in these {length}."]
    else:
        counts = [
            f"{charts.number(report.levels[level])} {level}" for level in _LEVELS if report.levels[level]
        ]
        said = [
            f"{_amount(report.alerts, 'alert')} in {length}: {_list(counts)}.",
            f"{_amount(report.opened, 'incident')} began in this time.",
        ]
    said.append(_compared(report, length))
    made, would, refused = (
        report.blocks.counts.get(name, 0) for name in ("blocked", "would_block", "refused")
    )
    if made:
        said.append(f"{_amount(made, 'block')} {'was' if made == 1 else 'were'} made.")
    if would:
        said.append(f"{_amount(would, 'block')} would have been made (dry-run).")
    if refused:
        said.append(f"The guard refused {_amount(refused, 'block')}.")
    return said


def _compared(report: Report, length: str) -> str:
    if report.before is None:
        if not report.history_since_ns:
            return "The history holds no alert at all."
        return f"The history begins at {_time(report.history_since_ns)}: there is no earlier span to compare."
    before = sum(report.before.values())
    if not before:
        return f"In the {length} before there was none."
    ratio = report.alerts / before
    change = (
        "as many as"
        if ratio == 1
        else f"{ratio:.1f} times as many as"
        if ratio >= 2
        else f"{abs(ratio - 1):.0%} {'more' if ratio > 1 else 'fewer'} than"
    )
    return f"That is {change} in the {length} before ({charts.number(before)})."


def _amount(count: int, word: str) -> str:
    return f"{charts.number(count)} {word}{'' if count == 1 else 's'}"


def _list(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


# charts -----------------------------------------------------------------------------------------------


def _pictures(report: Report) -> dict[str, Any]:
    labels = _labels(report)
    step = duration(report.step_s)
    alerts = [Part(level, level, report.timeline.get(level, [])) for level in _LEVELS]
    packets = [
        Part(name, css, values)
        for css, (name, values) in zip(charts.CLASSES, report.packets.items(), strict=False)
    ]
    return {
        "alerts": _chart("alerts", "Alerts by level", alerts, labels, step),
        "packets": _chart("packets", "Packets by protocol", packets, labels, step),
        "probes": [
            _markup(charts.strip(f"probe-{number}", f"When {probe.name} ran", probe.steps))
            for number, probe in enumerate(report.probes)
        ],
    }


def _chart(key: str, title: str, parts: list[Part], labels: list[str], step: str) -> dict[str, Markup]:
    shown = [part for part in parts if any(part.values)]
    sums = [sum(part.values[index] for part in shown) for index in range(len(labels))]
    most = max(sums, default=0)
    text = f"{title}, one bar for {step}, from {labels[0]} to {labels[-1]}."
    if most:
        text += (
            f" {charts.number(sum(sums))} in all; most at {labels[sums.index(most)]}: {charts.number(most)}."
        )
    return {
        "svg": _markup(charts.stacked_bars(key, title, text, shown, labels)),
        "legend": _markup(charts.legend(shown)),
    }


def _labels(report: Report) -> list[str]:
    span_s = (report.until_ns - report.since_ns) / NS_PER_S
    count = max(1, -(-(report.until_ns - report.since_ns) // (report.step_s * NS_PER_S)))
    form = "%H:%M" if span_s <= _DAY_S else "%d %b" if report.step_s >= _DAY_S else "%d %b %H:%M"
    return [_form(report.since_ns + index * report.step_s * NS_PER_S, form) for index in range(count)]


def _markup(text: str) -> Markup:
    """What :mod:`kwsiem.charts` made: it escapes every text itself."""
    return Markup(text)  # noqa: S704


# texts ------------------------------------------------------------------------------------------------


def _shown(value: Any) -> Any:
    """What an expression of the template gives, before it is escaped: texts short and harmless."""
    return safe(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _form(ns: int, form: str) -> str:
    try:
        return datetime.fromtimestamp(ns // NS_PER_S).astimezone().strftime(form)
    except (ValueError, OverflowError, OSError):
        return "?"


def _time(ns: int) -> str:
    return _form(ns, "%Y-%m-%d %H:%M:%S")


def _date(ns: int) -> str:
    return _form(ns, "%a %d %b %Y %H:%M %Z")


def _percent(part: float) -> str:
    """99.9 % must not read as all."""
    percent = 100 * part
    return f"{min(percent, 99.9):.1f} %" if 0 < percent < 99.95 else f"{percent:.0f} %"


def _about(seconds: float) -> str:
    """As people say it: whole days from two days on."""
    return duration(seconds // _DAY_S * _DAY_S if seconds >= 2 * _DAY_S else seconds)


def duration(seconds: float) -> str:
    """``7 days``, ``3 h 20 min``, ``45 s``: the two largest units."""
    left = int(seconds)
    parts = []
    for size, unit in ((_DAY_S, "days"), (3600, "h"), (60, "min"), (1, "s")):
        if left >= size:
            count, left = divmod(left, size)
            parts.append(f"{count} {'day' if unit == 'days' and count == 1 else unit}")
    return " ".join(parts[:2]) or "0 s"
