"""Who may ask: every request passes here before anything else looks at it.

Other sites that a browser has open can send requests to this machine, and a name of theirs can be made to point to it.
So the name that was asked for (Host) and the page that asks (Origin) must be ours, and the request must bring a cookie,
for which the token of the printed address was exchanged.
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
    # Without a referrer a form of ours would be sent with the origin null.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Sent with every answer."""

_NAMES = ("localhost", "127.0.0.1", "[::1]")
_SAFE = ("GET", "HEAD")


@dataclass(frozen=True)
class Gate:
    """What is asked for at the door.

    Attributes:
        host: The address that is listened on.
        port: Its port.
        loopback: Whether only this machine reaches it.
        token: Part of the printed address.
        session: What the token is exchanged for.
    """

    host: str
    port: int
    loopback: bool = True
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @property
    def cookie(self) -> str:
        """Name of the cookie: all ports of a host share their cookies."""
        return f"layersync-{self.port}"

    def knows(self, host: str) -> bool:
        """Return whether a Host header names this server.

        Where others may reach it that is any address in numbers, which no foreign site can point elsewhere.
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
    """Answers what may not pass, and sets the headers of what may.

    Args:
        app: What is behind.
        gate: What is asked for.
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
            return PlainTextResponse(_("This address is not one of this page's."), 400)
        if not _is_ours(scope["method"], headers, host):
            return PlainTextResponse(_("Another site may not ask for this."), 403)
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if (token := dict(query).get("token")) is not None:
            if scope["method"] not in _SAFE or not secrets.compare_digest(token.encode(), self._gate.token.encode()):
                return PlainTextResponse(_("This token is not the one of this page."), 403)
            rest = urlencode([(key, value) for key, value in query if key != "token"])
            # A path that begins with two slashes would be another host.
            answer = RedirectResponse("/" + scope["path"].lstrip("/\\") + (f"?{rest}" if rest else ""), 303)
            answer.set_cookie(self._gate.cookie, self._gate.session, httponly=True, samesite="strict", path="/")
            return answer
        if not secrets.compare_digest(_cookie(headers, self._gate.cookie).encode(), self._gate.session.encode()):
            return PlainTextResponse(
                _("Open the address that layersync webui printed in its terminal; it holds the token."), 403
            )
        return None


def _is_ours(method: str, headers: Mapping[str, str], host: str) -> bool:
    """Return whether a page of ours asks, or a person who typed or followed an address."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is not None:
        return origin == f"http://{host}"
    if method not in _SAFE:
        return site == "same-origin"
    followed = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return site in (None, "same-origin", "none") or followed


def _cookie(headers: Headers, name: str) -> str:
    # By hand, as one cookie of another program that is written wrongly would end a library's reading.
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
