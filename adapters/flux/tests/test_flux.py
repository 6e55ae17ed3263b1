"""Flux beyond the conformance kit: what a ControlNet adds, and what a prompt does not change."""

import pytest
import torch
import torch.nn.functional as F

from layersync_adapter_flux import tiny
from layersync_core import attach


def similarity(model, inputs, student, teacher):
    config = {"layersync_enabled": True, "layersync_student_block": student, "layersync_teacher_block": teacher}
    with attach(model, config) as sync:
        model(**inputs)
        return -sync.loss().detach() / 0.2


@pytest.mark.parametrize("references", [0, 1, 3])
def test_a_controlnets_residual_is_added_after_the_block(references):
    torch.manual_seed(0)
    model = tiny.tiny_model().eval()
    inputs = tiny.example_inputs(model, 2, references=references)
    plain, states = similarity(model, inputs, 1, 2), []
    handles = [
        block.register_forward_hook(lambda module, args, output: states.append(output[1][:, :16]))
        for block in model.transformer_blocks
    ]
    residual = [torch.randn_like(inputs["hidden_states"][..., :1]).expand(-1, -1, 32) for _ in range(2)]
    controlled = similarity(model, inputs | {"controlnet_block_samples": residual}, 1, 2)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(controlled, F.cosine_similarity(*states, dim=-1).mean())
    assert abs(controlled - plain) > 1e-3


def test_other_position_ids_alone_decide_what_is_a_reference():
    torch.manual_seed(0)
    model = tiny.tiny_model().eval()
    inputs = tiny.example_inputs(model, 2, references=1)
    moved = inputs | {"img_ids": inputs["img_ids"].flip(0), "hidden_states": inputs["hidden_states"].flip(1)}
    torch.testing.assert_close(similarity(model, moved, 2, 5), similarity(model, inputs, 2, 5), rtol=1e-4, atol=1e-5)
