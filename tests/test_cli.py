"""The command line: what is printed where, and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layersync_core import LayerSyncConfig, LayerSyncError, LayerSyncWarning, __version__, list_families
from layersync_core.cli import check, main
from layersync_core.cli.list_supported import families, markdown
from layersync_core.cli.options import normalise
from layersync_core.families.known import KNOWN
from layersync_core.families.refusals import REFUSALS
from tests import fakes
from tests.fakes import Distribution
from tests.startup_cases import DIT, FLUX, GOOD, KANDINSKY_CUSTOM, StartupCase

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Distribution], Path]:
    """Install a distribution for one test."""
    return lambda distribution: distribution.install(tmp_path, monkeypatch)


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "dit").mkdir()
    (tmp_path / "dit" / "config.json").write_text(json.dumps(DIT))
    return str(tmp_path / "dit")


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., str]:
    """Write a file of settings and return its path."""

    def write(**content: Any) -> str:
        (tmp_path / "settings.json").write_text(json.dumps(content))
        return str(tmp_path / "settings.json")

    return write


def layersync(*arguments: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    import os

    command = [sys.executable, "-m", "layersync_core", *arguments]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)
    assert done.returncode == code, done.stderr
    return done


def error_of(capsys: Capture, *arguments: str) -> str:
    """Run a command that the user got wrong; return its one line."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    return line


