"""The reader's choice of a language: a cookie, which the switch in the header sets."""

from __future__ import annotations

from contextvars import ContextVar
from urllib.parse import parse_qs

from fastapi import APIRouter, HTTPException, Request
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from layersync_plugin_webui import language
from layersync_plugin_webui.guard import cookie_of

router = APIRouter()

# All ports of a host share their cookies, so one choice holds for every LayerSync page.
COOKIE = "layersync-language"
_YEAR = 365 * 24 * 3600
_LARGEST = 8 * 1024

_here: ContextVar[str] = ContextVar("here", default="/")


class InTheReadersLanguage:
    """Answers a request in the language that its reader chose, or else in one that the browser asks for.

    Args:
        app: The application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        headers = Headers(raw=scope.get("headers", []))
        language.choose(headers.get("accept-language", ""), cookie_of(headers, COOKIE))
        if scope["type"] == "http":
            # The answer to a form has no address at which it could be requested again.
            _here.set(_address(scope) if scope["method"] == "GET" else "/")
        await self._app(scope, receive, send)


def here() -> str:
    """Return the current address, to come back to."""
    return _here.get()


@router.post("/language")
async def switch(request: Request) -> RedirectResponse:
    """Keep the language that was chosen, and go back to the page."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LARGEST:
            raise HTTPException(413)
    form = parse_qs(body.decode("utf-8", "replace"))
    chosen = form.get("language", [""])[0]
    if chosen not in language.LANGUAGES:
        raise HTTPException(422)
    answer = RedirectResponse(local(form.get("back", ["/"])[0]), 303)
    answer.set_cookie(COOKIE, chosen, max_age=_YEAR, httponly=True, samesite="strict", path="/")
    return answer


def local(address: str) -> str:
    """Return an address if it is on this site, else the first page's."""
    # Two slashes start a host name; browsers treat a backslash as a slash and drop tabs and line ends.
    fine = address.startswith("/") and address[1:2] != "/" and "\\" not in address and address.isprintable()
    return address if fine else "/"


def _address(scope: Scope) -> str:
    path, query = scope.get("raw_path") or b"/", scope["query_string"]
    return (path + (b"?" + query if query else b"")).decode("latin-1")
