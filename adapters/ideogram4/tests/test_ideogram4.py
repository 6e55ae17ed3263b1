"""Ideogram 4: diffusers' class, and stand-ins for those of musubi-tuner and DiffSynth-Studio."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_adapter_ideogram4 import adapter, tiny
from layersync_core import CaptureError, attach
from layersync_core.testing import AdapterConformance, randomise_weights

SETTINGS = {
    "layersync_enabled": True,
    "layersync_student_block": 1,
    "layersync_teacher_block": 3,
    "layersync_lambda": 1,
}


class TestIdeogram4(AdapterConformance):
    family = "ideogram4"
    example_inputs = partial(tiny.example_inputs, text=5)
    depth = 4
    text = ("encoder_hidden_states",)


class Ideogram4TransformerBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.attention, self.feed_forward, self.adaln = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, together: Tensor, cos: Tensor, sin: Tensor, adaln_input: Tensor) -> Tensor:
        shared = together @ self.attention(x) / together.sum(dim=-1, keepdim=True)
        return x + self.adaln(adaln_input) * self.feed_forward(x + 0.3 * shared + cos - sin)


class Ideogram4DiT(nn.Module):
    """Stands in for DiffSynth-Studio's: takes only keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.input_proj, self.llm_cond_proj, self.t_embedding = nn.Linear(8, 16), nn.Linear(12, 16), nn.Linear(1, 16)
        self.layers = nn.ModuleList(Ideogram4TransformerBlock(16) for _ in range(4))
        self.final_layer = nn.Linear(16, 8)
        self.checkpoint: Any = None

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any) -> None:
        self.checkpoint = gradient_checkpointing_func

    def forward(
        self,
        *,
        llm_features: Tensor,
        x: Tensor,
        t: Tensor,
        position_ids: Tensor,
        segment_ids: Tensor,
        indicator: Tensor,
    ) -> Tensor:
        call = self.checkpoint or (lambda block, *args: block(*args))
        h = (
            self.input_proj(x) * (indicator == 2)[..., None]
            + self.llm_cond_proj(llm_features) * (indicator == 3)[..., None]
        )
        angle = position_ids.sum(dim=-1, keepdim=True) / 10
        together = (segment_ids[:, :, None] == segment_ids[:, None]).to(h)
        adaln = self.t_embedding(t[:, None])[:, None]
        for layer in self.layers:
            h = call(layer, h, together, angle.cos(), angle.sin(), adaln)
        return self.final_layer(h)


class Ideogram4Transformer(Ideogram4DiT):
    """Stands in for musubi-tuner's: [image, text, padding], and a mask of the text instead of segments."""

    def forward(  # type: ignore[override]
        self,
        *,
        llm_features: Tensor,
        x: Tensor,
        t: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        indicator: Tensor,
    ) -> Tensor:
        segments = nn.functional.pad(attention_mask, (x.shape[1] - attention_mask.shape[1], 0), value=1)
        return super().forward(
            llm_features=llm_features, x=x, t=t, position_ids=position_ids, segment_ids=segments, indicator=indicator
        )


def diffsynth_inputs(model: nn.Module, batch_size: int, text: int = 5, image: int = 12) -> dict[str, Any]:
    inputs = {
        "llm_features": torch.randn(batch_size, text + image, 12),
        "x": torch.randn(batch_size, text + image, 8),
        "t": torch.rand(batch_size),
        "position_ids": torch.arange(text + image)[:, None].expand(batch_size, -1, 3).float(),
        "segment_ids": torch.ones(batch_size, text + image),
        "indicator": torch.tensor([3] * text + [2] * image).repeat(batch_size, 1),
    }
    inputs["segment_ids"][-1, 0], inputs["indicator"][-1, 0] = -1, 0
    return inputs


def musubi_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    inputs = diffsynth_inputs(model, batch_size)
    inputs["indicator"] = inputs["indicator"].flip(1)
    inputs["attention_mask"] = (inputs.pop("segment_ids") > 0).float().flip(1)[:, 12:]
    return inputs


class TestIdeogram4DiT(AdapterConformance):
    family = "ideogram4"
    tiny_model = Ideogram4DiT
    example_inputs = diffsynth_inputs
    depth = 4
    sample = "x"
    text = ("llm_features",)


class TestIdeogram4Transformer(TestIdeogram4DiT):
    tiny_model = Ideogram4Transformer
    example_inputs = musubi_inputs


@pytest.mark.parametrize(
    ("kind", "inputs_of"), [(Ideogram4DiT, diffsynth_inputs), (Ideogram4Transformer, musubi_inputs)]
)
def test_the_loss_is_that_of_the_image_tokens(kind: type[Ideogram4DiT], inputs_of: Any) -> None:
    model = randomise_weights(kind())
    inputs = inputs_of(model, 2)
    seen: list[Tensor] = []
    for at in (0, 2):
        model.layers[at].register_forward_hook(lambda module, args, output: seen.append(output))
    with attach(model, SETTINGS, adapter=adapter) as sync:
        model(**inputs)
        loss = sync.loss()
    torch.testing.assert_close(loss, -torch.cosine_similarity(*seen, dim=-1)[inputs["indicator"] == 2].mean())


def test_blocks_called_without_the_model_are_refused() -> None:
    model = randomise_weights(Ideogram4DiT())
    with attach(model, SETTINGS, adapter=adapter) as sync:
        h = model.input_proj(torch.randn(2, 6, 8))
        for layer in model.layers:
            h = layer(h, torch.ones(2, 6, 6), h[:1, :, :1], h[:1, :, :1], torch.randn(2, 1, 16))
        with pytest.raises(CaptureError, match="cannot be distinguished"):
            sync.loss()
