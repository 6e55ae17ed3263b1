"""The page of all runs, and the page of one run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from layersync_core import metric_rank
from layersync_plugin_webui.jobs import Jobs
from layersync_plugin_webui.language import later
from layersync_plugin_webui.pages import Page, templates_of
from layersync_plugin_webui.runs.curves import Curve, Store, beginning
from layersync_plugin_webui.runs.facts import facts
from layersync_plugin_webui.runs.files import read_part
from layersync_plugin_webui.runs.finding import Finder, Run
from layersync_plugin_webui.runs.logs import tail
from layersync_plugin_webui.runs.report import file_name, report_of
from layersync_plugin_webui.runs.samples import LARGEST, samples
from layersync_plugin_webui.runs.state import State, state_of

router = APIRouter(default_response_class=HTMLResponse)
PAGE = Page("/runs", later("Runs"), router)

ON_A_PAGE = 50
COLOURS = 8
_PATIENCE = 0.7
"""Seconds for reading a list's numbers; the remaining rows get theirs at the next request."""

_MOST_CHOSEN = 64


class Shelf:
    """The runs, and what was read about them.

    Args:
        folder: Runs are looked for below it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.finder, self.store = Finder(folder), Store()


@dataclass(frozen=True)
class Row:
    """A run in the list."""

    run: Run
    state: State
    colour: int | None
    curves: dict[str, Curve]

    @property
    def step(self) -> int | None:
        """The last known step."""
        return max((curve.steps[-1] for curve in self.curves.values() if curve.steps), default=None)

    def last(self, name: str) -> float | None:
        """Return the last value of a metric."""
        found = next((curve for key, curve in self.curves.items() if key.rpartition("/")[2] == name), None)
        return found.values[-1] if found is not None and found.values else None


def _shelf(request: Request) -> Shelf:
    shelf: Shelf = request.app.state.shelf
    return shelf


# Parsed here, since a FastAPI signature would cost a tenth of a second before the first page.
def _chosen(request: Request) -> list[str]:
    chosen = request.query_params.getlist("show")
    if len(chosen) > _MOST_CHOSEN:
        raise HTTPException(422)
    return chosen


def _number(request: Request, name: str, least: int) -> int:
    text = request.query_params.get(name, str(least))
    if not (text.isascii() and text.isdigit() and len(text) < 7 and int(text) >= least):
        raise HTTPException(422)
    return int(text)


def _found(request: Request) -> Run:
    run = _shelf(request).finder.run(request.path_params["id"])
    if run is None:
        raise HTTPException(404)
    return run


def _list(request: Request, follow: bool) -> dict[str, Any]:
    shelf, page = _shelf(request), _number(request, "page", 1)
    runs = shelf.finder.runs()
    chosen = [run.id for run in runs[:1]] if follow else _chosen(request)
    pages = max(1, -(-len(runs) // ON_A_PAGE))
    page = min(page, pages)
    shown = runs[(page - 1) * ON_A_PAGE : page * ON_A_PAGE]
    colours = {id: place % COLOURS for place, id in enumerate(dict.fromkeys(chosen))}
    rows, deadline = [], time.monotonic() + _PATIENCE
    for run in shown:
        curves = shelf.store.of(run) if time.monotonic() < deadline else {}
        rows.append(Row(run, state_of(run), colours.get(run.id), curves))
    # Selected runs stay selected on another page of the list.
    others = [run for run in runs if run.id in colours and run not in shown]
    return {"rows": rows, "others": others, "page": page, "pages": pages, "count": len(runs), "folder": shelf.folder}


@router.get("/runs")
def all_runs(request: Request) -> HTMLResponse:
    """Show the list of runs, and the curves of the selected ones: the latest until someone selects others."""
    follow = not {"show", "page"} & set(request.query_params)
    return templates_of(request).answer("runs/all.html", follow=follow, **_list(request, follow))


@router.get("/runs/table")
def table(request: Request) -> HTMLResponse:
    """Return the updated list."""
    return templates_of(request).answer("runs/table.html", **_list(request, "follow" in request.query_params))


@router.get("/runs/curves")
def curves(request: Request) -> JSONResponse:
    """Return the curves of the chosen runs."""
    shelf, answer = _shelf(request), []
    for place, id in enumerate(dict.fromkeys(_chosen(request))):
        if (run := shelf.finder.run(id)) is None:
            continue
        found = shelf.store.of(run)
        began = beginning(found)
        sent = [{"metric": name, "rank": metric_rank(name)[0], **curve.sent(began)} for name, curve in found.items()]
        answer.append({"id": run.id, "name": run.name, "colour": place % COLOURS, "curves": sent})
    return JSONResponse({"runs": answer})


@router.get("/runs/{id}")
def one_run(request: Request) -> HTMLResponse:
    """Show a run."""
    run, jobs = _found(request), request.app.state.jobs
    known = [(label, jobs.masked(run, text)) for label, text in facts(run.folder)]
    return templates_of(request).answer("runs/one.html", facts=known, **live_values(request, run), **_drawn(run, None))


@router.get("/runs/{id}/report")
def report(request: Request) -> HTMLResponse:
    """Return a run's report as a file to save."""
    run, shelf, jobs = _found(request), _shelf(request), request.app.state.jobs
    text = report_of(run, shelf.finder, shelf.store, lambda text: jobs.masked(run, text))
    headers = {"Content-Disposition": f'attachment; filename="{file_name(run)}"'}
    return HTMLResponse(text.encode("utf-8", "replace"), headers=headers)


@router.get("/runs/{id}/live")
def live(request: Request) -> HTMLResponse:
    """Return a run's current state and the end of its log."""
    return templates_of(request).answer("runs/live.html", **live_values(request, _found(request)))


@router.get("/runs/{id}/samples")
def drawn(request: Request) -> HTMLResponse:
    """Return a run's pictures, one of them shown."""
    at = _number(request, "at", 0) if "at" in request.query_params else None
    return templates_of(request).answer("runs/samples.html", **_drawn(_found(request), at))


@router.get("/runs/{id}/samples/{picture}")
def picture(request: Request) -> Response:
    """Return a picture."""
    asked, pictures = request.path_params["picture"], samples(_found(request).folder)
    found = next((sample for sample in pictures if sample.id == asked), None)
    if found is None:
        raise HTTPException(404)
    try:
        data, about = read_part(found.path, 0, LARGEST)
    except OSError:
        raise HTTPException(404) from None
    if about.st_size > LARGEST:
        raise HTTPException(404)
    return Response(data, media_type=found.kind)


def live_values(request: Request, run: Run) -> dict[str, Any]:
    """Return what ``runs/live.html`` shows."""
    row = Row(run, state_of(run), 0, _shelf(request).store.of(run))
    jobs: Jobs = request.app.state.jobs

    def masked(text: str) -> str:
        return jobs.masked(run, text)

    return {"row": row, "log": tail(run.folder, masked) or tail(run.process, masked), "job": jobs.buttons(run)}


def _drawn(run: Run, at: int | None) -> dict[str, Any]:
    found = samples(run.folder)
    place = len(found) - 1 if at is None else min(at, len(found) - 1)
    return {"run": run, "samples": found, "at": place}
