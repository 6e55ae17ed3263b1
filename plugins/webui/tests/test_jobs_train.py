"""The reference trainer, started from a page: stopped with a checkpoint, resumed to one curve, refused in one line."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from layersync_core import LOG_FILE, ConfigError, read_process
from layersync_plugin_webui.jobs import Jobs
from layersync_plugin_webui.runs.curves import Curves
from plugins.webui.tests.folders import id_of
from plugins.webui.tests.working import FORM, end, held, log_of, run_of, text_of, wait_for

SMALL = {"train_batch_size": 2, "num_sampling_steps": 1, "logging_steps": 1, "checkpointing_steps": 1000}


@pytest.fixture
def jobs(runs):
    yield Jobs(runs)
    end(runs)


def steps_of(folder):
    curves = Curves(folder).read()
    return curves["loss"].steps if "loss" in curves else []


@pytest.mark.slow
def test_stop_in_mid_run_and_resume_ends_at_the_same_count_with_one_curve(jobs, runs, reader):
    folder = jobs.train("mine", {**SMALL, "max_train_steps": 60, "layersync_lambda": "0.3"})
    assert read_process(folder).total_steps == 60
    id = id_of(runs, folder)
    assert "Running" in reader.get(f"/runs/{id}").text, "before the trainer has said anything"
    wait_for(lambda: steps_of(folder), 120)
    for _ in range(2):  # the second one is not passed on: it would be obeyed without a checkpoint
        assert reader.post(f"/runs/{id}/stop", headers=FORM).status_code == 303
    wait_for(lambda: read_process(folder).state == "stopped")
    [checkpoint] = folder.glob("checkpoint-*")
    step = int(checkpoint.name.partition("-")[2])
    assert 0 < step < 60
    assert f"stopped at step {step}; to resume" in log_of(folder)
    assert "Traceback" not in log_of(folder)
    # What a page that was started anew offers is what will be done.
    page = reader.get(f"/runs/{id}").text
    assert f"Resume at step {step}<" in page
    assert Jobs(runs).step_of_resume(run_of(runs, folder)) == step
    assert reader.post(f"/runs/{id}/resume", headers=FORM).status_code == 303
    assert reader.post(f"/runs/{id}/resume", headers=FORM).status_code == 409, "it is running"
    wait_for(lambda: read_process(folder).state == "finished", 120)
    assert f"resuming {checkpoint} at step {step}" in log_of(folder)
    assert log_of(folder).count("objective: ") == 2
    assert steps_of(folder) == list(range(1, 61))
    assert json.loads((folder / "run.json").read_text())["steps"] == 60
    assert float(json.loads((folder / "run.json").read_text())["config"]["layersync_lambda"]) == 0.3
    assert "Resume" not in text_of(reader.get(f"/runs/{id}").text)
    assert reader.post(f"/runs/{id}/resume", headers=FORM).status_code == 409


@pytest.mark.slow
def test_a_training_that_is_killed_and_what_it_left(jobs, runs, reader):
    folder = jobs.train("mine", {**SMALL, "max_train_steps": 100000, "checkpointing_steps": 3})
    wait_for(lambda: len(list(folder.glob("checkpoint-*"))) > 1, 120)
    os.kill(read_process(folder).pids[0], signal.SIGKILL)
    killed = time.monotonic()
    id = id_of(runs, folder)
    while "Ended: killed" not in reader.get(f"/runs/{id}/live").text:
        assert time.monotonic() - killed < 5
    newest = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert jobs.step_of_resume(run_of(runs, folder)) == int(newest[-1].name[11:])
    for file in newest[-1].glob("*.safetensors"):
        file.write_bytes(b"torn")
    step = int(newest[-2].name[11:])
    assert jobs.step_of_resume(run_of(runs, folder)) == step
    jobs.resume(run_of(runs, folder))
    wait_for(lambda: f"resuming {newest[-2]} at step {step}" in log_of(folder), 120)


@pytest.mark.slow
def test_a_refused_training_shows_its_line(jobs, runs, reader):
    for name, settings, said in (
        ("deep", {"layersync_student_block": 99}, "could not find layer"),
        ("wrong", {"max_train_steps": "many"}, "max_train_steps"),
    ):
        folder = jobs.train(name, SMALL | settings)
        wait_for(lambda folder=folder: read_process(folder).state == "failed")
        page = text_of(reader.get(f"/runs/{id_of(runs, folder)}").text)
        assert "Failed exit code 2" in page
        assert "error: " in page
        assert said in page
        assert "Resume" not in page
        assert log_of(folder).count("error: ") == 1
        with pytest.raises(ConfigError, match="no whole checkpoint"):
            jobs.resume(run_of(runs, folder))
        assert (folder / LOG_FILE).exists()


@pytest.mark.slow
def test_a_comparison_is_stopped_and_resumed_as_one(jobs, runs, reader):
    folder = jobs.train("both", {**SMALL, "max_train_steps": 40, "compare": True})
    first = id_of(runs, folder)
    wait_for(lambda: steps_of(folder / "layersync"), 120)
    with held(folder):
        run = run_of(runs, folder)
        assert run.folder == folder / "layersync"
        assert "both/layersync" in reader.get(f"/runs/{first}").text, "the page that was opened first goes on"
        jobs.stop(run)
    wait_for(lambda: read_process(folder).state == "stopped")
    step = jobs.step_of_resume(run)
    assert 0 < step < 40
    assert f"Resume at step {step}<" in reader.get(f"/runs/{run.id}").text
    jobs.resume(run)
    wait_for(lambda: read_process(folder).state == "finished", 120)
    for arm in ("layersync", "vanilla"):
        assert steps_of(folder / arm) == list(range(1, 41))
