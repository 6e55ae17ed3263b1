"""Train one step on this rank's share of a batch, in the way that is asked for; rank 0 saves its gradients.

Usage: two_ranks.py {one,env,sharded,accelerate,spawn} FILE [depth of rank 1's model, which is in no wrapper then]
"""

from __future__ import annotations

import faulthandler
import os
import sys

import torch
import torch.distributed as dist
from tiny_dit import batch, build, loss_of
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

PATIENCE = 180  # seconds after which a rank that hangs shows where, and ends


def plain(rank: int, ranks: int, file: str, depth: int | None = None) -> None:
    """Train in a process group that this function starts, if there is more than one rank."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    if ranks > 1 and "MASTER_ADDR" in os.environ:
        dist.init_process_group("gloo", rank=rank, world_size=ranks)
    elif ranks > 1:
        dist.init_process_group("gloo", f"file://{file}.store", rank=rank, world_size=ranks)
    model = build((depth if rank else None) or 6)
    wrapped = DistributedDataParallel(model) if ranks > 1 and depth is None else model
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    x, t = (part.chunk(ranks)[rank] for part in batch())
    loss_of(wrapped, x, t).backward()
    save(model, rank, file)
    optimiser.step()
    if ranks > 1:
        dist.destroy_process_group()


def sharded(file: str) -> None:
    """Train with FSDP2, whose optimiser must be made after the sharding."""
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (ranks,))
    model = build()
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    x, t = (part.chunk(ranks)[rank] for part in batch())
    loss_of(model, x, t).backward()
    whole = {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}
    if rank == 0:
        torch.save(whole, file)
    optimiser.step()
    dist.destroy_process_group()


def accelerated(file: str) -> None:
    """Train with accelerate."""
    from accelerate import Accelerator

    accelerator = Accelerator()
    model = build()
    wrapped, optimiser = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.01))
    x, t = (part.chunk(accelerator.num_processes)[accelerator.process_index] for part in batch())
    accelerator.backward(loss_of(wrapped, x, t))
    save(model, accelerator.process_index, file)
    optimiser.step()
    accelerator.end_training()


def save(model: torch.nn.Module, rank: int, file: str) -> None:
    """Write the gradients of rank 0."""
    if rank == 0:
        torch.save({name: parameter.grad for name, parameter in model.named_parameters()}, file)


if __name__ == "__main__":
    way, file, *more = sys.argv[1:]
    depth = int(more[0]) if more else None
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    if way == "sharded":
        sharded(file)
    elif way == "accelerate":
        accelerated(file)
    elif way == "spawn":
        torch.multiprocessing.spawn(plain, (2, file, depth), nprocs=2)
    else:
        plain(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)), file, depth)
