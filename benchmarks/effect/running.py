"""Many trainings, several at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from benchmarks.effect.arms import Job
from benchmarks.effect.results import Results
from benchmarks.effect.training import train

_LOOK_AFTER = 0.2  # seconds between checks for a stop


def train_all(
    jobs: list[Job], results: Results, processes: int, folder: Path, write_report: Callable[[Path, Results], None]
) -> list[str]:
    """Train, write results and report after each training, and return the failures."""
    failures = []
    # Takes effect when a worker loads its linear algebra library; threads of several workers would block each other.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    context, count = multiprocessing.get_context("spawn"), min(processes, len(jobs)) or 1
    others, workers = multiprocessing.active_children(), list[BaseProcess]()
    with _stop_kept() as stop, ProcessPoolExecutor(count, mp_context=context, initializer=_be_a_worker) as pool:
        try:
            # Workers start with it blocked, since Ctrl-C in a terminal reaches them as well and the parent decides.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            waiting = {pool.submit(train, job, results.scale): job for job in jobs}
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            workers = [child for child in multiprocessing.active_children() if child not in others]
            while waiting:
                for done in wait(waiting, _LOOK_AFTER, FIRST_COMPLETED).done:
                    job, error = waiting.pop(done), done.exception()
                    if isinstance(error, BrokenProcessPool):
                        raise error
                    if error is not None:
                        failures.append("".join(traceback.format_exception(error)) + f"{job.key} failed")
                        continue
                    results.add(done.result())
                    try:
                        write_report(folder, results)
                    except Exception as broken:  # don't lose hours of training because of a figure
                        print(f"warning: no report yet: {broken!r}", file=sys.stderr)
                    print(f"{job.key} is done, {len(results.missing(results.jobs))} to go", flush=True)
                if stop:
                    raise KeyboardInterrupt
        except BrokenProcessPool:
            if stop:  # the workers got the signal as well
                raise KeyboardInterrupt from None
            pool.shutdown()  # waits until all of them have an exit code
            failures.append(f"a worker {_end_of(workers)}; the same command trains what is missing")
        except BaseException:
            for worker in workers:
                worker.terminate()
            # Waits for the pool's own thread; otherwise Python's exit and that thread would close the same pipe.
            pool.shutdown(cancel_futures=True)
            raise
    return failures


def _end_of(workers: Iterable[BaseProcess]) -> str:
    """Return how the worker ended that broke the pool, which then ends the others by SIGTERM."""
    codes = [worker.exitcode for worker in workers if worker.exitcode]
    code = next((code for code in codes if code != -signal.SIGTERM), -signal.SIGTERM)
    if code > 0:
        return f"ended with exit code {code}"
    return f"was ended by {signal.Signals(-code).name}" + ", perhaps for lack of memory" * (code == -signal.SIGKILL)


@contextmanager
def _stop_kept() -> Iterator[list[int]]:
    """Record stop signals until they are checked: an asynchronous exception can break a lock the pool waits for."""
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    kept = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in kept:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield came
    finally:
        for number in kept:
            signal.signal(number, before[number])


def _be_a_worker() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    # Such small models don't gain from several cores, and another training uses the other core.
    torch.set_num_threads(1)


def _end_with_the_parent() -> None:
    # A parent that is killed outright cannot stop its workers, and each would keep training for nobody.
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
