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

from layersync_core.cli import main
from tests.run.processes import FLAGS, LAYERSYNC, RUN, SCRIPTS, Script, python, run

pytestmark = pytest.mark.slow

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


@pytest.mark.parametrize("separator", [["--"], []])
def test_the_command_is_started_as_without_us(script: Script, tmp_path: Path, separator: list[str]) -> None:
    words = python(script(REPORT), *ARGUMENTS)
    more: dict[str, Any] = {"env": {"A_VARIABLE": "été = $x"}, "cwd": tmp_path, "input": "from a pipe"}
    plain = run(words, 3, **more)
    ours = run([LAYERSYNC, "run", *FLAGS, *separator, *words], 3, **more)
    assert json.loads(plain.stdout)["arguments"] == ARGUMENTS
    assert ours.stdout == plain.stdout
    assert ours.stderr == plain.stderr


def test_a_script_alone_is_short_for_python(script: Script, tmp_path: Path) -> None:
    script("import sys; print(sys.prefix, sys.argv); sys.exit(4)")
    assert run([*RUN, "script.py", "x"], 4, cwd=tmp_path).stdout == f"{sys.prefix} ['script.py', 'x']\n"


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


WAIT = "import time; print('ready', flush=True); time.sleep(60)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_it_dies_by_the_signal_that_ended_the_command(
    start: Callable[..., subprocess.Popen[str]], script: Script, number: signal.Signals
) -> None:
    if number == signal.SIGKILL:  # the child's alone: nobody can pass it on
        text = "import os; print('ready', flush=True); os.kill(os.getpid(), 9)"
        process = start([*RUN, *python(script(text))])
    else:
        process = start([*RUN, *python(script(WAIT))])
        process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == -number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_may_handle_a_signal(
    start: Callable[..., subprocess.Popen[str]], script: Script, number: signal.Signals
) -> None:
    text = f"import signal, sys\nsignal.signal({int(number)}, lambda *_: sys.exit(7))\n{WAIT}"
    process = start([*RUN, *python(script(text))])
    process.send_signal(number)
    process.communicate(timeout=60)
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


def test_a_terminals_interrupt_arrives_once(start: Callable[..., subprocess.Popen[str]], script: Script) -> None:
    terminal, ours = os.openpty()
    try:
        process = start(
            [*RUN, *python(script(COUNT))], stdin=ours, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        )
        os.write(terminal, b"\x03")  # Ctrl-C: the kernel signals every process of the terminal's group
        out, err = process.communicate(timeout=60)
    finally:
        os.close(terminal)
        os.close(ours)
    assert out == "1\n", err
    assert process.returncode == 9


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
