"""An SMTP server for tests (aiosmtpd): encrypted in each way, with passwords, and refusals to order."""

from __future__ import annotations

import email
import email.policy
import ssl
from email.message import EmailMessage
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from peers.daemon import free_port

USER, PASSWORD = "kwsiem", "test-password-of-mail"


class SmtpServer:
    """``mails`` are those taken, each with its recipients; replies are set by what they answer to.

    ``security`` is starttls, tls or none. ``login`` asks for USER and PASSWORD. ``recipient_replies`` maps
    an address, ``mail_reply`` and ``data_reply`` are for all mails; "" means yes.
    """

    def __init__(
        self, security: str = "none", context: ssl.SSLContext | None = None, *, login: bool = False
    ) -> None:
        self.mails: list[tuple[EmailMessage, list[str]]] = []
        self.senders: list[str] = []
        self.raw: list[bytes] = []
        self.sessions = 0
        self.recipient_replies: dict[str, str] = {}
        self.mail_reply = self.data_reply = ""
        options: dict[str, Any] = {}
        if security == "starttls":
            options = {"tls_context": context, "require_starttls": True}
        if login:
            options |= {"auth_required": True, "authenticator": _authenticate}
            if security == "tls":
                options["auth_require_tls"] = False  # aiosmtpd does not know that TLS is there already
        self.port = free_port()
        self._controller = Controller(
            self,
            hostname="127.0.0.1",
            port=self.port,
            ssl_context=context if security == "tls" else None,
            **options,
        )
        self._controller.start()

    def close(self) -> None:
        """Stop listening and end all connections."""
        self._controller.stop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    async def handle_EHLO(self, server, session, envelope, hostname, responses):
        self.sessions += 1
        session.host_name = hostname
        return responses

    async def handle_MAIL(self, server, session, envelope, address, options):
        if self.mail_reply:
            return self.mail_reply
        self.senders.append(address)
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(self, server, session, envelope, address, options):
        if self.recipient_replies.get(address):
            return self.recipient_replies[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        if self.data_reply:
            return self.data_reply
        self.raw.append(envelope.content)
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        self.mails.append((message, list(envelope.rcpt_tos)))
        return "250 taken"


def _authenticate(server, session, envelope, mechanism, data):
    good = isinstance(data, LoginPassword) and (data.login, data.password) == (
        USER.encode(),
        PASSWORD.encode(),
    )
    return AuthResult(success=good, handled=good)
