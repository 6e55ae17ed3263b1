"""LayerSync as a callback of ``lightning.pytorch``."""

from __future__ import annotations

from lightning.pytorch import Callback

from layersync_core.integrations.callback import CallbackBase


class LayerSyncCallback(CallbackBase, Callback):  # type: ignore[misc]
    """Train one model of a LightningModule with LayerSync; arguments and errors are those of ``CallbackBase``."""
