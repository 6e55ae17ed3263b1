"""The page that sets up a training: the form's content comes with every request, and goes back with every answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from layersync_core import ConfigError
from layersync_plugin_webui.language import later
from layersync_plugin_webui.pages import Page, templates_of
from layersync_plugin_webui.training import commands, errors, maps, values
from layersync_plugin_webui.training.errors import FieldError
from layersync_plugin_webui.training.fields import Fields
from layersync_plugin_webui.training.limits import limits
from layersync_plugin_webui.training.measuring import Measurement
from layersync_plugin_webui.training.starting import errors_of_starting, jobs_of, place_of, start
from layersync_plugin_webui.training.values import Form, form_of, free_name
from layersync_plugin_webui.training.worker import Worker, WorkerError

router = APIRouter(default_response_class=HTMLResponse)
PAGE = Page("/training", later("Training"), router)


class Bench:
    """The state that the page's routes share.

    Args:
        runs: The folder of runs.
        worker: Answers questions that need torch.
    """

    def __init__(self, runs: Path, worker: Worker | None = None) -> None:
        self.runs, self.worker = runs, worker or Worker()
        self.measurement = Measurement()

    def fields(self) -> Fields:
        """Return all fields.

        Raises:
            WorkerError: They cannot be read.
        """
        return Fields(self.worker.fields())


def _bench(request: Request) -> Bench:
    bench: Bench = request.app.state.bench
    return bench


Answer = Callable[[Request, Form], Response]


def _with_form(answer: Answer) -> Callable[[Request], Any]:
    """Return a route that reads the form and answers in a thread, since the helper process may be slow."""

    async def route(request: Request) -> Response:
        form = await form_of(request)
        return await run_in_threadpool(answer, request, form)

    return route


def _page(request: Request, form: Form, found_errors: list[FieldError], fresh: bool = False) -> HTMLResponse:
    # 200 also with errors: browsers treat other statuses as a fault of the page, and report it in their console.
    bench, jobs = _bench(request), jobs_of(request)
    fields = bench.fields()
    return templates_of(request).answer(
        "training/page.html",
        form=form,
        fields=fields,
        limits=limits,
        errors=errors.by_key(found_errors),
        told=found_errors,
        fresh=fresh,
        runs=bench.runs,
        proposed=free_name(bench.runs),
        why_not=jobs.why_not(),
        **_spelled(request, form, fields),
    )


def _spelled(request: Request, form: Form, fields: Fields) -> dict[str, Any]:
    """Return the command line and the JSON that equal a form."""
    bench = _bench(request)
    name = form.name(bench.runs, free_name(bench.runs))
    folder = bench.runs / name
    typed = form.typed(fields)
    if form.folder_key in typed:
        typed[form.folder_key] = str(folder)
    settings = {**form.given(fields), form.folder_key: str(folder)}
    try:
        if form.way == "train":
            command = commands.of_train(settings)
        else:
            command = commands.of_run(settings, form.command, form.directory, form.environment, form.variables)
    except ConfigError as error:  # a character that cannot be on a command line
        command = str(error)
    return {"command": command, "settings": values.as_json(typed), "name": name}


def _check(request: Request, form: Form, fields: Fields) -> tuple[list[FieldError], dict[str, Any]]:
    """Return the errors of a form, and the rest of the command line's answer."""
    try:
        found = _bench(request).worker.ask(
            "check", way=form.way, settings=form.given(fields), model=form.text("model"), family=form.text("family")
        )
    except WorkerError as error:
        return [FieldError(str(error))], {}
    keys = [field.key for field in fields.of(form.way)]
    found_errors = errors.split_error(found["error"], [*keys, "model", "family"], found["at"])
    return [*found_errors, *errors_of_starting(_bench(request).runs, form)], found


def broken(request: Request, error: Exception) -> HTMLResponse:
    """Say that there are no fields, and why."""
    return templates_of(request).answer("training/broken.html", 503, why=str(error))


@router.get("/training")
def page(request: Request) -> HTMLResponse:
    """Show an empty form; the browser fills in what was typed before."""
    return _page(request, Form(), [], fresh=True)


