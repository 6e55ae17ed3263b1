"""Wan 2.1, 2.2, VACE and Animate, as diffusers has them and as other sources do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import getsource
from math import prod
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from layersync_adapter_wan import adapter, tiny
from layersync_core import CaptureError, attach
from layersync_core.testing import AdapterConformance, look, scatter_weights, seed_everything


def _longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
    more = dict(inputs)
    for name in ("encoder_hidden_states", "context"):
        if isinstance(more.get(name), list):
            more[name] = [torch.cat([text, text]) for text in more[name]]
        elif name in more:
            more[name] = torch.cat([more[name], more[name]], dim=1)
    return more


class TestWan(AdapterConformance):
    family = "wan"
    longer_text = _longer_text
    depth = 4


class TestWanVACE(TestWan):
    tiny_model = tiny.tiny_vace


class TestWanAnimate(TestWan):
    tiny_model = tiny.tiny_animate


def _i2v() -> nn.Module:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 16, "freq_dim": 32, "ffn_dim": 32}
    return WanTransformer3DModel(
        in_channels=8, out_channels=4, num_layers=4, image_dim=6, added_kv_proj_dim=24, **sizes
    )


def _i2v_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch_size, 8, 3, 8, 8),
        "timestep": torch.randint(0, 1000, (batch_size,)),
        "encoder_hidden_states": torch.randn(batch_size, 5, 16),
        "encoder_hidden_states_image": torch.randn(batch_size, 2, 6),
    }


class TestWanI2V(TestWan):
    tiny_model = _i2v
    example_inputs = _i2v_inputs


@pytest.mark.skipif(
    "ts_seq_len" not in getsource(WanTransformer3DModel.forward), reason="this diffusers has no Wan 2.2"
)
class TestWanTokenTimesteps(TestWan):
    """Wan 2.2 5B: one timestep for each token."""

    @staticmethod
    def example_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
        return tiny.example_inputs(model, batch_size) | {"timestep": torch.randint(0, 1000, (batch_size, 48))}


@pytest.mark.parametrize("form", tiny.variants)
def test_only_the_main_blocks_count(form: str) -> None:
    model = tiny.variants[form]()
    assert [block.path for block in adapter.list_blocks(model)] == [f"blocks.{index}" for index in range(4)]
    assert {block.width for block in adapter.list_blocks(model)} == {24}


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_every_token_of_every_frame_counts(frames: int) -> None:
    torch.manual_seed(0)
    model = tiny.tiny_model().eval()
    inputs = tiny.example_inputs(model, 1) | {"hidden_states": torch.randn(1, 4, frames, 8, 4)}
    states: list[Tensor] = []
    with attach(model, {"layersync_enabled": True, "layersync_student_block": 1, "layersync_teacher_block": 4}) as sync:
        handles = [model.blocks[k].register_forward_hook(lambda m, a, output: states.append(output)) for k in (0, 3)]
        model(**inputs)
        expected = nn.functional.cosine_similarity(*states, dim=-1)
        assert expected.shape == (1, frames * 4 * 2)
        torch.testing.assert_close(sync.loss(), -0.2 * expected.mean())
        for handle in handles:
            handle.remove()


# Stand-ins with the names, signatures and returned values of other sources; D is 16.
WIDTH = 16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.cross = nn.Linear(WIDTH, WIDTH)

    def attend(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(nn.functional.layer_norm(x, (WIDTH,))).chunk(3, dim=-1)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v, mask))
        return x + 0.1 * self.cross(context).mean(dim=1, keepdim=True)


class WanAttentionBlock(Block):
    def forward(
        self, x: Tensor, e: Tensor, seq_lens: Tensor, grid_sizes: Tensor, freqs: Any, context: Tensor, context_lens: Any
    ) -> Tensor:
        mask = torch.arange(x.shape[1]) < seq_lens[:, None]  # padding isn't attended to
        return self.attend(x + e[:, None], context, mask[:, None])


class BaseWanAttentionBlock(WanAttentionBlock):
    def forward(self, x: Tensor, hints: list[Tensor], **kwargs: Any) -> Tensor:  # type: ignore[override]
        return super().forward(x, **kwargs) + 0.02 * hints[0]


class Checkpointed(nn.Module):
    _run: Callable[..., Any] | None = None

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable[..., Any]) -> None:
        self._run = gradient_checkpointing_func

    def run(self, block: nn.Module, x: Tensor, **kwargs: Any) -> Tensor:
        if self._run:  # re-entrant checkpoints take no keywords
            return self._run(lambda x, *values: block(x, **dict(zip(kwargs, values, strict=True))), x, *kwargs.values())
        return block(x, **kwargs)


class WanModel(Checkpointed):
    """The original repository's and musubi-tuner's: lists of videos, padded to ``seq_len`` tokens."""

    def __init__(self, block: Callable[[], nn.Module] = WanAttentionBlock) -> None:
        super().__init__()
        self.patch_size, self.dim = (1, 2, 2), WIDTH
        self.patch_embedding = nn.Conv3d(4, WIDTH, (1, 2, 2), (1, 2, 2))
        self.text_embedding, self.time_embedding = nn.Linear(12, WIDTH), nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList(block() for _ in range(4))
        self.head = nn.Linear(WIDTH, 16)

    def forward(
        self, x: Any, t: Tensor, context: Any, seq_len: int, clip_fea: Any = None, y: Any = None, **more: Any
    ) -> list[Tensor]:
        x = [self.patch_embedding(u.unsqueeze(0)) for u in x]
        grid_sizes = torch.stack([torch.tensor(u.shape[2:]) for u in x])
        x = [u.flatten(2).transpose(1, 2) for u in x]
        seq_lens = torch.tensor([u.size(1) for u in x])
        x = torch.cat([torch.cat([u, u.new_zeros(1, seq_len - u.size(1), u.size(2))], dim=1) for u in x])
        kwargs = {
            "e": self.time_embedding(t[:, None]),
            "seq_lens": seq_lens,
            "grid_sizes": grid_sizes,
            "freqs": None,
            "context": self.text_embedding(torch.stack(context)),
            "context_lens": None,
        }
        for block in self.blocks:
            x = self.run(block, x, **kwargs, **more)
        return [u[:length] for u, length in zip(self.head(x), seq_lens.tolist(), strict=True)]


class VaceWanModel(WanModel):
    def __init__(self) -> None:
        super().__init__(BaseWanAttentionBlock)
        self.vace_blocks = nn.ModuleList(WanAttentionBlock() for _ in range(2))

    def forward(self, x: Any, t: Tensor, vace_context: Any, context: Any, seq_len: int) -> list[Tensor]:  # type: ignore[override]
        return super().forward(x, t, context, seq_len, hints=[vace_context])


class DiTBlock(Block):
    def forward(self, x: Tensor, context: Tensor, t_mod: Tensor, freqs: Any) -> Tensor:
        return self.attend(x + t_mod[:, None], context)


def _diffsynth() -> nn.Module:
    """Return DiffSynth-Studio's class of the same name, which takes tensors and has different blocks."""

    class WanModel(Checkpointed):
        def __init__(self) -> None:
            super().__init__()
            self.patch_size, self.dim = (1, 2, 2), WIDTH
            self.patch_embedding = nn.Conv3d(4, WIDTH, (1, 2, 2), (1, 2, 2))
            self.text_embedding, self.time_embedding = nn.Linear(12, WIDTH), nn.Linear(1, WIDTH)
            self.blocks = nn.ModuleList(DiTBlock() for _ in range(4))
            self.head = nn.Linear(WIDTH, 16)

        def forward(
            self, x: Tensor, timestep: Tensor, context: Tensor, clip_feature: Any = None, y: Any = None, **kwargs: Any
        ) -> Tensor:
            t_mod, context = self.time_embedding(timestep[:, None]), self.text_embedding(context)
            x = self.patch_embedding(x).flatten(2).transpose(1, 2)
            for block in self.blocks:
                x = self.run(block, x, context=context, t_mod=t_mod, freqs=None)
            out: Tensor = self.head(x)
            return out

    return WanModel()


