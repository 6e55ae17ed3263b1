from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from layersync_adapter_sd3 import tiny
from layersync_core.testing import AdapterConformance


def longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs | {"encoder_hidden_states": torch.randn(2, 9, 12)}


class TestSD3(AdapterConformance):
    family = "sd3"
    depth = 4
    longer_text = longer_text


class TestSD35(AdapterConformance):
    family = "sd3"
    tiny_model = tiny.tiny_sd35
    example_inputs = partial(tiny.example_inputs, rows=6)
    depth = 4
    longer_text = longer_text


class PatchEmbed(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Conv2d(4, width, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class MMDiTBlock(nn.Module):
    """The block of sd-scripts: it checkpoints itself, and the last one returns no context."""

    def __init__(self, width: int, pre_only: bool):
        super().__init__()
        self.context_block, self.x_block = nn.Linear(width, width), nn.Linear(width, width)
        self.pre_only = pre_only
        self.checkpoint: Any = None

    def _forward(self, context: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor | None, Tensor]:
        shared = c[:, None] + 0.3 * torch.cat((context, x), dim=1).mean(dim=1, keepdim=True)
        x = x + self.x_block(x + shared)
        return None if self.pre_only else context + self.context_block(context + shared), x

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor | None, Tensor]:
        return self.checkpoint(self._forward, *args, **kwargs) if self.checkpoint else self._forward(*args, **kwargs)


class MMDiT(nn.Module):
    """Stands in for the class of sd-scripts: same names, same signature, same returns."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_size, self.hidden_size = 2, 16
        self.x_embedder = PatchEmbed(16)
        self.t_embedder, self.y_embedder, self.context_embedder = nn.Linear(1, 16), nn.Linear(8, 16), nn.Linear(12, 16)
        self.joint_blocks = nn.ModuleList(MMDiTBlock(16, pre_only=index == 3) for index in range(4))
        self.final_layer = nn.Linear(16, 16)

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any) -> None:
        for block in self.joint_blocks:
            block.checkpoint = gradient_checkpointing_func

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        x = self.x_embedder(x)
        c = self.t_embedder(t[:, None]) + self.y_embedder(y)
        context = self.context_embedder(context)
        for block in self.joint_blocks:
            context, x = block(context, x, c)
        return self.final_layer(x)


class JointBlock(MMDiTBlock):
    pass


class MMDiTX(MMDiT):
    """Stands in for the original repository's 3.5."""

    def __init__(self) -> None:
        super().__init__()
        self.joint_blocks = nn.ModuleList(JointBlock(16, pre_only=index == 3) for index in range(4))


def mmdit_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    return {
        "x": torch.randn(batch_size, 4, 8, 6),
        "t": torch.rand(batch_size),
        "y": torch.randn(batch_size, 8),
        "context": torch.randn(batch_size, 5, 12),
    }


class TestMMDiT(AdapterConformance):
    family = "sd3"
    tiny_model = MMDiT
    example_inputs = mmdit_inputs
    depth = 4

    @staticmethod
    def longer_text(inputs):
        return inputs | {"context": torch.randn(2, 9, 12)}


class TestMMDiTX(TestMMDiT):
    tiny_model = MMDiTX
