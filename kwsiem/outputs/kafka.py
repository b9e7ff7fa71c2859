"""A Kafka topic, by librdkafka: an alert counts as delivered when all in-sync replicas have it.

``acks=all`` and the idempotent producer: a retry inside librdkafka neither doubles nor reorders. Each alert
has its own delivery report. librdkafka gives up on a message after ``timeout_s`` (2 s at least), so that no
alert is under way any more when :meth:`KafkaOutput.send` returns; it may be in the topic all the same, and
comes again then with the same ``alert-id``.

Certificates and keys are read in the constructor; the client with its threads begins in :meth:`open`, when
the rights are gone. Sources: librdkafka's CONFIGURATION.md and INTRODUCTION.md ("Idempotent Producer"),
Kafka protocol error codes.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from kwsiem import __version__
from kwsiem.errors import ConfigError, OutputError
from kwsiem.output_settings import KafkaSettings
from kwsiem.outputs.base import BaseOutput, Rendered
from kwsiem.outputs.http import MISCONFIGURED_S
from kwsiem.outputs.push import Facts, content_type, facts
from kwsiem.tls import client_context

log = logging.getLogger("kwsiem.outputs")

#: A new producer asks for its id first, and for half a second in vain when the broker has just come up; an
#: alert is given at least this long, whatever the time-out of the settings.
_LEAST_S: Final = 2.0
#: librdkafka needs a little longer than a message's time-out to tell us of it.
_MARGIN_S: Final = 1.0
_MAX_PEM: Final = 1 << 20


class KafkaOutput(BaseOutput):
    """Produces to one topic."""

    batch_alerts = 500

    def __init__(self, settings: KafkaSettings, secrets: Mapping[str, str]) -> None:
        if not settings.brokers:
            raise ConfigError(f"output {settings.name!r}: brokers: expected at least one host:port")
        self._settings = settings
        self._config = _configuration(settings, secrets)
        self._key = _KEYS[settings.key]
        self._headers = [("content-type", content_type(settings).encode())]
        self._where = f"kafka {settings.brokers[0]}"
        self._producer: Any = None
        self._last_error: Any = None

    def open(self) -> None:
        """Connect, and ask for the topic."""
        self._last_error = None
        if self._producer is None:
            try:
                self._producer = Producer({**self._config, "error_cb": self._on_error}, logger=_quiet)
            except (KafkaException, ValueError) as error:
                raise OutputError(f"{self._where}: {error}", retry_after_s=MISCONFIGURED_S) from None
        try:
            found = self._producer.list_topics(self._settings.topic, timeout=self._settings.timeout_s)
        except KafkaException as error:
            self._producer.poll(0)
            raise self._failed(self._last_error or error.args[0]) from None
        topic_error = found.topics[self._settings.topic].error
        if topic_error is not None and not topic_error.retriable():
            raise self._failed(topic_error)

    def check(self) -> None:
        """Let librdkafka say what happened meanwhile; it reconnects by itself."""
        self._producer.poll(0)

    def send(self, batch: Sequence[Rendered]) -> None:
        """Produce the batch and wait for the delivery report of each alert.

        A broker that finds a request too large says so of all alerts in it: each of them is tried alone.
        """
        fates = self._produce_all(dict(enumerate(batch)))
        large = [index for index, error in fates.items() if error and error.code() in _TOO_LARGE]
        for index in large if len(batch) > 1 else ():
            fates.update(self._produce_all({index: batch[index]}))
        taken = [index for index, error in fates.items() if error is None]
        refused = {i: error.str() for i, error in fates.items() if error and error.code() in _REFUSED}
        others = [error for error in fates.values() if error and error.code() not in _REFUSED]
        self.answer = f"{len(taken)} of {len(batch)} records acknowledged"
        if others:
            raise self._failed(others[0], taken=taken, refused=refused)
        if refused:
            raise OutputError(next(iter(refused.values())), retryable=False, taken=taken, refused=refused)

    def close(self) -> None:
        """Let go of the client, and of what it may still hold."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()
            producer.flush(0)

    def _produce_all(self, alerts: Mapping[int, Rendered]) -> dict[int, Any]:
        """What became of each: an error, or None when it was acknowledged."""
        fates: dict[int, Any] = {index: KafkaError(KafkaError._TIMED_OUT) for index in alerts}
        for index, alert in alerts.items():
            try:
                self._produce(alert, lambda error, _, index=index: fates.__setitem__(index, error))
            except KafkaException as error:
                fates[index] = error.args[0]
            except BufferError:
                fates[index] = KafkaError(KafkaError._QUEUE_FULL)
            except ValueError as error:
                fates[index] = KafkaError(KafkaError.INVALID_RECORD, f"cannot be made into a record: {error}")
        self._producer.flush(_timeout_s(self._settings) + _MARGIN_S)
        return fates

    def _produce(self, alert: Rendered, on_delivery: Callable[..., Any]) -> None:
        self._producer.produce(
            self._settings.topic,
            alert.data.rstrip(b"\n"),
            key=self._key(facts(alert.source)).encode() or None,
            headers=[("alert-id", alert.id.encode()), *self._headers],
            on_delivery=on_delivery,
        )

    def _failed(
        self, error: Any, *, taken: Sequence[int] = (), refused: Mapping[int, str] | None = None
    ) -> OutputError:
        """A retryable error; a time-out is told by its cause when librdkafka named one."""
        if error.code() in _TIME_OUTS and self._last_error is not None:
            error = self._last_error
        return OutputError(
            f"{self._where}: {error.str()}",
            taken=taken,
            refused=refused,
            retry_after_s=MISCONFIGURED_S if error.code() in _MISCONFIGURED else None,
        )

    def _on_error(self, error: Any) -> None:
        """What went wrong with a connection; that all brokers are down says less than why one is."""
        if self._last_error is None or error.code() not in _VAGUE:
            self._last_error = error