PADDED = 20
"""Tokens of a padded sequence; the tiny videos have 18 and 12."""


def _original_inputs(model: nn.Module, batch_size: int, seq_len: int = PADDED) -> dict[str, Any]:
    frames = (3, 2) if seq_len == PADDED else (3, 3)
    inputs: dict[str, Any] = {
        "x": [torch.randn(4, frames[sample % 2], 4, 6) for sample in range(batch_size)],
        "t": torch.rand(batch_size),
        "context": [torch.randn(5, 12) for _ in range(batch_size)],
        "seq_len": seq_len,
    }
    if isinstance(model, VaceWanModel):
        inputs["vace_context"] = torch.randn(batch_size, seq_len, WIDTH)
    return inputs


def _diffsynth_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    return {
        "x": torch.randn(batch_size, 4, 3, 4, 6),
        "timestep": torch.rand(batch_size),
        "context": torch.randn(batch_size, 5, 12),
    }


class TestOriginalWan(TestWan):
    tiny_model = WanModel
    example_inputs = partial(_original_inputs, seq_len=18)


class TestOriginalWanPadded(TestOriginalWan):
    example_inputs = _original_inputs


class TestOriginalWanVACE(TestOriginalWan):
    tiny_model = VaceWanModel


class TestDiffSynthWan(TestWan):
    tiny_model = _diffsynth
    example_inputs = _diffsynth_inputs


