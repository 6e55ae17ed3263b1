"""HunyuanVideo 1.0, 1.5 and FramePack, as diffusers has them and as other sources do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_adapter_hunyuan_video import adapter, tiny
from layersync_core import attach
from layersync_core.testing import AdapterConformance, look, perturbed, scatter_weights, seed_everything


def _longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
    more = dict(inputs)
    for name in ("encoder_hidden_states", "encoder_attention_mask", "text_states", "text_mask"):
        if name in more:
            more[name] = torch.cat([more[name], more[name]], dim=1)
    return more


class TestHunyuanVideo(AdapterConformance):
    family = "hunyuan_video"
    longer_text = _longer_text
    depth = 4


class TestHunyuanVideoTokenReplace(TestHunyuanVideo):
    tiny_model = tiny.tiny_token_replace


class TestHunyuanVideo15(TestHunyuanVideo):
    tiny_model = tiny.tiny_15


class TestHunyuanVideo15WithImage(TestHunyuanVideo15):
    example_inputs = partial(tiny.example_inputs, image=True)


class TestFramePack(TestHunyuanVideo):
    tiny_model = tiny.tiny_framepack


# Stand-ins with the names, signatures and returned values of other sources; D is 16.
WIDTH = 16


class Mixer(nn.Module):
    """Attention over all tokens, text and image alike."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(nn.functional.layer_norm(x, (WIDTH,))).chunk(3, dim=-1)
        mixed: Tensor = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        return mixed


class PatchEmbed(nn.Module):
    def __init__(self, channels: int, patch: tuple[int, int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, WIDTH, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class MMDoubleStreamBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = Mixer()

    def forward(self, img: Tensor, txt: Tensor, vec: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        x = self.mix(torch.cat([img + vec[:, None], txt], dim=1))
        return x[:, : img.shape[1]], x[:, img.shape[1] :]


class MMSingleStreamBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = Mixer()

    def forward(self, x: Tensor, vec: Tensor, txt_len: int, *args: Any) -> Tensor:
        return self.mix(x + vec[:, None])


class HunyuanVideoTransformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = Mixer()

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, attention_mask: Any, freqs_cis: Any
    ) -> tuple[Tensor, Tensor]:
        x = self.mix(torch.cat([hidden_states + temb[:, None], encoder_hidden_states], dim=1))
        return x[:, : hidden_states.shape[1]], x[:, hidden_states.shape[1] :]


class HunyuanVideoSingleTransformerBlock(HunyuanVideoTransformerBlock):
    pass


class Checkpointed(nn.Module):
    _run: Callable[..., Any] | None = None

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable[..., Any]) -> None:
        self._run = gradient_checkpointing_func

    def run(self, block: nn.Module, *args: Any) -> Any:
        return self._run(block, *args) if self._run else block(*args)


class HYVideoDiffusionTransformer(Checkpointed):
    def __init__(self) -> None:
        super().__init__()
        self.patch_size, self.hidden_size = [1, 2, 2], WIDTH
        self.img_in, self.txt_in, self.time_in = PatchEmbed(4, (1, 2, 2)), nn.Linear(12, WIDTH), nn.Linear(1, WIDTH)
        self.double_blocks = nn.ModuleList(MMDoubleStreamBlock() for _ in range(2))
        self.single_blocks = nn.ModuleList(MMSingleStreamBlock() for _ in range(2))
        self.final_layer = nn.Linear(WIDTH, 16)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text_states: Tensor | None = None,
        text_mask: Tensor | None = None,
        text_states_2: Tensor | None = None,
        freqs_cos: Tensor | None = None,
        freqs_sin: Tensor | None = None,
        guidance: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        img, txt, vec = self.img_in(x), self.txt_in(text_states), self.time_in(t[:, None])
        for block in self.double_blocks:
            img, txt = self.run(block, img, txt, vec, None)
        joined = torch.cat([img, txt], 1)
        for block in self.single_blocks:
            joined = self.run(block, joined, vec, txt.shape[1], None)
        out = self.final_layer(joined[:, : img.shape[1]])
        return {"x": out} if return_dict else out


class HunyuanVideo_1_5_DiffusionTransformer(Checkpointed):  # noqa: N801
    def __init__(self) -> None:
        super().__init__()
        self.patch_size, self.hidden_size = [1, 1, 1], WIDTH
        self.img_in, self.txt_in, self.time_in = PatchEmbed(4, (1, 1, 1)), nn.Linear(12, WIDTH), nn.Linear(1, WIDTH)
        self.double_blocks = nn.ModuleList(MMDoubleStreamBlock() for _ in range(4))
        self.final_layer = nn.Linear(WIDTH, 4)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        text_states: Tensor,
        encoder_attention_mask: Tensor,
        vision_states: Tensor | None = None,
        byt5_text_states: Tensor | None = None,
        byt5_text_mask: Tensor | None = None,
        rotary_pos_emb_cache: Any = None,
    ) -> Tensor:
        img, txt, vec = self.img_in(hidden_states), self.txt_in(text_states), self.time_in(timestep[:, None])
        for block in self.double_blocks:
            img, txt = self.run(block, img, txt, vec, None, None)
        out: Tensor = self.final_layer(img)
        return out


