"""Stands in for imageio: reads a video that is an array of (T, H, W, 3) bytes in numpy's format, whatever its name."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

plugins = SimpleNamespace(ffmpeg=SimpleNamespace(get_exe=lambda: "none"))


class _Reader:
    def __init__(self, frames: np.ndarray):
        self._frames = frames

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self._frames)

    def get_meta_data(self) -> dict[str, Any]:
        return {"fps": 16}


@contextmanager
def get_reader(path: str) -> Iterator[_Reader]:
    yield _Reader(np.load(path))
