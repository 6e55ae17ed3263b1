"""Cosmos Predict 1, 2 and 2.5, as diffusers has them, and Anima, with stand-ins for the classes of trainers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_adapter_cosmos import adapter, tiny
from layersync_core import CaptureError, attach
from layersync_core.testing import AdapterConformance, randomise_weights


def _longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
    text = inputs["encoder_hidden_states"]
    if isinstance(text, tuple):
        return inputs | {"encoder_hidden_states": (torch.cat([text[0]] * 2, dim=1), text[1])}
    return inputs | {"encoder_hidden_states": torch.cat([text, text], dim=1)}


class TestCosmosPredict1(AdapterConformance):
    family = "cosmos"
    longer_text = _longer_text
    depth = 4


class TestCosmosPredict2(TestCosmosPredict1):
    tiny_model = tiny.tiny_2


class TestCosmosPredict25(TestCosmosPredict1):
    tiny_model = tiny.tiny_25


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.self_attn, self.cross_attn, self.mlp = (nn.Linear(width, width) for _ in range(3))
        self.checkpoint: Any = None

    def _forward(self, x: Tensor, emb: Tensor, crossattn_emb: Tensor) -> Tensor:
        shared = 0.3 * self.self_attn(x.flatten(1, 3).mean(dim=1)) + self.cross_attn(crossattn_emb.mean(dim=1))
        return x + emb[:, :, None, None] * self.mlp(x + shared[:, None, None, None])

    def forward(self, x_B_T_H_W_D: Tensor, emb_B_T_D: Tensor, crossattn_emb: Tensor) -> Tensor:
        if self.checkpoint:  # inside the block
            return self.checkpoint(self._forward, x_B_T_H_W_D, emb_B_T_D, crossattn_emb)
        return self._forward(x_B_T_H_W_D, emb_B_T_D, crossattn_emb)


class Anima(nn.Module):
    """Stands in for sd-scripts' class, and for those that it was made from: blocks return (B, T, H, W, D)."""

    def __init__(self, patch_temporal: int = 1) -> None:
        super().__init__()
        self.model_channels, self.patch_spatial, self.patch_temporal = 16, 2, patch_temporal
        self.x_embedder, self.t_embedder = nn.Linear(16 * patch_temporal, 16), nn.Linear(1, 16)
        self.llm_adapter = nn.Module()
        self.llm_adapter.blocks = nn.ModuleList(nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 16)) for _ in range(1))
        self.blocks = nn.ModuleList(Block(16) for _ in range(4))
        self.final_layer = nn.Linear(16, 16 * patch_temporal)

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any) -> None:
        for block in self.blocks:
            block.checkpoint = gradient_checkpointing_func

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        context = self.llm_adapter.blocks[0](context)
        batch, channels, frames, rows, columns = x.shape
        step = self.patch_temporal
        x = x.reshape(batch, channels, frames // step, step, rows // 2, 2, columns // 2, 2)
        x = self.x_embedder(x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4))
        emb = self.t_embedder(timesteps[:, None])[:, None]
        for block in self.blocks:
            x = block(x, emb, crossattn_emb=context)
        x = self.final_layer(x).unflatten(-1, (channels, step, 2, 2))
        return x.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(batch, channels, frames, rows, columns)


def anima_inputs(model: nn.Module, batch_size: int, frames: int = 1) -> dict[str, Any]:
    return {
        "x": torch.randn(batch_size, 4, frames, 8, 6),
        "timesteps": torch.rand(batch_size),
        "context": torch.randn(batch_size, 5, 12),
    }


class TestAnima(AdapterConformance):
    family = "cosmos"
    tiny_model = Anima
    example_inputs = anima_inputs
    depth = 4

    @staticmethod
    def longer_text(inputs):
        return inputs | {"context": torch.randn(2, 9, 12)}


class MiniTrainDIT(Anima):
    """Stands in for a Predict 2 of video."""

    def __init__(self) -> None:
        super().__init__(patch_temporal=2)


