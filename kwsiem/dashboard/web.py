"""The pages: a login, one page, and the few addresses that it asks.

Everything but the login and its style needs a session. Every answer carries the same strict headers, every
request is judged by its Host, every change by where it comes from and by the session's own token.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from functools import partial
from importlib import resources
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs

from anyio import to_thread
from jinja2 import DictLoader, Environment
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kwsiem import clock
from kwsiem.dashboard import picture
from kwsiem.dashboard.desk import Parent
from kwsiem.dashboard.picture import Pictures
from kwsiem.dashboard.sessions import SESSION_S, Door, Session, Sessions
from kwsiem.errors import UnavailableError
from kwsiem.event import EventKind
from kwsiem.text import harmless

#: A wrong token is answered so late, and so many may wait for that.
WRONG_S: Final = 1.0
MAX_WAITING: Final = 16
MAX_BODY_BYTES: Final = 4096
#: A body comes, and an answer goes, within this; a browser on a phone needs less.
BODY_S: Final = 10.0
SEND_S: Final = 30.0
#: Pages that are kept up to date at once, and how long one connection does it: the browser comes again.
MAX_STREAMS: Final = 16
STREAM_S: Final = 600.0
#: How often a page is told of new alerts, and of everything else.
ALERTS_S: Final = 0.5
STATE_S: Final = 2.0
#: A name that begins with __Host- is taken over TLS alone, for this host alone (RFC 6265bis 4.1.3.2).
COOKIE: Final = "kwsiem_session"
TLS_COOKIE: Final = f"__Host-{COOKIE}"
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
        " form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_TYPES: Final = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_FOLDER: Final = resources.files("kwsiem.dashboard")

T = TypeVar("T")
log = logging.getLogger("kwsiem.dashboard")


class Address:
    """Where the dashboard is reached, by which a request's Host and Origin are judged.

    Loopback has its own names. Elsewhere any address will do, for only a name can be made to point at us by
    somebody else (DNS rebinding), and the names that were given.
    """

    def __init__(self, host: str, port: int, *, is_tls: bool = False, names: Collection[str] = ()) -> None:
        self.is_tls = is_tls
        self._port = port
        self._is_loopback = ipaddress.ip_address(host).is_loopback
        self._names = {name.lower() for name in names} | ({"localhost"} if self._is_loopback else set())

    def is_ours(self, host: str) -> bool:
        """Whether a Host header names us."""
        name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
        if not colon:
            name, port = host, "443" if self.is_tls else "80"
        if port != str(self._port):
            return False
        if name.lower() in self._names:
            return True
        try:
            address = ipaddress.ip_address(name[1:-1] if name.startswith("[") else name)
        except ValueError:
            return False
        return address.is_loopback or not self._is_loopback

    def may_change(self, headers: Headers) -> bool:
        """Whether a change comes from our own page.

        Browsers say it in Sec-Fetch-Site; older ones in Origin alone, which is ``null`` for a form of a page
        that sends no referrer.
        """
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        own = f"{'https' if self.is_tls else 'http'}://{headers.get('host', '')}"
        if origin not in (None, "null", own):
            return False
        return site == "same-origin" if site is not None else origin == own


class Shield:
    """Around all: the Host must be ours, each answer has the headers, and is taken in time."""

    def __init__(self, app: ASGIApp, address: Address) -> None:
        self._app = app
        self._address = address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""

        async def shielded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if self._address.is_tls:
                    headers["Strict-Transport-Security"] = "max-age=31536000"
            await asyncio.wait_for(send(message), SEND_S)

        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._address.is_ours(hosts[0]):
            answer: ASGIApp = PlainTextResponse("This is not the name of this dashboard.\n", 421)
        elif scope["method"] == "POST" and not self._address.may_change(headers):
            answer = PlainTextResponse("A change must come from the dashboard's own page.\n", 403)
        else:
            answer = self._app
        await answer(scope, receive, shielded)


class Cached:
    """The latest of something that is often wanted: asked anew after ``age_s``, by one thread at a time."""

    def __init__(self, make: Callable[[], Any], age_s: float) -> None:
        self._make, self._age_s = make, age_s
        self._lock = threading.Lock()
        self._made_s = float("-inf")
        self._value: Any = None
        self._error = ""

    def get(self) -> Any:
        """The value; raises UnavailableError as its maker did."""
        with self._lock:
            now_s = clock.monotonic_s()
            if now_s - self._made_s >= self._age_s:
                self._error = ""
                try:
                    self._value = self._make()
                except UnavailableError as error:
                    self._error = str(error)
                self._made_s = clock.monotonic_s()
            if self._error:
                raise UnavailableError(self._error)
            return self._value

    def forget(self) -> None:
        """Ask anew the next time."""
        self._made_s = float("-inf")


class Dashboard:
    """The application and what its pages share."""

    def __init__(
        self,
        address: Address,
        door: Door,
        parent: Parent,
        pictures: Pictures,
        kinds: Mapping[str, EventKind],
    ) -> None:
        self._cookie = TLS_COOKIE if address.is_tls else COOKIE
        self._address, self._door, self._parent, self._pictures = address, door, parent, pictures
        self.sessions = Sessions()
        self._streams = 0
        self._waiting = 0
        self._status = Cached(lambda: picture.health(parent.look("status")), 1.0)
        self._blocks = Cached(lambda: picture.blocks(parent.look("blocks")), 1.0)
        self._lines = {span: Cached(partial(self._time_line, span), 10.0) for span in picture.SPANS}
        self._acknowledged = Cached(self._seen, 1.0)
        self._coverage = Cached(lambda: picture.coverage(parent.look("rules"), kinds), 60.0)
        pages = {name: (_FOLDER / "pages" / name).read_text("utf-8") for name in ("login.html", "page.html")}
        environment = Environment(loader=DictLoader(pages), autoescape=True)
        self._pages = {name: environment.get_template(name) for name in pages}
        self._static = {
            name: ((_FOLDER / "static" / name).read_bytes(), _TYPES[name.rpartition(".")[2]])
            for name in ("style.css", "page.js", "charts.js", "icon.svg")
        }
        routes = [
            Route("/", self.page),
            Route("/login", self.login, methods=["GET", "POST"]),
            Route("/logout", self.logout, methods=["POST"]),
            Route("/static/{name}", self.static),
            Route("/api/timeline", self.time_line),
            Route("/api/attack", self.attack),
            Route("/api/alerts/{id}", self.details),
            Route("/api/stream", self.stream),
            Route("/api/release", self.release, methods=["POST"]),
            Route("/api/acknowledge", self.acknowledge, methods=["POST"]),
        ]
        handlers: Any = {sqlite3.Error: _no_history, UnavailableError: _unavailable}
        self.app = Shield(Starlette(routes=routes, exception_handlers=handlers), address)

    # -- who asks ------------------------------------------------------------------------------------

    def _session(self, request: Request) -> Session | None:
        value = request.cookies.get(self._cookie, "")
        return self.sessions.find(value, clock.monotonic_s()) if value else None

    async def login(self, request: Request) -> Response:
        """The form, and what comes of it."""
        if request.method != "POST":
            return self._form("")
        peer = request.client.host if request.client else "?"
        token = parse_qs(await _body(request), max_num_fields=4).get("token", [""])[0].strip()
        if not self._door.opens(token):
            if self._waiting >= MAX_WAITING:
                return self._form("Too many wrong tokens. Wait a little.", 429)
            if self._door.is_news(clock.monotonic_s()):
                log.warning("login refused", extra={"peer": peer, "failures": self._door.failures})
            self._waiting += 1
            try:
                await asyncio.sleep(WRONG_S)
            finally:
                self._waiting -= 1
            return self._form("That token is wrong.", 403)
        value, session = self.sessions.open(peer, clock.monotonic_s())
        log.info("login", extra={"session": session.name})
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            self._cookie,
            value,
            SESSION_S,
            httponly=True,
            samesite="strict",
            secure=self._address.is_tls,
            path="/",
        )
        return answer

    def _form(self, error: str, code: int = 200) -> Response:
        return Response(self._pages["login.html"].render(error=error), code, media_type="text/html")

    async def logout(self, request: Request) -> Response:
        """End the session."""
        session = self._session(request)
        if session is None:
            return RedirectResponse("/login", 303)
        if parse_qs(await _body(request), max_num_fields=4).get("csrf", [""])[0] != session.csrf:
            return _error("The page is too old: load it again.", 403)
        self.sessions.close(request.cookies[self._cookie])
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(
            self._cookie, path="/", httponly=True, samesite="strict", secure=self._address.is_tls
        )
        return answer

    async def static(self, request: Request) -> Response:
        """Style and scripts; the style and the icon are the login's too."""
        name = request.path_params["name"]
        if name not in self._static:
            return _error("There is no such page.", 404)
        if not name.endswith((".css", ".svg")) and self._session(request) is None:
            return _error("Log in first.", 401)
        data, kind = self._static[name]
        return Response(data, media_type=kind)

    # -- what is shown -------------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        """The page with all that it shows at first."""
        session = self._session(request)
        if session is None:
            return RedirectResponse("/login", 303)
        view = await _in_thread(self._first_view)
        text = self._pages["page.html"].render(csrf=session.csrf, host=view["host"], view=_in_script(view))
        return Response(text, media_type="text/html")

    def _first_view(self) -> dict[str, Any]:
        view: dict[str, Any] = {"alerts": [], "seq": 0, "acknowledged": {}, "error": "", "host": ""}
        try:
            rows, view["seq"] = self._pictures.newest()
            view["alerts"] = rows
            view["acknowledged"] = self._pictures.acknowledged([row["incident"] for row in rows])
            view["timeline"] = self._lines["24h"].get()
        except sqlite3.Error as error:
            view["error"] = picture.unreadable(error)
        state = self._state()
        return {**view, **state, "host": state["status"].get("host", "") if state["status"] else ""}

    def _state(self) -> dict[str, Any]:
        try:
            return {"status": self._status.get(), "blocks": self._blocks.get(), "sensor_error": ""}
        except UnavailableError as error:
            return {"status": None, "blocks": None, "sensor_error": _shown(str(error))}

    async def time_line(self, request: Request) -> Response:
        """The series of one span."""
        self._need(request)
        span = request.query_params.get("span", "24h")
        if span not in picture.SPANS:
            return _error("The span is 1h, 24h or 7d.", 400)
        return JSONResponse(await _in_thread(self._lines[span].get))

    def _time_line(self, span: str) -> dict[str, Any]:
        return self._pictures.time_line(span, clock.wall_ns() // clock.NS_PER_S)

    async def attack(self, request: Request) -> Response:
        """Rules by tactic and technique."""
        self._need(request)
        return JSONResponse(await _in_thread(self._coverage.get))

    async def details(self, request: Request) -> Response:
        """One alert, all of it."""
        self._need(request)
        identifier = request.path_params["id"]
        if len(identifier) > 64 or not identifier.isascii() or not identifier.isalnum():
            return _error("That is no alert.", 404)
        found = await _in_thread(lambda: self._pictures.details(identifier))
        return JSONResponse(found) if found else _error("This alert is not in the history any more.", 404)

    # -- what comes new ------------------------------------------------------------------------------

    async def stream(self, request: Request) -> Response:
        """Server-sent events: alerts as they come, and the state of everything else when it changes."""
        self._need(request)
        if self._streams >= MAX_STREAMS:
            return _error("Too many pages are open.", 503)
        start = request.headers.get("last-event-id") or request.query_params.get("after", "")
        seq = int(start) if start.isascii() and start.isdigit() and len(start) < 19 else 0
        return StreamingResponse(self._events(request, seq), media_type="text/event-stream")

    async def _events(self, request: Request, seq: int) -> AsyncIterator[str]:
        self._streams += 1
        before = ""
        began_s = clock.monotonic_s()
        next_state_s = 0.0
        try:
            while (now_s := clock.monotonic_s()) - began_s < STREAM_S:
                if self._session(request) is None:
                    yield _event("ended", {})
                    return
                try:
                    rows, last = await _in_thread(lambda after=seq: self._pictures.behind(after))  # type: ignore[misc]
                except sqlite3.Error:
                    rows, last = (
                        [],
                        seq,
                    )  # the state says it
                if rows or last != seq:
                    yield _event("alerts", rows, last)
                seq = last
                if now_s >= next_state_s:
                    next_state_s = now_s + STATE_S
                    state = json.dumps(await _in_thread(self._changing))
                    yield ": still here\n\n" if state == before else f"event: state\ndata: {state}\n\n"
                    before = state
                await asyncio.sleep(ALERTS_S)
        finally:
            self._streams -= 1

    def _changing(self) -> dict[str, Any]:
        state = self._state()
        try:
            state["acknowledged"] = self._acknowledged.get()
            state["error"] = ""
        except sqlite3.Error as error:
            state["error"] = picture.unreadable(error)
        return state

    def _seen(self) -> dict[str, Any]:
        rows, _ = self._pictures.newest()
        return self._pictures.acknowledged([row["incident"] for row in rows])

    # -- what is done --------------------------------------------------------------------------------

    async def release(self, request: Request) -> Response:
        """End a block."""
        return await self._changed(request, "network", self._parent.release)

    async def acknowledge(self, request: Request) -> Response:
        """Somebody has seen an incident."""
        return await self._changed(request, "incident", self._parent.acknowledge)

    async def _changed(self, request: Request, key: str, change: Callable[[str, str], Any]) -> Response:
        session = self._need(request)
        if request.headers.get("x-csrf-token", "") != session.csrf:
            return _error("The page is too old: load it again.", 403)
        try:
            value = json.loads(await _body(request))[key]
        except (ValueError, KeyError, TypeError, RecursionError):
            return _error("That is no request.", 400)
        if not isinstance(value, str) or not 0 < len(value) <= 128:
            return _error("That is no request.", 400)
        try:
            found = await _in_thread(lambda: change(value, f"dashboard {session.name}"))
        except UnavailableError as error:
            return _error(_shown(str(error)), 409)
        self._blocks.forget()
        self._acknowledged.forget()
        return JSONResponse(found)

    def _need(self, request: Request) -> Session:
        session = self._session(request)
        if session is None:
            raise _NotLoggedInError
        return session


class _NotLoggedInError(UnavailableError):
    """There is no session, or not any more."""


async def _no_history(_: Request, error: Exception) -> Response:
    assert isinstance(error, sqlite3.Error)
    return _error(picture.unreadable(error), 503)


async def _unavailable(_: Request, error: Exception) -> Response:
    if isinstance(error, _NotLoggedInError):
        return _error("Log in first.", 401)
    if isinstance(error, _TooMuchError):
        return _error("That is too much, or came too slowly.", 413)
    return _error(_shown(str(error)), 503)


class _TooMuchError(UnavailableError):
    """A body that is too large, or too slow."""


async def _body(request: Request) -> str:
    async def read() -> bytes:
        data = b""
        async for part in request.stream():
            data += part
            if len(data) > MAX_BODY_BYTES:
                raise _TooMuchError
        return data

    try:
        return (await asyncio.wait_for(read(), BODY_S)).decode("utf-8", "replace")
    except asyncio.TimeoutError:
        raise _TooMuchError from None


async def _in_thread(work: Callable[[], T]) -> T:
    """Files and the parent are asked beside the loop, which serves everybody."""
    return await to_thread.run_sync(work)


def _event(kind: str, value: Any, number: int | None = None) -> str:
    identifier = "" if number is None else f"id: {number}\n"
    return f"{identifier}event: {kind}\ndata: {json.dumps(value)}\n\n"


def _in_script(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it can end that or open another."""
    text = json.dumps(value)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _error(text: str, code: int) -> Response:
    return JSONResponse({"error": text}, code)


def _shown(text: str) -> str:
    return harmless(text, 512)
