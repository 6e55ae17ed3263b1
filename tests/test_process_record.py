"""What a run says of its own process, and what follows: above all of one that could say nothing any more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layersync_core import (
    PROCESS_FILE,
    ConfigError,
    ProcessRecord,
    ProcessState,
    note_end,
    process_record,
    read_process,
)

HOLD = """
import sys, time
from pathlib import Path
from layersync_core import ProcessRecord
with ProcessRecord(Path(sys.argv[1]), "train", 7) as record:
    record.begin()
    print("begun", flush=True)
    time.sleep(60)
"""


def state(folder: Path) -> ProcessState:
    found = read_process(folder)
    assert found is not None
    return found


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield process
        process.kill()


def change(folder: Path, **values: Any) -> None:
    content = json.loads((folder / PROCESS_FILE).read_text())
    (folder / PROCESS_FILE).write_text(json.dumps(content | values))


def test_a_process_that_lives_is_running(running: subprocess.Popen[str], tmp_path: Path) -> None:
    found = state(tmp_path)
    assert (found.state, found.kind, found.total_steps, found.code) == ("running", "train", 7, None)
    assert (found.here, found.pids) == (True, (running.pid,))
    assert abs(found.since - time.time()) < 30
    assert (tmp_path / PROCESS_FILE).stat().st_mode & 0o777 == 0o600


def test_kill_9_is_seen_at_once_even_before_it_is_reaped(running: subprocess.Popen[str], tmp_path: Path) -> None:
    running.kill()
    os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
    assert state(tmp_path).state == "vanished"
    running.wait()
    assert state(tmp_path).state == "vanished"
    assert state(tmp_path).code is None


def test_another_process_with_the_same_id_is_not_the_run(running: subprocess.Popen[str], tmp_path: Path) -> None:
    started = json.loads((tmp_path / PROCESS_FILE).read_text())["processes"][0]["started"]
    change(tmp_path, processes=[{"pid": running.pid, "started": started + 1}])
    assert state(tmp_path).state == "vanished"


@pytest.mark.parametrize("key", ["host", "boot", "namespace"])
def test_elsewhere_the_heartbeat_decides(running: subprocess.Popen[str], tmp_path: Path, key: str) -> None:
    change(tmp_path, **{key: "another"})
    assert (state(tmp_path).state, state(tmp_path).here) == ("running", False)
    running.kill()
    assert state(tmp_path).state == "running", "nobody here can know"
    old = time.time() - process_record.SILENCE - 1
    os.utime(tmp_path / PROCESS_FILE, (old, old))
    assert (state(tmp_path).state, state(tmp_path).until) == ("vanished", pytest.approx(old))


def test_a_run_goes_on_while_one_of_its_processes_lives(running: subprocess.Popen[str], tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        record = ProcessRecord(tmp_path, "run")
        record.begin(beat=False)
        record.add(other.pid)
        gone = json.loads((tmp_path / PROCESS_FILE).read_text())["processes"]
        gone[0]["started"] -= 1  # its parent was killed
        change(tmp_path, processes=gone)
        assert state(tmp_path).state == "running"
        other.kill()
    assert state(tmp_path).state == "vanished"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (0, "finished"),
        (1, "failed"),
        (2, "failed"),
        (130, "stopped"),
        (143, "stopped"),
        (-signal.SIGINT, "stopped"),
        (-signal.SIGTERM, "stopped"),
        (-signal.SIGKILL, "killed"),
        (137, "killed"),
        (-signal.SIGSEGV, "killed"),
    ],
)
def test_an_exit_code_says_how_it_ended(tmp_path: Path, code: int, said: str) -> None:
    record = ProcessRecord(tmp_path, "run")
    record.begin()
    record.end(code)
    record.end(0)
    assert (state(tmp_path).state, state(tmp_path).code) == (said, code)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (SystemExit(143), 143),
        (SystemExit(), 0),
        (SystemExit("so"), 1),
        (ConfigError("so"), 2),
        (RuntimeError("so"), 1),
    ],
)
def test_an_error_is_an_exit_code(tmp_path: Path, error: BaseException, code: int) -> None:
    record = ProcessRecord(tmp_path, "train")
    record.begin()
    with pytest.raises(type(error)), record:
        raise error
    assert state(tmp_path).code == code


def test_a_run_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    with ProcessRecord(tmp_path, "train"):
        pass
    assert not list(tmp_path.iterdir())
    assert read_process(tmp_path) is None


def test_it_is_touched_while_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_record, "BEAT", 0.02)
    with ProcessRecord(tmp_path, "train") as record:
        record.begin()
        os.utime(tmp_path / PROCESS_FILE, (1, 1))
        deadline = time.monotonic() + 10
        while (tmp_path / PROCESS_FILE).stat().st_mtime == 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_the_end_of_a_forked_copy_is_not_the_runs(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from layersync_core import ProcessRecord, read_process
with ProcessRecord(Path(sys.argv[1]), "run") as record:
    record.begin()
    if not os.fork():
        sys.exit(7)
    os.wait()
    print(read_process(Path(sys.argv[1])).state)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "running\n"
    assert state(tmp_path).state == "finished"


def test_what_cannot_be_written_ends_no_training(tmp_path: Path) -> None:
    with ProcessRecord(tmp_path / "gone", "train") as record:
        record.begin()
        record.touch()
    assert read_process(tmp_path / "gone") is None


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_times_are_numbers(tmp_path: Path, value: str) -> None:
    with ProcessRecord(tmp_path, "train") as record:
        record.begin()
    text = (tmp_path / PROCESS_FILE).read_text()
    since = json.loads(text)["since"]
    (tmp_path / PROCESS_FILE).write_text(text.replace(f'"since":{since}', f'"since":{value}'))
    assert read_process(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": 1}', "\0" * 100_000, '{"pid": -1}'])
def test_a_file_that_is_no_record_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / PROCESS_FILE).write_text(text)
    assert read_process(tmp_path) is None


def test_links_and_pipes_are_not_read(tmp_path: Path) -> None:
    with ProcessRecord(tmp_path, "train") as record:
        record.begin()
    (other := tmp_path / "other").mkdir()
    (other / PROCESS_FILE).symlink_to(tmp_path / PROCESS_FILE)
    assert read_process(other) is None
    (other / PROCESS_FILE).unlink()
    os.mkfifo(other / PROCESS_FILE)
    assert read_process(other) is None


def test_keys_of_a_later_version_are_passed_over(running: subprocess.Popen[str], tmp_path: Path) -> None:
    change(tmp_path, version=2, more="of it")
    assert state(tmp_path).state == "running"


def test_who_started_a_process_says_how_it_ended_where_it_could_not(tmp_path: Path) -> None:
    code = "import time; print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        ProcessRecord(tmp_path, "train", 9).begin(beat=False, pid=process.pid)
        assert (state(tmp_path).state, state(tmp_path).pids) == ("running", (process.pid,))
        assert state(tmp_path).starts[0] is not None
        note_end(tmp_path, 3)
        assert state(tmp_path).state == "running", "it lives"
        process.kill()
        process.wait()
    note_end(tmp_path, -9)
    assert (state(tmp_path).state, state(tmp_path).code, state(tmp_path).total_steps) == ("killed", -9, 9)
    note_end(tmp_path, 0)
    assert state(tmp_path).code == -9, "that was said already"


def test_nothing_is_noted_where_there_is_no_record(tmp_path: Path) -> None:
    note_end(tmp_path, 0)
    assert not list(tmp_path.iterdir())
