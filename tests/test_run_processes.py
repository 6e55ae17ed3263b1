"""``layersync run`` as a process: what it starts, how that ends, and several ranks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from layersync_core import attach
from layersync_core.cli import main
from layersync_core.run.settings import STARTUP
from tests.curves import read_curves
from tests.scripts import tiny_dit

SCRIPTS = Path(__file__).parent / "scripts"
LAYERSYNC = str(Path(sys.executable).with_name("layersync"))
SETTINGS = {
    "layersync_enabled": True,
    "layersync_student_block": 2,
    "layersync_teacher_block": 4,
    "layersync_lambda": 0.5,
}
FLAGS = [part for key, value in SETTINGS.items() for part in (f"--{key}", str(value).lower())]
RUN = [LAYERSYNC, "run", *FLAGS, "--"]
IN_PROCESS = [sys.executable, "-m", "layersync_core", "run", *FLAGS]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(SCRIPTS)}
SUMMARY = "with the term, 1 rank, similarity"

Done = subprocess.CompletedProcess[str]
Script = Callable[..., str]

pytestmark = pytest.mark.slow


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Write a script and return its path."""

    def write(text: str, name: str = "script.py") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def run(words: Sequence[str], code: int | None = 0, **options: Any) -> Done:
    """Run a command to its end, and check its exit code."""
    environment = {**ENVIRONMENT, **options.pop("env", {})}
    if "input" not in options:
        options["stdin"] = subprocess.DEVNULL
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=240, check=False, **options)
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


def python(path: str, *arguments: str) -> list[str]:
    return [sys.executable, path, *arguments]


