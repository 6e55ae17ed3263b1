"""torch: models that are built or compiled, optimisers and their steps, and every loss that no other library takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from layersync_core import _compat
from layersync_core.capture.graph import tensors_in
from layersync_core.replacing import wrap_once
from layersync_core.run.nesting import inside, is_inside
from layersync_core.run.process import training
from layersync_core.run.replaced import ReplacedSteps
from layersync_core.run.showing import exception_hook, say_logs

WATCHES = ("torch",)


def take_hold() -> None:
    """Patch what every training uses."""
    exception_hook()
    say_logs()
    training()
    wrap_once(nn.Module, "__init__", _building)
    wrap_once(nn.Module, "__setstate__", _building)
    wrap_once(torch, "compile", _compiling)
    wrap_once(torch.optim.Optimizer, "__init__", _optimising)
    wrap_once(torch.autograd, "backward", _backward)
    wrap_once(torch.amp.GradScaler, "scale", _scaling)
    wrap_once(torch.amp.GradScaler, "step", _scaler_stepping)
    register_optimizer_step_pre_hook(_stepping_unless_replaced)


# Models.


def _building(original: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> None:
    original(module, *args, **kwargs)
    if not torch.compiler.is_compiling():
        training().build(module)


def _compiling(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # A graph compiled before the hooks are registered would never run them.
    training().prepare()
    return original(*args, **kwargs)


def _optimising(original: Callable[..., Any], optimiser: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
    original(optimiser, *args, **kwargs)
    _replaced.notice(optimiser)
    training().optimise(optimiser)


# Losses.


def _backward(original: Callable[..., Any], tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> Any:
    if _compat.inside_backward():  # a checkpoint that recomputes
        return original(tensors, grad_tensors, *args, **kwargs)
    _replaced.wrap()
    if is_inside():
        return original(tensors, grad_tensors, *args, **kwargs)
    add = training().add_terms
    if grad_tensors is None:
        totals = add(tensors) if isinstance(tensors, Tensor) else [add(tensor) for tensor in tensors]
        return original(totals, None, *args, **kwargs)
    roots = [tensors] if isinstance(tensors, Tensor) else [*tensors]
    factors = [grad_tensors] if isinstance(grad_tensors, Tensor) else [*grad_tensors]
    if len(roots) == len(factors):
        for number, (root, factor) in enumerate(zip(roots, factors, strict=True)):
            roots[number], factors[number] = _scaled_with_term(root, factor)
    return original(roots, factors, *args, **kwargs)


def _scaled_with_term(loss: Any, factor: Any) -> tuple[Any, Any]:
    """Return a loss with its term, and the gradient to start backward with."""
    if not isinstance(factor, Tensor) or factor.numel() != 1 or loss.numel() != 1:
        return training().add_terms(loss), factor
    total = training().add_terms(loss, factor=factor)
    return (loss, factor) if total is loss else (total, None)


def _scaling(original: Callable[..., Any], scaler: Any, outputs: Any) -> Any:
    if is_inside():
        return original(scaler, outputs)
    if isinstance(outputs, Tensor):
        outputs = training().add_terms(outputs)
    else:
        outputs = [training().add_terms(output) for output in outputs]
    with inside():  # a list is scaled element by element
        scaled = original(scaler, outputs)
    for loss in tensors_in(scaled):
        training().terms.note_made(loss)
    return scaled


# Steps.


def _scaler_stepping(
    original: Callable[..., Any], scaler: Any, optimiser: torch.optim.Optimizer, *args: Any, **kwargs: Any
) -> Any:
    taken = training().taken
    returned = original(scaler, optimiser, *args, **kwargs)
    if training().taken == taken:
        training().skipped(optimiser)
    return returned


def _stepping_unless_replaced(optimiser: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return None if id(optimiser) in _replaced.stepping else _stepping(optimiser, args, kwargs)


def _stepping(optimiser: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    named = "closure" in kwargs
    closure = kwargs["closure"] if named else next(iter(args[1:]), None)
    if not callable(closure):
        training().before_step(optimiser)
        return None
    counted = False

    def before_update() -> Any:
        # The closure runs forward and backward: in Lightning for the last loss of the step, elsewhere for all of them.
        nonlocal counted
        loss = closure()
        if not counted:
            training().before_step(optimiser)
        counted = True
        return loss

    if named:
        return args, {**kwargs, "closure": before_update}
    return (args[0], before_update, *args[2:]), kwargs


_replaced = ReplacedSteps(_stepping)
