"""``layersync check MODEL --config FILE``: every start-up error, without weights and without training."""

from __future__ import annotations

from typing import Any

from layersync_core.cli.inspect import model_parameters
from layersync_core.cli.meta import model_of
from layersync_core.cli.options import add_command
from layersync_core.cli.run import models
from layersync_core.run.settings import read


def register(app: Any) -> None:
    """Register the command."""
    add_command(
        app,
        "check",
        run,
        models(),
        "Check a configuration against a model: every start-up error, without loading weights.",
        model_parameters(),
    )


def run(settings: dict[str, Any], model: str, family: str | None) -> int:
    """Check the settings and print what would be attached; return 0."""
    from layersync_core.session import attach

    known = read(settings)
    named = model_of(model, family or known.launch.layersync_family)
    with attach(named.model, known.config, adapter=named.adapter) as sync:
        print("\n".join(sync.describe()))
    return 0
