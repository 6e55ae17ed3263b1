"""Runs in separate processes: two ranks, and signals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from plugins.trainer.tests.launching import ENVIRONMENT, TRAIN, accelerate


def first_gradients(checkpoint):
    # After one step Adam's first moment is a tenth of the gradient.
    state = torch.load(checkpoint / "optimizer.bin", weights_only=True)["state"]
    return [10 * entry["exp_avg"] for entry in state.values()]


@pytest.mark.slow
def test_two_processes_train_what_one_trains(train, tmp_path):
    shared = {"max_train_steps": 1, "max_grad_norm": 1e9, "num_sampling_steps": 1, "layersync_lambda": 5}
    shared |= {"layersync_enabled": "true", "layersync_student_block": 3, "layersync_teacher_block": 6}
    one = train(folder="one", train_batch_size=8, **shared)
    assert one.code == 0, one.err
    flags = [part for key, value in shared.items() for part in (f"--{key}", value)]
    two = tmp_path / "two"
    launched = subprocess.run(
        accelerate("--output_dir", two, "--train_batch_size", 4, *flags),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.count("student: block 3 of 8") == 1  # one process prints for both
    for single, double in zip(
        first_gradients(one.folder / "checkpoint-1"), first_gradients(two / "checkpoint-1"), strict=True
    ):
        torch.testing.assert_close(double, single, atol=1e-5, rtol=1e-4)
    metrics = [json.loads((place / "run.json").read_text())["metrics"] for place in (one.folder, two)]
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-4)

    # A checkpoint of two processes is not for one.
    result = train(output_dir=two, resume_from_checkpoint="latest", max_train_steps=2)
    assert result.code == 2
    assert "number of processes was 2, is 1" in result.err

    # A file that only the second process cannot read ends both, with one message.
    random_states = two / "checkpoint-1" / "random_states_1.pkl"
    random_states.write_bytes(b"")
    manifest = json.loads((two / "checkpoint-1" / "manifest.json").read_text())
    manifest["files"][random_states.name] = {"size": 0, "crc32": 0}
    (two / "checkpoint-1" / "manifest.json").write_text(json.dumps(manifest))
    again = ["--output_dir", two, "--resume_from_checkpoint", "latest", "--max_train_steps", "2"]
    launched = subprocess.run(
        accelerate(*again), env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False
    )
    assert launched.returncode != 0
    assert launched.stderr.count(f"error: {random_states} cannot be read: EOFError") == 1


@pytest.fixture
def start(tmp_path):
    """Start a long run in its own process group, and return once it has logged; it is killed when the test ends."""
    started = []

    def run(arguments, folder):
        log = tmp_path / "stderr.txt"
        command = [*arguments, "--output_dir", folder, "--max_train_steps", "100000", "--train_batch_size", "2"]
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [str(part) for part in command],
                env=ENVIRONMENT,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        started.append(process)
        deadline = time.monotonic() + 300
        while "layersync_similarity=" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        return process, log

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint(train, start, tmp_path, number, code):
    folder = tmp_path / "run"
    process, log = start([sys.executable, *TRAIN], folder)
    process.send_signal(number)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == code, log.read_text()
    assert "Traceback" not in log.read_text()
    line = out.strip().splitlines()[-1]
    assert line.endswith(f"layersync train --output_dir {folder} --resume_from_checkpoint latest")
    [checkpoint] = folder.glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    assert f"stopped at step {step}" in line
    resumed = train(output_dir=folder, resume_from_checkpoint="latest", max_train_steps=step + 1)
    assert resumed.code == 0, resumed.err
    assert json.loads((folder / "run.json").read_text())["steps"] == step + 1


@pytest.mark.slow
def test_both_processes_stop_at_one_step(start, tmp_path):
    folder = tmp_path / "run"
    process, log = start(accelerate(), folder)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, _ = process.communicate(timeout=240)
    assert process.returncode != 0
    assert out.count("stopped at step") == 1, log.read_text()
    from layersync_plugin_trainer.checkpoint import found, verify

    [checkpoint] = found(folder)
    assert {"random_states_0.pkl", "random_states_1.pkl"} <= {path.name for path in checkpoint.iterdir()}
    assert f"stopped at step {verify(checkpoint).step};" in out
