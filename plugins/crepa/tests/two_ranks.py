"""One of two gloo ranks that train CREPA and LayerSync together: ``two_ranks.py RANK FILE``."""

from __future__ import annotations

import copy
import sys
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from layersync_core import attach, load_tiny
from tests.models import assert_same_gradients, gradients, hooks_on, randomise, settings

CREPA = {"crepa_enabled": True, "crepa_block_index": 0, "crepa_teacher_block_index": 2}
CREPA |= {"crepa_feature_source": "backbone"}
LAYERSYNC = settings(1, 3)
Gradients = dict[str, Tensor]
# Kandinsky rounds queries and keys, and so their gradients, to bf16, so the gradients don't add up exactly.
TOLERANCES = {"wan": 1e-5, "kandinsky5_video": 2e-2, "ltx_video": 1e-5}


class Inside(nn.Module):
    """A model and the trainable part beside it, as one module for a wrapper."""

    def __init__(self, model: nn.Module, part: nn.Module) -> None:
        super().__init__()
        self.model, self.part = model, part

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)


def sample_of(output: Any) -> Tensor:
    return getattr(output, "sample", output)


def backward(
    family: str, model: nn.Module, inputs: dict[str, Any], config: dict[str, Any], averaged: bool = True
) -> Any:
    """Do one step, and return the gradients of the model's and the projector's weights, and the projector."""
    torch.manual_seed(dist.get_rank())  # projectors that differ until the ranks agree on one
    with attach(model, config, family=family) as sync:
        if not averaged:
            sync.parts.remove()
        sync.apply(0.01 * sample_of(model(**inputs)).square().mean()).backward()
        part = nn.ModuleDict(sync.modules())
        return gradients(model), gradients(part), copy.deepcopy(part.state_dict())


def mean_over_ranks(local: Gradients) -> Gradients:
    for gradient in local.values():
        dist.all_reduce(gradient)
    return {name: gradient / 2 for name, gradient in local.items()}


def of_module(found: Gradients) -> Gradients:
    return {name.removeprefix("module."): gradient for name, gradient in found.items()}


def added(one: Gradients, other: Gradients) -> Gradients:
    return {name: one[name] + other[name] for name in one}


def norm(found: Gradients) -> float:
    return float(torch.stack([gradient.norm() for gradient in found.values()]).norm())


def check(family: str) -> None:
    torch.manual_seed(0)
    tiny = load_tiny(family)
    plain = randomise(tiny.tiny_model())
    torch.manual_seed(10 + dist.get_rank())
    inputs = tiny.example_inputs(plain, 2)
    model: Any = copy.deepcopy(plain)
    model.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False))
    wrapped = DistributedDataParallel(model)
    (main, _, _), (crepa, part, weights), (layersync, _, _), (both, part_of_both, weights_of_both) = (
        backward(family, wrapped, inputs, config) for config in ({}, CREPA, LAYERSYNC, CREPA | LAYERSYNC)
    )

    # Sums, since the difference of two gradients has few significant digits.
    assert_same_gradients(added(both, main), added(crepa, layersync), TOLERANCES[family])
    for found in (crepa, layersync):
        assert norm({name: gradient - main[name] for name, gradient in found.items()}) > 0.1 * norm(main)
    assert_same_gradients(part_of_both, part)

    # Compared with each rank's own gradients, without wrapper, checkpointing and averaging.
    local, local_part, _ = backward(family, plain, inputs, CREPA | LAYERSYNC, averaged=False)
    assert_same_gradients(of_module(both), mean_over_ranks(local), TOLERANCES[family])
    before = {name: gradient.clone() for name, gradient in local_part.items()}
    expected = mean_over_ranks(local_part)
    assert_same_gradients(part_of_both, expected)
    assert any((before[name] - expected[name]).norm() > 1e-3 * expected[name].norm() for name in before)
    for name, value in weights_of_both.items():
        theirs = [torch.empty_like(value) for _ in range(2)]
        dist.all_gather(theirs, value)
        assert torch.equal(theirs[0], theirs[1]), name
        assert torch.equal(value, weights[name]), name

    # The user may put the part into the wrapper, which averages it a second time.
    torch.manual_seed(dist.get_rank())
    with attach(plain, CREPA | LAYERSYNC, family=family) as sync:
        inside = DistributedDataParallel(Inside(plain, sync.modules()))
        sync.apply(0.01 * sample_of(inside(**inputs)).square().mean()).backward()
        assert_same_gradients(gradients(nn.ModuleDict(sync.modules())), expected)

    counts = []
    for config in (LAYERSYNC, CREPA | LAYERSYNC):
        with attach(plain, config, family=family) as sync:
            assert sync.student is not None
            counts.append(hooks_on(plain.get_submodule(sync.student.path)))
    assert counts[0] == counts[1], "a layer that both want is captured once"


if __name__ == "__main__":
    rank, file = sys.argv[1:]
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=int(rank), world_size=2)
    for family in TOLERANCES:
        check(family)
        print(f"{family} is right")
    dist.destroy_process_group()
