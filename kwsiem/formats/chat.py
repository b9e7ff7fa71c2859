"""Alerts for people: a Telegram message, a Slack message, a mail.

The facts of a document become rows once (:func:`_card`), and each destination writes them in its own markup.
Whatever came from outside stands in a code span, where a chat makes no link and mentions nobody; a row is
left out whole when a message would be too long, so that markup is always balanced.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from kwsiem.formats.facts import attack_ids, fact, labels, milliseconds, port, texts, whole
from kwsiem.formats.fields import ACTIONS
from kwsiem.formats.summary import Ledger, Ranked, Summary
from kwsiem.text import clean, harmless

#: UTF-16 code units of a Telegram message; the Bot API takes 4096 after parsing the markup.
MAX_TELEGRAM: Final = 4000
#: Characters of a Slack section (3000), of a header (150) and of the line that notifications show.
MAX_SLACK_SECTION: Final = 2900
MAX_SLACK_HEADER: Final = 150
_MAX_SLACK_LINE: Final = 300
#: RFC 5322 section 2.1.1: lines should have no more.
MAX_SUBJECT: Final = 78

_SIGNS: Final[Mapping[str, str]] = {
    "critical": "\N{LARGE RED CIRCLE}",
    "high": "\N{LARGE ORANGE CIRCLE}",
    "medium": "\N{LARGE YELLOW CIRCLE}",
    "low": "\N{LARGE BLUE CIRCLE}",
    "informational": "\N{MEDIUM WHITE CIRCLE}",
}
_CLOSED_SIGN: Final = "\N{WHITE HEAVY CHECK MARK}"
_SUMMARY_SIGN: Final = "\N{BAR CHART}"
_EVERY: Final[Mapping[str, str]] = {"day": "DAILY SUMMARY", "week": "WEEKLY SUMMARY"}
_ARROW: Final = " \N{RIGHTWARDS ARROW} "
_DASH: Final = " \N{EN DASH} "
_DOT: Final = " \N{MIDDLE DOT} "
_TIMES: Final = "\N{MULTIPLICATION SIGN}"
_SHORT_ID: Final = 8
_MAX_TITLE: Final = 120
_MAX_NAME: Final = 64
_MAX_TEXT: Final = 256
_SHOWN_VALUES: Final = 10
_SHOWN_RULES: Final = 15
_SHOWN_SOURCES: Final = 10
_LONG: Final = 2**63 - 1
#: ``<`` and ``>`` and ``&`` mean something in Slack's markup; where escapes may show, these stand for them.
_LOOKALIKES: Final = str.maketrans({"<": "\u2039", ">": "\u203a", "&": "+"})
_WEB: Final = re.compile(r"(?i)http(?=s?:)")

#: What is always shown; a greater number is left out first when a message would be too long.
_ALWAYS: Final = 0


class _Row(msgspec.Struct, frozen=True):
    """One line: ``values`` came from outside unless they are ``ours`` (words of kwsiem or of a rule)."""

    label: str
    values: tuple[str, ...]
    spare: int = _ALWAYS
    ours: bool = False


class _Card(msgspec.Struct, frozen=True):
    """What is said about an alert, without any markup."""

    sign: str
    level: str
    title: str
    state: str
    rows: list[_Row]
    id: str
    incident_id: str
    host: str
    is_digest: bool

    @property
    def subject(self) -> str:
        """What it is about, without its state."""
        return _joined(f"{self.level}: {self.title}", f"on {self.host}" if self.host else "")


def telegram(document: Mapping[str, Any]) -> str:
    """A message in Telegram's HTML (tags ``b``, ``code``, ``i``), at most MAX_TELEGRAM UTF-16 code units.

    It is well-formed whatever the document holds.
    """
    return _telegram(_card(document))


def _telegram(card: _Card) -> str:
    def write(row: _Row) -> str:
        if row.ours:
            return _joined(row.label and f"<i>{_html(row.label)}</i>", _html(_ARROW.join(row.values)))
        return _joined(_html(row.label), _ARROW.join(f"<code>{_html(value)}</code>" for value in row.values))

    head = f"{card.sign} <b>{_html(f'{card.level}: {card.title}')}</b>"
    short_id = f"{_DOT}id <code>{_html(card.id[-_SHORT_ID:])}</code>" if card.id else ""
    foot = f"{_html(card.state)}{short_id}"
    room = MAX_TELEGRAM - _units(head) - _units(foot) - 2
    return "\n".join([head, *_fitting(card.rows, write, room), foot])


def slack(document: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON body for an incoming webhook: ``text`` for notifications, ``blocks`` for the channel.

    Text from outside can neither mention anybody nor make a link; ``verbatim`` keeps Slack from linking
    bare addresses.
    """
    ends = [end for side in ("source", "destination") if (end := _end(document, side))]
    return _slack(_card(document), ends)