class TestTheProgram:
    def test_version(self, capsys: Capture) -> None:
        assert main(["--version"]) == 0
        assert capsys.readouterr() == (f"{__version__}\n", "")

    @pytest.mark.parametrize("arguments", [["--help"], []])
    def test_help(self, arguments: list[str], capsys: Capture) -> None:
        assert main(arguments) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        assert printed.out.startswith("Usage: layersync ")
        assert all(command in printed.out for command in ("list-supported", "inspect", "check"))

    @pytest.mark.parametrize("command", ["list-supported", "inspect", "check"])
    def test_help_of_a_command(self, command: str, capsys: Capture) -> None:
        assert main([command, "--help"]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        assert printed.out.startswith(f"Usage: layersync {command} ")

    def test_arguments_default_to_the_process_s(self, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
        monkeypatch.setattr(sys, "argv", ["layersync", "--version"])
        assert main() == 0
        assert capsys.readouterr().out == f"{__version__}\n"

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["no-such-command"], "'no-such-command'"),
            (["--no-such-flag"], "--no-such-flag"),
            ([""], "command"),
            (["check"], "model"),
            (["inspect"], "model"),
            (["check", "a", "b"], "b"),
            (["inspect", "a", "--layersync_enabled"], "--layersync_enabled"),
            (["list-supported", "x"], "x"),
            (["list-supported", "--jsno"], "--jsno"),
            (["check", "a", "--config"], "--config"),
            (["check", "a", "--layersync_student_block"], "--layersync_student_block"),
        ],
    )
    def test_a_command_line_that_is_wrong(self, arguments: list[str], says: str, capsys: Capture) -> None:
        assert says in error_of(capsys, *arguments)

    def test_module_and_script_are_the_same(self) -> None:
        assert layersync("--version").stdout == f"{__version__}\n"
        script = Path(sys.executable).with_name("layersync")
        if script.exists():
            done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
            assert done.stdout == f"{__version__}\n"

    def test_a_user_s_error_in_a_process(self) -> None:
        done = layersync("no-such-command", code=2)
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1

    def test_a_bug_gives_a_traceback_and_1(self) -> None:
        program = (
            "import sys, layersync_core.cli as cli\n"
            "def run(arguments): raise RuntimeError('a bug')\n"
            "cli._run = run\n"
            "sys.exit(cli.main(['check']))\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 1
        assert "Traceback" in done.stderr
        assert done.stderr.endswith("RuntimeError: a bug\n")

    @pytest.mark.parametrize("bug", [RuntimeError("a bug"), KeyError("x"), ValueError("y"), AssertionError()])
    def test_a_bug_inside_a_command_is_not_dressed_up(
        self, bug: Exception, model: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(check, "run", self._raising(bug))
        with pytest.raises(type(bug)):
            main(["check", model])

    def test_control_c(self, model: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
        monkeypatch.setattr(check, "run", self._raising(KeyboardInterrupt()))
        assert main(["check", model]) == 130
        assert "Traceback" not in capsys.readouterr().err

    def test_an_error_with_line_breaks_is_one_line(
        self, model: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
    ) -> None:
        monkeypatch.setattr(check, "run", self._raising(LayerSyncError("one\ntwo\r\n  three")))
        assert error_of(capsys, "check", model).split() == ["error:", "one", "two", "three"]

    def test_exit_code_of_a_command(self, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for returned, code in ((None, 0), (0, 0), (2, 2)):
            monkeypatch.setattr(check, "run", lambda *_, returned=returned, **__: returned)
            assert main(["check", model]) == code

    @staticmethod
    def _raising(error: BaseException) -> Callable[..., None]:
        def run(*_: Any, **__: Any) -> None:
            raise error

        return run


class TestListSupported:
    def rows(self, capsys: Capture, *flags: str, code: int = 0) -> dict[str, dict[str, str]]:
        assert main(["list-supported", "--json", *flags]) == code
        rows = json.loads(capsys.readouterr().out)
        assert len({row["family"] for row in rows}) == len(rows)
        return {row["family"]: row for row in rows}

    def test_json_has_every_family(self, capsys: Capture) -> None:
        rows = self.rows(capsys)
        assert set(rows) >= {*KNOWN, *REFUSALS}
        assert rows["dit"] == {
            "family": "dit",
            "models": "DiT, SiT",
            "distribution": "layersync-adapter-dit",
            "version": __version__,
            "state": "installed",
            "detail": "",
        }
        assert {family for family, row in rows.items() if row["state"] == "installed"} == set(list_families())
        for family, refusal in REFUSALS.items():
            assert (rows[family]["state"], rows[family]["detail"]) == ("refused", refusal.reason)
        for family, row in rows.items():
            if row["state"] == "not installed":
                assert row["detail"] == f"pip install layersync-adapter-{family.replace('_', '-')}"

    def test_text_has_a_line_for_each(self, capsys: Capture) -> None:
        assert main(["list-supported"]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        lines = printed.out.splitlines()
        assert lines[0].split() == ["family", "models", "distribution", "version", "state"]
        assert [line.split()[0] for line in lines[2:]] == [row.family for row in families()]
        column = lines[0].index("state")
        for line, row in zip(lines[2:], families(), strict=True):
            assert line[column:].startswith(row.state)

    def test_plain_imports_no_adapter(self, install: Callable[..., Path], capsys: Capture) -> None:
        install(fakes.broken("somebodys", "somebodys_family", "raise SystemExit('imported')"))
        row = self.rows(capsys)["somebodys_family"]
        assert (row["distribution"], row["version"], row["state"]) == ("somebodys", "9.8", "installed")

    def test_who_provides_a_refused_family(self, install: Callable[..., Path], capsys: Capture) -> None:
        install(fakes.adapter("somebodys", "kolors", "UNet2DConditionModel"))
        row = self.rows(capsys)["kolors"]
        assert (row["models"], row["distribution"], row["state"]) == ("Kolors", "somebodys", "installed")

    def test_two_that_claim_one_family(self, install: Callable[..., Path], capsys: Capture) -> None:
        install(fakes.adapter("somebodys-dit", "dit", "DiT"))
        row = self.rows(capsys)["dit"]
        assert row["state"] == "conflict"
        assert row["distribution"] == "layersync-adapter-dit and somebodys-dit"

    def test_left_out(self, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
        monkeypatch.setenv("LAYERSYNC_LOAD", "wan")
        rows = self.rows(capsys)
        assert rows["wan"]["state"] == "installed"
        assert rows["dit"]["state"] == "excluded"
        assert "LAYERSYNC_LOAD" in rows["dit"]["detail"]

    def test_check_runs_the_tiny_models(self, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
        monkeypatch.setenv("LAYERSYNC_LOAD", "dit,flux,wan")
        rows = self.rows(capsys, "--check")
        for family in ("dit", "flux", "wan"):
            assert rows[family]["state"] == "installed"
            assert rows[family]["detail"].startswith("works")

    @pytest.mark.parametrize(
        ("source", "says"),
        [
            ("import a_package_that_is_missing", "a_package_that_is_missing"),
            ("raise SystemExit(3)", "SystemExit"),
            ("raise RuntimeError('one\\ntwo')", "RuntimeError: one"),
        ],
    )
    def test_check_shows_the_error_of_a_broken_one(
        self, source: str, says: str, install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Capture
    ) -> None:
        install(fakes.broken("somebodys", "somebodys_family", source))
        monkeypatch.setenv("LAYERSYNC_LOAD", "dit,somebodys_family")
        rows = self.rows(capsys, "--check", code=2)
        assert rows["somebodys_family"]["state"] == "broken"
        assert says in rows["somebodys_family"]["detail"]
        assert rows["dit"]["state"] == "installed"
        assert main(["list-supported", "--check"]) == 2
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("somebodys_family")]
        assert says in line

    def test_check_needs_the_two_functions_alone(
        self, install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Capture
    ) -> None:
        site = install(
            fakes.adapter("somebodys", "somebodys_family", "DiTTransformer2DModel", stacks="transformer_blocks")
        )
        functions = "from layersync_adapter_dit.tiny import example_inputs, tiny_model"
        self.add_tiny(site, functions)
        monkeypatch.setenv("LAYERSYNC_LOAD", "somebodys_family")
        assert self.rows(capsys, "--check")["somebodys_family"]["detail"].startswith("works")

    def add_tiny(self, site: Path, source: str) -> None:
        """Give the one module of a distribution a module ``tiny``."""
        (module,) = site.glob("fake_*.py")
        package = site / module.stem
        package.mkdir()
        module.rename(package / "__init__.py")
        (package / "tiny.py").write_text(source)

    def test_check_of_a_tiny_model_that_fails_in_several_lines(
        self, install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Capture
    ) -> None:
        """The listing stays one line a family."""
        site = install(fakes.adapter("somebodys", "somebodys_family", "X"))
        self.add_tiny(site, "def tiny_model(): raise RuntimeError('one\\ntwo')")
        monkeypatch.setenv("LAYERSYNC_LOAD", "somebodys_family")
        assert "one" in self.rows(capsys, "--check", code=2)["somebodys_family"]["detail"]
        assert main(["list-supported", "--check"]) == 2
        assert len(capsys.readouterr().out.splitlines()) == len(families()) + 2

    def test_markdown_is_the_same_everywhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        here = markdown(families())
        monkeypatch.setattr("layersync_core.families.registry.installed", dict)
        assert markdown(families()) == here
        assert len(here.splitlines()) == 2 + len(KNOWN) + len(REFUSALS)

    def test_in_a_process_without_torch(self) -> None:
        program = (
            "import sys; from layersync_core.cli import main; code = main(['list-supported'])\n"
            "print([m for m in ('torch', 'diffusers', 'typer', 'pydantic') if m in sys.modules], file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.stderr == "[]\n"


class TestInspect:
    def test_text(self, model: str, capsys: Capture) -> None:
        assert main(["inspect", model]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        lines = [line.split() for line in printed.out.splitlines()]
        assert f"DiTTransformer2DModel: family dit (layersync-adapter-dit {__version__}), 6 blocks" in printed.out
        assert ["1", "0", "32", "transformer_blocks.0"] in lines  # from 1, from 0
        assert ["6", "5", "32", "transformer_blocks.5"] in lines
        suggested = json.loads(printed.out.splitlines()[-1])
        assert LayerSyncConfig.from_mapping(suggested).pairs

    def test_json(self, tmp_path: Path, capsys: Capture) -> None:
        (tmp_path / "config.json").write_text(json.dumps(FLUX))
        assert main(["inspect", str(tmp_path / "config.json"), "--json"]) == 0
        content = json.loads(capsys.readouterr().out)
        assert content["family"] == "flux"
        assert [block["path"] for block in content["blocks"]] == [
            *(f"transformer_blocks.{k}" for k in range(2)),
            *(f"single_transformer_blocks.{k}" for k in range(4)),
        ]
        assert [block["index"] for block in content["blocks"]] == list(range(6))
        assert LayerSyncConfig.from_mapping(content["suggested"]).layersync_enabled

    def test_its_suggestion_passes_check(self, model: str, capsys: Capture, settings: Callable[..., str]) -> None:
        assert main(["inspect", model, "--json"]) == 0
        suggested = json.loads(capsys.readouterr().out)["suggested"]
        assert main(["check", model, "--config", settings(**suggested)]) == 0
        assert capsys.readouterr().err == ""

    def test_with_a_family(self, model: str, capsys: Capture) -> None:
        assert main(["inspect", model, "--family", "dit"]) == 0
        capsys.readouterr()
        assert "wan" in error_of(capsys, "inspect", model, "--family", "wan")
        assert "'nope'" in error_of(capsys, "inspect", model, "--family", "nope")

    def test_errors(self, tmp_path: Path, capsys: Capture) -> None:
        assert "does not exist" in error_of(capsys, "inspect", str(tmp_path / "no"))
        for content, says in (
            ("{", "JSON"),
            ("{}", "_class_name"),
            ('{"_class_name": "SiT"}', "not a class of diffusers"),
            ('{"_class_name": "Unheard"}', "no adapter knows"),
            ('{"_class_name": "OmniGenTransformer2DModel"}', "does not support OmniGen"),
            (json.dumps(DIT | {"num_layers": "six"}), "diffusers cannot build"),
            (json.dumps(DIT | {"num_layers": 0}), "does not fit"),
            (json.dumps(KANDINSKY_CUSTOM), "kandinsky5_video"),
        ):
            (tmp_path / "config.json").write_text(content)
            assert says in error_of(capsys, "inspect", str(tmp_path))


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

    def test_without_settings_it_says_what_a_run_would(self, model: str, capsys: Capture) -> None:
        for command in (["check", model], ["run", "--", "true"]):
            assert main(command) == 2
            assert "no settings are given" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        ("--on", "--on true"),
        ("--on --other", "--on true --other"),
        ("--on false", "--on false"),
        ("--on=false", "--on=false"),
        ("--the-key 3", "--the_key 3"),
        ("--the-key=a-b=c", "--the_key=a-b=c"),
        ("--the-key --on", "--the_key --on true"),
        ("--not-ours x-y", "--not-ours x-y"),
        ("a-b", "a-b"),
        ("", ""),
    ],
)
def test_normalised_arguments(arguments: str, result: str) -> None:
    assert normalise(arguments.split(), {"on"}, {"on", "the_key"}) == result.split()
