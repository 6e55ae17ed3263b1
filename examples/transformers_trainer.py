"""LayerSync in the Trainer of transformers: a mixin beside a Trainer with a loss of its own.

`python examples/transformers_trainer.py` trains a tiny random DiT on random images. It needs `transformers` and
`accelerate`.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from safetensors.torch import save_model
from torch.nn.functional import mse_loss
from transformers import Trainer, TrainingArguments, set_seed

from layersync_core import load_tiny
from layersync_core.integrations.transformers import LayerSyncTrainerMixin


class FlowTrainer(Trainer):
    """Trains a diffusion transformer, which returns a prediction and no loss."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
        """Return the main loss."""
        clean, time = inputs["hidden_states"], inputs["timestep"] / 1000
        noise = torch.randn_like(clean)
        noisy = torch.lerp(clean, noise, time.view(-1, 1, 1, 1))
        outputs = model(**{**inputs, "hidden_states": noisy})
        loss = mse_loss(outputs.sample, noise - clean)
        return (loss, outputs) if return_outputs else loss


class MyTrainer(LayerSyncTrainerMixin, FlowTrainer):
    """The mixin comes first, and whatever computes the loss behind it."""


def main(settings: dict[str, Any], weights: str | None) -> None:
    """Train, and write the weights if a file is given."""
    set_seed(0)
    tiny = load_tiny("dit")  # your model and your data here
    model = tiny.tiny_model()
    data = [{name: value[0] for name, value in tiny.example_inputs(model, 1).items()} for _ in range(80)]
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(output_dir=folder, num_train_epochs=1, per_device_train_batch_size=4,
                                 gradient_accumulation_steps=2, logging_steps=1, save_strategy="no", report_to=[],
                                 remove_unused_columns=False, use_cpu=True, dataloader_pin_memory=False)  # fmt: skip
        # LayerSync's settings stand beside the Trainer's own arguments.
        trainer = MyTrainer(model=model, args=args, train_dataset=data, **settings)
        trainer.train()
    names = ("loss", "layersync_loss", "layersync_similarity")
    for row in trainer.state.log_history[:-1]:
        print(f"step {row['step']}", *(f"{name} {row[name]:.4f}" for name in names if name in row))
    if weights:
        save_model(model, weights)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layersync_enabled", default="true")
    parser.add_argument("--weights", help="safetensors file for the trained weights")
    flags = parser.parse_args()
    pair = {"layersync_student_block": 2, "layersync_teacher_block": 4}  # of 6; 8 and 16 suit 24 to 28
    main({"layersync_enabled": flags.layersync_enabled, **pair}, flags.weights)
