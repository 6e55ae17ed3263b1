"""``layersync doctor``: each thing that is wrong is named, with what to do, and nothing is trained."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layersync_core.cli import main
from layersync_core.cli.doctor import devices, environment, parts, software
from layersync_core.cli.doctor.findings import Finding
from layersync_core.cli.doctor.reach import look
from layersync_core.losses.plugins import third_parties

TRAINS = "print('before')\nimport torch\nprint('trained', flush=True)\nopen('trained', 'w')\n"


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Load one adapter and no plugin, and run in a folder of the test's own."""
    monkeypatch.setenv("LAYERSYNC_LOAD", "dit")
    monkeypatch.chdir(tmp_path)
    third_parties.cache_clear()
    yield
    third_parties.cache_clear()


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        (tmp_path / "train.py").write_text(text)
        return str(tmp_path / "train.py")

    return write


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a distribution on the path, as pip would."""

    def write(
        name: str, version: str = "1.0", needs: tuple[str, ...] = (), entries: str = "", place: str = "one"
    ) -> None:
        info = tmp_path / place / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        lines = [f"Requires-Dist: {need}\n" for need in needs]
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{''.join(lines)}")
        (info / "entry_points.txt").write_text(entries)
        monkeypatch.syspath_prepend(str(tmp_path / place))

    return write


def by_name(findings: Any) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_all_is_well_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["well"]
    found = {(finding["about"], finding["name"]): finding for finding in said["findings"]}
    assert found["software", "layersync-core"]["state"] == "good"
    assert found["software", "torch"]["version"]
    assert found["adapter", "dit"]["origin"] == "layersync-adapter-dit"
    assert found["adapter", "dit"]["detail"].startswith("works: similarity")
    left_out = [finding for finding in said["findings"] if finding["detail"] == "LAYERSYNC_LOAD leaves them out"]
    assert [finding["about"] for finding in left_out] == ["adapter", "plugin"]
    assert [finding["state"] for finding in left_out] == ["note", "note"]
    assert left_out[0]["name"].startswith("ace_step, allegro, ")
    assert re.search(r" and \d+ more$", left_out[0]["name"])
    assert found["environment", "LAYERSYNC_LOAD"]["detail"] == "only dit may be loaded"
    assert found["device", "cpu"]["state"] == "good"


def test_a_model_or_a_command_alone(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--only", "--json", "--model", model]) == 0
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["about"], finding["state"]) == ("model", "good")
    assert main(["doctor", "--only", "--run", "--", "no-such-command-xyz"]) == 2
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2
    assert out[0].startswith("! command no-such-command-xyz: no command")
    assert main(["doctor", "--only"]) == 2
    assert "say what to check with --model or --run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--run"], "after --run --"),
        (["--", "python", "x.py"], "after --run --"),
        (["--family", "dit"], "give --model as well"),
        (["--nothing"], "nothing"),
    ],
)
def test_what_cannot_be_asked(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *words]) == 2
    assert said in (error := capsys.readouterr().err)
    assert error.count("\n") == 1


def test_what_a_distribution_needs_and_does_not_have(install: Callable[..., None]) -> None:
    install("layersync-adapter-needy", needs=("torch>=99", "no-such-thing>=2", "never; extra == 'test'", "pluggy"))
    found = by_name(software.look())["layersync-adapter-needy"]
    assert found.state == "wrong"
    assert "needs torch>=99, and torch" in found.detail
    assert "pip install 'torch>=99'" in found.detail
    assert "needs no-such-thing, which is not installed; pip install 'no-such-thing>=2'" in found.detail
    assert "never" not in found.detail
    assert "pluggy" not in found.detail


def test_a_distribution_that_is_there_twice(install: Callable[..., None]) -> None:
    install("layersync-adapter-double")
    install("layersync-adapter-double", "2.0", place="two")
    found = by_name(software.look())["layersync-adapter-double"]
    assert (found.state, found.version) == ("wrong", "2.0")
    assert "installed more than once, as 2.0 and 1.0" in found.detail


def test_another_core_than_the_one_that_is_installed(install: Callable[..., None]) -> None:
    install("layersync-core", "0.0.1", place="old")
    assert "installed more than once" in by_name(software.look())["layersync-core"].detail


def test_versions_that_do_not_get_on() -> None:
    (known,) = software.KNOWN_BAD
    bad = {"torch": "2.5.1", "transformers": "5.0"}
    (found,) = software.bad_combinations(bad)
    assert (found.name, found.detail) == ("torch 2.5.1 with transformers 5.0", known.why)
    assert not [*software.bad_combinations(bad | {"torch": "2.6.0"})]
    assert not [*software.bad_combinations({"torch": "2.5.1"})]


def test_a_library_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "accelerate.py").write_text("raise RuntimeError('no such driver')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "accelerate"]:
        monkeypatch.delitem(sys.modules, name)
    found = by_name(software.look())["accelerate"]
    assert (found.state, found.detail) == ("wrong", "cannot be imported: RuntimeError: no such driver")


def test_broken_adapters_and_plugins_are_named(
    install: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = "[layersync.adapters]\nbad = bad_module:adapter\n[layersync.plugins]\nworse = bad_module\n"
    install("layersync-adapter-bad", entries=entries)
    (tmp_path / "one" / "bad_module.py").write_text("import no_such_module\n")
    monkeypatch.setenv("LAYERSYNC_LOAD", "bad,worse")
    found = by_name(parts.look())
    assert found["bad"].state == found["worse"].state == "wrong"
    assert "no_such_module" in found["bad"].detail
    assert found["worse"].detail == "ModuleNotFoundError: No module named 'no_such_module'"
    assert found["worse"].origin == "layersync-adapter-bad"
    left_out = {one.about: one.name for one in found.values() if one.detail == "LAYERSYNC_LOAD leaves them out"}
    assert left_out.keys() == {"adapter", "plugin"}
    assert "crepa" in left_out["plugin"]
    assert main(["doctor"]) == 2
    out = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("! ") for line in out) == 2
    assert out[-1] == "2 things to fix, marked with !"


def test_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--model", "dit", "--json"]) == 0
    model = json.loads(capsys.readouterr().out)["findings"][-1]
    assert (model["about"], model["detail"]) == ("model", "tiny DiTTransformer2DModel, family dit, 6 blocks")
    (tmp_path / "config.json").write_text('{"_class_name": "Lumina2Transformer2DModel"}')
    assert main(["doctor", "--model", str(tmp_path)]) == 2
    assert f"! model {tmp_path}: " in capsys.readouterr().out


def test_variables_that_switch_layersync_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERSYNC_RUN", "{")
    assert by_name(environment.look())["LAYERSYNC_RUN"].state == "wrong"
    on = {"layersync_enabled": True, "layersync_student_block": 1, "layersync_teacher_block": 2}
    monkeypatch.setenv("LAYERSYNC_RUN", json.dumps(on))
    found = by_name(environment.look())["LAYERSYNC_RUN"]
    assert (found.state, found.detail[:6]) == ("note", "is set")
    monkeypatch.setenv("LAYERSYNC_LOAD", "")
    assert by_name(environment.look())["LAYERSYNC_LOAD"].detail == "no adapter and no plugin may be loaded"
    monkeypatch.setenv("LAYERSYNC_LOAD", "dit,nosuch")
    found = by_name(environment.look())["LAYERSYNC_LOAD"]
    assert (found.state, "nosuch is not installed" in found.detail) == ("wrong", True)


def test_a_driver_that_this_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(devices.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert by_name(devices.look())["cuda"].state == "wrong"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert by_name(devices.look())["cuda"].state == "note"


class TestRun:
    def test_it_ends_before_anything_is_trained(
        self, program: Callable[[str], str], tmp_path: Path, capfd: Any
    ) -> None:
        found = look([program(TRAINS)])
        assert found.state == "good", found.detail
        assert found.origin == sys.executable
        assert "is there when torch" in found.detail
        assert not (tmp_path / "trained").exists()
        assert "trained" not in capfd.readouterr().err

    def test_a_script_around_it_does_not_go_on(self, program: Callable[[str], str], tmp_path: Path) -> None:
        assert look(["bash", "-c", f"{sys.executable} {program(TRAINS)}; touch went_on"]).state == "good"
        time.sleep(0.5)
        assert not (tmp_path / "went_on").exists()

    def test_what_asks_for_input_gets_none(self, program: Callable[[str], str]) -> None:
        assert look([program(f"input()\n{TRAINS}")]).state == "wrong"

    def test_it_ends_the_command_when_it_is_ended(self, program: Callable[[str], str], tmp_path: Path) -> None:
        waits = program("import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)")
        words = [sys.executable, "-m", "layersync_core", "doctor", "--run", "--", sys.executable, waits]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL) as doctor:
            deadline = time.monotonic() + 120
            while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
                assert time.monotonic() < deadline
                time.sleep(0.1)
            doctor.terminate()
            assert doctor.wait(60) == 143
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)

    def test_a_command_that_the_hook_does_not_reach_is_ended(
        self, program: Callable[[str], str], tmp_path: Path
    ) -> None:
        waits = f"import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)\n{TRAINS}"
        found = look([sys.executable, "-I", program(waits)], patience=2)
        assert found.state == "wrong"
        assert "ran the start-up hook" in found.detail
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)

    def test_a_command_without_torch(self, program: Callable[[str], str]) -> None:
        found = look([program("raise SystemExit(3)")])
        assert found.detail == "the start-up hook was reached, but the command ended with exit code 3, without torch"
        found = look([program("import time; time.sleep(60)")], long=2)
        assert "was stopped, since it did not import torch in time" in found.detail

    def test_a_python_that_has_torch_and_not_layersync(self, program: Callable[[str], str]) -> None:
        found = look([program("import sys\nsys.modules['layersync_core'] = None\nimport torch")])
        assert found.state == "wrong"
        assert f"{sys.executable} has torch and cannot import layersync_core" in found.detail

    def test_no_command(self) -> None:
        assert "no command 'no-such-program'" in look(["no-such-program"]).detail

    def test_from_the_command_line(self, program: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor", "--run", "--", sys.executable, program(TRAINS), "--lr", "1"]) == 0
        assert "train.py --lr 1 (" in capsys.readouterr().out
