"""Where the clean clip's pixels come from: the last batch of a data loader, or a function of it."""

# Shapes: B batch, T frames, C channels, H rows, W columns

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from layersync_core import CaptureError, ConfigError, wrap_once

_RANGES = {"-1,1": (0.5, 0.5), "0,1": (1.0, 0.0), "0,255": (1 / 255, 0.0)}
_MISSING = object()
_latest: Any = _MISSING


class Pixels:
    """The pixels of the current batch.

    Args:
        source: A key of the batch, ``module:function``, or a function; functions get the batch.
        value_range: A key of ``_RANGES``.

    Raises:
        ConfigError: There is no such function.
    """

    def __init__(self, source: Any, value_range: str) -> None:
        self._key: str | None = None
        self._function: Callable[[Any], Any] | None = None
        self._range = value_range
        if callable(source):
            self._function = source
        elif not isinstance(source, str):
            raise ConfigError(f"crepa_pixels is {source!r}; it takes a key of the batch, module:function or a function")
        elif ":" in source:
            self._function = _import(source)
        else:
            self._key = source
        self.source = source if isinstance(source, str) else getattr(source, "__name__", type(source).__name__)
        _watch_loaders()

    def __call__(self, samples: int, frames: int) -> Tensor:
        """Return (B, T, 3, H, W) from 0 to 1.

        Args:
            samples: How many there must be.
            frames: Frames of the states; pixels without a frame axis must match a single frame.

        Raises:
            CaptureError: There was no batch, it has no such key, or the value cannot be the pixels of this batch.
        """
        pixels = self._read()
        where = f"crepa_pixels {self.source}"
        if not isinstance(pixels, Tensor):
            raise CaptureError(f"{where} is a {type(pixels).__name__}; expected a tensor")
        shape = tuple(pixels.shape)
        if pixels.ndim == 5 and shape[2] != 3 and shape[1] == 3:
            pixels = pixels.transpose(1, 2)
        elif pixels.ndim == 4 and shape[1] == 3:
            pixels = pixels.unsqueeze(1)
        if pixels.ndim != 5 or pixels.shape[2] != 3:
            raise CaptureError(f"{where} has shape {shape}; expected (B, T, 3, H, W), (B, 3, T, H, W) or (B, 3, H, W)")
        if len(pixels) != samples:
            raise CaptureError(
                f"{where} has {len(pixels)} samples, the hidden states {samples}: it is not the batch of this forward"
            )
        if len(shape) == 4 and frames > 1:
            raise CaptureError(f"{where} has shape {shape}, single images, but the hidden states have {frames} frames")
        if not pixels.is_floating_point() and self._range != "0,255":
            raise CaptureError(f"{where} has values of {pixels.dtype}; set crepa_pixels_range: 0,255")
        scale, shift = _RANGES[self._range]
        return pixels.float() * scale + shift

    def _read(self) -> Any:
        if self._function is not None:
            return self._function(None if _latest is _MISSING else _latest)
        if _latest is _MISSING:
            raise CaptureError(
                f"crepa_pixels is {self._key!r}, a key of the batch, but no torch DataLoader gave one since attaching; "
                "attach before the loop starts, or set crepa_pixels to a function"
            )
        if isinstance(_latest, Mapping):
            if self._key in _latest:
                return _latest[self._key]
            has = f"keys {', '.join(map(str, _latest))}"
        elif isinstance(_latest, (tuple, list)):
            if str(self._key).isdecimal() and int(str(self._key)) < len(_latest):
                return _latest[int(str(self._key))]
            has = f"positions 0 to {len(_latest) - 1}"
        else:
            has = f"type {type(_latest).__name__}"
        raise CaptureError(f"crepa_pixels is {self._key!r}, but the batch has {has}")


class _Noting:
    """An iterator that remembers each batch that it yields."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        global _latest
        batch = next(self._inner)
        # A loader that wraps others yields its batch last, even if it has already fetched the next one from them.
        _latest = batch
        return batch

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _watch_loaders() -> None:
    # accelerate's loaders become torch loaders only as instances.
    accelerate = vars(sys.modules.get("accelerate.data_loader", object))
    loaders = [kind for name, kind in accelerate.items() if "DataLoader" in name]
    for kind in (DataLoader, *DataLoader.__subclasses__(), *loaders):
        if isinstance(kind, type) and "__iter__" in vars(kind):
            wrap_once(kind, "__iter__", lambda original, loader: _Noting(original(loader)))


def _import(path: str) -> Callable[[Any], Any]:
    module, _, name = path.partition(":")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"crepa_pixels is {path}, which cannot be imported: {error}") from None
    if not callable(function):
        raise ConfigError(f"crepa_pixels is {path}, which is a {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]
