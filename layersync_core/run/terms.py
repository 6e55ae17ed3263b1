"""The term of a loss: from the forwards that the loss depends on, scaled like the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layersync_core.errors import CaptureError, ConfigError
from layersync_core.families.discovered import AUTO
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
        journal: Where lines are printed.
        courses: Their trainings, each with its own step and share.
        target: ``layersync_target``, which selects among several families.

    Attributes:
        targets: Models whose terms were added.
    """

    def __init__(self, candidates: Candidates, journal: Journal, courses: Courses, target: str | None) -> None:
        self.targets: list[Candidate] = []
        self._candidates, self._journal, self._courses, self._target = candidates, journal, courses, target

    def add(
        self, loss: Any, divides: int | None, factor: Tensor | None, past: int = 1, library: str = ""
    ) -> tuple[Any, list[Course] | None]:
        """Return a loss plus its term, and the trainings it belongs to; None where it gets no term.

        Args:
            loss: What the program wants gradients of.
            divides: What the library that runs backward divides it by afterwards; None where no library runs it.
            factor: Scalar that the gradient starts with, which amounts to a factor of the loss, so the sum is
                multiplied.
            past: What the library divides the gradient by in a place that the term bypasses.
            library: Name of that library.

        Raises:
            CaptureError: The term cannot be computed, or cannot be scaled like the loss.
            ConfigError: The loss depends on models of several families.
        """
        if not isinstance(loss, Tensor) or loss.grad_fn is None:
            return loss, None
        if not torch.is_grad_enabled():
            # A program may call backward under no_grad, which is about its forwards, not the sum to differentiate.
            with torch.enable_grad():
                return self.add(loss, divides, factor, past, library)
        noted: Any = loss.grad_fn.metadata
        terms = noted.get(_TERM)  # a second backward through one loss counts twice, and so do its terms
        found = [] if terms is not None else forwards_of(loss, self._candidates.attached)
        if terms is None:
            if not found:
                for course, _ in self._courses.current():
                    course.again += depends_on(loss, course.ends)
                return loss, None
            if loss.numel() != 1:
                raise CaptureError(
                    f"backward was called on a tensor of shape {tuple(loss.shape)}, to which no term can be added; "
                    "call it on a scalar"
                )
            # The term does not reference the loss, so this makes no cycle that would keep the graph alive.
            terms = noted[_TERM] = self._terms(found, loss)
        total = scaled = loss if factor is None else loss * factor.detach()
        for course, term in terms:
            share = course.accumulation.share(scaled, divides, library) / past
            total = total + (term if share == 1 else term * share).to(loss.device)
        return total, [course for course, _ in terms] if found else []

    def note_made(self, loss: Tensor) -> None:
        """Record that a loss was computed from one that was handled, so that it isn't handled again."""
        node: Any = loss.grad_fn
        if node is not None:
            node.metadata.setdefault(_TERM, [])

    def _terms(self, found: list[Found], loss: Tensor) -> list[tuple[Course, Tensor]]:
        """Return the terms of the models whose results are furthest from the loss, with their trainings.

        A model in between, such as a critic, is trained by its own losses; its term would train the model behind it.
        """
        if len(found) > 1 or len(found[0]) > 1:
            self._require_one_measured(found)
        errors: list[CaptureError] = []
        for place in range(len(found) - 1, -1, -1):
            terms = self._terms_of(found[place], loss, errors)
            if terms:
                if place:
                    between = [str(candidate) for nearer in found[:place] for candidate in nearer]
                    behind = " and ".join(str(course.candidate) for course, _ in terms)
                    self._journal.say_once(
                        "between",
                        f"{' and '.join(between)} is between {behind} and the loss, and gets no term from this loss",
                    )
                return terms
        if errors:
            raise errors[0]
        return []  # the loss shows nothing yet about a model that is being discovered

    def _terms_of(self, found: Found, main: Tensor, errors: list[CaptureError]) -> list[tuple[Course, Tensor]]:
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
                term = (loss if course.checked else one_line_warnings()(loss))(
                    step=course.now, forward=first, main=main
                )
            except CaptureError as error:
                # A frozen model between the trained one and the loss, such as a discriminator, isn't a target.
                errors.append(error)
                continue
            if candidate.attached_to.is_searching:
                continue
            terms.append((course, term))
            if first.end is not None and not course.accumulation.settled:
                course.ends.append(first.end)
            if candidate not in self.targets:
                self.targets.append(candidate)
        if len(terms) > 1:
            self._require_one_family([course.candidate for course, _ in terms])
        return terms

    def _require_one_measured(self, found: list[Found]) -> None:
        candidates = [candidate for nearer in found for candidate in nearer]
        measured = any(candidate.attached_to.family == AUTO for candidate in candidates)
        if measured and not self._target:
            names = ", ".join(map(str, candidates))
            raise ConfigError(
                f"the loss depends on several models, and family auto cannot tell which is meant: {names}; name "
                "the one to train with LayerSync by --layersync_target"
            )

    def _require_one_family(self, candidates: list[Candidate]) -> None:
        families = {item.attached_to.family for item in candidates}
        if len(families) > 1 and not self._target:
            names = ", ".join(f"{item} ({item.attached_to.family})" for item in candidates)
            raise ConfigError(
                f"the loss depends on models of several families: {names}; name the one to train with LayerSync by "
                "--layersync_target"
            )
