"""The command line's errors, from its own code."""

from __future__ import annotations

import logging
import warnings
from importlib import import_module
from typing import Any

from layersync_core import LayerSyncConfig, LayerSyncError, LayerSyncWarning, attach, canonical, is_on, run_settings
from layersync_plugin_webui.training.answering import facts
from layersync_plugin_webui.training.answering.schema import TRAINER, one_line


def check(way: str, settings: dict[str, str], model: str, family: str) -> dict[str, Any]:
    """Return the error that the command would end with, its warnings, and what it would do.

    Args:
        way: ``train`` or ``run``.
        settings: Settings as text, like flags.
        model: The model that ``layersync run`` would train, if the user named it; else empty.
        family: The family of that model, if the user named it; else empty.
    """
    notes: list[str] = []
    error, at, lines, force = "", "", list[str](), dict[str, str]()
    logging.getLogger().handlers[:] = [_Notes(notes)]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", LayerSyncWarning)
        try:
            if way == "train":
                force = _train(settings)
            else:
                lines, force = _run(settings, model, family)
        except _FieldError as found:
            error, at = one_line(str(found.error)), found.key
        except LayerSyncError as found:
            error = one_line(str(found))
    notes = [str(note.message) for note in warned if issubclass(note.category, LayerSyncWarning)] + notes
    return {"error": error, "at": at, "warnings": list(dict.fromkeys(notes)), "lines": lines, "in_force": force}


class _FieldError(Exception):
    """An error, and the field that it is about in case its text doesn't say so."""

    def __init__(self, error: LayerSyncError, key: str) -> None:
        self.error, self.key = error, key


class _Notes(logging.Handler):
    def __init__(self, notes: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("layersync"):
            self._notes.append(record.getMessage())


def _train(given: dict[str, str]) -> dict[str, str]:
    settings = import_module(f"{TRAINER}.config").Settings(given)
    models = import_module(f"{TRAINER}.models")
    model, family = settings.trainer.model, settings.trainer.family
    try:
        known = None if model else facts.known("train", "", family or "")
        source = models.find_source(model, family) if known is None else known.source
    except LayerSyncError as error:
        raise _FieldError(error, "model" if model else "family") from error
    plan = models.plan(settings, source)
    # The default of a setting that was not given.
    force = {key: str(value) for key, value in plan.regularizers.items() if key not in settings.given}
    return _with_weight(force, LayerSyncConfig.from_mapping(plan.regularizers))


def _with_weight(force: dict[str, str], config: LayerSyncConfig) -> dict[str, str]:
    given = config.layersync_lambda is not None or not config.layersync_enabled
    return force if given else {**force, "layersync_lambda": f"{config.weight:g}"}


def _run(given: dict[str, str], model: str, family: str) -> tuple[list[str], dict[str, str]]:
    known = run_settings(given)
    force = _with_weight({}, known.config)
    try:
        found = facts.known("run", model, family or known.launch.layersync_family or "")
    except LayerSyncError:
        return [], force  # this is shown with the model, which isn't passed to the command
    if found is None or not any(is_on(value) for key, value in canonical(given).items() if key.endswith("_enabled")):
        return [], force
    with attach(found.model, known.config, family=found.adapter.family) as sync:
        return sync.describe(), force
