"""What ``layersync run`` is told beside LayerSync's own settings, and how it travels to every process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from layersync_core import spelling
from layersync_core.config import LayerSyncConfig, not_boolean, validate
from layersync_core.entrypoints import PLUGINS, providers
from layersync_core.errors import ConfigError
from layersync_core.files import parse_json, read_settings, replace_file
from layersync_core.losses.plugins import third_parties
from layersync_core.run.startup.sitecustomize import VARIABLE

STARTUP = Path(__file__).parent / "startup"
"""The folder with the ``sitecustomize`` that starts everything."""

HOSTS_KEYS = frozenset({"max_train_steps"})
"""Keys of the host that regularizers may ask for: they travel with ours, and no others do."""
# The system refuses a variable of 128 KiB on Linux, and 32 KiB for all of them together on Windows.
_LARGE = 16 * 1024

Count = Annotated[int, BeforeValidator(not_boolean)]


class LaunchSettings(BaseModel):
    """Settings of ``layersync run`` alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layersync_target: str | None = Field(
        None, description="model to train with LayerSync where several could be meant: a class name, or Class#2"
    )
    layersync_family: str | None = Field(None, description="family of the target, where its class cannot tell")
    layersync_accumulation_steps: Annotated[Count | None, Field(ge=1)] = Field(
        None, description="micro-batches of an optimiser step, where the script divides its loss by hand"
    )
    layersync_start_step: Annotated[Count | None, Field(ge=0)] = Field(
        None, description="optimiser step at which the schedule goes on, in a resumed run"
    )
    layersync_status_dir: str | None = Field(
        None, description="folder for status and metrics files (default: a temporary one)"
    )
    layersync_suggest: Annotated[Count | None, Field(ge=1)] = Field(
        None, description="measure that many optimiser steps without the term, say which pair speaks for itself, stop"
    )
    layersync_suggest_dir: str = Field("layersync-suggest", description="folder for what was measured")


@dataclass(frozen=True)
class Settings:
    """Everything a process needs to know; ``given`` is what it was made of."""

    config: LayerSyncConfig
    launch: LaunchSettings
    given: dict[str, Any]


def read(mapping: Mapping[str, Any]) -> Settings:
    """Read the merged settings of a run.

    Raises:
        ConfigError: As in ``LayerSyncConfig.from_mapping``; or nothing says whether LayerSync is on.
    """
    given = spelling.canonical(mapping)
    third_parties().require(given)
    third_parties().check_spelling(given)
    own = {key: given[key] for key in LaunchSettings.model_fields if key in given}
    config = LayerSyncConfig.from_mapping({key: value for key, value in given.items() if key not in own})
    if "layersync_suggest_dir" in own and "layersync_suggest" not in own:
        raise ConfigError("layersync_suggest_dir given without layersync_suggest, so it would do nothing")
    if not _switches(given) and "layersync_suggest" not in own:
        if own:
            raise ConfigError(
                f"{', '.join(own)} given without layersync_enabled, so it would do nothing; "
                "add layersync_enabled: true, or false to switch LayerSync off"
            )
        raise ConfigError(
            "no settings are given, so LayerSync would do nothing; add --layersync_enabled true "
            "--layersync_student_block N --layersync_teacher_block N, or --config FILE with them"
            f"{spelling.taken_for_the_hosts(given)}"
        )
    return Settings(config, validate(LaunchSettings, own), given)


def is_on(settings: Settings) -> bool:
    """Return whether a regularizer is enabled, by ``<name of its entry point>_enabled``, or blocks are measured."""
    return settings.launch.layersync_suggest is not None or any(
        spelling.is_on(value) for value in _switches(settings.given).values()
    )


def _switches(given: Mapping[str, Any]) -> dict[str, Any]:
    names = {"layersync", *(provider.name for provider in providers(PLUGINS))}
    return {key: given[key] for name in names if (key := f"{name}_enabled") in given}


def variables(settings: Settings, environment: Mapping[str, str], file: Callable[[], Path]) -> dict[str, str]:
    """Return the environment variables that switch LayerSync on in a process and all below it.

    What else the host's configuration holds, such as tokens of its services, stays where it is.

    Args:
        settings: Of the run.
        environment: What is set already.
        file: Gives a path for settings that are too large for a variable; it is written for this user alone.

    Raises:
        ConfigError: A setting cannot be written as JSON, or the file cannot be written.
    """
    try:
        text = json.dumps(_ours(settings.given), separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the settings cannot be passed on as JSON: {error}") from None
    if len(text) > _LARGE:
        path = file()
        try:
            replace_file(path, text)
        except OSError as error:
            raise ConfigError(f"the settings cannot be passed on in {path}: {error.strerror or error}") from None
        text = str(path)
    others = environment.get("PYTHONPATH", "")
    folders = [folder for folder in others.split(os.pathsep) if folder != str(STARTUP)] if others else []
    return {"PYTHONPATH": os.pathsep.join([str(STARTUP), *folders]), VARIABLE: text}


def _ours(given: Mapping[str, Any]) -> dict[str, Any]:
    claimed = {name for model in third_parties().config_models() for name in model.model_fields}
    # Unknown keys of a plugin travel as well, so that it can refuse them.
    prefixes = tuple({spelling.PREFIX, *third_parties().prefixes()})
    return {
        key: value for key, value in given.items() if key.startswith(prefixes) or key in claimed or key in HOSTS_KEYS
    }


def from_environment() -> Settings:
    """Read the settings of this process: JSON, or the path of a file.

    Raises:
        ConfigError: The variable is not set, or as in ``read``.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        raise ConfigError(
            f"{VARIABLE} is not set; give it the settings as JSON or the path of a file with them, "
            "or start the program with layersync run"
        )
    if not text.startswith("{"):
        return read(read_settings(text))
    return read(parse_json(text, VARIABLE, "holds no valid JSON"))
