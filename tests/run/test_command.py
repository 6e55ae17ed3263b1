"""What the command gets, how it ends, and what comes back of that."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layersync_core import read_process
from layersync_core.cli import main
from layersync_core.run.startup.sitecustomize import REACHED
from layersync_core.run.status import HOOK, UNREACHED
from layersync_core.run.status import SETTINGS as SETTINGS_FILE
from tests.run.processes import FLAGS, LAYERSYNC, RUN, SCRIPTS, Script, python, run

REPORT = """
import json, os, signal, sys
json.dump({
    "arguments": sys.argv[1:],
    "variable": os.environ["A_VARIABLE"],
    "folder": os.getcwd(),
    "input": sys.stdin.read(),
    "path": sys.path,
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
}, sys.stdout)
print("and to the other", file=sys.stderr)
sys.exit(3)
"""
ARGUMENTS = ["with space", "", "--", "-m", "--layersync_lambda", "7", "été ☃", 'quo"te', "$HOME", "a\nb", "*"]


@pytest.mark.slow
@pytest.mark.parametrize("separator", [["--"], []])
def test_the_command_is_started_as_without_us(script: Script, tmp_path: Path, separator: list[str]) -> None:
    words = python(script(REPORT), *ARGUMENTS)
    more: dict[str, Any] = {"env": {"A_VARIABLE": "été = $x"}, "cwd": tmp_path, "input": "from a pipe"}
    plain = run(words, 3, **more)
    ours = run([LAYERSYNC, "run", *FLAGS, *separator, *words], 3, **more)
    assert json.loads(plain.stdout)["arguments"] == ARGUMENTS
    assert ours.stdout == plain.stdout
    assert ours.stderr == plain.stderr


@pytest.mark.slow
def test_a_script_alone_is_short_for_python(script: Script, tmp_path: Path) -> None:
    script("import sys; print(sys.prefix, sys.argv); sys.exit(4)")
    assert run([*RUN, "script.py", "x"], 4, cwd=tmp_path).stdout == f"{sys.prefix} ['script.py', 'x']\n"


@pytest.mark.slow
def test_switched_off_it_leaves_no_trace(script: Script) -> None:
    text = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ), sys.path])); os._exit(5)"
    words = python(script(text), *ARGUMENTS)
    flags = ["--layersync_enabled", "false", "--layersync_student_block", "2"]
    for variables in ({}, {"LAYERSYNC_RUN": "of another run", "PYTHONPATH": f"{SCRIPTS}:/elsewhere"}):
        plain, ours = run(words, 5, env=variables), run([LAYERSYNC, "run", *flags, "--", *words], 5, env=variables)
        assert ours.stdout == plain.stdout
        assert ours.stderr == plain.stderr == ""


@pytest.mark.parametrize(
    ("command", "said"),
    [([], "no command to start"), (["--"], "no command to start"), (["--", "no-such-command"], "no-such-command")],
)
def test_there_must_be_a_command(command: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *FLAGS, *command]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1


@pytest.fixture
def started(tmp_path: Path) -> Callable[..., int]:
    """Run a command of the shell that leaves behind in the status folder what a training would, and return the code."""

    def start(command: str, *flags: str, status: Any = None) -> int:
        if status is not None:
            (tmp_path / "status.json").write_text(json.dumps(status))
            command = f'cp {tmp_path}/status.json "$(dirname "${REACHED}")/layersync_status_1.json"; {command}'
        return main(["run", *FLAGS, *flags, "--", "sh", "-c", command])

    return start


HOOKED = f'touch "${REACHED}"'


@pytest.mark.parametrize(
    ("status", "command", "code", "said"),
    [
        ({"terms": 2, "steps": 2}, "exit 0", 0, "layersync: 2 steps with the term, 1 rank"),
        ({"terms": 2, "steps": 2}, "exit 3", 3, "layersync: 2 steps with the term, 1 rank"),
        ({"over": True}, "exit 0", 0, "layersync: the schedule was over before the first step, so no term was added"),
        ({"terms": 2, "error": "stopped"}, "exit 0", 2, "error: stopped"),
        ({"terms": 2, "error": "stopped"}, "exit 3", 2, "error: stopped"),
        ({}, f"{HOOKED}; exit 0", 2, "error: no process of this command trained a model with LayerSync; model classes"),
        ({}, f"{HOOKED}; exit 3", 3, ""),
        (None, HOOKED, 2, "error: no process of this command imported torch, so nothing was trained"),
        (None, "exit 0", 2, f"error: {UNREACHED}"),
    ],
)
@pytest.mark.parametrize("asked", [True, False])
def test_what_a_command_left_behind_is_reported(
    started: Callable[..., int],
    status: Any,
    command: str,
    code: int,
    said: str,
    asked: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--layersync_status_dir", str(tmp_path / "new" / "status")] if asked else []
    assert started(command, *flags, status=status) == code
    assert capsys.readouterr().err.startswith(said)


def test_a_command_may_take_longer_than_one_wait_for_it(started: Callable[..., int]) -> None:
    assert started("sleep 1.2", status={"terms": 2}) == 0


def test_what_an_earlier_run_left_behind_does_not_count(
    started: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder := tmp_path / "status").mkdir()
    (folder / "layersync_status_7.json").write_text(json.dumps({"terms": 2}))
    for name in (HOOK, SETTINGS_FILE, "mine.json"):
        (folder / name).write_text("")
    assert started("exit 0", "--layersync_status_dir", str(folder)) == 2
    assert UNREACHED in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["layersync_process.json", "mine.json"]


def test_a_status_folder_that_cannot_be_made(
    started: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "status"
    assert started(f"touch {tmp_path}/started", "--layersync_status_dir", str(folder)) == 2
    assert capsys.readouterr().err == f"error: layersync_status_dir {folder}: Not a directory\n"
    assert not (tmp_path / "started").exists()


def test_a_temporary_status_folder_stays_if_metrics_are_in_it(
    started: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert started("exit 0", status={"terms": 2}) == 0
    assert not list(folder.iterdir())
    assert started(f'touch "$(dirname "${REACHED}")/layersync_metrics.jsonl"', status={"terms": 2}) == 0
    assert len(list(folder.glob("*/*.jsonl"))) == 1


WAIT = "import time; print('ready', flush=True); time.sleep(60)"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_it_dies_by_the_signal_that_ended_the_command(
    start: Callable[..., subprocess.Popen[str]], script: Script, number: signal.Signals
) -> None:
    if number == signal.SIGKILL:  # sent only to the child, since it cannot be passed on
        text = "import os; print('ready', flush=True); os.kill(os.getpid(), 9)"
        process = start([*RUN, *python(script(text))])
    else:
        process = start([*RUN, *python(script(WAIT))])
        process.send_signal(number)
    process.communicate(timeout=240)
    assert process.returncode == -number


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_may_handle_a_signal(
    start: Callable[..., subprocess.Popen[str]], script: Script, number: signal.Signals
) -> None:
    text = f"import signal, sys\nsignal.signal({int(number)}, lambda *_: sys.exit(7))\n{WAIT}"
    process = start([*RUN, *python(script(text))])
    process.send_signal(number)
    process.communicate(timeout=240)
    assert process.returncode == 7


COUNT = """
import signal, sys, time
received = []
signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
print("ready", flush=True)
while not received:
    time.sleep(0.05)
