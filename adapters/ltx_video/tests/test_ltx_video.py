"""LTX-Video and LTX-2, as diffusers has them and as DiffSynth-Studio does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layersync_adapter_ltx_video import adapter, tiny
from layersync_core import attach
from layersync_core.testing import AdapterConformance, look, scatter_weights, seed_everything


def _longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
    text = [name for name in inputs if ("encoder" in name or "context" in name) and inputs[name] is not None]
    return inputs | {name: torch.cat([inputs[name]] * 2, dim=1) for name in text}


class TestLTXVideo(AdapterConformance):
    family = "ltx_video"
    longer_text = _longer_text
    depth = 4


class TestLTXVideoWithReference(TestLTXVideo):
    example_inputs = partial(tiny.example_inputs, references=1)


class TestLTX2(TestLTXVideo):
    tiny_model = tiny.tiny_2


class TestLTX2WithReference(TestLTX2):
    example_inputs = partial(tiny.example_inputs, references=1)


# A stand-in with the names, signature and returned values of DiffSynth-Studio's LTX-2; D is 16.
WIDTH = 16


@dataclass
class TransformerArgs:
    x: Tensor
    context: Tensor
    timesteps: Tensor


class BasicAVTransformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.cross, self.audio = nn.Linear(WIDTH, WIDTH), nn.Linear(8, WIDTH)

    def forward(
        self, video: TransformerArgs | None, audio: TransformerArgs | None, perturbations: Any = None
    ) -> tuple[TransformerArgs | None, TransformerArgs | None]:
        assert video is not None
        x = video.x + video.timesteps[..., None]
        q, k, v = self.qkv(nn.functional.layer_norm(x, (WIDTH,))).chunk(3, dim=-1)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        x = x + 0.1 * self.cross(video.context).mean(dim=1, keepdim=True)
        if audio is not None:
            x = x + 0.1 * self.audio(audio.x).mean(dim=1, keepdim=True)
        return replace(video, x=x), audio


class LTXModel(nn.Module):
    _checkpointed = False

    def __init__(self) -> None:
        super().__init__()
        self.inner_dim = WIDTH
        self.patchify_proj, self.caption_projection = nn.Linear(8, WIDTH), nn.Linear(12, WIDTH)
        self.transformer_blocks = nn.ModuleList(BasicAVTransformerBlock() for _ in range(4))
        self.proj_out = nn.Linear(WIDTH, 8)

    def enable_gradient_checkpointing(self, **settings: Any) -> None:
        self._checkpointed = True

    def forward(
        self,
        video_latents: Tensor,
        video_positions: Tensor,
        video_context: Tensor,
        video_timesteps: Tensor,
        audio_latents: Tensor | None,
        audio_positions: Tensor | None,
        audio_context: Tensor | None,
        audio_timesteps: Tensor | None,
        sigma: Tensor,
        use_gradient_checkpointing: bool = False,
        use_gradient_checkpointing_offload: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        context = self.caption_projection(video_context)
        video = TransformerArgs(self.patchify_proj(video_latents), context, video_timesteps[..., 0])
        audio = None if audio_latents is None else TransformerArgs(audio_latents, context, sigma)
        for block in self.transformer_blocks:
            if self._checkpointed:  # never re-entrant: that kind sees no tensors inside of objects
                video, audio = checkpoint(block, video=video, audio=audio, use_reentrant=False)
            else:
                video, audio = block(video=video, audio=audio)
        return self.proj_out(video.x), None if audio is None else audio.x


def _ltx_model_inputs(model: nn.Module, batch_size: int, references: int = 0, audio: bool = True) -> dict[str, Any]:
    tokens = 12 + references
    timesteps = torch.full((batch_size, tokens, 1), 0.5)
    timesteps[:, :4] = 0  # a conditioning frame, which counts
    timesteps[:, 12:] = 0
    return {
        "video_latents": torch.randn(batch_size, tokens, 8),
        "video_positions": torch.zeros(batch_size, 3, tokens, 2),
        "video_context": torch.randn(batch_size, 5, 12),
        "video_timesteps": timesteps,
        "audio_latents": torch.randn(batch_size, 6, 8) if audio else None,
        "audio_positions": None,
        "audio_context": None,
        "audio_timesteps": None,
        "sigma": torch.full((batch_size,), 0.5),
    }


class TestDiffSynthLTX2(TestLTXVideo):
    tiny_model = LTXModel
    example_inputs = _ltx_model_inputs


class TestDiffSynthLTX2WithReference(TestDiffSynthLTX2):
    example_inputs = partial(_ltx_model_inputs, references=6, audio=False)


def test_clean_tokens_at_the_end_are_references() -> None:
    seed_everything()
    model = LTXModel()
    inputs = _ltx_model_inputs(model, 2, references=6)
    states = look(adapter, model, inputs).states
    cosine = torch.cosine_similarity(states[1], states[2], dim=-1)
    assert _loss(model, inputs, "target") == pytest.approx(-cosine[:, :12].mean().item(), abs=1e-6)
    assert _loss(model, inputs, "all") == pytest.approx(-cosine.mean().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("make", "generated"), [(tiny.tiny_model, slice(24, None)), (tiny.tiny_2, slice(None, 24))], ids=["LTX", "LTX-2"]
)
def test_reference_tokens_do_not_count(make: Callable[[], nn.Module], generated: slice) -> None:
    seed_everything()
    model = make()
    scatter_weights(model)
    inputs = tiny.example_inputs(model, 2, references=1)
    seen = look(adapter, model, inputs)
    cosine = torch.cosine_similarity(seen.states[1], seen.states[2], dim=-1)
    assert cosine.shape[1] == 48
    assert seen.tokens.grid is None
    assert _loss(model, inputs, "target") == pytest.approx(-cosine[:, generated].mean().item(), abs=1e-6)
    assert _loss(model, inputs, "all") == pytest.approx(-cosine.mean().item(), abs=1e-6)


@pytest.mark.parametrize("make", [tiny.tiny_model, tiny.tiny_2])
def test_without_sizes_every_token_counts(make: Callable[[], nn.Module]) -> None:
    model = make()
    inputs = tiny.example_inputs(model, 2, references=1)
    tokens = look(adapter, model, inputs | dict.fromkeys(["num_frames", "height", "width"])).tokens
    assert tokens.grid is None
    assert tokens.target is None


def test_grid_of_larger_patches() -> None:
    model = tiny.tiny_2()
    model.register_to_config(patch_size=2)
    model.rope.patch_size = model.cross_attn_rope.patch_size = 2
    inputs = tiny.example_inputs(model, 2) | {"height": 3, "width": 8}
    assert look(adapter, model, inputs).tokens.grid == (3, 2, 4)


def _loss(model: nn.Module, inputs: dict[str, Any], tokens: str) -> float:
    settings = {
        "layersync_enabled": True,
        "layersync_student_block": 2,
        "layersync_teacher_block": 3,
        "layersync_lambda": 1.0,
        "layersync_tokens": tokens,
    }
    with attach(model, settings, adapter=adapter) as sync:
        model(**inputs)
        return sync.loss().item()
