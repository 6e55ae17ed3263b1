"""Sequences that are split over ranks: refused by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from layersync_core import BlockStack, BlockStackAdapter, CaptureError, attach
from layersync_core.capture.lengths import refuse_sharded
from tests.models import attached, settings, toy, toy_input
from tests.run.processes import SCRIPTS, run


@pytest.mark.slow
def test_context_parallelism_on_two_ranks_is_refused(tmp_path: Path) -> None:
    families = ("wan", "flux", "qwen_image")
    run([sys.executable, str(SCRIPTS / "split_sequence.py"), str(tmp_path), *families])
    for family in families:
        before, after = (tmp_path / family).read_text().split("\n")
        assert "diffusers' context parallelism splits the tokens" in before
        assert after == before


def test_context_parallelism_is_known_by_its_marks() -> None:
    model, registry = toy(), SimpleNamespace(hooks={"layerwise_casting": None})
    model.blocks[0]._diffusers_hook = registry
    model._parallel_config = SimpleNamespace(context_parallel_config=None, tensor_parallel_config=object())
    with attached(model) as sync:
        model(toy_input())
        sync.loss()
        registry.hooks["cp_input---blocks.0"] = None  # as without the model's enable_parallelism
        for _ in range(2):
            model(toy_input())
            with pytest.raises(CaptureError, match=r"context parallelism splits the tokens of Toy.*over ranks"):
                sync.loss()
            sync._capture.discard()
            registry.hooks.clear()
            model._parallel_config.context_parallel_config = object()


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A mesh of two axes on one rank, of which the second says that it has two."""
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    mesh, size = init_device_mesh("cpu", (1, 1)), DeviceMesh.size
    yield (
        mesh,
        lambda: monkeypatch.setattr(DeviceMesh, "size", lambda mesh, axis=None: axis + 1 if axis else size(mesh)),
    )
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("shape", "placements", "refused"),
    [
        ((2, 5, 8), (Replicate(), Replicate()), False),
        ((2, 5, 8), (Shard(0), Shard(2)), False),
        ((2, 5, 8), (Shard(1), Shard(0)), False),  # one rank has all tokens
        ((2, 5, 8), (Replicate(), Shard(1)), True),
        ((2, 5, 8), (Shard(0), Shard(1)), True),
        ((5, 8), (Replicate(), Shard(1)), False),
        ((5, 8), (Replicate(), Shard(0)), True),
    ],
)
def test_tokens_that_are_sharded_over_ranks_are_refused(mesh: Any, shape: Any, placements: Any, refused: bool) -> None:
    mesh, as_if_two = mesh
    state = distribute_tensor(torch.randn(shape), mesh, placements)
    as_if_two()
    if not refused:
        refuse_sharded(state, "blocks.0")
        return
    said = r"blocks\.0 returned a DTensor whose tokens are sharded over ranks"
    with pytest.raises(CaptureError, match=said):
        refuse_sharded(state, "blocks.0")
    if len(shape) == 3:
        model = toy()
        model.blocks[0].register_forward_hook(lambda module, args, output: state)
        with attached(model) as sync:
            model.blocks[0].register_forward_hook(lambda module, args, output: args[0])
            model(toy_input())
            with pytest.raises(CaptureError, match=said):
                sync.loss()


@pytest.mark.parametrize(("placement", "refused"), [(Shard(0), True), (Shard(1), False), (Replicate(), False)])
def test_tokens_that_come_first_are_refused_where_they_are_sharded(mesh: Any, placement: Any, refused: bool) -> None:
    mesh, as_if_two = mesh
    said = BlockStackAdapter(family="toy", model_classes="Toy", stacks=BlockStack("blocks", sequence_first=True))
    state = distribute_tensor(torch.randn(5, 2, 8), mesh, (Replicate(), placement))
    model = toy()
    as_if_two()
    model.blocks[0].register_forward_hook(lambda module, args, output: state)
    with attach(model, settings(), adapter=said) as sync:
        for block in model.blocks[1:]:
            block.register_forward_hook(lambda module, args, output: torch.randn(5, 2, 8))
        model.blocks[1].forward = lambda state: state
        model(toy_input())
        # A sharded axis of samples passes here, and is then reported as not trainable.
        with pytest.raises(CaptureError, match=r"DTensor whose tokens are sharded" if refused else "nothing trainable"):
            sync.loss()
