"""Small models with structures that none of LayerSync's adapters has."""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

D, IMAGE, TEXT, REGISTERS = 8, 6, 4, 3


class Mix(nn.Module):
    """A residual layer whose tokens see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.mix = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(x)) + 0.3 * self.mix(x).mean(dim=-2, keepdim=True)


@dataclass
class Streams:
    text: Tensor
    image: Tensor


class Dual(Mix):
    """Returns both streams as ``kind`` says."""

    kind = "dataclass"

    def forward(self, image: Tensor, text: Tensor) -> Any:
        both = super().forward(torch.cat([text, image], dim=1))
        text, image = both[:, : text.shape[1]], both[:, text.shape[1] :]
        return {"text": text, "image": image} if self.kind == "mapping" else Streams(text, image)


class SequenceFirst(Mix):
    """Takes and returns (S, B, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(0, 1)).transpose(0, 1).contiguous()


class Model(nn.Module):
    """Image tokens among text and registers.

    Args:
        form: "registers": one joined sequence [registers, image, text]; "dataclass" or "mapping": two streams;
            "sequence": (S, B, D) of [image, text]; "plain": the image alone; "turns": two lists in turns.
        reentrant: Kind of checkpointing; None without.
    """

    def __init__(self, form: str = "registers", reentrant: bool | None = None) -> None:
        super().__init__()
        self.form, self.reentrant = form, reentrant
        self.embed, self.text = nn.Linear(2, D), nn.Linear(5, D)
        self.registers = nn.Parameter(torch.randn(1, REGISTERS, D))
        kind = {"dataclass": Dual, "mapping": Dual, "sequence": SequenceFirst}.get(form, Mix)
        self.blocks = nn.ModuleList(kind() for _ in range(4))
        self.refiner = nn.ModuleList(Mix() for _ in range(2))
        for block in self.blocks:
            block.kind = form
        self.others = nn.ModuleList(Mix() for _ in range(4 if form == "turns" else 0))
        self.head = nn.Linear(D, 2)
        self.seen: list[Any] = []

    def run(self, block: nn.Module, *args: Tensor) -> Any:
        if self.reentrant is None:
            return block(*args)
        return checkpoint(block, *args, use_reentrant=self.reentrant)

    def forward(self, sample: Tensor, text: Tensor, other: bool = False) -> Any:
        image, text = self.embed(sample), self.text(text)
        for block in self.refiner:
            text = block(text)
        if self.form in ("dataclass", "mapping"):
            for block in self.blocks:
                made = self.run(block, image, text)
                image, text = (made["image"], made["text"]) if self.form == "mapping" else (made.image, made.text)
            return (self.head(image), self.head(text)) if other else self.head(image)
        if self.form == "plain":
            for block in self.blocks:
                image = self.run(block, image + text.mean(1, keepdim=True))
            return self.head(image)
        if self.form == "turns":
            for block, turn in zip(self.blocks, self.others, strict=True):
                image = turn((block(image) * 1).transpose(0, 1) * 1).transpose(0, 1) * 1
            return self.head(image + text.mean(1, keepdim=True))
        length = image.shape[1]
        front = [self.registers.expand(len(image), -1, -1)] if self.form == "registers" else []
        joined = torch.cat([*front, image, text], dim=1)
        joined = joined.transpose(0, 1).contiguous() if self.form == "sequence" else joined
        for block in self.blocks:
            joined = self.run(block, joined)
        joined = joined.transpose(0, 1) if self.form == "sequence" else joined
        start = REGISTERS if front else 0
        return self.head(joined[:, start : start + length])


def inputs(batch: int = 2, image: int = IMAGE, text: int = TEXT) -> tuple[Tensor, Tensor]:
    # As the output of an encoder that is trained, where re-entrant checkpoints need one.
    return torch.randn(batch, image, 2), torch.randn(batch, text, 5)


def image_of(form: str, output: Any, length: int = IMAGE) -> Tensor:
    """Return (B, S, D): the image tokens of what a block returned."""
    if form == "mapping":
        return output["image"]
    if form == "dataclass":
        return output.image
    if form == "sequence":
        return output.transpose(0, 1)[:, :length]
    return output[:, REGISTERS : REGISTERS + length] if form == "registers" else output
