"""The record of a run's process: written once every start-up check has passed, with true content."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from layersync_core import PROCESS_FILE, read_process


def test_a_finished_run_says_so(train):
    found = read_process(train(max_train_steps=3).folder)
    assert (found.state, found.code, found.kind, found.total_steps) == ("finished", 0, "train", 3)


def test_a_run_that_is_refused_leaves_the_record_of_the_one_before(train):
    before = (train().folder / PROCESS_FILE).read_bytes()
    for settings in ({}, {"resume_from_checkpoint": "latest", "seed": 5}):
        refused = train(**settings)
        assert refused.code == 2
        assert (refused.folder / PROCESS_FILE).read_bytes() == before


def test_a_comparison_has_one_record_for_both_arms(train):
    folder = train("--compare").folder
    assert read_process(folder).state == "finished"
    assert not list(folder.glob("*/layersync_process.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "state", "code"), [(signal.SIGINT, "stopped", 130), (signal.SIGKILL, "vanished", None)]
)
def test_a_run_that_is_ended_says_how_or_is_found_gone(tmp_path, number, state, code):
    flags = "--max_train_steps 100000 --train_batch_size 4 --report_to none --num_sampling_steps 1"
    command = [sys.executable, "-m", "layersync_core", "train", "--output_dir", str(tmp_path / "run"), *flags.split()]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "step/s" in line:
                break
        assert read_process(tmp_path / "run").state == "running"
        process.send_signal(number)
        process.communicate(timeout=240)
    found = read_process(tmp_path / "run")
    assert (found.state, found.code) == (state, code)
