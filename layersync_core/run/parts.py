"""The trainable parts of regularizers in a program that knows nothing of them: optimised and resumed with its model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layersync_core.errors import CaptureError, ConfigError
from layersync_core.run.candidates import Candidate


class Parts:
    """The parts of all candidates."""

    def __init__(self) -> None:
        self._placed: list[nn.Parameter] = []
        self._saved: Mapping[str, Any] | None = None

    def place(self, candidate: Candidate, optimiser: torch.optim.Optimizer) -> None:
        """Put the parts into the optimiser of their model, in the group of its parameters."""
        fresh = [p for p in _trained(candidate) if not any(p is placed for placed in self._placed)]
        if not fresh:
            return
        model = candidate.model()
        assert model is not None
        own = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        groups = [group for group in optimiser.param_groups if own & {id(p) for p in group["params"]}]
        # Trainers keep LoRA weights outside of the model: then its optimiser is the one that is made after it.
        if not own:
            groups = optimiser.param_groups
        if groups:
            groups[0]["params"].extend(fresh)
            self._placed.extend(fresh)

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Go on with the parts of a checkpoint, as ``state`` gave them."""
        self._saved = saved

    def restore(self, candidate: Candidate) -> None:
        """Load what the checkpoint has of a candidate.

        Raises:
            ConfigError: It does not fit.
        """
        prefix = f"{candidate}/"
        saved = {} if self._saved is None else self._saved
        own = {name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)}
        modules = candidate.attached_to.modules()
        if own and modules:
            try:
                modules.load_state_dict(own)
            except RuntimeError as error:
                raise ConfigError(
                    f"the checkpoint's trainable parts do not fit: {' '.join(str(error).split())}"
                ) from None

    def check(self, targets: Iterable[Candidate]) -> None:
        """Check, before the first optimiser step, that the parts are trained and where they come from.

        Raises:
            CaptureError: One is in no optimiser.
            ConfigError: The checkpoint that the program goes on from has none.
        """
        for target in targets:
            if any(not any(p is placed for placed in self._placed) for p in _trained(target)):
                raise CaptureError(
                    "a regularizer brings trainable parts, but they are in no optimiser: this program made its "
                    "optimiser before its model, or it is of a kind that is not torch's"
                )
            names = target.attached_to.modules()
            if self._saved is not None and names and not any(key.startswith(f"{target}/") for key in self._saved):
                raise ConfigError(
                    f"the checkpoint has no trained part of {', '.join(names)} for {target}: it was written without "
                    "it; start anew, or switch it off"
                )

    @staticmethod
    def state(targets: Iterable[Candidate]) -> dict[str, Tensor]:
        """Return the weights of the parts by name."""
        return {
            f"{target}/{name}": tensor
            for target in targets
            for name, tensor in target.attached_to.modules().state_dict().items()
        }


def _trained(candidate: Candidate) -> list[nn.Parameter]:
    return [p for p in candidate.attached_to.modules().parameters() if p.requires_grad]
