"""The settings of each kind of output: one frozen struct for each ``type``, units in the names.

Secrets never stand in the settings: a key that ends in ``_secret`` holds the name under which
:mod:`kwsiem.secret` finds the value (the env file, a systemd credential, the environment).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, Union

import msgspec

Level = Literal["informational", "low", "medium", "high", "critical"]
FormatName = Literal["", "ecs", "json", "cef", "leef", "ocsf", "gelf", "text"]


class _Output(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """What every output has.

    ``level`` is the least level that is sent; ``rules`` and ``tags`` let only those through that match one
    of the patterns (``*`` and ``?``), ``not_rules`` and ``not_tags`` hold back those that match one.
    ``extra`` are constant fields put into each alert. ``rate_per_min`` (0: no limit) bounds the messages;
    what is above it goes into a digest, so that nothing is lost. Alerts that have waited for longer than
    ``max_age_s`` (0: no limit) are dropped and counted. ``format`` empty means the default of the type
    (``DEFAULT_FORMATS``).
    """

    name: str
    level: Level = "informational"
    rules: tuple[str, ...] = ()
    not_rules: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    not_tags: tuple[str, ...] = ()
    extra: dict[str, str] = {}
    rate_per_min: int = 0
    max_age_s: float = 0.0
    timeout_s: float = 5.0
    format: FormatName = ""
    cef_version: Literal[0, 1] = 0
    leef_version: Literal["2.0", "1.0"] = "2.0"
    ocsf_version: Literal["1.8.0", "1.3.0"] = "1.8.0"


class _Tls(_Output, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a server is verified and how we show who we are; files are PEM.

    ``ca_file`` empty means the host's own authorities. ``fingerprint`` (SHA-256 of the certificate, hex)
    takes the place of the check against authorities. ``verify: false`` is possible, and logged loudly.
    """

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    fingerprint: str = ""
    verify: bool = True


