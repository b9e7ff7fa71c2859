"""Mail by SMTP (RFC 5321): encrypted as the settings say or not at all, one mail for each alert or digest."""

from __future__ import annotations

import contextlib
import email.policy
import email.utils
import logging
import re
import smtplib
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from email.message import EmailMessage
from typing import Final, cast

import msgspec

from kwsiem import secret
from kwsiem.clock import NS_PER_S, wall_ns
from kwsiem.errors import ConfigError, OutputError
from kwsiem.output_settings import EmailSettings
from kwsiem.outputs.base import BaseOutput, Notes, PassingNotes, Rendered
from kwsiem.text import clean
from kwsiem.tls import check_pin, client_context, pinned

log = logging.getLogger("kwsiem.outputs")

PORTS: Final = {"starttls": 587, "tls": 465, "none": 25}
MAX_RECIPIENTS: Final = 50
#: Mails that some recipients have and others are to be tried again: a summary and what waits beside it.
MAX_LEFT: Final = 100
#: What an operator must mend (password, sender, certificate) is tried again after this.
MISCONFIGURED_S: Final = 60.0
_ADDRESS: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,255}\Z", re.ASCII)
_MAX_WORDS: Final = 160
_ID: Final = re.compile(r"[^A-Za-z0-9._-]")
#: The mail is larger than the server takes (RFC 1870): that is about the mail, not about the sender.
_TOO_LARGE: Final = 552


class Mail(msgspec.Struct, frozen=True):
    """One mail as its format makes it; ``html`` says the same as ``text``, or nothing."""

    subject: str
    text: str
    headers: dict[str, str]
    html: str = ""


class _Fates(msgspec.Struct):
    """What a server said of each recipient of a mail."""

    taken: list[str] = []
    later: dict[str, str] = {}
    never: dict[str, str] = {}

    def add(self, recipient: str, code: int, words: str) -> None:
        """Sort one recipient in by the reply code."""
        if code in {250, 251}:
            self.taken.append(recipient)
        else:
            (self.never if code >= 500 else self.later)[recipient] = words

    @staticmethod
    def words(refused: dict[str, str]) -> str:
        """The first few in words."""
        return ", ".join(f"{recipient}: {words}" for recipient, words in list(refused.items())[:3])