def without_ours(text: str) -> str:
    """Return standard error without the lines that say they are layersync's."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("layersync: "))


# What the command gets, and what comes back.

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


MISTAKES = {
    "no settings": ([], "no settings are given"),
    "no student": (["--layersync_enabled", "true"], "layersync_student_block"),
    "unknown flag": ([*FLAGS, "--layersync_lamda", "2"], "--layersync_lamda"),
    "weight of zero": ([*FLAGS[:4], "--layersync_lambda", "0"], "layersync_lambda"),
    "switch left out": (["--layersync_student_block", "2"], "layersync_enabled"),
    "target without the switch": (["--layersync_target", "DiT"], "layersync_enabled"),
    "accumulation of zero": ([*FLAGS, "--layersync_accumulation_steps", "0"], "layersync_accumulation_steps"),
    "missing file": (["--config", "missing.json"], "missing.json"),
    "unknown key": (["--config", "unknown.json"], "did you mean layersync_lambda"),
    "invalid JSON": (["--config", "invalid.json"], "invalid.json"),
    "no mapping": (["--config", "list.json"], "list.json"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_settings_starts_nothing(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, said = MISTAKES[mistake]
    (tmp_path / "unknown.json").write_text(json.dumps({**SETTINGS, "layersync_lamda": 2}))
    (tmp_path / "invalid.json").write_text('{"layersync_enabled": true,')
    (tmp_path / "list.json").write_text("[1]")
    monkeypatch.chdir(tmp_path)
    assert main(["run", *flags, "--", "touch", "started"]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    ("command", "said"),
    [([], "no command to start"), (["--"], "no command to start"), (["--", "no-such-command"], "no-such-command")],
)
def test_there_must_be_a_command(command: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *FLAGS, *command]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1


# Start-up of every Python below the command.


def test_a_python_that_trains_nothing_imports_nothing_for_us() -> None:
    words = [sys.executable, "-c", "import sys; print(*sorted(sys.modules)); sys.exit(3)"]
    plain, ours = (set(run([*start, *words], 3).stdout.split()) for start in ([], RUN))
    assert ours - plain <= {"sitecustomize", "__future__"}
    assert not plain - ours


SITE = "import sys, os; sys.of_the_user = [__name__, __file__, os.environ.get('A_VARIABLE')]\n"
PROBE = """
import sys
print(getattr(sys, "of_the_user", None), getattr(sys.modules.get("sitecustomize"), "__file__", None), sys.path)
sys.exit(3)
"""


@pytest.mark.parametrize(
    "more",
    [
        "",
        "import a_module_that_is_missing",
        "raise ImportError('of something else')",
        "raise ValueError('of the user')",
    ],
)
def test_the_users_sitecustomize_runs_as_without_us(script: Script, tmp_path: Path, more: str) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE + more)
    variables = {"PYTHONPATH": f"{tmp_path / 'site'}:/elsewhere", "A_VARIABLE": "x"}
    words = python(script(PROBE))
    plain, ours = run(words, 3, env=variables), run([*RUN, *words], 3, env=variables)
    assert ours.stdout == plain.stdout
    assert ours.stderr == 2 * plain.stderr  # the command layersync is a Python as well
    assert f"['sitecustomize', '{tmp_path / 'site' / 'sitecustomize.py'}', 'x']" in ours.stdout


@pytest.mark.parametrize("path", ["", ":", "relative:", "/elsewhere::relative"])
def test_the_path_is_as_without_us(path: str, tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import sys; print(sys.path); sys.exit(3)"]
    plain, ours = (run([*start, *words], 3, env={"PYTHONPATH": path}, cwd=tmp_path) for start in ([], RUN))
    assert ours.stdout == plain.stdout


def test_processes_of_processes_are_reached(script: Script) -> None:
    # A shell, and in it a Python that starts another one with an environment of its own making.
    text = "import os, subprocess, sys; subprocess.run([sys.executable, 'inner.py'], env=dict(os.environ), check=True)"
    inner = script("import tiny_dit; tiny_dit.train(tiny_dit.build())", "inner.py")
    outer = script(text)
    command = f"cd {shlex.quote(str(Path(inner).parent))} && {sys.executable} {shlex.quote(outer)}"
    assert f"3 steps {SUMMARY}" in run([*RUN, "sh", "-c", command]).stderr


# How the command ends.


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command and return when its program says that it is ready; it is killed when the test ends."""
    started: list[subprocess.Popen[str]] = []

    def begin(words: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            words,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


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


TRAIN_ON = """
import signal, sys, tiny_dit
signal.signal(signal.SIGINT, lambda number, frame: sys.exit())
model = tiny_dit.build()
tiny_dit.train(model)
print("ready", flush=True)
while True:
    tiny_dit.train(model)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_run_cut_short_is_summed_up(
    start: Callable[..., subprocess.Popen[str]], script: Script, number: signal.Signals, code: int
) -> None:
    process = start([*RUN, *python(script(TRAIN_ON))])
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert SUMMARY in err
    assert process.returncode == code


RAISE = """
import torch, tiny_dit

def outer():
    try:
        tiny_dit.train(tiny_dit.build())
        1 / 0
    except ZeroDivisionError as error:
        raise ValueError("in the script: été") from error

outer()
"""


def test_an_error_of_the_script_is_shown_as_without_us(script: Script) -> None:
    words = python(script(RAISE))
    plain, ours = run(words, 1), run([*RUN, *words], 1)
    assert without_ours(ours.stderr) == plain.stderr
    assert plain.stderr.startswith("Traceback")
    assert plain.stderr.endswith("ValueError: in the script: été\n")


RAISE_INSIDE = """
import traceback, torch, tiny_dit

def fail(*_):
    raise RuntimeError("of the program")

model = tiny_dit.build()
tiny_dit.train(model)
optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
for call in (
    lambda: model(torch.ones(1, 2, 8, 8), torch.ones(1)),
    lambda: tiny_dit.DiT(depth=None),
):
    try:
        call()
    except Exception:
        print(traceback.format_exc())
"""


def test_errors_inside_torch_show_nothing_of_ours(script: Script) -> None:
    done = run([*RUN, *python(script(RAISE_INSIDE))])
    assert done.stdout.count("Traceback") == 2
    assert "layersync_core" not in done.stdout


# In a call of ours that the program waits for, its errors pass through a frame of ours, which is not shown.
RAISE_IN_CALL = """
import torch, tiny_dit

def fail(*_):
    raise RuntimeError("of the program")

tiny_dit.train(tiny_dit.build())
parameter = torch.ones(1, requires_grad=True)
"""
CALLS = {
    "backward": "parameter.register_hook(fail); parameter.sum().backward()",
    "closure": "torch.optim.SGD([parameter], lr=0.1).step(fail)",
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_error_in_a_call_of_ours_is_shown_as_without_us(script: Script, call: str) -> None:
    words = python(script(RAISE_IN_CALL + call))
    plain, ours = run(words, 1), run([*RUN, *words], 1)
    assert without_ours(ours.stderr) == plain.stderr


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


def test_a_program_that_leaves_without_clearing_up_is_summed_up(script: Script) -> None:
    done = run([*RUN, *python(script("import os, tiny_dit; tiny_dit.train(tiny_dit.build(), 5); os._exit(0)"))])
    assert SUMMARY in done.stderr


def test_a_folder_for_status_files_loses_nothing_of_the_users(script: Script, tmp_path: Path) -> None:
    path = script("import tiny_dit; tiny_dit.train(tiny_dit.build(), 5)")
    (tmp_path / "layersync.json").write_text(json.dumps(SETTINGS))
    for name in ("1.json", "hook", "metrics.jsonl"):
        (tmp_path / name).write_text("mine")
    words = [LAYERSYNC, "run", *FLAGS, "--layersync_status_dir", ".", *python(path)]
    for _ in range(2):
        assert f"5 steps {SUMMARY}" in run(words, cwd=tmp_path).stderr
    assert json.loads((tmp_path / "layersync.json").read_text()) == SETTINGS
    assert all((tmp_path / name).read_text() == "mine" for name in ("1.json", "hook", "metrics.jsonl"))
    assert len((tmp_path / "layersync_metrics.jsonl").read_text().splitlines()) == 10


NOTHING = {
    "no Python": (["true"], "no Python of this command read the start-up hook"),
    "isolated": ([sys.executable, "-I", "-c", "pass"], "python -I"),
    "no torch": ([sys.executable, "-c", "pass"], "no process of this command imported torch"),
    "no training": (
        [sys.executable, "-c", "import tiny_dit; tiny_dit.build()(*tiny_dit.batch())"],
        "no process of this command trained a model with LayerSync; model classes seen: DiT",
    ),
}


@pytest.mark.parametrize("case", NOTHING)
def test_a_command_that_trains_nothing_fails(case: str) -> None:
    words, said = NOTHING[case]
    done = run([*RUN, *words], 2)
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "first",
    ["from layersync_core import attach", "import layersync_core.capture.hooks", "import layersync_core.testing"],
)
@pytest.mark.parametrize("start", [RUN, IN_PROCESS], ids=["run", "in process"])
def test_a_program_may_import_layersync_before_torch(script: Script, start: list[str], first: str) -> None:
    words = python(script(f"{first}\nimport tiny_dit\ntiny_dit.train(tiny_dit.build())"))
    assert SUMMARY in run([*start, *(words if start is RUN else words[1:])]).stderr


LATE_WRITER = """
import sys
import tiny_dit
model = tiny_dit.build()
tiny_dit.train(model)
from torch.utils.tensorboard import SummaryWriter
with SummaryWriter(sys.argv[1]) as writer:
    writer.add_scalar("loss", 1.0, 1)
"""


def test_a_writer_that_is_imported_after_the_first_step_gets_its_metrics(script: Script, tmp_path: Path) -> None:
    run([*RUN, *python(script(LATE_WRITER), str(tmp_path))])
    assert [step for step, _ in read_curves(tmp_path)["layersync_loss"]] == [1]


STRANGE = """
import tiny_dit
class OfMyOwn(tiny_dit.DiT):
    pass
OfMyOwn.__mro__[1].__name__ = "Base"
model = OfMyOwn()
before = [parameter.clone() for parameter in model.parameters()]
try:
    tiny_dit.train(model)
finally:
    print(all(map(lambda a, b: (a == b).all(), before, model.parameters())))
"""


def test_lightnings_own_loop_is_trained_and_logged(tmp_path: Path) -> None:
    done = run([*RUN, *python(str(SCRIPTS / "train_with_lightning.py"), str(tmp_path))], cwd=tmp_path)
    assert "accumulation read from the loss: 1/2" in done.stderr
    assert f"3 steps {SUMMARY}" in done.stderr
    assert "logged to tensorboard" in done.stderr
    curves = read_curves(tmp_path)
    assert {"loss", "layersync_loss", "layersync_similarity"} <= curves.keys()
    assert len(curves["layersync_similarity"]) == 3
    assert [loss for _, loss in curves["layersync_loss"]] == pytest.approx(
        [-0.5 * value for _, value in curves["layersync_similarity"]]
    )


def test_a_model_of_no_known_family_is_named(script: Script) -> None:
    done = run([*RUN, *python(script(STRANGE))], 2)
    assert "no model of a known family was built; models of this program: OfMyOwn" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == "True\n"  # it stopped before the first step


WORKERS = """
import torch, tiny_dit

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, index):
        x, t = tiny_dit.batch(1, seed=index)
        return x[0], t[0]

