"""Example inputs for an unknown forward: guessed, and repaired according to its errors."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import Any

import torch
from torch import nn

from layersync_core.entrypoints import foreign
from layersync_core.scaffold.clues import Clues, is_finite, read
from layersync_core.scaffold.given import BATCH, TEXT, Given
from layersync_core.scaffold.guessing import Guesses

_TRIES = 400
_SECONDS = 20.0
_LONGEST = 64
"""The most text tokens."""


@dataclass(frozen=True)
class Inputs:
    """The arguments of a forward.

    Attributes:
        given: The value of each argument, by name.
        text: Number of text tokens per sample.
        unknown: Arguments for which nothing was found, with the error of the forward.
    """

    given: Mapping[str, Given]
    text: int
    unknown: Mapping[str, str] = field(default_factory=dict)

    def make(self, batch: int, text: int | None = None) -> dict[str, Any]:
        """Return arguments for a batch.

        Args:
            batch: Samples.
            text: Text tokens; default: the number that was found.
        """
        sizes = {BATCH: batch, TEXT: self.text if text is None else text}
        return {name: given.make(sizes) for name, given in self.given.items()}

    @property
    def takes_text(self) -> bool:
        """Whether an argument's shape depends on the number of text tokens."""
        return any(given.uses(TEXT) for given in self.given.values())


@dataclass(frozen=True)
class Fed:
    """How far a forward got.

    Attributes:
        inputs: The arguments with which it got there.
        error: Its error there; empty if it returned.
        progress, sizes: As in ``Clues``.
    """

    inputs: Inputs
    error: str = ""
    progress: tuple[int, int] = (0, 0)
    sizes: tuple[tuple[int, int], ...] = ()


