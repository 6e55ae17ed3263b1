"""A model without the blocks between a pair, for every family, against a copy that never had these blocks."""

from __future__ import annotations

import copy
from math import inf, nan

import pytest
import torch
from torch import nn

from layersync_core import ConfigError, Findings, blocks_of, get_adapter, list_families, load_tiny
from layersync_core.testing import scatter_weights
from layersync_plugin_trainer import data
from layersync_plugin_trainer.feeding import Feed
from layersync_plugin_trainer.skipping import leave_out, leave_out_between

BY_PLACE = {
    "ace_step": "every other block attends differently",
    "chroma": "a block's modulation is found by its place",
    "hidream": "a block's text is found by its place",
    "hunyuan_dit": "later blocks get what earlier ones returned",
}
"""Families whose blocks do something else once those before them are gone."""


def cut(model: nn.Module, paths: list[str]) -> nn.Module:
    """Return a copy without some blocks."""
    shorter = copy.deepcopy(model)
    for path in reversed(paths):
        place, _, number = path.rpartition(".")
        blocks = shorter.get_submodule(place)
        assert isinstance(blocks, nn.ModuleList)
        del blocks[int(number)]
    return shorter


@pytest.mark.parametrize("family", list_families())
def test_the_loss_is_that_of_a_model_without_these_blocks(family: str) -> None:
    tiny = load_tiny(family)
    torch.manual_seed(0)
    model = tiny.tiny_model()
    scatter_weights(model)
    model.eval().requires_grad_(False)
    feed = Feed(tiny, model)
    samples = data.load(feed.layout.modality, feed.layout.shape, feed.classes)
    arguments = samples.samples[:2], torch.full((2,), 0.5), samples.labels[:2]
    blocks = blocks_of(get_adapter(family), model)

    def loss(of: nn.Module = model) -> float:
        return float(feed(of, *arguments).square().mean())

    # Without measurements, the pair is the one of the paper's rule.
    found = Findings(type(model).__name__, blocks)
    (pair,) = found.content()["recommended"]
    between = blocks[pair["student"] : pair["teacher"]]
    before = [blocks[pair["student"] - 1], *between]
    kinds = [(block.stack, block.width, block.stage) for block in before]
    gone = [block.path for block, kind, last in zip(between, kinds[1:], kinds, strict=False) if kind == last]
    leave_out_between(found, model, loss)
    if not gone:
        assert found.between == []
        assert found.loss is None
        return
    (run,) = found.between
    assert (run.first, run.last) == (pair["student"] + 1, pair["teacher"])
    assert found.loss == loss(), "the blocks are back"
    assert abs(run.rise) > 1e-5
    if family not in BY_PLACE:
        assert run.rise == pytest.approx(loss(cut(model, gone)) - found.loss, abs=2e-6)
    assert found.rise_between(pair["student"] - 1, pair["teacher"] - 1) == run.rise / found.loss


@pytest.mark.parametrize(
    ("losses", "said"), [([nan], "loss is not finite"), ([1.0, inf], r"without blocks \d+ to \d+ is")]
)
def test_a_loss_that_is_not_finite_is_an_error(losses: list[float], said: str) -> None:
    model = load_tiny("dit").tiny_model()
    found = Findings("DiT", blocks_of(get_adapter("dit"), model))
    with pytest.raises(ConfigError, match=said):
        leave_out_between(found, model, iter(losses).__next__)
    with pytest.raises(ConfigError, match=said):
        leave_out(found, model, iter(losses).__next__, cost=1, budget=9)
