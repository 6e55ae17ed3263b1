"""Flux.3 with and without references."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from layersync_adapter_flux3 import adapter, tiny
from layersync_core import attach
from layersync_core.testing import AdapterConformance, randomise_weights


def longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs | {"encoder_hidden_states": torch.randn(2, 9, 12), "txt_ids": torch.zeros(9, 4)}


class TestFlux3(AdapterConformance):
    family = "flux3"
    depth = 6
    longer_text = longer_text


class TestFlux3WithReferences(TestFlux3):
    example_inputs = partial(tiny.example_inputs, references=2)


def settings(student: int, teacher: int) -> dict[str, Any]:
    return {
        "layersync_enabled": True,
        "layersync_student_block": student,
        "layersync_teacher_block": teacher,
        "layersync_lambda": 1,
    }


@pytest.mark.parametrize("references", [0, 1, 3])
@pytest.mark.parametrize(("student", "teacher"), [(1, 2), (2, 5), (3, 6)])
def test_the_loss_is_that_of_the_generated_image(student: int, teacher: int, references: int) -> None:
    model = randomise_weights(tiny.tiny_model())
    inputs = tiny.example_inputs(model, 2, references)
    seen: list[Tensor] = []
    blocks = [*model.mode_blocks["image"], *model.single_transformer_blocks]
    for at in (student, teacher):
        blocks[at - 1].register_forward_hook(
            lambda module, args, output: seen.append(output if isinstance(output, Tensor) else output[1][:, :16])
        )
    with attach(model, settings(student, teacher), adapter=adapter) as sync:
        model(**inputs)
        loss = sync.loss()
    torch.testing.assert_close(loss, -torch.cosine_similarity(*seen, dim=-1).mean())


def test_references_that_are_asked_for_are_told_as_left_out(caplog: pytest.LogCaptureFixture) -> None:
    model = randomise_weights(tiny.tiny_model())
    with attach(model, settings(2, 5) | {"layersync_tokens": "all"}, adapter=adapter) as sync:
        model(**tiny.example_inputs(model, 2, references=1))
        sync.loss()
    (message,) = caplog.messages
    assert message.startswith("layersync_tokens all counts the same tokens as target here")
