"""Composition root of an output: from its settings to the thing that sends, and the way alerts take to it.

The courier makes its workers with this, and ``kwsiem outputs test`` its one message.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from kwsiem.alert import LEVELS
from kwsiem.errors import ConfigError, OutputError
from kwsiem.formats import make as make_format
from kwsiem.formats.digest import digest
from kwsiem.formats.fit import fit
from kwsiem.formats.syslog import (
    MAX_STREAM_BYTES,
    MAX_UDP_BYTES,
    frame_newline,
    frame_octets,
    header,
    local_header,
)
from kwsiem.output_settings import (
    ConsoleSettings,
    ElasticsearchSettings,
    FileSettings,
    KafkaSettings,
    LokiSettings,
    OutputSettings,
    SplunkHecSettings,
    SyslogSettings,
    WebhookSettings,
    format_of,
    type_of,
)
from kwsiem.outputs.base import Output
from kwsiem.outputs.console import ConsoleOutput
from kwsiem.outputs.file import FileOutput
from kwsiem.outputs.pace import Pace
from kwsiem.outputs.syslog import DatagramOutput, TcpOutput
from kwsiem.outputs.worker import Route

LOCAL_SOCKET: Final = "/dev/log"
Render = Callable[[bytes], bytes]


def make_output(
    settings: OutputSettings,
    secrets: Mapping[str, str],
    stdout_fd: int = 1,
) -> Output:
    """The output that the settings name, to be made as root: keys are read here.

    ``secrets`` are the values of its ``…_secret`` keys; ``stdout_fd`` is negative when the process has no
    standard output. Raises ConfigError for what cannot be used.
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


def _syslog(settings: SyslogSettings) -> Output:
    frame = frame_octets if settings.framing == "octet-counting" else frame_newline
    if settings.transport == "tcp":
        return TcpOutput(settings.host, settings.port or 514, settings.timeout_s, frame)
    if settings.transport == "udp":
        return DatagramOutput((settings.host, settings.port or 514), settings.timeout_s, frame)
    return DatagramOutput(settings.path or LOCAL_SOCKET, settings.timeout_s, frame)


def make_route(settings: OutputSettings) -> Route:
    """Which alerts go to an output, and in what form."""
    pace = Pace([(settings.rate_per_min, 60.0)]) if settings.rate_per_min else None
    return Route(
        render=make_renderer(settings),
        min_severity=LEVELS[settings.level],
        wants=make_filter(settings),
        pace=pace,
        digest=make_digest if pace else None,
        digest_over=settings.rate_per_min,
    )


def make_digest(sources: Sequence[bytes]) -> bytes:
    """One document in place of many."""
    return msgspec.json.encode(digest([msgspec.json.decode(source) for source in sources]))


def make_renderer(settings: OutputSettings) -> Render:
    """From the stored document to the bytes that the output moves; raises OutputError when it cannot fit."""
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
    if not isinstance(settings, SyslogSettings):
        return lambda data: render(msgspec.json.decode(data)).encode() + b"\n"
    head = local_header if _is_local(settings) else header
    most = MAX_UDP_BYTES if settings.transport == "udp" else MAX_STREAM_BYTES
    pid = os.getpid()

    def syslog(data: bytes) -> bytes:
        found: Mapping[str, Any] = msgspec.json.decode(data)
        begin = head(found, settings.facility, settings.app_name, pid)
        line = fit(render, found, most - len(begin))
        if line is None:
            raise OutputError(f"larger than {most} bytes in every form", retryable=False)
        return begin.encode() + line.encode()

    return syslog


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


class _Rule(msgspec.Struct):
    id: str = ""


class _Facts(msgspec.Struct):
    """What filters look at; msgspec passes over the rest of the document without making objects of it."""

    rule: _Rule = msgspec.field(default_factory=_Rule)
    tags: list[str] = []


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool] | None:
    if not patterns:
        return None
    compiled = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns))
    return lambda text: compiled.match(text) is not None


def _is_local(settings: SyslogSettings) -> bool:
    """Whether messages get the header of the local socket; by default only where stock daemons expect it."""
    if settings.header:
        return settings.header == "local"
    return settings.transport == "unix" and (settings.path or LOCAL_SOCKET) == LOCAL_SOCKET
