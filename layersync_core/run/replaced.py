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
    """Counts the steps of such optimisers, once for each outer call.

    Args:
        before: Called before a step with the optimiser, its arguments (itself first) and its keyword arguments; returns
            others to call it with, or None.

    Attributes:
        stepping: Ids of the optimisers of which a replaced step is running, which was counted already.
    """

    def __init__(self, before: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> None:
        self._before = before
        self._known: list[ref[torch.optim.Optimizer]] = []  # asked at each backward, which a WeakSet is slow for
        self.stepping: set[int] = set()

    def notice(self, optimiser: torch.optim.Optimizer) -> None:
        """Remember a new optimiser."""
        self._known.append(ref(optimiser, self._known.remove))

    def wrap(self) -> None:
        """Wrap what has been replaced since the last call."""
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

        # torch's learning rate schedulers ask whether they have wrapped a step, and take its __func__ to wrap it.
        functools.update_wrapper(step, getattr(original, "__func__", original))
        setattr(step, _MARK, True)
        optimiser.step = MethodType(step, optimiser)  # type: ignore[method-assign]
