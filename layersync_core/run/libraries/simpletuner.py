"""SimpleTuner, which has its own LayerSync and CREPA: with both implementations on, a term would count twice."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from layersync_core import spelling
from layersync_core.documentation import docs_page
from layersync_core.errors import ConfigError
from layersync_core.replacing import wrap_once
from layersync_core.run.process import training
from layersync_core.run.settings import from_environment

_PLACE = "simpletuner.helpers.training"
# Module -> class of its regularizer, the switch that both implementations share, and the name of the loss.
_THEIRS = {
    f"{_PLACE}.layersync": ("LayerSyncRegularizer", "layersync_enabled", "LayerSync"),
    f"{_PLACE}.crepa": ("CrepaRegularizer", "crepa_enabled", "CREPA"),
}
WATCHES = tuple(_THEIRS)


def take_hold() -> None:
    """Refuse SimpleTuner's own regularizers if they are switched on here as well; it creates them before it trains."""
    settings = from_environment()
    if settings.launch.layersync_suggest is not None:  # LayerSync only measures
        return
    for module, (name, switch, loss) in _THEIRS.items():
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and spelling.is_on(settings.given.get(switch)):
            wrap_once(kind, "__init__", partial(_refuse_enabled, switch=switch, loss=loss))


def _refuse_enabled(
    original: Callable[..., None], theirs: Any, *args: Any, switch: str, loss: str, **kwargs: Any
) -> None:
    original(theirs, *args, **kwargs)
    if getattr(theirs, "enabled", True):
        prefix = switch.removesuffix("enabled")
        training().journal.fail(
            ConfigError(
                f"SimpleTuner has its own {loss}, and {switch} is on in its configuration, so the term would count "
                f"twice; start it without layersync run, or take the {prefix}* keys out of what SimpleTuner reads and "
                f"give them to layersync run alone ({docs_page('simpletuner')})"
            )
        )
