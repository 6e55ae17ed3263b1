from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_adapter_flux2 import adapter, tiny
from layersync_core import CaptureError, attach
from layersync_core.testing import AdapterConformance, randomise_weights


def longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs | {"encoder_hidden_states": torch.randn(2, 9, 12), "txt_ids": torch.zeros(9, 4)}


class TestFlux2(AdapterConformance):
    family = "flux2"
    depth = 4
    longer_text = longer_text


class TestFlux2WithReferences(TestFlux2):
    example_inputs = partial(tiny.example_inputs, references=2)


def cosine(model: nn.Module, inputs: dict[str, Any], generated: slice, **more: Any) -> Tensor:
    """Return the mean cosine of the first dual-stream block with the last single-stream block, written down by hand."""
    seen: list[Any] = []
    blocks = (model.transformer_blocks[0], model.single_transformer_blocks[-1])
    handles = [block.register_forward_hook(lambda module, args, output: seen.append(output)) for block in blocks]
    model(**inputs, **more)
    for handle in handles:
        handle.remove()
    student, teacher = seen[0][1][:, generated], seen[1][:, 5:][:, generated]
    return torch.cosine_similarity(student, teacher, dim=-1).mean()


def attached_loss(model: nn.Module, inputs: dict[str, Any], tokens: str, **more: Any) -> Tensor:
    settings = {"enabled": True, "student_block": 1, "teacher_block": 4, "lambda": 1, "tokens": tokens}
    with attach(model, {f"layersync_{key}": value for key, value in settings.items()}, adapter=adapter) as sync:
        model(**inputs, **more)
        return sync.loss()


@pytest.mark.parametrize(("tokens", "counted"), [("target", slice(16)), ("all", slice(None))])
@pytest.mark.parametrize("batched_ids", [False, True])
def test_references_follow_and_count_only_when_asked(tokens: str, counted: slice, batched_ids: bool) -> None:
    model = randomise_weights(tiny.tiny_model())
    inputs = tiny.example_inputs(model, 2, references=2)
    if batched_ids:
        inputs["img_ids"] = inputs["img_ids"].expand(2, -1, -1)
    torch.testing.assert_close(attached_loss(model, inputs, tokens), -cosine(model, inputs, counted))


def test_references_that_stand_first_are_left_out() -> None:
    model = randomise_weights(tiny.tiny_model())
    inputs = tiny.example_inputs(model, 2, references=1)
    inputs["img_ids"] = inputs["img_ids"].flip(0)
    cached = {"kv_cache_mode": "extract", "num_ref_tokens": 16}
    torch.testing.assert_close(
        attached_loss(model, inputs, "target", **cached), -cosine(model, inputs, slice(16, 32), **cached)
    )


class DoubleStreamBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.img_mlp, self.txt_mlp = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self, img: Tensor, txt: Tensor, pe: Tensor, pe_ctx: Tensor, mod_img: Tensor, mod_txt: Tensor
    ) -> tuple[Tensor, Tensor]:
        shared = 0.3 * torch.cat((txt, img), dim=1).mean(dim=1, keepdim=True)
        img = img + mod_img * self.img_mlp(img + pe + shared)
        return img, txt + mod_txt * self.txt_mlp(txt + pe_ctx + shared)


class SingleStreamBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.linear1 = nn.Linear(width, width)

    def forward(self, x: Tensor, pe: Tensor, mod: Tensor) -> Tensor:
        return x + mod * self.linear1(x + pe + 0.3 * x.mean(dim=1, keepdim=True))


