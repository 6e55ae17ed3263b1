"""One training of a program: a model with all optimisers that hold its parameters, and a state of its own."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet, ref

import torch
from torch import Tensor

from layersync_core.attachment import Attachment
from layersync_core.run.accumulation import Accumulation
from layersync_core.run.candidates import Candidate, Candidates
from layersync_core.run.metrics_log import SIMILARITY, Latest
from layersync_core.run.status import Record


class Course:
    """The course of one training.

    Args:
        candidate: The model.
        accumulation_steps: ``layersync_accumulation_steps``, where the user gave it.
        first: The optimiser step at which it begins.

    Attributes:
        now: The optimiser step, for the schedules.
        accumulation: Determines the share that a loss has in a step.
        losses: Losses with a term since the last step.
        ends: ``Forward.end`` of the forwards of these losses, until the first step has shown their share.
        again: Further losses of these forwards, which get no term.
        checked: The first step has shown that all is well.
        terms: Losses with a term.
        steps: Optimiser steps with a term.
        idle: Optimiser steps without a term, after the first with one.
        similarity: The first similarity and the latest.
    """

    def __init__(self, candidate: Candidate, accumulation_steps: int | None, first: int) -> None:
        self.candidate = candidate
        self.now = self._first = first
        self.accumulation = Accumulation(accumulation_steps)
        self.losses = self.again = self.terms = self.steps = self.idle = 0
        self.ends: list[ref[Any]] = []
        self.checked = False
        self.similarity = Latest(), Latest()
        self._stepped: WeakSet[torch.optim.Optimizer] = WeakSet()  # since the last step with a term

    def loss(self) -> None:
        """Count a loss with a term."""
        self.losses += 1
        self.terms += 1

    def resume(self, step: int) -> None:
        """Resume at an optimiser step."""
        self.now = self._first = step

    def skip(self) -> None:
        """End a group of losses whose step was not taken."""
        if not self.steps:
            self.now = self._first
        if self.losses:
            self._stepped.clear()
        self._end_group()
        self.accumulation.begin_again()

    def step(self, optimiser: torch.optim.Optimizer) -> bool | None:
        """Count a step of one of its optimisers; several optimisers share the losses of one step.

        Args:
            optimiser: Which one.

        Returns:
            Whether it is a step with a term; None if it belongs to a step that another optimiser has begun.
        """
        if self.losses:
            self._stepped = WeakSet([optimiser])
            self._end_group()
            # Until the first step shows that an optimiser does step, steps may have been counted by losses.
            self.now = (self.now if self.steps else self._first) + 1
            self.steps += 1
            return True
        again = optimiser in self._stepped
        self._stepped.add(optimiser)
        return False if again or len(self._stepped) == 1 else None

    def _end_group(self) -> None:
        self.losses = self.again = 0
        self.ends.clear()

    def note(self, metrics: Mapping[str, Tensor]) -> None:
        """Record the metrics of a step."""
        if SIMILARITY in metrics:
            first, last = self.similarity
            last.tensor = metrics[SIMILARITY]
            first.tensor = last.tensor if first.tensor is None else first.tensor

    def record(self, wait: bool) -> Record:
        """Return a record of this training for the status file.

        Args:
            wait: Wait for values that are still on a device.
        """
        first, last = ((latest.wait() if wait else latest.peek()) for latest in self.similarity)
        return Record(str(self.candidate), self.terms, self.steps, self.idle, first, last)


class Courses:
    """The trainings of a process, one after another or side by side.

    Args:
        candidates: The program's models.
        accumulation_steps: ``layersync_accumulation_steps``, where the user gave it.
        first: The optimiser step at which the first trainings begin.

    Attributes:
        first: That step.
        accumulation_steps: As given.
        all: In the order in which they began.
        latest: The latest training of each model that has got a term.
    """

    def __init__(self, candidates: Candidates, accumulation_steps: int | None, first: int) -> None:
        self.first = first
        self.all: list[Course] = []
        self.latest: dict[Candidate, Course] = {}
        self._candidates, self.accumulation_steps = candidates, accumulation_steps

    @property
    def now(self) -> int:
        """The latest optimiser step of any training."""
        return max((course.now for course in self.all), default=self.first)

    def current(self) -> list[tuple[Course, Attachment]]:
        """Return the latest training of each model that is still alive, and its attachment."""
        return [
            (course, attachment)
            for course in self.latest.values()
            if (attachment := course.candidate.attachment) is not None
        ]

    def of(self, candidate: Candidate) -> Course:
        """Return the training of a model; it begins with its first loss."""
        return self.latest.get(candidate) or self._begin(candidate)

    def begin_anew(self, candidate: Candidate) -> None:
        """Begin a new training for a model that gets an optimiser, if all its earlier optimisers are gone."""
        course = self.latest.get(candidate)
        if course is None or not (course.steps or candidate.owned):
            return  # losses before the first optimiser may belong to its first step
        if candidate.optimisers:
            gc.collect()  # schedulers and hooks keep optimisers alive in reference cycles
        if not candidate.optimisers:
            self._begin(candidate)

    def resume(self, steps: Mapping[str, int]) -> None:
        """Resume at the steps of a checkpoint, by name of the model."""
        self.first = max(steps.values(), default=0)
        for course, _ in self.current():
            course.resume(steps.get(str(course.candidate), self.first))

    def state(self) -> dict[str, dict[str, Any]]:
        """Return the state of each trained model by name; without any, the step at which a training would begin."""
        states = {
            str(course.candidate): {**attachment.state_dict(), "step": course.now}
            for course, attachment in self.current()
        }
        return states or {"": {"version": 1, "step": self.first, "modules": {}}}

    def _begin(self, candidate: Candidate) -> Course:
        # A program that resumes from a checkpoint does so with its first training.
        over = [course for course in self.all if course.candidate is candidate or course.candidate.attachment is None]
        stepped = any(course.steps for course in over)
        course = self.latest[candidate] = Course(candidate, self.accumulation_steps, 0 if stepped else self.first)
        self.all.append(course)
        candidate.attached_to.gate(course.now)
        return course
