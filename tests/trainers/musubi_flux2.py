"""musubi-tuner: LoRA on a tiny FLUX.2, from cached latents and text embeddings; one version has reference images.

As a program, in the trainer's own environment, it writes what the training needs into a folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

CHECKOUT = "MUSUBI"
TABLE = "musubi_flux2"
SOURCES = "src"
STUBS = True
BACKWARD, SAVED_AT = "accelerate", "step"
# (image, text), then one tensor [text, image]; the references are the image's last tokens.
BLOCKS = {"DoubleStreamBlock": (0, 0), "SingleStreamBlock": (None, 7)}
MODEL = "Flux2#1 (family flux2)"
PATHS = [*(f"double_blocks.{number}" for number in range(4)), *(f"single_blocks.{number}" for number in range(3))]
# The data of klein-base-4b have two references for each image.
VARIANTS: list[tuple[str, dict[str, int]]] = [
    ("--model_version dev", {"tokens": 16}),
    ("--model_version dev", {"student": 2, "teacher": 6, "tokens": 16}),
    ("--model_version klein-base-4b", {"tokens": 16}),
    ("--model_version klein-base-4b", {"student": 2, "teacher": 6, "tokens": 16}),
    ("--model_version klein-base-4b", {"student": 5, "teacher": 7, "tokens": 16}),
    ("--model_version klein-base-4b --gradient_checkpointing", {"student": 2, "teacher": 6, "tokens": 16}),
    ("--model_version klein-base-4b --gradient_accumulation_steps 2", {"student": 2, "teacher": 6, "tokens": 16}),
    ("--model_version klein-base-4b --compile --compile_backend aot_eager", {"student": 2, "teacher": 6, "tokens": 16}),
    ("--model_version klein-base-4b --mixed_precision bf16", {"student": 2, "teacher": 6, "tokens": 16}),
    (
        "--model_version klein-base-4b --mixed_precision bf16 --fp8_base --fp8_scaled",
        {"student": 2, "teacher": 6, "tokens": 16},
    ),
]


def command(folder: Path, output: Path, variant: str) -> list[str]:
    """Return the script in the checkout's folder and its arguments."""
    from tests.trainers import musubi_shared as shared

    version = variant.split()[1]
    own = f"--dit {folder}/{version}.safetensors --timestep_sampling flux2_shift"
    return shared.command("flux_2_train_network.py", "lora_flux_2", own, folder, output, variant)


def make(folder: Path) -> None:
    """Write the checkpoints, the caches and the description of the data."""
    import musubi_shared as shared  # beside this file
    import torch
    from musubi_tuner.dataset.cache_io import save_latent_cache_flux_2, save_text_encoder_output_cache_flux_2
    from musubi_tuner.flux_2.flux2_models import Flux2
    from musubi_tuner.flux_2.flux2_utils import FLUX2_MODEL_INFO

    torch.manual_seed(0)
    for version in ("dev", "klein-base-4b"):
        info = FLUX2_MODEL_INFO[version]
        shared.save_weights(Flux2(info.params, "torch"), folder / f"{version}.safetensors")

        def save(item: Any, number: int, name: str = info.architecture_full, alone: bool = version == "dev") -> None:
            references = None if alone else [torch.randn(128, 4, 4), torch.randn(128, 2, 3)]
            save_latent_cache_flux_2(item, torch.randn(128, 4, 4), references, name)
            save_text_encoder_output_cache_flux_2(item, torch.randn(7, 32), name)

        shared.save_items(folder, info.architecture, None, save)
    shared.save_dataset(folder, None, batch=2)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
