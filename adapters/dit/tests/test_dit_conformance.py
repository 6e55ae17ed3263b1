"""The conformance of diffusers' DiT, and of stand-ins for the original SiT and DiT."""

import torch
from torch import nn
from torch.nn import functional as F

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
        self.pos_embed = nn.Parameter(torch.randn(1, 16, 16), requires_grad=False)
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
        return F.fold(self.final_layer(x).transpose(1, 2), 8, 2, stride=2)


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
            "x": torch.randn(batch_size, 4, 8, 8),
            "t": torch.rand(batch_size),
            "y": torch.randint(0, 11, (batch_size,)),
        }


class TestDiT(TestSiT):
    tiny_model = DiT
