"""musubi-tuner: LoRA on a tiny Wan 2.1, from cached latents and text embeddings.

As a program, in the trainer's own environment, it writes what the training needs into a folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

CHECKOUT = "MUSUBI"
TABLE = "musubi_wan"
SOURCES = "src"
STUBS = True
BACKWARD, SAVED_AT = "accelerate", "step"
BLOCKS = {"WanAttentionBlock": (None, 0)}
LIMIT = 1e-2  # its attention works in bfloat16, in which a rounding of the weights may be the next number
MODEL = "WanModel#1 (family wan)"
PATHS = [f"blocks.{number}" for number in range(5)]
VARIANTS: list[tuple[str, dict[str, int]]] = [
    ("", {}),
    ("--gradient_checkpointing", {}),
    ("--gradient_accumulation_steps 2", {}),
]


def command(folder: Path, output: Path, variant: str) -> list[str]:
    """Return the script in the checkout's folder and its arguments."""
    from tests.trainers import musubi_shared as shared

    own = f"--task t2v-1.3B --dit {folder}/dit.safetensors --timestep_sampling shift --discrete_flow_shift 3"
    return shared.command("wan_train_network.py", "lora_wan", own, folder, output, variant)


def make(folder: Path) -> None:
    """Write the checkpoint, the caches and the description of the data."""
    import musubi_shared as shared  # beside this file
    import torch
    from musubi_tuner.dataset.cache_io import save_latent_cache_wan, save_text_encoder_output_cache_wan
    from musubi_tuner.wan.configs import WAN_CONFIGS
    from musubi_tuner.wan.modules.model import WanModel

    def save(item: Any, number: int) -> None:
        save_latent_cache_wan(item, torch.randn(16, 3, 8, 8), None, None, None)
        save_text_encoder_output_cache_wan(item, torch.randn(7, 4096))

    torch.manual_seed(0)
    names = ("dim", "ffn_dim", "freq_dim", "in_dim", "out_dim", "num_heads", "num_layers", "text_len", "eps")
    config = WAN_CONFIGS["t2v-1.3B"]
    model = WanModel(**{name: config[name] for name in names}, attn_mode="torch")
    shared.save_weights(model, folder / "dit.safetensors")
    shared.save_items(folder, "wan", 9, save)
    shared.save_dataset(folder, 9, batch=1)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