if __name__ == "__main__":
    loader = torch.utils.data.DataLoader(Images(), 2, num_workers=2, multiprocessing_context="spawn")
    model = tiny_dit.build()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    for x, t in loader:
        optimiser.zero_grad()
        tiny_dit.loss_of(model, x, t).backward()
        optimiser.step()
        print(x.double().sum().item())
"""


def test_spawned_workers_of_a_data_loader_are_undisturbed(script: Script) -> None:
    done = run([*RUN, *python(script(WORKERS))])
    batches = [tiny_dit.batch(1, seed=index)[0].double().sum().item() for index in range(6)]
    assert [float(line) for line in done.stdout.split()] == pytest.approx(
        [sum(batches[:2]), sum(batches[2:4]), sum(batches[4:])]
    )
    assert f"3 steps {SUMMARY}" in done.stderr
    assert without_ours(done.stderr) == ""


# Inside a launcher's process: python -m layersync_core run SCRIPT.

MAIN = """
import builtins, json, multiprocessing, pickle, sys

class Own:
    value: int = 5

def double(number):
    return 2 * number

if __name__ == "__main__":
    copy = pickle.loads(pickle.dumps(Own()))
    doubled = None
    if not (__spec__ and __spec__.name.endswith("__main__")):  # a package's is not read by spawned processes
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            doubled = pool.map(double, [1, 2])
    json.dump({
        "class": [type(copy) is Own, Own.__module__, Own.__annotations__ == {"value": int}],
        "spawned": doubled,
        "main": vars(sys.modules["__main__"]) is globals(),
        "own": {name: globals()[name] for name in ("__name__", "__file__", "__doc__", "__package__")},
        "loader": type(__loader__).__name__,
        "spec": getattr(__spec__, "name", None),
        "builtins": __builtins__ is builtins,
        "arguments": sys.argv,
        "path": sys.path,
    }, sys.stdout)
    sys.exit(3)