def parameters_of(model: nn.Module) -> dict[str, inspect.Parameter]:
    """Return the arguments of a model's forward that can be passed by name."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    found = inspect.signature(model.forward).parameters.items()
    return {name: item for name, item in found if item.kind not in several}


def feed(model: nn.Module, guesses: Guesses, batch: int = 2) -> Fed:
    """Find arguments with which a forward returns finite numbers, trying the likeliest first, up to a limit.

    Args:
        model: A small model.
        guesses: Candidates for its arguments.
        batch: Samples.
    """
    return _Search(model, guesses, batch).run()


def attempt(model: nn.Module, inputs: Mapping[str, Any], left: Mapping[str, Any]) -> Clues | None:
    """Run a forward; return what its error reveals, or None if it returned finite numbers.

    Args:
        model: The model.
        inputs: Its arguments.
        left: Arguments that were left at None.
    """
    done = 0

    def returned(*_: Any) -> None:
        nonlocal done
        done += 1

    handles = [module.register_forward_hook(returned) for module in model.modules() if module is not model]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), foreign():
            output = model(**inputs)
        if not is_finite(output):
            raise ValueError("it returns no floating-point tensor, or one that is not finite")
        return None
    except Exception as error:  # a model may raise anything at arguments that it does not accept
        return read(error, model, {**left, **inputs}, done)
    finally:
        for handle in handles:
            handle.remove()


class _Search:
    """Best-first search: the inputs that got furthest are repaired first."""

    def __init__(self, model: nn.Module, guesses: Guesses, batch: int) -> None:
        self._model, self._guesses, self._batch = model, guesses, batch
        self._candidates = {name: guesses.candidates(name) for name in guesses.parameters}
        self._seen: set[Any] = set()
        self._until = time.monotonic() + _SECONDS

    def run(self) -> Fed:
        first = self._guesses.given_first()
        unknown = {
            name: "a value that the forward accepts; nothing is known about it"
            for name in first
            if not self._candidates[name]
        }
        start = Inputs(
            {name: self._candidates[name][0] for name in first if name not in unknown}, self._guesses.text_length
        )
        clues = self._try(start)
        if clues is None:
            return Fed(self._without_detours(start))
        best, order = (start, clues), count()
        heap = [(_far(clues), next(order), self._moves(start, clues))]
        while heap and len(self._seen) < _TRIES and time.monotonic() < self._until:
            far, number, moves = heappop(heap)
            inputs = next(moves, None)
            if inputs is None:
                continue
            heappush(heap, (far, number, moves))
            if self._key(inputs) in self._seen:
                continue
            clues = self._try(inputs)
            if clues is None:
                return Fed(self._without_detours(inputs))
            if clues.progress > best[1].progress:
                best = inputs, clues
            heappush(heap, (_far(clues), next(order), self._moves(inputs, clues)))
        inputs, clues = best
        asked = clues.missing or clues.blamed or tuple(unknown)
        unknown |= dict.fromkeys(asked[:1], f"a value that the forward accepts; it failed with {clues.text}")
        return Fed(replace(inputs, unknown=unknown), clues.text, clues.progress, clues.sizes)

    def _without_detours(self, inputs: Inputs) -> Inputs:
        """Return the arguments without those that were tried on the way and aren't needed."""
        usual = self._guesses.given_first()
        changes: list[Callable[[Inputs], Inputs]] = [partial(replace, text=self._guesses.text_length)]
        changes += [partial(_without, name=name) for name in inputs.given if name not in usual]
        for change in changes:
            simpler = change(inputs)
            if simpler != inputs and self._try(simpler) is None:
                inputs = simpler
        # Required arguments that turned out not to matter are given as None.
        return replace(inputs, given={**{name: Given("value") for name in self._asked(inputs)}, **inputs.given})

    def _key(self, inputs: Inputs) -> Any:
        return frozenset((name, repr(given)) for name, given in inputs.given.items()), inputs.text

    def _try(self, inputs: Inputs) -> Clues | None:
        self._seen.add(self._key(inputs))
        left = {name: None for name, item in self._guesses.parameters.items() if item.default is None}
        # As far as it gets without the arguments that can't be guessed, so that the others are still found.
        asked = dict.fromkeys(self._asked(inputs))
        return attempt(self._model, {**asked, **inputs.make(self._batch)}, left)

    def _asked(self, inputs: Inputs) -> list[str]:
        """Return the required arguments of a forward about which nothing is known."""
        must = (name for name, item in self._guesses.parameters.items() if item.default is inspect.Parameter.empty)
        return [name for name in must if name not in inputs.given]

    def _moves(self, inputs: Inputs, clues: Clues) -> Iterator[Inputs]:
        """Yield other arguments, starting with those that the error suggests."""
        for name in clues.missing:
            for given in self._candidates.get(name, ())[:3]:
                yield replace(inputs, given={**inputs.given, name: given})
        blamed = [name for name in clues.blamed if name in inputs.given]
        ordered = blamed + [name for name in inputs.given if name not in blamed]
        for there, wanted in clues.sizes:
            yield from self._of_size(inputs, ordered, there, wanted, "CDN")
        for name in blamed:
            for given in self._candidates[name]:
                if clues.axes is not None and len(given.shape) == clues.axes:
                    yield replace(inputs, given={**inputs.given, name: given})
        if clues.whole is not None:
            for name in ordered:
                yield from self._of_type(inputs, name, clues.whole)
        for name in ordered:
            for given in self._candidates[name]:
                yield replace(inputs, given={**inputs.given, name: _with_width(given, inputs.given[name])})
        for there, wanted in clues.sizes:
            yield from self._of_size(inputs, ordered, there, wanted, "S")
        optional = [name for name, item in self._guesses.parameters.items() if item.default is None]
        for name in (name for name in ordered if name in optional):
            yield _without(inputs, name)
        for name in (name for name in optional if name not in inputs.given):
            if self._candidates[name]:
                yield replace(inputs, given={**inputs.given, name: self._candidates[name][0]})

    def _of_size(self, inputs: Inputs, names: list[str], there: int, wanted: int, letters: str) -> Iterator[Inputs]:
        """Yield arguments in which an axis with one of some letters has the expected size."""
        for name in names:
            given = inputs.given[name]
            if given.kind == "positions":  # as many as the sample has tokens
                continue
            for place, (axis, letter) in enumerate(zip(given.shape, given.axes, strict=True)):
                # Models don't require particular frames, rows and columns, so the order of the axes must be wrong.
                if type(axis) is not int or letter not in letters or axis == 0 or there % axis:
                    continue
                times = there // axis
                if wanted % times == 0 and wanted != there:
                    shape = (*given.shape[:place], wanted // times, *given.shape[place + 1 :])
                    yield replace(inputs, given={**inputs.given, name: replace(given, shape=shape)})
        if inputs.takes_text and "S" not in letters:
            lengths = [wanted] if there == inputs.text else []
            lengths += [inputs.text + wanted - there]
            for length in lengths:
                if 0 < length <= _LONGEST and length != inputs.text:
                    yield replace(inputs, text=length)

    def _of_type(self, inputs: Inputs, name: str, whole: bool) -> Iterator[Inputs]:
        given = inputs.given[name]
        kinds = ("indices", "steps", "whole_ones") if whole else ("unit", "noise", "ones")
        for other in self._candidates[name]:
            if other.kind in kinds and given.kind not in kinds:
                yield replace(inputs, given={**inputs.given, name: other})
        others = {"noise": "indices", "unit": "steps", "mask": "whole_ones", "ones": "whole_ones", "zeros": "indices"}
        if not whole:
            others = {"steps": "unit", "indices": "noise", "mask": "ones", "whole_ones": "ones"}
        if given.kind in others:
            yield replace(inputs, given={**inputs.given, name: replace(given, kind=others[given.kind])})


def _without(inputs: Inputs, name: str) -> Inputs:
    """Return the arguments except one."""
    return replace(inputs, given={other: given for other, given in inputs.given.items() if other != name})


def _with_width(given: Given, before: Given) -> Given:
    """Return an argument with the width that the argument before it turned out to have."""
    if given.axes.endswith("D") and before.axes.endswith("D"):
        return replace(given, shape=(*given.shape[:-1], before.shape[-1]))
    if "C" in given.axes and "C" in before.axes:
        width = before.shape[before.axes.index("C")]
        place = given.axes.index("C")
        return replace(given, shape=(*given.shape[:place], width, *given.shape[place + 1 :]))
    return given


def _far(clues: Clues) -> tuple[int, int]:
    return -clues.progress[0], -clues.progress[1]
