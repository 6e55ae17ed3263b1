"""The arguments of a model's forward: which one is the sample, and which hold text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from layersync_core.capture.graph import tensors_in

SAMPLE_NAMES = ("hidden_states", "sample", "x", "img", "latents", "latent", "x_t", "noisy_latents", "inputs")
"""Names under which models take the noisy sample, the likeliest first."""

TEXT_NAMES = ("encoder_hidden_states", "txt", "context", "caption", "text", "prompt", "llama", "cap_feats")
"""Parts of the names under which models take text."""


def sample_name(inputs: Mapping[str, Any]) -> str:
    """Return the name of the noisy sample among a forward's arguments: a usual one, or that of the largest tensor.

    Raises:
        AssertionError: None of the arguments looks like one.
    """
    largest = sorted(inputs, key=lambda name: (_usual_for_text(name), -_size(inputs[name])))
    for name in (*SAMPLE_NAMES, *largest):
        if _size(inputs.get(name)):
            return name
    raise AssertionError(
        f"no noisy sample among the inputs {', '.join(inputs)}: none is a float tensor of 3 axes; name it in the "
        'test, sample = "…"'
    )


def text_names(inputs: Mapping[str, Any], sample: str, longer: Mapping[str, Any] | None = None) -> list[str]:
    """Return the names of the arguments known to hold text, by their usual names or because they get longer.

    Args:
        inputs: A forward's arguments.
        sample: Name of the noisy sample among them.
        longer: The same with more text tokens; None if the text cannot be made longer.
    """
    others = [name for name in inputs if name != sample]
    usual = [name for name in others if _usual_for_text(name)]
    if longer is None:
        return usual
    return usual + [name for name in others if name not in usual and _shapes(longer.get(name)) != _shapes(inputs[name])]


def sequences(inputs: Mapping[str, Any], without: Collection[str]) -> list[str]:
    """Return the names of the arguments that hold float tensors of 3 axes or more, without the excluded ones."""
    return [name for name, value in inputs.items() if name not in without and _size(value)]


def perturbed(inputs: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return inputs in which the floating tensors of some arguments are replaced by random ones."""
    return _mapped(inputs, torch.randn_like, names)


def cast(inputs: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Return inputs whose floating tensors have another dtype."""
    return _mapped(inputs, lambda tensor: tensor.to(dtype), list(inputs))


def _mapped(inputs: Mapping[str, Any], change: Callable[[Tensor], Tensor], names: Sequence[str]) -> dict[str, Any]:
    def changed(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value) if value.is_floating_point() else value
        if isinstance(value, (list, tuple)):
            return type(value)(changed(item) for item in value)
        return value

    return {name: changed(value) if name in names else value for name, value in inputs.items()}


def _usual_for_text(name: str) -> bool:
    return any(part in name for part in TEXT_NAMES)


def _shapes(value: Any) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors_in(value) if tensor.is_floating_point()]


def _size(value: Any) -> int:
    return sum(tensor.numel() for tensor in tensors_in(value) if tensor.is_floating_point() and tensor.ndim >= 3)
