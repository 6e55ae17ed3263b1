"""LayerSync with accelerate: accumulation, several processes and a checkpoint that carries LayerSync's state.

`python examples/accelerate_loop.py` trains a tiny random Wan on random videos; so does `accelerate launch` with it.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import save_model
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader

from layersync_core import attach, load_tiny


def main(settings: dict[str, Any], weights: str | None, checkpoint: str) -> None:
    """Train, write a checkpoint in the middle and go back to it at the end."""
    accelerator = Accelerator(gradient_accumulation_steps=2)
    set_seed(0)
    tiny = load_tiny("wan")  # your model and your data here
    model = tiny.tiny_model().train()
    loader = DataLoader([tiny.example_inputs(model, 2) for _ in range(20)], batch_size=None)

    # Before prepare(): that may compile the model. The hooks stay under DDP, FSDP and mixed precision.
    sync = attach(model, settings)
    accelerator.print("\n".join(sync.describe()))
    optimizer = torch.optim.AdamW([*model.parameters(), *sync.modules().parameters()], lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    accelerator.register_for_checkpointing(sync)  # save_state() and load_state() then carry the schedule's step

    step = 0
    for inputs in loader:
        with accelerator.accumulate(model):
            clean, time = inputs["hidden_states"], inputs["timestep"] / 1000
            noise = torch.randn_like(clean)
            noisy = torch.lerp(clean, noise, time.view(-1, 1, 1, 1, 1))
            loss = mse_loss(model(**{**inputs, "hidden_states": noisy}).sample, noise - clean)
            # accelerate divides by the accumulation after this, the term as well: pass the undivided loss.
            accelerator.backward(sync.apply(loss, step=step))
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            step += 1
            # Metrics are per process; every process takes part in the mean, including those that print nothing.
            metrics = {"loss": loss.detach(), **sync.metrics()}
            means = {name: float(accelerator.reduce(value, "mean")) for name, value in metrics.items()}
            accelerator.print(f"step {step}", *(f"{name} {value:.4f}" for name, value in means.items()))
            if step == 5:
                accelerator.save_state(checkpoint)
    if weights and accelerator.is_main_process:
        save_model(accelerator.unwrap_model(model), weights)
    accelerator.wait_for_everyone()
    accelerator.load_state(checkpoint)  # a resumed run does this before its loop, and sets `step` as well
    accelerator.print(f"back at step {sync.state_dict()['step']}")
    accelerator.end_training()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layersync_enabled", default="true")
    parser.add_argument("--weights", help="safetensors file for the trained weights")
    parser.add_argument("--checkpoint", help="folder for the checkpoint; a temporary one otherwise")
    flags = parser.parse_args()
    pair = {"layersync_student_block": 2, "layersync_teacher_block": 4}  # of 4; 8 and 16 suit 24 to 28
    with tempfile.TemporaryDirectory() as folder:
        main({"layersync_enabled": flags.layersync_enabled, **pair}, flags.weights, flags.checkpoint or folder)
