"""What is trainable, judged by autograd: a student that depends on nothing trainable is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layersync_core import CaptureError
from tests.models import Outside, Toy, assert_same_gradients, attached, gradients, toy, toy_input, toy_term


def freeze(model: nn.Module, but: str = "\0") -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(but in name)


def require_grad_after_embedding(model: Toy) -> None:
    model.embed.register_forward_hook(lambda module, args, output: output.requires_grad_())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # re-entrant, no trick
@pytest.mark.parametrize("trick", [False, True], ids=["", "embedding requires grad"])
@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("trainable", ["\0", "blocks.2", "blocks.3"])
def test_a_model_frozen_up_to_the_student_is_refused(trainable: str, reentrant: bool | None, trick: bool) -> None:
    model = toy(reentrant=reentrant)
    freeze(model, but=trainable)
    if trick:
        require_grad_after_embedding(model)
    with attached(model, 2, 4) as sync:
        model(toy_input())
        with pytest.raises(CaptureError, match=r"block 2 of 4 \(blocks\.1\) depends on nothing trainable"):
            sync.loss()


@pytest.mark.parametrize("trainable", ["embed", "blocks.0", "blocks.1"])
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_one_trainable_part_up_to_the_student_is_enough(trainable: str, reentrant: bool | None) -> None:
    model = toy(reentrant=reentrant)
    freeze(model, but=trainable)
    if trainable != "embed" and reentrant:
        require_grad_after_embedding(model)
    expected, expected_gradients = toy_term(model, toy_input(), 2, 4)
    with attached(model, 2, 4) as sync:
        for _ in range(2):
            model(toy_input())
            loss = sync.loss()
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
            loss.backward()
            assert_same_gradients(gradients(model), expected_gradients)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_reentrant_checkpointing_of_a_frozen_base_without_the_trick_is_refused() -> None:
    model = toy(reentrant=True)
    freeze(model, but="blocks.0")
    with attached(model, 2, 4) as sync:
        model(toy_input())
        with pytest.raises(CaptureError, match="re-entrant"):
            sync.loss()


def test_a_model_that_freezes_in_the_middle_of_a_run_is_refused() -> None:
    model = toy()
    with attached(model) as sync:
        model(toy_input())
        sync.loss()
        freeze(model, but="head")
        model(toy_input())
        with pytest.raises(CaptureError, match="depends on nothing trainable"):
            sync.loss()


def test_lora_outside_the_model_and_only_after_the_student_is_refused() -> None:
    model = toy()
    freeze(model)
    networks = [Outside(block.inner) for block in model.blocks[2:]]
    with attached(model, 2, 4) as sync:
        model(toy_input())
        with pytest.raises(CaptureError, match="depends on nothing trainable"):
            sync.loss()
    assert networks


@pytest.mark.parametrize("training", [True, False])
def test_training_means_grad_not_train_mode(training: bool) -> None:
    model = toy().train(training)
    with attached(model) as sync:
        model(toy_input())
        torch.testing.assert_close(sync.loss(), toy_term(model, toy_input())[0], rtol=1e-5, atol=1e-6)
