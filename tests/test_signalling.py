"""Signals reach the processes of a run, each once, and nobody else's, whatever a record says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from layersync_core import (
    PROCESS_FILE,
    RUN_FOLDER,
    LayerSyncError,
    ProcessRecord,
    interrupt_run,
    kill_run,
    read_process,
)

HOLD = """
import sys, time
from pathlib import Path
from layersync_core import ProcessRecord
with ProcessRecord(Path(sys.argv[2]), sys.argv[1]) as record:
    record.begin()
    print("begun", flush=True)
    time.sleep(60)
"""
# Counts its interrupts; so does its child, in the same group, and one that has a session of its own.
COUNT = """
import os, signal, subprocess, sys, time
from pathlib import Path
place = Path(sys.argv[1])
def note(number, frame):
    with (place / f"{sys.argv[2]}-interrupts").open("a") as file:
        file.write("x")
signal.signal(signal.SIGINT, note)
if sys.argv[2] == "first":
    subprocess.Popen([sys.executable, __file__, sys.argv[1], "second"])
    subprocess.Popen([sys.executable, __file__, sys.argv[1], "third"], start_new_session=True)
(place / f"{sys.argv[2]}-pid").write_text(str(os.getpid()))
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    time.sleep(0.05)
"""
LAUNCH = [
    sys.executable,
    "-m",
    "layersync_core",
    "run",
    "--layersync_enabled",
    "true",
    "--layersync_student_block",
    "1",
]


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def training(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that looks like ``layersync train`` started in a terminal."""
    program = tmp_path / "layersync"
    program.write_text(HOLD)
    (tmp_path / "run").mkdir()
    command = [sys.executable, str(program), "train", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield process
        process.kill()


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``layersync run`` around a script with two children."""
    script = tmp_path / "script.py"
    script.write_text(COUNT)
    command = [*LAUNCH, "--layersync_status_dir", str(tmp_path / "run"), "--", sys.executable, str(script)]
    with subprocess.Popen([*command, str(tmp_path), "first"], stderr=subprocess.DEVNULL) as process:
        for name in ("first", "second", "third"):
            wait_for((tmp_path / f"{name}-pid").exists)
        wait_for(lambda: (found := read_process(tmp_path / "run")) and len(found.pids) == 2)
        time.sleep(0.2)
        yield process
        with suppress(LayerSyncError):
            kill_run(tmp_path / "run")


def forge(folder: Path, pid: int, **more: Any) -> None:
    """Write the record that a hostile folder might have: all true but whose process it is."""
    folder.mkdir(exist_ok=True)
    record = ProcessRecord(folder, "train")
    record.begin(beat=False, pid=pid)
    content = json.loads((folder / PROCESS_FILE).read_text())
    (folder / PROCESS_FILE).write_text(json.dumps(content | more))


def test_a_training_of_a_terminal_is_interrupted(training: subprocess.Popen[str], tmp_path: Path) -> None:
    interrupt_run(tmp_path / "run")
    training.wait(10)
    found = read_process(tmp_path / "run")
    assert found is not None
    assert (found.state, found.code) == ("stopped", 130)


def test_a_training_of_a_terminal_is_killed(training: subprocess.Popen[str], tmp_path: Path) -> None:
    kill_run(tmp_path / "run")
    assert training.wait(10) == -9


def test_below_layersync_run_all_of_the_group_are_interrupted_once(
    launched: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    interrupt_run(tmp_path / "run")
    time.sleep(2)
    for name in ("first", "second"):
        assert (tmp_path / f"{name}-interrupts").read_text() == "x"
    assert not (tmp_path / "third-interrupts").exists()
    assert launched.poll() is None


def test_below_layersync_run_all_are_killed(launched: subprocess.Popen[bytes], tmp_path: Path) -> None:
    pids = [int((tmp_path / f"{name}-pid").read_text()) for name in ("first", "second", "third")]
    assert all(alive(pid) for pid in pids)
    kill_run(tmp_path / "run")
    assert launched.wait(10) != 0
    wait_for(lambda: not any(alive(pid) for pid in pids), 5)


def test_what_a_killed_layersync_run_left_is_killed(launched: subprocess.Popen[bytes], tmp_path: Path) -> None:
    launched.kill()
    launched.wait()
    pids = [int((tmp_path / f"{name}-pid").read_text()) for name in ("first", "second", "third")]
    assert all(alive(pid) for pid in pids)
    kill_run(tmp_path / "run")
    wait_for(lambda: not any(alive(pid) for pid in pids), 5)


@pytest.mark.parametrize("act", [interrupt_run, kill_run])
def test_a_forged_record_moves_nobody(training: subprocess.Popen[str], tmp_path: Path, act: Any) -> None:
    # A process of this user that isn't a run, the system's first, this one and its parent, and another run's.
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        for pid in (other.pid, 1, os.getpid(), os.getppid(), training.pid):
            forge(tmp_path / "hostile", pid)
            with pytest.raises(LayerSyncError, match="was not signalled"):
                act(tmp_path / "hostile")
        time.sleep(0.2)
        assert other.poll() is None
        assert training.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("act", [interrupt_run, kill_run])
def test_a_process_that_reads_the_folder_is_not_its_run(tmp_path: Path, act: Any) -> None:
    code = f"import os, time; os.open({str(tmp_path)!r}, os.O_RDONLY); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        forge(tmp_path, reader.pid)
        with pytest.raises(LayerSyncError, match="was not signalled"):
            act(tmp_path)
        reader.kill()


@pytest.mark.parametrize("act", [interrupt_run, kill_run])
def test_another_process_with_the_same_id_and_another_host_are_left_alone(
    training: subprocess.Popen[str], tmp_path: Path, act: Any
) -> None:
    content = json.loads((tmp_path / "run" / PROCESS_FILE).read_text())
    started = content["processes"][0]["started"]
    for change, said in (
        ({"processes": [{"pid": training.pid, "started": started + 1}]}, "is not running any more"),
        ({"host": "elsewhere"}, "where it was started, on elsewhere"),
        ({"boot": "another"}, "where it was started"),
        ({"code": 0}, "is not running any more"),
    ):
        (tmp_path / "run" / PROCESS_FILE).write_text(json.dumps(content | change))
        with pytest.raises(LayerSyncError, match=said):
            act(tmp_path / "run")
    assert training.poll() is None


def test_an_environment_shows_whose_process_it_is(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"],
        env={**os.environ, RUN_FOLDER: str(tmp_path / "one")},
    ) as process:
        forge(tmp_path / "two", process.pid)
        with pytest.raises(LayerSyncError, match="was not signalled"):
            kill_run(tmp_path / "two")
        forge(tmp_path / "one", process.pid)
        wait_for(lambda: b"sleep" in Path(f"/proc/{process.pid}/cmdline").read_bytes())
        kill_run(tmp_path / "one")
        assert process.wait(10) == -9


def test_a_system_without_handles_of_processes(
    training: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    kill_run(tmp_path / "run")
    assert training.wait(10) == -9
