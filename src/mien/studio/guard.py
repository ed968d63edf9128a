"""Who may ask the server what.

The server reads the user's photos, so no other page that is open in the browser may use it. Such a page can send
requests to this address (across origins, or under a name of its own that leads here). Each request is checked for the
name of the host, its origin, and, where others in the network may come, for a token.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "mien_token"
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_POLICY = "; ".join([
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' blob: data:",
    "media-src 'self' blob:",
    "connect-src 'self' blob:",  # three.js reads the textures of a GLB from blobs
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
])  # fmt: skip
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}


class Guard:
    """ASGI middleware that refuses requests which do not come from the user, and adds security headers.

    Args:
        app: The application.
        hosts: Values of the Host header that are accepted, with the port.
        token: What a request must know, in the cookie, in the address as `?token=`, or as a bearer; None for no token.
    """

    def __init__(self, app: ASGIApp, *, hosts: Iterable[str], token: str | None) -> None:
        self._app, self._hosts, self._token = app, frozenset(host.lower() for host in hosts), token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, _with_headers(send))
            return
        given = self._token_of_address(scope)
        if given is not None:
            # The token leaves the address, which is shown and remembered by the browser.
            response = RedirectResponse(scope["path"], status_code=303)
            response.set_cookie(COOKIE, given, httponly=True, samesite="strict")
            await response(scope, receive, _with_headers(send))
            return
        await self._app(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope, headers: Headers) -> PlainTextResponse | None:
        host = headers.get("host", "").lower()
        if host not in self._hosts:
            return PlainTextResponse("This address is not mien's; use the one that the terminal shows.", 421)
        if not self._same_origin(scope, headers, host):
            return PlainTextResponse("Requests from other pages are refused.", 403)
        if self._token is not None and not self._knows_token(scope, headers):
            return PlainTextResponse("Use the address with the token that the terminal shows.", 401)
        return None

    @staticmethod
    def _same_origin(scope: Scope, headers: Headers, host: str) -> bool:
        """Whether a page of this server, or no page at all, asks. Browsers send these headers, other programs need
        not."""
        site = headers.get("sec-fetch-site", "none")
        if scope["method"] in _SAFE_METHODS and headers.get("sec-fetch-mode") == "navigate":
            return True  # a link or an address that the user has followed
        if site not in {"same-origin", "none"}:
            return False
        origin = headers.get("origin")
        return origin is None or origin.lower() in {f"http://{host}", f"https://{host}"}

    def _knows_token(self, scope: Scope, headers: Headers) -> bool:
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        return any(self._is_token(given) for given in (bearer, _cookie(headers), _query_token(scope)))

    def _token_of_address(self, scope: Scope) -> str | None:
        given = _query_token(scope)
        return given if scope["method"] == "GET" and self._is_token(given) else None

    def _is_token(self, given: str) -> bool:
        return self._token is not None and hmac.compare_digest(given.encode(), self._token.encode())


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _query_token(scope: Scope) -> str:
    return parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending
