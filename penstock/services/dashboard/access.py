"""Who may look and who may act: checked before anything else is done with a request.

- **Host**: a page on this machine's own address answers to that address alone, at any port, since a tunnel may begin at
  another one. Otherwise a foreign page could make its own name mean 127.0.0.1 and then read this one as if it were its
  own.
- **Token**, where there is one: in the cookie that the sign-in sets, or as `Authorization: Bearer …`.
- **User**, where there is none: the page answers to programs of the user who serves it, and to root. This machine's own
  address is open to all of its users.
- **Origin**: what changes anything must come from the page itself, also on this machine, and say so in JSON; a form or
  a script of another site can do neither.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.services.dashboard.config import TOKEN_ENV, is_local
from penstock.services.dashboard.peer import Address, user_of

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^\[\]:@/]+)(:\d{1,5})?")
READING = frozenset({"GET", "HEAD"})
LARGEST = 64 * 1024
"""Bytes of a request's body."""
WRONG_TOKEN_PAUSE = 0.5
"""Seconds before a wrong token is answered; who tries many needs long."""
OPEN = frozenset({"/sign-in", "/api/sign-in"})
"""What is answered without a token; the page's own style and scripts are too."""
OPEN_FOLDERS = ("/static/", "/library/")
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "font-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}


_STRANGER = (
    "this page answers only to the user who serves it; for others it is served with a token in the environment "
    f"variable {TOKEN_ENV}, and they sign in with that"
)


class Access:
    """The rules of one page."""

    def __init__(
        self, host: str, port: int, token: str | None, user_of: Callable[[Address, Address], int | None] = user_of
    ) -> None:
        """`user_of`: who is at the other end of a connection, by its two ends; see `peer`."""
        self._token, self._local, self._user_of = token, is_local(host), user_of
        names = {"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host}
        self._names = names
        self._home = f"{f'[{host}]' if ':' in host else host}:{port}"
        self.cookie = f"penstock-{port}"
        """Cookies know no ports: the name keeps two pages on one machine apart."""

    @property
    def needs_token(self) -> bool:
        return self._token is not None

    def signed_in(self, request: HTTPConnection) -> bool:
        """Whether it brings the token, or the cookie that a sign-in has set."""
        if self._token is None:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(given.strip()):
            return True
        return _same(request.cookies.get(self.cookie, ""), self.seal)

    def is_token(self, given: str) -> bool:
        """Compared in constant time: how long it takes says nothing about how much of it is right."""
        return self._token is not None and _same(given, self._token)

    @property
    def seal(self) -> str:
        """What the cookie holds: made of the token, but not the token itself."""
        return hmac.new((self._token or "").encode(), self.cookie.encode(), hashlib.sha256).hexdigest()

    def refusal(self, request: Request) -> Response | None:
        """Why it is not answered; None when it may be."""
        host = request.headers.get("host", "")
        named = _HOST.fullmatch(host.lower())
        if self._local and (named is None or named["name"] not in self._names):
            return _error(403, f"this page does not go by the name {host!r}; it is at {self._home}")
        if request.method not in READING:
            refused = _foreign(request, host)
            if refused is not None:
                return refused
        if self._token is None and not self._is_own(request):
            return _error(403, _STRANGER)
        path = request.url.path
        if path in OPEN or path.startswith(OPEN_FOLDERS) or self.signed_in(request):
            return None
        if path == "/":
            return Response(status_code=303, headers={"location": "/sign-in"})
        return _error(401, "a token is needed: sign in at /, or send it as `Authorization: Bearer TOKEN`")

    def _is_own(self, request: Request) -> bool:
        """Whether it comes from a program of this process's user, or of root. What is not known is somebody else's."""
        client, server = request.scope.get("client"), request.scope.get("server")
        if not client or not server:
            return False
        user = self._user_of((client[0], client[1]), (server[0], server[1]))
        return user is not None and user in (0, os.geteuid())


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(errors="surrogatepass"), wanted.encode(errors="surrogatepass"))


def _foreign(request: Request, host: str) -> Response | None:
    """Why a request that changes something is taken for another site's."""
    origin = request.headers.get("origin")
    site = request.headers.get("sec-fetch-site", "same-origin")
    if (origin is not None and urlsplit(origin).netloc.lower() != host.lower()) or site not in ("same-origin", "none"):
        return _error(403, f"refused: asked for by {origin or 'another site'}, and only the page itself may act")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        return _error(415, f"commands are application/json; found {kind or 'no content-type'}")
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > LARGEST:
        return _error(413, f"a command has a content-length of at most {LARGEST} bytes; found {length or 'none'}")
    return None


def _error(status: int, detail: str) -> Response:
    return JSONResponse({"detail": detail}, status)


class Guarded:
    """An application behind the rules, and every answer with the headers that keep a browser strict."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers http alone: there is nothing here that speaks anything else."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return

        async def strict(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _strict_headers(headers, scope["path"]):
                    headers[name] = value
            await send(message)

        request = Request(scope)
        refusal = self._access.refusal(request)
        if refusal is not None and refusal.status_code == 401 and "authorization" in request.headers:
            await asyncio.sleep(WRONG_TOKEN_PAUSE)
        await (refusal or self._app)(scope, receive, strict)


def _strict_headers(headers: Headers, path: str) -> Iterable[tuple[str, str]]:
    yield from _HEADERS.items()
    if "cache-control" not in headers:
        # Files are asked for again and answered by their tag; numbers are never kept.
        yield "cache-control", "no-cache" if path.startswith(OPEN_FOLDERS) else "no-store"
