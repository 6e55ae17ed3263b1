"""LayerSync regularisation for any diffusion transformer and any trainer, over unmodified model code.

Names are loaded on first use, so that importing the package costs no torch import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from layersync_core.adapter import BlockStack, BlockStackAdapter, ForwardCall, ModelLayout
    from layersync_core.alignment import alignment_loss
    from layersync_core.buffer import HiddenStateBuffer
    from layersync_core.config import LayerSyncConfig
    from layersync_core.errors import (
        AdapterNotInstalledError,
        CaptureError,
        ConfigError,
        LayerSyncError,
        LayerSyncWarning,
        UnknownFamilyError,
        UnsupportedFamilyError,
    )
    from layersync_core.protocol import Adapter, Block, Regularizer, States, Term
    from layersync_core.registry import get_adapter, list_families, resolve
    from layersync_core.session import Attachment, attach

_HOME = {
    "adapter": ("BlockStack", "BlockStackAdapter", "ForwardCall", "ModelLayout"),
    "alignment": ("alignment_loss",),
    "buffer": ("HiddenStateBuffer",),
    "config": ("LayerSyncConfig",),
    "errors": (
        "AdapterNotInstalledError",
        "CaptureError",
        "ConfigError",
        "LayerSyncError",
        "LayerSyncWarning",
        "UnknownFamilyError",
        "UnsupportedFamilyError",
    ),
    "protocol": ("Adapter", "Block", "Regularizer", "States", "Term"),
    "registry": ("get_adapter", "list_families", "resolve"),
    "session": ("Attachment", "attach"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Adapter",
    "AdapterNotInstalledError",
    "Attachment",
    "Block",
    "BlockStack",
    "BlockStackAdapter",
    "CaptureError",
    "ConfigError",
    "ForwardCall",
    "HiddenStateBuffer",
    "LayerSyncConfig",
    "LayerSyncError",
    "LayerSyncWarning",
    "ModelLayout",
    "Regularizer",
    "States",
    "Term",
    "UnknownFamilyError",
    "UnsupportedFamilyError",
    "alignment_loss",
    "attach",
    "get_adapter",
    "list_families",
    "resolve",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
