"""CogView4, as diffusers has it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_cogview4 import CogView4TrainingAttnProcessor
from torch import Tensor

from layersync_adapter_cogview4 import adapter, tiny
from layersync_core import attach
from layersync_core.testing import AdapterConformance, look, scatter_weights, seed_everything


def _longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
    names = ("encoder_hidden_states", "attention_mask")
    return inputs | {name: torch.cat([inputs[name]] * 2, dim=1) for name in names}


class TestCogView4(AdapterConformance):
    family = "cogview4"
    longer_text = _longer_text
    depth = 4


class TestCogView4Control(TestCogView4):
    tiny_model = partial(tiny.tiny_model, in_channels=8)
    example_inputs = partial(tiny.example_inputs, rows=4, columns=6)


def _padded(batch_flag: Tensor | None) -> tuple[Any, dict[str, Any], Tensor]:
    """Return a model with its training attention, inputs with two rows of padding in the second image, and (B, S)."""
    seed_everything()
    model: Any = tiny.tiny_model()
    scatter_weights(model)
    for block in model.transformer_blocks:
        block.attn1.set_processor(CogView4TrainingAttnProcessor())
    inputs = tiny.example_inputs(model, 2, rows=8, columns=6)
    real_BS = torch.ones(2, 12, dtype=torch.int32)
    real_BS[1, 6:] = 0
    text_BS = inputs.pop("attention_mask").int()
    inputs["attention_kwargs"] = {"latent_attn_mask": real_BS, "text_attn_mask": text_BS, "batch_flag": batch_flag}
    if batch_flag is not None:  # a rotation for each image
        long, short = (model.rope(torch.zeros(1, 4, rows, 6)) for rows in (8, 4))
        inputs["image_rotary_emb"] = [long, short]
    return model, inputs, real_BS.bool()


@pytest.mark.parametrize("batch_flag", [None, torch.tensor([0, 0])], ids=["padded", "packed"])
@pytest.mark.parametrize("by", ["model", "blocks"])
def test_padding_does_not_count(batch_flag: Tensor | None, by: str) -> None:
    model, inputs, real_BS = _padded(batch_flag)
    calls: list[tuple[Any, Any]] = []
    states: list[Tensor] = []
    handles = [
        model.transformer_blocks[0].register_forward_pre_hook(lambda m, args: calls.append(args)),
        *(model.transformer_blocks[k].register_forward_hook(lambda m, a, out: states.append(out[0])) for k in (1, 3)),
    ]
    model(**inputs)
    for handle in handles:
        handle.remove()
    expected = torch.cosine_similarity(states[0], states[1].detach(), dim=-1)[real_BS].mean()
    settings = {"layersync_enabled": True, "layersync_student_block": 2, "layersync_teacher_block": 4}
    with attach(model, settings | {"layersync_lambda": 1.0}) as sync:
        if by == "model":
            model(**inputs)
        else:
            image, text, *rest = calls[0]
            for block in model.transformer_blocks:
                image, text = block(image, text, *rest)
        loss = sync.loss()
        torch.testing.assert_close(loss, -expected)
        weights = list(model.transformer_blocks[1].parameters())
        got, wanted = (torch.autograd.grad(value, weights, allow_unused=True) for value in (loss, -expected))
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert look(adapter, model, inputs).tokens.grid is None


def test_an_image_has_a_grid() -> None:
    model = tiny.tiny_model()
    assert look(adapter, model, tiny.example_inputs(model, 2, rows=4, columns=6)).tokens.grid == (1, 2, 3)
