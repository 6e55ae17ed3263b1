"""MiniMax H3, as diffusers has it and as ai-toolkit and DiffSynth-Studio do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_adapter_minimax_h3 import adapter, tiny
from layersync_core import attach
from layersync_core.testing import AdapterConformance, look, scatter_weights, seed_everything


class TestMiniMaxH3(AdapterConformance):
    family = "minimax_h3"
    depth = 4


class TestMiniMaxH3WithConditions(TestMiniMaxH3):
    example_inputs = partial(tiny.example_inputs, conditions=6)


# Stand-ins with the names, signatures and returned values of other sources; D is 16.
WIDTH, CHANNELS, AUDIO, TEXT = 16, 16, 4, 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.mix, self.time = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(1, 3 * WIDTH)

    def mixed(self, x: Tensor, temb: Tensor, indices: Tensor) -> Tensor:
        """Return rows, modulated by their timestep and modality."""
        x = x + self.time(temb).reshape(-1, WIDTH)[indices]
        return x + torch.tanh(self.inner(x)) + 0.1 * self.mix(x).mean(dim=-2, keepdim=True)


class MiniMaxH3Block(Block):
    def forward(
        self, x: Tensor, temb: Tensor, adaln_indices: Tensor, rotary_emb: Any, attn_mask: Tensor | None = None
    ) -> Tensor:
        return self.mixed(x, temb, adaln_indices)


class MiniMaxH3DiTBlock(Block):
    def forward(
        self, x: Tensor, *, t_emb: Tensor, combined_indices: Tensor, rope_freqs: Any, cu_seqlens: Any, max_seqlen: Any
    ) -> Tensor:
        return self.mixed(x, t_emb, combined_indices)


class Heads(nn.Module):
    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.hidden_size = WIDTH
        self.video_patch_proj, self.audio_patch_proj = nn.Linear(CHANNELS, WIDTH), nn.Linear(AUDIO, WIDTH)
        self.condition_proj = nn.Linear(TEXT, WIDTH)
        self.blocks = nn.ModuleList(block() for _ in range(4))
        self.video_out, self.audio_out = nn.Linear(WIDTH, CHANNELS), nn.Linear(WIDTH, AUDIO)


class MiniMaxH3Transformer(Heads):
    """ai-toolkit's: every sample has its own times, tags and positions, and rows of padding after its text."""

    def __init__(self) -> None:
        super().__init__(MiniMaxH3Block)

    def forward(
        self,
        hidden_states: Tensor,
        audio_hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        row_timesteps: Tensor,
        token_tags: Tensor,
        position_ids: Tensor,
        video_indices: Tensor,
        audio_indices: Tensor,
        text_indices: Tensor,
    ) -> tuple[Tensor, Tensor]:
        x = hidden_states.new_zeros(*token_tags.shape, WIDTH)
        x = x.index_copy(1, text_indices, self.condition_proj(encoder_hidden_states))
        x = x.index_copy(1, video_indices, self.video_patch_proj(hidden_states))
        x = x.index_copy(1, audio_indices, self.audio_patch_proj(audio_hidden_states))
        times, inverse = torch.unique(row_timesteps, sorted=True, return_inverse=True)
        for block in self.blocks:
            x = block(x, times[:, None], inverse * 3 + token_tags.clamp(min=0), None, None)
        return self.video_out(x).index_select(1, video_indices), self.audio_out(x).index_select(1, audio_indices)


