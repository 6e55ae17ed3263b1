"""Does LayerSync help, and which of its parts? `python -m benchmarks.effect [--quick] [--output_dir DIR]`.

Trains small diffusion transformers with and without LayerSync, from the same weights, on the same samples, noise and
times, and measures the results; docs/effect.md and docs/ablations.md explain arms and measures. Writes results.json
(everything measured, training by training), table.md and a figure into the output folder after every training; started
again on the same folder, it trains what is missing. `--quick` trains every arm for a few steps on little data, at one
depth and in two settings: it shows that the machinery works and says nothing about the effect. `--study depth` trains
what shows how much of a model's depth LayerSync takes, and `--study settings` tests on seven settings what `layersync
suggest` predicts, `--study repetition` one of these settings on other seeds, each into a folder of its name in the
output folder; without the flag, all four are trained. `--scale gpu` trains two arms of a DiT-S/2 on one GPU instead,
into the folder `gpu`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch

from benchmarks.effect.arms import VANILLA
from benchmarks.effect.results import Results
from benchmarks.effect.running import train_all
from benchmarks.effect.studies import GPU_STUDY, STUDIES, Study
from benchmarks.effect.tasks import EVERY_TASK
from layersync_core.errors import ConfigError, LayerSyncError
from layersync_plugin_trainer.claiming import claimed


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.effect",
        description=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a few steps of every arm; the figures mean nothing")
    parser.add_argument("--output_dir", default="./effect-output", help="folder for everything written")
    parser.add_argument("--processes", type=int, help="trainings at a time (default: one per core, one for a GPU)")
    parser.add_argument("--study", choices=list(STUDIES), help="train only this study (default: all; hours)")
    parser.add_argument(
        "--scale",
        choices=["laptop", "gpu"],
        default="laptop",
        help="gpu: a larger model, made for ten minutes on one GPU",
    )
    options = parser.parse_args(arguments)
    if options.processes is not None and options.processes < 1:
        parser.error(f"--processes is {options.processes}; it takes a number from 1")
    if options.study and options.scale == "gpu":
        parser.error(f"--study {options.study} is one of --scale laptop; leave out one of the two")
    if options.scale == "gpu" and not options.quick and not torch.cuda.is_available():
        parser.error("--scale gpu is made for a GPU, and none was found; --quick tries it on the CPU")
    # Larger models that train beside each other on a CPU would need twice the memory.
    one_at_a_time = torch.cuda.is_available() or options.scale == "gpu"
    processes = options.processes or (1 if one_at_a_time else _cores())
    folder = Path(options.output_dir)
    studies = (
        [GPU_STUDY] if options.scale == "gpu" else [STUDIES[options.study]] if options.study else [*STUDIES.values()]
    )
    # Treat SIGTERM like Ctrl-C: what is finished is in the file.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with claimed(folder):
            # All are read before anything is trained.
            every = [(study, study.results(folder, options.quick)) for study in studies]
            for study in studies:
                if (folder / study.folder).is_file():
                    raise ConfigError(f"{folder / study.folder} is a file; give another --output_dir, or move it")
            return max([_run(study, results, processes, folder / study.folder) for study, results in every])
    except LayerSyncError as error:
        parser.error(str(error))
    except ImportError as error:
        parser.error(f"{error}: pip install -r requirements-dev.txt")
    except OSError as error:
        print(f"cannot write {error.filename or folder}: {error.strerror}; what is finished is kept", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what is finished is kept, and the same command continues", file=sys.stderr)
        return 130


def _run(study: Study, results: Results, processes: int, folder: Path) -> int:
    folder.mkdir(exist_ok=True)
    missing = results.missing(results.jobs)
    for name in dict.fromkeys(job.task for job in missing):
        EVERY_TASK[name].data()  # fails if something isn't installed
    elsewhere = results.from_elsewhere()
    if elsewhere:
        print(
            f"warning: {len(elsewhere)} trainings in {folder} are from other versions or another device, "
            f"{elsewhere[0]} for one; compared with new ones, not only the arm differs",
            file=sys.stderr,
        )
    print(
        f"{len(results.jobs)} trainings, {len(missing)} of them left, {processes} at a time; results in {folder}",
        flush=True,
    )
    failures = []
    first, rest = [job for job in missing if job.arm == VANILLA], [job for job in missing if job.arm != VANILLA]
    for jobs in [missing] if study.before is None else [first, rest]:
        failures += train_all(jobs, results, processes, folder, study.write_report)
        if study.before is not None and jobs is first:
            print(*study.before(results), sep="\n", flush=True)
    study.write_report(folder, results)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
