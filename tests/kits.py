"""Small blocks, and the conformance kit run on adapters that are wrong."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_core import Adapter, BlockStack
from layersync_core.errors import LayerSyncError
from layersync_core.testing import AdapterConformance, scatter_weights

WIDTH = 12

ORDER = "test_blocks_are_numbered_in_execution_order"
SHAPE = "test_states_have_the_stated_shape"
SAMPLE = "test_tokens_belong_to_the_sample"
TEXT = "test_text_length_leaves_the_tokens_alone"


class Mixer(nn.Module):
    """Residual layer that mixes tokens a little, as attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.mix = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * torch.tanh(self.inner(x)) + 0.1 * self.mix(x).mean(dim=1, keepdim=True)


class DualBlock(Mixer):
    """Takes and returns (image, text)."""

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        both = super().forward(torch.cat([image, text], dim=1))
        return both[:, : image.shape[1]], both[:, image.shape[1] :]


def failures(kit: type[AdapterConformance], subject: Adapter, only: str = "test_") -> list[str]:
    """Run a kit, or the named check of it, on an adapter and return what failed."""

    class Kit(kit):  # type: ignore[misc, valid-type]
        adapter = subject

    failed = []
    for name in dir(Kit):
        if not name.startswith(only):
            continue
        method = getattr(Kit, name)
        marks = [mark for mark in getattr(method, "pytestmark", []) if mark.name == "parametrize"]
        for arguments in [{marks[0].args[0]: value} for value in marks[0].args[1]] if marks else [{}]:
            torch.manual_seed(0)
            model = Kit.tiny_model().eval()
            scatter_weights(model)
            given = {"model": model, "inputs": Kit.example_inputs(model, 2), **arguments}
            wanted = inspect.signature(method).parameters
            try:
                method(Kit(), **{key: value for key, value in given.items() if key in wanted})
            except pytest.skip.Exception:
                continue
            except (AssertionError, LayerSyncError) as error:
                failed.append(f"{name}{list(arguments.values()) or ''}: {error}")
    return failed


def advised(message: str) -> dict[str, Any]:
    """Return the fields of an adapter that a message says to write."""
    said = re.search(r"write (stacks=.*) in the adapter", message)
    assert said, message
    fields: dict[str, Any] = eval(f"dict({said[1]})", {"BlockStack": BlockStack})
    return fields
