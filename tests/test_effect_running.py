"""The benchmark of the effect as it runs: failures, stops, and what it refuses."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.effect import running
from benchmarks.effect.__main__ import main
from benchmarks.effect.arms import ARMS, DEEP_ARMS, FULL, PAIR, QUICK, SETTING_ARMS, VANILLA, Job, Scale, plan
from benchmarks.effect.results import FILE, Record, Results
from benchmarks.effect.studies import STUDIES
from layersync_core import ConfigError
from layersync_plugin_trainer.claiming import claimed
from tests.effect_records import MANY, ROOT, record


def test_one_run_writes_to_a_folder_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path), pytest.raises(ConfigError, match="is in use by process"):
        claimed(tmp_path).__enter__()
    with claimed(tmp_path):
        pass


def test_a_training_that_fails_does_not_end_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(job: Job, scale: Scale) -> Record:
        if job.arm == "pair":
            raise ZeroDivisionError("a bug")
        return record(job.arm, job.seed, 0.5, job.steps)

    # In threads of this process, where the replacement is seen.
    monkeypatch.setattr(running, "ProcessPoolExecutor", lambda count, **_: ThreadPoolExecutor(count))
    monkeypatch.setattr(running, "train", train)

    def write_report(*_: Any) -> None:
        raise ZeroDivisionError("a report that fails ends them no more")

    results = Results(tmp_path, MANY)
    jobs = [Job("digits", "pair", 0, 4), Job("digits", "vanilla", 0, 4), Job("digits", "self", 0, 2)]
    (failure,) = running.train_all(jobs, results, 1, tmp_path, write_report)
    assert "ZeroDivisionError: a bug" in failure
    assert failure.endswith("digits/pair/0 failed")
    assert set(Results(tmp_path, MANY).records) == {"digits/vanilla/0", "digits/self/0"}


def test_a_stop_waits_until_what_is_finished_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(job: Job, scale: Scale) -> Record:
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        return record(job.arm, job.seed, 0.5, job.steps)

    monkeypatch.setattr(running, "ProcessPoolExecutor", lambda count, **_: ThreadPoolExecutor(count))
    monkeypatch.setattr(running, "train", train)
    before, jobs = signal.getsignal(signal.SIGINT), plan(MANY)
    with pytest.raises(KeyboardInterrupt):
        running.train_all(jobs, Results(tmp_path, MANY), 1, tmp_path, lambda *_: None)
    assert 0 < len(Results(tmp_path, MANY).records) < len(jobs)
    assert signal.getsignal(signal.SIGINT) is before


def killed(job: Job, scale: Scale) -> Record:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def left(job: Job, scale: Scale) -> Record:
    os._exit(3)


@pytest.fixture
def child_that_leaves() -> Iterator[None]:
    """A process of somebody else, which ends with the exit code 4 after some seconds."""
    child = multiprocessing.get_context("spawn").Process(target=leave_later)
    child.start()
    yield
    child.join()


def leave_later() -> None:
    time.sleep(1)
    os._exit(4)


@pytest.mark.slow
@pytest.mark.usefixtures("child_that_leaves")
@pytest.mark.parametrize(
    ("train", "end"), [(killed, "was ended by SIGKILL, perhaps for lack of memory"), (left, "ended with exit code 3")]
)
def test_a_worker_that_dies_is_told_with_its_end(
    train: Callable[[Job, Scale], Record], end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "train", train)
    (failure,) = running.train_all(plan(MANY)[:2], Results(tmp_path, MANY), 2, tmp_path, lambda *_: None)
    assert failure == f"a worker {end}; the same command trains what is missing"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.effect", *arguments]


def is_gone(group: int) -> bool:
    """Return whether a process group ends within a minute, which is long for a busy machine as well."""
    for _ in range(600):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def environment(first_on_path: Path = ROOT) -> dict[str, str]:
    path = [str(first_on_path), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


@pytest.fixture
def quick() -> Iterator[Callable[..., int]]:
    """The command with ``--quick``, in this process."""
    before = signal.getsignal(signal.SIGTERM)
    yield lambda *arguments: main(["--quick", "--study", "effect", *arguments])
    signal.signal(signal.SIGTERM, before)


def test_what_it_refuses(
    tmp_path: Path, quick: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            quick(*arguments)
        assert end.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    Results(tmp_path / "full", FULL).add(record("vanilla", 0, 0.5))
    before = (tmp_path / "full" / FILE).read_bytes()
    assert "from a run with other settings" in refusal("--output_dir", "full")
    assert (tmp_path / "full" / FILE).read_bytes() == before
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / FILE).write_text('{"scale": ')
    assert "not valid JSON" in refusal("--output_dir", "broken")
    (tmp_path / "file").write_text("")
    assert "output_dir file is a file" in refusal("--output_dir", "file")
    assert "--processes is 0" in refusal("--processes", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        main(["--scale", "gpu", "--output_dir", "gpu"])
    assert end.value.code == 2
    assert "--scale gpu is made for a GPU, and none was found" in capsys.readouterr().err
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "depth").write_text("")
    with pytest.raises(SystemExit) as end:
        main(["--quick", "--study", "depth", "--output_dir", "taken"])
    assert end.value.code == 2
    assert "taken/depth is a file" in capsys.readouterr().err


def test_a_package_that_is_missing_is_refused_with_the_remedy(tmp_path: Path) -> None:
    absent = tmp_path / "absent" / "skimage.py"
    absent.parent.mkdir()
    absent.write_text("raise ImportError(\"No module named 'skimage'\")")
    done = subprocess.run(
        command("--quick"), capture_output=True, text=True, cwd=tmp_path, env=environment(absent.parent)
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.endswith("No module named 'skimage': pip install -r requirements-dev.txt")


def quick_run(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a quick run of all studies in a process group of its own, as a terminal does."""
    words = command("--quick", "--output_dir", str(folder), *arguments)
    output: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, start_new_session=True, cwd=ROOT, env=environment(), **output)


