"""The term of a loss: of the forwards that the loss depends on, scaled as the loss is."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from layersync_core.capture.graph import notes
from layersync_core.errors import CaptureError, ConfigError
from layersync_core.run.candidates import Candidate, Candidates
from layersync_core.run.course import Courses
from layersync_core.run.journal import Journal
from layersync_core.run.passes import Found, forwards_of
from layersync_core.run.showing import one_line_warnings

_TERM = "layersync term"


class Terms:
    """The terms of a program's losses.

    Args:
        candidates: The program's models.
        journal: Where lines are said.
        courses: Their trainings, each with a step and a share of its own.
        target: ``layersync_target``, where several families are meant to be told apart.

    Attributes:
        targets: Models whose terms were added.
    """

    def __init__(self, candidates: Candidates, journal: Journal, courses: Courses, target: str | None) -> None:
        self.targets: list[Candidate] = []
        self._candidates, self._journal, self._courses, self._target = candidates, journal, courses, target

    def add(
        self, loss: Any, divides: int | None, factor: Tensor | None, past: int = 1
    ) -> tuple[Any, list[Candidate] | None]:
        """Return a loss plus its term, and the models whose forwards were used for it; None where it gets no term.

        Args:
            loss: What the program wants gradients of.
            divides: By how much the library that runs backward divides it afterwards; None where none does.
            factor: Scalar that the gradient begins with, a factor of the loss by another name: the sum is multiplied.
            past: By how much the library divides the gradient behind the loss, where the term does not pass.

        Raises:
            CaptureError: The term cannot be made, or not be scaled as the loss is.
            ConfigError: The loss depends on models of several families.
        """
        if not isinstance(loss, Tensor) or loss.grad_fn is None:
            return loss, None
        # A program may call backward under no_grad: that concerns its forwards, not the sum that is differentiated.
        with nullcontext() if torch.is_grad_enabled() else torch.enable_grad():
            noted = notes(loss.grad_fn)
            terms = noted.get(_TERM)  # a second backward through one loss counts twice, so do its terms
            found = [] if terms is not None else forwards_of(loss, self._candidates.attached)
            if terms is None:
                if not found:
                    return loss, None
                if loss.numel() != 1:
                    raise CaptureError(
                        f"backward was called on a tensor of shape {tuple(loss.shape)}, which is no loss that a term "
                        "could be added to; call it on a scalar"
                    )
                # The term knows nothing of the loss, so this makes no circle that would keep the graph alive.
                terms = noted[_TERM] = self._terms(found)
            total = scaled = loss if factor is None else loss * factor.detach()
            for candidate, term in terms:
                share = self._courses.of(candidate).accumulation.share(scaled, divides) / past
                total = total + (term if share == 1 else term * share).to(loss.device)
            return total, [candidate for candidate, _ in terms] if found else []

    def note_made(self, loss: Tensor) -> None:
        """Note that a loss was made of one that was looked at, so that it is not looked at again."""
        if loss.grad_fn is not None:
            notes(loss.grad_fn).setdefault(_TERM, [])

    def _terms(self, found: list[Found]) -> list[tuple[Candidate, Tensor]]:
        """Return the terms of the models whose results stand furthest from the loss.

        One in between, such as a critic, is trained by losses of its own; its term would train what stands behind it.
        """
        errors: list[CaptureError] = []
        for place in range(len(found) - 1, -1, -1):
            terms = self._terms_of(found[place], errors)
            if terms:
                between = [str(candidate) for nearer in found[:place] for candidate in nearer]
                if between:
                    behind = " and ".join(str(candidate) for candidate, _ in terms)
                    self._journal.say_once(
                        "between",
                        f"{' and '.join(between)} stands between {behind} and the loss, and gets no term of it",
                    )
                return terms
        raise errors[0]

    def _terms_of(self, found: Found, errors: list[CaptureError]) -> list[tuple[Candidate, Tensor]]:
        terms: list[tuple[Candidate, Tensor]] = []
        for candidate, (first, *others) in found.items():
            if others:
                self._journal.say_once(
                    "several",
                    f"{len(others) + 1} training forwards of {candidate} are part of one loss; the first of them gets "
                    "the term",
                )
            for other in others:
                candidate.attached_to.forget(other)
            course = self._courses.of(candidate)
            try:
                with nullcontext() if course.checked else one_line_warnings():
                    terms.append((candidate, candidate.attached_to.loss(step=course.now, forward=first)))
            except CaptureError as error:
                # A frozen model between the trained one and the loss, such as a discriminator, is no target.
                errors.append(error)
                continue
            if candidate not in self.targets:
                self.targets.append(candidate)
        if len(terms) > 1:
            self._require_one_family([candidate for candidate, _ in terms])
        return terms

    def _require_one_family(self, candidates: list[Candidate]) -> None:
        families = {item.attached_to.family for item in candidates}
        if len(families) > 1 and not self._target:
            names = ", ".join(f"{item} ({item.attached_to.family})" for item in candidates)
            raise ConfigError(
                f"the loss depends on models of several families: {names}; name the one to train with LayerSync with "
                "--layersync_target"
            )
