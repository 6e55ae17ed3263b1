"""DiffSynth-Studio: LoRA on a tiny Wan 2.1, from latents and text embeddings as its data-process task caches them.

As a program, in the trainer's own environment, it writes what the training needs into a folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

CHECKOUT = "DIFFSYNTH"
TABLE = "diffsynth"
SOURCES = "."
STUBS = True
BACKWARD, SAVED_AT = "accelerate", "step"
BLOCKS = {"DiTBlock": (None, 0)}
MODEL = "WanModel#1 (family wan)"
PATHS = [f"blocks.{number}" for number in range(5)]
# Checkpointing is always on.
VARIANTS: list[tuple[str, dict[str, int]]] = [
    ("", {}),
    ("--gradient_accumulation_steps 2 --dataset_repeat 2", {}),
    ("--use_gradient_checkpointing_offload", {}),
]

_VIDEOS = 5


def command(folder: Path, output: Path, variant: str) -> list[str]:
    """Return the script in the checkout's folder and its arguments."""
    return [
        *f"""
        examples/wanvideo/model_training/train.py --task sft:train --dataset_base_path {folder}/cache
        --tokenizer_path {folder}/tokenizer --use_gradient_checkpointing
        --lora_base_model dit --lora_target_modules q,k,v,o,ffn.0,ffn.2 --lora_rank 4
        --customized_optimizer torch.optim.SGD --learning_rate 0.1 --weight_decay 0 --num_epochs 1
        --output_path {output} --enable_tensorboard_log {variant}
        """.split(),
        "--model_paths",
        json.dumps([str(folder / "dit.safetensors")]),
    ]


def make(folder: Path) -> None:
    """Write the checkpoint, the caches and a tokenizer, which is loaded but not used."""
    import torch
    from diffsynth.models.model_loader import MODEL_CONFIGS, hash_model_file
    from diffsynth.models.wan_video_dit import WanModel
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(0)
    sizes = next(config for config in MODEL_CONFIGS if config["model_hash"] == hash_model_file(""))["extra_kwargs"]
    # So that no block is the identity, and the head lets gradients through.
    state = WanModel(**sizes).state_dict()
    save_file(
        {name: value + 0.1 * torch.randn_like(value) for name, value in state.items()}, folder / "dit.safetensors"
    )
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0}, "<unk>")), pad_token="<unk>"
    ).save_pretrained(folder / "tokenizer")
    (folder / "cache").mkdir()
    shared = {"max_timestep_boundary": 1.0, "min_timestep_boundary": 0.0, "use_gradient_checkpointing": True}
    for number in range(_VIDEOS):
        latents = torch.randn(1, 16, 3, 8, 8, dtype=torch.bfloat16)
        context = torch.randn(1, 7, sizes["text_dim"], dtype=torch.bfloat16)
        torch.save(({**shared, "input_latents": latents}, {"context": context}, {}), folder / "cache" / f"{number}.pth")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
