"""The random numbers that a model draws in its forward (dropout), repeated for a second forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Randomness:
    """The state of torch's generators at one moment.

    Args:
        device: The device whose generator matters, besides the CPU's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._generators: Any = None if device.type == "cpu" else getattr(torch, device.type)
        self._cpu = torch.get_rng_state()
        self._own = None if self._generators is None else self._generators.get_rng_state(device)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Repeat inside the context the draws made since that moment; afterwards the generators are as before."""
        kind = "cuda" if self._generators is None else self._device.type  # unused without devices
        devices = [] if self._generators is None else [self._device]
        with torch.random.fork_rng(devices=devices, device_type=kind):
            torch.set_rng_state(self._cpu)
            if self._generators is not None:
                self._generators.set_rng_state(self._own, self._device)
            yield
