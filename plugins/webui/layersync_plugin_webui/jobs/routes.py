"""Stop, Kill and Resume on a run's page."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, HTTPException, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from layersync_core import LayerSyncError
from layersync_plugin_webui.jobs import Jobs
from layersync_plugin_webui.pages import templates_of
from layersync_plugin_webui.runs.finding import Run
from layersync_plugin_webui.runs.routes import live_values

router = APIRouter(default_response_class=HTMLResponse)


@router.post("/runs/{id}/stop")
def stop(request: Request) -> Response:
    """Ask a run to stop."""
    return _act(request, lambda jobs, run: jobs.stop(run))


@router.post("/runs/{id}/kill")
def kill(request: Request) -> Response:
    """Kill a run that was asked to stop."""
    return _act(request, lambda jobs, run: jobs.stop(run, kill=True))


@router.post("/runs/{id}/resume")
def resume(request: Request) -> Response:
    """Resume a run."""
    return _act(request, lambda jobs, run: jobs.resume(run))


def _act(request: Request, action: Callable[[Jobs, Run], None]) -> Response:
    run = request.app.state.shelf.finder.run(request.path_params["id"])
    if run is None:
        raise HTTPException(404)
    told = ""
    try:
        action(request.app.state.jobs, run)
    except LayerSyncError as error:
        told = " ".join(str(error).split())
    if "hx-request" in request.headers:
        return templates_of(request).answer("jobs/acted.html", told=told, **live_values(request, run))
    if told:
        return templates_of(request).answer("jobs/refused.html", 409, told=told, run=run)
    return RedirectResponse(f"/runs/{run.id}", 303)
