"""The optimiser steps of a program: counted for the schedules, and checked before the first of each training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from weakref import WeakKeyDictionary

import torch

from layersync_core import _compat
from layersync_core.errors import CaptureError
from layersync_core.run import ranks
from layersync_core.run.candidates import Candidate, Candidates
from layersync_core.run.course import Course, Courses
from layersync_core.run.journal import Journal
from layersync_core.run.showing import one_line_warnings
from layersync_core.run.status import say

_IDLE_STEPS = 10
LOSSES_WITHOUT_OPTIMISER = 100
"""Losses without an optimiser step after which a program is assumed never to call one."""


class Steps:
    """The steps of one process.

    Args:
        candidates: The program's models.
        courses: Its trainings.
        journal: Where lines are printed.
        losses: ``layersync_accumulation_steps``, where the user gave it.
    """

    def __init__(self, candidates: Candidates, courses: Courses, journal: Journal, losses: int | None) -> None:
        self._candidates, self._courses, self._journal, self._losses = candidates, courses, journal, losses
        self._unmatched_losses = 0  # losses without a term, before the first term
        self._idle = 0  # optimiser steps without a term, in a row
        self._optimisers = 0
        self._owned: WeakKeyDictionary[torch.optim.Optimizer, bool] = WeakKeyDictionary()
        self._inside_backward = False

    @property
    def now(self) -> int:
        """The latest optimiser step of any training."""
        return self._courses.now

    def optimiser(self, optimiser: torch.optim.Optimizer) -> None:
        """Notice a new optimiser."""
        self._optimisers += 1
        for candidate in self._candidates.trained_by(optimiser):
            self._courses.begin_anew(candidate)
            candidate.give_to(optimiser)
            self._owned[optimiser] = True

    def loss(self, trained: Sequence[Course] | None) -> None:
        """Count a loss on which backward is called.

        Args:
            trained: The trainings whose terms it got; None where it got none.

        Raises:
            CaptureError: Losses are trained without a term, or steps cannot be counted although a schedule needs them.
        """
        self._inside_backward = False
        if trained is None:
            self._count_unmatched()
            return
        self._journal.status.terms += 1
        for course in trained:
            course.loss()
            # Trainers that update each parameter in backward, or by hand, never call an optimiser's step.
            if course.steps:
                continue
            # The losses of a step that a scaler skipped do not belong to the next step.
            if self._losses is not None and course.losses % self._losses == 0:
                course.now += 1
            elif self._losses is None and course.terms >= LOSSES_WITHOUT_OPTIMISER and self._candidates.use_steps:
                raise CaptureError(
                    f"no step of a torch optimiser was seen in {course.terms} losses, so the schedule would stand "
                    "still; give --layersync_accumulation_steps N (1 without accumulation) to count steps by losses"
                )

    def before_step(self, optimiser: torch.optim.Optimizer) -> bool:
        """Count the steps, and check before the first step of a training that LayerSync does what it should.

        Returns:
            Whether it is a step with a term.

        Raises:
            CaptureError: LayerSync would have no effect, or has been stopped before.
        """
        inside = _compat.inside_backward()
        if inside and self._inside_backward:
            return False  # one of many steps in a backward that updates each parameter when its gradient arrives
        self._inside_backward = inside
        status = self._journal.status
        if status.error:  # the program caught it and goes on
            raise CaptureError(status.error)
        trained = self._trained_by(optimiser)
        if trained is None:
            return False
        courses = [*filter(None, map(self._courses.latest.get, trained))]
        for course in courses:
            if course.losses:
                self._check(course)
        found = []
        for course in courses:
            found.append(course.step(optimiser))
            attachment = course.candidate.attached_to
            attachment.gate(course.now)
            # A compiled model gives no sign that a forward is abandoned, but after the step its weights are outdated.
            for forward in [*attachment.forwards]:
                if forward.end is None:
                    attachment.forget(forward)
        if True in found:
            self._idle = 0
            status.steps += 1
            return True
        if None not in found:
            self._idle_step(inside, courses)
        return False

    def skipped(self, optimiser: torch.optim.Optimizer) -> None:
        """Record a step that a scaler skipped because a gradient overflowed."""
        for candidate in self._trained_by(optimiser) or ():
            course = self._courses.latest.get(candidate)
            if course is not None:
                course.skip()
                candidate.attached_to.gate(course.now)

    def _check(self, course: Course) -> None:
        attachment = course.candidate.attached_to
        if attachment.guard is not None and attachment.guard.waiting:
            with one_line_warnings():
                attachment.guard.settle(wait=not course.checked)
        if not course.accumulation.settled:
            said = course.accumulation.verify(course.losses, course.again)
            if said and ranks.rank() == 0:
                say(said)
        if course.checked:
            return
        course.checked = True
        ahead = self._losses is not None and course.losses > self._losses and attachment.uses_steps
        if ahead and ranks.rank() == 0:
            # Until an optimiser steps, it may be one that never does, so steps are counted by losses.
            say(
                f"warning: {course.losses} losses came before the first optimiser step, and "
                f"layersync_accumulation_steps {self._losses} counted them as steps, so the schedule ran ahead within "
                "this step; it is right from here on"
            )
        attachment.parts.require_placed()
        ranks.compare("; ".join(sorted(f"{line}, step {course.now}" for line in self._journal.status.targets)))

    def _count_unmatched(self) -> None:
        # Programs call backward on other losses too, but one that never steps an optimiser must be stopped here.
        if self._journal.status.terms or not (self._optimisers or self._candidates.attached) or not self._is_due():
            return
        self._unmatched_losses += 1
        if self._unmatched_losses > 1:
            raise CaptureError(f"two losses were trained without LayerSync's term: {self._why()}")

    def _trained_by(self, optimiser: torch.optim.Optimizer) -> list[Candidate] | None:
        """Return the models that an optimiser trains; None if it belongs to something else, such as a discriminator."""
        # Judged by its initial parameters, since some libraries put other tensors into it later.
        owned = self._owned.get(optimiser)
        if owned is None:
            held = self._candidates.trained_by(optimiser)
            for candidate in held:
                candidate.give_to(optimiser)
            owned = self._owned[optimiser] = bool(held)
        attached = self._candidates.attached
        if owned:
            return [candidate for candidate in attached if optimiser in candidate.optimisers]
        # If no optimiser has a model's own parameters, the LoRA weights are outside the model and any may hold them.
        return None if any(candidate.optimisers for candidate in attached) else attached

    def _idle_step(self, inside: bool, courses: Iterable[Course]) -> None:
        status = self._journal.status
        if inside and status.terms:
            return
        if not status.terms:
            if not self._is_due():
                status.over = True
                return
            raise CaptureError(f"no loss got LayerSync's term before the first optimiser step: {self._why()}")
        if not self._is_due():
            return
        status.idle += 1
        for course in courses:
            course.idle += 1
        self._idle += 1
        if self._idle == _IDLE_STEPS:
            self._journal.say_once(
                "idle", f"warning: {_IDLE_STEPS} optimiser steps in a row had no term: {self._why()}"
            )

    def _is_due(self) -> bool:
        attached = self._candidates.attached
        return not attached or any(item.attached_to.due for item in attached)

    def _why(self) -> str:
        why, names = self._candidates.why(self._journal.seen)
        self._journal.status.seen = names
        return why
