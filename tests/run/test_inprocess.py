"""Inside a launcher's process: ``python -m layersync_core run SCRIPT``."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from layersync_core import read_process
from layersync_core.errors import ConfigError, LayerSyncError
from layersync_core.run import inprocess, patches
from layersync_core.run.inprocess import run_script, start
from layersync_core.run.settings import read
from layersync_core.run.startup.sitecustomize import REACHED
from tests.run.processes import IN_PROCESS, SETTINGS, Script, python, run

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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_interrupted_script_says_where(script: Script) -> None:
    path = script("raise KeyboardInterrupt")
    # Python ends by the signal, this with the code that a shell makes of it.
    assert run([*IN_PROCESS, path], 130).stderr == run(python(path), -signal.SIGINT).stderr


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_script_that_trains_nothing_fails(script: Script) -> None:
    done = run([*IN_PROCESS, script("print('done')")], 2)
    assert done.stdout == "done\n"
    assert "the script ended without training a model with LayerSync" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_process_is_taken_hold_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(inprocess, "imported", taken.append)
    monkeypatch.setattr(patches, "adopt", lambda: taken.append("models from before"))
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    for name in ("LAYERSYNC_RUN", "PYTHONPATH"):
        monkeypatch.setenv(name, "")
    start(read({"layersync_enabled": False}))
    assert (taken, os.environ["LAYERSYNC_RUN"]) == ([], "")
    for _ in range(2):
        start(read(SETTINGS))
    assert json.loads(os.environ["LAYERSYNC_RUN"]) == SETTINGS
    assert (taken.count("torch"), taken.count("models from before")) == (1, 2)
    assert [type(finder).__name__ for finder in sys.meta_path].count("Watch") == 1


class TestInThisProcess:
    """Switched off, so that only the script's surroundings are looked at."""

    @pytest.fixture(autouse=True)
    def surroundings(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(sys, "argv", ["ours"])
        monkeypatch.setattr(sys, "path", ["", *sys.path])
        monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: None)
        monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
        monkeypatch.chdir(tmp_path)

    def run(self, *words: str) -> int:
        return run_script(read({"layersync_enabled": False}), words)

    @pytest.mark.parametrize(
        ("text", "code"), [("", 0), ("raise SystemExit", 0), ("1 / 0", 1), ("raise KeyboardInterrupt", 130)]
    )
    def test_codes(self, script: Script, text: str, code: int) -> None:
        assert self.run(script(text)) == code

    def test_another_code_is_the_scripts_own(self, script: Script) -> None:
        with pytest.raises(SystemExit, match="4"):
            self.run(script("raise SystemExit(4)"))

    @pytest.mark.parametrize("words", [["script.py", "a"], ["-m", "script", "a"]], ids=" ".join)
    def test_what_it_sees(self, script: Script, tmp_path: Path, words: list[str]) -> None:
        path = script(
            "import json, pathlib, sys\n"
            "pathlib.Path('seen').write_text(json.dumps([__file__, sys.argv, sys.path[0], __name__]))"
        )
        assert self.run(*words) == 0
        file, arguments, folder, name = json.loads((tmp_path / "seen").read_text())
        assert (file, folder, name) == (path, str(tmp_path), "__main__")
        assert arguments == (words if words[0] == "script.py" else [path, "a"])

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["missing.py", "a"], "cannot read the script missing.py: No such file or directory"),
            (["-m", "no_such_module", "a"], "cannot run the module no_such_module: .*"),
            (["-m"], "-m needs the name of a module"),
        ],
    )
    def test_what_is_not_there(self, words: list[str], said: str) -> None:
        with pytest.raises(ConfigError, match=f"^{said}$"):
            self.run(*words)


@pytest.mark.parametrize(
    ("text", "code", "state"),
    [("import sys; sys.exit(3)", 3, "failed"), ("raise KeyboardInterrupt", 130, "stopped"), ("pass", 2, "failed")],
)
def test_the_status_folder_says_how_a_script_ended(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, code: int, state: str
) -> None:
    monkeypatch.setattr(inprocess, "start", lambda settings: None)
    monkeypatch.setattr("sys.argv", ["layersync"])
    settings = read({**SETTINGS, "layersync_status_dir": str(tmp_path / "status")})
    with suppress(SystemExit, LayerSyncError):
        assert run_script(settings, [str(script(text))]) == code
    found = read_process(tmp_path / "status")
    assert found is not None
    assert (found.state, found.code, found.kind) == (state, code, "run")


def test_a_process_below_a_run_leaves_the_record_to_its_parent(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inprocess, "start", lambda settings: None)
    monkeypatch.setattr("sys.argv", ["layersync"])
    settings = read({**SETTINGS, "layersync_status_dir": str(tmp_path / "status")})
    for name, value in ((REACHED, "/somewhere"), ("RANK", "1")):
        with monkeypatch.context() as there:
            there.setenv(name, value)
            with pytest.raises(SystemExit):
                run_script(settings, [str(script("raise SystemExit(3)"))])
    assert read_process(tmp_path / "status") is None
