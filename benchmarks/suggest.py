# Shapes: B batch, S tokens, D channels
"""The cost of measuring the blocks of a model: `python -m benchmarks.suggest [--quick]`.

The first row has a DiT of 12 blocks, width 768, 256 tokens, batch 4, in forwards without gradients: the median ratio of
a measured forward to a plain one of the same round, with its 95 % interval, and the peak memory beyond the weights. The
two take turns. The second row has 60 blocks of width 3072 that only scale their 4096 tokens: the memory beyond the
model, including sub-sample and sums.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import median, peak_bytes, seconds
from benchmarks.step import dit
from layersync_core import BlockStackAdapter, Probe, get_adapter

GOALS = "goals: time <= 1.5, peak <= 1.10; 60 blocks of width 3072 within 2 GB beside the model"


class Scale(nn.Module):
    """A block with a single parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.99))

    def forward(self, state: Tensor) -> Tensor:
        """Return the state, scaled."""
        return state * self.scale


class Wide(nn.Module):
    """Many wide blocks that cost next to nothing."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Scale() for _ in range(depth))

    def forward(self, state: Tensor) -> Tensor:
        """Return what the last block returns, (B, S, D)."""
        for block in self.blocks:
            state = block(state)
        return state


def forwards(
    model: nn.Module, inputs: dict[str, Any], probe: Probe
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a plain forward and a measured one."""

    def plain() -> object:
        with probe.paused():
            return model(**inputs)

    return plain, lambda: model(**inputs)


def print_dit(quick: bool, rounds: int, device: torch.device) -> None:
    model, inputs = dit(quick)
    model.to(device).eval().requires_grad_(False)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    with Probe(model, get_adapter("dit")) as probe:
        plain, measured = forwards(model, inputs, probe)
        found: dict[str, list[float]] = {"plain": [], "measured": []}
        for number in range(-1, rounds):
            arms = [("plain", plain), ("measured", measured)]
            for name, forward in arms if number % 2 else arms[::-1]:
                elapsed = seconds(forward, device, time.process_time)
                if number >= 0:
                    found[name].append(elapsed)
        ratio, low, high = median([one / base for one, base in zip(found["measured"], found["plain"], strict=True)])
        peaks = [peak_bytes(forward, device) for forward in (plain, measured)]
    print(
        f"DiT, {probe.forwards} forwards | {median(found['plain'])[0] * 1e3:.1f} ms, ratio {ratio:.4f} ({low:.4f} to "
        f"{high:.4f}) | peak {peaks[0] / 2**20:.1f} MiB, ratio {peaks[1] / peaks[0]:.4f}",
        flush=True,
    )


def print_wide(quick: bool, device: torch.device) -> None:
    model = Wide(6 if quick else 60).to(device).requires_grad_(False)
    state = torch.randn(1, 4096, 3072, device=device)
    adapter: Any = BlockStackAdapter(family="wide", model_classes="Wide", stacks="blocks")
    with Probe(model, adapter) as probe:
        plain, measured = forwards(model, {"state": state}, probe)
        peaks = [peak_bytes(forward, device) for forward in (plain, measured)]
    plain_mib, measured_mib = (peak / 2**20 for peak in peaks)
    print(f"{len(model.blocks)} blocks of width 3072 | peak {plain_mib:.1f} MiB plain, {measured_mib:.1f} MiB measured")


def main(arguments: list[str] | None = None) -> None:
    """Print both rows.

    Args:
        arguments: command-line arguments; None takes those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suggest", description="what measuring blocks costs")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="smaller models and few rounds, to see that it runs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    print_dit(options.quick, 3 if options.quick else 20, device)
    print_wide(options.quick, device)
    print(GOALS)


if __name__ == "__main__":
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    main()
