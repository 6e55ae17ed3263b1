"""LayerSync as a callback of Lightning, for a LightningModule that knows nothing of it.

`python examples/lightning_callback.py` trains a tiny random Stable Diffusion 3 on random latents. It needs `lightning`;
with `pytorch_lightning`, import the callback from `layersync_core.integrations.pytorch_lightning`.
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

from layersync_core import load_tiny
from layersync_core.integrations.lightning import LayerSyncCallback


class Flow(lightning.LightningModule):
    """A flow-matching transformer, trained as it always was."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Return the main loss."""
        clean, time = batch["hidden_states"], batch["timestep"] / 1000
        noise = torch.randn_like(clean)
        noisy = torch.lerp(clean, noise, time.view(-1, 1, 1, 1))
        loss = mse_loss(self.transformer(**{**batch, "hidden_states": noisy}).sample, noise - clean)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimiser of all parameters."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(settings: dict[str, Any], weights: str | None) -> None:
    """Train, and write the weights if a file is given."""
    lightning.seed_everything(0, verbose=False)
    tiny = load_tiny("sd3")  # your model and your data here
    model = tiny.tiny_model()
    data = DataLoader([tiny.example_inputs(model, 4) for _ in range(20)], batch_size=None)
    # `model` is the attribute of the LightningModule that holds the transformer; the rest are LayerSync's settings.
    callback = LayerSyncCallback(model="transformer", **settings)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(max_epochs=1, accumulate_grad_batches=2, accelerator="cpu", devices=1,
                                    default_root_dir=folder, logger=False, enable_model_summary=False,
                                    callbacks=[callback])  # fmt: skip
        trainer.fit(Flow(model), data)
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
