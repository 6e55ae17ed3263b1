"""DiT: diffusers' class, and stand-ins for the original SiT and DiT, which are recognised by their names."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layersync_adapter_dit import adapter
from layersync_core import attach
from layersync_core.testing import AdapterConformance


class TestDiTTransformer2DModel(AdapterConformance):
    family = "dit"
    depth = 6


class PatchEmbed(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_size = (2, 2)
        self.proj = nn.Conv2d(4, 16, 2, stride=2)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class SiTBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.to_q, self.to_k, self.to_v = (nn.Linear(16, 16, bias=False) for _ in range(3))
        self.mlp, self.adaLN_modulation = nn.Linear(16, 16), nn.Linear(16, 32)

    def forward(self, x, c):
        gate_msa, gate_mlp = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        y = self.norm1(x)
        x = x + gate_msa * F.scaled_dot_product_attention(self.to_q(y), self.to_k(y), self.to_v(y))
        return x + gate_mlp * self.mlp(self.norm2(x))


class DiTBlock(SiTBlock):
    pass


class Root(nn.Module):
    def __init__(self, block_class):
        super().__init__()
        self.patch_size = 2
        self.x_embedder, self.t_embedder, self.y_embedder = PatchEmbed(), nn.Linear(1, 16), nn.Embedding(11, 16)
        self.pos_embed = nn.Parameter(torch.randn(1, 12, 16), requires_grad=False)
        self.blocks = nn.ModuleList(block_class() for _ in range(4))
        self.final_layer = nn.Linear(16, 16)
        self.checkpoint = None

    def enable_gradient_checkpointing(self, gradient_checkpointing_func=None):
        self.checkpoint = gradient_checkpointing_func

    def forward(self, x, t, y):
        x = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(t[:, None]) + self.y_embedder(y)
        for block in self.blocks:
            x = self.checkpoint(block, x, c) if self.checkpoint else block(x, c)
        return F.fold(self.final_layer(x).transpose(1, 2), (8, 6), 2, stride=2)


class SiT(Root):
    def __init__(self):
        super().__init__(SiTBlock)


class DiT(Root):
    def __init__(self):
        super().__init__(DiTBlock)


class TestSiT(AdapterConformance):
    family = "dit"
    tiny_model = SiT
    depth = 4

    @staticmethod
    def example_inputs(model, batch_size):
        return {
            "x": torch.randn(batch_size, 4, 8, 6),
            "t": torch.rand(batch_size),
            "y": torch.randint(0, 11, (batch_size,)),
        }


class TestDiT(TestSiT):
    tiny_model = DiT


@pytest.mark.parametrize("kind", [SiT, DiT])
def test_the_original_classes_are_found_by_name(kind):
    model, states = kind(), []
    config = {"layersync_enabled": True, "layersync_student_block": 1, "layersync_teacher_block": 4}
    with attach(model, config) as sync:
        assert (sync.family, str(sync.teacher), sync.teacher.width) == ("dit", "block 4 of 4 (blocks.3)", 16)
        handle = model.blocks[0].register_forward_hook(lambda module, args, output: states.append(output))
        model(**TestSiT.example_inputs(model, 2))
        handle.remove()
        assert states[0].shape == (2, 12, 16)
        sync.loss().backward()
    assert model.x_embedder.proj.weight.grad is not None
    assert all(parameter.grad is None for parameter in model.blocks[1].parameters())


def test_a_class_of_that_name_with_other_blocks_is_not_taken():
    assert not adapter.supports_hidden_states(type("SiT", (nn.Module,), {})())
