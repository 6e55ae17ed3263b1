"""The moving average: its numbers, its place in the model, and that the model gets its own weights back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layersync_plugin_twinflow.teacher import MovingAverage


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(2, 2, bias=False)
        self.two = nn.Linear(2, 2, bias=False)
        self.two.weight = self.one.weight
        self.frozen = nn.Linear(2, 2, bias=False).requires_grad_(False)

    def forward(self, x):
        return self.two(self.one(x)) + self.frozen(x)


def test_it_begins_with_the_weights_and_follows_them_ever_more_slowly():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = MovingAverage(model, 0.5)
    value = 0.0
    for update in range(1, 30):
        nn.init.constant_(model.weight, update)
        average.update()
        decay = min(0.5, (1 + update) / (10 + update))
        value = decay * value + (1 - decay) * update
        assert average.get_buffer("weight").item() == pytest.approx(value)


def test_in_place_the_model_has_it_under_every_name_and_its_own_weights_afterwards():
    model = Tied()
    own = dict(model.named_parameters(remove_duplicate=False))
    average = MovingAverage(model, 0.9)
    assert [name for name, _ in average.named_buffers()] == ["one/weight", "updates"]
    nn.init.constant_(average.get_buffer("one/weight"), 2.0)
    x = torch.ones(1, 2)
    with torch.no_grad(), average.in_place():
        assert model(x).tolist() == (16 + model.frozen(x)).tolist()
    with pytest.raises(KeyError), average.in_place():
        raise KeyError
    now = dict(model.named_parameters(remove_duplicate=False))
    assert now.keys() == own.keys()
    assert all(now[name] is own[name] for name in own)


def test_half_precision_weights_have_an_average_in_fp32():
    model = nn.Linear(1, 1, bias=False).bfloat16()
    average = MovingAverage(model, 0.9)
    assert average.get_buffer("weight").dtype == torch.float32
    with average.in_place():
        assert model.weight.dtype == torch.bfloat16


def test_a_forward_in_place_leaves_the_graph_of_another_alone():
    model = Tied()
    loss = model(torch.ones(1, 2)).sum()
    average = MovingAverage(model, 0.9)
    with torch.no_grad(), average.in_place():
        model(torch.ones(1, 2))
    loss.backward()
    assert model.one.weight.grad is not None
