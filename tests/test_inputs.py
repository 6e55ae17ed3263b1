# Shapes: B batch, S tokens, D channels
"""What a loop hands over beside the forward: the main loss, the step, and weights of samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from layersync_core import ConfigError, attach
from tests.models import TOY, attached, close, settings, toy, toy_input, toy_states


# The main loss, and what goes with it.
@pytest.mark.parametrize(
    "wrong",
    [
        0.5,
        None,
        torch.ones(2, requires_grad=True),
        torch.ones(1),
        torch.tensor(1),
        torch.tensor(True),
        torch.tensor(1j),
    ],
)
def test_a_main_loss_that_is_no_scalar_tensor_is_refused(wrong: Any) -> None:
    model = toy()
    with attached(model) as sync:
        model(toy_input())
        with pytest.raises(ConfigError, match="scalar tensor"):
            sync.apply(wrong)
        model(toy_input())  # a program that catches the error goes on
        sync.apply(torch.ones(()))


@pytest.mark.parametrize("step", [-1, 0.5, "3", True, False, 1.0, torch.tensor(1.0), torch.tensor(True)])
def test_a_step_that_is_no_count_is_refused(step: Any) -> None:
    model = toy()
    with attached(model) as sync:
        for ask in (lambda: sync.apply(torch.ones(()), step=step), lambda: sync.loss(step=step)):
            model(toy_input())
            with pytest.raises(ConfigError, match="a whole number from 0"):
                ask()
        assert sync.state_dict()["step"] == 0
        for good in (0, np.int64(3), torch.tensor(4)):
            model(toy_input())
            sync.apply(torch.ones(()), step=good)


WRONG_WEIGHTS = {
    "list": [1.0, 1.0],
    "number": 1.0,
    "numpy": np.ones(2),
    "scalar": torch.tensor(2.0),
    "column": torch.ones(2, 1),
    "row": torch.ones(1, 2),
    "one for all": torch.ones(1),
    "three": torch.ones(3),
    "complex": torch.ones(2, dtype=torch.complex64),
    "negative": torch.tensor([1.0, -1.0]),
    "nan": torch.tensor([1.0, float("nan")]),
    "infinite": torch.tensor([float("inf"), 1.0]),
}


@pytest.mark.parametrize("weight", WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS.keys())
@pytest.mark.parametrize("regularizer", ["layersync", "crepa"])
def test_sample_weights_that_are_none_are_refused_for_every_regularizer(regularizer: str, weight: Any) -> None:
    model = toy()
    crepa = {"crepa_enabled": True, "crepa_block_index": 0, "crepa_teacher_block_index": 2}
    config = settings(1, 3) if regularizer == "layersync" else crepa | {"crepa_feature_source": "backbone"}
    with attach(model, config, adapter=TOY) as sync:
        model(toy_input())
        with pytest.raises(ConfigError, match="sample_weight"):
            sync.apply(torch.ones(()), sample_weight=weight)
        assert sync.metrics() == {}
        model(toy_input())
        sync.apply(torch.ones(()))


@pytest.mark.parametrize(
    "weight", [torch.tensor([2, 0]), torch.tensor([True, False]), torch.tensor([1.5, 0.0], requires_grad=True)]
)
def test_sample_weights_of_other_kinds(weight: Tensor) -> None:
    model, x = toy(), toy_input()
    with attached(model) as sync:
        model(x)
        loss = sync.loss(sample_weight=weight)
        model(x)
        close(loss, sync.loss(sample_weight=weight.detach().double()))
        loss.backward()
    assert weight.grad is None


def test_sample_weights_scale_the_term_and_not_the_similarity() -> None:
    model, x = toy(), toy_input(batch=3)
    weight = torch.tensor([1.0, 0.0, 2.5])
    states = toy_states(model, x)
    each_B = nn.functional.cosine_similarity(states[0], states[2], dim=-1).mean(dim=1)
    with attached(model) as sync:
        model(x)
        loss = sync.apply(torch.ones(()), sample_weight=weight)
        close(loss, 1 - 0.5 * (each_B * weight).mean().detach())
        metrics = sync.metrics()
        close(metrics["layersync_similarity"], each_B.mean().detach())
        close(metrics["layersync_loss"], loss.detach() - 1)
        model(x)
        with pytest.raises(ConfigError, match="sample_weight"):
            sync.apply(torch.ones(()), sample_weight=weight[:2])


@pytest.mark.parametrize(
    "more",
    [
        {"sample_weight": torch.ones(2).to_sparse()},
        {"sample_weight": torch.ones(2, device="meta")},
        {"step": torch.ones((), dtype=torch.int64, device="meta")},
    ],
    ids=["sparse", "meta", "step on meta"],
)
def test_whatever_is_raised_the_next_step_goes_on(more: dict[str, Any]) -> None:
    model = toy()
    with attached(model) as sync:
        model(toy_input())
        with pytest.raises(Exception):  # noqa: B017, PT011
            sync.apply(torch.ones(()), **more)
        model(toy_input())
        sync.apply(torch.ones(()))
