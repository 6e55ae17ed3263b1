"""Optimisers whose ``step`` a program has replaced on the instance, which torch's own hook never sees."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any
from weakref import ref

import torch

_MARK = "counted_by_layersync"


class ReplacedSteps:
    """Counts the steps of such optimisers, once per outer call.

    Args:
        before: Called before a step with the optimiser, its arguments (itself first) and its keyword arguments; returns
            replacements for them, or None.

    Attributes:
        stepping: Ids of the optimisers with a replaced step that is running and has already been counted.
    """

    def __init__(self, before: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> None:
        self._before = before
        self._known: list[ref[torch.optim.Optimizer]] = []  # read at each backward, for which a WeakSet is slow
        self.stepping: set[int] = set()

    def notice(self, optimiser: torch.optim.Optimizer) -> None:
        """Record a new optimiser."""
        self._known.append(ref(optimiser, self._known.remove))

    def wrap(self) -> None:
        """Wrap the steps that were replaced since the last call."""
        for known in [*self._known]:
            optimiser = known()
            step = None if optimiser is None else vars(optimiser).get("step")
            if optimiser is not None and step is not None and not hasattr(step, _MARK):
                self._wrap(optimiser, step)

    def _wrap(self, optimiser: torch.optim.Optimizer, original: Callable[..., Any]) -> None:
        def step(self_: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
            if id(self_) in self.stepping:
                return original(*args, **kwargs)
            self.stepping.add(id(self_))
            try:
                changed = self._before(self_, (self_, *args), kwargs)
                if changed is not None:
                    (_, *args), kwargs = changed
                return original(*args, **kwargs)
            finally:
                self.stepping.discard(id(self_))

        # torch's learning rate schedulers check whether they have wrapped a step, and wrap its __func__.
        functools.update_wrapper(step, getattr(original, "__func__", original))
        setattr(step, _MARK, True)
        optimiser.step = MethodType(step, optimiser)  # type: ignore[method-assign]
