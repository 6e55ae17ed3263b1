"""Blocks that are inserted, removed, reordered or skipped after attaching are reported as such."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import LayerSkipConfig
from diffusers.hooks import apply_layer_skip
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from layersync_core import CaptureError, attach
from tests.models import (
    Toy,
    ToyBlock,
    assert_same_gradients,
    attached,
    build,
    gradients,
    settings,
    toy,
    toy_input,
    toy_term,
)
from tests.run.inside import main_loss

Change = Callable[[Toy], None]


def insert(model: Toy) -> None:
    model.blocks.insert(0, ToyBlock(8))


def append(model: Toy) -> None:
    model.blocks.append(ToyBlock(8))


def remove(model: Toy) -> None:
    del model.blocks[1]


def remove_the_teacher(model: Toy) -> None:
    del model.blocks[2]


def prune(model: Toy) -> None:
    model.blocks = nn.ModuleList(model.blocks[::2])


def reorder(model: Toy) -> None:
    model.blocks = nn.ModuleList(reversed([*model.blocks]))


def swap_two_in_place(model: Toy) -> None:
    model.blocks[0], model.blocks[1] = model.blocks[1], model.blocks[0]


def replace(model: Toy) -> None:
    model.blocks[3] = ToyBlock(8)


CHANGES: list[tuple[Change, str]] = [
    (insert, r"4 blocks, now 5; the first that differs is blocks\.0"),
    (append, "4 blocks, now 5"),
    (remove, r"4 blocks, now 3; the first that differs is blocks\.1"),
    (remove_the_teacher, r"4 blocks, now 3; the first that differs is blocks\.2"),
    (prune, r"4 blocks, now 2; the first that differs is blocks\.1"),
    (reorder, r"\(the first that differs is blocks\.0\)"),
    (swap_two_in_place, r"\(the first that differs is blocks\.0\)"),
    (replace, r"\(the first that differs is blocks\.3\)"),
]


@pytest.mark.parametrize(("change", "told"), CHANGES, ids=[change.__name__ for change, _ in CHANGES])
@pytest.mark.parametrize("late", [False, True], ids=["before the first step", "after it"])
def test_other_blocks_than_those_that_were_attached_to(change: Change, told: str, late: bool) -> None:
    model = toy()
    with attached(model) as sync:
        if late:
            model(toy_input())
            sync.loss()
        change(model)
        model(toy_input())
        with pytest.raises(CaptureError, match=f"blocks of Toy are not those.*{told}.*before attach"):
            sync.loss()


@pytest.mark.parametrize("wrap", [checkpoint_wrapper, nn.Sequential])
def test_blocks_that_are_wrapped_are_still_the_same(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = toy()
    _, expected = toy_term(model, toy_input())
    with attached(model) as sync:
        model.blocks = nn.ModuleList(wrap(block) for block in model.blocks)
        for _ in range(2):
            model(toy_input())
            sync.loss().backward()
            found = {
                re.sub(r"(\.\d)\.(_checkpoint_wrapped_module|0)\.", r"\1.", n): g for n, g in gradients(model).items()
            }
            assert_same_gradients(found, expected)


class Skipping(Toy):
    """A model that leaves blocks out."""

    skipped: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        state = self.embed(x)
        for index, block in enumerate(self.blocks):
            if index not in self.skipped:
                state = block(state)
        return self.head(state)


SKIPPED = r"block 3 did not run in the last training forward: it was skipped \(skip_layers, layer dropping\)"


def test_a_block_that_is_not_called_is_said_to_be_skipped() -> None:
    model = Skipping()
    with attached(model) as sync:
        model.skipped = (2,)
        model(toy_input())
        with pytest.raises(CaptureError, match=SKIPPED) as caught:
            sync.loss()
        assert "compile" not in str(caught.value)


def test_skip_layers_of_sd3_are_not_blamed_on_the_compiler() -> None:
    from layersync_adapter_sd3 import tiny

    model: Any = tiny.tiny_model()
    with attach(model, settings()) as sync:
        model(**tiny.example_inputs(model, 1), skip_layers=[2])
        with pytest.raises(CaptureError, match=SKIPPED) as caught:
            sync.loss()
        assert "compile" not in str(caught.value)


def test_parts_of_a_block_that_are_run_without_calling_it() -> None:
    model = toy()
    with attached(model) as sync:
        state = model.embed(toy_input())
        model.blocks[2].forward, run = model.blocks[2].__call__, model.blocks[2].forward
        del model.blocks[2].forward
        model.forward = lambda x: model.head(model.blocks[1](run(model.blocks[0](model.embed(x)))))  # type: ignore[method-assign]
        model(toy_input())
        with pytest.raises(CaptureError, match="its parts, or a copy of it, ran in its place"):
            sync.loss()
        assert state.requires_grad


@pytest.mark.parametrize("reentrant", [None, True])
def test_layer_skip_up_to_the_teacher(reentrant: bool | None) -> None:
    model, inputs = build("dit")
    if reentrant:
        model.enable_gradient_checkpointing(
            lambda *given: torch.utils.checkpoint.checkpoint(*given, use_reentrant=True)
        )  # type: ignore[operator]
    with attach(model, settings(1, 4)) as sync:
        apply_layer_skip(model, LayerSkipConfig([1, 2, 3], fqn="transformer_blocks"))
        loss = main_loss(model(**inputs))
        with pytest.raises(CaptureError, match=r"LayerSkip skips block 4 \(transformer_blocks\.3\)"):
            sync.apply(loss)


def test_layer_skip_of_the_student() -> None:
    model, inputs = build("dit")
    with attach(model, settings(2, 4)) as sync:
        apply_layer_skip(model, LayerSkipConfig([1], fqn="transformer_blocks"))
        loss = main_loss(model(**inputs))
        with pytest.raises(CaptureError, match=r"LayerSkip skips block 2 \(transformer_blocks\.1\)"):
            sync.apply(loss)


def test_layer_skip_between_the_two_leaves_a_pair_that_trains() -> None:
    model, inputs = build("dit")
    with attach(model, settings(1, 4)) as sync:
        apply_layer_skip(model, LayerSkipConfig([1, 2], fqn="transformer_blocks"))
        sync.apply(main_loss(model(**inputs)))
        assert sync.metrics()["layersync_similarity"] < 0.9999


class HandingOn(ToyBlock):
    """A block that drops out: it returns what it was given."""

    def forward(self, state: Tensor) -> Tensor:
        return state


class InPlace(ToyBlock):
    """A block that adds to its input in place."""

    def forward(self, state: Tensor) -> Tensor:
        return state.add_(self.outer(torch.tanh(self.inner(state.detach().clone()))))


@pytest.mark.parametrize("kind", [HandingOn, InPlace])
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_two_blocks_that_return_one_tensor(kind: type[ToyBlock], reentrant: bool | None) -> None:
    model = toy(reentrant=None if kind is InPlace else reentrant)
    model.blocks[1], model.blocks[2] = kind(8), kind(8)
    with attached(model) as sync:
        model(toy_input())
        with pytest.raises(CaptureError, match=r"block 1 \(blocks\.0\) and block 3 \(blocks\.2\) returned one and"):
            sync.loss()
