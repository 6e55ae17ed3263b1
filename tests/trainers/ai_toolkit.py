"""ai-toolkit: a tiny Flux from a folder of diffusers, from images that it encodes itself.

As a program, in the trainer's own environment, it writes what the training needs into a folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

CHECKOUT = "AI_TOOLKIT"
TABLE = "ai_toolkit"
SOURCES = "."
STUBS = False
BACKWARD, SAVED_AT = "accelerate", "step"
BLOCKS = {"FluxTransformerBlock": (1, 0)}
MODEL = "FluxTransformer2DModel#1 (family flux)"
PATHS = [
    *(f"transformer_blocks.{number}" for number in range(5)),
    *(f"single_transformer_blocks.{number}" for number in range(2)),
]
UNLOGGED = 1  # it logs nothing of its first step
_IMAGES = 12
_PROCESS: dict[str, Any] = {
    "type": "sd_trainer",
    "device": "cpu",
    "trigger_word": "photo",
    "network": {"type": "lora", "linear": 4, "linear_alpha": 4},
    "save": {"dtype": "float32", "save_every": 100},
    "logging": {"log_every": 1},
    "train": {
        "batch_size": 1,
        "steps": 5,
        "train_unet": True,
        "train_text_encoder": False,
        "gradient_checkpointing": False,
        "noise_scheduler": "flowmatch",
        "optimizer": "adamw",
        "lr": 0.01,
        "max_grad_norm": 1e9,
        "dtype": "float32",
        "disable_sampling": True,
    },
    "model": {"is_flux": True, "dtype": "float32"},
    "sample": {
        "sampler": "flowmatch",
        "sample_every": 2,
        "width": 64,
        "height": 64,
        "prompts": ["photo"],
        "neg": "",
        "seed": 1,
        "sample_steps": 2,
    },
}
_SLIDER = 'type="concept_slider" slider.positive_prompt="good" slider.negative_prompt="bad" slider.target_class="photo"'
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("train.gradient_checkpointing=true", {}),
    ("train.gradient_accumulation=2", {}),
    ("network=null", {}),
    ('train.diff_output_preservation=true train.diff_output_preservation_class="dog"', {}),
    ("train.blank_prompt_preservation=true", {}),
    ("train.blank_prompt_preservation=true train.gradient_checkpointing=true train.gradient_accumulation=2", {}),
    ("train.disable_sampling=false train.ema_config.use_ema=true", {}),
    ('train.dtype="bf16" model.dtype="bf16"', {}),
    ('train.dtype="bf16" model.dtype="bf16" train.optimizer="adafactor"', {}),
    ('train.optimizer="automagic"', {}),
    ("train.gradient_accumulation_steps=2 train.steps=10", {}),
    ('train.timestep_type="next_sample"', {}),
    ("train.do_guidance_loss=true", {}),
    ("datasets.0.loss_multiplier=0.5", {}),
    ("datasets.0.cache_text_embeddings=true datasets.0.cache_latents_to_disk=true", {}),
    # Backward runs twice inside of its loss, and a third time on a leaf; at first the two cancel each other out.
    (f"{_SLIDER} train.gradient_checkpointing=true", {"backward": "tensor", "accumulation": 1, "first": 1}),
    ('datasets.0.unconditional_path="IMAGES" datasets.0.guidance_type="polarity"', {"backward": "tensor"}),
]


def command(folder: Path, output: Path, variant: str) -> list[str]:
    """Write a configuration; return the script in the checkout's folder and its arguments."""
    process = json.loads(json.dumps(_PROCESS))
    process["training_folder"] = str(output)
    process["log_dir"] = str(output / "logs")
    process["model"]["name_or_path"] = str(folder / "flux")
    process["datasets"] = [{"folder_path": str(folder / "images"), "caption_ext": "txt", "resolution": [64]}]
    for word in variant.replace("IMAGES", str(folder / "images")).split():
        names, value = word.split("=", 1)
        *outer, last = names.split(".")
        place: Any = process
        for name in outer:
            place = place[int(name)] if name.isdigit() else place.setdefault(name, {})
        place[last] = json.loads(value)
    config = {"job": "extension", "config": {"name": "tiny", "process": [process]}}
    (output / "config.json").write_text(json.dumps(config))
    return ["run.py", str(output / "config.json")]


def make(folder: Path) -> None:
    """Write the pipeline and the images."""
    import tiny_data  # beside this file
    import tiny_flux

    tiny_flux.save_flux_pipeline(folder / "flux")
    tiny_data.save_images(folder / "images", _IMAGES)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
