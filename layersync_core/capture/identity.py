"""Whether a hook was called for the module it was registered on."""

from __future__ import annotations

from torch import nn

from layersync_core import _compat


def is_same(module: nn.Module, original: nn.Module) -> bool:
    """Return whether a module is the original, or a second object that shares its hooks and parameters.

    accelerate's regional compilation builds such an object, and ``copy.copy`` does. The replicas of ``nn.DataParallel``
    have the hooks without the parameters.
    """
    if module is original:
        return True
    return _compat.hooks_of(module) is _compat.hooks_of(original) and (
        next(module.parameters(), None) is next(original.parameters(), None)
    )
