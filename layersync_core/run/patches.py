"""Where ``layersync run`` takes hold of torch and of the libraries that train with it.

Of several nested places where a loss passes, only the outermost adds the term: the library that knows how the loss is
scaled and divided.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from layersync_core.errors import CaptureError
from layersync_core.replacing import wrap_once
from layersync_core.run import resume
from layersync_core.run.metrics_log import follow, with_metrics
from layersync_core.run.settings import from_environment, is_on
from layersync_core.run.showing import exception_hook
from layersync_core.run.training import Training

_installed: set[str] = set()
_nested = threading.local()


@cache
def training() -> Training:
    """Return the training of this process."""
    return Training(from_environment())


def install(name: str) -> None:
    """Take hold of a library that has been imported.

    Args:
        name: One of those that the start-up hook watches.
    """
    if name in _installed:
        return
    _installed.add(name)
    settings = from_environment()
    if is_on(settings):
        _PATCHES[name]()


def adopt() -> None:
    """Notice the models that were built before LayerSync was switched on."""
    # By type: asking an object for its class may run code of its own.
    for item in gc.get_objects():
        if issubclass(type(item), nn.Module):
            training().build(item)


def _torch() -> None:
    exception_hook()
    training()
    wrap_once(nn.Module, "__init__", _building)
    wrap_once(nn.Module, "__setstate__", _building)
    wrap_once(torch, "compile", _compiling)
    wrap_once(torch.optim.Optimizer, "__init__", _optimising)
    wrap_once(torch.autograd, "backward", _backward)
    wrap_once(torch.amp.GradScaler, "scale", _scaling)
    register_optimizer_step_pre_hook(_stepping)


def _accelerate() -> None:
    accelerator: Any = sys.modules["accelerate"].Accelerator
    wrap_once(accelerator, "__init__", _accelerating)
    wrap_once(accelerator, "prepare", _preparing)
    wrap_once(accelerator, "backward", _accelerated)
    wrap_once(accelerator, "log", _logging)


def _deepspeed() -> None:
    deepspeed: Any = sys.modules["deepspeed"]
    wrap_once(deepspeed.DeepSpeedEngine, "backward", _engine)
    pipe = sys.modules.get("deepspeed.runtime.pipe.engine")
    if pipe is not None:
        wrap_once(pipe.PipelineEngine, "__init__", _pipeline)


def _fabric() -> None:
    for name in ("lightning.fabric", "lightning_fabric"):
        module: Any = sys.modules.get(name)
        fabric = getattr(module, "Fabric", None)
        if fabric is not None:
            wrap_once(fabric, "backward", _engine)


def _tensorboard() -> None:
    follow(training().log)


_PATCHES: dict[str, Callable[[], None]] = {
    "torch": _torch,
    "accelerate": _accelerate,
    "deepspeed": _deepspeed,
    "lightning": _fabric,
    "lightning_fabric": _fabric,
    "torch.utils.tensorboard": _tensorboard,
}


@contextmanager
def _inside() -> Iterator[None]:
    outer = _is_inside()
    _nested.inside = True
    try:
        yield
    finally:
        _nested.inside = outer


def _is_inside() -> bool:
    return getattr(_nested, "inside", False)


# Models.


def _building(original: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> None:
    original(module, *args, **kwargs)
    if not torch.compiler.is_compiling():
        training().build(module)


def _compiling(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # A graph that is compiled before the hooks are there would never run them.
    training().prepare()
    return original(*args, **kwargs)


def _optimising(original: Callable[..., Any], optimiser: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
    original(optimiser, *args, **kwargs)
    training().optimise(optimiser)


def _preparing(original: Callable[..., Any], accelerator: Any, *args: Any, **kwargs: Any) -> Any:
    training().prepare(args)
    return original(accelerator, *args, **kwargs)


# Losses.


def _backward(original: Callable[..., Any], tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> Any:
    # Inside a running backward it is a checkpoint that recomputes.
    if _is_inside() or torch._C._current_graph_task_id() != -1:
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
    """Return a loss with its term, and what its gradient begins with."""
    if not isinstance(factor, Tensor) or factor.numel() != 1 or loss.numel() != 1:
        return training().add_terms(loss), factor
    total = training().add_terms(loss, factor=factor)
    return (loss, factor) if total is loss else (total, None)


def _scaling(original: Callable[..., Any], scaler: Any, outputs: Any) -> Any:
    if not _is_inside():
        if isinstance(outputs, Tensor):
            outputs = training().add_terms(outputs)
        else:
            outputs = [training().add_terms(output) for output in outputs]
    with _inside():  # a list is scaled one by one
        return original(scaler, outputs)


def _accelerated(original: Callable[..., Any], accelerator: Any, loss: Any, **kwargs: Any) -> Any:
    if str(getattr(accelerator.distributed_type, "value", "")) == "MEGATRON_LM":
        training().fail(
            CaptureError("Megatron-LM runs backward by itself, where no term can be added: layersync run refuses it")
        )
    if not _is_inside():
        loss = training().add_terms(loss, divides=accelerator.gradient_accumulation_steps)
    with _inside():
        return original(accelerator, loss, **kwargs)


def _engine(original: Callable[..., Any], engine: Any, loss: Any, *args: Any, **kwargs: Any) -> Any:
    if not _is_inside():
        divides = getattr(engine, "gradient_accumulation_steps", None)
        loss = training().add_terms(loss, divides=divides() if callable(divides) else 1)
    with _inside():
        return original(engine, loss, *args, **kwargs)


def _pipeline(original: Callable[..., Any], engine: Any, *args: Any, **kwargs: Any) -> None:
    original(engine, *args, **kwargs)
    if engine.num_stages > 1:
        training().fail(
            CaptureError(
                f"a DeepSpeed pipeline of {engine.num_stages} stages has student and teacher in different processes: "
                "layersync run refuses it; train with one stage"
            )
        )


# Around training.


def _stepping(optimiser: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    named = "closure" in kwargs
    closure = kwargs["closure"] if named else next(iter(args[1:]), None)
    if not callable(closure):
        training().before_step(optimiser)
        return None
    counted = False

    def before_update() -> Any:
        # The closure runs forward and backward, in Lightning for the last loss of the step, elsewhere for all.
        nonlocal counted
        loss = closure()
        if not counted:
            training().before_step(optimiser)
        counted = True
        return loss

    if named:
        return args, {**kwargs, "closure": before_update}
    return (args[0], before_update, *args[2:]), kwargs


def _accelerating(original: Callable[..., Any], accelerator: Any, *args: Any, **kwargs: Any) -> None:
    original(accelerator, *args, **kwargs)
    resume.register(accelerator, training())


def _logging(original: Callable[..., Any], accelerator: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
    if accelerator.trackers:
        values = with_metrics(training().log, values, ", ".join(tracker.name for tracker in accelerator.trackers))
    return original(accelerator, values, *args, **kwargs)