SETTINGS = {
    "layersync_enabled": True,
    "layersync_student_block": 2,
    "layersync_teacher_block": 3,
    "layersync_lambda": 1.0,
}


@pytest.mark.parametrize("tokens", ["target", "all"])
def test_padding_does_not_count(tokens: str) -> None:
    seed_everything()
    model = WanModel()
    scatter_weights(model)
    inputs = _original_inputs(model, 2)
    seen = look(adapter, model, inputs)
    cosine = torch.cosine_similarity(seen.states[1], seen.states[2], dim=-1)
    assert cosine.shape == (2, PADDED)
    assert seen.tokens.grid is None
    expected = -torch.cat([cosine[0, :18], cosine[1, :12]]).mean()
    with attach(model, SETTINGS | {"layersync_tokens": tokens}, adapter=adapter) as sync:
        model(**inputs)
        assert sync.loss().item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_videos_of_one_size_have_a_grid(as_tensor: bool) -> None:
    inputs = _original_inputs(nn.Identity(), 2, seq_len=18)
    if as_tensor:  # musubi-tuner's batches
        inputs["x"] = torch.stack(inputs["x"])
    tokens = look(adapter, WanModel(), inputs).tokens
    assert tokens.grid == (3, 2, 3)
    assert tokens.real is None


def test_padded_videos_of_one_size_have_no_grid() -> None:
    inputs = _original_inputs(nn.Identity(), 2, seq_len=18) | {"seq_len": PADDED}
    tokens = look(adapter, WanModel(), inputs).tokens
    assert tokens.grid is None
    assert tokens.real is not None
    assert tokens.real.sum(dim=1).tolist() == [prod((3, 2, 3))] * 2


def test_blocks_called_without_the_model() -> None:
    x, context, t_mod = torch.randn(2, 18, WIDTH), torch.randn(2, 5, WIDTH), torch.randn(2, WIDTH)
    model = _diffsynth()
    with attach(model, SETTINGS, adapter=adapter) as sync:
        for block in model.blocks:
            x = block(x, context, t_mod, None)
        (x.mean() + sync.loss()).backward()
    assert all(parameter.grad is not None for parameter in model.blocks[1].parameters())


def test_padding_needs_the_model_to_run() -> None:
    model = WanModel()
    x = torch.randn(2, 18, WIDTH)
    shared = {"e": x[:, 0], "seq_lens": torch.tensor([18, 12]), "grid_sizes": None, "freqs": None, "context_lens": None}
    with attach(model, SETTINGS, adapter=adapter) as sync:
        for block in model.blocks:
            x = block(x, context=x, **shared)
        with pytest.raises(CaptureError, match="did not run"):
            sync.loss()
