"""Ctrl-C and SIGTERM: finish the step, write a checkpoint, exit. All processes of a run stop at the same step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Record signals inside a ``with`` block instead of dying from them.

    In a single process a second signal takes effect at once, in case the step doesn't end.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._noted = 0
        self._before: dict[int, Any] = {}
        self._group: Any = None
        self._ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

    def __enter__(self) -> Stop:
        if self._ranks > 1:
            # On the CPU, so that agreeing at every step never waits for a GPU.
            self._group = dist.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.signal and self._ranks > 1:
            return  # the process is about to exit, and a launcher may still pass its signal on
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Return whether any process of the run was asked to stop; every process gets the same answer."""
        self.signal = self._noted
        if self._group is not None:
            # A signal that arrives during the exchange reaches the other processes after the next step.
            flag = torch.tensor([self.signal], dtype=torch.int32)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
            self.signal = int(flag.numpy()[0])
        return self.signal != 0

    @property
    def exit_code(self) -> int:
        """Exit code by the shell's convention: 130 after SIGINT, 143 after SIGTERM."""
        return 128 + self.signal

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Launchers pass a signal on to processes that already got it, so only a lone process obeys a second one.
        if self._noted and self._ranks == 1:
            raise KeyboardInterrupt
        self._noted = number
