"""Access control: every request passes here before anything else looks at it.

Other sites that a browser has open can send requests to this machine, and can make a name of theirs point to it.
So the requested name (Host) and the requesting page (Origin) must be this page's, and the request must carry a cookie
that was given in exchange for the token in the printed address.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from layersync_plugin_webui.language import _

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Without a referrer, this page's own forms would be sent with the origin null.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Sent with every answer."""

_NAMES = ("localhost", "127.0.0.1", "[::1]")
_SAFE = ("GET", "HEAD")


@dataclass(frozen=True)
class Gate:
    """What a request must match to get in.

    Attributes:
        host: The address that the server listens on.
        port: Its port.
        loopback: Whether only this machine can reach it.
        token: Part of the printed address.
        session: The cookie's value, given in exchange for the token.
    """

    host: str
    port: int
    loopback: bool = True
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @property
    def cookie(self) -> str:
        """Name of the cookie, with the port in it, since all ports of a host share their cookies."""
        return f"layersync-{self.port}"

    def knows(self, host: str) -> bool:
        """Return whether a Host header names this server.

        If other machines can reach it, any numeric address will do, since no foreign site can redirect those.
        """
        name, colon, port = host.rpartition(":")
        if not colon or port != str(self.port):
            name = host if self.port == 80 and not port.isdigit() else ""
        if name in _NAMES:
            return True
        if self.loopback:
            return name == self.host
        return name in (self.host, socket.gethostname()) or _is_address(name)


class Guard:
    """Answers requests that may not pass, and sets the headers of answers to the others.

    Args:
        app: The application behind it.
        gate: What requests must match.
    """

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app, self._gate = app, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":  # there are none
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        answer = self._stop(scope, Headers(scope=scope)) or self._app
        await answer(scope, receive, send_with_headers)

    def _stop(self, scope: Scope, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not self._gate.knows(host):
            return PlainTextResponse(_("This is not an address of this page."), 400)
        if not _is_ours(scope["method"], headers, host):
            return PlainTextResponse(_("Requests from another site are not allowed."), 403)
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if (token := dict(query).get("token")) is not None:
            if scope["method"] not in _SAFE or not secrets.compare_digest(token.encode(), self._gate.token.encode()):
                return PlainTextResponse(_("This token does not belong to this page."), 403)
            rest = urlencode([(key, value) for key, value in query if key != "token"])
            # A path that begins with two slashes would mean another host.
            answer = RedirectResponse("/" + scope["path"].lstrip("/\\") + (f"?{rest}" if rest else ""), 303)
            answer.set_cookie(self._gate.cookie, self._gate.session, httponly=True, samesite="strict", path="/")
            return answer
        if not secrets.compare_digest(cookie_of(headers, self._gate.cookie).encode(), self._gate.session.encode()):
            return PlainTextResponse(
                _("Open the address that layersync webui printed in its terminal; it holds the token."), 403
            )
        return None


def _is_ours(method: str, headers: Mapping[str, str], host: str) -> bool:
    """Return whether the request comes from this page, or from a person who typed or followed an address."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is not None:
        return origin == f"http://{host}"
    if method not in _SAFE:
        return site == "same-origin"
    followed = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return site in (None, "same-origin", "none") or followed


def cookie_of(headers: Headers, name: str) -> str:
    """Return the value of a cookie; empty if there is none."""
    # By hand, since a library's parser would stop at another program's malformed cookie.
    for part in ";".join(headers.getlist("cookie")).split(";"):
        key, _equals, value = part.strip().partition("=")
        if key == name:
            return value
    return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
