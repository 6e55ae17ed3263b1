"""musubi-tuner: LoRA on a tiny HunyuanVideo, from cached latents and text embeddings.

As a program, in the trainer's own environment, it writes what the training needs into a folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

CHECKOUT = "MUSUBI"
TABLE = "musubi_hunyuan_video"
SOURCES = "src"
STUBS = True
BACKWARD, SAVED_AT = "accelerate", "step"
# (video, text), then one tensor [video, text].
BLOCKS = {"MMDoubleStreamBlock": (0, 0), "MMSingleStreamBlock": (None, 0)}
MODEL = "HYVideoDiffusionTransformer#1 (family hunyuan_video)"
PATHS = [*(f"double_blocks.{number}" for number in range(4)), *(f"single_blocks.{number}" for number in range(3))]
VARIANTS: list[tuple[str, dict[str, int]]] = [
    ("", {"tokens": 48}),
    ("", {"student": 2, "teacher": 6, "tokens": 48}),
    ("", {"student": 5, "teacher": 7, "tokens": 48}),
    ("--gradient_checkpointing", {"student": 2, "teacher": 6, "tokens": 48}),
    ("--gradient_checkpointing --gradient_checkpointing_cpu_offload", {"student": 2, "teacher": 6, "tokens": 48}),
    ("--gradient_accumulation_steps 2", {"student": 2, "teacher": 6, "tokens": 48}),
    ("--split_attn --img_in_txt_in_offloading", {"student": 2, "teacher": 6, "tokens": 48}),
    ("--compile --compile_backend aot_eager", {"student": 2, "teacher": 6, "tokens": 48}),
    ("--dit_dtype bfloat16 --mixed_precision bf16", {"student": 2, "teacher": 6, "tokens": 48}),
    ("--dit_in_channels 32", {"student": 2, "teacher": 6, "tokens": 48}),
]


def command(folder: Path, output: Path, variant: str) -> list[str]:
    """Return the script in the checkout's folder and its arguments."""
    from tests.trainers import musubi_shared as shared

    weights = "image" if "32" in variant else "text"
    own = f"--dit {folder}/{weights}.safetensors --dit_dtype float32 --timestep_sampling shift --discrete_flow_shift 7"
    return shared.command("hv_train_network.py", "lora", own, folder, output, variant)


def make(folder: Path) -> None:
    """Write the checkpoint, the caches and the description of the data."""
    import musubi_shared as shared  # beside this file
    import torch
    from musubi_tuner.dataset.cache_io import save_latent_cache, save_text_encoder_output_cache
    from musubi_tuner.hunyuan_model.models import load_dit_model

    def save(item: Any, number: int) -> None:
        save_latent_cache(item, torch.randn(16, 3, 8, 8))
        mask = (torch.arange(7) < 4 + number % 3).long()  # the rest is padding, as up to 256 tokens in reality
        save_text_encoder_output_cache(item, torch.randn(7, 4096), mask, is_llm=True)
        save_text_encoder_output_cache(item, torch.randn(768), None, is_llm=False)

    torch.manual_seed(0)
    for weights, channels in (("text", 16), ("image", 32)):
        model = load_dit_model(4096, 768, channels, 16, {"attn_mode": "torch"})
        shared.save_weights(model, folder / f"{weights}.safetensors")
    shared.save_items(folder, "hv", 9, save)
    shared.save_dataset(folder, 9, batch=2)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
