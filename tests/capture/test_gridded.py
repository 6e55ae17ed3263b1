"""Blocks that return (B, T, H, W, D), declared by an adapter and found by measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_core import BlockStack, BlockStackAdapter, CaptureError, ConfigError, LayerSyncWarning, attach
from layersync_core.testing import scatter_weights, seed_everything

ON = {
    "layersync_enabled": True,
    "layersync_student_block": 1,
    "layersync_teacher_block": 3,
    "layersync_lambda": 0.5,
}
ADAPTER = BlockStackAdapter(family="places", model_classes="Places", stacks=BlockStack("blocks", gridded=True))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.mix = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(x)) + 0.3 * self.mix(x).mean(dim=(1, 2, 3), keepdim=True)


class Places(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks, self.head = nn.Linear(4, 8), nn.ModuleList(Block() for _ in range(4)), nn.Linear(8, 4)

    def forward(self, sample: Tensor) -> Tensor:
        x = self.embed(sample.movedim(1, -1))
        for block in self.blocks:
            x = block(x)
        return self.head(x).movedim(-1, 1)


def built() -> tuple[Places, Tensor]:
    seed_everything()
    model = Places()
    scatter_weights(model)
    return model, torch.randn(2, 4, 2, 3, 5)


def everything(output: Tensor) -> Tensor:
    return output.square().mean()


def second_frame(output: Tensor) -> Tensor:
    return output[:, :, 1:].square().mean()


def by_hand(model: Places, sample: Tensor, frames: slice, loss: Any) -> dict[str, Tensor]:
    states: list[Tensor] = []
    handles = [model.blocks[at].register_forward_hook(lambda _, __, out: states.append(out)) for at in (0, 2)]
    main = loss(model(sample))
    for handle in handles:
        handle.remove()
    student, teacher = (state[:, frames] for state in states)
    model.zero_grad()
    (main - 0.5 * torch.cosine_similarity(student, teacher.detach(), dim=-1).mean()).backward()
    return taken(model)


def taken(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("given", [{"adapter": ADAPTER}, {"family": "auto"}], ids=["adapter", "auto"])
def test_every_step_has_the_gradient_of_plain_hooks(given: dict[str, Any], tmp_path: Path) -> None:
    model, sample = built()
    expected = by_hand(model, sample, slice(None), everything)
    with attach(model, ON, **given) as sync:
        for _ in range(3):
            model.zero_grad()
            sync.apply(everything(model(sample))).backward()
            torch.testing.assert_close(taken(model), expected)
        if "family" in given:
            sync.save_adapter(tmp_path / "places.json")
    if "family" in given:
        model.zero_grad()
        with attach(model, ON, family=str(tmp_path / "places.json")) as sync:
            sync.apply(everything(model(sample))).backward()
        torch.testing.assert_close(taken(model), expected)


def test_measured_tokens_are_those_of_the_frames_that_are_trained() -> None:
    model, sample = built()
    expected = by_hand(model, sample, slice(1, None), second_frame)
    with attach(model, ON, family="auto") as sync:
        for _ in range(3):
            model.zero_grad()
            sync.apply(second_frame(model(sample))).backward()
            torch.testing.assert_close(taken(model), expected)


def test_the_guard_counts_frames_rows_and_columns() -> None:
    model, sample = built()
    with attach(model, ON, adapter=ADAPTER) as sync, pytest.warns(LayerSyncWarning, match="15 of the 30 tokens"):
        sync.apply(second_frame(model(sample))).backward()


def test_other_axes_than_declared_are_refused() -> None:
    model, sample = built()
    wrong = BlockStackAdapter(family="places", model_classes="Places", stacks="blocks")
    with attach(model, ON, adapter=wrong) as sync, pytest.raises(CaptureError, match="batch, tokens, channels"):
        sync.apply(everything(model(sample)))


@pytest.mark.parametrize("more", [{"joined": "first"}, {"sequence_first": True}, {"batched": False}])
def test_what_contradicts_it_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="gridded"):
        BlockStack("blocks", gridded=True, **more)
