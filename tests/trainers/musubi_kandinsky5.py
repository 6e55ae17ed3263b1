"""musubi-tuner: LoRA on a tiny Kandinsky 5 Video, from cached latents and text embeddings.

As a program, in the trainer's own environment, it writes what the training needs into a folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

CHECKOUT = "MUSUBI"
TABLE = "musubi_kandinsky5"
SOURCES = "src"
STUBS = True
BACKWARD, SAVED_AT = "accelerate", "step"
BLOCKS = {"TransformerDecoderBlock": (None, 0)}  # without a batch axis
MODEL = "DiffusionTransformer3D#1 (family kandinsky5_video)"
LIMIT = 1e-2  # its blocks return bfloat16, in which a rounding of the weights may be the next number
FLAGS = "--layersync_family kandinsky5_video"  # by its size no released model
PATHS = [f"visual_transformer_blocks.{number}" for number in range(5)]
# What an image-to-video model gets of the first frame is concatenated by channel.
VARIANTS: list[tuple[str, dict[str, int]]] = [
    ("--task k5-lite-t2v-5s-sd", {}),
    ("--task k5-lite-t2v-5s-sd --gradient_checkpointing", {}),
    ("--task k5-lite-t2v-5s-sd --gradient_accumulation_steps 2", {}),
    ("--task k5-lite-t2v-5s-sd --fp8_base --fp8_scaled", {}),
    ("--task k5-lite-i2v-5s-sd", {}),
]


def command(folder: Path, output: Path, variant: str) -> list[str]:
    """Return the script in the checkout's folder and its arguments."""
    from tests.trainers import musubi_shared as shared

    own = f"--dit {folder}/dit.safetensors --timestep_sampling shift --discrete_flow_shift 5 --mixed_precision bf16"
    return shared.command("kandinsky5_train_network.py", "lora_kandinsky", own, folder, output, variant)


def make(folder: Path) -> None:
    """Write the checkpoint, the caches and the description of the data."""
    import musubi_shared as shared  # beside this file
    import torch
    from musubi_tuner.dataset.cache_io import save_latent_cache_kandinsky5, save_text_encoder_output_cache_kandinsky5
    from musubi_tuner.kandinsky5.configs import TASK_CONFIGS
    from musubi_tuner.kandinsky5.models.dit import get_dit

    def save(item: Any, number: int) -> None:
        save_latent_cache_kandinsky5(item, torch.randn(16, 3, 16, 16), torch.randn(16, 1, 16, 16), scaling_factor=0.5)
        mask = torch.arange(7) < 4 + number % 3
        save_text_encoder_output_cache_kandinsky5(item, torch.randn(7, 32), torch.randn(32), mask)

    torch.manual_seed(0)
    model = get_dit(vars(TASK_CONFIGS["k5-lite-t2v-5s-sd"].dit_params))
    shared.save_weights(model, folder / "dit.safetensors")
    shared.save_items(folder, "k5", 9, save)
    shared.save_dataset(folder, 9, batch=1)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