def _start(request: Request, form: Form) -> Response:
    bench, jobs = _bench(request), jobs_of(request)
    fields = bench.fields()
    found_errors, _ = _check(request, form, fields)
    if not jobs.may_start:
        raise HTTPException(403)
    if not found_errors:
        try:
            folder = start(jobs, form, fields, form.name(bench.runs, free_name(bench.runs)))
            return RedirectResponse(_address(request, folder), 303)
        except ConfigError as error:
            keys = [field.key for field in fields.of(form.way)]
            found_errors = errors.split_error(str(error), keys, place_of(error, form))
    return _page(request, form, found_errors)


def _address(request: Request, folder: Path) -> str:
    found = [run for run in request.app.state.shelf.finder.runs() if run.folder == folder or run.process == folder]
    return f"/runs/{found[0].id}" if found else "/runs"


def _import(request: Request, form: Form) -> Response:
    from layersync_plugin_webui.training import files

    try:
        fields = _bench(request).fields()
        read = files.read_in(form, fields)
    except ConfigError as error:
        return _page(request, form, [FieldError(str(error), "page.imported")])
    found_errors, _ = _check(request, read, fields)
    return _page(request, read, found_errors)


def _export(request: Request, form: Form) -> Response:
    from layersync_plugin_webui.training import files

    try:
        text = files.written_out(form, _bench(request).fields())
    except ConfigError as error:
        return _page(request, form, [FieldError(str(error), "page.imported")])
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", form.filename) if form.filename.lower().endswith(".json") else ""
    sent = {"Content-Disposition": f'attachment; filename="{name or "layersync.json"}"'}
    return Response(text.encode(), media_type="application/json", headers=sent)


def _checked(request: Request, form: Form) -> Response:
    try:
        fields = _bench(request).fields()
    except WorkerError as error:
        return JSONResponse({"errors": errors.plain([FieldError(str(error))])})
    found_errors, found = _check(request, form, fields)
    return JSONResponse(
        {
            "errors": errors.plain(found_errors),
            "warnings": found.get("warnings", []),
            "in_force": found.get("in_force", {}),
            **_spelled(request, form, fields),
        }
    )


def _model(request: Request, form: Form) -> Response:
    bench, why = _bench(request), ""
    facts: dict[str, Any] = {}
    try:
        facts = bench.worker.ask("model", way=form.way, model=form.text("model"), family=form.text("family"))
    except WorkerError as error:
        why = str(error)
    measured = maps.find(bench.runs, facts["class"], [block["path"] for block in facts["blocks"]]) if facts else []
    chosen = measured[0] if measured else None
    asked = request.query_params.get("measure", "")
    measure = asked if chosen and asked in chosen.grids else next(iter(chosen.grids), "") if chosen else ""
    return templates_of(request).answer(
        "training/model.html",
        facts=facts,
        error=errors.split_error(why, ()),
        untrainable=errors.split_error(facts.get("untrainable", ""), ()),
        rows=maps.rows(facts, chosen, measure) if facts else [],
        measured=chosen,
        measure=measure,
        measures=maps.MEASURES,
        ends=maps.ends(chosen, measure) if chosen else None,
        state=bench.measurement.state(),
        may_measure=jobs_of(request).may_start,
        runs=bench.runs,
    )


def _measure(request: Request, form: Form) -> Response:
    bench, jobs = _bench(request), jobs_of(request)
    if not jobs.may_start:
        raise HTTPException(403)
    why = ""
    if "stop" in request.query_params:
        bench.measurement.stop()
    elif model := form.text("model") or form.text("family"):
        family = form.text("family") if form.text("model") else ""
        try:
            bench.measurement.start(model, family, maps.folder_of_next(bench.runs))
        except OSError as error:
            why = error.strerror or str(error)
    return templates_of(request).answer("training/measuring.html", state=bench.measurement.state(), why=why)


@router.get("/training/measure")
def measuring(request: Request) -> HTMLResponse:
    """Return the state of the measurement."""
    return templates_of(request).answer("training/measuring.html", state=_bench(request).measurement.state(), why="")


def _back(request: Request) -> Response:
    # The address of an answer to a form is not a page; a reader who comes back there gets the form.
    return RedirectResponse("/training", 303)


for _path, _answer in {
    "": _start,
    "/import": _import,
    "/export": _export,
    "/check": _checked,
    "/model": _model,
    "/measure": _measure,
}.items():
    router.add_api_route(f"/training{_path}", _with_form(_answer), methods=["POST"])
    if _path not in ("", "/measure"):
        router.add_api_route(f"/training{_path}", _back)