class CleanPatchEmbed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv3d(4, WIDTH, (1, 2, 2), (1, 2, 2))
        self.proj_2x = nn.Conv3d(4, WIDTH, (2, 4, 4), (2, 4, 4))
        self.proj_4x = nn.Conv3d(4, WIDTH, (4, 8, 8), (4, 8, 8))


class HunyuanVideoTransformer3DModelPacked(Checkpointed):
    def __init__(self) -> None:
        super().__init__()
        self.config_patch_size, self.config_patch_size_t = 2, 1
        self.x_embedder, self.clean_x_embedder = PatchEmbed(4, (1, 2, 2)), CleanPatchEmbed()
        self.context_embedder, self.time_text_embed = nn.Linear(12, WIDTH), nn.Linear(1, WIDTH)
        self.transformer_blocks = nn.ModuleList(HunyuanVideoTransformerBlock() for _ in range(2))
        self.single_transformer_blocks = nn.ModuleList(HunyuanVideoSingleTransformerBlock() for _ in range(2))
        self.proj_out = nn.Linear(WIDTH, 16)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        pooled_projections: Tensor | None,
        guidance: Tensor | None,
        latent_indices: Tensor | None = None,
        clean_latents: Tensor | None = None,
        clean_latent_indices: Tensor | None = None,
        clean_latents_2x: Tensor | None = None,
        clean_latent_2x_indices: Tensor | None = None,
        clean_latents_4x: Tensor | None = None,
        clean_latent_4x_indices: Tensor | None = None,
        image_embeddings: Tensor | None = None,
        attention_kwargs: Any = None,
        return_dict: bool = True,
    ) -> Any:
        x = self.x_embedder.proj(hidden_states).flatten(2).transpose(1, 2)  # not through x_embedder itself
        count = x.shape[1]
        clean = self.clean_x_embedder
        for latents, indices, proj in (
            (clean_latents, clean_latent_indices, clean.proj),
            (clean_latents_2x, clean_latent_2x_indices, clean.proj_2x),
            (clean_latents_4x, clean_latent_4x_indices, clean.proj_4x),
        ):
            if latents is not None and indices is not None:
                sizes = zip(reversed(latents.shape[2:]), reversed(proj.stride), strict=True)
                padding = [side for size, step in sizes for side in (0, -size % step)]
                padded = nn.functional.pad(latents, padding, mode="replicate")
                x = torch.cat([proj(padded).flatten(2).transpose(1, 2), x], dim=1)
        txt, temb = self.context_embedder(encoder_hidden_states), self.time_text_embed(timestep[:, None])
        for block in [*self.transformer_blocks, *self.single_transformer_blocks]:
            x, txt = self.run(block, x, txt, temb, None, None)
        out = self.proj_out(x[:, -count:])
        return SimpleNamespace(sample=out) if return_dict else (out,)


