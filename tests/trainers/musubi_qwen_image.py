"""musubi-tuner: LoRA on a tiny Qwen-Image, Edit and Layered, from cached latents and text embeddings.

As a program, in the trainer's own environment, it writes what the training needs into a folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

CHECKOUT = "MUSUBI"
TABLE = "musubi_qwen_image"
SOURCES = "src"
STUBS = True
BACKWARD, SAVED_AT = "accelerate", "step"
BLOCKS = {"QwenImageTransformerBlock": (1, 0)}  # (text, image); the references are the image's last tokens
MODEL = "QwenImageTransformer2DModel#1 (family qwen_image)"
PATHS = [f"transformer_blocks.{number}" for number in range(5)]
# Edit's data have two references for each image, those of Layered a composition and two layers.
VARIANTS: list[tuple[str, dict[str, int]]] = [
    ("--model_version original", {"tokens": 16}),
    ("--model_version edit", {"tokens": 16}),
    ("--model_version edit --gradient_checkpointing", {"tokens": 16}),
    ("--model_version edit --gradient_accumulation_steps 2", {"tokens": 16}),
    ("--model_version edit --split_attn", {"tokens": 16}),
    ("--model_version edit --compile --compile_backend aot_eager", {"tokens": 16}),
    ("--model_version edit --mixed_precision bf16", {"tokens": 16}),
    ("--model_version edit --mixed_precision bf16 --fp8_base --fp8_scaled", {"tokens": 16}),
    ("qwen_image_train.py --model_version edit", {"tokens": 16}),
    ("--model_version edit-2511", {"tokens": 16}),
    ("--model_version layered", {"tokens": 48}),
    ("--model_version layered --remove_first_image_from_target", {"tokens": 32}),
]


def command(folder: Path, output: Path, variant: str) -> list[str]:
    """Return the script in the checkout's folder and its arguments."""
    from tests.trainers import musubi_shared as shared

    weights = "layered" if "layered" in variant else "edit" if "edit" in variant else "original"
    own = f"--dit {folder}/{weights}.safetensors --num_layers 5 --timestep_sampling qwen_shift"
    return shared.command("qwen_image_train_network.py", "lora_qwen_image", own, folder, output, variant)


def make(folder: Path) -> None:
    """Write the checkpoints, the caches and the description of the data."""
    import musubi_shared as shared  # beside this file
    import torch
    from musubi_tuner.dataset.cache_io import save_latent_cache_qwen_image, save_text_encoder_output_cache_qwen_image
    from musubi_tuner.qwen_image.qwen_image_model import QwenImageTransformer2DModel

    torch.manual_seed(0)
    for weights, architecture, images in (("original", "qi", 1), ("edit", "qie", 1), ("layered", "qil", 3)):
        layered = {"use_additional_t_cond": weights == "layered", "use_layer3d_rope": weights == "layered"}
        shared.save_weights(QwenImageTransformer2DModel(num_layers=5, **layered), folder / f"{weights}.safetensors")

        def save(item: Any, number: int, images: int = images, edit: bool = weights == "edit") -> None:
            references = [torch.randn(16, 1, 8, 8), torch.randn(16, 1, 4, 6)] if edit else None
            save_latent_cache_qwen_image(item, torch.randn(16, images, 8, 8), references)
            save_text_encoder_output_cache_qwen_image(item, torch.randn(5 + number % 3, 32))

        shared.save_items(folder, architecture, None, save)
    shared.save_dataset(folder, None, batch=2)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
