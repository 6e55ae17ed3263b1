"""sd-scripts: LoRA on a tiny FLUX.1, from cached latents and text embeddings.

As a program, in the trainer's own environment, it writes what the training needs into a folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

CHECKOUT = "SD_SCRIPTS"
TABLE = "sd_scripts"
SOURCES = "."
STUBS = True
BACKWARD, SAVED_AT = "accelerate", "step"
BLOCKS = {"DoubleStreamBlock": (0, 0)}
MODEL = "Flux#1 (family flux)"
PATHS = [*(f"double_blocks.{number}" for number in range(5)), *(f"single_blocks.{number}" for number in range(2))]
VARIANTS: list[tuple[str, dict[str, int]]] = [("", {}), ("--gradient_checkpointing", {})]


def command(folder: Path, output: Path, variant: str) -> list[str]:
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
        --output_dir {output} --output_name tiny --logging_dir {output} --log_with tensorboard {variant}
    """.split()


def make(folder: Path) -> None:
    """Write the checkpoints, the tokenizers and the images."""
    import tiny_data  # beside this file
    import torch
    from library import flux_models, flux_utils
    from safetensors.torch import save_file

    torch.manual_seed(0)
    spec = flux_models.configs[flux_utils.MODEL_NAME_DEV]
    # So that no block is the identity, and the last layer lets gradients through.
    state = flux_models.Flux(spec.params).state_dict()
    save_file(
        {name: value + 0.1 * torch.randn_like(value) for name, value in state.items()}, folder / "flux.safetensors"
    )
    save_file(flux_models.AutoEncoder(spec.ae_params).state_dict(), folder / "ae.safetensors")
    tiny_data.save_clip_tokenizer(folder / "openai_clip-vit-large-patch14")
    tiny_data.save_t5_tokenizer(folder / "google_t5-v1_1-xxl")
    tiny_data.save_images(folder / "images" / "2_photo", 5)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
