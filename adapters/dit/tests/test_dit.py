"""The DiT and SiT of the original repositories, which are known by name: the same attributes, other contents."""

import pytest
import torch
from torch import nn

from layersync_adapter_dit import adapter
from layersync_core import attach


class PatchEmbed(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(4, 12, 2, stride=2)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class Original(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_size, self.x_embedder = 2, PatchEmbed()
        self.blocks = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))

    def forward(self, x, t, y):
        x = self.x_embedder(x)
        for block in self.blocks:
            x = x + block(x).tanh()
        return x


@pytest.mark.parametrize("name", ["SiT", "DiT"])
def test_the_original_classes_are_found_by_name(name):
    model = type(name, (Original,), {})()
    config = {"layersync_enabled": True, "layersync_student_block": 1, "layersync_teacher_block": 3}
    with attach(model, config) as sync:
        assert (sync.family, str(sync.teacher), sync.teacher.width) == ("dit", "block 3 of 3 (blocks.2)", 12)
        states = []
        handle = model.blocks[0].register_forward_hook(lambda module, args, output: states.append(output))
        model(torch.randn(2, 4, 8, 6), None, None)
        handle.remove()
        assert states[0].shape == (2, 12, 12)
        sync.loss().backward()
    assert model.x_embedder.proj.weight.grad is not None
    assert model.blocks[1].weight.grad is None


def test_a_class_of_that_name_with_other_blocks_is_not_taken():
    assert not adapter.supports_hidden_states(type("SiT", (nn.Module,), {})())
