"""Many trainings, several at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path

import torch

from benchmarks.effect.arms import Job
from benchmarks.effect.report import write_report
from benchmarks.effect.results import Results
from benchmarks.effect.training import train


def train_all(jobs: list[Job], results: Results, processes: int, folder: Path) -> list[str]:
    """Train, write results and report after each training, and return what failed."""
    failures = []
    # Read when a worker loads its linear algebra; threads of several workers on the same cores wait for each other.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(jobs)) or 1, mp_context=context, initializer=_be_a_worker) as pool:
        try:
            waiting = {pool.submit(train, job, results.scale): job for job in jobs}
            for done in as_completed(waiting):
                error = done.exception()
                if isinstance(error, BrokenProcessPool):
                    raise error
                if error is not None:
                    failures.append("".join(traceback.format_exception(error)) + f"{waiting[done].key} failed")
                    continue
                results.add(done.result())
                try:
                    write_report(folder, results)
                except Exception as broken:  # hours of training are not lost for a figure
                    print(f"warning: no report yet: {broken!r}", file=sys.stderr)
                print(f"{waiting[done].key} is done, {len(results.missing(jobs))} to go", flush=True)
        except BrokenProcessPool:
            failures.append("a worker died, for want of memory it may be; the same command trains what is missing")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise
    return failures


def _be_a_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    # Models this small are not worth sharing between cores; another training has the other core.
    torch.set_num_threads(1)


def _end_with_the_parent() -> None:
    # A parent that is killed outright stops no worker, and each would train on for nobody.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
