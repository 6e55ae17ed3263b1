"""Wan beyond the conformance kit: the blocks that count, in all its forms."""

import pytest
import torch

from layersync_adapter_wan import adapter, tiny
from layersync_core import attach


@pytest.mark.parametrize("form", tiny.variants)
def test_only_the_main_blocks_count(form):
    model = tiny.variants[form]()
    assert [block.path for block in adapter.list_blocks(model)] == [f"blocks.{index}" for index in range(4)]
    assert {block.width for block in adapter.list_blocks(model)} == {24}


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_every_token_of_every_frame_counts(frames):
    torch.manual_seed(0)
    model = tiny.tiny_model().eval()
    inputs = tiny.example_inputs(model, 1) | {"hidden_states": torch.randn(1, 4, frames, 8, 4)}
    states = []
    with attach(model, {"layersync_enabled": True, "layersync_student_block": 1, "layersync_teacher_block": 4}) as sync:
        handles = [model.blocks[k].register_forward_hook(lambda m, a, output: states.append(output)) for k in (0, 3)]
        model(**inputs)
        expected = torch.nn.functional.cosine_similarity(*states, dim=-1)
        assert expected.shape == (1, frames * 4 * 2)
        torch.testing.assert_close(sync.loss(), -0.2 * expected.mean())
        for handle in handles:
            handle.remove()