def _slack(card: _Card, ends: list[str]) -> dict[str, Any]:
    def write(row: _Row) -> str:
        if row.ours:
            return _joined(row.label and f"_{_mrkdwn(row.label)}_", _mrkdwn(_ARROW.join(row.values)))
        return _joined(_mrkdwn(row.label), _ARROW.join(f"`{_mrkdwn(value)}`" for value in row.values))

    line = _joined(card.subject, f"({card.state})" if card.state else "", _ARROW.join(ends))
    body = "\n".join(_fitting(card.rows, write, MAX_SLACK_SECTION)) or _mrkdwn(card.subject)
    foot = _mrkdwn(card.state) + (f"{_DOT}id `{_mrkdwn(card.id)}`" if card.id else "") or "-"
    header = clean(f"{card.sign} {card.level}: {card.title}".translate(_LOOKALIKES), MAX_SLACK_HEADER // 2)
    return {
        "text": _mrkdwn(clean(_WEB.sub("hxxp", line), _MAX_SLACK_LINE)),
        "blocks": [
            {"type": "header", "text": {"type": "plain_text", "text": header, "emoji": False}},
            {"type": "section", "text": {"type": "mrkdwn", "text": body, "verbatim": True}},
            {
                "type": "context",
                "elements": [
                    {
                        "type": "mrkdwn",
                        "text": foot,
                        "verbatim": True,
                    }
                ],
            },
        ],
        "unfurl_links": False,
        "unfurl_media": False,
    }


def mail(document: Mapping[str, Any]) -> tuple[str, str, dict[str, str]]:
    """Subject, plain text and headers of a mail.

    All mails of an incident have the same subject but for ``Re:``, since mail programs thread by both
    subject and references; the first line of the text says its state. A web address from outside is
    written ``hxxp``, so that a mail program makes no link of it.
    """
    card = _card(document)
    again = "Re: " if fact(document, "kwsiem.alert.state") in ("update", "close") else ""
    rows = [*card.rows, _Row("id", (card.id,)), _Row("incident", (card.incident_id,))]
    headers = {
        "Auto-Submitted": "auto-generated",
        "X-Kwsiem-Alert": card.id,
        "X-Kwsiem-Incident": card.incident_id,
        "X-Kwsiem-State": "digest" if card.is_digest else _word(fact(document, "kwsiem.alert.state")),
        "X-Kwsiem-Rule": _word(fact(document, "rule.id")),
        "X-Kwsiem-Level": card.level.lower(),
    }
    if card.level == "CRITICAL":
        headers["Importance"] = "high"
    return (
        again + clean(f"[kwsiem] {card.subject}", MAX_SUBJECT - len("Re: ")),
        _plain_text(card, rows),
        headers,
    )


def _plain_text(card: _Card, rows: list[_Row]) -> str:
    width = max(len(row.label) for row in rows) + 2
    lines = [f"{card.level}: {card.title}", card.state, ""]
    for row in rows:
        label = f"{row.label}:" if row.label[:1].isalpha() else row.label
        text = _ARROW.join(row.values)
        lines.append(f"{label:<{width}}{text if row.ours else _WEB.sub('hxxp', text)}".rstrip())
    return "\n".join(lines) + "\n"


# summaries ----------------------------------------------------------------------------------------------


def summary_telegram(found: Summary) -> str:
    """A summary in Telegram's HTML, at most MAX_TELEGRAM UTF-16 code units."""
    return _telegram(_summary_card(found))


def summary_slack(found: Summary) -> dict[str, Any]:
    """A summary as the JSON body for an incoming webhook."""
    return _slack(_summary_card(found), [])


def summary_mail(found: Summary) -> tuple[str, str, dict[str, str], str]:
    """Subject, plain text, headers and HTML of a summary; the HTML loads nothing and links nowhere."""
    card = _summary_card(found)
    headers = {"Auto-Submitted": "auto-generated", "X-Kwsiem-Summary": found.every}
    subject = clean(f"[kwsiem] {card.subject}", MAX_SUBJECT)
    return subject, _plain_text(card, card.rows), headers, _page(card)


def _page(card: _Card) -> str:
    lines = []
    for row in card.rows:
        text = _ARROW.join(row.values)
        value = _html(text if row.ours else _WEB.sub("hxxp", text))
        lines.append(
            f'<tr><th align="left" valign="top">{_html(row.label)}</th>'
            f"<td>{value if row.ours else f'<code>{value}</code>'}</td></tr>"
        )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><body>\n<h2>{_html(f"{card.level}: {card.title}")}</h2>\n'
        f"<p>{_html(card.state)}</p>\n<table>\n" + "\n".join(lines) + "\n</table>\n</body></html>\n"
    )


