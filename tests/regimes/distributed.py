"""The regimes of two processes: together they must have the gradients that one has on the whole batch."""

from __future__ import annotations

import copy
import json
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.models import Inputs
from tests.regimes.cell import FAMILIES, ROUNDED, WRONG, Cell, Outcome, Regime, blocks, run
from tests.regimes.eager import Setup, checkpointed, reentrant

WORLD = 2
PARTS = 2  # backward passes per step with accumulation
BATCH = WORLD * PARTS


def share(inputs: Mapping[str, Any], part: int, parts: int) -> Inputs:
    """Return a part of a batch."""

    def of(value: Any) -> Any:
        batched = isinstance(value, list) or (isinstance(value, Tensor) and value.shape[:1] == (BATCH,))
        size = BATCH // parts
        return value[part * size : (part + 1) * size] if batched else value

    return {name: of(value) for name, value in inputs.items()}


def ddp(cell: Cell, late: bool = False, setup: Setup | None = None, **options: bool) -> None:
    """Wrap the model in DDP before or after attaching."""
    if setup:
        setup(cell)
    if not late:
        cell.attach()
    wrapped = DistributedDataParallel(cell.model, **options)
    if late:
        cell.attach(wrapped)
    _train(cell, wrapped)


def accumulated_ddp(cell: Cell, late: bool = False) -> None:
    """Accumulate over two backward passes, the first without communication."""
    if not late:
        cell.attach()
    wrapped = DistributedDataParallel(cell.model)
    if late:
        cell.attach(wrapped)
    for _ in range(2):
        for part in range(PARTS):
            with wrapped.no_sync() if part == 0 else nullcontext():
                _backward(cell, wrapped, part)
        cell.keep()


def fsdp(
    cell: Cell, late: bool = False, setup: Setup | None = None, rounded: bool = False, accumulated: bool = False
) -> None:
    """Shard every block and the model before or after attaching."""
    if setup:
        setup(cell)
    options: dict[str, Any] = {"mesh": init_device_mesh("cpu", (WORLD,))}
    if rounded:
        _expect_rounded(cell)
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if not late:
        cell.attach()
    for stack, index in blocks(cell.model):
        fully_shard(stack[index], **options)
    fully_shard(cell.model, **options)
    if late:
        cell.attach()
    if not accumulated:
        _train(cell, cell.model)
        return
    for _ in range(2):
        for part in range(PARTS):
            cell.model.set_requires_gradient_sync(part == PARTS - 1)
            _backward(cell, cell.model, part)
        cell.keep()


def _train(cell: Cell, model: Any) -> None:
    mine = share(cell.inputs, dist.get_rank(), WORLD)
    for _ in range(2):
        cell.total(model, mine).backward()
        cell.keep()


def _backward(cell: Cell, model: Any, part: int) -> None:
    mine = share(cell.inputs, dist.get_rank() * PARTS + part, BATCH)
    (cell.total(model, mine) / PARTS).backward()


def _expect_rounded(cell: Cell) -> None:
    """Expect the gradients of one process on the whole batch with bf16 weights."""
    cell.tolerance = ROUNDED
    full, inputs = copy.deepcopy(cell.model), cell.inputs
    cell.model.to(torch.bfloat16)
    cell.inputs = {name: _bf16(value) for name, value in inputs.items()}
    cell.expect()
    cell.model, cell.trained, cell.inputs = full, full, inputs


def _bf16(value: Any) -> Any:
    if isinstance(value, list):
        return [_bf16(item) for item in value]
    return value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value


REGIMES: dict[str, Regime] = {}
for _late in (False, True):

    def _named(what: str, _late: bool = _late) -> str:
        return f"{what}, then attach" if _late else f"attach, then {what}"

    REGIMES |= {
        _named("DDP"): partial(ddp, late=_late),
        _named("DDP(find_unused_parameters=True)"): partial(ddp, late=_late, find_unused_parameters=True),
        _named("DDP(static_graph=True)"): partial(ddp, late=_late, static_graph=True),
        _named("DDP, no_sync accumulation"): partial(accumulated_ddp, late=_late),
        _named("DDP(static_graph=True), re-entrant checkpointing"): partial(
            ddp, late=_late, setup=partial(checkpointed, how=reentrant), static_graph=True
        ),
        _named("DDP, non-re-entrant checkpointing"): partial(ddp, late=_late, setup=checkpointed),
        _named("FSDP2"): partial(fsdp, late=_late),
        _named("FSDP2, non-re-entrant checkpointing"): partial(fsdp, late=_late, setup=checkpointed),
        _named("FSDP2, mixed precision bf16"): partial(fsdp, late=_late, rounded=True),
        _named("FSDP2, accumulation without communication"): partial(fsdp, late=_late, accumulated=True),
    }


def outcomes(folder: Path) -> dict[str, dict[str, Outcome]]:
    """Run every cell in two processes; ``regime -> family -> outcome``.

    Args:
        folder: Where the processes leave what they found.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (port, folder / "outcomes.json"), nprocs=WORLD)
    found = json.loads((folder / "outcomes.json").read_text())
    return {name: {family: Outcome(*one) for family, one in row.items()} for name, row in found.items()}


def _rank(rank: int, port: int, file: Path) -> None:
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=WORLD, timeout=timedelta(seconds=120))
    found: dict[str, dict[str, Any]] = {}
    for name, regime in REGIMES.items():
        for family in FAMILIES:
            mine = run(partial(Cell, family, short=True, batch=BATCH), regime)
            both: list[Any] = [None, None]
            dist.all_gather_object(both, mine)
            same = both[0] == both[1]
            agreed = mine if same else Outcome(WRONG, f"the ranks differ: {both}")
            found.setdefault(name, {})[family] = (agreed.kind, agreed.reason)
    if rank == 0:
        file.write_text(json.dumps(found))
    # After DDP or FSDP gloo's threads outlive their group (torch 2.13, also without LayerSync), and one that frees a
    # tensor while Python shuts down aborts the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