time.sleep(1)
print(len(received), flush=True)
sys.exit(9)
"""


@pytest.mark.slow
def test_a_terminals_interrupt_arrives_once(start: Callable[..., subprocess.Popen[str]], script: Script) -> None:
    terminal, ours = os.openpty()
    try:
        process = start(
            [*RUN, *python(script(COUNT))], stdin=ours, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        )
        os.write(terminal, b"\x03")  # Ctrl-C: the kernel signals every process of the terminal's group
        out, err = process.communicate(timeout=240)
    finally:
        os.close(terminal)
        os.close(ours)
    assert out == "1\n", err
    assert process.returncode == 9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "code", "said"),
    [
        ("raise SystemExit('a reason')", 1, "a reason\n"),
        ("sys.exit(3)", 3, ""),
        ("os._exit(200)", 200, ""),
        ("os.abort()", -signal.SIGABRT, ""),
    ],
)
def test_exit_codes_are_passed_on(script: Script, statement: str, code: int, said: str) -> None:
    done = run([*RUN, *python(script(f"import os, sys\nprint('out', flush=True)\n{statement}"))], code)
    assert (done.stdout, done.stderr) == ("out\n", said)


def test_a_block_that_is_its_own_teacher_is_told_of_in_the_last_line(script: Script) -> None:
    program = script("from tiny_dit import build, train\ntrain(build())\n")
    alone = [LAYERSYNC, "run", "--layersync_enabled", "true", "--layersync_student_block", "2", "--"]
    *_, last = run([*alone, *python(program)]).stderr.splitlines()
    assert "3 steps with the term" in last
    assert "; block 2 of 6 (blocks.1) is its own teacher, so LayerSync's term had no gradient" in last


@pytest.mark.parametrize(
    ("command", "code", "state"),
    [("exit 0", 0, "finished"), ("exit 3", 3, "failed"), ("exit 130", 130, "stopped")],
)
def test_the_status_folder_says_how_the_command_ended(
    started: Callable[..., int], tmp_path: Path, command: str, code: int, state: str
) -> None:
    assert started(command, "--layersync_status_dir", str(tmp_path / "status"), status={"terms": 2}) == code
    found = read_process(tmp_path / "status")
    assert found is not None
    assert (found.state, found.code, found.kind, len(found.pids)) == (state, code, "run", 2)


def test_a_command_that_trained_nothing_failed(started: Callable[..., int], tmp_path: Path) -> None:
    assert started("exit 0", "--layersync_status_dir", str(tmp_path / "status")) == 2
    found = read_process(tmp_path / "status")
    assert found is not None
    assert (found.state, found.code) == ("failed", 2)
