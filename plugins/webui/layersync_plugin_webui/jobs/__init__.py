"""Training programs that the page starts, stops and resumes. They live on when it ends.

Everything can be read from a run's folder and its processes, so a page that was restarted, or a second one, knows as
much; the only exception is the values of variables, which are in no file.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from layersync_core import (
    ConfigError,
    LayerSyncError,
    ProcessState,
    canonical,
    interrupt_run,
    kill_run,
    note_end,
    read_process,
)
from layersync_plugin_webui.jobs.asking import Asked
from layersync_plugin_webui.jobs.commands import command_of_run, command_of_train, words_of
from layersync_plugin_webui.jobs.environments import check_variables, require_layersync, variables_of, working_folder
from layersync_plugin_webui.jobs.launching import Program, launch, new_folder
from layersync_plugin_webui.jobs.masking import masked
from layersync_plugin_webui.jobs.placing import PlacedError, about
from layersync_plugin_webui.language import gettext as _
from layersync_plugin_webui.runs.finding import Run

__all__ = ["Jobs", "PlacedError", "about", "command_of_run", "command_of_train"]

TRAINER = "layersync_plugin_trainer"
_AGAIN = 0.2
"""Seconds between checks for processes that outlive the one that was started."""

_TWICE = 1
"""Seconds within which a second click belongs to the first."""


@dataclass(frozen=True)
class Buttons:
    """What can be done with a run.

    Attributes:
        can_stop: It is running on this machine.
        stopping: It was asked to stop, and hasn't done so yet.
        step: The step at which it can be resumed.
        why_not: Why nothing may be done nevertheless.
    """

    can_stop: bool
    stopping: bool
    step: int | None
    why_not: str | None


class Jobs:
    """Starts, stops and resumes runs below a folder.

    Args:
        folder: The folder of runs.
        may_start: Whether starting and stopping programs is allowed at all.
        changed: Called when there is a new run.
    """

    def __init__(self, folder: Path, may_start: bool = True, changed: Callable[[], None] = lambda: None) -> None:
        self.folder = folder
        self.may_start = may_start and os.name == "posix"
        self._changed = changed
        self._lock = threading.Lock()
        self._asked = Asked()
        self._values: dict[Path, tuple[str, ...]] = {}

    def why_not(self) -> str | None:
        """Return why nothing may be started or stopped; None if it may."""
        if self.may_start:
            return None
        if os.name != "posix":
            return _("Programs are started and stopped from the page on Linux and macOS only.")
        return _(
            "Other machines can reach this page, so it starts and stops nothing; layersync webui --allow_commands lets "
            "it."
        )

    def train(self, name: str, settings: Mapping[str, Any]) -> Path:
        """Start the reference trainer, and return the folder of its run.

        Args:
            name: Name of the run's folder.
            settings: Settings of ``layersync train``, without ``output_dir``.

        Raises:
            ConfigError: The name is bad or taken, a setting cannot be on a command line, or nothing can be started.
        """
        self._require()
        if find_spec(TRAINER) is None:
            raise ConfigError("layersync train is not installed; pip install layersync-plugin-trainer")
        given = _without(settings, "output_dir")
        python, variables = variables_of({}, "")
        command_of_train(given)  # refused before there is a folder
        with new_folder(self.folder, name) as folder:
            words = command_of_train({"output_dir": str(folder), **given})
            self._start(Program("train", python, words, variables, steps=_steps(given)), folder)
        return folder

    def run(
        self,
        name: str,
        command: str,
        settings: Mapping[str, Any],
        directory: str,
        environment: str,
        variables: Mapping[str, str],
    ) -> Path:
        """Start a command within ``layersync run``, and return the folder of its run.

        Args:
            name: Name of the run's folder, which gets status, metrics and log.
            command: The command as typed into a terminal; no shell reads it.
            settings: Settings of ``layersync run``, without ``layersync_status_dir``.
            directory: The folder that it runs in; empty for the page's own.
            environment: Folder of a Python environment; empty for the page's own.
            variables: Environment variables in addition to the page's own.

        Raises:
            ConfigError: As in ``train``; or the command, a folder, the environment or a variable is invalid.
        """
        self._require()
        given = _without(settings, "layersync_status_dir")
        with about("command"):
            words_of(command)
        command_of_run(given, command)
        with about("directory"):
            place = working_folder(directory)
        with about("variable"):
            check_variables(variables)
        with about("environment"):
            python, all_variables = variables_of(variables, environment)
            if environment.strip():
                require_layersync(python, all_variables, place)
        with new_folder(self.folder, name) as folder:
            words = command_of_run({**given, "layersync_status_dir": str(folder)}, command)
            self._values[folder] = tuple(variables.values())
            self._start(Program("run", python, words, all_variables, place), folder)
        return folder

    def stop(self, run: Run, kill: bool = False) -> None:
        """Ask a run to stop, as Ctrl-C does: the reference trainer writes a checkpoint. After that it may be killed.

        Args:
            run: The run.
            kill: Kill all its processes if it was asked before; a click right after the first one doesn't count.

        Raises:
            LayerSyncError: It isn't running, or its processes are not known for certain.
        """
        self._require()
        with self._lock:
            state = read_process(run.process)
            since = self._asked.since(run.process, state)
            if since is None and state is not None and not self._asked.first(run.process, state):
                return
            if since is None:
                try:
                    interrupt_run(run.process)
                except LayerSyncError:
                    self._asked.forget(run.process)
                    raise
            elif kill and time.time() - since >= _TWICE:
                kill_run(run.process)

    def buttons(self, run: Run) -> Buttons:
        """Return what can be done with a run now."""
        state = read_process(run.process)
        return Buttons(
            can_stop=state is not None and state.state == "running" and state.here,
            stopping=self._asked.since(run.process, state) is not None,
            step=self.step_of_resume(run),
            why_not=self.why_not(),
        )

    def resume(self, run: Run) -> None:
        """Resume a run of the reference trainer in its folder, with its settings.

        Raises:
            ConfigError: It is already running, or has no complete checkpoint.
        """
        self._require()
        with self._lock:
            state, point = read_process(run.process), _point(run)
            if state is not None and state.state == "running":
                raise ConfigError(f"{run.name} is running; stop it first")
            if state is None or point is None:
                raise ConfigError(f"{run.name} has no whole checkpoint of layersync train to go on from")
            python, variables = variables_of({}, "")
            words = command_of_train({"output_dir": str(run.process), "resume_from_checkpoint": point[1]})
            self._asked.forget(run.process)
            self._start(Program("train", python, words, variables, steps=state.total_steps), run.process)

    def step_of_resume(self, run: Run) -> int | None:
        """Return the step at which a run can be resumed; None if it cannot be, has finished, or is running."""
        point = _point(run)
        return None if point is None else point[0]

    def masked(self, run: Run, text: str) -> str:
        """Return a text with all known values of environment variables masked."""
        return masked(text, self._values.get(run.process, ()))

    def _require(self) -> None:
        if (why := self.why_not()) is not None:
            raise ConfigError(why)

    def _start(self, program: Program, folder: Path) -> None:
        process = launch(program, folder)
        self._changed()
        threading.Thread(target=self._reap, args=(process, folder), daemon=True, name=f"run-{process.pid}").start()

    def _reap(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        code = process.wait()
        # Its other processes may take a moment longer to die, or go on; the run has ended only when all have.
        while (state := read_process(folder)) is not None and state.pids[:1] == (process.pid,):
            if state.state != "running":
                note_end(folder, code)
                break
            time.sleep(_AGAIN)
        self._asked.forget(folder)


def _without(settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    given = canonical(settings)
    if key in given:
        raise ConfigError(f"{key} is the folder of the run, which its name says; leave it out")
    return given


def _steps(settings: Mapping[str, Any]) -> int | None:
    try:
        return int(settings["max_train_steps"])
    except (KeyError, TypeError, ValueError):
        return None  # the run itself will say


def _point(run: Run) -> tuple[int, str] | None:
    """Return where the trainer would resume, by its own answer, which needs no torch."""
    state: ProcessState | None = read_process(run.process)
    if state is None or state.kind != "train" or state.state in ("running", "finished") or find_spec(TRAINER) is None:
        return None
    with suppress(Exception):  # a run's page is shown whatever its folder contains
        found: tuple[int, str] | None = import_module(TRAINER).resume_point(run.process)
        return found
    return None
