"""The settings of ``layersync run`` beside LayerSync's own, and how all of them reach every process."""

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
"""The host's keys that regularizers may read; only these are passed on with LayerSync's."""
# Linux refuses a variable of 128 KiB, and Windows more than 32 KiB for all of them together.
_LARGE = 16 * 1024

Count = Annotated[int, BeforeValidator(not_boolean)]


class LaunchSettings(BaseModel):
    """Settings of ``layersync run`` alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layersync_target: str | None = Field(
        None,
        examples=["FluxTransformer2DModel"],
        description="model to train with LayerSync where several could be meant: a class name, or Class#2",
    )
    layersync_family: str | None = Field(
        None,
        examples=["auto"],
        description="family of the target, if its class does not determine it; auto finds blocks and tokens of a class "
        "that no adapter knows; or an adapter file (.json)",
    )
    layersync_save_adapter: str | None = Field(
        None, examples=["my-model.json"], description="adapter file to write what family auto has found"
    )
    layersync_accumulation_steps: Annotated[Count | None, Field(ge=1)] = Field(
        None, examples=[4], description="micro-batches per optimiser step, if the script divides its loss by hand"
    )
    layersync_start_step: Annotated[Count | None, Field(ge=0)] = Field(
        None, examples=[1000], description="optimiser step at which the schedule continues in a resumed run"
    )
    layersync_status_dir: str | None = Field(
        None,
        examples=["layersync-status"],
        description="folder for status and metrics files (default: a temporary one)",
    )
    layersync_suggest: Annotated[Count | None, Field(ge=1)] = Field(
        None,
        examples=[20],
        description="measure this many optimiser steps without the term, print the pairs that it supports, stop",
    )
    layersync_suggest_dir: str = Field("layersync-suggest", description="folder for the measurements")


@dataclass(frozen=True)
class Settings:
    """Everything that a process needs; ``given`` is the mapping it was read from."""

    config: LayerSyncConfig
    launch: LaunchSettings
    given: dict[str, Any]


def read(mapping: Mapping[str, Any]) -> Settings:
    """Read the merged settings of a run.

    Raises:
        ConfigError: As in ``LayerSyncConfig.from_mapping``, or nothing says whether LayerSync is on.
    """
    given = spelling.canonical(mapping)
    third_parties().require(given)
    third_parties().check_spelling(given)
    third_parties().refuse_objectives(given)
    own = {key: given[key] for key in LaunchSettings.model_fields if key in given}
    config = LayerSyncConfig.from_mapping({key: value for key, value in given.items() if key not in own})
    if "layersync_suggest_dir" in own and "layersync_suggest" not in own:
        raise ConfigError("layersync_suggest_dir given without layersync_suggest, so it would do nothing")
    if own.get("layersync_suggest") and own.get("layersync_family") == "auto":
        raise ConfigError(
            "layersync_suggest needs to know the blocks, which family auto finds only at the first loss: give an "
            "adapter file that it wrote (layersync_save_adapter, or layersync inspect MODEL --inputs FILE --save FILE)"
        )
    if "layersync_save_adapter" in own and own.get("layersync_family") != "auto":
        raise ConfigError("layersync_save_adapter writes what layersync_family auto finds; give that as well")
    if not _switches(given) and "layersync_suggest" not in own:
        if own:
            raise ConfigError(
                f"{', '.join(own)} given without layersync_enabled, so it would do nothing; "
                "add layersync_enabled: true, or false to switch LayerSync off"
            )
        raise ConfigError(
            "no settings were given, so LayerSync would do nothing; add --layersync_enabled true "
            "--layersync_student_block N --layersync_teacher_block N, or --config FILE with them"
            f"{spelling.taken_for_the_hosts(given)}"
        )
    return Settings(config, validate(LaunchSettings, own), given)


run_settings = read
"""What the public face calls it."""


def is_on(settings: Settings) -> bool:
    """Return whether ``<name of an entry point>_enabled`` switches a regularizer on, or blocks are to be measured."""
    return settings.launch.layersync_suggest is not None or any(
        spelling.is_on(value) for value in _switches(settings.given).values()
    )


def _switches(given: Mapping[str, Any]) -> dict[str, Any]:
    names = {"layersync", *(provider.name for provider in providers(PLUGINS))}
    return {key: given[key] for name in names if (key := f"{name}_enabled") in given}


def variables(settings: Settings, environment: Mapping[str, str], file: Callable[[], Path]) -> dict[str, str]:
    """Return the environment variables that switch LayerSync on in a process and its children.

    Everything else in the host's configuration, such as tokens for its services, is not passed on.

    Args:
        settings: Settings of the run.
        environment: The variables that are already set.
        file: Returns a path for settings that are too large for a variable; only this user can read the file.

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
    # Unknown keys of a plugin are passed on too, so that it can refuse them.
    hosts = {key: given[key] for key in given if key in HOSTS_KEYS}
    return third_parties().ours(given) | hosts


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
    return read(parse_json(text, VARIABLE, "does not hold valid JSON"))
