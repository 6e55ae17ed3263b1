"""The arguments that a training loop passes to ``apply``, checked once, before any regularizer sees them."""

# Shapes: B batch

from __future__ import annotations

from operator import index
from typing import Any

import torch
from torch import Tensor

from layersync_core import _compat
from layersync_core.errors import ConfigError, LayerSyncError


def check_main_loss(loss: Any) -> None:
    """Raise ConfigError unless a main loss is a scalar tensor of real numbers."""
    if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
        raise ConfigError(f"apply() takes the main loss as a scalar tensor of real numbers; got {_what(loss)}")


def whole_step(step: Any) -> int:
    """Return an optimiser step as an int.

    Raises:
        ConfigError: It isn't a whole number of at least 0.
    """
    try:
        is_boolean = isinstance(step, bool) or (isinstance(step, Tensor) and step.dtype == torch.bool)
        number = -1 if is_boolean else index(step)
    except TypeError:
        number = -1
    if number < 0:
        raise ConfigError(f"step is {step!r}; it takes the optimiser step, a whole number from 0")
    return number


def sample_weights(weight: Any) -> Tensor:
    """Return the host's sample weights as real numbers without a graph.

    Args:
        weight: (B,) tensor of numbers of at least 0.

    Raises:
        ConfigError: It is something else. On a GPU the device stops the program at a negative or infinite weight, since
            the host does not wait for it.
    """
    if not isinstance(weight, Tensor) or weight.ndim != 1 or weight.is_complex():
        raise ConfigError(
            f"sample_weight takes a tensor with one real number per sample, shape (B,); got {_what(weight)}"
        )
    weight_B = weight.detach() if weight.requires_grad else weight
    if not weight_B.is_floating_point():
        weight_B = weight_B.float()
    assert_on_device(
        ((weight_B >= 0) & weight_B.isfinite()).all(),
        "sample_weight has a negative, infinite or NaN weight; weights must be finite and at least 0",
        ConfigError,
    )
    return weight_B


def check_batch(weight: Tensor, batch: int) -> None:
    """Raise ConfigError unless there is one weight per sample."""
    if len(weight) != batch:
        raise ConfigError(
            f"sample_weight has {len(weight)} weights, but the training forward had {batch} samples; give one weight "
            "per sample"
        )


def assert_on_device(condition: Tensor, message: str, error: type[LayerSyncError]) -> None:
    """Stop the program if a condition is false, without making the host wait for a device.

    Args:
        condition: 0-dim bool.
        message: What is wrong.
        error: Raised on the CPU; on CUDA the device ends the program with the message. Other devices don't check.
    """
    if condition.device.type in ("cpu", "cuda"):
        try:
            _compat.assert_async(condition, message)
        except RuntimeError:
            raise error(message) from None


def _what(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)} of {value.dtype}"
    return f"a {type(value).__name__}"