def _summary_card(found: Summary) -> _Card:
    return _Card(
        sign=_SUMMARY_SIGN,
        level=_EVERY.get(found.every, "SUMMARY"),
        title=_plural(found.alerts, "alert") if found.alerts else "nothing happened",
        state=f"{found.since}{_DASH}{found.until}",
        rows=_summary_rows(found),
        id="",
        incident_id="",
        host=_safe(found.host, _MAX_NAME),
        is_digest=False,
    )


def _summary_rows(found: Summary) -> list[_Row]:
    """What happened, the most important first; what kwsiem says about itself is never left out."""
    before = "no history of it" if found.before is None else _plural(found.before, "alert")
    levels = [
        f"{_SIGNS[level]} {count:,} {level}" + (f" ({earlier:,})" if found.before is not None else "")
        for level, count, earlier in found.levels
    ]
    rows = [
        _Row("host", (_safe(found.host, _MAX_TITLE),)),
        _Row("the time before", (before,), ours=True),
        _Row("levels" if found.before is None else "levels (before)", (", ".join(levels),), ours=True),
        _Row("blocks", (f"{found.asked:,} asked for, {found.blocked:,} made",), ours=True),
        _Row("probes that stopped", (_named(found.probes) or "none",), ours=True),
        _Row("lost", (_named(found.lost) or "nothing",), ours=True),
        *(_Row("rule", (_ranked_rule(rule),), 20 + n, ours=True) for n, rule in enumerate(found.rules)),
        _Row("", (", ".join(_more(found.more_rules, "rules")),), 20, ours=True),
        *(
            _Row(f"source {each.count:,}{_TIMES}", (_safe(each.name, _MAX_NAME) or "?",), 50 + n)
            for n, each in enumerate(found.sources)
        ),
        _Row("", (", ".join(_more(found.more_sources, "sources")),), 50, ours=True),
        *(_Row("output", (_ledger(each),), 10 + n, ours=True) for n, each in enumerate(found.outputs)),
        _Row("", ("the history does not hold all of this time" if found.is_partial else "",), ours=True),
    ]
    return [row for row in rows if any(row.values)]


def _ranked_rule(rule: Ranked) -> str:
    sign = _SIGNS.get(rule.level, "")
    return f"{sign} {rule.count:,}{_TIMES} {_safe(rule.name, _MAX_TITLE) or '?'}".strip()


def _named(found: Sequence[Ranked]) -> str:
    """``net 2x, auth_pam 1x``."""
    return ", ".join(f"{_safe(each.name, _MAX_NAME)} {each.count:,}{_TIMES}" for each in found)


def _ledger(output: Ledger) -> str:
    return (
        f"{_safe(output.name, _MAX_NAME)}: {output.delivered:,} delivered, {output.waiting:,} waiting,"
        f" {output.dead:,} dead, {output.dropped:,} dropped"
    )


def _card(document: Mapping[str, Any]) -> _Card:
    level = _word(fact(document, "kwsiem.alert.level")) or "high"
    count = whole(fact(document, "kwsiem.digest.count"), _LONG)
    state, sign = _state(document), _SIGNS.get(level, _SIGNS["high"])
    if fact(document, "kwsiem.alert.state") == "close":
        sign = _CLOSED_SIGN
    return _Card(
        sign=sign,
        level=level.upper(),
        title=_plural(count, "alert") if count else _safe(fact(document, "rule.name"), _MAX_TITLE) or "alert",
        state="digest" if count else state,
        rows=_digest_rows(document) if count else _rows(document),
        id=_word(fact(document, "event.id")),
        incident_id=_word(fact(document, "kwsiem.alert.incident_id")),
        host=_safe(fact(document, "host.name"), _MAX_NAME),
        is_digest=bool(count),
    )


