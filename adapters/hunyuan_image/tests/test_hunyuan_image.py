from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_adapter_hunyuan_image import adapter, tiny
from layersync_core.testing import AdapterConformance, look, randomise_weights


def longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
    mask = torch.ones(2, 9, dtype=torch.long)
    return inputs | {"encoder_hidden_states": torch.randn(2, 9, 12), "encoder_attention_mask": mask}


class TestHunyuanImage(AdapterConformance):
    family = "hunyuan_image"
    depth = 4
    longer_text = longer_text


class TestHunyuanImageDistilled(TestHunyuanImage):
    tiny_model = tiny.tiny_byt5


class TestHunyuanImageRefiner(TestHunyuanImage):
    tiny_model = tiny.tiny_refiner


class MMDoubleStreamBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.img_mlp, self.txt_mlp = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, img: Tensor, txt: Tensor, vec: Tensor, freqs_cis: Any = None) -> tuple[Tensor, Tensor]:
        shared = vec[:, None] + 0.3 * torch.cat((img, txt), dim=1).mean(dim=1, keepdim=True)
        return img + self.img_mlp(img + shared), txt + self.txt_mlp(txt + shared)


class MMSingleStreamBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Linear(width, width)

    def forward(self, x: Tensor, vec: Tensor, freqs_cis: Any = None) -> Tensor:
        return x + torch.tanh(self.mlp(x + vec[:, None] + 0.3 * x.mean(dim=1, keepdim=True)))


class PatchEmbed2D(nn.Module):
    def __init__(self, patch: list[int], channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class HYImageDiffusionTransformer(nn.Module):
    """Stands in for the class of sd-scripts, which cuts the texts to the longest one's length."""

    def __init__(self, double: int = 2) -> None:
        super().__init__()
        self.hidden_size, self.patch_size = 16, [1, 1]
        self.img_in, self.txt_in = PatchEmbed2D(self.patch_size, 4, 16), nn.Linear(12, 16)
        self.byt5_in, self.time_in = nn.Linear(6, 16), nn.Linear(1, 16)
        self.double_blocks = nn.ModuleList(MMDoubleStreamBlock(16) for _ in range(double))
        self.single_blocks = nn.ModuleList(MMSingleStreamBlock(16) for _ in range(4 - double))
        self.final_layer = nn.Linear(16, 4)
        self.checkpoint: Any = None

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any) -> None:
        self.checkpoint = gradient_checkpointing_func

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        text_states: Tensor,
        encoder_attention_mask: Tensor,
        byt5_text_states: Tensor,
        byt5_text_mask: Tensor,
    ) -> Tensor:
        call = self.checkpoint or (lambda block, *args: block(*args))
        img, vec = self.img_in(hidden_states), self.time_in(timestep[:, None].to(hidden_states.dtype))
        lengths = encoder_attention_mask.sum(1) + byt5_text_mask.sum(1)
        txt = torch.cat([self.byt5_in(byt5_text_states), self.txt_in(text_states)], dim=1)[:, : int(lengths.max())]
        for block in self.double_blocks:
            img, txt = call(block, img, txt, vec)
        x = torch.cat((img, txt), 1)
        for block in self.single_blocks:
            x = call(block, x, vec)
        rows, columns = hidden_states.shape[2:]
        return self.final_layer(x[:, : img.shape[1]]).transpose(1, 2).unflatten(2, (rows, columns))


def original_inputs(model: nn.Module, batch_size: int, text: int = 5) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch_size, 4, 4, 4),
        "timestep": torch.rand(batch_size),
        "text_states": torch.randn(batch_size, text, 12),
        "encoder_attention_mask": torch.arange(text).expand(batch_size, -1) < text - 1,
        "byt5_text_states": torch.randn(batch_size, 3, 6),
        "byt5_text_mask": torch.ones(batch_size, 3, dtype=torch.bool),
    }


class TestHunyuanImageOfSdScripts(AdapterConformance):
    family = "hunyuan_image"
    tiny_model = HYImageDiffusionTransformer
    example_inputs = original_inputs
    depth = 4

    @staticmethod
    def longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
        longer = original_inputs(nn.Identity(), 2, text=9)
        return inputs | {name: longer[name] for name in ("text_states", "encoder_attention_mask")}


@pytest.mark.parametrize(
    ("model", "inputs", "grid"),
    [
        (tiny.tiny_model, tiny.example_inputs, (1, 4, 4)),
        (tiny.tiny_refiner, tiny.example_inputs, (1, 4, 4)),
        (HYImageDiffusionTransformer, original_inputs, (1, 4, 4)),
    ],
)
def test_the_grid_is_that_of_the_latents(model: Any, inputs: Any, grid: tuple[int, int, int]) -> None:
    built = randomise_weights(model())
    assert look(adapter, built, inputs(built, 2)).tokens.grid == grid
