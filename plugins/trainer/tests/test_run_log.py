"""What a run prints is also in its folder, and a disk that is full for the log doesn't end the run."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from layersync_core import ASKED_FILE, LOG_FILE, LayerSyncError, read_process
from layersync_plugin_trainer import run_log
from layersync_plugin_trainer.claiming import is_empty
from layersync_plugin_trainer.run_log import Log

FLAGS = "--max_train_steps 3 --train_batch_size 4 --num_sampling_steps 1 --report_to none --logging_steps 1"


def log_of(folder):
    return (folder / LOG_FILE).read_text()


def test_a_run_leaves_what_it_printed(train):
    result = train(logging_steps=1)
    lines = log_of(result.folder).splitlines()
    assert set(result.out.splitlines()) <= set(lines)
    assert "layersync: " in lines[0]
    assert any("2/2" in line and "layersync_similarity=" in line for line in lines)
    assert all(line.isprintable() for line in lines)
    assert (result.folder / LOG_FILE).stat().st_mode & 0o777 == 0o600
    resumed = train(output_dir=result.folder, resume_from_checkpoint="latest", max_train_steps=3)
    assert resumed.code == 0, resumed.err
    assert log_of(result.folder).startswith("\n".join(lines))
    assert "resuming " in log_of(result.folder)


def test_a_refused_run_leaves_nothing_and_changes_no_log(train):
    assert not train(layersync_student_block=99).folder.exists()
    before = log_of(train().folder)
    refused = train()
    assert refused.code == 2
    assert log_of(refused.folder) == before


def test_a_folder_with_no_more_than_a_log_is_empty_and_keeps_it(train, tmp_path):
    (tmp_path / "run").mkdir()
    for name in (LOG_FILE, ASKED_FILE):
        (tmp_path / "run" / name).write_text("before\n")
    assert is_empty(tmp_path / "run")
    assert train(layersync_student_block=99).code == 2
    assert log_of(tmp_path / "run") == "before\n"
    assert train().code == 0
    assert log_of(tmp_path / "run").startswith("before\nlayersync: ")
    assert not (tmp_path / "run" / ASKED_FILE).exists()


@pytest.mark.parametrize("error", [LayerSyncError("two\nlines"), ValueError("a bug")])
def test_what_ended_it_is_the_last_word(tmp_path, error):
    def fail():
        with Log(tmp_path) as log:
            log.begin()
            print("no end", end="")
            raise error

    before = sys.stdout
    with pytest.raises(type(error)):
        fail()
    assert sys.stdout is before
    lines = log_of(tmp_path).splitlines()
    assert lines[0] == "no end"
    assert lines[-1] in ("error: two lines", "ValueError: a bug")


def test_of_a_progress_bar_some_lines_are_kept(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(run_log.time, "monotonic", lambda: now[0])
    with Log(tmp_path) as log:
        log.begin()
        for step in range(101):
            now[0] += 1
            print(f"\r{step}%", end="", file=sys.stderr)
        print(file=sys.stderr)
        print("a line between")
    assert log_of(tmp_path).splitlines() == [f"{step}%" for step in range(0, 101, 10)] + ["100%", "a line between"]


def test_an_output_that_is_the_log_is_not_written_twice(tmp_path):
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-m", "layersync_core", "train", "--output_dir", str(tmp_path / "run"), *FLAGS.split()]
    with (tmp_path / "run" / LOG_FILE).open("a") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 0, log_of(tmp_path / "run")
    assert log_of(tmp_path / "run").count("objective: ") == 1


class Full(io.StringIO):
    def write(self, text=""):
        raise OSError(28, os.strerror(28))

    flush = write


def test_a_full_disk_does_not_end_a_run_for_its_log(train, monkeypatch, tmp_path):
    with Log(tmp_path) as log:
        log.begin()
        real = sys.stdout.stream
        sys.stdout.stream = Full()
        print("kept", flush=True)
        sys.stdout.stream = real
    assert log_of(tmp_path) == "kept\n"
    command = [sys.executable, "-m", "layersync_core", "train", "--output_dir", str(tmp_path / "run"), *FLAGS.split()]
    with open("/dev/full", "w") as full:
        subprocess.run(command, stdout=full, stderr=full, check=False)
    assert (tmp_path / "run" / "run.json").exists()
    assert read_process(tmp_path / "run").state == "finished"
    assert "3/3" in log_of(tmp_path / "run")


def test_a_log_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / LOG_FILE)
    with Log(tmp_path) as log:
        log.begin()
        print("lost")


def test_a_log_is_written_through_no_link(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "run" / LOG_FILE).symlink_to(tmp_path / "elsewhere")
    assert train().code == 0
    assert (tmp_path / "elsewhere").read_text() == "mine"