"""


@pytest.mark.parametrize("path", ["script.py", "./folder/../script.py", "{}/script.py", "link.py"])
def test_a_script_runs_as_python_runs_it(script: Script, tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.py").symlink_to(tmp_path / "elsewhere.py")
    script(MAIN)
    script(MAIN, "elsewhere.py")
    words = [path.format(tmp_path), "--flag", "a b"]
    plain, ours = (run([*start, *words], 3, cwd=tmp_path) for start in ([sys.executable], IN_PROCESS))
    assert json.loads(ours.stdout) == json.loads(plain.stdout)
    assert ours.stderr == plain.stderr


@pytest.mark.parametrize("module", ["package.module", "package", "single"])
def test_a_module_runs_as_python_runs_it(script: Script, tmp_path: Path, module: str) -> None:
    (tmp_path / "package").mkdir()
    script("VALUE = 1", "package/__init__.py")
    script(f"from . import VALUE\n{MAIN}", "package/module.py")
    script(f"from package import VALUE\n{MAIN}", "package/__main__.py")
    script(MAIN, "single.py")
    words = ["-m", module, "--flag", "a b"]
    plain, ours = (run([*start, *words], 3, cwd=tmp_path) for start in ([sys.executable], IN_PROCESS))
    assert json.loads(ours.stdout) == json.loads(plain.stdout)
    assert ours.stderr == plain.stderr


@pytest.mark.parametrize(
    "text",
    [
        "def deeper():\n    raise ValueError('of the script')\ndeeper()",
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise ValueError('été') from error",
        "import json\njson.loads('{')",
        "def wrong(:\n    pass",
        "import sys\nsys.exit('a reason')",
        "import sys\nsys.excepthook = lambda *_: print('a hook of the script')\n1 / 0",
        "import atexit, sys\natexit.register(print, 'at the end')\nsys.exit(4)",
    ],
)
def test_a_script_ends_as_under_python(script: Script, text: str) -> None:
    path = script(text)
    plain = run(python(path), None)
    ours = run([*IN_PROCESS, path], plain.returncode)
    assert ours.stderr == plain.stderr
    assert ours.stdout == plain.stdout


def test_an_interrupted_script_says_where(script: Script) -> None:
    path = script("raise KeyboardInterrupt")
    # Python ends by the signal, this with the code that a shell makes of it.
    assert run([*IN_PROCESS, path], 130).stderr == run(python(path), -signal.SIGINT).stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing.py"], "missing.py"),
        (["-m", "no_such_module"], "no_such_module"),
        (["-m"], "name of a module"),
    ],
)
def test_a_script_that_is_not_there(words: list[str], said: str) -> None:
    done = run([*IN_PROCESS, *words], 2)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_script_that_trains_nothing_fails(script: Script) -> None:
    done = run([*IN_PROCESS, script("print('done')")], 2)
    assert done.stdout == "done\n"
    assert "the script ended without training a model with LayerSync" in done.stderr
    assert done.stderr.count("\n") == 1


# Without the command.


@pytest.mark.parametrize("form", ["JSON", "file"])
def test_auto_switches_it_on(form: str, script: Script, tmp_path: Path) -> None:
    text = json.dumps(SETTINGS)
    if form == "file":
        (tmp_path / "settings.json").write_text(text)
        text = str(tmp_path / "settings.json")
    path = script("import layersync_core.auto, tiny_dit; tiny_dit.train(tiny_dit.build())")
    assert f"3 steps {SUMMARY}" in run(python(path), env={"LAYERSYNC_RUN": text}).stderr


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "LAYERSYNC_RUN is not set"), ("", "LAYERSYNC_RUN is not set"), ("{", "no valid JSON"), ("none.json", "")],
)
def test_auto_needs_settings(value: str | None, said: str) -> None:
    variables = {} if value is None else {"LAYERSYNC_RUN": value}
    done = run([sys.executable, "-c", "import layersync_core.auto"], 1, env=variables)
    assert "ConfigError" in done.stderr.splitlines()[-1]
    assert said in done.stderr.splitlines()[-1]


def test_variables_for_a_shell(script: Script, tmp_path: Path) -> None:
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    flags = shlex.join([*FLAGS, "--layersync_status_dir", str(folder)])
    path = script("import tiny_dit; tiny_dit.train(tiny_dit.build())")
    command = f'eval "$({LAYERSYNC} env {flags})" && exec {sys.executable} {shlex.quote(path)}'
    done = run(["bash", "-c", command])
    assert "student block 2 of 6" in done.stderr
    assert len((folder / "layersync_metrics.jsonl").read_text().splitlines()) == 3


def test_variables_as_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert main(["env", "--plain", *FLAGS]) == 0
    lines = dict(line.split("=", 1) for line in capsys.readouterr().out.splitlines())
    assert lines.keys() == {"PYTHONPATH", "LAYERSYNC_RUN"}
    assert lines["PYTHONPATH"] == f"{STARTUP}:/elsewhere"
    assert json.loads(lines["LAYERSYNC_RUN"]).keys() == SETTINGS.keys()
    assert main(["env", "--layersync_enabled", "false"]) == 0
    assert capsys.readouterr().out == "unset LAYERSYNC_RUN\n"


SECRETS = {
    "hub_token": "hf_abcdef",
    "wandb_api_key": "0123456789",
    "tracker": {"key": "s3cr3t"},
    "trainer_token": "xyz",
}
HOST = {**SECRETS, "max_train_steps": 3, "crepa_enabled": False}


def test_what_the_host_keeps_to_itself_does_not_travel(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "host.json"
    file.write_text(json.dumps(SETTINGS | HOST))
    assert main(["env", "--config", str(file), "--plain"]) == 0
    printed = capsys.readouterr().out
    assert [value for value in ("hf_abcdef", "0123456789", "s3cr3t", "xyz") if value in printed] == []
    path = script(
        "import os, tiny_dit; print(os.environ['LAYERSYNC_RUN']); tiny_dit.train(tiny_dit.build())\n"
        "import layersync_core.auto; print(os.environ['LAYERSYNC_RUN'])"
    )
    done = run([LAYERSYNC, "run", "--config", str(file), *python(path)])
    for line in done.stdout.splitlines()[-2:]:
        assert json.loads(line).keys() == {*SETTINGS, "max_train_steps", "crepa_enabled", "layersync_status_dir"}


class TestLargeSettings:
    """Too large for a variable: they travel in a file that nobody else can read."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> str:
        # Whatever a plugin's key holds may be large; an unknown plugin's key is ignored as long as it is off.
        content = SETTINGS | {"crepa_enabled": False, "crepa_pixels": "x" * 200_000}
        (tmp_path / "large.json").write_text(json.dumps(content))
        return str(tmp_path / "large.json")

    SHOW = (
        "import os, stat, tiny_dit; name = os.environ['LAYERSYNC_RUN']; print(name, oct(os.stat(name).st_mode))\n"
        "tiny_dit.train(tiny_dit.build())"
    )

    @pytest.mark.parametrize("asked", [True, False])
    def test_run(self, asked: bool, file: str, script: Script, tmp_path: Path) -> None:
        folder = ["--layersync_status_dir", str(tmp_path / "status")] if asked else []
        done = run([LAYERSYNC, "run", "--config", file, *folder, *python(script(self.SHOW))])
        assert SUMMARY in done.stderr
        name, mode = done.stdout.splitlines()[-1].split()
        assert mode == "0o100600"
        assert not Path(name).exists()

    def test_in_process(self, file: str, script: Script) -> None:
        done = run([sys.executable, "-m", "layersync_core", "run", "--config", file, script(self.SHOW)])
        name, mode = done.stdout.splitlines()[-1].split()
        assert mode == "0o100600"
        assert not Path(name).exists()

    def test_env(self, file: str, script: Script) -> None:
        command = f'eval "$({LAYERSYNC} env --config {file})" && exec {sys.executable} {script(self.SHOW)}'
        done = run(["bash", "-c", command])
        name, mode = done.stdout.splitlines()[-1].split()
        assert mode == "0o100600"
        assert "student block 2 of 6" in done.stderr
        Path(name).unlink()
        Path(name).parent.rmdir()


