"""LayerSync in a LightningModule, with Lightning's automatic optimisation and its gradient accumulation.

`python examples/lightning_module.py` trains a tiny random Stable Diffusion 3 on random latents. It needs `lightning`.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import lightning
import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader

from layersync_core import attach, load_tiny


class Flow(lightning.LightningModule):
    """A flow-matching transformer that is trained with LayerSync."""

    def __init__(self, transformer: nn.Module, settings: dict[str, Any]) -> None:
        super().__init__()
        self.transformer = transformer
        self.sync = attach(transformer, settings)
        # As a submodule, the trainable parts of regularizers move to the device with the model, are in the optimiser
        # below, and DDP keeps them equal. LayerSync alone has none.
        self.parts = self.sync.modules()

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Return the loss with LayerSync's term: Lightning divides it by accumulate_grad_batches after this."""
        clean, time = batch["hidden_states"], batch["timestep"] / 1000
        noise = torch.randn_like(clean)
        noisy = torch.lerp(clean, noise, time.view(-1, 1, 1, 1))
        loss = mse_loss(self.transformer(**{**batch, "hidden_states": noisy}).sample, noise - clean)
        # global_step counts optimiser steps, as the schedules do. In manual optimisation you divide yourself:
        # self.manual_backward(self.sync.apply(loss, step=self.global_step) / accumulation).
        total = self.sync.apply(loss, step=self.global_step)
        # The metrics are per rank; with several ranks, add sync_dist=True.
        self.log_dict({"loss": loss.detach(), **self.sync.metrics()}, prog_bar=True)
        return total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimiser for all parameters, including those of self.parts."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the schedule's position."""
        checkpoint["layersync"] = self.sync.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore it; a checkpoint of a run without LayerSync has nothing to restore."""
        if "layersync" in checkpoint:
            self.sync.load_state_dict(checkpoint["layersync"])


def main(settings: dict[str, Any], weights: str | None) -> None:
    """Train, and write the weights if a file is given."""
    lightning.seed_everything(0, verbose=False)
    tiny = load_tiny("sd3")  # your model and your data here
    model = tiny.tiny_model()
    data = DataLoader([tiny.example_inputs(model, 4) for _ in range(20)], batch_size=None)
    module = Flow(model, settings)
    print("\n".join(module.sync.describe()))
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(max_epochs=1, accumulate_grad_batches=2, accelerator="cpu", devices=1,
                                    default_root_dir=folder, logger=False, enable_model_summary=False)  # fmt: skip
        trainer.fit(module, data)
    print(f"step {trainer.global_step}", *(f"{name} {value:.4f}" for name, value in trainer.callback_metrics.items()))
    if weights:
        save_model(model, weights)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layersync_enabled", default="true")
    parser.add_argument("--weights", help="safetensors file for the trained weights")
    flags = parser.parse_args()
    pair = {"layersync_student_block": 2, "layersync_teacher_block": 4}  # of 4; 8 and 16 suit 24 to 28
    main({"layersync_enabled": flags.layersync_enabled, **pair}, flags.weights)
