"""Composition root of an output: from its settings to the thing that sends, and the way alerts take to it.

The courier makes its workers with this, and ``kwsiem outputs test`` its one message.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from kwsiem.alert import LEVELS, first_id
from kwsiem.clock import NS_PER_S
from kwsiem.errors import ConfigError, OutputError
from kwsiem.formats import chat
from kwsiem.formats import make as make_format
from kwsiem.formats.digest import digest
from kwsiem.formats.fit import fit
from kwsiem.formats.summary import Ledger, Summary, Tally
from kwsiem.formats.syslog import (
    MAX_STREAM_BYTES,
    MAX_UDP_BYTES,
    MAX_WORDY_UDP_BYTES,
    bsd_header,
    frame_newline,
    frame_octets,
    header,
    local_header,
)
from kwsiem.messages import ChatAnswer, ChatRequest
from kwsiem.outbox import History, Wanted
from kwsiem.outbox import Ledger as Account
from kwsiem.outbox.history import PAGE
from kwsiem.output_settings import (
    DEFAULT_RATES_PER_MIN,
    ConsoleSettings,
    ElasticsearchSettings,
    EmailSettings,
    FileSettings,
    GelfSettings,
    KafkaSettings,
    LokiSettings,
    OutputSettings,
    SlackSettings,
    SplunkHecSettings,
    SyslogSettings,
    TelegramSettings,
    WebhookSettings,
    format_of,
    type_of,
)
from kwsiem.outputs.base import Notes, Output, Rendered
from kwsiem.outputs.chatstate import ChatState
from kwsiem.outputs.connection import Tls
from kwsiem.outputs.console import ConsoleOutput
from kwsiem.outputs.datagram import UdpOutput, UnixOutput
from kwsiem.outputs.file import FileOutput
from kwsiem.outputs.gelf import frame_nul, splitter
from kwsiem.outputs.pace import Pace
from kwsiem.outputs.relp import RelpOutput
from kwsiem.outputs.stream import StreamOutput
from kwsiem.outputs.summaries import Ledgers, Summaries
from kwsiem.outputs.worker import Route
from kwsiem.tls import client_context, pinned

if TYPE_CHECKING:
    from kwsiem.outputs.chatops import ChatOps

LOCAL_SOCKET: Final = "/dev/log"
#: RFC 5426, convention, RFC 5425, convention (RELP has no number of its own).
SYSLOG_PORTS: Final[Mapping[str, int]] = {"udp": 514, "tcp": 514, "tls": 6514, "relp": 2514}
#: What every receiver of RFC 5424 takes (section 6.1), and the most that an IPv4 datagram holds.
MIN_MESSAGE_BYTES: Final = 480
MAX_DATAGRAM_BYTES: Final = 65_507
HEADERS: Final = {"rfc5424": header, "rfc3164": bsd_header, "local": local_header}
Render = Callable[[bytes], bytes]


def _mail(document: Mapping[str, Any]) -> bytes:
    subject, text, headers = chat.mail(document)
    return msgspec.json.encode({"subject": subject, "text": text, "headers": headers})


#: The outputs that a mute keeps silent: people see them at once, and something else keeps the alerts.
_MUTABLE: Final = frozenset({"telegram", "slack"})
#: The outputs for people have a form of their own, whatever ``format`` says.
_CHATS: Final[Mapping[str, Callable[[Mapping[str, Any]], bytes]]] = {
    "telegram": lambda document: chat.telegram(document).encode(),
    "slack": lambda document: msgspec.json.encode(chat.slack(document)),
    "email": _mail,
}


def _summary_mail(found: Summary) -> bytes:
    subject, text, headers, page = chat.summary_mail(found)
    return msgspec.json.encode({"subject": subject, "text": text, "headers": headers, "html": page})


_SUMMARIES: Final[Mapping[str, Callable[[Summary], bytes]]] = {
    "telegram": lambda found: chat.summary_telegram(found).encode(),
    "slack": lambda found: msgspec.json.encode(chat.summary_slack(found)),
    "email": _summary_mail,
}
#: Alerts of the history that a summary looks at, the newest first; beyond that it says so.
SUMMARY_ALERTS: Final = 200_000


def make_output(
    settings: OutputSettings,
    secrets: Mapping[str, str],
    stdout_fd: int = 1,
    notes: Notes | None = None,
) -> Output:
    """The output that the settings name, to be made as root: keys are read here.

    ``secrets`` are the values of its ``…_secret`` keys; ``stdout_fd`` is negative when the process has no
    standard output; ``notes`` is where it remembers the messages of incidents (None: only as long as it
    lives). Raises ConfigError for what cannot be used.
    """
    if isinstance(settings, ConsoleSettings):
        return ConsoleOutput(stdout_fd, settings.timeout_s)
    if isinstance(settings, FileSettings):
        return FileOutput(Path(settings.path), settings.max_bytes, settings.keep)
    if isinstance(settings, SyslogSettings):
        return _syslog(settings)
    if isinstance(settings, (SplunkHecSettings, ElasticsearchSettings, LokiSettings, WebhookSettings)):
        return _http(settings, secrets)
    if isinstance(settings, KafkaSettings):
        return _kafka(settings, secrets)
    if isinstance(settings, (TelegramSettings, SlackSettings, EmailSettings)):
        return _for_people(settings, secrets, notes)
    if isinstance(settings, GelfSettings):
        return _gelf(settings)
    raise ConfigError(f"output {settings.name!r}: type {type_of(settings)} is not built yet")


def _http(
    settings: SplunkHecSettings | ElasticsearchSettings | LokiSettings | WebhookSettings,
    secrets: Mapping[str, str],
) -> Output:
    """An HTTP output; requests is loaded only where one is configured."""
    from kwsiem.outputs import elasticsearch, loki, splunk_hec, webhook  # noqa: PLC0415

    if isinstance(settings, SplunkHecSettings):
        return splunk_hec.SplunkHecOutput(settings, secrets)
    if isinstance(settings, ElasticsearchSettings):
        return elasticsearch.ElasticsearchOutput(settings, secrets)
    if isinstance(settings, LokiSettings):
        return loki.LokiOutput(settings, secrets)
    return webhook.WebhookOutput(settings, secrets)


def _kafka(settings: KafkaSettings, secrets: Mapping[str, str]) -> Output:
    try:
        from kwsiem.outputs.kafka import KafkaOutput  # noqa: PLC0415 - an extra, and a large one
    except ImportError:
        raise ConfigError(
            f"output {settings.name!r}: confluent-kafka is not installed: pip install 'kwsiem[kafka]'"
        ) from None
    return KafkaOutput(settings, secrets)


def _for_people(
    settings: TelegramSettings | SlackSettings | EmailSettings,
    secrets: Mapping[str, str],
    notes: Notes | None,
) -> Output:
    """An output that people read; what it needs is loaded only where one is configured."""
    if isinstance(settings, EmailSettings):
        from kwsiem.outputs.mail import MailOutput  # noqa: PLC0415

        return MailOutput(settings, secrets.get("password", ""), notes)
    from kwsiem.outputs import slack, telegram  # noqa: PLC0415

    if isinstance(settings, SlackSettings):
        return slack.SlackOutput(settings, secrets.get("url", ""))
    return telegram.TelegramOutput(settings, secrets.get("token", ""), secrets.get("chat_id", ""), notes)


def _syslog(settings: SyslogSettings) -> Output:
    most = settings.max_message_bytes
    if most and not MIN_MESSAGE_BYTES <= most <= (
        MAX_DATAGRAM_BYTES if settings.transport == "udp" else most
    ):
        raise ConfigError(
            f"output {settings.name!r}: max_message_bytes: must be 0 or {MIN_MESSAGE_BYTES} at least, over"
            f" UDP {MAX_DATAGRAM_BYTES} at most, got {most}"
        )
    octets = settings.transport == "tls" or settings.framing == "octet-counting"
    frame = frame_octets if octets else frame_newline
    port = settings.port or SYSLOG_PORTS.get(settings.transport, 0)
    if settings.transport == "unix":
        return UnixOutput(settings.path or LOCAL_SOCKET, settings.timeout_s, frame)
    if settings.transport == "udp":
        return UdpOutput(settings.host, port, settings.timeout_s)
    if settings.transport == "relp":
        return RelpOutput(settings.host, port, settings.timeout_s)
    return StreamOutput(settings.host, port, settings.timeout_s, frame, _tls(settings))


def _gelf(settings: GelfSettings) -> Output:
    if settings.transport == "udp":
        split = splitter(settings.chunk_bytes, settings.compress)
        return UdpOutput(settings.host, settings.port, settings.timeout_s, split)
    return StreamOutput(settings.host, settings.port, settings.timeout_s, frame_nul, _tls(settings))


def _tls(settings: SyslogSettings | GelfSettings) -> Tls | None:
    if settings.transport != "tls":
        return None
    return Tls(client_context(settings), pinned(settings))


def make_chatops(
    settings: OutputSettings,
    secrets: Mapping[str, str],
    notes: Notes,
    ask: Callable[[ChatRequest], ChatAnswer | None],
    tell: Callable[[str, dict[str, Any]], None],
) -> ChatOps | None:
    """ChatOps of an output that has it, else None; to be made as root. Raises ConfigError."""
    if not isinstance(settings, TelegramSettings) or not settings.chatops.users:
        return None
    from kwsiem.outputs.chatops import ChatOps  # noqa: PLC0415 - requests is loaded only where it is used

    token, chat_id = secrets.get("token", ""), secrets.get("chat_id", "")
    return ChatOps(settings, token, chat_id, notes, ask=ask, tell=tell)


def has_summary(settings: OutputSettings) -> bool:
    """Whether an output gets a daily or weekly summary."""
    return type_of(settings) in _SUMMARIES and settings.summary.every != "never"  # type: ignore[union-attr]


def make_summaries(
    settings: OutputSettings,
    host: str,
    history: Path,
    kept: ChatState,
    ledgers: Callable[[], Mapping[str, Account]],
) -> Summaries | None:
    """The summaries of an output that has them, else None.

    ``history`` is the file of the outbox, read beside it; ``ledgers`` gives the accounts of all outputs.
    """
    if not isinstance(settings, (TelegramSettings, SlackSettings, EmailSettings)) or not has_summary(
        settings
    ):
        return None
    every, write = settings.summary.every, _SUMMARIES[type_of(settings)]

    def make(since_ns: int, until_ns: int, before: Ledgers) -> Iterator[tuple[Rendered, Ledgers] | None]:
        tally, known = Tally(since_ns), History(history)
        first = reached = first_id(2 * since_ns - until_ns)
        for reached in _count_history(tally, known, first, first_id(until_ns)):  # noqa: B007
            yield None
        reached = max(reached, known.oldest())
        accounts = ledgers()
        found = tally.summary(
            every=every,
            host=host,
            since=_local(since_ns),
            until=_local(until_ns),
            outputs=[_since(name, each, before.get(name, (0, 0, 0))) for name, each in accounts.items()],
            knows_before=reached <= first,
            is_partial=reached > first_id(since_ns),
        )
        message = Rendered(f"summary-{host}-{settings.name}-{until_ns // NS_PER_S}", 0, write(found))
        yield message, _settled(accounts)

    return Summaries(settings.name, settings.summary, kept, make, lambda: _settled(ledgers()))


def _count_history(tally: Tally, history: History, first: str, until: str) -> Iterator[str]:
    """Count the alerts from ``first`` on, the newest before ``until`` first; after each page, down to where.

    Each page is a look of its own at the file, so that the outbox can fold its log in between.
    """
    for _ in range(0, SUMMARY_ALERTS, PAGE):
        page = list(history.newest(Wanted(since=first, until=until), PAGE))
        for entry in page:
            tally.add(entry.document)
        if len(page) < PAGE:
            yield first
            return
        until = page[-1].summary.event.id
        yield until


def _since(name: str, account: Account, before: tuple[int, int, int]) -> Ledger:
    """What was added to an account; nothing where a salvage or a second try made it smaller."""
    now = _settled({name: account})[name]
    delivered, dead, dropped = (max(0, new - old) for new, old in zip(now, before, strict=True))
    return Ledger(name, delivered, account.waiting, dead, dropped)


def _settled(accounts: Mapping[str, Account]) -> Ledgers:
    return {name: (each.delivered, each.dead, each.dropped) for name, each in accounts.items()}


def _local(ns: int) -> str:
    """``2026-01-02 08:00 CET``."""
    return f"{datetime.fromtimestamp(ns // NS_PER_S).astimezone():%Y-%m-%d %H:%M %Z}"


def make_route(
    settings: OutputSettings,
    limits: Sequence[tuple[int, float]] = (),
    is_muted: Callable[[str], bool] | None = None,
    notes: Notes | None = None,
) -> Route:
    """Which alerts go to an output, in what form, and how fast.

    ``limits`` are those of the destination (``Output.limits``); the settings can only tighten them.
    ``is_muted`` says of a rule's id whether chats do not get its alerts now; other outputs do. A message
    that stands in ``notes`` is closed all the same.
    """
    edits = isinstance(settings, TelegramSettings) and settings.edit
    muted = _muted(is_muted, notes if edits else None) if is_muted and type_of(settings) in _MUTABLE else None
    return Route(
        render=make_renderer(settings),
        min_severity=LEVELS[settings.level],
        wants=_but_not(make_filter(settings), muted),
        pace=_pace(settings, limits),
        digest=make_digest,
        digest_over=getattr(settings, "digest_over", settings.rate_per_min),
    )


def _pace(settings: OutputSettings, limits: Sequence[tuple[int, float]]) -> Pace | None:
    rate_per_min = settings.rate_per_min or DEFAULT_RATES_PER_MIN.get(type_of(settings), 0)
    every = [*limits, (rate_per_min, 60.0)] if rate_per_min else list(limits)
    return Pace(every) if every else None


def make_digest(sources: Sequence[bytes]) -> bytes:
    """One document in place of many."""
    return msgspec.json.encode(digest([msgspec.json.decode(source) for source in sources]))


def make_renderer(settings: OutputSettings) -> Render:
    """From the stored document to the bytes that the output moves; raises OutputError when it cannot fit."""
    if type_of(settings) in _CHATS:
        write = _CHATS[type_of(settings)]
        return lambda data: write({**msgspec.json.decode(data), "labels": settings.extra})
    try:
        render = make_format(
            format_of(settings),
            cef_version=settings.cef_version,
            leef_version=settings.leef_version,
            ocsf_version=settings.ocsf_version,
            extra=settings.extra,
        )
    except ValueError as error:
        raise ConfigError(f"output {settings.name!r}: {error}") from None
    if isinstance(settings, GelfSettings):
        return lambda data: render(msgspec.json.decode(data)).encode()
    if not isinstance(settings, SyslogSettings):
        return lambda data: render(msgspec.json.decode(data)).encode() + b"\n"
    head = HEADERS[_header_of(settings)]
    most = settings.max_message_bytes or budget_bytes(settings)
    pid = os.getpid()

    def syslog(data: bytes) -> bytes:
        found: Mapping[str, Any] = msgspec.json.decode(data)
        begin = head(found, settings.facility, settings.app_name, pid)
        line = fit(render, found, most - len(begin))
        if line is None:
            raise OutputError(f"larger than {most} bytes in every form", retryable=False)
        return begin.encode() + line.encode()

    return syslog


def budget_bytes(settings: SyslogSettings) -> int:
    """The most bytes of a message where the settings say nothing."""
    if settings.transport != "udp":
        return MAX_STREAM_BYTES
    return MAX_WORDY_UDP_BYTES if format_of(settings) in {"ecs", "ocsf"} else MAX_UDP_BYTES


def make_filter(settings: OutputSettings) -> Callable[[bytes], bool] | None:
    """Whether an output's patterns let a document through; None when it has none and takes all.

    A rule's id, or one of its tags, must match one of ``rules`` (``tags``) when there are any, and none of
    ``not_rules`` (``not_tags``).
    """
    rules, not_rules = _matcher(settings.rules), _matcher(settings.not_rules)
    tags, not_tags = _matcher(settings.tags), _matcher(settings.not_tags)
    if not (rules or not_rules or tags or not_tags):
        return None

    def wants(data: bytes) -> bool:
        facts = msgspec.json.decode(data, type=_Facts)
        return (
            (not rules or rules(facts.rule.id))
            and not (not_rules and not_rules(facts.rule.id))
            and (not tags or any(map(tags, facts.tags)))
            and not (not_tags and any(map(not_tags, facts.tags)))
        )

    return wants


def _muted(is_muted: Callable[[str], bool], notes: Notes | None) -> Callable[[bytes], bool]:
    """Whether an alert is kept from a chat; not the close of an incident whose message is there."""

    def muted(data: bytes) -> bool:
        facts = msgspec.json.decode(data, type=_Facts)
        if not is_muted(facts.rule.id):
            return False
        alert = facts.kwsiem.alert
        return not (notes and alert.state == "close" and notes.get(alert.incident_id))

    return muted


def _but_not(
    wants: Callable[[bytes], bool] | None, muted: Callable[[bytes], bool] | None
) -> Callable[[bytes], bool] | None:
    if muted is None:
        return wants
    return lambda data: not muted(data) and (wants is None or wants(data))


class _Rule(msgspec.Struct):
    id: str = ""


class _Alert(msgspec.Struct):
    state: str = ""
    incident_id: str = ""


class _Own(msgspec.Struct):
    alert: _Alert = msgspec.field(default_factory=_Alert)


class _Facts(msgspec.Struct):
    """What filters look at; msgspec passes over the rest of the document without making objects of it."""

    rule: _Rule = msgspec.field(default_factory=_Rule)
    kwsiem: _Own = msgspec.field(default_factory=_Own)
    tags: list[str] = []


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool] | None:
    if not patterns:
        return None
    compiled = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns))
    return lambda text: compiled.match(text) is not None


def _header_of(settings: SyslogSettings) -> str:
    """The header's name: by default the short one only where stock daemons expect it."""
    if settings.header:
        return settings.header
    at_daemon = settings.transport == "unix" and (settings.path or LOCAL_SOCKET) == LOCAL_SOCKET
    return "local" if at_daemon else "rfc5424"
