"""Completion in shells: what is offered, by the protocol of the functions that --show-completion prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from layersync_core import list_families
from layersync_core.cli import main
from tests import fakes
from tests.cli.support import Capture

SHELLS = ("bash", "zsh", "fish")


def completed(shell: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Ask as the function of a shell does, while the last word is being typed."""
    line = ["layersync", *words]
    variables = {
        "bash": {"COMP_WORDS": "\n".join(line), "COMP_CWORD": str(len(words))},
        "zsh": {"_TYPER_COMPLETE_ARGS": " ".join(line)},
        "fish": {"_TYPER_COMPLETE_ARGS": " ".join(line), "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    environment = {**os.environ, **variables, **more, "_LAYERSYNC_COMPLETE": f"complete_{shell}"}
    command = [sys.executable, "-m", "layersync_core"]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)


@pytest.fixture
def bash(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Callable[..., list[str]]:
    """Return what bash is offered for the last word of a line, asked in this process."""

    def offered(*words: str) -> list[str]:
        monkeypatch.setenv("_LAYERSYNC_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", "\n".join(["layersync", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        with pytest.raises(SystemExit) as ended:
            main([])
        assert ended.value.code == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out.split()

    return offered


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ins"], ["inspect"]),
        (["tra"], ["train"]),
        (["new-"], ["new-adapter", "new-regularizer"]),
        (["no-such"], []),
        (["inspect", "--in"], ["--inputs"]),
        (["inspect", "wa"], ["wan"]),
        (["train", "--family", "cogvi"], ["cogvideox", "cogview3", "cogview4"]),
        (["train", "--lr_scheduler", "cosine"], ["cosine", "cosine_with_restarts"]),
        (["train", "--compare", ""], ["true", "false"]),
        (["train", "--max_tr"], ["--max_train_steps"]),
        (["train", "--crepa_schedu"], ["--crepa_scheduler"]),
        (["run", "--layersync_family", "au"], ["auto", "auraflow"]),
        (["run", "--layersync_preset", "l"], ["lora"]),
        (["run", "--layersync_student_block", "8", "--layersync_teach"], ["--layersync_teacher_block"]),
        (["config", "--for", "tr"], ["train"]),
        (["doctor", "--family", "z_"], ["z_image"]),
        # A file, which the shell completes by itself.
        (["run", "--config", "layer"], []),
        (["inspect", "./"], []),
    ],
)
def test_what_is_offered(words: list[str], expected: list[str], bash: Callable[..., list[str]]) -> None:
    assert bash(*words) == expected


def test_every_family_and_nothing_else(bash: Callable[..., list[str]]) -> None:
    assert bash("train", "--family", "") == list_families()


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--", "touch", "made", ""],
        ["run", "--", "touch", "made", "--layersync_"],
        ["run", "touch", "made", "--conf"],
        ["run", "-m", "made", "--conf"],
        ["run", "--layersync_enabled", "true", "--", "made.py", "--config", ""],
        ["doctor", "--run", "--", "touch", "made", ""],
        ["doctor", "--run", "--", "made.py", "--fam"],
    ],
)
def test_of_somebody_s_command_nothing_is_offered_and_nothing_is_run(
    words: list[str], bash: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made.py").write_text("open('made', 'w')\n")
    assert bash(*words) == []
    assert [path.name for path in tmp_path.iterdir()] == ["made.py"]


def test_a_plugin_that_fails_says_nothing_while_somebody_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = fakes.plugin("broken-plugin", "print('hello')\nraise RuntimeError('on purpose')", "broken").write(tmp_path)
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    done = completed("bash", "ins", PYTHONPATH=path)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["inspect"], "")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells(shell: str) -> None:
    done = completed(shell, "run", "--layersync_preset", "lo")
    assert done.stderr == ""
    assert "lora" in done.stdout
    assert "paper" not in done.stdout


def test_it_needs_no_torch() -> None:
    program = (
        "import sys\nfrom layersync_core.cli import main\n"
        "try:\n    main([])\nexcept SystemExit:\n    pass\n"
        "print(*sorted({'torch', 'diffusers', 'accelerate'} & set(sys.modules)), file=sys.stderr)\n"
    )
    for words in ("layersync\ntr", "layersync\ntrain\n--family\n"):
        variables = {"_LAYERSYNC_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count("\n"))}
        environment = {**os.environ, **variables}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        assert done.stdout
        assert done.stderr.strip() == ""


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_a_shell_can_be_shown_and_installed(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    shellingham = pytest.importorskip("shellingham")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(shellingham, "detect_shell", lambda: (shell, f"/bin/{shell}"))
    with pytest.raises(SystemExit) as ended:
        main(["--show-completion"])
    assert ended.value.code == 0
    script = capsys.readouterr().out
    assert f"_LAYERSYNC_COMPLETE=complete_{shell}" in script
    with pytest.raises(SystemExit) as ended:
        main(["--install-completion"])
    assert ended.value.code == 0
    assert f"{shell} completion installed in" in capsys.readouterr().out
    written = [path for path in tmp_path.rglob("*layersync*") if path.is_file()]
    assert len(written) == 1
    assert script.strip() in written[0].read_text()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert main(["--install-completion"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: cannot write the completion below {tmp_path / 'file'}: ")
    assert said.count("\n") == 1


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_in_a_real_bash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    shellingham = pytest.importorskip("shellingham")
    monkeypatch.setattr(shellingham, "detect_shell", lambda: ("bash", "/bin/bash"))
    with pytest.raises(SystemExit):
        main(["--show-completion"])
    (tmp_path / "layersync").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m layersync_core "$@"\n')
    (tmp_path / "layersync").chmod(0o755)
    script = (
        capsys.readouterr().out
        + "\nCOMP_WORDS=(layersync check --family cogvi)\nCOMP_CWORD=3\n"
        + '_layersync_completion layersync\necho "${COMPREPLY[@]}"\n'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("cogvideox cogview3 cogview4\n", "")
