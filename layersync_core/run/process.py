"""The training of this process, which all library patches share."""

from __future__ import annotations

from functools import cache

from layersync_core.run.measuring import Measuring
from layersync_core.run.settings import from_environment
from layersync_core.run.training import Training


@cache
def training() -> Training:
    """Return the ``Training`` of this process, or its ``Measuring`` where blocks are only measured."""
    settings = from_environment()
    steps = settings.launch.layersync_suggest
    return Training(settings) if steps is None else Measuring(settings, steps)
