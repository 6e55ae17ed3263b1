"""Private APIs of torch and Python's standard library, in one place, where a version that moves one is accommodated.

torch is imported inside the functions, since a script that is started from here may have to set things up first.
"""

from __future__ import annotations

import inspect
import runpy
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import CodeType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def inside_backward() -> bool:
    """Return whether autograd is running a backward pass in this thread."""
    import torch

    return torch._C._current_graph_task_id() != -1


def at_end_of_backward(run: Callable[[], None]) -> None:
    """Run a function when the backward pass that is running ends; what it raises ends that backward."""
    import torch

    torch.autograd.Variable._execution_engine.queue_callback(run)


def inside_transform() -> bool:
    """Return whether this runs under a transform of ``torch.func``."""
    import torch

    return torch._C._functorch.peek_interpreter_stack() is not None


def assert_async(condition: Tensor, message: str) -> None:
    """Stop the program where a 0-dim condition is false, on CUDA without waiting for it; RuntimeError on the CPU."""
    import torch

    torch._assert_async(condition, message)


def version(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place; reading it does not wait for the device."""
    return tensor._version


def python_function() -> type:
    """Return the type of graph nodes that are written in Python, whose internals cannot be inspected."""
    from torch.autograd.function import BackwardCFunction

    return BackwardCFunction


def saved(node: Any, name: str) -> Any:
    """Return an argument of its operation that a graph node has saved."""
    return getattr(node, f"_saved_{name}")


def compiler_settings() -> Any:
    """Return the settings of ``torch.compile``."""
    import torch._dynamo.config

    return torch._dynamo.config


def was_compiled(module: nn.Module) -> bool:
    """Return whether the compiler has compiled a module's forward; True where that is unknown."""
    if "torch._dynamo" not in sys.modules:
        return False
    import torch

    if getattr(module, "_compiled_call_impl", None) is not None:
        return True
    entries = getattr(torch._C._dynamo.eval_frame, "_debug_get_cache_entry_list", None)
    forward = type(module).forward
    codes = [getattr(function, "__code__", None) for function in (forward, inspect.unwrap(forward))]
    return entries is None or any(entries(code) for code in codes if code is not None)


def is_compiled(module: nn.Module) -> bool:
    """Return whether ``module.compile()`` was called."""
    return getattr(module, "_compiled_call_impl", None) is not None


def first_store() -> Any:
    """Return the store that the processes of ``torch.distributed`` started with."""
    import torch.distributed as dist

    return dist.distributed_c10d._get_default_store()


def hooks_of(module: nn.Module) -> Any:
    """Return the container of a module's forward hooks; two objects that share it are the same module."""
    return module._forward_hooks


def pre_hooks(module: nn.Module) -> dict[int, Any]:
    """Return a module's forward pre-hooks by their numbers."""
    return dict(module._forward_pre_hooks)


def run_pre_hook(module: nn.Module, number: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Run one pre-hook that changes no arguments; torch itself does not run a hook that was added during the call."""
    hook = module._forward_pre_hooks[number]
    if number in module._forward_pre_hooks_with_kwargs:
        hook(module, args, kwargs)
    else:
        hook(module, args)


def module_details(name: str) -> tuple[str, Any, CodeType]:
    """Return name, spec and code of what ``python -m`` would run.

    Raises:
        ImportError: There is no such module, or it cannot be run.
    """
    details: tuple[str, Any, CodeType] = runpy._get_module_details(name)  # type: ignore[attr-defined]
    return details


def end_by_interrupt() -> None:
    """Make the process exit by SIGINT, like a program that a KeyboardInterrupt has ended.

    Python forgets about the KeyboardInterrupt if more source is compiled and run before it exits, as imports do.
    """
    with suppress(KeyboardInterrupt):
        exec("raise KeyboardInterrupt")  # noqa: S102
