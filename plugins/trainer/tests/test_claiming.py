from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from layersync_core import ConfigError
from layersync_plugin_trainer.claiming import claimed, is_empty

HOLD = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from layersync_plugin_trainer.claiming import claimed
    with claimed(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)
""")


def hold(folder):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    with holder.stdout:
        assert holder.stdout.readline() == "held\n"
    return holder


def test_a_second_run_says_who_holds_the_folder(train, tmp_path):
    holder = hold(tmp_path / "run")
    try:
        before = sorted(path.name for path in (tmp_path / "run").iterdir())
        result = train()
        assert result.code == 2
        (line,) = result.err.splitlines()
        assert f"in use by process {holder.pid} on " in line
        assert "another output_dir" in line
        assert sorted(path.name for path in result.folder.iterdir()) == before
        with pytest.raises(ConfigError, match=f"process {holder.pid}"), claimed(tmp_path / "run"):
            pass
    finally:
        holder.kill()
        holder.wait()
    # The system releases a killed process's lock, and the files it left don't count as a run's.
    assert train().code == 0


def test_two_at_once_leave_one_whole_run(tmp_path):
    command = [sys.executable, "-m", "layersync_core", "train", "--output_dir", str(tmp_path / "both")]
    command += ["--max_train_steps", "2", "--train_batch_size", "4", "--num_sampling_steps", "1", "--report_to", "none"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in range(2)]
    ends = [(run.communicate()[1], run.returncode) for run in both]
    assert sorted(code for _, code in ends) == [0, 2]
    (refused,) = [text for text, code in ends if code == 2]
    # A process that comes after the other has ended finds a finished run instead.
    assert "is in use by" in refused or "is not empty" in refused
    assert json.loads((tmp_path / "both" / "run.json").read_text())["steps"] == 2


def test_a_finished_or_refused_run_leaves_no_lock(train, tmp_path):
    finished = train()
    assert finished.code == 0
    assert not [path.name for path in finished.folder.iterdir() if path.name.startswith(".")]
    refused = train("--layersync_teacher_block", "99", folder="a/b/c")
    assert refused.code == 2
    assert not (tmp_path / "a").exists()


def test_a_folder_that_was_there_stays(tmp_path):
    with claimed(tmp_path):
        assert is_empty(tmp_path)
        assert list(tmp_path.iterdir())
    assert tmp_path.exists()
    assert not list(tmp_path.iterdir())


def test_a_holder_s_file_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("precious")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".layersync.holder", ".layersync.tmp"):
        (folder / name).symlink_to(tmp_path / "mine")
    with claimed(folder):
        assert json.loads((folder / ".layersync.holder").read_text())["pid"] == os.getpid()
    assert (tmp_path / "mine").read_text() == "precious"


def test_ctrl_c_frees_the_folder(tmp_path):
    holder = hold(tmp_path / "run")
    holder.send_signal(signal.SIGINT)
    holder.wait()
    assert not (tmp_path / "run").exists()


def test_an_arm_of_a_running_comparison_is_not_to_be_had(train, tmp_path):
    (tmp_path / "run" / "vanilla").mkdir(parents=True)
    holder = hold(tmp_path / "run")
    try:
        for folder in ("run/vanilla", "run/another"):
            result = train(folder=folder)
            assert result.code == 2
            assert f"in use by process {holder.pid}" in result.err
    finally:
        holder.kill()
        holder.wait()


def test_a_comparison_one_of_whose_arms_runs_is_not_to_be_had(tmp_path):
    holder = hold(tmp_path / "run" / "vanilla")
    try:
        said = pytest.raises(ConfigError, match=f"vanilla, which is in use by process {holder.pid}")
        with said, claimed(tmp_path / "run"):
            pass
    finally:
        holder.kill()
        holder.wait()


def test_what_a_killed_run_left_is_nothing_to_resume(train, tmp_path):
    holder = hold(tmp_path / "run")
    holder.kill()
    holder.wait()
    result = train("--resume_from_checkpoint", "latest", max_train_steps=2, report_to="none", num_sampling_steps=1)
    assert result.code == 0, result.err
    assert "starting at step 0" in result.out


def test_an_arm_is_not_resumed_by_itself(train):
    compared = train(compare="true")
    assert compared.code == 0, compared.err
    arm = train("--resume_from_checkpoint", "latest", output_dir=compared.folder / "layersync", max_train_steps=4)
    assert arm.code == 2
    assert "is one arm of a comparison" in arm.err
