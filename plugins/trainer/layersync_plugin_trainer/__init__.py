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


@hookimpl
def layersync_commands(app: Any) -> None:
    """Register ``train``."""
    from layersync_core import add_command, plugins
    from layersync_plugin_trainer.config import TrainerConfig

    add_command(app, "train", _train, [TrainerConfig, *plugins().config_models()], HELP)


def _train(settings: dict[str, Any]) -> None:
    from layersync_plugin_trainer.train import train

    train(settings)
