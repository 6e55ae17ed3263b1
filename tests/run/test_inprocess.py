"""Inside a launcher's process: ``python -m layersync_core run SCRIPT``."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from tests.run.processes import IN_PROCESS, Script, python, run

pytestmark = pytest.mark.slow

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
