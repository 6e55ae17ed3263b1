"""The settings of a run: mistakes start nothing, and valid settings reach every process, or are passed by hand."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import pytest

from layersync_core import ConfigError
from layersync_core.cli import main
from layersync_core.run.settings import STARTUP, from_environment, read, variables
from tests.run.processes import FLAGS, LAYERSYNC, SETTINGS, SUMMARY, Script, python, run

MISTAKES = {
    "no settings": ([], "no settings were given"),
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


@pytest.mark.slow
@pytest.mark.parametrize("form", ["JSON", "file"])
def test_auto_switches_it_on(form: str, script: Script, tmp_path: Path) -> None:
    text = json.dumps(SETTINGS)
    if form == "file":
        (tmp_path / "settings.json").write_text(text)
        text = str(tmp_path / "settings.json")
    path = script("import layersync_core.auto, tiny_dit; tiny_dit.train(tiny_dit.build())")
    assert f"3 steps {SUMMARY}" in run(python(path), env={"LAYERSYNC_RUN": text}).stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "LAYERSYNC_RUN is not set"), ("", "LAYERSYNC_RUN is not set"), ("{", "valid JSON"), ("none.json", "")],
)
def test_auto_needs_settings(value: str | None, said: str) -> None:
    variables = {} if value is None else {"LAYERSYNC_RUN": value}
    done = run([sys.executable, "-c", "import layersync_core.auto"], 1, env=variables)
    assert "ConfigError" in done.stderr.splitlines()[-1]
    assert said in done.stderr.splitlines()[-1]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"CREPA_ENABLED": True}, "the setting is crepa_enabled"),
        ({"crepa": {"enabled": True, "block_index": 1}}, "crepa is a section"),
        ({"Dispersive_enabled": True}, "the setting is dispersive_enabled"),
        ({"layersync": {"enabled": True}}, "layersync is a section"),
    ],
)
@pytest.mark.parametrize("command", [["run"], ["env"], ["check", "nowhere"], ["train"]], ids=lambda words: words[0])
def test_settings_that_nobody_would_read_are_refused_by_every_command(
    command: list[str], more: dict[str, object], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(SETTINGS | more))
    started = ["--", sys.executable, "-c", "raise SystemExit(9)"] if command == ["run"] else []
    assert main([*command, "--config", str(file), *started]) == 2
    assert says in capsys.readouterr().err


NUMBERS = {"layersync_enabled": True, "layersync_pairs": [[number, number + 1] for number in range(2000)]}


@pytest.mark.parametrize("large", [False, True])
def test_settings_travel_in_a_variable_or_in_a_file(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, file = NUMBERS if large else SETTINGS, tmp_path / "settings.json"
    found = variables(read(given), {"PYTHONPATH": f"/one{os.pathsep}{STARTUP}{os.pathsep}/two"}, lambda: file)
    assert found["PYTHONPATH"].split(os.pathsep) == [str(STARTUP), "/one", "/two"]
    assert file.exists() is large
    assert (found["LAYERSYNC_RUN"] == str(file)) is large
    monkeypatch.setenv("LAYERSYNC_RUN", f" {found['LAYERSYNC_RUN']}\n")
    assert from_environment().given == given


def test_settings_that_cannot_travel_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "missing" / "settings.json"
    with pytest.raises(ConfigError) as error:
        variables(read(NUMBERS), {}, lambda: file)
    assert str(error.value) == f"the settings cannot be passed on in {file}: No such file or directory"
    with pytest.raises(ConfigError, match="cannot be passed on as JSON"):
        variables(read({**SETTINGS, "crepa_enabled": False, "crepa_model": Path()}), {}, lambda: file)


@pytest.mark.parametrize("off", [{"crepa": {}}, {"crepa": {"enabled": False}}])
def test_a_plugin_s_section_that_asks_for_nothing_is_the_host_s(
    off: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS | off))
    assert main(["env", "--plain", "--config", str(tmp_path / "settings.json")]) == 0


@pytest.mark.slow
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