def _rows(document: Mapping[str, Any]) -> list[_Row]:
    """The facts of one alert in the order in which a person asks for them."""
    ends = {side: end for side in ("source", "destination") if (end := _end(document, side))}
    hints = texts(document, "kwsiem.alert.falsepositives")[:2]
    values = texts(document, "kwsiem.alert.values")
    shown = [_safe(value, _MAX_NAME) for value in values[:_SHOWN_VALUES]]
    rows = [
        _Row("host", (_safe(fact(document, "host.name"), _MAX_TITLE),)),
        _Row("" if len(ends) > 1 else next(iter(ends), ""), tuple(ends.values())),
        _Row("user", (_safe(fact(document, "user.name"), _MAX_NAME),)),
        _Row("service", (_safe(fact(document, "service.name"), _MAX_NAME),), 3),
        _Row("process", (_process(document),), 2),
        _Row("command", (_safe(fact(document, "process.command_line"), _MAX_TEXT),), 6),
        _Row("file", (_safe(fact(document, "file.path"), _MAX_TEXT),), 5),
        _Row("", (_counted(document),), ours=True),
        _Row("why", (_safe(fact(document, "event.reason"), _MAX_TEXT),), 1),
        _Row("values", (", ".join([*shown, *_more(len(values) - len(shown))]),), 7),
        _Row("ATT&CK", (_attack(document),), 4, ours=True),
        _Row("block", (_block(document),), ours=True),
        _Row("labels", (_labels(document),), 8),
        *(_Row("false positive?", (_safe(hint, _MAX_TEXT),), 9, ours=True) for hint in hints),
    ]
    return [row for row in rows if any(row.values)]


def _digest_rows(document: Mapping[str, Any]) -> list[_Row]:
    """The counts of a digest: by level, by rule with the most severe ones first, and the top sources."""
    found = fact(document, "kwsiem.digest")
    order = list(_SIGNS)
    rules = sorted(_objects(found, "rules"), key=lambda rule: _rank(order, rule.get("level")))
    sources = _objects(found, "sources")
    rest = len(rules) - _SHOWN_RULES + (whole(found.get("more_rules"), _LONG) or 0)
    more = len(sources) - _SHOWN_SOURCES + (whole(found.get("more_sources"), _LONG) or 0)
    levels = [f"{_number(level)} {_word(level.get('level'))}" for level in _objects(found, "levels")]
    rows = [
        _Row("host", (_safe(fact(document, "host.name"), _MAX_TITLE),)),
        _Row("", (", ".join(levels),), ours=True),
        _Row("", (_times(document),), ours=True),
        *(_Row("", (_rule(rule),), number, ours=True) for number, rule in enumerate(rules[:_SHOWN_RULES], 1)),
        _Row("", (", ".join(_more(rest, "rules")),), 1, ours=True),
        *(
            _Row(f"{_number(source)}{_TIMES}", (_safe(source.get("address"), _MAX_NAME),), 50 + number)
            for number, source in enumerate(sources[:_SHOWN_SOURCES])
        ),
        _Row("", (", ".join(_more(more, "sources")),), 50, ours=True),
        _Row("labels", (_labels(document),), 99),
    ]
    return [row for row in rows if any(row.values)]


def _rule(rule: Mapping[str, Any]) -> str:
    level = _word(rule.get("level"))
    return f"{_SIGNS.get(level, '')} {_number(rule)}{_TIMES} {_safe(rule.get('name'), _MAX_TITLE)}".strip()


def _objects(found: Any, name: str) -> list[Mapping[str, Any]]:
    items = found.get(name) if isinstance(found, Mapping) else None
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []


def _rank(order: list[str], level: Any) -> int:
    return order.index(level) if level in order else 0


def _number(item: Mapping[str, Any]) -> str:
    return f"{whole(item.get('count'), _LONG) or 0:,}"


def _more(rest: int, what: str = "") -> list[str]:
    return [_joined(f"and {rest:,} more", what)] if rest > 0 else []


def _state(document: Mapping[str, Any]) -> str:
    """``open``, ``still going on``, ``closed after 4 min, 312 events``."""
    state = _word(fact(document, "kwsiem.alert.state"))
    if state == "update":
        return "still going on"
    if state != "close":
        return state
    lasted_ns = whole(fact(document, "event.duration"), _LONG) or 0
    return f"closed after {_duration(lasted_ns // 10**9)}, {_events(document)}"


