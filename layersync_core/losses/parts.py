"""The trainable parts that regularizers bring: the same on every rank, and really trained.

They stand in no wrapper of the model's, so nothing else would average their gradients; and an optimiser that was never
given them would leave them as they are in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import ref

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from layersync_core import _compat
from layersync_core.distributed import several_ranks
from layersync_core.errors import CaptureError

_UPDATES = 3
"""After so many updates of the model without one of a part, the part is in no optimiser."""


class TrainedParts:
    """Watch the trainable parts of an attachment.

    Args:
        model: The model they are trained with.
        parts: The parts by the name of their regularizer.
    """

    def __init__(self, model: nn.Module, parts: Mapping[str, nn.Module]) -> None:
        self._model, self._parts = ref(model), parts
        self._unproven: dict[str, _Unproven] = {}
        self._received: set[str] = set()
        self._placed: set[int] = set()
        self._stepped, self._model_version = False, 0
        self._handles: list[Any] = [
            parameter.register_hook(self._receiver(name))
            for name, part in parts.items()
            for parameter in _trained(part)
        ]

    def begin(self) -> None:
        """Give every rank the first one's weights, at the first training step."""
        if several_ranks():
            for part in self._parts.values():
                for tensor in (*part.parameters(), *part.buffers()):
                    dist.broadcast(tensor.detach(), 0)
        self._unproven = {name: _Unproven(part) for name, part in self._parts.items() if [*_trained(part)]}
        self._model_version = _version(self._model())
        if self._unproven:
            self._handles.append(register_optimizer_step_post_hook(self._on_step))

    def check(self) -> None:
        """Refuse to go on with a part that gets gradients while the model is updated and it is not.

        Nothing waits for the device unless an update is missing.

        Raises:
            CaptureError: There is such a part.
        """
        if not self._unproven:
            return
        before, self._model_version = self._model_version, _version(self._model())
        updated = self._stepped or self._model_version != before
        self._stepped = False
        for name, part in [*self._unproven.items()]:
            part.updates += updated and name in self._received
            if part.has_other_version() or (part.updates >= _UPDATES and part.has_other_values()):
                del self._unproven[name]
            elif part.updates >= _UPDATES:
                raise CaptureError(
                    f"the trainable part of {name} gets gradients but is never updated: give "
                    "attachment.modules().parameters() to the optimiser, beside the model's parameters"
                )

    def place(self, optimiser: torch.optim.Optimizer) -> None:
        """Put the parts into an optimiser, in the group of their model's parameters, unless they are in one already.

        For a host that cannot be told to do so itself.
        """
        model = self._model()
        fresh = [it for part in self._parts.values() for it in _trained(part) if id(it) not in self._placed]
        if not fresh or model is None:
            return
        own = {id(parameter) for parameter in _trained(model)}
        groups = [group for group in optimiser.param_groups if own & {id(p) for p in group["params"]}]
        # Trainers keep LoRA weights outside of the model: then its optimiser is the one that is made after it.
        if not own:
            groups = optimiser.param_groups
        if groups:
            groups[0]["params"].extend(fresh)
            self._placed.update(map(id, fresh))

    def require_placed(self) -> None:
        """Refuse to go on with a part that ``place`` found no optimiser for.

        Raises:
            CaptureError: There is such a part.
        """
        if any(id(parameter) not in self._placed for part in self._parts.values() for parameter in _trained(part)):
            raise CaptureError(
                "a regularizer brings trainable parts, but they are in no optimiser: this program made its "
                "optimiser before its model, or it is of a kind that is not torch's"
            )

    def remove(self) -> None:
        """Take the hooks off the parts."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._unproven.clear()

    def _on_step(self, optimiser: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        # Versions alone would not do: fused optimisers leave them as they are.
        if self._unproven:
            held = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
            model = self._model()
            self._stepped = self._stepped or (model is not None and any(id(it) in held for it in _trained(model)))
            for name in [*self._unproven]:
                if any(id(parameter) in held for parameter in _trained(self._parts[name])):
                    del self._unproven[name]

    def _receiver(self, name: str) -> Callable[[Tensor], Tensor]:
        # Here, before the gradient is accumulated: clipping would see another norm on each rank later. What some
        # wrapper has averaged already, or will average, stays what it is.
        def receive(gradient: Tensor) -> Tensor:
            self._received.add(name)
            if not several_ranks():
                return gradient
            mean = gradient / dist.get_world_size()
            dist.all_reduce(mean)
            return mean

        return receive


class _Unproven:
    """A part of which no update was seen yet."""

    def __init__(self, part: nn.Module) -> None:
        self._part, self._version = part, _version(part)
        self._values = [parameter.detach().clone() for parameter in _trained(part)]
        self.updates = 0  # of the model, while the part got gradients

    def has_other_version(self) -> bool:
        """Return whether the part was changed in place."""
        return _version(self._part) != self._version

    def has_other_values(self) -> bool:
        """Return whether the part was changed in any way; an update through ``.data`` leaves the version as it was."""
        return not all(torch.equal(now, before) for now, before in zip(_trained(self._part), self._values, strict=True))


def _version(module: nn.Module | None) -> int:
    # Counts the changes in place; reading it waits for nothing.
    return 0 if module is None else sum(_compat.version(parameter) for parameter in _trained(module))


def _trained(module: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in module.parameters() if parameter.requires_grad)
