"""Train a step of a family under diffusers' context parallelism on two ranks, and write LayerSync's response.

Usage: split_sequence.py FOLDER FAMILY …

For each family a file of that name has a line for an attachment before, and one for an attachment after the sequence
was split.
"""

from __future__ import annotations

import faulthandler
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig

from layersync_core import CaptureError, attach
from layersync_core.families.registry import load_tiny

SETTINGS = {"layersync_enabled": True, "layersync_student_block": 1, "layersync_teacher_block": 2}


def split(rank: int, folder: str, families: list[str]) -> None:
    """Run one rank."""
    faulthandler.dump_traceback_later(180, exit=True)  # so that a rank which hangs shows where
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.accelerator.device_count = lambda: 2  # diffusers divides by it, and without an accelerator it is 0
    for family in families:
        said = [answer(family, attach_first) for attach_first in (True, False)]
        if rank == 0:
            Path(folder, family).write_text("\n".join(said))
    dist.destroy_process_group()
    faulthandler.cancel_dump_traceback_later()


def answer(family: str, attach_first: bool) -> str:
    """Return the reason for which the term is refused; empty where it is not."""
    torch.manual_seed(0)
    tiny = load_tiny(family)
    model = tiny.tiny_model()
    # Text that two ranks can share.
    inputs = tiny.example_inputs(model, 1, **({"text": 6} if family != "wan" else {}))
    sync = attach(model, SETTINGS) if attach_first else None
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    sync = sync or attach(model, SETTINGS)
    loss = model(**inputs, return_dict=False)[0].pow(2).mean()
    try:
        sync.apply(loss)
    except CaptureError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    folder, *families = sys.argv[1:]
    torch.multiprocessing.spawn(split, (folder, families), nprocs=2)
