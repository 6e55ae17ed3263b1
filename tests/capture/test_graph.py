"""What is trainable, judged by autograd: a student that depends on nothing trainable is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_core import CaptureError
from layersync_core.capture.graph import measured, reached, tokens_of
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


# What a loss depends on.
def doubled(times: int) -> list[Tensor]:
    """Return what is left after each of so many doublings of a leaf."""
    chain = [torch.ones((), requires_grad=True)]
    for _ in range(times):
        chain.append(chain[-1] * 2)
    return chain[1:]


def test_the_search_looks_at_no_more_nodes_than_it_may() -> None:
    chain = doubled(6)
    wanted = {chain[0].grad_fn}
    assert reached(chain[-1], wanted, 6) == wanted
    assert reached(chain[-1], wanted, 5) == set()


def test_the_search_for_what_is_not_there_ends_with_the_graph() -> None:
    wanted = {doubled(1)[0].grad_fn}
    assert reached(doubled(3)[-1], wanted, 100) == set()
    assert reached(torch.ones(()), wanted, 100) == set()


def test_the_search_ends_with_the_last_that_was_wanted() -> None:
    class Asked(set[Any]):
        looked_at = 0

        def __contains__(self, item: object) -> bool:
            self.looked_at += 1
            return super().__contains__(item)

    near = doubled(1)[0]
    wanted = Asked([near.grad_fn])
    assert reached(near * 3 + doubled(50)[-1], wanted, 1000) == {near.grad_fn}
    assert wanted.looked_at < 10


# Tokens in what a block returned.
def test_a_span_of_the_tokens_that_a_block_returned() -> None:
    state = torch.arange(2 * 9 * 4).view(2, 9, 4)  # as many channels as tokens in one of the spans
    for span in (slice(0, 4), slice(5, 9), slice(0, 9)):
        assert torch.equal(tokens_of(state, span), state[:, span])
        assert torch.equal(tokens_of(state[0], span), state[:1, span])
    assert tokens_of(state, slice(0, 9)) is state


@pytest.mark.parametrize("span", [slice(0, 3), slice(0, 5), slice(2, 5)])
def test_the_gradient_through_a_span_is_measured_against_all_other_gradient_there(span: slice) -> None:
    torch.manual_seed(0)
    leaf, found = torch.randn(2, 5, 4, requires_grad=True), list[Tensor]()
    state = leaf * 1
    ours = measured(state, span, found.append)
    other, own = torch.randn(2, 5, 4), torch.randn(ours.shape)
    ((state * other).sum() + (ours * own).sum()).backward()
    torch.testing.assert_close(found, [own.norm() / other[:, span].norm()])
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad[:, span], other[:, span] + own)
