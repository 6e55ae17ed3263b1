"""Train one step on this rank's share of a batch with a library's own loop; rank 0 saves its gradients.

Usage: two_ranks_of_a_library.py {lightning,transformers} FILE SETTINGS
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_dit import batch, build, loss_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def save(model: nn.Module, file: str) -> None:
    """Write the gradients of rank 0."""
    if os.environ["RANK"] == "0":
        torch.save({name: parameter.grad for name, parameter in model.named_parameters()}, file)


def lightning(file: str, settings: dict[str, Any]) -> None:
    """Train with Lightning's Trainer and the callback."""
    import lightning.pytorch as pl

    from layersync_core.integrations.lightning import LayerSyncCallback

    class Flow(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = build()

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return loss_of(self.model, *batch)

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            save(self.model, file)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=Path(file).parent,
        callbacks=[LayerSyncCallback("model", **settings)],
    )
    trainer.fit(Flow(), DataLoader(TensorDataset(*batch()), batch_size=2))


def transformers(file: str, settings: dict[str, Any]) -> None:
    """Train with transformers' Trainer and the mixin."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from layersync_core.integrations.transformers import LayerSyncTrainerMixin

    class Flow(Trainer):
        def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **more: Any) -> Tensor:
            return loss_of(model, **inputs)

    class Run(LayerSyncTrainerMixin, Flow):
        pass

    class Save(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **more: Any) -> None:
            save(model, file)

    arguments = TrainingArguments(
        output_dir=str(Path(file).parent),
        per_device_train_batch_size=2,
        max_steps=1,
        max_grad_norm=0.0,
        optim="sgd",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    x, t = batch()
    samples: Any = [{"x": x[index], "t": t[index]} for index in range(len(x))]
    Run(model=build(), args=arguments, train_dataset=samples, callbacks=[Save()], **settings).train()


if __name__ == "__main__":
    faulthandler.dump_traceback_later(180, exit=True)  # so that a rank which hangs shows where
    library, file, settings = sys.argv[1:]
    {"lightning": lightning, "transformers": transformers}[library](file, json.loads(settings))