@pytest.mark.slow
def test_no_worker_outlives_a_run_that_is_killed(tmp_path: Path) -> None:
    with quick_run(tmp_path, "--processes", "1") as process:
        assert process.stdout is not None
        while ": step " not in process.stdout.readline():
            assert process.poll() is None
        process.kill()
        process.wait()
    assert is_gone(process.pid)


@pytest.mark.slow
def test_a_stop_at_the_terminal_while_workers_start_shows_no_traceback(tmp_path: Path) -> None:
    with quick_run(tmp_path) as process:
        assert process.stdout is not None
        assert "trainings" in process.stdout.readline()
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)
        said = process.stdout.read()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "stopped; what is finished is kept, and the same command continues"


@pytest.mark.slow
def test_a_quick_run_is_stopped_and_goes_on(
    tmp_path: Path, quick: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    with quick_run(tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "is done" in line:
                process.send_signal(signal.SIGINT)
                break
        said = process.stdout.read()
    assert process.returncode == 130
    assert "the same command continues" in said
    assert "Traceback" not in said
    assert is_gone(process.pid), "no worker goes on alone"
    stopped = json.loads((tmp_path / FILE).read_text())["records"]
    jobs = plan(QUICK)
    assert 0 < len(stopped) < len(jobs)

    with quick_run(tmp_path) as process:
        said = process.communicate()[0]
    assert process.returncode == 0
    assert f"{len(jobs)} trainings, {len(jobs) - len(stopped)} of them left" in said
    whole = json.loads((tmp_path / FILE).read_text())["records"]
    assert set(whole) == {job.key for job in jobs}
    assert stopped.items() <= whole.items()
    shown = (tmp_path / "table.md").read_text()
    assert all(shown.count(arm.title) >= 1 for arm in ARMS.values())
    assert (tmp_path / "effect.png").read_bytes().startswith(b"\x89PNG")
    for name, arms in (("depth", DEEP_ARMS), ("settings", SETTING_ARMS), ("repetition", (VANILLA, PAIR))):
        study = STUDIES[name]
        assert {record.arm for record in study.results(tmp_path, quick=True).records.values()} == set(arms)
        assert (tmp_path / name / "table.md").read_text().count("\n") > 2
    assert (tmp_path / "depth" / "depth.png").exists()

    assert quick("--output_dir", str(tmp_path)) == 0
    assert "0 of them left" in capsys.readouterr().out
