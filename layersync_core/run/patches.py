"""Patches the libraries that a program imports."""

from __future__ import annotations

import gc
from collections.abc import Callable

from torch import nn

from layersync_core.run.libraries import accelerate, deepspeed, lightning, simpletuner, tensorboard, torch, wandb
from layersync_core.run.process import training
from layersync_core.run.settings import from_environment, is_on

LIBRARIES = (torch, accelerate, deepspeed, lightning, simpletuner, tensorboard, wandb)

_installed: set[str] = set()


def install(name: str) -> None:
    """Patch a library that has been imported.

    Args:
        name: One of those that the start-up hook watches.
    """
    if name in _installed:
        return
    _installed.add(name)
    if is_on(from_environment()):
        _TAKES_HOLD[name]()


def adopt() -> None:
    """Record the models that were built before LayerSync was switched on."""
    # By type(), since isinstance() may run an object's own code.
    for item in gc.get_objects():
        if issubclass(type(item), nn.Module):
            training().build(item)


def _torch() -> None:
    torch.take_hold()
    training().followers = [tensorboard.follow, wandb.follow]


_TAKES_HOLD: dict[str, Callable[[], None]] = {
    **dict.fromkeys(torch.WATCHES, _torch),
    **dict.fromkeys(accelerate.WATCHES, accelerate.take_hold),
    **dict.fromkeys(deepspeed.WATCHES, deepspeed.take_hold),
    **dict.fromkeys(lightning.WATCHES, lightning.take_hold),
    **dict.fromkeys(simpletuner.WATCHES, simpletuner.take_hold),
    **dict.fromkeys(tensorboard.WATCHES, tensorboard.take_hold),
}