def _hy_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    return {
        "x": torch.randn(batch_size, 4, 3, 4, 6),
        "t": torch.rand(batch_size),
        "text_states": torch.randn(batch_size, 5, 12),
        "text_mask": torch.ones(batch_size, 5),
    }


def _hy15_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch_size, 4, 3, 2, 3),
        "timestep": torch.rand(batch_size),
        "text_states": torch.randn(batch_size, 5, 12),
        "encoder_attention_mask": torch.ones(batch_size, 5),
    }


def _packed_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch_size, 4, 3, 4, 6),
        "timestep": torch.rand(batch_size),
        "encoder_hidden_states": torch.randn(batch_size, 5, 12),
        "encoder_attention_mask": torch.ones(batch_size, 5),
        "pooled_projections": None,
        "guidance": None,
        "clean_latents": torch.randn(batch_size, 4, 2, 4, 6),
        "clean_latent_indices": torch.zeros(batch_size, 2),
        "clean_latents_2x": torch.randn(batch_size, 4, 3, 4, 6),
        "clean_latent_2x_indices": torch.zeros(batch_size, 3),
        "clean_latents_4x": torch.randn(batch_size, 4, 3, 4, 6),
        "clean_latent_4x_indices": None,  # so these clean frames are left out
    }


class TestOriginalHunyuanVideo(TestHunyuanVideo):
    tiny_model = HYVideoDiffusionTransformer
    example_inputs = _hy_inputs


class TestMusubiHunyuanVideo15(TestHunyuanVideo):
    tiny_model = HunyuanVideo_1_5_DiffusionTransformer
    example_inputs = _hy15_inputs


class TestMusubiFramePack(TestHunyuanVideo):
    tiny_model = HunyuanVideoTransformer3DModelPacked
    example_inputs = _packed_inputs


@pytest.mark.parametrize(
    ("make", "inputs_of", "clean"),
    [
        (tiny.tiny_framepack, tiny.example_inputs, ["latents_clean", "latents_history_2x", "latents_history_4x"]),
        (HunyuanVideoTransformer3DModelPacked, _packed_inputs, ["clean_latents", "clean_latents_2x"]),
    ],
)
def test_framepack_aligns_the_generated_tokens(
    make: Callable[[], nn.Module], inputs_of: Callable[..., dict[str, Any]], clean: list[str]
) -> None:
    seed_everything()
    model = make()
    scatter_weights(model)
    inputs = inputs_of(model, 2)
    states = look(adapter, model, inputs).states
    student, teacher = states[1], states[2]
    generated = 3 * 2 * 3
    cosine = torch.cosine_similarity(student, teacher, dim=-1)
    assert student.shape[1] > generated
    # The clean frames come first: changing them changes the tokens there more than the generated ones.
    other = look(adapter, model, perturbed(inputs, clean)).states[0]
    change = (other - states[0]).norm(dim=-1)
    assert change[:, :-generated].min() > change[:, -generated:].max()
    assert _loss(model, inputs, "target") == pytest.approx(-cosine[:, -generated:].mean().item(), abs=1e-6)
    assert _loss(model, inputs, "all") == pytest.approx(-cosine.mean().item(), abs=1e-6)


def test_framepack_without_clean_frames_has_a_grid() -> None:
    inputs = {**_packed_inputs(nn.Identity(), 2), "clean_latents": None, "clean_latents_2x": None}
    tokens = look(adapter, HunyuanVideoTransformer3DModelPacked(), inputs).tokens
    assert tokens.grid == (3, 2, 3)
    assert tokens.target is None


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