def _counted(document: Mapping[str, Any]) -> str:
    return ", ".join(part for part in (_events(document), _times(document)) if part)


def _events(document: Mapping[str, Any]) -> str:
    return _plural(whole(fact(document, "kwsiem.alert.count"), _LONG) or 0, "event")


def _plural(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _times(document: Mapping[str, Any]) -> str:
    """``2026-01-02 03:04:05 - 03:09:11 UTC``, the second date only where it is another."""
    found = [
        str(time)[:19].split("T")
        for name in ("event.start", "event.end")
        if milliseconds(time := fact(document, name)) is not None
    ]
    if not found:
        return ""
    first, last = found[0], found[-1]
    if first == last:
        return f"{' '.join(first)} UTC"
    return f"{' '.join(first)}{_DASH}{last[1] if first[0] == last[0] else ' '.join(last)} UTC"


def _duration(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 2 * 3600:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h" if seconds < 48 * 3600 else f"{seconds // 86400} days"


def _end(document: Mapping[str, Any], side: str) -> str:
    """``192.0.2.1:22`` or ``[2001:db8::1]:22`` or a name."""
    name = fact(document, f"{side}.ip") or fact(document, f"{side}.address")
    text = _safe(name, _MAX_NAME) if name else ""
    number = port(document, side)
    if number is None:
        return text
    return f"[{text}]:{number}" if ":" in text else f"{text}:{number}"


def _process(document: Mapping[str, Any]) -> str:
    name = _safe(fact(document, "process.name") or fact(document, "process.executable"), _MAX_NAME)
    pid = whole(fact(document, "process.pid"), _LONG)
    parent = _safe(fact(document, "process.parent.name"), _MAX_NAME)
    return _joined(name, f"[{pid}]" if pid is not None else "", f"of {parent}" if parent else "")


def _attack(document: Mapping[str, Any]) -> str:
    names = texts(document, "threat.technique.subtechnique.name") or texts(document, "threat.technique.name")
    ids = ", ".join(_word(technique) for technique in attack_ids(document)[:6])
    return _joined(ids, f"({_safe(names[0], _MAX_NAME)})" if names and ids else "")


def _block(document: Mapping[str, Any]) -> str:
    """What the guard decided; the value is an address, checked when the document was made."""
    block = fact(document, "kwsiem.alert.block")
    if not isinstance(block, Mapping) or not block.get("value"):
        return ""
    for_s = whole(block.get("for_s"), _LONG) or 0
    decision = block.get("decision")
    if isinstance(decision, str) and decision in ACTIONS:
        became = ACTIONS[decision].word.replace("_", " ")
    elif decision == "requested":
        became = "asked for"
    else:
        became = f"not blocked ({_safe(decision or 'undecided', _MAX_NAME)})"
    return f"{_safe(block['value'], _MAX_NAME)} for {_duration(for_s)}: {became}"


def _labels(document: Mapping[str, Any]) -> str:
    return clean(
        ", ".join(f"{_safe(k, _MAX_NAME)}={_safe(v, _MAX_NAME)}" for k, v in labels(document).items()), 256
    )


def _safe(value: Any, limit: int) -> str:
    """A value as text for people's eyes: one line, bounded, nothing in it reorders or hides."""
    return harmless(str(value), limit).strip() if value not in (None, "") else ""


def _word(value: Any) -> str:
    """An id or a word of a closed set: letters, digits, and what joins them."""
    return re.sub(r"[^A-Za-z0-9._-]", "", str(value))[:_MAX_NAME] if value else ""


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _fitting(rows: list[_Row], write: Callable[[_Row], str], room: int) -> list[str]:
    """The rows as lines, those that can be spared left out until all have room (in UTF-16 code units)."""
    lines = {index: write(row) for index, row in enumerate(rows)}
    used = sum(_units(line) + 1 for line in lines.values())
    for index in sorted(lines, key=lambda index: -rows[index].spare):
        if used <= room:
            break
        used -= _units(lines.pop(index)) + 1
    return list(lines.values())


def _units(text: str) -> int:
    return len(text) + sum(char > "\uffff" for char in text)  # the codec would be imported late


def _html(text: str) -> str:
    return html.escape(text, quote=False).replace('"', "&quot;")


def _mrkdwn(text: str) -> str:
    """Text for Slack's markup; a backtick cannot be escaped there."""
    return html.escape(text.replace("`", "'"), quote=False)
