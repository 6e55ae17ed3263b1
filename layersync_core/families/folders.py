"""A model's config.json in the folder of a model or a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layersync_core.errors import ConfigError
from layersync_core.families.hub import CONFIG_FILES, is_hub_name
from layersync_core.files import read_json


def read_model_config(path: str | Path) -> dict[str, Any]:
    """Read a model's config.json from a local model folder, or the denoiser's from a pipeline's folder.

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
        for file in (path, *(path / file for file in CONFIG_FILES)):
            if file.is_file():
                return file
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    remedy = "give a local model folder or its config.json"
    if path.is_dir():
        raise ConfigError(
            f"the folder {path} has no config.json (nor transformer/, unet/ or prior/ with one); {remedy}"
        )
    if is_hub_name(name):
        remedy += f"; download a model of the hub first: hf download {name} --local-dir FOLDER"
    raise ConfigError(f"{path} does not exist; {remedy}")
