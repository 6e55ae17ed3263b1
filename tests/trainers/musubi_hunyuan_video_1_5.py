"""musubi-tuner: LoRA on a tiny HunyuanVideo 1.5, from cached latents and text embeddings.

As a program, in the trainer's own environment, it writes what the training needs into a folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

CHECKOUT = "MUSUBI"
TABLE = "musubi_hunyuan_video_1_5"
SOURCES = "src"
STUBS = True
BACKWARD, SAVED_AT = "accelerate", "step"
BLOCKS = {"MMDoubleStreamBlock": (0, 0)}  # (video, text)
MODEL = "HunyuanVideo_1_5_DiffusionTransformer#1 (family hunyuan_video)"
PATHS = [f"double_blocks.{number}" for number in range(54)]
# The first frame of an image-to-video model is concatenated by channel, its embedding joins the text.
VARIANTS: list[tuple[str, dict[str, int]]] = [
    ("--task i2v", {"student": 16, "teacher": 32}),
    ("--task i2v --gradient_checkpointing", {"student": 16, "teacher": 32}),
    ("--task i2v --gradient_accumulation_steps 2", {"student": 16, "teacher": 32}),
]


def command(folder: Path, output: Path, variant: str) -> list[str]:
    """Return the script in the checkout's folder and its arguments."""
    from tests.trainers import musubi_shared as shared

    own = f"--dit {folder}/dit.safetensors --dit_dtype float32 --timestep_sampling shift --discrete_flow_shift 7"
    return shared.command("hv_1_5_train_network.py", "lora_hv_1_5", own, folder, output, variant)


def make(folder: Path) -> None:
    """Write the checkpoint, the caches and the description of the data."""
    import musubi_shared as shared  # beside this file
    import torch
    from musubi_tuner.dataset.cache_io import (
        save_latent_cache_hunyuan_video_1_5,
        save_text_encoder_output_cache_hunyuan_video_1_5,
    )
    from musubi_tuner.hunyuan_video_1_5.hunyuan_video_1_5_models import HunyuanVideo_1_5_DiffusionTransformer

    def save(item: Any, number: int) -> None:
        save_latent_cache_hunyuan_video_1_5(
            item, torch.randn(32, 3, 4, 4), torch.randn(33, 3, 4, 4), torch.randn(6, 1152)
        )
        save_text_encoder_output_cache_hunyuan_video_1_5(
            item, torch.randn(5 + number % 3, 3584), torch.randn(2 + number % 2, 1472)
        )

    torch.manual_seed(0)
    shared.save_weights(HunyuanVideo_1_5_DiffusionTransformer(), folder / "dit.safetensors")
    shared.save_items(folder, "hv15", 9, save)
    shared.save_dataset(folder, 9, batch=2)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
