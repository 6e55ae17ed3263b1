"""The term of a loss: of the forwards that the loss depends on, scaled as the loss is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layersync_core.errors import CaptureError, ConfigError
from layersync_core.run.candidates import Candidate, Candidates
from layersync_core.run.course import Course, Courses
from layersync_core.run.journal import Journal
from layersync_core.run.passes import Found, depends_on, forwards_of
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
    ) -> tuple[Any, list[Course] | None]:
        """Return a loss plus its term, and the trainings that it is a loss of; None where it gets no term.

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
        if not torch.is_grad_enabled():
            # A program may call backward under no_grad: that concerns its forwards, not the sum that is differentiated.
            with torch.enable_grad():
                return self.add(loss, divides, factor, past)
        noted: Any = loss.grad_fn.metadata
        terms = noted.get(_TERM)  # a second backward through one loss counts twice, so do its terms
        found = [] if terms is not None else forwards_of(loss, self._candidates.attached)
        if terms is None:
            if not found:
                for course, _ in self._courses.current():
                    course.again += depends_on(loss, course.ends)
                return loss, None
            if loss.numel() != 1:
                raise CaptureError(
                    f"backward was called on a tensor of shape {tuple(loss.shape)}, which is no loss that a term "
                    "could be added to; call it on a scalar"
                )
            # The term knows nothing of the loss, so this makes no circle that would keep the graph alive.
            terms = noted[_TERM] = self._terms(found)
        total = scaled = loss if factor is None else loss * factor.detach()
        for course, term in terms:
            share = course.accumulation.share(scaled, divides) / past
            total = total + (term if share == 1 else term * share).to(loss.device)
        return total, [course for course, _ in terms] if found else []

    def note_made(self, loss: Tensor) -> None:
        """Note that a loss was made of one that was looked at, so that it is not looked at again."""
        node: Any = loss.grad_fn
        if node is not None:
            node.metadata.setdefault(_TERM, [])

    def _terms(self, found: list[Found]) -> list[tuple[Course, Tensor]]:
        """Return the terms of the models whose results stand furthest from the loss, and the trainings they are of.

        One in between, such as a critic, is trained by losses of its own; its term would train what stands behind it.
        """
        errors: list[CaptureError] = []
        for place in range(len(found) - 1, -1, -1):
            terms = self._terms_of(found[place], errors)
            if terms:
                if place:
                    between = [str(candidate) for nearer in found[:place] for candidate in nearer]
                    behind = " and ".join(str(course.candidate) for course, _ in terms)
                    self._journal.say_once(
                        "between",
                        f"{' and '.join(between)} stands between {behind} and the loss, and gets no term of it",
                    )
                return terms
        raise errors[0]

    def _terms_of(self, found: Found, errors: list[CaptureError]) -> list[tuple[Course, Tensor]]:
        terms: list[tuple[Course, Tensor]] = []
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
            loss = candidate.attached_to.loss
            try:
                term = (loss if course.checked else one_line_warnings()(loss))(step=course.now, forward=first)
            except CaptureError as error:
                # A frozen model between the trained one and the loss, such as a discriminator, is no target.
                errors.append(error)
                continue
            terms.append((course, term))
            if first.end is not None and not course.accumulation.settled:
                course.ends.append(first.end)
            if candidate not in self.targets:
                self.targets.append(candidate)
        if len(terms) > 1:
            self._require_one_family([course.candidate for course, _ in terms])
        return terms

    def _require_one_family(self, candidates: list[Candidate]) -> None:
        families = {item.attached_to.family for item in candidates}
        if len(families) > 1 and not self._target:
            names = ", ".join(f"{item} ({item.attached_to.family})" for item in candidates)
            raise ConfigError(
                f"the loss depends on models of several families: {names}; name the one to train with LayerSync with "
                "--layersync_target"
            )
