"""A model's config.json in the folder of a model, a pipeline or a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layersync_core.errors import ConfigError
from layersync_core.families.hub import CONFIG_FILES, is_hub_name
from layersync_core.files import read_json

_TRAINED = "model/config.json"
"""Where ``layersync train`` saves the model, in its output folder."""


def read_model_config(path: str | Path) -> dict[str, Any]:
    """Read a model's config.json from a local model folder, or the denoiser's from a pipeline's folder.

    The output folder of ``layersync train`` is one of its model.

    Raises:
        ConfigError: There is none, or it isn't a JSON object.
    """
    return read_json(find_model_config(path))


def find_model_config(path: str | Path) -> Path:
    """Return the config.json that ``read_model_config`` reads.

    Raises:
        ConfigError: There is none.
    """
    name, path = str(path), Path(path)
    try:
        for file in (path, *(path / file for file in (*CONFIG_FILES, _TRAINED))):
            if file.is_file():
                return file
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    remedy = "give a local model folder or its config.json"
    if path.is_dir():
        raise ConfigError(
            f"the folder {path} has no config.json (nor transformer/, unet/, prior/ or model/ with one); {remedy}"
        )
    if is_hub_name(name):
        remedy += f"; download a model of the hub first: hf download {name} --local-dir FOLDER"
    raise ConfigError(f"{path} does not exist; {remedy}")
