"""Saves the gradients of every optimiser step; in a reference run it adds LayerSync's term by itself.

Nothing here knows of layersync: what the term is, where it is added and which tokens count is written out anew.
"""

import json
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

_steps: list[list[Tensor]] = []
_early: dict[int, Tensor] = {}


def watch() -> None:
    """Save {path}, a list of the gradients of each step in the order of the optimiser's parameters."""
    if os.environ["TRAINER_SAVED_AT"] == "step":
        register_optimizer_step_pre_hook(_save)
    else:
        zero_grad = torch.optim.Optimizer.zero_grad

        def saving(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
            _save(optimizer)
            zero_grad(optimizer, *args, **kwargs)

        torch.optim.Optimizer.zero_grad = saving  # type: ignore[method-assign]
    reference = json.loads(os.environ.get("TRAINER_REFERENCE", "null"))
    if reference:
        _Reference(**reference).install()


def keep(parameter: Tensor) -> None:
    """Keep the gradient of a parameter that is updated, and loses it, before the step."""
    assert parameter.grad is not None
    _early[id(parameter)] = parameter.grad.detach().clone()


def _save(optimizer: torch.optim.Optimizer, *args: Any) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [_early.pop(id(p), p.grad) for p in parameters]
    if all(gradient is None for gradient in gradients):
        return
    _steps.append([gradient.detach().clone() for gradient in gradients if gradient is not None])
    torch.save(_steps, os.environ["TRAINER_GRADIENTS"])


class _Reference:
    """The term of one pair of blocks.

    Args:
        blocks: For each class of blocks, which element of its output has the image or video tokens (None if the output
            isn't a tuple), and the position of the first generated one in it.
        student: The student's place in the order of the first calls, from 1, without those ahead.
        teacher: The teacher's.
        weight: The term is minus ``weight`` times the mean cosine.
        tokens: How many tokens are generated; None for all that are left.
        ahead: How many blocks of these classes are called before the first that counts.
        backward: Which function takes the loss: ``accelerate`` (the Accelerator's, which divides), or ``tensor``.
        losses: How many losses the trainer itself divides a step's gradient by.
        warmup: Steps over which the weight rises from zero.
    """

    def __init__(
        self,
        blocks: dict[str, tuple[int | None, int]],
        student: int,
        teacher: int,
        weight: float,
        backward: str,
        tokens: int | None = None,
        ahead: int = 0,
        losses: int = 1,
        warmup: int = 0,
    ) -> None:
        self._classes, self._tokens, self._backward = blocks, tokens, backward
        self._student, self._teacher, self._weight = ahead + student, ahead + teacher, weight
        self._losses, self._warmup = losses, warmup
        self._blocks: list[torch.nn.Module] = []
        self._states: dict[int, Tensor] = {}

    def install(self) -> None:
        register_module_forward_hook(self._keep)
        owner: Any = torch.Tensor
        if self._backward == "accelerate":
            from accelerate import Accelerator as owner  # noqa: N813  # a trainer without it has no use for it
        owner.backward = self._with_term(owner.backward)

    def _with_term(self, backward: Callable[..., None]) -> Callable[..., None]:
        def with_term(*args: Any, **kwargs: Any) -> None:
            # A loss after which no forward came, or a backward of checkpointing, which runs inside of another.
            if not self._states or torch._C._current_graph_task_id() != -1:
                return backward(*args, **kwargs)
            *before, loss = args
            return backward(*before, loss + self._term(), **kwargs)

        return with_term

    def _keep(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        # Checkpointing recomputes inside a backward; samples are made without gradients.
        if type(module).__name__ not in self._classes or torch._C._current_graph_task_id() != -1:
            return
        if not torch.is_grad_enabled():
            return
        if not any(module is block for block in self._blocks):
            self._blocks.append(module)
        number = next(i for i, block in enumerate(self._blocks, 1) if block is module)
        # Of several forwards behind a loss the first counts.
        element, _ = self._classes[type(module).__name__]
        self._states.setdefault(number, output if element is None else output[element])

    def _term(self) -> Tensor:
        student, teacher = (self._generated(number).float() for number in (self._student, self._teacher))
        self._states.clear()
        weight = self._weight / self._losses
        if self._warmup:
            weight *= min(1.0, len(_steps) / self._warmup)
        return -weight * F.cosine_similarity(student, teacher.detach(), dim=-1).mean()

    def _generated(self, number: int) -> Tensor:
        # Not in the block's hook: autograd would add the term's gradient later, which rounds differently in bfloat16.
        _, first = self._classes[type(self._blocks[number - 1]).__name__]
        state = self._states[number]
        tokens = state.shape[-2] - first if self._tokens is None else self._tokens
        return state.narrow(-2, first, tokens)
