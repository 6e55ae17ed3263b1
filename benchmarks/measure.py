"""Shared measurements: time, memory, and a median with its interval."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from math import comb

import torch


def seconds(run: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how long a function takes on a device; the clock is used for CPUs."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize(device)
        return float(begin.elapsed_time(end)) / 1000
    start = clock()
    run()
    return clock() - start


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Return the peak memory while a function runs, beyond what was allocated before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # The profiler sees every allocation of torch's CPU allocator, including those inside an operator.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    results = profile.profiler.kineto_results
    live = peak = 0
    for event in sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def median(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and its 95 % confidence interval, or the whole range if that covers less.

    By order statistics, which only assume that rounds are independent.
    """
    ordered = sorted(values)
    count, outside, cut = len(ordered), 0.0, 0
    while cut < (count - 1) // 2 and 2 * (outside + comb(count, cut) / 2**count) <= 0.05:
        outside += comb(count, cut) / 2**count
        cut += 1
    cut = max(cut - 1, 0)
    return statistics.median(ordered), ordered[cut], ordered[-1 - cut]


def fastest(values: Sequence[float]) -> float:
    """Return the value that a hundredth of the rounds stay below."""
    return sorted(values)[len(values) // 100]
