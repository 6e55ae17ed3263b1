"""musubi-tuner: LoRA on a tiny Wan 2.1, from cached latents and text embeddings.

As a program, in the trainer's own environment, it writes what the training needs into a folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

CHECKOUT = "MUSUBI"
TABLE = "musubi_wan"
SOURCES = "src"
STUBS = True
BACKWARD, SAVED_AT = "accelerate", "step"
BLOCKS = {"WanAttentionBlock": (None, 0)}
MODEL = "WanModel#1 (family wan)"
PATHS = [f"blocks.{number}" for number in range(5)]
VARIANTS: list[tuple[str, dict[str, int]]] = [
    ("", {}),
    ("--gradient_checkpointing", {}),
    ("--gradient_accumulation_steps 2", {}),
]

_VIDEOS = 12
_DATASET = """
[general]
resolution = [64, 64]
batch_size = 1
enable_bucket = true

[[datasets]]
video_directory = "{folder}"
cache_directory = "{folder}"
target_frames = [9]
"""


def command(folder: Path, output: Path, variant: str) -> list[str]:
    """Return the script in the checkout's folder and its arguments."""
    return f"""
        wan_train_network.py --task t2v-1.3B --dit {folder}/dit.safetensors --dataset_config {folder}/dataset.toml
        --sdpa --mixed_precision no --network_module networks.lora_wan --network_dim 4 --network_alpha 4
        --optimizer_type torch.optim.SGD --learning_rate 0.1 --max_grad_norm 0 --max_train_steps 5
        --timestep_sampling shift --discrete_flow_shift 3 --max_data_loader_n_workers 0 --seed 1
        --output_dir {output} --output_name tiny --logging_dir {output} --log_with tensorboard {variant}
    """.split()


def make(folder: Path) -> None:
    """Write the checkpoint, the caches and the description of the data."""
    import torch
    from musubi_tuner.dataset.cache_io import save_latent_cache_wan, save_text_encoder_output_cache_wan
    from musubi_tuner.dataset.image_video_dataset import ItemInfo
    from musubi_tuner.wan.configs import WAN_CONFIGS
    from musubi_tuner.wan.modules.model import WanModel
    from safetensors.torch import save_file

    torch.manual_seed(0)
    names = ("dim", "ffn_dim", "freq_dim", "in_dim", "out_dim", "num_heads", "num_layers", "text_len", "eps")
    config = WAN_CONFIGS["t2v-1.3B"]
    model = WanModel(**{name: config[name] for name in names}, attn_mode="torch")
    # So that no block is the identity, and the head lets gradients through.
    state = {name: value + 0.1 * torch.randn_like(value) for name, value in model.state_dict().items()}
    save_file(state, folder / "dit.safetensors")
    for number in range(_VIDEOS):
        item = ItemInfo(f"video{number}", "a caption", (64, 64), (64, 64, 9), frame_count=9)
        item.latent_cache_path = str(folder / f"video{number}_00000-009_0064x0064_wan.safetensors")
        item.text_encoder_output_cache_path = str(folder / f"video{number}_wan_te.safetensors")
        save_latent_cache_wan(item, torch.randn(16, 3, 8, 8), None, None, None)
        save_text_encoder_output_cache_wan(item, torch.randn(7, 4096))
    (folder / "dataset.toml").write_text(_DATASET.format(folder=folder))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
