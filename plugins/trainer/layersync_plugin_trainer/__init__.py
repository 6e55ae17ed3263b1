"""The command ``layersync train``: a reference trainer with LayerSync, on accelerate.

Nothing heavy is imported here, since every ``layersync`` command imports this module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layersync_core import hookimpl

HELP = (
    "Train a diffusion transformer by flow matching with LayerSync. Without arguments: a small DiT on handwritten "
    "digits, in about a minute on two cores."
)


SUGGEST_HELP = (
    "Measure how alike the blocks of a model are on a few batches, and suggest a pair if the figures support one."
)


DEFAULTS = {
    "layersync_enabled": "true",
    "layersync_student_block": "chosen by the model's depth",
    "layersync_teacher_block": "chosen by the model's depth",
}
"""Unlike elsewhere, LayerSync is on, with a pair that fits the model."""


@hookimpl
def layersync_commands(app: Any) -> None:
    """Register ``train`` and ``suggest``."""
    from layersync_core import LayerSyncConfig, add_command, model_parameters, third_parties
    from layersync_plugin_trainer.config import RESERVED, SuggestConfig, TrainerConfig

    third_parties().reserve(RESERVED, TrainerConfig)
    models: list[Any] = [TrainerConfig, LayerSyncConfig, *third_parties().config_models()]
    add_command(app, "train", _train, models, HELP, defaults=DEFAULTS)
    add_command(app, "suggest", _suggest, [SuggestConfig], SUGGEST_HELP, model_parameters())


def _train(settings: dict[str, Any]) -> None:
    from layersync_plugin_trainer.train import train

    train(settings)


def _suggest(settings: dict[str, Any], model: str, family: str | None) -> None:
    from layersync_plugin_trainer.suggest import suggest

    suggest(settings, model, family)


def resume_point(folder: Path) -> tuple[int, str] | None:
    """Return the step at which a run can be resumed and the value for ``resume_from_checkpoint``; None if it cannot be.

    Fast and without torch: only the files' sizes are checked. The run itself verifies their content.

    Args:
        folder: The run's output folder.
    """
    from layersync_plugin_trainer.train import newest

    return newest(folder)