class MailOutput(BaseOutput):
    """Sends to all recipients over one server; ``Rendered.data`` is a :class:`Mail` as JSON.

    ``password`` empty means no login. ``refused_recipients`` counts recipients that a server refused for
    good while it took the mail for others. To be made as root: certificates are read and all that is needed
    is imported. Raises ConfigError.
    """

    batch_alerts = 20

    def __init__(self, settings: EmailSettings, password: str = "", notes: Notes | None = None) -> None:
        self._settings = settings
        secret.learn(password)
        _check(settings, password)
        self._password = password
        self._port = settings.port or PORTS[settings.security]
        self._where = f"{settings.host}:{self._port}"
        self._context = None if settings.security == "none" else client_context(settings)
        self._fingerprint = pinned(settings)
        self._domain = settings.sender.rpartition("@")[2]
        self._notes = notes or PassingNotes()
        self._is_known = False
        # By id: recipients that are to be tried again, and whether others have it already.
        self._left: dict[str, tuple[tuple[str, ...], bool]] = {}
        self.refused_recipients = 0
        # loads codecs that are imported late
        self._message("test", Mail("ü", "ü\n", {}, "<p>ü</p>"), ()).as_bytes()

    def open(self) -> None:
        """Log in once, so that a wrong password shows before the first alert."""
        if not self._is_known:
            with self._session():
                self._is_known = True

    def check(self) -> None:
        """Nothing: no connection is kept, mail servers close idle ones."""

    def send(self, batch: Sequence[Rendered]) -> None:
        """Send one mail after the other over one connection; each has the time-out for itself."""
        sent = 0
        try:
            with self._session() as session:
                for alert in batch:
                    session.begin()
                    self._mail(session, alert)
                    sent += 1
        except OutputError as error:
            raise OutputError(
                str(error), retryable=error.retryable, sent=sent, retry_after_s=error.retry_after_s
            ) from None

    def close(self) -> None:
        """Nothing is open."""

    def _mail(self, session: _Session, alert: Rendered) -> None:
        """One mail to all that have not got it yet."""
        mail = msgspec.json.decode(alert.data, type=Mail)
        incident = mail.headers.get("X-Kwsiem-Incident", "")
        message_id = f"<{_id(mail.headers.get('X-Kwsiem-Alert', '') or alert.id)}@{self._domain}>"
        root = self._notes.get(incident) if incident else None
        thread = (root,) if root and root != message_id else ()
        message = self._message(message_id, mail, thread)
        recipients, was_taken = self._left.get(alert.id, (self._settings.to, False))
        fates = session.deliver(self._settings.sender, recipients, message.as_bytes())
        if fates.taken and incident and not root:
            self._notes.set(incident, message_id)
        self._note_refusals(fates)
        self._left.pop(alert.id, None)
        was_taken = was_taken or bool(fates.taken)
        if fates.later:
            self._left[alert.id] = tuple(fates.later), was_taken
            if len(self._left) > MAX_LEFT:
                del self._left[next(iter(self._left))]
            raise OutputError(f"{self._where}: {fates.words(fates.later)}")
        if not was_taken:
            raise OutputError(f"{self._where}: {fates.words(fates.never)}", retryable=False)
        self.answer = f"accepted {message_id}"

    def _note_refusals(self, fates: _Fates) -> None:
        for recipient, words in fates.never.items():
            self.refused_recipients += 1
            log.warning("output %s: recipient %s refused: %s", self._settings.name, recipient, words)

    def _message(self, message_id: str, mail: Mail, thread: Sequence[str]) -> EmailMessage:
        """The mail; EmailMessage itself refuses line ends in a header."""
        message = EmailMessage(policy=email.policy.SMTP)
        message["Date"] = email.utils.formatdate(wall_ns() / NS_PER_S)
        message["From"] = self._settings.sender
        message["To"] = ", ".join(self._settings.to)
        message["Subject"] = clean(mail.subject, len(mail.subject) + 1)
        message["Message-ID"] = message_id
        if thread:
            message["In-Reply-To"] = thread[-1]
            message["References"] = " ".join(thread)
        for name, value in mail.headers.items():
            message[name] = clean(value, _MAX_WORDS)
        message.set_content(mail.text, cte="quoted-printable")
        if mail.html:
            message.add_alternative(mail.html, subtype="html", cte="quoted-printable")
        return message

    @contextlib.contextmanager
    def _session(self) -> Iterator[_Session]:
        """A connection, encrypted and logged in; whatever happens on it becomes an OutputError."""
        session = _Session(self._settings, self._port)
        try:
            session.connect(self._context, self._fingerprint, self._password)
            yield session
            session.quit()
        except OutputError:
            raise
        except ssl.SSLCertVerificationError as error:
            words = f"certificate verify failed: {clean(error.verify_message, _MAX_WORDS)}"
            raise self._misconfigured(words) from None
        except smtplib.SMTPNotSupportedError:
            raise self._misconfigured("the server does not offer what the settings ask for") from None
        except smtplib.SMTPAuthenticationError as error:
            words = _reply(error.smtp_code, error.smtp_error)
            # 4xx: the server cannot look the password up now (RFC 4954 section 6)
            raise (
                OutputError(f"{self._where}: {words}")
                if error.smtp_code < 500
                else self._misconfigured(f"login refused: {words}")
            ) from None
        except smtplib.SMTPResponseException as error:
            raise OutputError(f"{self._where}: {_reply(error.smtp_code, error.smtp_error)}") from None
        except (OSError, smtplib.SMTPException, EOFError) as error:
            words = "timed out" if session.is_over else _words(error)
            raise OutputError(f"{self._where}: {words}") from None
        finally:
            session.close()

    def _misconfigured(self, words: str) -> OutputError:
        return OutputError(f"{self._where}: {words}", retry_after_s=MISCONFIGURED_S)


