"""The term of a loss: of the forwards that the loss depends on, scaled as the loss is."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from layersync_core.capture.forward import Forward
from layersync_core.capture.graph import notes
from layersync_core.errors import CaptureError, ConfigError
from layersync_core.metrics import total
from layersync_core.run.accumulation import Accumulation
from layersync_core.run.candidates import Candidate, Candidates
from layersync_core.run.journal import Journal
from layersync_core.run.passes import forwards_of
from layersync_core.run.showing import one_line_warnings

_TERM = "layersync term"


class Terms:
    """The terms of a program's losses.

    Args:
        candidates: The program's models.
        journal: Where lines are said.
        accumulation: Says what share of a step a loss is.
        target: ``layersync_target``, where several families are meant to be told apart.

    Attributes:
        targets: Models whose terms were added.
        checked: The first optimiser step has shown that all is well, so that nothing is warned of any more.
    """

    def __init__(
        self, candidates: Candidates, journal: Journal, accumulation: Accumulation, target: str | None
    ) -> None:
        self.targets: list[Candidate] = []
        self.checked = False
        self._candidates, self._journal, self._accumulation, self._target = candidates, journal, accumulation, target

    def add(
        self, loss: Any, step: int, divides: int | None, factor: Tensor | None
    ) -> tuple[Any, list[Candidate] | None]:
        """Return a loss plus its term, and the models whose forwards were used for it; None where it gets no term.

        Args:
            loss: What the program wants gradients of.
            step: The optimiser step.
            divides: By how much the library that runs backward divides it afterwards; None where none does.
            factor: Scalar that the gradient begins with, a factor of the loss by another name: the sum is multiplied.

        Raises:
            CaptureError: The term cannot be made, or not be scaled as the loss is.
            ConfigError: The loss depends on models of several families.
        """
        if not isinstance(loss, Tensor) or loss.grad_fn is None:
            return loss, None
        # A program may call backward under no_grad: that concerns its forwards, not the sum that is differentiated.
        with nullcontext() if torch.is_grad_enabled() else torch.enable_grad():
            noted = notes(loss.grad_fn)
            term = noted.get(_TERM)  # a second backward through one loss counts twice, so does its term
            found = {} if term is not None else forwards_of(loss, self._candidates.attached)
            if term is None:
                if not found:
                    return loss, None
                if loss.numel() != 1:
                    raise CaptureError(
                        f"backward was called on a tensor of shape {tuple(loss.shape)}, which is no loss that a term "
                        "could be added to; call it on a scalar"
                    )
                # The term knows nothing of the loss, so this makes no circle that would keep the graph alive.
                term = noted[_TERM] = self._term(found, step)
            scaled = loss if factor is None else loss * factor.detach()
            share = self._accumulation.share(scaled, divides)
            return scaled + (term if share == 1 else term * share).to(loss.device), list(found)

    def _term(self, found: dict[Candidate, list[Forward]], step: int) -> Tensor:
        if len(found) > 1:
            self._require_one_family(list(found))
        terms: list[Tensor] = []
        errors: list[CaptureError] = []
        for candidate, (first, *others) in found.items():
            if others:
                self._journal.say_once(
                    "several",
                    f"{len(others) + 1} training forwards of {candidate} are part of one loss; the first of them gets "
                    "the term",
                )
            for other in others:
                candidate.attached_to.forget(other)
            try:
                with nullcontext() if self.checked else one_line_warnings():
                    terms.append(candidate.attached_to.loss(step=step, forward=first))
            except CaptureError as error:
                # A frozen model between the trained one and the loss, such as a discriminator, is no target.
                errors.append(error)
                continue
            if candidate not in self.targets:
                self.targets.append(candidate)
        if not terms:
            raise errors[0]
        return total(terms)

    def _require_one_family(self, candidates: list[Candidate]) -> None:
        families = {item.attached_to.family for item in candidates}
        if len(families) > 1 and not self._target:
            names = ", ".join(f"{item} ({item.attached_to.family})" for item in candidates)
            raise ConfigError(
                f"the loss depends on models of several families: {names}; name the one to train with LayerSync with "
                "--layersync_target"
            )
