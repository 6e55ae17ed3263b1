"""The application: the guard, the files of the page, and its pages."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from layersync_plugin_webui.guard import Gate, Guard
from layersync_plugin_webui.jobs import Jobs
from layersync_plugin_webui.jobs.routes import router as jobs
from layersync_plugin_webui.pages import Templates, templates_of
from layersync_plugin_webui.runs import routes as runs
from layersync_plugin_webui.switching import InTheReadersLanguage
from layersync_plugin_webui.switching import router as switching
from layersync_plugin_webui.training import routes as training
from layersync_plugin_webui.training.worker import WorkerError

PAGES = (training.PAGE, runs.PAGE)
"""The pages in the order of the navigation; each is a module's ``PAGE``."""


def make_app(folder: Path, gate: Gate, allow_commands: bool = False) -> ASGIApp:
    """Return the application.

    Args:
        folder: Runs are looked for below it.
        gate: Decides which requests may pass.
        allow_commands: Allow starting and stopping programs even though other machines can reach this page.
    """
    # Without FastAPI's own pages, which load files from other sites.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.templates = Templates(PAGES)
    app.state.shelf = shelf = runs.Shelf(folder)
    app.state.jobs = Jobs(folder, gate.loopback or allow_commands, shelf.finder.look_again)
    app.state.bench = training.Bench(folder)
    app.mount("/static", StaticFiles(packages=[("layersync_plugin_webui", "static")]), name="static")
    for page in PAGES:
        app.include_router(page.router)
    app.include_router(jobs)
    app.include_router(switching)
    app.add_api_route("/", _home, include_in_schema=False)
    app.add_exception_handler(HTTPException, _refusal)
    app.add_exception_handler(WorkerError, training.broken)
    return InTheReadersLanguage(Guard(app, gate))


def _home() -> Response:
    return RedirectResponse(PAGES[0].path, 303)


def _refusal(request: Request, error: Exception) -> HTMLResponse:
    code = error.status_code if isinstance(error, HTTPException) else 500
    return templates_of(request).answer("refusal.html", code, code=code)
