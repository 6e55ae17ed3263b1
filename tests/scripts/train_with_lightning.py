"""A training with Lightning's automatic optimisation; nothing here knows of LayerSync.

Usage: train_with_lightning.py FOLDER
"""

from __future__ import annotations

import sys

import lightning
import tiny_dit
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader


class Flow(lightning.LightningModule):
    """Trains the tiny DiT."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_dit.build()

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Return the loss of a batch."""
        loss = tiny_dit.loss_of(self.model, *batch)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimiser of all weights."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


if __name__ == "__main__":
    (folder,) = sys.argv[1:]
    trainer = lightning.Trainer(
        max_steps=3,
        accumulate_grad_batches=2,
        accelerator="cpu",
        log_every_n_steps=1,
        logger=TensorBoardLogger(folder),
        enable_checkpointing=False,
    )
    trainer.fit(Flow(), DataLoader([tiny_dit.batch(seed=seed) for seed in range(8)], batch_size=None))
