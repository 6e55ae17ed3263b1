"""Mochi, as diffusers has it and as the original repository does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_adapter_mochi import adapter, tiny
from layersync_core.testing import AdapterConformance, look


def _longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
    if "y_feat" in inputs:
        return inputs | {name: [torch.cat(inputs[name] * 2, dim=1)] for name in ("y_feat", "y_mask")}
    names = ("encoder_hidden_states", "encoder_attention_mask")
    return inputs | {name: torch.cat([inputs[name]] * 2, dim=1) for name in names}


class TestMochi(AdapterConformance):
    family = "mochi"
    longer_text = _longer_text
    depth = 4


@pytest.mark.parametrize("frames", [1, 2])
def test_the_grid_is_in_tokens(frames: int) -> None:
    model = tiny.tiny_model()
    inputs = tiny.example_inputs(model, 1) | {"hidden_states": torch.randn(1, 4, frames, 4, 6)}
    assert look(adapter, model, inputs).tokens.grid == (frames, 2, 3)


# A stand-in with the names, signature and returned values of the original repository.
WIDTH, TEXT_WIDTH = 16, 12


class PatchEmbed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(4, WIDTH, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.proj(x.transpose(1, 2).flatten(0, 1))
        return frames.flatten(2).transpose(1, 2).unflatten(0, (len(x), -1)).flatten(1, 2)


class AsymmetricJointBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.mix = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.cross, self.text = nn.Linear(TEXT_WIDTH, WIDTH), nn.Linear(TEXT_WIDTH, TEXT_WIDTH)

    def forward(self, x: Tensor, c: Tensor, y: Tensor, **attn_kwargs: Any) -> tuple[Tensor, Tensor]:
        x = x + torch.tanh(self.inner(x) * c[:, None]) + 0.1 * self.mix(x).mean(dim=1, keepdim=True)
        return x + 0.1 * self.cross(y).mean(dim=1, keepdim=True), y + torch.tanh(self.text(y))


class AsymmDiTJoint(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_size, self.hidden_size_x = 2, WIDTH
        self.x_embedder, self.t_embedder = PatchEmbed(), nn.Linear(1, WIDTH)
        self.t5_yproj = nn.Linear(8, TEXT_WIDTH)
        self.blocks = nn.ModuleList(AsymmetricJointBlock() for _ in range(4))
        self.final_layer = nn.Linear(WIDTH, 16)

    def forward(
        self, x: Tensor, sigma: Tensor, y_feat: list[Tensor], y_mask: list[Tensor], packed_indices: Any = None
    ) -> Tensor:
        x, c, y = self.x_embedder(x), self.t_embedder(1 - sigma[:, None]), self.t5_yproj(y_feat[0])
        for block in self.blocks:
            x, y = block(x, c, y, packed_indices=packed_indices)
        out: Tensor = self.final_layer(x)
        return out


def _original_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    return {
        "x": torch.randn(batch_size, 4, 3, 4, 6),
        "sigma": torch.rand(batch_size),
        "y_feat": [torch.randn(batch_size, 5, 8)],
        "y_mask": [torch.ones(batch_size, 5, dtype=torch.bool)],
    }


class TestOriginalMochi(TestMochi):
    tiny_model = AsymmDiTJoint
    example_inputs = _original_inputs
    sample = "x"
    text = ("y_feat",)