def test_links_in_a_status_folder_are_not_followed(script: Script, tmp_path: Path) -> None:
    folder, mine = tmp_path / "status", tmp_path / "mine"
    folder.mkdir()
    mine.write_text("precious")
    for name in ("layersync_hook", "layersync_metrics.jsonl", "layersync_settings.json", "layersync_settings.tmp"):
        (folder / name).symlink_to(mine)
    # The trainer's own process number is not known beforehand.
    path = script(
        f"import os; os.symlink({str(mine)!r}, f{str(folder)!r} + f'/layersync_status_{{os.getpid()}}.tmp')\n"
        "import tiny_dit; tiny_dit.train(tiny_dit.build())"
    )
    done = run([LAYERSYNC, "run", *FLAGS, "--layersync_status_dir", str(folder), *python(path)])
    assert SUMMARY in done.stderr
    assert mine.read_text() == "precious"
    assert "metrics could not be written" in done.stderr


# Several processes.

Gradients = dict[str, Tensor]
TWO_RANKS = str(SCRIPTS / "two_ranks.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
# What launches several processes is called --multi_gpu; with --cpu accelerate starts one, whatever the number.
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
ACCELERATE += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
WAYS = {
    "one process": [*RUN, *python(TWO_RANKS, "one")],
    "torchrun": [*RUN, *TORCHRUN, TWO_RANKS, "env"],
    "torchrun, FSDP2": [*RUN, *TORCHRUN, TWO_RANKS, "sharded"],
    "accelerate": [*RUN, *ACCELERATE, TWO_RANKS, "accelerate"],
    "spawned by the script": [*RUN, *python(TWO_RANKS, "spawn")],
    "inside torchrun": [*TORCHRUN, "-m", "layersync_core", "run", *FLAGS, TWO_RANKS, "env"],
    "inside accelerate": [*ACCELERATE, "-m", "layersync_core", "run", *FLAGS, TWO_RANKS, "accelerate"],
}


@pytest.fixture(scope="module")
def gradients() -> tuple[Gradients, Gradients]:
    """The gradients of one process on the whole batch: without the term, and with it."""
    found = []
    for enabled in (False, True):
        model = tiny_dit.build()
        loss = tiny_dit.loss_of
        sync = attach(model, {**SETTINGS, "layersync_enabled": enabled})
        sync.apply(loss(model, *tiny_dit.batch())).backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    return found[0], found[1]


@pytest.mark.parametrize("way", WAYS)
def test_the_ranks_train_what_one_process_trains(
    way: str, tmp_path: Path, gradients: tuple[Gradients, Gradients]
) -> None:
    file = tmp_path / "gradients.pt"
    done = run([*WAYS[way], str(file)])
    found = torch.load(file, weights_only=True)
    plain, expected = gradients
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=0)
    assert max((expected[name] - plain[name]).abs().max().item() for name in plain) > 1e-3
    assert done.stderr.count("student block 2 of 6") == 1  # one rank speaks for both
    summary = next(line for line in done.stderr.splitlines() if "with the term" in line)
    # Without a parent nobody sees what the other ranks did.
    ranks = "2 ranks" if WAYS[way][0] == LAYERSYNC and way != "one process" else "1 rank,"
    assert ranks in summary


