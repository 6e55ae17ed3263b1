"""The optimiser steps of a program: counted for the schedules, and checked before the first of them."""

from __future__ import annotations

from weakref import WeakSet

import torch

from layersync_core import _compat
from layersync_core.errors import CaptureError
from layersync_core.run import ranks
from layersync_core.run.accumulation import Accumulation
from layersync_core.run.candidates import Candidates
from layersync_core.run.journal import Journal
from layersync_core.run.showing import one_line_warnings
from layersync_core.run.status import say
from layersync_core.run.terms import Terms

_IDLE_STEPS = 10
_LOSSES_WITHOUT_OPTIMISER = 100


class Steps:
    """The steps of one process.

    Args:
        candidates: The program's models.
        journal: Where lines are said.
        terms: The terms of its losses.
        accumulation: Says what share of a step a loss is.
        losses: ``layersync_accumulation_steps``, where the user gave it.
        first: The step to begin with.

    Attributes:
        now: The optimiser step, for the schedules.
    """

    def __init__(
        self,
        candidates: Candidates,
        journal: Journal,
        terms: Terms,
        accumulation: Accumulation,
        losses: int | None,
        first: int,
    ) -> None:
        self.now = first
        self._candidates, self._journal, self._terms = candidates, journal, terms
        self._accumulation, self._losses = accumulation, losses
        self._with_term = 0  # losses since the last optimiser step
        self._strangers = 0  # losses without a term, before the first term
        self._idle = 0  # optimiser steps without a term, in a row
        self._optimisers = 0
        self._ours: WeakSet[torch.optim.Optimizer] = WeakSet()
        self._others: WeakSet[torch.optim.Optimizer] = WeakSet()
        self._inside_backward = False

    def optimiser(self, optimiser: torch.optim.Optimizer) -> None:
        """Notice a new optimiser."""
        self._optimisers += 1
        if self._candidates.trained_by(optimiser):
            self._ours.add(optimiser)

    def loss(self, has_term: bool) -> None:
        """Count a loss on which backward is called.

        Raises:
            CaptureError: Losses are trained without a term, or steps cannot be counted though a schedule needs them.
        """
        self._inside_backward = False
        if not has_term:
            self._stranger()
            return
        status = self._journal.status
        self._with_term += 1
        status.terms += 1
        # Trainers that update each parameter in backward, or by hand, never call an optimiser's step.
        if status.steps:
            return
        if self._losses is not None and status.terms % self._losses == 0:
            self.now += 1
        elif self._losses is None and status.terms >= _LOSSES_WITHOUT_OPTIMISER and self._candidates.use_steps:
            raise CaptureError(
                f"no step of a torch optimiser was seen in {status.terms} losses, so the schedule would stand "
                "still; give --layersync_accumulation_steps N (1 without accumulation), and steps are counted by losses"
            )

    def before_step(self, optimiser: torch.optim.Optimizer) -> bool:
        """Check, before an optimiser's first step, that LayerSync does what it should; count the steps.

        Returns:
            Whether it is a step with a term.

        Raises:
            CaptureError: LayerSync would have no effect, or has been stopped before.
        """
        inside = _compat.inside_backward()
        if inside and self._inside_backward:
            return False  # one of many steps of a backward that updates each parameter as its gradient arrives
        self._inside_backward = inside
        status = self._journal.status
        if status.error:  # the program caught it and goes on
            raise CaptureError(status.error)
        if self._is_of_another_model(optimiser):
            return False
        if not self._with_term:
            self._idle_step(inside)
            return False
        for candidate in self._candidates.attached:
            guard = candidate.attached_to.guard
            if guard is not None and guard.waiting:
                with one_line_warnings():
                    guard.settle(wait=not self._terms.checked)
        if not self._terms.checked:
            self._check()
        self._idle, self._with_term = 0, 0
        if status.steps or self._losses is None:
            self.now += 1
        status.steps += 1
        for candidate in self._candidates.attached:
            candidate.attached_to.gate(self.now)
        return True

    def _check(self) -> None:
        self._terms.checked = True
        said = self._accumulation.verify(self._with_term)
        if said and ranks.rank() == 0:
            say(said)
        for target in self._terms.targets:
            target.attached_to.parts.require_placed()
        ranks.compare("; ".join(sorted(f"{line}, step {self.now}" for line in self._journal.status.targets)))

    def _stranger(self) -> None:
        # Programs call backward on other losses as well; but one that never steps an optimiser must be told here.
        if self._journal.status.terms or not (self._optimisers or self._candidates.attached) or not self._is_due():
            return
        self._strangers += 1
        if self._strangers > 1:
            raise CaptureError(f"two losses were trained without LayerSync's term: {self._why()}")

    def _is_of_another_model(self, optimiser: torch.optim.Optimizer) -> bool:
        """Return whether an optimiser is that of, say, a discriminator."""
        # Judged by what it was made with, since some libraries put other tensors into it later. Where none was made
        # with the model's own parameters, LoRA weights stand outside of it, and any may have them.
        if optimiser in self._ours or not self._ours:
            return False
        if optimiser not in self._others:
            (self._ours if self._candidates.trained_by(optimiser) else self._others).add(optimiser)
        return optimiser in self._others

    def _idle_step(self, inside: bool) -> None:
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
