"""One HTTP client for every output that posts: bounded in time and size, and it never tells a secret.

``requests`` alone is not enough: its read time-out begins anew with each byte, so that a server that drips
holds a thread for ever; its exceptions contain URLs; it follows redirects, reads the environment's proxies
and unpacks answers of any size. Here every request has one deadline from connecting to the last byte of the
answer (RFC 9110 has no such thing), an answer has a bound, and an error has a few words of our own.

A name is looked up by the C library, which has its own time limits (resolv.conf(5)): the one part of a
request that a deadline cannot interrupt.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import gzip
import http.client
import http.cookiejar
import io
import logging
import math
import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from datetime import timezone
from typing import Any, Final, Protocol, cast
from urllib.parse import SplitResult, urlsplit

import idna
import msgspec
import requests
import requests.adapters
import urllib3.connection
import urllib3.connectionpool
import urllib3.exceptions

from kwsiem import __version__, secret
from kwsiem.clock import NS_PER_S, monotonic_s, wall_ns
from kwsiem.errors import ConfigError, OutputError
from kwsiem.text import clean
from kwsiem.tls import TlsSettings, check_pin, client_context, pinned

#: A connection stands within this, or within the output's time-out when that is shorter.
CONNECT_S: Final = 5.0
#: The most that is read of an answer; the largest that we need is that of _bulk, 200 bytes for an item.
MAX_ANSWER_BYTES: Final = 1 << 20
#: What an operator must mend is tried again after this: nothing is lost meanwhile, and it may be mended.
MISCONFIGURED_S: Final = 60.0
#: Below this a compressed body saves nothing.
_COMPRESS_BYTES: Final = 1024
_COMPRESS_LEVEL: Final = 3
_MAX_TEXT: Final = 200
_MAX_COOKIES: Final = 20
#: A TLS record; each write to the socket is at most this, and is held to the deadline.
_WRITE_BYTES: Final = 16 * 1024

# Requests' log has URLs in it, in warnings too.
logging.getLogger("urllib3").setLevel(logging.ERROR)
# idna loads its tables when the first name that is not ASCII comes, and then our rights are gone.
idna.encode("bücher.example", uts46=True)


class HttpSettings(TlsSettings, Protocol):
    """The keys of ``output_settings`` that say how to reach an HTTP server."""

    @property
    def url(self) -> str:
        """Where to."""

    @property
    def proxy(self) -> str:
        """The URL of a proxy, empty for none."""

    @property
    def timeout_s(self) -> float:
        """For one request, from connecting to the end of its answer."""


class Answer(msgspec.Struct, frozen=True):
    """What a server answered; ``body`` has at most MAX_ANSWER_BYTES.

    ``retry_after_s`` is what its Retry-After asks for in seconds from now, None without one.
    """

    status: int
    body: bytes
    headers: Mapping[str, str]
    retry_after_s: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        """The beginning of the body as one clean line without our secrets, for people."""
        return clean(secret.mask(self.body[: 4 * _MAX_TEXT].decode("utf-8", "replace")), _MAX_TEXT).strip()

    def json(self) -> Any:
        """The body as JSON, None when it is none."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


