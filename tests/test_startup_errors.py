"""Every start-up error, in each way it can occur: one line that says what was asked, what is valid and what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from layersync_core import BlockStack, BlockStackAdapter, ConfigError, attach
from layersync_core.cli import main
from layersync_core.losses.plugins import Plugins
from tests import fakes
from tests.startup_cases import CASES, DIT, FLUX, GOOD, KOLORS, ON, StartupCase, instance

every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
in_a_process = pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.name in ("lambda 0", "teacher too deep", "refused: kolors", "unknown class")],
)


@every_case
def test_attach(case: StartupCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case.arrange(tmp_path, monkeypatch)
    model = instance(case.config)
    before = fakes.hooks(model)
    with pytest.raises(case.error) as error:
        attach(model, case.settings)
    message = str(error.value)
    assert [part for part in case.says if part not in message] == []
    assert "\n" not in message
    assert "pydantic" not in message
    assert fakes.hooks(model) == before
    monkeypatch.undo()
    if type(model).__name__ == DIT["_class_name"]:
        attach(model, GOOD).remove()  # the model is free for another attempt


@every_case
def test_check(
    case: StartupCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case.arrange(tmp_path, monkeypatch)
    model, settings = case.write(tmp_path)
    assert main(["check", str(model), "--config", str(settings)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert [part for part in case.says if part not in line] == []


# The third party of "stages" ships no tiny model, so that training refuses it before it looks at the pair. Training has
# LayerSync is on by default there, so that a single setting changes that run.
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name not in ("stages", "not enabled")], ids=lambda case: case.name
)
def test_train(
    case: StartupCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case.arrange(tmp_path, monkeypatch)
    model, settings = case.write(tmp_path)
    output = tmp_path / "output"
    given = ["--model", str(model), "--config", str(settings), "--output_dir", str(output)]
    assert main(["train", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert [part for part in case.says if part not in line] == []
    assert not output.exists()


@in_a_process
def test_check_in_a_process(case: StartupCase, tmp_path: Path) -> None:
    model, settings = case.write(tmp_path)
    command = [sys.executable, "-m", "layersync_core", "check", str(model), "--config", str(settings)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert [part for part in case.says if part not in line] == []


def test_weights_are_not_needed(tmp_path: Path) -> None:
    """A folder with a config and a file of weights that nobody can read is enough for every error."""
    model, settings = StartupCase("", GOOD, (), config=KOLORS).write(tmp_path)
    (model / "diffusion_pytorch_model.safetensors").write_bytes(b"torn")
    assert main(["check", str(model), "--config", str(settings)]) == 2


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0, "block 1 of 6 (transformer_blocks.0)"),
        (1, "block 1 of 6 (transformer_blocks.0)"),
        (2, "block 2 of 6 (transformer_blocks.1)"),
        ("2", "block 2 of 6 (transformer_blocks.1)"),
        (6, "block 6 of 6 (transformer_blocks.5)"),
    ],
)
class TestBlockNumbers:
    def test_student(self, number: Any, name: str) -> None:
        with attach(instance(DIT), ON | {"layersync_student_block": number, "layersync_teacher_block": 4}) as sync:
            assert str(sync.student) == name
            assert f"student: {name}" in sync.describe()

    def test_teacher(self, number: Any, name: str) -> None:
        with attach(instance(DIT), ON | {"layersync_student_block": 3, "layersync_teacher_block": number}) as sync:
            assert str(sync.teacher) == name
            assert f"teacher: {name}" in sync.describe()

    def test_pair(self, number: Any, name: str) -> None:
        with attach(instance(DIT), ON | {"layersync_pairs": [[4, 3], [number, 5, 0.1]]}) as sync:
            assert [str(pair.student) for pair in sync.pairs] == ["block 4 of 6 (transformer_blocks.3)", name]
            assert [pair.weight for pair in sync.pairs] == [0.2, 0.1]

    def test_check_prints_it(self, number: Any, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        model, settings = StartupCase("", GOOD | {"layersync_student_block": number}, ()).write(tmp_path)
        assert main(["check", str(model), "--config", str(settings)]) == 0
        assert f"student: {name}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "path"),
    [
        (1, "transformer_blocks.0"),
        (2, "transformer_blocks.1"),
        (3, "single_transformer_blocks.0"),
        (6, "single_transformer_blocks.3"),
    ],
)
def test_dual_and_single_streams_count_in_one_sequence(number: int, path: str) -> None:
    with attach(instance(FLUX), ON | {"layersync_student_block": number, "layersync_teacher_block": 4}) as sync:
        assert str(sync.student) == f"block {number} of 6 ({path})"


class _Regularizer:
    name, order = "bad", 1

    def __init__(self, **what: Any) -> None:
        vars(self).update(what)

    def layers(self, blocks: Any) -> set[int]:
        return {0}


def _raise(*_: Any) -> Any:
    raise ConfigError("no")


class TestNothingIsLeftBehind:
    """An attach that raises late leaves no hook, and the model is free."""

    @pytest.mark.parametrize("where", ["layers", "active"])
    def test_a_regularizer_raises(self, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
        bad = _Regularizer(**{where: _raise})
        with monkeypatch.context() as patch:
            patch.setattr(Plugins, "regularizers", lambda *_: [bad])
            self._fails()

    def test_its_module_cannot_move(self, monkeypatch: pytest.MonkeyPatch) -> None:
        part = nn.Linear(1, 1)
        part.to = _raise  # type: ignore[method-assign]
        with monkeypatch.context() as patch:
            patch.setattr(Plugins, "regularizers", lambda *_: [_Regularizer(module=part)])
            self._fails()

    def test_capture_raises(self) -> None:
        adapter = BlockStackAdapter(
            family="x",
            model_classes="DiTTransformer2DModel",
            stacks=[BlockStack("transformer_blocks", element=0, joined="last")],
            embedder="there_is_none",
        )
        model = instance(DIT)
        before = fakes.hooks(model)
        try:
            attach(model, GOOD, adapter=adapter).remove()
        except ConfigError:
            assert fakes.hooks(model) == before
        attach(model, GOOD).remove()
        assert fakes.hooks(model) == before

    @staticmethod
    def _fails() -> None:
        model = instance(DIT)
        before = fakes.hooks(model)
        with pytest.raises(ConfigError):
            attach(model, GOOD)
        assert fakes.hooks(model) == before
        with pytest.raises(ConfigError, match=r"^no$"):
            attach(model, GOOD)  # and not: has an attachment already


def test_a_family_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"wan.*DiTTransformer2DModel.*WanTransformer3DModel"):
        attach(instance(DIT), GOOD, family="wan")
    model, settings = StartupCase("", GOOD, ()).write(tmp_path)
    assert main(["check", str(model), "--config", str(settings), "--family", "wan"]) == 2
    assert "wan" in capsys.readouterr().err


def test_a_second_attachment_is_refused_and_harms_not_the_first() -> None:
    model = instance(DIT)
    with attach(model, GOOD):
        during = fakes.hooks(model)
        with pytest.raises(ConfigError, match="attachment already"):
            attach(model, GOOD)
        assert fakes.hooks(model) == during


def test_disabled_is_inert_even_on_a_refused_model() -> None:
    model = instance(KOLORS)
    before = fakes.hooks(model)
    sync = attach(model, {"layersync_enabled": False, "layersync_student_block": 2})
    assert fakes.hooks(model) == before
    assert (sync.metrics(), sync.student, sync.pairs) == ({}, None, [])
