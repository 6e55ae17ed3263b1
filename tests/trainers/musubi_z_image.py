"""musubi-tuner: LoRA on a tiny Z-Image, from cached latents and text embeddings.

As a program, in the trainer's own environment, it writes what the training needs into a folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

CHECKOUT = "MUSUBI"
TABLE = "musubi_z_image"
SOURCES = "src"
STUBS = True
BACKWARD, SAVED_AT = "accelerate", "step"
BLOCKS = {"ZImageTransformerBlock": (None, 0)}  # [image, caption]
AHEAD = 2  # the refiners of the image and of the caption are of the same class
MODEL = "ZImageTransformer2DModel#1 (family z_image)"
PATHS = [f"layers.{number}" for number in range(5)]
VARIANTS: list[tuple[str, dict[str, int]]] = [
    ("", {"tokens": 16}),
    ("--gradient_checkpointing", {"tokens": 16}),
    ("--gradient_accumulation_steps 2", {"tokens": 16}),
    ("zimage_train.py", {"tokens": 16}),
    ("--split_attn", {"tokens": 16}),
    ("--compile --compile_backend aot_eager", {"tokens": 16}),
    ("--mixed_precision bf16", {"tokens": 16}),
    ("--mixed_precision bf16 --fp8_base --fp8_scaled", {"tokens": 16}),
]


def command(folder: Path, output: Path, variant: str) -> list[str]:
    """Return the script in the checkout's folder and its arguments."""
    from tests.trainers import musubi_shared as shared

    own = f"--dit {folder}/dit.safetensors --timestep_sampling shift --discrete_flow_shift 2"
    return shared.command("zimage_train_network.py", "lora_zimage", own, folder, output, variant)


def make(folder: Path) -> None:
    """Write the checkpoint, the caches and the description of the data."""
    from contextlib import nullcontext

    import musubi_shared as shared  # beside this file
    import torch
    from musubi_tuner.dataset.cache_io import save_latent_cache_z_image, save_text_encoder_output_cache_z_image
    from musubi_tuner.zimage import zimage_model

    def save(item: Any, number: int) -> None:
        save_latent_cache_z_image(item, torch.randn(16, 8, 8))
        save_text_encoder_output_cache_z_image(item, torch.randn(5 + number % 3, 32))

    torch.manual_seed(0)
    zimage_model.init_empty_weights = nullcontext
    model = zimage_model.create_model("torch", False, torch.float32)
    torch.nn.init.zeros_(model.cap_pad_token)  # whatever was in the memory
    shared.save_weights(model, folder / "dit.safetensors")
    shared.save_items(folder, "zi", None, save)
    shared.save_dataset(folder, None, batch=2)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
