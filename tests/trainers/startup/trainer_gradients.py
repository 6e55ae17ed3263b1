"""Saves the gradients of every optimiser step; in a reference run it adds LayerSync's term by itself.

Nothing here knows of layersync: what the term is, where it is added and which tokens count is written out anew.
"""

import json
import os
from typing import Any

import accelerate
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

_steps: list[list[Tensor]] = []


def watch() -> None:
    """Save {path}, a list of the gradients of each step in the order of the optimiser's parameters."""
    register_optimizer_step_pre_hook(_save)
    reference = json.loads(os.environ.get("TRAINER_REFERENCE", "null"))
    if reference:
        _Reference(**reference).install()


def _save(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    _steps.append([p.grad.detach().clone() for p in parameters if p.grad is not None])
    torch.save(_steps, os.environ["TRAINER_GRADIENTS"])


class _Reference:
    """The term of one pair of blocks.

    Args:
        block: Class name of the blocks.
        element: Which element of what a block returns has the image or video tokens; None where it is no tuple.
        student: The student's place in the order of the first calls, from 1.
        teacher: The teacher's.
        weight: The term is minus ``weight`` times the mean cosine.
    """

    def __init__(self, block: str, element: int | None, student: int, teacher: int, weight: float) -> None:
        self._block, self._element = block, element
        self._student, self._teacher, self._weight = student, teacher, weight
        self._blocks: list[torch.nn.Module] = []
        self._states: dict[int, Tensor] = {}

    def install(self) -> None:
        register_module_forward_hook(self._keep)
        backward = accelerate.Accelerator.backward

        def with_term(accelerator: accelerate.Accelerator, loss: Tensor, **kwargs: Any) -> None:
            backward(accelerator, loss + self._term(), **kwargs)

        accelerate.Accelerator.backward = with_term  # type: ignore[method-assign]

    def _keep(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        # Checkpointing recomputes inside a backward.
        if type(module).__name__ != self._block or torch._C._current_graph_task_id() != -1:
            return
        if not any(module is block for block in self._blocks):
            self._blocks.append(module)
        number = next(i for i, block in enumerate(self._blocks, 1) if block is module)
        self._states[number] = output if self._element is None else output[self._element]

    def _term(self) -> Tensor:
        student, teacher = self._states[self._student].float(), self._states[self._teacher].detach().float()
        self._states.clear()
        return -self._weight * F.cosine_similarity(student, teacher, dim=-1).mean()