class HttpClient:
    """Posts to one server over connections that are kept; for one thread.

    ``url`` takes the place of the settings' where it is a secret. With ``cookies`` the server's are sent
    back (load balancers keep a client at one node with them), otherwise they are dropped. To be made as
    root: certificates are read here, and all that is imported late is imported. Raises ConfigError.
    """

    def __init__(self, settings: HttpSettings, *, url: str = "", cookies: bool = False) -> None:
        self._name = settings.name
        self._timeout_s = settings.timeout_s
        self._base = _checked_url(settings.name, "url", url or settings.url, ("http", "https"))
        self.where = _where(self._base)
        self.is_https = self._base.scheme == "https"
        self._deadline = _Deadline()
        self._gzip = True
        self._session = _Session()
        self._session.trust_env = False
        self._session.headers.clear()
        self._session.headers.update(
            {"User-Agent": f"kwsiem/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}
        )
        if not cookies:
            self._session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        if settings.proxy:
            _checked_url(settings.name, "proxy", settings.proxy, ("http",), user_allowed=True)
            self._session.proxies = {"http": settings.proxy, "https": settings.proxy}
        adapter = _Adapter(self._deadline, client_context(settings), pinned(settings))
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)

    def post(
        self,
        path_or_url: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        compress: bool = False,
    ) -> Answer:
        """POST ``body`` and give the answer, whatever its status; a redirect is an answer too.

        ``path_or_url`` is put behind the URL of the settings, or used as it is when it is a URL itself.
        ``compress``: gzip, until the server says that it does not take it (415). Raises OutputError,
        always retryable, when there is no answer within the time-out.
        """
        if compress and self._gzip and len(body) >= _COMPRESS_BYTES:
            packed = gzip.compress(body, _COMPRESS_LEVEL, mtime=0)
            answer = self._request(
                "POST", path_or_url, packed, {**(headers or {}), "Content-Encoding": "gzip"}
            )
            if answer.status != http.client.UNSUPPORTED_MEDIA_TYPE:
                return answer
            self._gzip = False
        return self._request("POST", path_or_url, body, headers or {})

    def get(self, path_or_url: str, headers: Mapping[str, str] | None = None) -> Answer:
        """GET, else like :meth:`post`."""
        return self._request("GET", path_or_url, b"", headers or {})

    def error(
        self,
        answer: Answer,
        words: str = "",
        *,
        misconfigured: bool = False,
        refused: Mapping[int, str] | None = None,
        taken: tuple[int, ...] = (),
    ) -> OutputError:
        """A retryable error for an answer, with the server's pause; its text has server, status and words.

        ``misconfigured`` says that an operator must mend it: the next try is MISCONFIGURED_S away.
        """
        least_s = MISCONFIGURED_S if misconfigured else None
        pauses = [pause for pause in (answer.retry_after_s, least_s) if pause is not None]
        return OutputError(
            f"{self.where}: {describe(answer, words)}",
            refused=refused,
            taken=taken,
            retry_after_s=max(pauses, default=None),
        )

    def close(self) -> None:
        """Close the connections; the next request opens a new one."""
        self._session.close()

    def _request(self, method: str, path_or_url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        self._deadline.start(self._timeout_s)
        if len(self._session.cookies) > _MAX_COOKIES:
            self._session.cookies.clear()
        try:
            with contextlib.closing(
                self._session.request(
                    method,
                    self._url(path_or_url),
                    data=body,
                    headers=dict(headers),
                    stream=True,
                    allow_redirects=False,
                    timeout=self._timeout_s,
                )
            ) as response:
                found = response.raw.read(MAX_ANSWER_BYTES, decode_content=False)
                if len(found) < MAX_ANSWER_BYTES and response.raw.length_remaining:
                    raise http.client.IncompleteRead(found)
                return Answer(
                    response.status_code,
                    found,
                    response.headers,
                    retry_after_s(response.headers.get("Retry-After", "")),
                )
        except OutputError as error:
            raise OutputError(f"{self.where}: {error}") from None
        except (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            http.client.HTTPException,
            OSError,
            UnicodeError,
        ) as error:
            raise OutputError(f"{self.where}: {self._words(error)}") from None

    def _url(self, path_or_url: str) -> str:
        if path_or_url.startswith(("http://", "https://")):
            return path_or_url
        if not path_or_url:
            return self._base.geturl()
        return self._base._replace(path=self._base.path.rstrip("/") + path_or_url).geturl()

    def _words(self, error: BaseException) -> str:
        chain = list(_chain(error))
        words = next((found for cause in reversed(chain) if (found := self._cause(cause))), "")
        proxy = "proxy: " if any(isinstance(cause, urllib3.exceptions.ProxyError) for cause in chain) else ""
        return proxy + (words or "no valid HTTP answer")

    def _cause(self, error: BaseException) -> str:
        """Short words for one exception; empty when it says nothing that can be shown as it is."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"certificate verify failed: {clean(error.verify_message, _MAX_TEXT)}"
        if isinstance(error, ssl.SSLError):
            return f"TLS failed: {(error.reason or 'connection closed').replace('_', ' ').lower()}"
        if isinstance(error, socket.gaierror):
            return "name look-up failed" if error.errno == socket.EAI_AGAIN else "name not known"
        if isinstance(error, (TimeoutError, urllib3.exceptions.TimeoutError)):
            return f"timed out after {self._timeout_s:g} s"
        if isinstance(error, http.client.RemoteDisconnected):
            return "the server closed the connection without an answer"
        if isinstance(error, (http.client.IncompleteRead, urllib3.exceptions.IncompleteRead)):
            return "the answer was cut off"
        if isinstance(
            error, (requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL, UnicodeError)
        ):
            return "the request cannot be made: header or URL not valid"
        if isinstance(error, OSError) and error.errno and not isinstance(error, requests.RequestException):
            return os.strerror(error.errno).lower()
        return ""


def describe(answer: Answer, words: str = "") -> str:
    """An answer in words: ``HTTP 403 (token disabled)``; without ``words`` the beginning of its body."""
    said = words or answer.text
    return f"HTTP {answer.status} ({said})" if said else f"HTTP {answer.status}"


def retry_after_s(value: str) -> float | None:
    """Seconds from now for a Retry-After header: a number, or a date (RFC 9110 section 10.2.3).

    None when it is neither. Months and days are read in English whatever the locale is.
    """
    text = value.strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text, re.ASCII):
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0.0, moment.timestamp() - wall_ns() / NS_PER_S)


def basic(name: str, user: str, secrets: Mapping[str, str]) -> str:
    """The Authorization header of a user with a password; raises ConfigError without one."""
    if "password" not in secrets:
        raise ConfigError(f"output {name!r}: user without password_secret")
    return "Basic " + base64.b64encode(f"{user}:{secrets['password']}".encode()).decode()


def _checked_url(
    name: str, key: str, url: str, schemes: tuple[str, ...], *, user_allowed: bool = False
) -> SplitResult:
    """The URL in its parts; raises ConfigError, which does not show it: it may be a secret."""
    where = f"output {name!r}: {key}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError(f"{where}: not a valid URL") from None
    if parts.scheme not in schemes or not parts.hostname or port == 0:
        wanted = " or ".join(f"{scheme}://host" for scheme in schemes)
        raise ConfigError(f"{where}: expected {wanted}, with a port or without")
    if parts.password:
        secret.learn(parts.password)
    if not user_allowed and (parts.username or parts.password):
        raise ConfigError(f"{where}: no user and password in it; there are keys of their own for them")
    return parts._replace(fragment="")


def _where(parts: SplitResult) -> str:
    """Scheme, host and port: all of a URL that may be shown."""
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and all that it was made of, outermost first; requests wraps in arguments as well."""
    waiting, seen = [error], set[int]()
    while waiting and len(seen) < 32:
        found = waiting.pop(0)
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        inner = (found.__cause__, found.__context__, getattr(found, "reason", None), *found.args)
        waiting += [cause for cause in inner if isinstance(cause, BaseException)]


class _Deadline:
    """The end of the request that is under way."""

    def __init__(self) -> None:
        self._end_s = math.inf

    def start(self, timeout_s: float) -> None:
        self._end_s = monotonic_s() + timeout_s

    def left_s(self, most_s: float = math.inf) -> float:
        """Seconds until it, at most ``most_s``; raises TimeoutError when it has passed."""
        left_s = self._end_s - monotonic_s()
        if left_s <= 0:
            raise TimeoutError
        return min(left_s, most_s)


class _TimedReader(io.RawIOBase):
    """The bytes of a socket, each read held to the deadline."""

    def __init__(self, sock: socket.socket, deadline: _Deadline) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._deadline.left_s())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _Lines(io.BufferedReader):
    """Knows of a head that ends too early; http.client takes it for a whole one."""

    cut = False

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        self.cut = self.cut or not line.endswith(b"\n")
        return line


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: even without following, requests would read a redirect's body without bound."""


