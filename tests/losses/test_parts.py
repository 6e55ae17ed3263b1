"""The trainable parts that regularizers bring: really trained, saved and restored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from layersync_core import Attachment, CaptureError, ConfigError, Term
from layersync_core.losses.parts import TrainedParts
from tests.losses.support import Other, Register, attached
from tests.models import toy_input


def test_a_trainable_part_is_trained_saved_and_restored(register: Register) -> None:
    torch.manual_seed(0)
    projector = nn.Linear(8, 1)
    register(Other(lambda states, step: Term(projector(states.tokens(1)).mean()), module=projector))
    model, sync = attached()
    with sync:
        assert list(sync.modules()) == ["other"]
        model(toy_input())
        sync.loss().backward()
        assert projector.weight.grad is not None
        assert model.embed.weight.grad is not None
        state = {key: value.clone() for key, value in sync.state_dict()["modules"]["other"].items()}
        kept = projector.weight.detach().clone()
        nn.init.zeros_(projector.weight)
        sync.load_state_dict({"version": 1, "step": 3, "modules": {"other": state}})
        assert torch.equal(projector.weight, kept)
        with pytest.raises(ConfigError, match="other"):
            sync.load_state_dict({"version": 1, "step": 3, "modules": {"other": {"weight": torch.zeros(9)}}})


@pytest.fixture
def projector(register: Register) -> nn.Linear:
    """The part of a regularizer on the second block."""
    torch.manual_seed(0)
    part = nn.Linear(8, 1)
    register(Other(lambda states, step: Term(part(states.tokens(1)).square().mean()), module=part))
    return part


OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "fused AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
}


def train(model: Any, sync: Attachment, optimiser: torch.optim.Optimizer, steps: int, forwards: int = 1) -> None:
    for _ in range(steps):
        for _ in range(forwards):
            (sync.apply(model(toy_input()).square().mean()) / forwards).backward()
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_a_part_that_no_optimiser_has_is_an_error(projector: nn.Linear, kind: str) -> None:
    model, sync = attached()
    with sync, pytest.raises(CaptureError, match=r"part of other gets gradients .* attachment\.modules"):
        train(model, sync, OPTIMISERS[kind](model.parameters()), 5)


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_a_part_in_the_optimiser_is_trained(projector: nn.Linear, kind: str) -> None:
    model, sync = attached()
    before = projector.weight.detach().clone()
    with sync:
        train(model, sync, OPTIMISERS[kind]([*model.parameters(), *sync.modules().parameters()]), 8)
    assert not torch.equal(projector.weight, before)


def test_a_part_may_have_an_optimiser_of_another_kind(projector: nn.Linear) -> None:
    model, sync = attached()
    optimiser = OPTIMISERS["SGD"](model.parameters())
    with sync:
        for _ in range(8):
            train(model, sync, optimiser, 1)
            for parameter in sync.modules().parameters():  # as many optimisers of third parties write
                assert parameter.grad is not None
                parameter.data.add_(parameter.grad, alpha=-0.1)


def test_micro_batches_are_no_updates_that_a_part_misses(projector: nn.Linear) -> None:
    model, sync = attached()
    optimiser = OPTIMISERS["SGD"]([*model.parameters(), *sync.modules().parameters()])
    with sync:
        train(model, sync, optimiser, 2, forwards=8)


def test_a_part_may_miss_two_updates_of_the_model_and_no_third(projector: nn.Linear) -> None:
    model, sync = attached()
    optimiser = OPTIMISERS["SGD"](model.parameters())
    with sync:
        train(model, sync, optimiser, 1, forwards=2)
        train(model, sync, optimiser, 2)  # each is seen by the loss after it
        with pytest.raises(CaptureError, match="never updated"):
            train(model, sync, optimiser, 1)


def test_steps_of_another_models_optimiser_are_no_updates_that_a_part_misses(projector: nn.Linear) -> None:
    model, sync = attached()
    discriminator = nn.Linear(2, 2)
    optimiser = OPTIMISERS["SGD"](discriminator.parameters())
    with sync:
        for _ in range(8):  # micro-batches of one step
            discriminator(torch.ones(2)).sum().backward()
            sync.apply(model(toy_input()).square().mean()).backward()
            optimiser.step()


def test_parts_join_the_group_of_their_models_parameters_once() -> None:
    model, part, other = nn.Linear(2, 1), nn.Linear(3, 1), nn.Linear(4, 1)
    parts = TrainedParts(model, {"other": part})
    parts.place(OPTIMISERS["SGD"](other.parameters()))
    with pytest.raises(CaptureError, match="not in any optimiser"):
        parts.require_placed()
    optimiser = OPTIMISERS["SGD"]([{"params": list(other.parameters())}, {"params": list(model.parameters())}])
    for _ in range(2):
        parts.place(optimiser)
        parts.require_placed()
        first, second = (group["params"] for group in optimiser.param_groups)
        assert [*map(id, first)] == [*map(id, other.parameters())]
        assert [*map(id, second)] == [*map(id, [*model.parameters(), *part.parameters()])]


def test_parts_of_a_model_that_is_gone_join_no_optimiser() -> None:
    model, other = nn.Linear(2, 1), nn.Linear(4, 1)
    parts = TrainedParts(model, {"other": nn.Linear(3, 1)})
    del model
    optimiser = OPTIMISERS["SGD"](other.parameters())
    parts.place(optimiser)
    assert len(optimiser.param_groups[0]["params"]) == 2


class TwoRanks:
    """What ``torch.distributed`` would do between two ranks, of which the other one is only numbers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rank: int, other: float) -> None:
        self._rank, self._other = rank, other
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        monkeypatch.setattr(dist, "broadcast", self._broadcast)
        monkeypatch.setattr(dist, "all_reduce", self._all_reduce)

    def _broadcast(self, tensor: Tensor, source: int) -> None:
        if source != self._rank:
            tensor.fill_(self._other)

    def _all_reduce(self, tensor: Tensor) -> None:
        tensor.add_(self._other / 2)


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_begins_with_the_first_ones_weights(
    register: Register, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    part = nn.Sequential(nn.Linear(8, 1), nn.BatchNorm1d(1))
    own = {name: value.clone() for name, value in part.state_dict().items()}
    register(Other(lambda states, step: Term(states.tokens(1).mean()), module=part))
    model, sync = attached()
    TwoRanks(monkeypatch, rank, other=7)
    with sync:
        model(toy_input())
        sync.loss()
    assert own
    for name, value in part.state_dict().items():
        assert torch.equal(value, torch.full_like(value, 7) if rank else own[name])


def test_the_gradient_of_a_part_is_the_mean_of_all_ranks(projector: nn.Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sync = attached()
    with sync:
        model(toy_input())
        sync.loss().backward()
        own = projector.weight.grad
        assert own is not None
        projector.zero_grad()
        TwoRanks(monkeypatch, rank=0, other=3)
        model(toy_input())
        sync.loss().backward()
        torch.testing.assert_close(projector.weight.grad, (own + 3) / 2)
