"""The command line: what is printed where, and exit codes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layersync_core import LayerSyncError, __version__
from layersync_core.cli import check, main
from tests.cli.support import Capture, error_of


def layersync(*arguments: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    import os

    command = [sys.executable, "-m", "layersync_core", *arguments]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)
    assert done.returncode == code, done.stderr
    return done


class TestTheProgram:
    @pytest.mark.parametrize("command", ["list-supported", "config", "--help"])
    def test_a_reader_that_has_enough(self, command: str) -> None:
        import os

        end, pipe = os.pipe()
        os.close(end)  # as head does once it has its lines
        words = [sys.executable, "-m", "layersync_core", command]
        done = subprocess.run(words, stdout=pipe, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
        os.close(pipe)
        assert (done.stderr, done.returncode) == ("", 1)

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
        assert says in error_of(capsys, *arguments).replace("MODEL", "model")  # as older versions of Typer write it

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
