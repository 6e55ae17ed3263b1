# Shapes: B batch, S tokens, D channels, T frames, P tokens per frame
"""Compare `alignment_loss` with the reference formula in time and memory: `python -m benchmarks.loss`.

The reference is the formula as one writes it down: normalise both, multiply, sum, mean. The arms run in turn, so that a
busy machine slows all of them. The table also has the physical limit: the time to read both inputs twice and to write
one new gradient.

Every shape gets its own process: what earlier shapes leave in the allocator decides whether it returns large buffers to
the system after each step, and on a CPU the reference, which holds five activations, spends more than half of its time
on getting them back. `--keep-pages` shows the other regime, where nothing is ever returned.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import peak_bytes, seconds
from layersync_core.losses.alignment import alignment_loss

Loss = Callable[[Tensor, Tensor], Tensor]

CASES = (
    ((1, 8192, 1536), torch.float32),
    ((1, 8192, 1536), torch.bfloat16),
    ((4, 1024, 1152), torch.float32),
)
GOALS = "goals: ratio >= 5 in fp32, >= 2 in bf16; saved <= 1 %; peak <= 1 activation plus a chunk"


@dataclass(frozen=True)
class Figures:
    """One row of the table; times in seconds, memory in bytes, both medians over the rounds where they vary."""

    reference_s: float
    ours_s: float
    limit_s: float
    reference_saved: int
    ours_saved: int
    reference_peak: int
    ours_peak: int
    activation: int


def reference_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return minus the mean cosine as the plain formula, in the inputs' own dtype."""
    return -(F.normalize(student, dim=-1) * F.normalize(teacher, dim=-1)).sum(dim=-1).mean()


def measure(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, rounds: int) -> Figures:
    """Measure both losses on random inputs of one shape.

    Args:
        shape: (B, S, D) or (B, T, P, D).
        dtype: of both inputs.
        device: where they live.
        rounds: timed rounds; each runs every arm once.

    Returns:
        The figures of this shape.
    """
    generator = torch.Generator(device).manual_seed(0)
    teacher = torch.randn(shape, generator=generator, device=device).to(dtype)
    student = torch.randn(shape, generator=generator, device=device).to(dtype).requires_grad_()

    def train_step(loss: Loss) -> Callable[[], None]:
        def step() -> None:
            student.grad = None
            torch.autograd.backward(loss(student, teacher))

        return step

    reference, ours = train_step(reference_loss), train_step(alignment_loss)
    arms = (reference, ours, lambda: _touch_memory(student.detach(), teacher))
    times: list[list[float]] = [[], [], []]
    for round_number in range(rounds + 2):
        for arm, measured in zip(arms, times, strict=True):
            elapsed = seconds(arm, device)
            if round_number >= 2:  # the first two warm up caches and allocator
                measured.append(elapsed)
    reference_s, ours_s, limit_s = (statistics.median(measured) for measured in times)
    student.grad = None
    reference_peak = peak_bytes(reference, device)
    student.grad = None
    ours_peak = peak_bytes(ours, device)
    student.grad = None
    return Figures(
        reference_s,
        ours_s,
        limit_s,
        _saved_bytes(reference_loss, student, teacher),
        _saved_bytes(alignment_loss, student, teacher),
        reference_peak,
        ours_peak,
        student.numel() * student.element_size(),
    )


def _touch_memory(student: Tensor, teacher: Tensor) -> None:
    # Summed as fp32 whatever the dtype: a sum in bf16 would be limited by its conversions, not by memory.
    for _ in range(2):
        student.view(torch.float32).sum()
        teacher.view(torch.float32).sum()
    torch.empty_like(student).zero_()


def _saved_bytes(loss: Loss, student: Tensor, teacher: Tensor) -> int:
    """Count the bytes that autograd keeps from forward to backward, beyond the two inputs."""
    storages = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = loss(student, teacher)
    for tensor in (student, teacher):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    del result
    return sum(storages.values())


def _print_row(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, rounds: int) -> None:
    row = measure(shape, dtype, device, rounds)
    print(
        f"{'x'.join(map(str, shape)):>16} {str(dtype).removeprefix('torch.'):>8} | "
        f"{row.reference_s * 1e3:7.2f} ms {row.ours_s * 1e3:6.2f} ms {row.reference_s / row.ours_s:5.1f}x "
        f"{row.limit_s * 1e3:6.2f} ms {row.ours_s / row.limit_s:7.1f}x | "
        f"{row.reference_saved / row.activation:9.1%} {row.ours_saved / row.activation:7.2%} | "
        f"{row.reference_peak / row.activation:8.2f} {row.ours_peak / row.activation:6.2f}",
        flush=True,
    )


def _cases(widths: bool) -> list[tuple[tuple[int, ...], torch.dtype]]:
    if not widths:
        return list(CASES)
    return [
        ((2, 2**22 // width, width), dtype)
        for width in (64, 384, 1152, 3072, 6144)
        for dtype in (torch.float32, torch.bfloat16)
    ]


def main(arguments: list[str] | None = None) -> None:
    """Print the table.

    Args:
        arguments: command-line arguments; None takes those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loss", description="alignment_loss and its reference")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds for each shape (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default %(default)s)")
    parser.add_argument("--widths", action="store_true", help="instead, widths D from 64 to 6144 in fp32 and bf16")
    parser.add_argument("--keep-pages", action="store_true", help="have glibc return no memory to the system")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    cases = _cases(options.widths)
    if options.case is not None:
        torch.set_num_threads(options.threads)
        shape, dtype = cases[options.case]
        _print_row(shape, dtype, device, options.rounds)
        return

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {options.threads} thread(s)"
    print(f"torch {torch.__version__}, {name}; forward + backward, medians of {options.rounds} alternating rounds")
    print("saved: beyond the two inputs, in % of one activation; peak: beyond the two inputs, in activations")
    print(
        f"{'shape':>16} {'dtype':>8} | {'reference':>10} {'ours':>9} {'ratio':>6} {'limit':>9} {'of limit':>8}"
        f" | {'saved ref':>9} {'ours':>7} | {'peak ref':>8} {'ours':>6}",
        flush=True,
    )
    environment = {"KINETO_LOG_LEVEL": "99", **os.environ}
    if options.keep_pages:
        environment |= {"MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_MMAP_THRESHOLD_": str(2**40)}
    for case in range(len(cases)):
        command = [sys.executable, "-m", "benchmarks.loss", *arguments, f"--case={case}"]
        subprocess.run(command, env=environment, check=True)
    print(GOALS)


if __name__ == "__main__":
    main()
