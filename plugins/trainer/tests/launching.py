"""How tests start the trainer in two processes."""

from __future__ import annotations

import os
import sys

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
TRAIN = ["-m", "layersync_core", "train", "--num_sampling_steps", "1", "--report_to", "none"]
# The flag that launches several processes is --multi_gpu; with --cpu accelerate always starts one.
TWO_PROCESSES = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
TWO_PROCESSES += [
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
    "--main_process_port",
    "0",
]


def accelerate(*more):
    return [*TWO_PROCESSES, *TRAIN, *map(str, more)]