def test_a_rank_that_fails(script: Script) -> None:
    words = [*TORCHRUN, script("import os, sys; sys.exit(5 if os.environ['RANK'] == '1' else 0)")]
    plain, ours = run(words, None), run([*RUN, *words], None)
    assert ours.returncode == plain.returncode == 1
    assert "exitcode  : 5" in ours.stderr


def test_ranks_with_different_models_disagree(tmp_path: Path) -> None:
    done = run([*RUN, *python(TWO_RANKS, "spawn", str(tmp_path / "gradients.pt"), "5")], 2)
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: ranks disagree: ")
    assert "block 2 of 6" in error
    assert "block 2 of 5" in error


# Starts two ranks by hand; what stands between the words of one is replaced by the test.
BY_HAND = """
import json, os, socket, subprocess, sys, time
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ |= {{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}}
code = '''
import datetime, runpy, sys
{first}
sys.path.insert(0, {folder!r})
sys.argv[:] = [{script!r}, "env", {file!r}]
runpy.run_path({script!r}, run_name="__main__")
'''
weights = json.loads(os.environ["LAYERSYNC_RUN"])
other = json.dumps(weights | {second})
ranks = [
    subprocess.Popen([sys.executable, "-c", code], env=os.environ | {{"RANK": "0"}}),
    subprocess.Popen(
        [sys.executable, *{flags}, "-c", code.replace({first!r}, "")],
        env=os.environ | {{"RANK": "1", "LAYERSYNC_RUN": other}},
    ),
]
while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
    time.sleep(0.1)
for rank in ranks:  # as launchers do: a rank whose peer is gone may wait for ever
    if rank.poll() is None:
        rank.kill()
sys.exit(max(rank.wait() for rank in ranks))
"""