class _Session:
    """One SMTP connection whose every step ends within the time-out, however slowly the server drips."""

    def __init__(self, settings: EmailSettings, port: int) -> None:
        self._settings = settings
        self._address = (settings.host, port)
        self._where = f"{settings.host}:{port}"
        self._smtp: smtplib.SMTP | None = None
        self._sock: socket.socket | None = None
        self._line: socket.socket | None = None
        self._timer: threading.Timer | None = None
        self.is_over = False

    def begin(self) -> None:
        """The time-out begins anew."""
        if self._timer:
            self._timer.cancel()
        self._timer = threading.Timer(self._settings.timeout_s, self._cut)
        self._timer.daemon = True
        self._timer.start()

    def connect(self, context: ssl.SSLContext | None, fingerprint: str, password: str) -> None:
        """Connect, encrypt and log in as the settings say; raises what smtplib raises."""
        self.begin()
        sock = self._sock = socket.create_connection(self._address, self._settings.timeout_s)
        self._line = sock.dup()  # the same connection, also when TLS has taken the socket over
        if context and self._settings.security == "tls":
            sock = self._sock = context.wrap_socket(sock, server_hostname=self._settings.host)
            self._check_pin(sock, fingerprint)
        name = socket.gethostname()
        smtp = self._smtp = _Smtp(sock, self._address, name if "." in name else "[127.0.0.1]")
        smtp.ehlo_or_helo_if_needed()
        if context and self._settings.security == "starttls":
            code, said = smtp.starttls(context=context)  # raises where the server does not offer it
            if code != 220:
                raise smtplib.SMTPResponseException(code, said)
            self._check_pin(cast(ssl.SSLSocket, smtp.sock), fingerprint)
            smtp.ehlo_or_helo_if_needed()  # what was said in clear counts no more
        if self._settings.user:
            smtp.login(self._settings.user, password)

    def deliver(self, sender: str, recipients: Sequence[str], message: bytes) -> _Fates:
        """Send to those recipients that the server takes, and say what it said of the others.

        Raises OutputError when the server does not take the mail, not retryable when it never will.
        """
        assert self._smtp
        size = [f"size={len(message)}"] if self._smtp.has_extn("size") else []
        code, said = self._smtp.mail(sender, size)
        if code != 250:
            is_final = code == _TOO_LARGE
            pause_s = MISCONFIGURED_S if code >= 500 and not is_final else None
            words = f"{self._where}: sender: {_reply(code, said)}"
            raise OutputError(words, retryable=not is_final, retry_after_s=pause_s)
        fates = _Fates()
        for recipient in recipients:
            code, said = self._smtp.rcpt(recipient)
            fates.add(recipient, code, _reply(code, said))
        if not fates.taken:
            self._smtp.rset()
            return fates
        try:
            code, said = self._smtp.data(message)
        except smtplib.SMTPDataError as error:
            code, said = error.smtp_code, _bytes(error.smtp_error)
        if code != 250:
            raise OutputError(f"{self._where}: {_reply(code, said)}", retryable=code < 500)
        return fates

    def quit(self) -> None:
        """Say goodbye; what was taken stays taken, whatever the answer is."""
        if self._smtp:
            with contextlib.suppress(OSError, smtplib.SMTPException):
                self._smtp.quit()

    def close(self) -> None:
        """Close the connection."""
        if self._timer:
            self._timer.cancel()
            self._timer.join()
        for open_end in (self._smtp, self._sock, self._line):
            if open_end:
                open_end.close()

    def _cut(self) -> None:
        self.is_over = True
        if self._line:
            with contextlib.suppress(OSError):
                self._line.shutdown(socket.SHUT_RDWR)

    def _check_pin(self, sock: ssl.SSLSocket, fingerprint: str) -> None:
        if fingerprint:
            check_pin(sock.getpeercert(binary_form=True), fingerprint)


class _Smtp(smtplib.SMTP):
    """smtplib's protocol over a connection that stands already."""

    def __init__(self, sock: socket.socket, address: tuple[str, int], own_name: str) -> None:
        self._given = sock
        super().__init__(*address, local_hostname=own_name)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:  # noqa: ARG002
        return self._given


def _check(settings: EmailSettings, password: str) -> None:
    """Raise ConfigError for what cannot work."""
    name = f"output {settings.name!r}"
    if not settings.host:
        raise ConfigError(f"{name}: host: expected the name of a mail server")
    if not _ADDRESS.match(settings.sender):
        raise ConfigError(f"{name}: sender: expected an address, got {settings.sender!r}")
    wrong = next((address for address in settings.to if not _ADDRESS.match(address)), None)
    if wrong is not None or not 1 <= len(settings.to) <= MAX_RECIPIENTS:
        raise ConfigError(
            f"{name}: to: expected 1 to {MAX_RECIPIENTS} addresses, got {wrong or settings.to!r}"
        )
    if settings.user and settings.security == "none":
        raise ConfigError(f"{name}: security: a password goes over starttls or tls only")
    if bool(settings.user) != bool(password):
        raise ConfigError(f"{name}: user and password_secret belong together")


def _reply(code: int, said: bytes | str) -> str:
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    return clean(secret.mask(f"{code} {text}"), _MAX_WORDS)


def _bytes(said: bytes | str) -> bytes:
    return said if isinstance(said, bytes) else said.encode("utf-8", "replace")


def _id(text: str) -> str:
    return _ID.sub("", text)[:64]


def _words(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(error.reason or 'connection closed').replace('_', ' ').lower()}"
    if isinstance(error, socket.gaierror):
        return "name not known" if error.errno != socket.EAI_AGAIN else "name look-up failed"
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, OSError) and error.errno and not isinstance(error, smtplib.SMTPException):
        return clean(error.strerror or "", _MAX_WORDS).lower()
    return "the server closed the connection"
