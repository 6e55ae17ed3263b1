"""Two ranks of DDP, each with a half of the batch, discover a model for themselves."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from layersync_core import attach
from tests.discovery.models import Model, inputs

ON = {"layersync_enabled": True, "layersync_student_block": 2, "layersync_teacher_block": 4, "layersync_lambda": 1.0}


def gradients(rank: int, ranks: int) -> list[Tensor]:
    """Return the gradients of the second of two steps on a rank's part of the batch."""
    torch.manual_seed(0)
    model = Model("registers")
    whole = inputs(4)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True) if ranks > 1 else model
    sync = attach(wrapped, ON, family="auto")
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        sync.apply((wrapped(*(part.chunk(ranks)[rank] for part in whole)) - 1).pow(2).mean()).backward()
        found = [weight.grad.clone() for weight in model.blocks.parameters() if weight.grad is not None]
        optimiser.step()
    return found


if __name__ == "__main__":
    store, rank, target = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.save(gradients(rank, 2), target)
    dist.destroy_process_group()
