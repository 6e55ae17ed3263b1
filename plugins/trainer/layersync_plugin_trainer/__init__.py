"""The command ``layersync train``: a reference trainer with LayerSync, on accelerate.

Nothing heavy is imported here: every ``layersync`` command reads this module.
"""

from __future__ import annotations

from typing import Any

from layersync_core import hookimpl

HELP = (
    "Train a diffusion transformer by flow matching with LayerSync. Without arguments: a small DiT on handwritten "
    "digits, in about a minute on two cores."
)


SUGGEST_HELP = (
    "Measure how alike the blocks of a model are on a few batches, and say which pair that speaks for, if any."
)


@hookimpl
def layersync_commands(app: Any) -> None:
    """Register ``train`` and ``suggest``."""
    from layersync_core import add_command, model_parameters, plugins
    from layersync_plugin_trainer.config import RESERVED, SuggestConfig, TrainerConfig

    plugins().reserve(RESERVED, TrainerConfig)
    add_command(app, "train", _train, [TrainerConfig, *plugins().config_models()], HELP)
    add_command(app, "suggest", _suggest, [SuggestConfig], SUGGEST_HELP, model_parameters())


def _train(settings: dict[str, Any]) -> None:
    from layersync_plugin_trainer.train import train

    train(settings)


def _suggest(settings: dict[str, Any], model: str, family: str | None) -> None:
    from layersync_plugin_trainer.suggest import suggest

    suggest(settings, model, family)
