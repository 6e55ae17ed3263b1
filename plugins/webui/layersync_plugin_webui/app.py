"""The application: the guard, the files of the page, and its pages."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from layersync_plugin_webui import language
from layersync_plugin_webui.guard import Gate, Guard
from layersync_plugin_webui.pages import Templates
from layersync_plugin_webui.runs import routes as runs

PAGES = (runs.PAGE,)
"""The pages, as the navigation shows them; another one is a module with such a ``PAGE``."""


def make_app(folder: Path, gate: Gate) -> ASGIApp:
    """Return the application.

    Args:
        folder: Runs are looked for below it.
        gate: What is asked for at the door.
    """
    # No pages of FastAPI's own, which load from elsewhere.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.templates = Templates(PAGES)
    app.state.shelf = runs.Shelf(folder)
    app.mount("/static", StaticFiles(packages=[("layersync_plugin_webui", "static")]), name="static")
    for page in PAGES:
        app.include_router(page.router)
    app.add_api_route("/", _home, include_in_schema=False)
    app.add_exception_handler(HTTPException, _refusal)
    return InTheReadersLanguage(Guard(app, gate))


class InTheReadersLanguage:
    """Chooses the language of a request.

    Args:
        app: What is behind.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        accepted = dict(scope.get("headers", ())).get(b"accept-language", b"")
        language.choose(accepted.decode("latin-1"))
        await self._app(scope, receive, send)


def _home() -> Response:
    return RedirectResponse(PAGES[0].path, 303)


def _refusal(request: Request, error: Exception) -> HTMLResponse:
    code = error.status_code if isinstance(error, HTTPException) else 500
    templates: Templates = request.app.state.templates
    return templates.answer("refusal.html", code, code=code)
