"""musubi-tuner: LoRA on a tiny FLUX.1 Kontext, from cached latents of image and reference, and text embeddings.

As a program, in the trainer's own environment, it writes what the training needs into a folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

CHECKOUT = "MUSUBI"
TABLE = "musubi_flux_kontext"
SOURCES = "src"
STUBS = True
BACKWARD, SAVED_AT = "accelerate", "step"
# (image, text), then one tensor [text, image]; the reference is the image's last tokens.
BLOCKS = {"DoubleStreamBlock": (0, 0), "SingleStreamBlock": (None, 7)}
MODEL = "Flux#1 (family flux)"
PATHS = [*(f"double_blocks.{number}" for number in range(4)), *(f"single_blocks.{number}" for number in range(3))]
VARIANTS: list[tuple[str, dict[str, int]]] = [
    ("", {"student": 2, "teacher": 6, "tokens": 16}),
    ("--gradient_checkpointing", {"student": 2, "teacher": 6, "tokens": 16}),
    ("--gradient_accumulation_steps 2", {"student": 2, "teacher": 6, "tokens": 16}),
]


def command(folder: Path, output: Path, variant: str) -> list[str]:
    """Return the script in the checkout's folder and its arguments."""
    from tests.trainers import musubi_shared as shared

    own = f"--dit {folder}/dit.safetensors --timestep_sampling flux_shift"
    return shared.command("flux_kontext_train_network.py", "lora_flux", own, folder, output, variant)


def make(folder: Path) -> None:
    """Write the checkpoint, the caches and the description of the data."""
    import musubi_shared as shared  # beside this file
    import torch
    from musubi_tuner.dataset.cache_io import (
        save_latent_cache_flux_kontext,
        save_text_encoder_output_cache_flux_kontext,
    )
    from musubi_tuner.flux.flux_models import Flux, configs_flux_dev_context

    def save(item: Any, number: int) -> None:
        save_latent_cache_flux_kontext(item, torch.randn(16, 8, 8), torch.randn(16, 8, 4))
        save_text_encoder_output_cache_flux_kontext(item, torch.randn(7, 32), torch.randn(32))

    torch.manual_seed(0)
    shared.save_weights(Flux(configs_flux_dev_context.params), folder / "dit.safetensors")
    shared.save_items(folder, "fk", None, save)
    shared.save_dataset(folder, None, batch=2)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
