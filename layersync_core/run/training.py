"""One process of a training under ``layersync run``: its models, its losses and its steps, brought together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from layersync_core.errors import ConfigError
from layersync_core.run.candidates import Candidate, Candidates
from layersync_core.run.course import Courses
from layersync_core.run.journal import Journal
from layersync_core.run.metrics_log import MetricsLog
from layersync_core.run.settings import Settings, from_environment
from layersync_core.run.showing import one_line_warnings
from layersync_core.run.status import Status, say
from layersync_core.run.steps import Steps
from layersync_core.run.terms import Terms


@cache
def training() -> Training:
    """Return the training of this process."""
    return Training(from_environment())


class Training:
    """What the patches of libraries call.

    Args:
        settings: Of the run.
    """

    def __init__(self, settings: Settings) -> None:
        launch = settings.launch
        self.followers: list[Callable[[MetricsLog], None]] = []  # loggers that a program may start at any time
        self._saved: dict[str, Any] | None = None  # of the checkpoint that the program goes on from
        self._start_step, losses = launch.layersync_start_step, launch.layersync_accumulation_steps
        self.taken = 0  # optimiser steps of any kind
        self.candidates = Candidates(settings, self._attached)
        self.courses = Courses(self.candidates, losses, self._start_step or 0)
        self.journal = Journal(launch.layersync_status_dir, lambda: map(str, self.candidates), self._fill)
        self.terms = Terms(self.candidates, self.journal, self.courses, launch.layersync_target)
        self.steps = Steps(self.candidates, self.courses, self.journal, losses)

    def build(self, module: nn.Module) -> None:
        """Notice a module that is being built."""
        self.candidates.notice(module)

    def prepare(self, modules: Sequence[Any] = ()) -> None:
        """Attach to the models that are there by now: one of them is wrapped or compiled."""
        self.journal.seen.update({type(item).__name__: None for item in modules if isinstance(item, nn.Module)})
        with self.journal, one_line_warnings():
            self.candidates.scan()

    def optimise(self, optimiser: torch.optim.Optimizer) -> None:
        """Attach before training starts, and give the optimiser the trainable parts of the regularizers."""
        self.prepare()
        with self.journal:
            self.candidates.require_one()
        self.steps.optimiser(optimiser)
        for candidate in self.candidates.attached:
            candidate.attached_to.parts.place(optimiser)

    def add_terms(self, loss: Any, divides: int | None = None, factor: Tensor | None = None, past: int = 1) -> Any:
        """Return a loss plus the terms of the forwards that it depends on; see ``Terms.add``."""
        with self.journal:
            result, used = self.terms.add(loss, divides, factor, past)
            if used == []:
                return result  # the same loss again, counted already
            self.steps.loss(used)
        for candidate in self.terms.targets[len(self.journal.status.targets) :]:
            self.journal.target(_describe(candidate), self.courses.of(candidate).accumulation.describe())
        if used and not self.steps.has_optimisers:
            self._read_metrics()
        return result

    def before_step(self, optimiser: torch.optim.Optimizer) -> None:
        """Count an optimiser's step that is about to be taken, and check what must hold before the first."""
        self.taken += 1
        with self.journal:
            first = not self.journal.status.steps
            if not self.steps.before_step(optimiser):
                return
            if first and self._saved is not None:
                self._require_saved_parts(self._saved)
        self._read_metrics()
        self.journal.log.step()
        for follow in self.followers:
            follow(self.journal.log)
        self.journal.write_now_and_then()

    def skipped(self, optimiser: torch.optim.Optimizer) -> None:
        """End a group of losses whose step a scaler did not take."""
        self.steps.skipped(optimiser)

    def resumed(self, states: dict[str, Any] | None) -> None:
        """Go on where a checkpoint was written; None where it tells nothing.

        Args:
            states: By name of the model, as ``state`` gave them.
        """
        with self.journal:
            if states is not None:
                self.courses.resume({name: state["step"] for name, state in states.items()})
                self._saved = states
                for candidate in self.candidates.attached:
                    self._attached(candidate)
            elif self._start_step is None:
                if self.candidates.use_steps or any(item.attached_to.modules() for item in self.candidates.attached):
                    raise ConfigError(
                        "the checkpoint has no layersync_state.safetensors, so where the schedule stood is not known; "
                        "give --layersync_start_step N"
                    )
                say("the checkpoint has no layersync_state.safetensors; nothing of LayerSync's depends on the step")

    def state(self) -> dict[str, dict[str, Any]]:
        """Return the state of each model that is trained by its name, at its optimiser step."""
        return self.courses.state()

    def _require_saved_parts(self, saved: dict[str, Any]) -> None:
        for target in (course.candidate for course in self.courses.current()):
            names = target.attached_to.modules()
            if names and not saved.get(str(target), {}).get("modules"):
                raise ConfigError(
                    f"the checkpoint has no trained part of {', '.join(names)} for {target}: it was written without "
                    "it; start anew, or switch it off"
                )

    def _fill(self, status: Status, wait: bool) -> None:
        if wait and not status.steps:
            self._read_metrics()  # of losses that no optimiser's step came after
        status.trainings = [course.record(wait) for course in self.courses.all if course.terms]
        for course in self.courses.current():
            guard = course.candidate.attached_to.guard
            if guard is not None:
                status.blind = status.blind or guard.blind

    def _read_metrics(self) -> None:
        for course in self.courses.current():
            metrics = course.candidate.attached_to.metrics()
            course.note(metrics)
            self.journal.log.add(metrics)

    def _attached(self, candidate: Candidate) -> None:
        modules, saved = candidate.attached_to.modules(), self._saved
        if modules and saved and saved.get(str(candidate), {}).get("modules"):
            candidate.attached_to.load_state_dict(saved[str(candidate)])
        candidate.attached_to.gate(self.courses.first)


def _describe(candidate: Candidate) -> str:
    attachment = candidate.attached_to
    _, *told = attachment.describe()  # the family comes first
    lines = ", ".join(line.replace(": ", " ", 1) for line in told)
    return ": ".join((f"{candidate} (family {attachment.family})", *([lines] if lines else [])))
