"""sd-scripts: LoRA on a tiny FLUX.1, from cached latents and text embeddings.

As a program, in the trainer's own environment, it writes what the training needs into a folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

TABLE = "sd_scripts"
SOURCES = "."
BLOCK, ELEMENT = "DoubleStreamBlock", 0
ATTACHED = (
    "Flux#1 (family flux): student block 2 of 7 (double_blocks.1), teacher block 4 of 7 (double_blocks.3), weight 0.5"
)
VARIANTS = ("", "--gradient_checkpointing")


def command(folder: Path, output: Path) -> list[str]:
    """Return the script in the checkout's folder and its arguments."""
    return f"""
        flux_train_network.py --pretrained_model_name_or_path {folder}/flux.safetensors --ae {folder}/ae.safetensors
        --clip_l none --t5xxl none --tokenizer_cache_dir {folder} --t5xxl_max_token_length 16
        --train_data_dir {folder}/images --resolution 64,64 --cache_latents --cache_text_encoder_outputs
        --sdpa --mixed_precision no --network_train_unet_only
        --network_module networks.lora_flux --network_dim 4 --network_alpha 4
        --optimizer_type torch.optim.SGD --learning_rate 0.1 --max_grad_norm 0 --max_train_steps 5
        --timestep_sampling sigmoid --model_prediction_type raw --guidance_scale 1
        --max_data_loader_n_workers 0 --seed 1
        --output_dir {output} --output_name tiny --logging_dir {output} --log_with tensorboard
    """.split()


def make(folder: Path) -> None:
    """Write the checkpoints, the tokenizers and the images."""
    import numpy as np
    import torch
    from library import flux_models, flux_utils
    from PIL import Image
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models
    from transformers import T5TokenizerFast

    torch.manual_seed(0)
    spec = flux_models.configs[flux_utils.MODEL_NAME_DEV]
    # So that no block is the identity, and the last layer lets gradients through.
    state = flux_models.Flux(spec.params).state_dict()
    save_file(
        {name: value + 0.1 * torch.randn_like(value) for name, value in state.items()}, folder / "flux.safetensors"
    )
    save_file(flux_models.AutoEncoder(spec.ae_params).state_dict(), folder / "ae.safetensors")

    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    clip = folder / "openai_clip-vit-large-patch14"
    clip.mkdir()
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (clip / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (clip / "merges.txt").write_text("#version: 0.2\n")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -1.0) for letter in letters)]
    t5 = T5TokenizerFast(tokenizer_object=Tokenizer(models.Unigram(pieces, unk_id=2)), extra_ids=0)
    t5.save_pretrained(folder / "google_t5-v1_1-xxl")

    images = folder / "images" / "2_photo"
    images.mkdir(parents=True)
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text("photo")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
