"""Who may ask the server, and what browsers may do with its answers: before any route is looked at."""

from __future__ import annotations

import hashlib
import hmac
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""What the server's own page may load: nothing but what the server sends."""

_FILE_POLICY = "default-src 'none'; sandbox; frame-ancestors 'none'"
_COOKIE_DAYS = 30


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets requests through to `app` that come from where they may.

    port   the server's own
    token  that clients have to know; None: none, and then only requests that name this machine are answered, so that no
           page of another site that was made to lead here (DNS rebinding) can ask
    sign_in  the page that asks a person for the token
    public   paths that need no token
    """

    def __init__(
        self, app: ASGIApp, port: int, token: str | None, sign_in: str = "", public: frozenset[str] = frozenset()
    ) -> None:
        self._app = app
        self._token = token
        self._sign_in = sign_in
        self._public = public
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}
        if port == 80:
            self._hosts |= {"127.0.0.1", "localhost", "[::1]"}
        # browsers send a cookie to all ports of a machine: the name tells servers apart, and the token is not in it
        self._cookie = f"mast3r_sfm_{port}"
        self._session = hmac.digest((token or "").encode(), b"session", hashlib.sha256).hex()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add_headers(MutableHeaders(scope=message))
            await send(message)

        answer = self._refusal(scope, headers) or self._signed_in(scope) or self._missing_token(scope, headers)
        await (answer or self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        host = headers.get("host", "").lower()
        if self._token is None and host not in self._hosts:
            return _error(403, "This server answers to its own address only")
        if scope["method"] in ("GET", "HEAD"):
            return None
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host:
            return _error(403, "Requests of other sites' pages are refused")
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return _error(403, "Requests of other sites' pages are refused")
        return None

    def _signed_in(self, scope: Scope) -> Response | None:
        """The page for somebody who came by the address with the token in it, which then leaves the address."""
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token")
        if self._token is None or not given or scope["path"] != "/" or not self.is_token(given[0]):
            return None
        return self.signed_in()

    def is_token(self, given: str) -> bool:
        return self._token is not None and hmac.compare_digest(given.encode(), self._token.encode())

    def signed_in(self) -> Response:
        """To the page, with a cookie that says so from now on."""
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            self._cookie, self._session, max_age=_COOKIE_DAYS * 86400, path="/", httponly=True, samesite="lax"
        )
        return answer

    def _missing_token(self, scope: Scope, headers: Headers) -> Response | None:
        if self._token is None or scope["path"] in self._public or self._has_token(headers):
            return None
        if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            return HTMLResponse(self._sign_in, 401, {"Content-Security-Policy": PAGE_POLICY})
        return _error(401, "The token is missing or wrong: send it as `Authorization: Bearer TOKEN`")

    def _has_token(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.is_token(given.strip()):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self._session.encode())


def _error(status: int, message: str) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"detail": message}, status, headers)


def _add_headers(headers: MutableHeaders) -> None:
    headers.setdefault("Content-Security-Policy", _FILE_POLICY)
    headers.setdefault("X-Frame-Options", "DENY")
    headers.setdefault("Cache-Control", "no-store")
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "same-origin"  # with none, browsers do not say the origin of forms either
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    headers["Cross-Origin-Opener-Policy"] = "same-origin"
