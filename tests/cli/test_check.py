"""``layersync check``: what would be attached, or what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from layersync_core import LayerSyncWarning
from layersync_core.cli import check, main
from tests.cli.support import Capture, error_of
from tests.startup_cases import DIT, GOOD, StartupCase


class TestCheck:
    def attached(self, capsys: Capture, *arguments: str) -> dict[str, str]:
        """Run a check that passes; return what would be attached."""
        assert main(["check", *arguments]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        return dict(line.split(": ", 1) for line in printed.out.splitlines())

    def test_prints_the_resolved_names(self, model: str, settings: Callable[..., str], capsys: Capture) -> None:
        assert self.attached(capsys, model, "--config", settings(**GOOD, lr=1e-4)) == {
            "family": "dit",
            "student": "block 2 of 6 (transformer_blocks.1)",
            "teacher": "block 4 of 6 (transformer_blocks.3)",
            "weight": "0.2",
        }

    def test_a_yaml_file(self, model: str, tmp_path: Path, capsys: Capture) -> None:
        (tmp_path / "my.yaml").write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in GOOD.items()))
        assert self.attached(capsys, model, "--config", str(tmp_path / "my.yaml"))["weight"] == "0.2"

    @pytest.mark.parametrize(
        "flags",
        [
            ["--layersync_enabled", "--layersync_student_block", "2", "--layersync_teacher_block", "4"],
            ["--layersync-enabled", "--layersync-student-block", "2", "--layersync-teacher-block", "4"],
            ["--layersync_student_block=2", "--layersync-teacher-block=4", "--layersync_enabled"],
            ["--layersync_enabled=true", "--layersync_student_block=2", "--layersync_teacher_block=4"],
            ["--layersync_enabled", "true", "--layersync_student_block", "2", "--layersync_teacher_block", "4"],
            ["--loss-type", "layer_sync", "--encoder-depth", "2", "--gt-encoder-depth", "4"],
            ["--loss_type", "layer_sync", "--encoder_depth=2", "--gt_encoder_depth", "4"],
            ["--layersync_enabled", "--layersync_pairs", "[[2, 4]]"],
            ["--layersync-enabled", "--layersync-pairs=[[2, 4]]"],
        ],
    )
    def test_flags_alone(self, flags: list[str], model: str, capsys: Capture) -> None:
        attached = self.attached(capsys, model, *flags)
        assert attached["student"].startswith("block 2 ")
        assert attached["teacher"].startswith("block 4 ")

    @pytest.mark.parametrize(
        ("flags", "key", "shown"),
        [
            (["--layersync_student_block", "3"], "student", "block 3 of 6 (transformer_blocks.2)"),
            (["--layersync-student-block=3"], "student", "block 3 of 6 (transformer_blocks.2)"),
            (["--encoder-depth", "3"], "student", "block 3 of 6 (transformer_blocks.2)"),
            (["--gt-encoder-depth", "5"], "teacher", "block 5 of 6 (transformer_blocks.4)"),
            (["--reg-weight", "0.5"], "weight", "0.5"),
            (["--layersync_preset", "lora"], "weight", "0.002"),
            (["--layersync_student_block", ""], "student", "block 2 of 6 (transformer_blocks.1)"),
            (["--family", "dit"], "family", "dit"),
            (["--family", ""], "family", "dit"),
        ],
    )
    def test_flags_win_over_the_file(
        self, flags: list[str], key: str, shown: str, model: str, settings: Callable[..., str], capsys: Capture
    ) -> None:
        assert self.attached(capsys, model, "--config", settings(**GOOD), *flags)[key] == shown

    def test_flags_win_over_an_alias_in_the_file(
        self, model: str, settings: Callable[..., str], capsys: Capture
    ) -> None:
        file = settings(**{"--loss-type": "layer_sync", "--encoder-depth": 2, "--gt-encoder-depth": 4})
        attached = self.attached(capsys, model, "--layersync_student_block", "3", "--config", file)
        assert attached["student"] == "block 3 of 6 (transformer_blocks.2)"

    @pytest.mark.parametrize(
        "flags",
        [
            ["--layersync_enabled=false"],
            ["--layersync-enabled", "false"],
            ["--layersync_enabled", "0"],
            ["--layersync_enabled=False", "--layersync_lambda", "0"],
        ],
    )
    def test_switched_off_by_a_flag(
        self, flags: list[str], model: str, settings: Callable[..., str], capsys: Capture
    ) -> None:
        assert main(["check", model, "--config", settings(**GOOD), *flags]) == 0
        assert capsys.readouterr() == ("LayerSync is off\n", "")

    def test_a_switch_before_the_model_s_flags(self, model: str, capsys: Capture) -> None:
        flags = ["--layersync_enabled", "--layersync_student_block", "2", "--layersync_teacher_block", "4"]
        assert self.attached(capsys, *flags, model)["family"] == "dit"

    @pytest.mark.parametrize(
        ("flags", "says"),
        [
            (["--layersync_student_block", "-1"], "layersync_student_block is '-1'"),
            (["--layersync_student_block=7"], "LayerSync could not find layer 7"),
            (["--layersync_lambda", "0"], "greater than 0"),
            (["--layersync_lambda=nan"], "greater than 0"),
            (["--layersync_enabled", "maybe"], "layersync_enabled is 'maybe'"),
            (["--layersync_lamda", "1"], "--layersync_lambda"),
            (["--layersync_pairs", "[[1, 2]]"], "exclude each other"),
            (["--encoder-depth", "3", "--layersync_student_block", "4"], "different values"),
            (["--config", "no/such.json"], "no/such.json"),
            (["--config="], "layersync_student_block is missing"),
        ],
    )
    def test_mistakes_in_flags(
        self, flags: list[str], says: str, model: str, settings: Callable[..., str], capsys: Capture
    ) -> None:
        if flags == ["--config="]:
            flags = ["--config=", "--layersync_enabled"]
        else:
            flags = ["--config", settings(**GOOD), *flags]
        assert says in error_of(capsys, "check", model, *flags)

    @pytest.mark.parametrize("content", ["", "{", "[]", "3"])
    def test_a_file_that_is_no_object(self, content: str, model: str, tmp_path: Path, capsys: Capture) -> None:
        file = tmp_path / "torn.json"
        file.write_text(content)
        assert str(file) in error_of(capsys, "check", model, "--config", str(file))
        assert str(tmp_path) in error_of(capsys, "check", model, "--config", str(tmp_path))

    def test_the_student_as_its_own_teacher_is_one_warning(self, model: str, capsys: Capture) -> None:
        assert main(["check", model, "--layersync_enabled", "--layersync_student_block", "2"]) == 0
        printed = capsys.readouterr()
        assert printed.out.count("block 2 of 6 (transformer_blocks.1)") == 2
        (line,) = printed.err.splitlines()
        assert line.startswith("warning: ")
        assert "constant" in line

    def test_other_warnings_are_left_to_python(
        self, model: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
    ) -> None:
        monkeypatch.setattr(check, "run", lambda *_, **__: warnings.warn("other", UserWarning, stacklevel=1))
        with pytest.warns(UserWarning, match="other"):
            main(["check", model])
        monkeypatch.setattr(check, "run", lambda *_, **__: warnings.warn("ours", LayerSyncWarning, stacklevel=1))
        assert main(["check", model]) == 0
        assert capsys.readouterr().err == "warning: ours\n"

    def test_advice_is_no_error(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        case = StartupCase("", GOOD | {"layersync_student_block": 1}, (), config=DIT | {"num_layers": 28})
        model, settings = case.write(tmp_path)
        assert main(["check", str(model), "--config", str(settings)]) == 0
        assert ["very first" in record.getMessage() for record in caplog.records] == [True]
        command = [sys.executable, "-m", "layersync_core", "check", str(model), "--config", str(settings)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        (line,) = done.stderr.splitlines()
        assert line.startswith("warning: student block 1 of 28")

    def test_without_settings_it_says_what_a_run_would(self, model: str, capsys: Capture) -> None:
        for command in (["check", model], ["run", "--", "true"]):
            assert main(command) == 2
            assert "no settings were given" in capsys.readouterr().err
