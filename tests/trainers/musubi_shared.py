"""What the scripts of musubi-tuner have in common: their arguments, and caches of latents and text embeddings.

`command` is for the tests, the rest runs in the trainer's own environment.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

_DATASET = """
[general]
resolution = [64, 64]
batch_size = {batch}
enable_bucket = true

[[datasets]]
{kind}_directory = "{folder}"
cache_directory = "{folder}"
{more}
"""


def command(script: str, network: str, own: str, folder: Path, output: Path, variant: str) -> list[str]:
    """Return the script of a training in float32 by SGD for five steps, and its arguments.

    Args:
        script: Trains LoRA. A variant that begins with a script trains all weights by that one.
        network: Module of the LoRA.
        own: Arguments of this model.
        folder: What `make` wrote.
        output: Where the training may write.
        variant: More arguments.
    """
    lora = f"--network_module networks.{network} --network_dim 4 --network_alpha 4"
    first, _, rest = variant.partition(" ")
    if first.endswith(".py"):
        script, lora, variant = first, "--learning_rate 0.01", rest
    return f"""
        {script} --dataset_config {folder}/dataset.toml --sdpa --mixed_precision no
        --optimizer_type torch.optim.SGD --learning_rate 0.1 --max_grad_norm 0 --max_train_steps 5
        --max_data_loader_n_workers 0 --seed 1
        --output_dir {output} --output_name tiny --logging_dir {output} --log_with tensorboard
        {lora} {own} {variant}
    """.split()


def save_weights(model: Any, path: Path) -> None:
    """Save random weights of a model: no block is the identity, and the last layer lets gradients through."""
    import torch
    from safetensors.torch import save_file

    save_file({name: value + 0.1 * torch.randn_like(value) for name, value in model.state_dict().items()}, path)


def save_items(folder: Path, architecture: str, frames: int | None, save: Callable[[Any, int], None]) -> None:
    """Write twelve items of 64 by 64 pixels, named as the caching scripts name them.

    Args:
        folder: Where they go.
        architecture: The trainer's short name of the model, by which it finds its caches.
        frames: Frames of a video; None for images.
        save: Saves the latents and the text embeddings of an item, given its number too.
    """
    from musubi_tuner.dataset.image_video_dataset import ItemInfo

    position = "" if frames is None else f"_00000-{frames:03d}"
    size = (64, 64) if frames is None else (64, 64, frames)
    for number in range(12):
        item = ItemInfo(f"item{number}", "a caption", (64, 64), size, frame_count=frames)
        item.latent_cache_path = str(folder / f"item{number}{position}_0064x0064_{architecture}.safetensors")
        item.text_encoder_output_cache_path = str(folder / f"item{number}_{architecture}_te.safetensors")
        save(item, number)


def save_dataset(folder: Path, frames: int | None, batch: int) -> None:
    """Describe the data of the caches in a folder."""
    kind, more = ("image", "") if frames is None else ("video", f"target_frames = [{frames}]")
    (folder / "dataset.toml").write_text(_DATASET.format(folder=folder, kind=kind, more=more, batch=batch))
