"""OneTrainer: a tiny Flux from a folder of diffusers, from images that it caches itself.

As a program, in the trainer's own environment, it writes what the training needs into a folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

CHECKOUT = "ONETRAINER"
TABLE = "onetrainer"
SOURCES = "."
STUBS = False
BACKWARD, SAVED_AT = "tensor", "zero_grad"
BLOCKS = {"FluxTransformerBlock": (1, 0)}
MODEL = "FluxTransformer2DModel#1 (family flux)"
PATHS = [
    *(f"transformer_blocks.{number}" for number in range(5)),
    *(f"single_transformer_blocks.{number}" for number in range(2)),
]
_IMAGES = 5
_CONFIG: dict[str, Any] = {
    "model_type": "FLUX_DEV_1",
    "training_method": "LORA",
    "output_model_format": "LEGACY_LORA",
    "lora_rank": 4,
    "lora_alpha": 4.0,
    "layer_filter": "attn,ff",
    "train_device": "cpu",
    "train_dtype": "FLOAT_32",
    "fallback_train_dtype": "FLOAT_32",
    "resolution": "64",
    "aspect_ratio_bucketing": False,
    "epochs": 1,
    "dataloader_threads": 1,
    "offline_mode": True,
    "tensorboard": False,
    "learning_rate": 0.1,
    "learning_rate_warmup_steps": 0,
    "clip_grad_norm": None,
    "optimizer": {"optimizer": "SGD"},
    "text_encoder": {"train": False},
    "text_encoder_2": {"train": False},
    "transformer": {"gradient_checkpointing": False},
    "samples": [{"prompt": "photo", "width": 64, "height": 64, "seed": 1, "diffusion_steps": 2}],
    "sample_after_unit": "NEVER",
    "backup_after_unit": "NEVER",
    "backup_before_save": False,
}
# Its ADAMW and ADAFACTOR have a `step` of their own on the instance, which its schedule wraps once more.
VARIANTS: list[tuple[str, dict[str, int]]] = [
    ("", {}),
    ("transformer.gradient_checkpointing=true", {}),
    ("gradient_accumulation_steps=2 epochs=2", {"losses": 2}),
    ("optimizer.optimizer=ADAMW optimizer.stochastic_rounding=true learning_rate_warmup_steps=3", {"warmup": 4}),
    ("optimizer.optimizer=ADAFACTOR optimizer.fused_back_pass=true optimizer.relative_step=false", {"warmup": 4}),
    ("training_method=FINE_TUNE output_model_format=LEGACY_SAFETENSORS", {}),
    ("transformer.gradient_checkpointing=true transformer.offload_fraction=0.5", {}),
    ("ema=CPU ema_update_step_interval=1", {}),
    ("train_dtype=BFLOAT_16", {}),
]


def command(folder: Path, output: Path, variant: str) -> list[str]:
    """Return the script in the checkout's folder and its arguments."""
    own = [
        f"workspace_dir={output}",
        f"cache_dir={output}/cache",
        f"output_model_destination={output}/lora.safetensors",
    ]
    values = [word for value in [*own, *variant.split()] for word in ("--config-value", value)]
    return ["scripts/train.py", "--config-path", f"{folder}/config.json", *values]


def make(folder: Path) -> None:
    """Write the pipeline, the images and the configuration."""
    import tiny_data  # beside this file
    import tiny_flux
    from modules.util.config.TrainConfig import TrainConfig

    tiny_flux.save_flux_pipeline(folder / "flux")
    tiny_data.save_images(folder / "images", _IMAGES)
    concept = {"name": "photo", "path": str(folder / "images"), "seed": 1}
    config = {
        **_CONFIG,
        "__version": TrainConfig.default_values().config_version,
        "base_model_name": str(folder / "flux"),
        "concepts": [concept],
    }
    (folder / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
