from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_adapter_ernie_image import adapter, tiny
from layersync_core import CaptureError, attach
from layersync_core.testing import AdapterConformance, look, randomise_weights


def longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs | {"text_bth": torch.randn(2, 9, 12)}


class TestErnieImage(AdapterConformance):
    family = "ernie_image"
    depth = 4
    longer_text = longer_text


class ErnieImageSharedAdaLNBlock(nn.Module):
    def __init__(self, width: int, axis: int):
        super().__init__()
        self.mlp, self.axis = nn.Linear(width, width), axis

    def forward(self, x: Tensor, rotary_pos_emb: Any, temb: Tensor, attention_mask: Any = None) -> Tensor:
        mean = x.mean(dim=self.axis, keepdim=True)
        return x + torch.tanh(self.mlp(x + 0.3 * mean + temb.unsqueeze(self.axis)))


class Embedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(4, width, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class ErnieImageTransformer2DModel(nn.Module):
    """Stands in for the class of musubi-tuner and ai-toolkit: as diffusers', but samples come first in its blocks."""

    axis = 1

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.patch_size = 16, 2
        self.x_embedder, self.text_proj, self.time_embedding = Embedder(16), nn.Linear(12, 16), nn.Linear(1, 16)
        self.layers = nn.ModuleList(ErnieImageSharedAdaLNBlock(16, self.axis) for _ in range(4))
        self.final_linear = nn.Linear(16, 16)
        self.checkpoint: Any = None

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any) -> None:
        self.checkpoint = gradient_checkpointing_func

    def forward(self, hidden_states: Tensor, timestep: Tensor, text_bth: Tensor, text_lens: Tensor) -> Tensor:
        call = self.checkpoint or (lambda block, *args: block(*args))
        image, text = self.x_embedder(hidden_states), self.text_proj(text_bth)
        x = torch.cat([image, text], dim=1)
        x = x if self.axis else x.transpose(0, 1).contiguous()
        temb = self.time_embedding(timestep[:, None].to(x.dtype) / 1000)
        for layer in self.layers:
            x = call(layer, x, None, temb)
        x = self.final_linear(x if self.axis else x.transpose(0, 1))
        return x[:, : image.shape[1]]


class ErnieImageDiT(ErnieImageTransformer2DModel):
    """Stands in for the class of DiffSynth-Studio."""

    axis = 0


class TestErnieImageOfMusubi(TestErnieImage):
    tiny_model = ErnieImageTransformer2DModel


class TestErnieImageDiT(TestErnieImage):
    tiny_model = ErnieImageDiT


@pytest.mark.parametrize(
    ("model", "axis"), [(tiny.tiny_model, 0), (ErnieImageDiT, 0), (ErnieImageTransformer2DModel, 1)]
)
@pytest.mark.parametrize("batch", [1, 2])
def test_image_tokens_are_those_before_the_text_along_either_axis(model: Any, axis: int, batch: int) -> None:
    built, raw = randomise_weights(model()), []
    built.layers[1].register_forward_hook(lambda module, args, output: raw.append(output))
    seen = look(adapter, built, tiny.example_inputs(built, batch))
    torch.testing.assert_close(seen.states[1], (raw[0] if axis else raw[0].transpose(0, 1))[:, :16])
    assert seen.tokens.grid == (1, 4, 4)


def test_as_many_samples_as_tokens_are_refused() -> None:
    model = tiny.tiny_model()
    settings = {"layersync_enabled": True, "layersync_student_block": 1, "layersync_teacher_block": 4}
    with attach(model, settings, adapter=adapter) as sync:
        model(**tiny.example_inputs(model, 21))
        with pytest.raises(CaptureError, match="train batches of another size"):
            sync.loss()
