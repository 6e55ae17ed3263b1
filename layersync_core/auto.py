"""``import layersync_core.auto``: what ``layersync run`` does, for a process that it did not start, such as a notebook.

The settings come from the variable ``LAYERSYNC_RUN``, which holds them as JSON or names a file. Import it before
the model is built. Processes started from this one get LayerSync as well.

Raises:
    ConfigError: The variable is not set, or the settings are wrong.
"""

from __future__ import annotations

from layersync_core.run.inprocess import start
from layersync_core.run.settings import from_environment

start(from_environment())