class TestMiniTrainDIT(TestAnima):
    tiny_model = MiniTrainDIT

    @staticmethod
    def example_inputs(model, batch_size):
        return anima_inputs(model, batch_size, frames=6)


SETTINGS = {
    "layersync_enabled": True,
    "layersync_student_block": 1,
    "layersync_teacher_block": 3,
    "layersync_lambda": 1,
    "layersync_log_grad_ratio": True,
}


def by_hand(model: nn.Module, blocks: nn.ModuleList, inputs: dict[str, Any]) -> dict[str, Tensor | None]:
    """Return the gradients of the same loss plus the term, from plain hooks."""
    seen: list[Tensor] = []
    handles = [
        blocks[at].register_forward_hook(lambda module, args, output: seen.append(output.flatten(1, -2)))
        for at in (0, 2)
    ]
    main = model(**inputs)[0].square().mean()
    for handle in handles:
        handle.remove()
    student, teacher = seen
    model.zero_grad()
    (main - torch.cosine_similarity(student, teacher.detach(), dim=-1).mean()).backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


def attached(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor | None]:
    model.zero_grad()
    with attach(model, SETTINGS) as sync:
        for _ in range(2):  # the guard measures in the first backward
            model.zero_grad()
            sync.apply(model(**inputs)[0].square().mean()).backward()
        assert sync.metrics()["layersync_grad_ratio"] > 0
    return {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("kind", [Anima, MiniTrainDIT])
def test_blocks_that_return_frames_rows_and_columns_have_the_gradient_of_plain_hooks(kind: type[Anima]) -> None:
    model = randomise_weights(kind())
    inputs = TestMiniTrainDIT.example_inputs(model, 2)
    torch.testing.assert_close(attached(model, inputs), by_hand(model, model.blocks, inputs))


def test_columns_that_are_dropped_between_blocks_are_refused() -> None:
    model = randomise_weights(Anima())
    whole: list[Tensor] = []

    def drop(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        whole.append(output)
        return output[..., :-1, :]

    model.blocks[2].register_forward_hook(drop)
    with attach(model, SETTINGS) as sync:
        model.blocks[2].register_forward_hook(lambda *_: whole.pop())
        model(**anima_inputs(model, 2))
        with pytest.raises(CaptureError, match="tokens were dropped"):
            sync.loss()


class AnimaTransformerModel(nn.Module):
    """Stands in for SimpleTuner's, which runs the text through an adapter and then diffusers' transformer."""

    attribute = "core"

    def __init__(self) -> None:
        super().__init__()
        self.llm_adapter = nn.Linear(12, 12)
        setattr(self, self.attribute, tiny.tiny_2())

    def forward(self, encoder_hidden_states: Tensor, **more: Any) -> tuple[Tensor]:
        core: nn.Module = getattr(self, self.attribute)
        return core(encoder_hidden_states=self.llm_adapter(encoder_hidden_states), return_dict=False, **more)


class AnimaTrainableModel(AnimaTransformerModel):
    """Stands in for ai-toolkit's."""

    attribute = "transformer"


@pytest.mark.parametrize("kind", [AnimaTransformerModel, AnimaTrainableModel])
@pytest.mark.parametrize("bare", [False, True])
def test_a_wrapper_and_the_transformer_in_it_are_both_right(kind: type[AnimaTransformerModel], bare: bool) -> None:
    model = randomise_weights(kind())
    core = getattr(model, kind.attribute)
    inputs = tiny.example_inputs(core, 2)
    expected = by_hand(model, core.transformer_blocks, inputs)
    model.zero_grad()
    with attach(core if bare else model, SETTINGS) as sync:
        sync.apply(model(**inputs)[0].square().mean()).backward()
        assert sync.student.path == "transformer_blocks.0"
    torch.testing.assert_close({name: weight.grad for name, weight in model.named_parameters()}, expected)


def test_another_anima_is_none() -> None:
    other = Anima()
    del other.patch_spatial
    assert not adapter.supports_hidden_states(other)
