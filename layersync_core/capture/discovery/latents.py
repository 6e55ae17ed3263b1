"""The grid of the tokens: which argument is cut into them, and how, as far as the shapes show it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from math import prod
from typing import Any

from torch import Tensor, nn

from layersync_core.capture.discovery.found import Axes, Latents
from layersync_core.capture.discovery.record import outside_of_lists

_AXES: dict[int, tuple[Axes, ...]] = {4: ("BCHW", "BHWC"), 5: ("BCTHW", "BTCHW", "BTHWC")}
_FRAMES, _SIDES = (1, 2, 4), (1, 2, 4, 8, 16, 32)


def latents_of(model: nn.Module, arguments: Mapping[str, Any], tokens: int) -> Latents | None:
    """Return the argument whose axes are the grid of the tokens; None where none fits, or several readings do.

    Args:
        model: The model; one of its layers outside of blocks takes a patch of all channels.
        arguments: Arguments of its forward, by name.
        tokens: Image, video or audio tokens of a sample.
    """
    outside = outside_of_lists(model)
    readings = [*_readings(arguments, tokens)]
    # A convolution shows the sides of a patch, a linear layer only its size.
    for patches in (_convolved(outside), _flattened(outside)):
        fitting: dict[tuple[Axes, tuple[int, int, int]], str] = {}
        for name, axes, channels, patch in readings:
            if (channels, patch) in patches or (channels, prod(patch)) in patches:
                fitting.setdefault((axes, patch), name)
        if len(fitting) == 1:
            (((axes, patch), name),) = fitting.items()
            return Latents(name, axes, patch)
    return None


def _readings(arguments: Mapping[str, Any], tokens: int) -> Iterator[tuple[str, Axes, int, tuple[int, int, int]]]:
    """Yield name, axes, channels and patch of every way to cut an argument into this many tokens."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        for axes, step, side in product(_AXES.get(value.ndim, ()), _FRAMES, _SIDES):
            sizes = dict(zip(axes, value.shape, strict=True))
            grid, patch = (sizes.get("T", 1), sizes["H"], sizes["W"]), (step, side, side)
            if any(size % cut for size, cut in zip(grid, patch, strict=True)):
                continue
            if prod(size // cut for size, cut in zip(grid, patch, strict=True)) == tokens:
                yield name, axes, sizes["C"], patch


def _convolved(modules: Iterable[nn.Module]) -> set[Any]:
    return {
        (module.in_channels, (1, *module.kernel_size)[-3:])
        for module in modules
        if isinstance(module, (nn.Conv2d, nn.Conv3d)) and module.kernel_size == module.stride
    }


def _flattened(modules: Iterable[nn.Module]) -> set[Any]:
    features = {module.in_features for module in modules if isinstance(module, nn.Linear)}
    sizes = {step * side * side for step, side in product(_FRAMES, _SIDES)}
    return {(count // size, size) for count, size in product(features, sizes) if count % size == 0}
