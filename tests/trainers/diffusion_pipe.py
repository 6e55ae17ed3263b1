"""diffusion-pipe: a tiny Flux from a folder of diffusers, in one stage of DeepSpeed's pipeline engine, from images.

As a program, in the trainer's own environment, it writes what the training needs into a folder.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

CHECKOUT = "DIFFUSION_PIPE"
TABLE = "diffusion_pipe"
SOURCES = "."
STUBS = False
BACKWARD, SAVED_AT = "tensor", "step"
BLOCKS = {"FluxTransformerBlock": (1, 0)}
MODEL = "FluxTransformer2DModel#1 (family flux)"
PATHS = [
    *(f"transformer_blocks.{number}" for number in range(5)),
    *(f"single_transformer_blocks.{number}" for number in range(2)),
]
_IMAGES = 12
_CONFIG: dict[str, Any] = {
    "epochs": 100,
    "max_steps": 5,
    "micro_batch_size_per_gpu": 1,
    "pipeline_stages": 1,
    "gradient_clipping": 1e9,
    "save_every_n_steps": 100,
    "map_num_proc": 1,
    "model": {"type": "flux", "dtype": "float32", "flux_shift": True},
    "adapter": {"type": "lora", "rank": 4, "dtype": "float32"},
    "optimizer": {"type": "sgd", "lr": 0.1},
}
_DATASET: dict[str, Any] = {"resolutions": [64], "enable_ar_bucket": False, "frame_buckets": [1]}
VARIANTS: list[tuple[str, dict[str, int]]] = [
    ("", {}),
    ("activation_checkpointing=true", {}),
    ("gradient_accumulation_steps=2", {"losses": 2}),
    ("adapter=null", {}),
    ('model.dtype="bfloat16"', {}),
]


def command(folder: Path, output: Path, variant: str) -> list[str]:
    """Write a configuration; return the launcher, the script in the checkout's folder and its arguments."""
    config = json.loads(json.dumps(_CONFIG))
    config["output_dir"], config["dataset"] = str(output / "runs"), str(folder / "dataset.toml")
    config["model"]["diffusers_path"] = str(folder / "flux")
    for word in variant.split():
        names, value = word.split("=", 1)
        *outer, last = names.split(".")
        place: Any = config
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = json.loads(value)
    (output / "config.toml").write_text(_toml(config))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    script = ["train.py", "--deepspeed", "--master_port", port, "--config", str(output / "config.toml")]
    return ["-m", "deepspeed.launcher.runner", *script]


def _toml(config: dict[str, Any]) -> str:
    sections = {name: value for name, value in config.items() if isinstance(value, dict)}
    plain = {name: value for name, value in config.items() if value is not None and name not in sections}
    lines = [f"{name} = {json.dumps(value)}" for name, value in plain.items()]
    return "\n".join([*lines, *(f"[{name}]\n{_toml(section)}" for name, section in sections.items())])


def make(folder: Path) -> None:
    """Write the pipeline and the images, and let the trainer cache them, which draws random numbers."""
    import tiny_data  # beside this file
    import tiny_flux

    tiny_flux.save_flux_pipeline(folder / "flux")
    tiny_data.save_images(folder / "images", _IMAGES)
    directory = _toml({"path": str(folder / "images"), "num_repeats": 1})
    (folder / "dataset.toml").write_text(f"{_toml(_DATASET)}\n[[directory]]\n{directory}\n")
    (folder / "cached").mkdir()
    subprocess.run([sys.executable, *command(folder, folder / "cached", ""), "--cache_only"], check=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