class Flux2(nn.Module):
    """Stands in for the class of the original repository, musubi-tuner and ai-toolkit."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 16
        self.img_in, self.txt_in, self.time_in = nn.Linear(8, 16), nn.Linear(12, 16), nn.Linear(1, 16)
        self.pe_embedder = nn.Linear(4, 16)
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(16) for _ in range(2))
        self.single_blocks = nn.ModuleList(SingleStreamBlock(16) for _ in range(2))
        self.final_layer = nn.Linear(16, 8)
        self.checkpoint: Any = None

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any) -> None:
        self.checkpoint = gradient_checkpointing_func

    def forward(
        self, x: Tensor, x_ids: Tensor, timesteps: Tensor, ctx: Tensor, ctx_ids: Tensor, guidance: Tensor | None
    ) -> Tensor:
        call = self.checkpoint or (lambda block, *args: block(*args))
        mod = self.time_in(timesteps[:, None])[:, None]
        img, txt = self.img_in(x), self.txt_in(ctx)
        pe_x, pe_ctx = self.pe_embedder(x_ids), self.pe_embedder(ctx_ids)
        for block in self.double_blocks:
            img, txt = call(block, img, txt, pe_x, pe_ctx, mod, mod)
        img, pe = torch.cat((txt, img), dim=1), torch.cat((pe_ctx, pe_x), dim=1)
        for block in self.single_blocks:
            img = call(block, img, pe, mod)
        return self.final_layer(img[:, ctx.shape[1] :])


def flux2_inputs(model: nn.Module, batch_size: int, references: int = 0) -> dict[str, Any]:
    ids = torch.cat([10.0 * image * torch.eye(4)[:1].expand(6, 4) for image in range(1 + references)])
    return {
        "x": torch.randn(batch_size, len(ids), 8),
        "x_ids": ids.expand(batch_size, -1, -1),
        "timesteps": torch.rand(batch_size) + 0.5,
        "ctx": torch.randn(batch_size, 5, 12),
        "ctx_ids": torch.zeros(batch_size, 5, 4),
        "guidance": None,
    }


class TestFlux2OfOtherTrainers(AdapterConformance):
    family = "flux2"
    tiny_model = Flux2
    example_inputs = flux2_inputs
    depth = 4

    @staticmethod
    def longer_text(inputs):
        return inputs | {"ctx": torch.randn(2, 9, 12), "ctx_ids": torch.zeros(2, 9, 4)}


class TestFlux2OfOtherTrainersWithReferences(TestFlux2OfOtherTrainers):
    example_inputs = partial(flux2_inputs, references=2)

    def test_references_are_no_targets(self) -> None:
        model = randomise_weights(Flux2())
        inputs = flux2_inputs(model, 2, references=2)
        loss = attached_loss(model, inputs, "target")
        for name in ("x", "x_ids"):
            inputs[name] = torch.cat([inputs[name][:, :6], inputs[name][:, 6:].flip(1)], dim=1)
        torch.testing.assert_close(attached_loss(model, inputs, "target"), loss)
        assert (attached_loss(model, inputs, "all") - loss).abs() > 0.01


def test_lost_tokens_are_noticed_where_no_block_of_two_streams_shows_the_text() -> None:
    """The pair's blocks drop a token before the attachment sees them, which is put back before the model goes on."""
    model, whole = randomise_weights(Flux2()), {}
    model.double_blocks = nn.ModuleList()
    model.single_blocks = nn.ModuleList(randomise_weights(SingleStreamBlock(16)) for _ in range(4))
    pair = [model.single_blocks[0], model.single_blocks[-1]]

    def drop(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        whole[module] = output
        return output[:, :-1]

    for block in pair:
        block.register_forward_hook(drop)
    settings = {"layersync_enabled": True, "layersync_student_block": 1, "layersync_teacher_block": 4}
    with attach(model, settings) as sync:
        for block in pair:
            block.register_forward_hook(lambda module, *call: whole[module])
        model(**flux2_inputs(model, 2))
        with pytest.raises(CaptureError, match="10 tokens where 11 were joined, 6 of the image and 5"):
            sync.loss()


class Flux2DiT(nn.Module):
    """Stands in for the class of DiffSynth-Studio, which has diffusers' names and checkpoints by an argument."""

    def __init__(self) -> None:
        super().__init__()
        inner = tiny.tiny_model()
        self.inner_dim = inner.inner_dim
        for name, module in inner.named_children():
            setattr(self, name, module)
        self.checkpoint: Any = None

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any) -> None:
        self.checkpoint = gradient_checkpointing_func

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        img_ids: Tensor,
        txt_ids: Tensor,
        guidance: Tensor | None = None,
    ) -> Tensor:
        call = self.checkpoint or (lambda block, *args: block(*args))
        temb = self.time_guidance_embed(timestep * 1000, guidance)
        image, text = self.x_embedder(hidden_states), self.context_embedder(encoder_hidden_states)
        rotary = self.pos_embed(torch.cat((txt_ids, img_ids)))
        modulation = (self.double_stream_modulation_img(temb), self.double_stream_modulation_txt(temb))
        for block in self.transformer_blocks:
            text, image = call(block, image, text, *modulation, rotary)
        joint = torch.cat((text, image), dim=1)
        for block in self.single_transformer_blocks:
            joint = call(block, joint, None, self.single_stream_modulation(temb), rotary)
        return self.proj_out(self.norm_out(joint[:, text.shape[1] :], temb))


class TestFlux2DiT(TestFlux2):
    tiny_model = Flux2DiT
    example_inputs = partial(tiny.example_inputs, references=1)
