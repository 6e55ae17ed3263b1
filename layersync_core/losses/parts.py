"""The trainable parts that regularizers bring: kept equal on every rank, and checked to be trained.

No wrapper of the model contains them, so nothing else would average their gradients; and if they are missing from the
optimiser, they would silently stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from weakref import ref

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from layersync_core import _compat
from layersync_core.distributed import several_ranks
from layersync_core.errors import CaptureError, ConfigError

_UPDATES = 3
"""After this many updates of the model without an update of a part, the part isn't in any optimiser."""


def refuse_parts(regularizers: Iterable[Any]) -> None:
    """Refuse trainable parts that are created only after the optimiser.

    Args:
        regularizers: The enabled ones, which are asked for their layers at the first loss.

    Raises:
        ConfigError: One of them brings a part.
    """
    names = [item.item.name for item in regularizers if item.module is not None]
    if names:
        raise ConfigError(
            f"{' and '.join(names)} brings a trainable part, which the optimiser must be given before the first step, "
            "but family auto knows the model's blocks only after its first forward: save what it finds as an adapter "
            "file (layersync inspect MODEL --inputs FILE --save adapter.json, or save_adapter()) and give that as the "
            "family"
        )


class TrainedParts:
    """The trainable parts of an attachment.

    Args:
        model: The model they are trained with.
        parts: The parts by name of their regularizer.
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
        """Refuse to go on with a part that gets gradients but is not updated while the model is.

        This waits for the device only if an update is missing.

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
        """Add the parts to an optimiser, in the group of their model's parameters, unless they are already in one.

        This is for hosts whose code cannot be changed to do so.
        """
        model = self._model()
        fresh = [it for part in self._parts.values() for it in _trained(part) if id(it) not in self._placed]
        if not fresh or model is None:
            return
        own = {id(parameter) for parameter in _trained(model)}
        groups = [group for group in optimiser.param_groups if own & {id(p) for p in group["params"]}]
        # Trainers may keep LoRA weights outside of the model; its optimiser is then the one created after it.
        if not own:
            groups = optimiser.param_groups
        if groups:
            groups[0]["params"].extend(fresh)
            self._placed.update(map(id, fresh))

    def take_out(self, optimiser: torch.optim.Optimizer) -> None:
        """Take the parts out of an optimiser that outlives them, and whatever it keeps for them."""
        for parameter in (it for part in self._parts.values() for it in part.parameters()):
            optimiser.state.pop(parameter, None)
            for group in optimiser.param_groups:
                group["params"][:] = [it for it in group["params"] if it is not parameter]

    def require_placed(self) -> None:
        """Refuse to go on with a part that ``place`` found no optimiser for.

        Raises:
            CaptureError: There is such a part.
        """
        if any(id(parameter) not in self._placed for part in self._parts.values() for parameter in _trained(part)):
            raise CaptureError(
                "a regularizer brings trainable parts, but they are not in any optimiser: this program created its "
                "optimiser before its model, or the optimiser isn't a torch.optim.Optimizer"
            )

    def remove(self) -> None:
        """Take the hooks off the parts."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._unproven.clear()

    def _on_step(self, optimiser: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        # Version counters alone are not enough: fused optimisers don't change them.
        if self._unproven:
            held = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
            model = self._model()
            self._stepped = self._stepped or (model is not None and any(id(it) in held for it in _trained(model)))
            for name in [*self._unproven]:
                if any(id(parameter) in held for parameter in _trained(self._parts[name])):
                    del self._unproven[name]

    def _receiver(self, name: str) -> Callable[[Tensor], Tensor]:
        # Averaged here, before the gradient is accumulated, since clipping would later see a different norm on each
        # rank. If some wrapper averages these gradients as well, averaging equal values changes nothing.
        def receive(gradient: Tensor) -> Tensor:
            self._received.add(name)
            if not several_ranks():
                return gradient
            mean = gradient / dist.get_world_size()
            dist.all_reduce(mean)
            return mean

        return receive


class _Unproven:
    """A part that has not been seen to be updated yet."""

    def __init__(self, part: nn.Module) -> None:
        self._part, self._version = part, _version(part)
        self._values = [parameter.detach().clone() for parameter in _trained(part)]
        self.updates = 0  # updates of the model while the part got gradients

    def has_other_version(self) -> bool:
        """Return whether the part was changed in place."""
        return _version(self._part) != self._version

    def has_other_values(self) -> bool:
        """Return whether the part's values changed; an update through ``.data`` does not change the version."""
        return not all(torch.equal(now, before) for now, before in zip(_trained(self._part), self._values, strict=True))


def _version(module: nn.Module | None) -> int:
    # The number of in-place changes; reading it does not wait for the device.
    return 0 if module is None else sum(_compat.version(parameter) for parameter in _trained(module))


def _trained(module: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in module.parameters() if parameter.requires_grad)