def by_hand(tmp_path: Path, first: str = "", second: Any = None, flags: Sequence[str] = ()) -> str:
    return BY_HAND.format(
        first=first,
        second=second or {},
        flags=list(flags),
        folder=str(SCRIPTS),
        script=TWO_RANKS,
        file=str(tmp_path / "gradients.pt"),
    )


def test_ranks_with_different_settings_disagree(script: Script, tmp_path: Path) -> None:
    done = run([*RUN, *python(script(by_hand(tmp_path, second={"layersync_lambda": "0.25"})))], 2)
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: ranks disagree: ")
    assert "weight 0.5" in error
    assert "weight 0.25" in error


def test_a_rank_without_the_hook_is_no_endless_wait(script: Script, tmp_path: Path) -> None:
    shorter = "from layersync_core.run import ranks; ranks._WAIT = datetime.timedelta(seconds=2)"
    started = time.monotonic()
    done = run([*RUN, *python(script(by_hand(tmp_path, first=shorter, flags=["-I"])))], 2)
    assert "rank 1 has not said what it trains with LayerSync for 2 s" in done.stderr.splitlines()[-1]
    assert time.monotonic() - started < 120


# Memory.

MEMORY = """
import gc, json, weakref, torch, tiny_dit

model = tiny_dit.build()
optimiser = torch.optim.SGD(model.parameters(), lr=0.001)
outputs = []

def step():
    optimiser.zero_grad()
    tiny_dit.loss_of(model, *tiny_dit.batch()).backward()
    optimiser.step()

def count():
    gc.collect()
    objects = gc.get_objects()
    return [
        sum(issubclass(type(item), torch.Tensor) for item in objects),
        len(objects),
        sum(reference() is not None for reference in outputs),
    ]

def round():
    for number in range(100):
        with torch.no_grad():
            outputs.append(weakref.ref(model(*tiny_dit.batch())))
        if number % 10 in (2, 5, 8):  # the graph of this one is never used
            outputs.append(weakref.ref(model(*tiny_dit.batch())))
        if number % 2 == 0:  # metrics wait for their fiftieth step
            step()
    outputs[:] = [reference for reference in outputs if reference() is not None]
    return count()

round()
print(json.dumps([round() for _ in range(10)]))
"""


def test_validation_leaves_memory_as_it_is(script: Script) -> None:
    done = run([*RUN, *python(script(MEMORY))])
    counts = json.loads(done.stdout)
    assert len(counts) == 10
    tensors, objects, kept = zip(*counts, strict=True)
    assert len(set(tensors)) == 1
    assert max(kept) == 0
    assert max(objects) - min(objects) < 100  # one for each forward would be 130 more at every count
    assert "550 steps" in done.stderr
