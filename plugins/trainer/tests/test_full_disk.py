"""A disk that fills up: one line, and nothing half-written replaces anything complete."""

from __future__ import annotations

import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest

from layersync_core import LOG_FILE, PROCESS_FILE
from layersync_plugin_trainer import checkpoint, html_report, models, report
from plugins.trainer.tests.launching import ENVIRONMENT, TWO_PROCESSES

# The weights have 3 MB, the optimiser's state 6 MB, a figure 60 kB, everything else less than 20 kB.
WEIGHTS, OPTIMISER, FIGURE, METRICS = 2_000_000, 4_000_000, 30_000, 300
OF_EVERY_RUN = (PROCESS_FILE, LOG_FILE)


@contextmanager
def largest_file(size):
    """Limit the size of this process's files: the system refuses more, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def hidden(folder):
    return [path for path in folder.rglob(".*") if folder.exists()]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name not in OF_EVERY_RUN}


def error_of(result):
    """Return the one line that remains without the progress bar."""
    lines = [line for line in result.err.replace("\r", "\n").splitlines() if line and "step/s" not in line]
    assert len(lines) == 1, result.err
    return lines[0]


@pytest.mark.parametrize("size", [WEIGHTS, OPTIMISER, FIGURE, METRICS])
def test_the_first_checkpoint(train, size):
    with largest_file(size):
        result = train(checkpointing_steps=1)
    assert result.code == 2
    line = error_of(result)
    assert f"{result.folder / 'checkpoint-1'} could not be written: " in line
    assert "make room" in line
    assert not result.folder.exists()  # nothing is in it


@pytest.mark.parametrize("size", [WEIGHTS, OPTIMISER])
def test_a_later_one_leaves_those_before_it_as_they_were(train, copy, size):
    before = contents(copy)
    with largest_file(size):
        result = train(output_dir=copy, resume_from_checkpoint="latest", max_train_steps=4)
    assert result.code == 2
    line = error_of(result)
    assert f"{copy / 'checkpoint-4'} could not be written: " in line
    assert "checkpoint-3 is whole" in line
    assert f"layersync train --output_dir {copy} --resume_from_checkpoint latest" in line
    assert contents(copy) == before
    assert hidden(copy) == []
    again = train(output_dir=copy, resume_from_checkpoint="latest", max_train_steps=4)
    assert again.code == 0, again.err


def test_what_a_killed_run_left_half_written_is_taken_away(train, copy):
    (copy / ".checkpoint-7.partial").mkdir()
    (copy / ".checkpoint-7.partial" / "model.safetensors").write_text("half")
    assert train(output_dir=copy, resume_from_checkpoint="latest", max_train_steps=4).code == 0
    assert hidden(copy) == []


@pytest.mark.parametrize(
    ("name", "module", "function", "size"),
    [
        ("model", models, "export", WEIGHTS),
        ("samples.png", report, "draw_samples", FIGURE),
        ("curves.png", report, "draw_curves", FIGURE),
        ("run.json", report, "run_record", METRICS),
    ],
)
def test_what_a_run_leaves_at_its_end(train, copy, monkeypatch, name, module, function, size):
    real, before = getattr(module, function), contents(copy)

    def when_the_disk_is_full(*arguments, **more):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return real(*arguments, **more)

    monkeypatch.setattr(module, function, when_the_disk_is_full)
    with largest_file(resource.RLIM_INFINITY):
        result = train(output_dir=copy, resume_from_checkpoint="latest")
    monkeypatch.undo()
    assert result.code == 2
    line = error_of(result)
    assert f"{copy / name} could not be written: File too large" in line
    assert "checkpoint-3 is whole" in line
    torn = [path for path, content in contents(copy).items() if path.name == name and before[path] != content]
    assert torn == []
    assert hidden(copy) == []
    assert train(output_dir=copy, resume_from_checkpoint="latest").code == 0


@pytest.mark.parametrize("fault", ["full", "bug"])
def test_a_report_that_cannot_be_written_fails_no_training(train, copy, monkeypatch, fault):
    real = html_report.render_report

    def when_the_disk_is_full(report):
        if fault == "bug":
            raise ZeroDivisionError("of two\nlines")
        resource.setrlimit(resource.RLIMIT_FSIZE, (METRICS, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return real(report)

    monkeypatch.setattr(html_report, "render_report", when_the_disk_is_full)
    with largest_file(resource.RLIM_INFINITY):
        result = train(output_dir=copy, resume_from_checkpoint="latest")
    assert result.code == 0
    line = error_of(result)
    assert line.startswith(f"warning: {copy / 'report.html'}")
    assert ("File too large" if fault == "full" else "ZeroDivisionError: of two lines") in line
    assert not (copy / "report.html").exists()  # that of the run before
    assert (copy / "run.json").exists()
    assert hidden(copy) == []


def test_the_metrics_of_a_tracker(train):
    with largest_file(METRICS):
        result = train(report_to="tensorboard")
    assert result.code == 2
    assert f"{result.folder / 'logs'} could not be written: File too large" in error_of(result)


@pytest.mark.parametrize("what", ["--version", "list-supported"])
def test_standard_output_on_a_full_disk(what):
    command = [sys.executable, "-m", "layersync_core", what]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: cannot write: No space left on device\n")


ONE_RANK_HAS_NO_ROOM = """
import os, resource, sys
if os.environ["RANK"] == "1":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
from layersync_core.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_one_of_two_processes_has_no_room(tmp_path):
    script, folder = tmp_path / "script.py", tmp_path / "run"
    script.write_text(ONE_RANK_HAS_NO_ROOM)
    flags = ["--max_train_steps", "1", "--train_batch_size", "2", "--num_sampling_steps", "1", "--report_to", "none"]
    done = subprocess.run(
        [*TWO_PROCESSES, str(script), "train", "--output_dir", str(folder), *flags],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode != 0
    assert done.stderr.count("checkpoint-1 could not be written: ") == 1
    assert checkpoint.found(folder) == []
    assert not folder.exists()