class _Http(_Tls, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An HTTP destination; ``proxy`` is the URL of a proxy, the environment's is never used."""

    url: str = ""
    proxy: str = ""


class ConsoleSettings(_Output, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="console"):
    """Alerts on the standard output of the appliance."""


class FileSettings(_Output, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="file"):
    """Alerts in a file, rotated over ``max_bytes`` into ``keep`` older ones."""

    path: str = ""
    max_bytes: int = 100 * 2**20
    keep: int = 5


class SyslogSettings(_Tls, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="syslog"):
    """A syslog receiver.

    ``path`` is the unix socket (default /dev/log). ``port`` 0 means that of the transport: 514 for UDP and
    TCP, 6514 for TLS (RFC 5425), 2514 for RELP. ``header`` empty means RFC 5424, but for /dev/log the short
    one that syslog daemons expect there. TLS and RELP have their own framing whatever ``framing`` says.
    """

    path: str = ""
    transport: Literal["unix", "udp", "tcp", "tls", "relp"] = "unix"
    host: str = "127.0.0.1"
    port: int = 0
    framing: Literal["octet-counting", "newline"] = "octet-counting"
    header: Literal["", "rfc5424", "rfc3164", "local"] = ""
    facility: str = "local6"
    app_name: str = "kwsiem"
    max_message_bytes: int = 0


class GelfSettings(_Tls, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="gelf"):
    """A Graylog input: UDP with chunks and compression, or TCP (``tls`` for TLS) with NUL-ended messages."""

    format: Literal["", "gelf"] = ""
    transport: Literal["udp", "tcp", "tls"] = "udp"
    host: str = "127.0.0.1"
    port: int = 12201
    chunk_bytes: int = 8192
    compress: bool = True


class SplunkHecSettings(_Http, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="splunk_hec"):
    """Splunk's HTTP Event Collector; ``url`` is its base, as https://splunk.example.net:8088.

    With ``acknowledge`` an alert counts as delivered when the indexer says so (the token must have it on).
    """

    token_secret: str = "SPLUNK_HEC_TOKEN"  # noqa: S105 - the name of a secret
    index: str = ""
    source: str = "kwsiem"
    sourcetype: str = "kwsiem:alert"
    acknowledge: bool = False
    acknowledge_timeout_s: float = 300.0


class ElasticsearchSettings(
    _Http, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="elasticsearch"
):
    """Elasticsearch or OpenSearch by ``_bulk``; with an API key, or with ``user`` and a password."""

    stream: str = "logs-kwsiem.alert-default"
    api_key_secret: str = ""
    user: str = ""
    password_secret: str = ""


class LokiSettings(_Http, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="loki"):
    """Grafana Loki; ``labels`` are added to job, host, level and rule."""

    tenant: str = ""
    user: str = ""
    password_secret: str = ""
    token_secret: str = ""
    labels: dict[str, str] = {}


class WebhookSettings(_Http, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="webhook"):
    """Any HTTP receiver: one POST for each alert, signed as in Standard Webhooks (id, time, HMAC-SHA256)."""

    signing_secret: str = "WEBHOOK_SECRET"  # noqa: S105 - the name of a secret
    headers: dict[str, str] = {}
    allow_http: bool = False


class KafkaSettings(_Tls, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="kafka"):
    """A Kafka topic (needs the extra ``kwsiem[kafka]``); the key of a record is the host or the source."""

    brokers: tuple[str, ...] = ()
    topic: str = "kwsiem.alerts"
    key: Literal["host", "source"] = "host"
    compression: Literal["none", "gzip", "lz4", "zstd", "snappy"] = "lz4"
    security: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = "plaintext"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    user: str = ""
    password_secret: str = ""


class ChatOpsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may use buttons and commands in the output's chat: ids of users (numbers); nobody by default."""

    users: tuple[int, ...] = ()


class SummarySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A summary of each day or week (a digest in time): at ``at``, local time of the host, 24 h.

    ``weekday`` is for ``every: week``.
    """

    every: Literal["never", "day", "week"] = "never"
    at: str = "08:00"
    weekday: Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"] = "monday"


class TelegramSettings(_Http, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="telegram"):
    """A Telegram chat; an incident keeps one message, which is edited as it grows and closes.

    ``chat_id`` in the settings wins over the secret. ``silent_below`` is the level under which a message
    makes no sound. ``rate_per_min`` can only tighten what Telegram allows: 1 message a second, and 20 a
    minute in groups and channels; that is the default.
    """

    format: Literal[""] = ""
    url: str = "https://api.telegram.org"
    token_secret: str = "TELEGRAM_BOT_TOKEN"  # noqa: S105 - the name of a secret
    chat_id: str = ""
    chat_id_secret: str = "TELEGRAM_CHAT_ID"  # noqa: S105 - the name of a secret
    topic_id: int = 0
    edit: bool = True
    silent_below: Level = "medium"
    digest_over: int = 5
    timeout_s: float = 15.0
    chatops: ChatOpsSettings = ChatOpsSettings()
    summary: SummarySettings = SummarySettings()


class SlackSettings(_Http, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="slack"):
    """A Slack channel by its incoming webhook, whose URL is a secret."""

    format: Literal[""] = ""
    url_secret: str = "SLACK_WEBHOOK_URL"  # noqa: S105 - the name of a secret
    digest_over: int = 5
    timeout_s: float = 15.0
    summary: SummarySettings = SummarySettings()


class EmailSettings(_Tls, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="email"):
    """Mail by SMTP: ``security`` is starttls (port 587), tls (465) or none (25); never a fall-back."""

    format: Literal[""] = ""
    host: str = ""
    port: int = 0
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: str = ""
    password_secret: str = ""
    sender: str = ""
    to: tuple[str, ...] = ()
    digest_over: int = 5
    timeout_s: float = 30.0
    summary: SummarySettings = SummarySettings()


OutputSettings = Union[
    ConsoleSettings,
    FileSettings,
    SyslogSettings,
    GelfSettings,
    SplunkHecSettings,
    ElasticsearchSettings,
    LokiSettings,
    WebhookSettings,
    KafkaSettings,
    TelegramSettings,
    SlackSettings,
    EmailSettings,
]
#: ``type`` in the settings file -> its struct.
OUTPUT_TYPES: Final[Mapping[str, type[OutputSettings]]] = {
    str(cls.__struct_config__.tag): cls
    for cls in OutputSettings.__args__  # type: ignore[attr-defined]
}
#: The format of a type when the settings name none.
DEFAULT_FORMATS: Final[Mapping[str, str]] = {
    "console": "text",
    "file": "ecs",
    "syslog": "cef",
    "gelf": "gelf",
    "splunk_hec": "ecs",
    "elasticsearch": "ecs",
    "loki": "json",
    "webhook": "ecs",
    "kafka": "ecs",
}
#: Default messages a minute where none is set, for those that people read; above it digests are made.
#: Telegram has limits of its own by the kind of chat (outputs/telegram.py).
DEFAULT_RATES_PER_MIN: Final[Mapping[str, int]] = {"slack": 30, "email": 6}


def type_of(settings: OutputSettings) -> str:
    """The ``type`` that the settings file names."""
    return str(settings.__struct_config__.tag)


def format_of(settings: OutputSettings) -> str:
    """The format's name; empty for those that have a form of their own (chats and mail)."""
    return getattr(settings, "format", "") or DEFAULT_FORMATS.get(type_of(settings), "")
