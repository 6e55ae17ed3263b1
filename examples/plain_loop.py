"""LayerSync in a plain PyTorch loop. The three lines to copy into your own loop are marked 1, 2 and 3.

`python examples/plain_loop.py` trains a tiny random DiT on random images, in seconds on a CPU.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from safetensors.torch import save_model
from torch.nn.functional import mse_loss

from layersync_core import attach, load_tiny

STEPS, ACCUMULATION, BATCH = 10, 2, 4


def main(settings: dict[str, Any], weights: str | None) -> None:
    """Train, and write the weights if a file is given."""
    torch.manual_seed(0)
    tiny = load_tiny("dit")  # your model and your data here
    model = tiny.tiny_model().train()
    batches = [tiny.example_inputs(model, BATCH) for _ in range(STEPS * ACCUMULATION)]

    # 1. Before torch.compile and before the first forward: a graph that is compiled without the hooks never runs them.
    sync = attach(model, settings)
    print("\n".join(sync.describe()))

    # Regularizers may bring their own weights. LayerSync has none, so this adds nothing unless others are enabled.
    optimizer = torch.optim.AdamW([*model.parameters(), *sync.modules().parameters()], lr=1e-3)
    for number, inputs in enumerate(batches):
        step = number // ACCUMULATION
        clean = inputs["hidden_states"]
        noise, time = torch.randn_like(clean), inputs["timestep"] / 1000
        noisy = torch.lerp(clean, noise, time.view(-1, 1, 1, 1))
        loss = mse_loss(model(**{**inputs, "hidden_states": noisy}).sample, noise - clean)

        # 2. Add the term to the undivided loss, then divide. `step` counts optimiser steps, for the schedules: without
        # it every call counts as one.
        (sync.apply(loss, step=step) / ACCUMULATION).backward()

        if (number + 1) % ACCUMULATION == 0:
            optimizer.step()
            optimizer.zero_grad()
            # 3. The means since the last read. They are still on the device, so read them only when you log.
            metrics = {"loss": loss.detach(), **sync.metrics()}
            print(f"step {step}", *(f"{name} {float(value):.4f}" for name, value in metrics.items()))
    # For a checkpoint: sync.state_dict() and sync.load_state_dict(). For further forwards in a step, such as a
    # validation with gradients: `with sync.paused():`. Forwards under torch.no_grad() are left alone anyway.
    sync.remove()
    if weights:
        save_model(model, weights)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layersync_enabled", default="true")
    parser.add_argument("--weights", help="safetensors file for the trained weights")
    flags = parser.parse_args()
    main(
        {
            "layersync_enabled": flags.layersync_enabled,
            "layersync_student_block": 2,  # this model has 6 blocks; 8 and 16 suit one of 24 to 28
            "layersync_teacher_block": 4,
        },
        flags.weights,
    )
