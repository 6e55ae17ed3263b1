"""Models whose classes no adapter knows, for family auto: those with blocks that an optimiser trains."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from itertools import takewhile

import torch
from torch import nn

from layersync_core.capture.discovery.record import block_lists


def roots() -> list[nn.Module]:
    """Return the program's modules that aren't part of another module, found through the garbage collector."""
    # By type(), since isinstance() may run an object's own code.
    modules = [item for item in gc.get_objects() if issubclass(type(item), nn.Module)]
    inner = {id(child) for module in modules for child in module._modules.values() if child is not None}
    return [module for module in modules if id(module) not in inner]


def trained_models(optimiser: torch.optim.Optimizer) -> Iterator[nn.Module]:
    """Yield the modules whose lists of blocks hold parameters of an optimiser, without wrappers around them."""
    held = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
    for root in roots():
        lists = [path for path in block_lists(root) if _holds(root.get_submodule(path), held)]
        if lists:
            around = [path.split(".")[:-1] for path in lists]
            yield root.get_submodule(".".join(names[0] for names in takewhile(_alike, zip(*around, strict=False))))


def _alike(names: Sequence[str]) -> bool:
    return len(set(names)) == 1


def _holds(module: nn.Module, parameters: set[int]) -> bool:
    return any(id(parameter) in parameters for parameter in module.parameters())
