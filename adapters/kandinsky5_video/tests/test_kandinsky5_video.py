"""Kandinsky 5 Video, as diffusers has it and as the original repository and musubi-tuner do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.transformers import transformer_kandinsky
from torch import Tensor, nn

from layersync_adapter_kandinsky5_video import adapter, tiny
from layersync_core import attach
from layersync_core.testing import AdapterConformance, look, scatter_weights, seed_everything


def _longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
    text = torch.cat([inputs["encoder_hidden_states"]] * 2, dim=1)
    return inputs | {"encoder_hidden_states": text, "text_rope_pos": torch.arange(text.shape[1])}


class TestKandinsky5Video(AdapterConformance):
    family = "kandinsky5_video"
    longer_text = _longer_text
    depth = 4


# A stand-in with the names, signatures and returned values of the original repository's; D is 16.
WIDTH = 16


class TransformerEncoderBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.feed_forward = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, time_embed: Tensor, rope: Any, attention_mask: Any = None) -> Tensor:
        mixed: Tensor = x + self.feed_forward(x + time_embed)
        return mixed


class TransformerDecoderBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.cross = nn.Linear(WIDTH, 48), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(
        self,
        visual_embed: Tensor,
        text_embed: Tensor,
        time_embed: Tensor,
        rope: Any,
        sparse_params: Any,
        attention_mask: Any = None,
    ) -> Tensor:
        x = visual_embed + time_embed
        q, k, v = self.qkv(nn.functional.layer_norm(x, (WIDTH,))).chunk(3, dim=-1)
        x = x + self.out((q @ k.T / 4).softmax(dim=-1) @ v)
        return x + 0.1 * self.cross(text_embed).mean(dim=0)


class DiffusionTransformer3D(nn.Module):
    _run: Callable[..., Any] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.patch_size, self.model_dim, self.visual_cond = (1, 2, 2), WIDTH, True
        self.visual_embeddings, self.text_embeddings = nn.Linear(36, WIDTH), nn.Linear(12, WIDTH)
        self.time_embeddings, self.out_layer = nn.Linear(1, WIDTH), nn.Linear(WIDTH, 16)
        self.text_transformer_blocks = nn.ModuleList(TransformerEncoderBlock() for _ in range(2))
        self.visual_transformer_blocks = nn.ModuleList(TransformerDecoderBlock() for _ in range(4))

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable[..., Any]) -> None:
        self._run = gradient_checkpointing_func

    def forward(
        self,
        x: Tensor,
        text_embed: Tensor,
        pooled_text_embed: Tensor | None,
        time: Tensor,
        visual_rope_pos: Any,
        text_rope_pos: Any,
        scale_factor: tuple[float, float, float] = (1.0, 1.0, 1.0),
        sparse_params: dict[str, Any] | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        time_embed, text = self.time_embeddings(time[:, None]), self.text_embeddings(text_embed)
        frames, rows, columns, channels = x.shape
        x = x.view(frames, rows // 2, 2, columns // 2, 2, channels).permute(0, 1, 3, 2, 4, 5).flatten(3)
        x = self.visual_embeddings(x).flatten(0, 2)
        for block in self.text_transformer_blocks:
            text = block(text, time_embed, None)
        for block in self.visual_transformer_blocks:
            values = (x, text, time_embed, None, sparse_params)
            x = self._run(block, *values) if self._run else block(*values)
        out: Tensor = self.out_layer(x)
        return out


def _original_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    assert batch_size == 1
    return {
        "x": torch.randn(3, 4, 6, 9),
        "text_embed": torch.randn(5, 12),
        "pooled_text_embed": None,
        "time": torch.rand(1),
        "visual_rope_pos": None,
        "text_rope_pos": None,
    }


class TestOriginalKandinsky5Video(AdapterConformance):
    family = "kandinsky5_video"
    tiny_model = DiffusionTransformer3D
    example_inputs = _original_inputs
    depth = 4
    batch_size = 1

    @staticmethod
    def longer_text(inputs):
        return inputs | {"text_embed": torch.cat([inputs["text_embed"]] * 2)}


def test_a_sample_without_batch_axis() -> None:
    seed_everything()
    model = DiffusionTransformer3D()
    scatter_weights(model)
    inputs = _original_inputs(model, 1)
    seen = look(adapter, model, inputs)
    assert seen.tokens.grid == (3, 2, 3)
    expected = -torch.cosine_similarity(seen.states[1], seen.states[2], dim=-1).mean().item()
    settings = {
        "layersync_enabled": True,
        "layersync_student_block": 2,
        "layersync_teacher_block": 3,
        "layersync_lambda": 1.0,
        "layersync_log_grad_ratio": True,
    }
    with attach(model, settings, adapter=adapter) as sync:
        out = model(**inputs)
        loss = sync.loss()
        (loss + out.square().mean()).backward()
        assert loss.item() == pytest.approx(expected, abs=1e-6)
        assert 0 < sync.metrics()["layersync_grad_ratio"].item() < float("inf")
    sparse = look(adapter, model, inputs | {"sparse_params": {"to_fractal": True}}).tokens
    assert sparse.grid is None


def test_nabla_attention_leaves_the_grid_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    # The tokens are put in tiles as for nabla attention, and attend to each other as without it.
    monkeypatch.setattr(transformer_kandinsky, "nablaT_v2", lambda *args, **kwargs: None)
    seed_everything()
    model = tiny.tiny_model()
    inputs = tiny.example_inputs(model, 1, rows=16, columns=32)
    raster = look(adapter, model, inputs)
    tiles = look(adapter, model, inputs | {"sparse_params": {"to_fractal": True, "sta_mask": None, "P": 0.9}})
    assert raster.tokens.grid == (3, 8, 16)
    assert tiles.tokens.grid is None
    assert tiles.tokens.video
    # Frame by frame: in each 8x16 tokens the left 8x8 come first.
    ordered = raster.states[3].reshape(1, 3, 8, 2, 8, -1).permute(0, 1, 3, 2, 4, 5).reshape(1, 384, -1)
    torch.testing.assert_close(tiles.states[3], ordered, atol=1e-2, rtol=1e-2)
    assert not torch.allclose(tiles.states[3], raster.states[3], atol=1e-2)
