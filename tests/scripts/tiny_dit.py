"""A DiT small enough to be built in every process of a test, and a plain loop; nothing here knows of LayerSync."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        mixed: Tensor = self.linear(x + c)
        return x + torch.tanh(mixed)


class PatchEmbed(nn.Module):
    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, WIDTH, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.proj(x)
        return tokens.flatten(2).transpose(1, 2)


class DiT(nn.Module):
    """Has the names that facebookresearch/DiT has."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.patch_size = 2
        self.x_embedder = PatchEmbed(self.patch_size)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.final_layer = nn.Linear(WIDTH, self.patch_size**2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        condition = torch.sin(t)[:, None, None]
        tokens = self.x_embedder(x)
        for block in self.blocks:
            tokens = block(tokens, condition)
        output: Tensor = self.final_layer(tokens)
        return output


def build(depth: int = 6, seed: int = 0) -> DiT:
    """Return a model with random weights, the same for the same seed."""
    torch.manual_seed(seed)
    return DiT(depth)


def batch(size: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return random images and times, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 1, 8, 8, generator=generator), torch.rand(size, generator=generator)


def loss_of(model: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    """Return a main loss that is a mean over the samples."""
    output: Tensor = model(x, t)
    return (output - x.mean((1, 2, 3))[:, None, None]).square().mean()


def train(model: nn.Module, steps: int = 3, size: int = 4) -> None:
    """Train for some steps."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(steps):
        optimiser.zero_grad()
        loss_of(model, *batch(size, seed=step)).backward()
        optimiser.step()
