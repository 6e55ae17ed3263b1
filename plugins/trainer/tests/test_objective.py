from __future__ import annotations

from functools import partial
from types import ModuleType

import pytest
import torch
from torch import nn

from layersync_plugin_trainer import data, objective
from layersync_plugin_trainer.feeding import Feed


@pytest.fixture(scope="module")
def digits():
    return data.load("image", (1, 8, 8))


@pytest.mark.parametrize(("batch", "forwards", "ranks"), [(4, 3, 1), (4, 1, 3), (2, 2, 3), (6, 2, 1)])
def test_a_step_sees_the_same_however_it_is_split(digits, batch, forwards, ranks):
    whole = objective.Batches(digits, 1, 12, null_label=10).whole(41)
    parts = [
        part
        for rank in range(ranks)
        for part in objective.Batches(digits, 1, batch, forwards, ranks, rank, 10).of_step(41)
    ]
    for name in ("clean", "noise", "time", "labels"):
        together = torch.cat([getattr(part, name) for part in parts])
        expected = getattr(whole, name)
        assert sorted(map(str, together.tolist())) == sorted(map(str, expected.tolist()))


@pytest.mark.parametrize(("forwards", "ranks"), [(3, 1), (1, 3)])
def test_further_random_numbers_are_the_same_however_a_step_is_split(digits, forwards, ranks):
    def drawn(batch_size, forwards, ranks, name):
        made = [objective.Batches(digits, 1, batch_size, forwards, ranks, rank, 10) for rank in range(ranks)]
        batches = [batch for steps in zip(*(each.of_step(41) for each in made), strict=True) for batch in steps]
        parts = [(batch.uniform(name), batch.normal(name), batch.unconditional) for batch in batches]
        return [torch.cat(values) for values in zip(*parts, strict=True)]

    uniform, normal, null = drawn(12, 1, 1, "one")
    assert uniform.shape == (12,)
    assert (uniform.min() >= 0) & (uniform.max() < 1)
    assert normal.shape == (12, 1, 8, 8)
    assert null.tolist() == [10] * 12
    for one, split in zip((uniform, normal), drawn(4, forwards, ranks, "one"), strict=False):
        assert torch.equal(one, split)
    assert not torch.equal(uniform, drawn(12, 1, 1, "other")[0])
    (batch,) = objective.Batches(digits, 1, 12).of_step(42)
    assert not torch.equal(batch.uniform("one"), uniform)
    assert batch.unconditional is None


def test_steps_and_seeds_differ(digits):
    batches = objective.Batches(digits, 1, 8)
    assert not torch.equal(batches.whole(0).noise, batches.whole(1).noise)
    assert not torch.equal(batches.whole(0).noise, objective.Batches(digits, 2, 8).whole(0).noise)


def test_a_tenth_of_the_labels_is_left_out(digits):
    labels = objective.Batches(digits, 1, 1000, null_label=10).whole(0).labels
    assert 0.06 < (labels == 10).float().mean() < 0.14


class Oracle(nn.Module):
    """Knows the only sample in the data, and therefore the exact velocity."""

    def __init__(self, target):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.target = target

    def forward(self, x, t, y):
        time = t.reshape(-1, 1, 1, 1)
        return (x - self.target) / time.clamp(min=1e-3)


def feed_of(model, **more):
    module = ModuleType("tiny")
    inputs = lambda model, n: {"x": torch.randn(n, 1, 8, 8), "t": torch.rand(n), "y": torch.zeros(n)}  # noqa: E731
    vars(module).update(modality="image", sample="x", axes="BCHW", timestep="t", example_inputs=inputs, **more)
    return Feed(module, model)


def test_the_exact_velocity_has_no_loss_and_samples_to_the_data():
    target = torch.rand(1, 8, 8) * 2 - 1
    model = Oracle(target)
    feed = feed_of(model)
    clean = target.expand(16, 1, 8, 8)
    batch = objective.Batch(clean, torch.randn(clean.shape), torch.rand(16).clamp(min=0.01), torch.zeros(16))
    assert objective.flow_loss(partial(feed, model), batch) < 1e-8
    drawn = objective.sample(model, feed, torch.zeros(3), 10, 0, torch.device("cpu"))
    torch.testing.assert_close(drawn, target.expand(3, 1, 8, 8), atol=1e-4, rtol=0)


def test_guidance_extrapolates_from_the_null_class():
    class Labelled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x, t, y):
            return torch.where(y == 10, 1.0, 2.0).reshape(-1, 1, 1, 1).expand_as(x)

    model = Labelled()
    feed = feed_of(model, labels="y", classes=lambda model: 10)
    feed.null_label = 10
    arguments = (model, feed, torch.tensor([3]), 1, 0, torch.device("cpu"))
    plain, guided = objective.sample(*arguments), objective.sample(*arguments, 3.0)
    torch.testing.assert_close(plain - guided, torch.full((1, 1, 8, 8), 2.0))  # 1 + 3 (2 - 1) = 4 instead of 2


def test_the_small_dit_has_a_null_class_and_draws_no_label_dropout_itself():
    from layersync_plugin_trainer.config import TrainerConfig
    from layersync_plugin_trainer.models import find_source

    config = TrainerConfig()
    source = find_source(config.model, config.family)
    model = source.build(config)
    feed = Feed(source.tiny, model)
    assert feed.null_label == 10
    x, t, y = torch.randn(64, 1, 8, 8), torch.rand(64), torch.arange(64) % 10
    assert torch.equal(feed(model, x, t, y), feed(model, x, t, y))
