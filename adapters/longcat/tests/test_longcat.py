from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_adapter_longcat import adapter, tiny
from layersync_core import attach
from layersync_core.testing import AdapterConformance, randomise_weights


def longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs | {"encoder_hidden_states": torch.randn(2, 9, 12), "txt_ids": torch.zeros(9, 3)}


class TestLongCatImage(AdapterConformance):
    family = "longcat"
    depth = 4
    longer_text = longer_text


class TestLongCatImageEdit(TestLongCatImage):
    example_inputs = partial(tiny.example_inputs, references=1)


@pytest.mark.parametrize(("tokens", "counted"), [("target", slice(16)), ("all", slice(None))])
def test_references_count_only_when_asked(tokens: str, counted: slice) -> None:
    model = randomise_weights(tiny.tiny_model())
    inputs = tiny.example_inputs(model, 2, references=1)
    seen: list[Tensor] = []
    for block in (model.transformer_blocks[0], model.single_transformer_blocks[-1]):
        block.register_forward_hook(lambda module, args, output: seen.append(output[1][:, counted]))
    settings = {"enabled": True, "student_block": 1, "teacher_block": 4, "lambda": 1, "tokens": tokens}
    with attach(model, {f"layersync_{key}": value for key, value in settings.items()}, adapter=adapter) as sync:
        model(**inputs)
        torch.testing.assert_close(sync.loss(), -torch.cosine_similarity(*seen, dim=-1).mean())


class PatchEmbed3D(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Conv3d(4, width, (1, 2, 2), (1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class LongCatSingleStreamBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.attn, self.cross_attn, self.ffn = (nn.Linear(width, width) for _ in range(3))

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        t: Tensor,
        y_seqlen: list[int],
        latent_shape: tuple[int, int, int],
        num_cond_latents: int | None = None,
        return_kv: bool = False,
        kv_cache: Any = None,
        skip_crs_attn: bool = False,
    ) -> Any:
        x = x + self.attn(x + x.mean(dim=1, keepdim=True))
        text = torch.stack([part.mean(dim=0) for part in y[0].split(y_seqlen)])
        x = x + self.cross_attn(torch.tanh(0.1 * text))[:, None]
        x = x + self.ffn(x) * t.repeat_interleave(x.shape[1] // t.shape[1], dim=1)
        return (x, (x, x)) if return_kv else x


class LongCatVideoTransformer3DModel(nn.Module):
    """Stands in for the class of the original repository and of DiffSynth-Studio."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_size = [1, 2, 2]
        self.x_embedder, self.t_embedder, self.y_embedder = PatchEmbed3D(16), nn.Linear(1, 16), nn.Linear(12, 16)
        self.blocks = nn.ModuleList(LongCatSingleStreamBlock(16) for _ in range(4))
        self.final_layer = nn.Linear(16, 16)
        self.checkpoint: Any = None

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any) -> None:
        self.checkpoint = gradient_checkpointing_func

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        num_cond_latents: int = 0,
        return_kv: bool = False,
    ) -> Tensor:
        call = self.checkpoint or (lambda block, *args: block(*args))
        batch, _, frames, rows, columns = hidden_states.shape
        hidden_states = self.x_embedder(hidden_states)
        t = self.t_embedder(timestep[:, None, None].expand(-1, frames, -1))
        text = self.y_embedder(encoder_hidden_states).flatten(0, 2)[None]  # every sample's, one after another
        lengths = [encoder_hidden_states.shape[2]] * batch
        for block in self.blocks:
            output = call(block, hidden_states, text, t, lengths, (frames, rows // 2, columns // 2), 0, return_kv)
            hidden_states = output[0] if return_kv else output
        return self.final_layer(hidden_states)


def video_inputs(model: nn.Module, batch_size: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch_size, 4, 3, 8, 4),
        "timestep": torch.rand(batch_size),
        "encoder_hidden_states": torch.randn(batch_size, 1, 5, 12),
        **more,
    }


class TestLongCatVideo(AdapterConformance):
    family = "longcat"
    tiny_model = LongCatVideoTransformer3DModel
    example_inputs = video_inputs
    depth = 4

    @staticmethod
    def longer_text(inputs):
        return inputs | {"encoder_hidden_states": torch.randn(2, 1, 9, 12)}


class TestLongCatVideoWithKeysAndValues(TestLongCatVideo):
    example_inputs = partial(video_inputs, return_kv=True)
