"""TLS to a receiver: one context for every output that speaks it (TLS 1.2 at least, RFC 9662 section 5)."""

from __future__ import annotations

import hashlib
import hmac
import logging
import ssl
from typing import Final, Protocol

from kwsiem.errors import ConfigError, OutputError

log = logging.getLogger("kwsiem.tls")

_SHA256_HEX: Final = 64


class TlsSettings(Protocol):
    """The keys of ``output_settings`` that say how to speak TLS."""

    @property
    def name(self) -> str:
        """The output's name."""

    @property
    def ca_file(self) -> str:
        """PEM file of authorities, empty for the host's own."""

    @property
    def cert_file(self) -> str:
        """PEM file of our certificate, empty for none."""

    @property
    def key_file(self) -> str:
        """PEM file of its key, empty when it stands in ``cert_file``."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the receiver's certificate."""

    @property
    def verify(self) -> bool:
        """Whether the receiver is verified at all."""


def client_context(settings: TlsSettings) -> ssl.SSLContext:
    """A context for connecting as the settings say; files are read now, while we may still be root.

    Raises ConfigError that names the output and the file that cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=settings.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"output {settings.name!r}: ca_file {settings.ca_file}: {_why(error)}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.cert_file:
        try:
            context.load_cert_chain(settings.cert_file, settings.key_file or None, password=_no_password)
        except (OSError, ssl.SSLError) as error:
            names = ", ".join(name for name in (settings.cert_file, settings.key_file) if name)
            raise ConfigError(f"output {settings.name!r}: cert_file {names}: {_why(error)}") from None
    if settings.fingerprint or not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if settings.fingerprint:
        pinned(settings)
    elif not settings.verify:
        log.warning("output %s: the receiver is NOT verified (verify: false)", settings.name)
    return context


def pinned(settings: TlsSettings) -> str:
    """The pinned fingerprint as 64 hex digits in lower case, empty for none; raises ConfigError."""
    digits = settings.fingerprint.lower().removeprefix("sha256:").replace(":", "")
    if digits and (len(digits) != _SHA256_HEX or not set(digits) <= set("0123456789abcdef")):
        raise ConfigError(
            f"output {settings.name!r}: fingerprint: expected SHA-256 as 64 hex digits,"
            f" got {settings.fingerprint!r}"
        )
    return digits


def check_pin(certificate: bytes | None, fingerprint: str) -> None:
    """Raise OutputError unless the certificate (DER) has this fingerprint (64 hex digits)."""
    found = hashlib.sha256(certificate or b"").hexdigest()
    if not hmac.compare_digest(found, fingerprint):
        raise OutputError(f"the receiver's certificate has fingerprint {found}, expected {fingerprint}")


def _no_password() -> str:
    """An encrypted key would make OpenSSL ask the terminal."""
    raise ssl.SSLError("the key is encrypted; use one without a pass phrase")


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", "") or getattr(error, "reason", "") or error)