#: librdkafka's own log lines go nowhere: what matters comes as an error, and they would fill the log.
_quiet: Final = logging.Logger("librdkafka", logging.CRITICAL)
_KEYS: Final[Mapping[str, Callable[[Facts], str]]] = {
    "host": lambda found: found.host.name,
    "source": lambda found: found.source.ip or found.host.name,
}
_TOO_LARGE: Final = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})
#: Nothing that a later try could mend.
_REFUSED: Final = _TOO_LARGE | {KafkaError.INVALID_RECORD, KafkaError.INVALID_TIMESTAMP}
_MISCONFIGURED: Final = frozenset(
    {KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError._SSL,
     KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED,
     KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError.TOPIC_EXCEPTION,
     KafkaError.UNSUPPORTED_SASL_MECHANISM, KafkaError.INVALID_CONFIG}
)  # fmt: skip
_TIME_OUTS: Final = frozenset({KafkaError._TIMED_OUT, KafkaError._MSG_TIMED_OUT, KafkaError._TRANSPORT})
_VAGUE: Final = frozenset({KafkaError._ALL_BROKERS_DOWN})


def _timeout_s(settings: KafkaSettings) -> float:
    return max(_LEAST_S, settings.timeout_s)


def _configuration(settings: KafkaSettings, secrets: Mapping[str, str]) -> dict[str, Any]:
    """The configuration for librdkafka; raises ConfigError."""
    timeout_ms = int(_timeout_s(settings) * 1000)
    config: dict[str, Any] = {
        "bootstrap.servers": ",".join(settings.brokers),
        "client.id": f"kwsiem/{__version__}",
        "acks": "all",
        "enable.idempotence": True,
        "compression.type": settings.compression,
        "delivery.timeout.ms": timeout_ms,
        "request.timeout.ms": timeout_ms,
        "socket.timeout.ms": timeout_ms,
        "socket.connection.setup.timeout.ms": timeout_ms,
        "socket.keepalive.enable": True,
        "linger.ms": 5,
        "security.protocol": settings.security.upper(),
    }
    if settings.security.startswith("sasl"):
        if not settings.user or "password" not in secrets:
            raise ConfigError(
                f"output {settings.name!r}: security {settings.security}: user and password_secret"
            )
        config["sasl.mechanism"] = settings.sasl_mechanism
        config["sasl.username"] = settings.user
        config["sasl.password"] = secrets["password"]
    if settings.security.endswith("ssl"):
        config.update(_tls(settings))
    return config


def _tls(settings: KafkaSettings) -> dict[str, Any]:
    if settings.fingerprint:
        raise ConfigError(f"output {settings.name!r}: fingerprint: not possible with kafka; use ca_file")
    client_context(settings)  # the same checks, and the same words, as for every other output
    config: dict[str, Any] = {
        "enable.ssl.certificate.verification": settings.verify,
        "ssl.endpoint.identification.algorithm": "https" if settings.verify else "none",
    }
    if settings.ca_file:
        config["ssl.ca.pem"] = _pem(settings.ca_file)
    else:
        # The library carries an OpenSSL of its own, which looks elsewhere.
        config["ssl.ca.location"] = ssl.get_default_verify_paths().cafile or "probe"
    if settings.cert_file:
        config["ssl.certificate.pem"] = _pem(settings.cert_file)
        config["ssl.key.pem"] = _pem(settings.key_file or settings.cert_file)
    return config


def _pem(path: str) -> str:
    """A file that :func:`client_context` has just read."""
    return Path(path).read_bytes()[:_MAX_PEM].decode("ascii", "replace")