class _Adapter(requests.adapters.HTTPAdapter):
    """Connections with our TLS context and deadline; requests' own idea of certificates is left out."""

    def __init__(self, deadline: _Deadline, context: ssl.SSLContext, fingerprint: str) -> None:
        self._context = context
        self._pools = _pool_classes(deadline, fingerprint)
        super().__init__(pool_connections=2, pool_maxsize=1, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, ssl_context=self._context, **kwargs)
        manager.pool_classes_by_scheme = self._pools
        return manager

    def cert_verify(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the context has it all."""

    def build_connection_pool_key_attributes(
        self,
        request: requests.PreparedRequest,
        verify: Any,  # noqa: ARG002 - the context has it
        cert: Any = None,  # noqa: ARG002
    ) -> Any:
        parts = urlsplit(request.url or "")
        return {"scheme": parts.scheme, "host": parts.hostname, "port": parts.port}, {}


def _pool_classes(deadline: _Deadline, fingerprint: str) -> dict[str, Any]:
    """urllib3's pools whose connections keep to the deadline and check the pin."""

    class Reply(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
            super().__init__(sock, *args, **kwargs)
            self.fp.close()
            self.fp = self._lines = _Lines(_TimedReader(sock, deadline))

        def begin(self) -> None:
            super().begin()
            if self._lines.cut:
                raise http.client.IncompleteRead(b"")

    class Timed:
        response_class = Reply

        def _new_conn(self: Any) -> socket.socket:
            return _connected(self._dns_host, self.port, deadline)

        def send(self: Any, data: Any) -> None:
            if self.sock is None:
                self.connect()
            for start in range(0, len(data), _WRITE_BYTES):
                self.sock.settimeout(deadline.left_s())
                self.sock.sendall(data[start : start + _WRITE_BYTES])

    class Connection(Timed, urllib3.connection.HTTPConnection):  # type: ignore[misc]
        pass

    class TlsConnection(Timed, urllib3.connection.HTTPSConnection):  # type: ignore[misc]
        def connect(self) -> None:
            super().connect()
            if fingerprint:
                check_pin(cast(ssl.SSLSocket, self.sock).getpeercert(binary_form=True), fingerprint)

    class Pool(urllib3.connectionpool.HTTPConnectionPool):
        ConnectionCls = Connection

    class TlsPool(urllib3.connectionpool.HTTPSConnectionPool):
        ConnectionCls = TlsConnection

        def _validate_conn(self, conn: Any) -> None:
            """Connect; that a receiver is not verified was said when the context was made."""
            if conn.sock is None:
                conn.connect()

    return {"http": Pool, "https": TlsPool}


def _connected(host: str, port: int, deadline: _Deadline) -> socket.socket:
    """A connection to the first address that takes one; all tries together end with the deadline."""
    last: OSError = OSError("no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(deadline.left_s(CONNECT_S))
            sock.connect(address)
        except OSError as error:
            sock.close()
            last = error
        else:
            return sock
    raise last
