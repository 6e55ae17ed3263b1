"""One process of a training under ``layersync run``: brings its models, losses and steps together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layersync_core import _compat
from layersync_core.attachment import Attachment
from layersync_core.errors import ConfigError, LayerSyncError
from layersync_core.run import ranks
from layersync_core.run.candidates import Candidate, Candidates
from layersync_core.run.course import Course, Courses
from layersync_core.run.holding import make_room
from layersync_core.run.journal import Journal
from layersync_core.run.metrics_log import MetricsLog
from layersync_core.run.settings import Settings
from layersync_core.run.showing import one_line_warnings
from layersync_core.run.status import Status, say
from layersync_core.run.steps import Steps
from layersync_core.run.terms import Terms
from layersync_core.session import attach


class Training:
    """What the library patches call.

    Args:
        settings: Settings of the run.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, launch = settings, settings.launch
        self.followers: list[Callable[[MetricsLog], None]] = []  # loggers that a program may start at any time
        self._saved: dict[str, Any] | None = None  # state from the checkpoint that the program resumes from
        self._start_step, losses = launch.layersync_start_step, launch.layersync_accumulation_steps
        # Resolved now, since the program may change its working directory before anything is written.
        self._file = Path(launch.layersync_save_adapter).absolute() if launch.layersync_save_adapter else None
        self.taken = 0  # optimiser steps, with or without a term
        self._blind: dict[Course, str] = {}  # why the tokens that a training's loss sees are unknown so far
        self.candidates = Candidates(settings, self._take, self._attached)
        self.courses = Courses(self.candidates, losses, self._start_step or 0)
        self.journal = Journal(launch.layersync_status_dir, lambda: map(str, self.candidates), self._fill)
        self.terms = Terms(self.candidates, self.journal, self.courses, launch.layersync_target)
        self.steps = Steps(self.candidates, self.courses, self.journal, losses)
        self.journal.log.fetch = self._fetch

    def _take(self, model: nn.Module, family: str | None) -> Attachment:
        return attach(model, self.settings.config, family=family, policy=make_room)

    def build(self, module: nn.Module) -> None:
        """Record a module that is being built."""
        self.candidates.notice(module)

    def prepare(self, modules: Sequence[Any] = ()) -> None:
        """Attach to the models that exist by now, since one of them is being wrapped or compiled."""
        self.journal.seen.update({type(item).__name__: None for item in modules if isinstance(item, nn.Module)})
        try:
            with one_line_warnings():
                self.candidates.scan()
        except LayerSyncError as error:
            self.journal.fail(error)

    def optimise(self, optimiser: torch.optim.Optimizer) -> None:
        """Attach before training starts, and give the optimiser the trainable parts of the regularizers."""
        self.candidates.notice_trained(optimiser)
        self.prepare()
        try:
            self.candidates.require_one()
        except LayerSyncError as error:
            self.journal.fail(error)
        self.steps.optimiser(optimiser)
        for candidate in self.candidates.attached:
            candidate.attached_to.parts.place(optimiser)

    def add_terms(
        self,
        loss: Any,
        divides: int | None = None,
        factor: Tensor | None = None,
        past: int = 1,
        library: str = "",
    ) -> Any:
        """Return a loss plus the terms of the forwards that it depends on; see ``Terms.add``."""
        self._fetch()
        try:
            result, used = self.terms.add(loss, divides, factor, past, library)
            if used == []:
                return result  # the same loss again, which was already counted
            self.steps.loss(used)
        except LayerSyncError as error:
            self.journal.fail(error)
        for candidate in self.terms.targets[len(self.journal.status.targets) :]:
            self.journal.target(_describe(candidate), self.courses.of(candidate).accumulation.describe())
            self._save(candidate.attached_to)
        return result

    def before_step(self, optimiser: torch.optim.Optimizer) -> None:
        """Count a step that an optimiser is about to take, and check what must hold before the first."""
        self.taken += 1
        try:
            first = not self.journal.status.steps
            if not self.steps.before_step(optimiser):
                return
            if first and self._saved is not None:
                self._require_saved_parts(self._saved)
        except LayerSyncError as error:
            self.journal.fail(error)
        if _compat.inside_backward():  # this backward has not reached the student yet
            _compat.at_end_of_backward(self._end_step)
        else:
            self._end_step()

    def _end_step(self) -> None:
        self._read_metrics()
        self.journal.log.step()
        for follow in self.followers:
            follow(self.journal.log)
        self.journal.write_now_and_then()

    def skipped(self, optimiser: torch.optim.Optimizer) -> None:
        """Discard a group of losses whose step a scaler skipped."""
        self.steps.skipped(optimiser)

    def resumed(self, states: dict[str, Any] | None) -> None:
        """Resume where a checkpoint was written.

        Args:
            states: By name of the model, as ``state`` returned them; None where the checkpoint has none.
        """
        try:
            if states is not None:
                self.courses.resume({name: state["step"] for name, state in states.items()})
                self._saved = states
                for candidate in self.candidates.attached:
                    self._attached(candidate)
            elif self._start_step is None:
                if self.candidates.use_steps or any(item.attached_to.modules() for item in self.candidates.attached):
                    raise ConfigError(
                        "the checkpoint has no layersync_state.safetensors, so the step of the schedule is unknown; "
                        "give --layersync_start_step N"
                    )
                say("the checkpoint has no layersync_state.safetensors, but nothing in LayerSync depends on the step")
        except LayerSyncError as error:
            self.journal.fail(error)

    def state(self) -> dict[str, dict[str, Any]]:
        """Return the state of each trained model by name, at its optimiser step."""
        return self.courses.state()

    def _save(self, attachment: Attachment) -> None:
        if self._file is None or attachment.found is None or ranks.rank():
            return
        try:
            attachment.save_adapter(self._file)
        except LayerSyncError as error:
            self.journal.fail(error)

    def _require_saved_parts(self, saved: dict[str, Any]) -> None:
        for course, attachment in self.courses.current():
            names = attachment.modules()
            if names and not saved.get(str(course.candidate), {}).get("modules"):
                raise ConfigError(
                    f"the checkpoint has no trained part of {', '.join(names)} for {course.candidate}, since it was "
                    "written without it; start afresh, or switch it off"
                )

    def _fill(self, status: Status, wait: bool) -> None:
        if wait and not status.steps:
            self._read_metrics()  # of losses that no optimiser step followed
        status.trainings = [course.record(wait) for course in self.courses.all if course.terms]
        for course, attachment in self.courses.current():
            taking_part = {f"{record['name']} {record['version']}" for record in attachment.distributions()}
            status.distributions = sorted({*status.distributions, *taking_part})
            status.same = status.same or _own_teacher(attachment)
            if attachment.guard is not None:
                self._blind[course] = attachment.guard.blind
        status.blind = next(filter(None, self._blind.values()), "")

    def _fetch(self) -> None:
        """Read the metrics of losses that no optimiser step follows."""
        # Not at the loss itself, since some are known only in its backward. An existing optimiser may never step.
        if not all(course.steps for course in self.courses.latest.values()):
            self._read_metrics()

    def _read_metrics(self) -> None:
        for course, attachment in self.courses.current():
            metrics = attachment.metrics()
            course.note(metrics)
            self.journal.log.add(metrics)

    def _attached(self, candidate: Candidate) -> None:
        modules, saved = candidate.attached_to.modules(), self._saved
        state = (saved or {}).get(str(candidate), {})
        if modules and state.get("modules"):
            candidate.attached_to.load_state_dict(state)
        else:
            candidate.attached_to.compare(state)
        candidate.attached_to.gate(self.courses.first)


def _own_teacher(attachment: Attachment) -> str:
    pairs = attachment.pairs
    return str(pairs[0].student) if pairs and all(pair.student == pair.teacher for pair in pairs) else ""


def _describe(candidate: Candidate) -> str:
    attachment = candidate.attached_to
    _, *told = attachment.describe()  # the first line is the family
    lines = ", ".join(line.replace(": ", " ", 1) for line in told)
    return ": ".join((f"{candidate} (family {attachment.family})", *([lines] if lines else [])))
