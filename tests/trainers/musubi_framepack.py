"""musubi-tuner: LoRA on a tiny FramePack, from cached latents, clean frames, and embeddings of image and text.

As a program, in the trainer's own environment, it writes what the training needs into a folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

CHECKOUT = "MUSUBI"
TABLE = "musubi_framepack"
SOURCES = "src"
STUBS = True
BACKWARD, SAVED_AT = "accelerate", "step"
# (video, text) both, and in the video the clean frames first: 16 at a quarter, 2 at half and 2 at full size.
CLEAN = 4 + 4 + 2 * 16
BLOCKS = {"HunyuanVideoTransformerBlock": (0, CLEAN), "HunyuanVideoSingleTransformerBlock": (0, CLEAN)}
MODEL = "HunyuanVideoTransformer3DModelPacked#1 (family hunyuan_video)"
PATHS = [
    *(f"transformer_blocks.{number}" for number in range(4)),
    *(f"single_transformer_blocks.{number}" for number in range(3)),
]
_FRAMES = 3
VARIANTS: list[tuple[str, dict[str, int]]] = [
    ("", {"student": 2, "teacher": 4}),
    ("", {"student": 2, "teacher": 6}),
    ("--gradient_checkpointing", {"student": 2, "teacher": 6}),
    ("--gradient_accumulation_steps 2", {"student": 2, "teacher": 6}),
    ("--compile --compile_backend aot_eager", {"student": 2, "teacher": 6}),
    ("--mixed_precision bf16 --fp8_base --fp8_scaled", {"student": 2, "teacher": 6}),
]


def command(folder: Path, output: Path, variant: str) -> list[str]:
    """Return the script in the checkout's folder and its arguments."""
    from tests.trainers import musubi_shared as shared

    own = f"--dit {folder}/dit.safetensors --timestep_sampling shift --discrete_flow_shift 3"
    return shared.command("fpack_train_network.py", "lora_framepack", own, folder, output, variant)


def make(folder: Path) -> None:
    """Write the checkpoint, the caches and the description of the data."""
    import musubi_shared as shared  # beside this file
    import torch
    from musubi_tuner.dataset.cache_io import save_latent_cache_framepack, save_text_encoder_output_cache_framepack
    from musubi_tuner.frame_pack.hunyuan_video_packed import HunyuanVideoTransformer3DModelPacked

    def save(item: Any, number: int) -> None:
        first, quarter, half, last, generated = torch.arange(20 + _FRAMES).split([1, 16, 2, 1, _FRAMES])
        near, at_half, at_quarter, latents = (torch.randn(16, frames, 8, 8) for frames in (2, 2, 16, _FRAMES))
        clean = near, torch.cat([first, last]), at_half, half, at_quarter, quarter
        save_latent_cache_framepack(item, latents, generated, *clean, torch.randn(5, 32))
        mask = torch.arange(7) < 4 + number % 3
        save_text_encoder_output_cache_framepack(item, torch.randn(7, 32), mask, torch.randn(32))

    torch.manual_seed(0)
    shared.save_weights(HunyuanVideoTransformer3DModelPacked(), folder / "dit.safetensors")
    shared.save_items(folder, "fp", 9, save)
    shared.save_dataset(folder, 9, batch=1)  # more ask for a GPU by name


if __name__ == "__main__":
    make(Path(sys.argv[1]))
