"""Start what was set up, through ``jobs``, which owns the processes."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request

from layersync_core import ConfigError
from layersync_plugin_webui.jobs import Jobs, PlacedError, about
from layersync_plugin_webui.jobs.commands import words_of
from layersync_plugin_webui.jobs.names import checked_name
from layersync_plugin_webui.training.errors import FieldError, split_error
from layersync_plugin_webui.training.fields import Fields
from layersync_plugin_webui.training.values import Form


def jobs_of(request: Request) -> Jobs:
    """Return the object that starts processes."""
    found: Jobs = request.app.state.jobs
    return found


def place_of(error: ConfigError, form: Form) -> str:
    """Return the page's own field that a start error is about; empty if there is none."""
    if not isinstance(error, PlacedError):
        return ""
    return form.folder_key if error.about == "name" else f"page.{error.about}"


def errors_of_starting(runs: Path, form: Form) -> list[FieldError]:
    """Return the errors that starting would give for the typed name and command."""
    found: list[FieldError] = []
    for what, check in (
        ("name", lambda: checked_name(form.name(runs, "run"))),
        ("command", lambda: words_of(form.command) if form.way == "run" and form.command.strip() else None),
    ):
        try:
            with about(what):
                check()
        except PlacedError as error:
            found += split_error(str(error), (), place_of(error, form))
    return found


def start(jobs: Jobs, form: Form, fields: Fields, name: str) -> Path:
    """Start the run that a form describes, and return its folder.

    Raises:
        ConfigError: One of the page's own fields is wrong, or ``jobs`` refuses to start.
    """
    settings = {key: text for key, text in form.given(fields).items() if key != form.folder_key}
    if form.way == "train":
        return jobs.train(name, settings)
    if unnamed := [value for variable, value in form.variables if not variable]:
        with about("variable"):
            raise ConfigError(f"{len(unnamed)} of the environment variables has a value but no name; give it one")
    return jobs.run(name, form.command, settings, form.directory, form.environment, dict(form.variables))