class MiniMaxH3DiT(Heads):
    """DiffSynth-Studio's: one sample, without a batch axis inside, and padding at the end of the sequence."""

    def __init__(self) -> None:
        super().__init__(MiniMaxH3DiTBlock)

    def forward(
        self,
        x: Tensor,
        audio_x: Tensor,
        img_position_ids: Tensor,
        unique_timesteps: Tensor,
        inverse_indices: Tensor,
        update_mask: Any,
        token_tags: Tensor,
        prompt_embeds: Tensor,
        img_pos_info: dict[str, Tensor],
        audio_pos_info: dict[str, Tensor],
        text_pos_info: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        video, audio, text = (info["position_ids"] for info in (img_pos_info, audio_pos_info, text_pos_info))
        rows = self.condition_proj(prompt_embeds)
        hidden = rows.new_zeros(x.shape[1], WIDTH).index_add(0, text, rows)
        hidden = hidden.index_add(0, video, self.video_patch_proj(x[0].index_select(0, video)))
        hidden = hidden.index_add(0, audio, self.audio_patch_proj(audio_x[0].index_select(0, audio)))
        given = {"combined_indices": inverse_indices * 3 + token_tags.clamp(min=0), "rope_freqs": None}
        for block in self.blocks:
            hidden = block(hidden, t_emb=unique_timesteps[:, None], cu_seqlens=None, max_seqlen=None, **given)
        return self.video_out(hidden).index_select(0, video), self.audio_out(hidden).index_select(0, audio)


class MiniMaxH3DiTComfy(MiniMaxH3DiT):
    def __init__(self) -> None:
        super().__init__()


def _inputs_of_ai_toolkit(model: nn.Module, batch_size: int, conditions: int = 6) -> dict[str, Any]:
    inputs = tiny.example_inputs(model, batch_size, conditions=conditions)
    times = inputs.pop("timestep")[inputs.pop("timestep_indices")]
    row_timesteps = times.repeat(batch_size, 1)
    row_timesteps[-1] = torch.where(times == 0.3, 0.6, times)  # a different time for each sample
    tags = inputs["token_tags"].repeat(batch_size, 1)
    tags[-1, 4] = -1
    positions = inputs["position_ids"].expand(batch_size, -1, -1)
    return inputs | {"row_timesteps": row_timesteps, "token_tags": tags, "position_ids": positions}


def _inputs_of_diffsynth(model: nn.Module, batch_size: int, conditions: int = 6, padding: int = 3) -> dict[str, Any]:
    packed = tiny.packed(5, conditions)
    rows = len(packed["token_tags"]) + padding
    video, audio, text = (packed[f"{name}_indices"] for name in ("video", "audio", "text"))
    x, audio_x = torch.zeros(1, rows, CHANNELS), torch.zeros(1, rows, AUDIO)
    x[0, video], audio_x[0, audio] = torch.randn(len(video), CHANNELS), torch.randn(len(audio), AUDIO)
    return {
        "x": x,
        "audio_x": audio_x,
        "img_position_ids": torch.zeros(1, rows, 3),
        "unique_timesteps": packed["timestep"],
        "inverse_indices": torch.cat([packed["timestep_indices"], torch.zeros(padding, dtype=torch.long)]),
        "update_mask": None,
        "token_tags": torch.cat([packed["token_tags"], torch.full((padding,), -1)]),
        "prompt_embeds": torch.randn(len(text), TEXT),
        "img_pos_info": {"position_ids": video},
        "audio_pos_info": {"position_ids": audio},
        "text_pos_info": {"position_ids": text},
    }


class TestMiniMaxH3OfAiToolkit(TestMiniMaxH3):
    tiny_model = MiniMaxH3Transformer
    example_inputs = _inputs_of_ai_toolkit


class TestMiniMaxH3DiT(TestMiniMaxH3):
    tiny_model = MiniMaxH3DiT
    example_inputs = _inputs_of_diffsynth
    batch_size = 1
    sample = "x"
    text = ("prompt_embeds",)


def test_a_derived_class_with_these_blocks_is_known() -> None:
    assert len(adapter.list_blocks(MiniMaxH3DiTComfy())) == 4


SETTINGS = {
    "layersync_enabled": True,
    "layersync_student_block": 2,
    "layersync_teacher_block": 3,
    "layersync_lambda": 1.0,
}
FORMS: dict[str, Any] = {
    "diffusers": (tiny.tiny_model, partial(tiny.example_inputs, conditions=6)),
    "ai-toolkit": (MiniMaxH3Transformer, _inputs_of_ai_toolkit),
    "DiffSynth-Studio": (MiniMaxH3DiT, _inputs_of_diffsynth),
}


@pytest.mark.parametrize(
    ("tokens", "positions"), [("target", [*range(14, 26)]), ("all", [*range(5, 11), *range(14, 26)])]
)
@pytest.mark.parametrize("form", FORMS)
def test_rows_of_conditions_text_and_audio_do_not_count(form: str, tokens: str, positions: list[int]) -> None:
    seed_everything()
    build, inputs_for = FORMS[form]
    model = build()
    scatter_weights(model)
    inputs = inputs_for(model, 2)
    path = "transformer_blocks" if form == "diffusers" else "blocks"
    states: list[Tensor] = []
    with attach(model, SETTINGS | {"layersync_tokens": tokens}) as sync:
        for index in (1, 2):
            block = model.get_submodule(f"{path}.{index}")
            block.register_forward_hook(lambda module, args, output: states.append(output[..., positions, :]))
        model(**inputs)
        expected = -torch.cosine_similarity(states[0], states[1].detach(), dim=-1).mean()
        loss = sync.loss()
        torch.testing.assert_close(loss, expected)
        weights = list(model.get_submodule(f"{path}.1").parameters())
        got, wanted = (torch.autograd.grad(value, weights, retain_graph=True) for value in (loss, expected))
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("text", [5, 9])
def test_the_length_of_the_text_moves_the_rows(text: int) -> None:
    model = tiny.tiny_model()
    tokens = look(adapter, model, tiny.example_inputs(model, 2, text=text, conditions=6)).tokens
    assert tokens.grid is None
    assert tokens.target is not None
    assert tokens.real is not None
    assert tokens.target[0].nonzero().flatten().tolist() == [*range(text + 9, text + 21)]
    assert int(tokens.real[0].sum()) == 18


@pytest.mark.parametrize("time", [0.0, 0.9995])
def test_conditions_may_be_noisier_than_the_generated_rows(time: float) -> None:
    model = tiny.tiny_model()
    inputs = tiny.example_inputs(model, 2, conditions=6)
    inputs["timestep"][0] = time
    tokens = look(adapter, model, inputs).tokens
    assert tokens.target is not None
    assert tokens.target[0].nonzero().flatten().tolist() == [*range(14, 26)]
