"""Models that are built and drafted, or not."""

from __future__ import annotations

import os
import signal
import sys
import time

from torch import Tensor, nn

from tests.day_zero.strange.model_mixin import ModelMixin
from tests.scaffold.somebodys_models import RegisterTransformer


class Part(nn.Module):
    """No model."""


class Passes(ModelMixin, RegisterTransformer):
    pass


class NeedsAnEngine(ModelMixin):
    """Cannot be built: nobody knows what the argument is."""

    def __init__(self, engine: Engine) -> None:  # type: ignore[name-defined]  # noqa: F821
        super().__init__()


class _Layers(ModelMixin):
    def __init__(self, in_channels: int = 4, hidden_size: int = 16, depth: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(in_channels, hidden_size)
        self.blocks = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(depth))


class Hangs(_Layers):
    """And something that it starts goes on as long, with what it prints still open."""

    def forward(self, x: Tensor) -> Tensor:
        if not os.fork():
            os.setsid()
            time.sleep(40)
            os._exit(0)
        time.sleep(3600)
        return x


class Crashes(_Layers):
    def forward(self, x: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGSEGV)
        return x


class EndsTheProcess(_Layers):
    def forward(self, x: Tensor) -> Tensor:
        os._exit(0)


class SaysNothing(_Layers):
    """Leaves with the exit code of a user's mistake."""

    def forward(self, x: Tensor) -> Tensor:
        os._exit(2)


class RunsOnceOnly(Passes):
    """Is drafted and measured, and ends the process once its adapter is installed."""

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        if "pytest" in sys.modules:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x, t, context)
