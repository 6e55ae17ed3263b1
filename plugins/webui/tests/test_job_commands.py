"""Names, words, folders and variables of what a page starts; and the command lines that equal the form."""

from __future__ import annotations

import os
import shlex
import stat
import sys
from inspect import Parameter
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layersync_core import ConfigError, LayerSyncConfig, add_command, canonical, plugins, validate
from layersync_core.cli import run as run_command
from layersync_plugin_trainer.config import TrainerConfig
from layersync_plugin_webui.jobs import Jobs, command_of_run, command_of_train
from layersync_plugin_webui.jobs.commands import words_of
from layersync_plugin_webui.jobs.environments import check_variables, require_layersync, variables_of, working_folder
from layersync_plugin_webui.jobs.masking import masked

TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=20)
NUMBERS = st.integers(1, 10**6)
TRAIN: Any = st.fixed_dictionaries(
    {},
    optional={
        "model": TEXT,
        "family": TEXT,
        "report_to": TEXT,
        "compare": st.booleans(),
        "gradient_checkpointing": st.booleans(),
        "max_train_steps": NUMBERS,
        "learning_rate": st.floats(0, 1e6),
        "checkpoints_total_limit": st.none() | NUMBERS,
        "seed": st.integers(0, 9),
    },
)
PAIRS = st.lists(
    st.tuples(st.integers(1, 9), st.integers(10, 20), st.floats(0.01, 9)).map(list), min_size=1, max_size=1
)
OURS: Any = (
    st.fixed_dictionaries(
        {"layersync_enabled": st.just(True)},
        optional={
            "layersync_lambda": st.floats(1e-6, 10),
            "layersync_tokens": st.sampled_from(["target", "all"]),
            "layersync_guard": st.booleans(),
            "layersync_generated_tokens": st.just(-7),
            "layersync_warmup_steps": st.integers(0, 10**6),
        },
    )
    .flatmap(
        lambda base: st.one_of(
            PAIRS.map(lambda pairs: base | {"layersync_pairs": pairs}),
            st.integers(0, 40).map(lambda block: base | {"layersync_student_block": block}),
        )
    )
    .filter(lambda ours: not (ours.get("layersync_tokens") == "all" and "layersync_generated_tokens" in ours))
)


def read(command: str, words: list[str], models: list[Any], more: list[Parameter] = []) -> dict[str, Any]:  # noqa: B006
    """Return what the real reader of flags makes of words."""
    found: dict[str, Any] = {}
    app = typer.Typer(add_completion=False)
    app.callback()(lambda: None)
    add_command(app, command, lambda settings, **rest: found.update(settings=settings, **rest), models, "", more)
    app(words, standalone_mode=False)
    return found


def part(mapping: dict[str, Any], model: Any) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key in model.model_fields}


def of_layersync(mapping: dict[str, Any]) -> dict[str, Any]:
    return LayerSyncConfig.from_mapping(part(mapping, LayerSyncConfig)).model_dump()


@given(TRAIN, OURS)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_words_of_train_are_read_as_the_settings(own, ours):
    words = command_of_train(own | ours)
    assert words[0] == "layersync"
    got = read("train", words[1:], [TrainerConfig, *plugins().config_models()])["settings"]
    asked = canonical(own | ours)
    assert got.keys() == asked.keys()
    assert validate(TrainerConfig, part(got, TrainerConfig)) == validate(TrainerConfig, part(asked, TrainerConfig))
    assert of_layersync(got) == of_layersync(asked)


@given(OURS, st.lists(TEXT.filter(lambda word: not word.startswith("~")), max_size=4))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_words_of_run_are_read_as_the_settings_and_the_command(ours, arguments):
    words = command_of_run(ours, shlex.join(["python", "train.py", *arguments]).replace("\\\n", "\n"))
    parameter = Parameter("command", Parameter.KEYWORD_ONLY, annotation=run_command.Command, default=None)
    got = read("run", words[1:], run_command.models(), [parameter])
    assert got["settings"].keys() == ours.keys()
    assert of_layersync(got["settings"]) == of_layersync(ours)
    assert got["command"][:2] == ["python", "train.py"]
    assert len(got["command"]) == 2 + len(arguments)


def test_spellings_of_a_form_and_what_is_not_given():
    given = {"--layersync-lambda": "0.5", "layersync_student_block": "", "layersync_enabled": True, "seed": None}
    assert command_of_train(given) == ["layersync", "train", "--layersync_lambda", "0.5", "--layersync_enabled", "true"]
    assert command_of_train({"layersync_generated_tokens": "-7"})[2:] == ["--layersync_generated_tokens=-7"]
    for value in ("a\0b", "\ud800", {1, 2}):
        with pytest.raises(ConfigError, match="model"):
            command_of_train({"model": value})


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("python train.py --name 'two words'", ["python", "train.py", "--name", "two words"]),
        ("accelerate launch \\\n  train.py \\\r\n --a=1", ["accelerate", "launch", "train.py", "--a=1"]),
        ("echo $(id) `id` $HOME * a;b x>y", None),
        ("x '&&' \\; \"a | b\" 'c' -- '>y'", ["x", "&&", ";", "a | b", "c", "--", ">y"]),
        ("~/run.sh 'a ~' --x=~", [os.path.expanduser("~/run.sh"), "a ~", "--x=~"]),
    ],
)
def test_a_command_is_split_and_no_more(command, words):
    assert words_of(command) == (words or command.split())


@pytest.mark.parametrize(
    ("command", "said"),
    [("python 'train.py", "quotation"), (" \n", "no command"), ("CUDA_VISIBLE_DEVICES=0 python x", "as a variable"),
     ("python a\0b", "character"), ("python \\", "split")],
)  # fmt: skip
def test_what_is_not_a_command(command, said):
    with pytest.raises(ConfigError, match=said):
        words_of(command)


SHELL = ["cd x && y", "cd x&&y", "cd x; y", "y > log", "y 2>&1", "y | tee log", "y &", "x ||y"]


@pytest.mark.parametrize("command", SHELL)
def test_a_line_for_a_shell_is_refused(command):
    with pytest.raises(ConfigError, match=r"so \S+ would be a word for its program; .*bash -c"):
        words_of(command)
    assert words_of(f"bash -c '{command}'") == ["bash", "-c", command]


NAMES = [
    "", " ", ".", "..", "../x", "a/b", "/etc", "a\\b", ".hidden", "-rf", "~root", "a\nb", "a\0b", "a\x1b[31m",
    "\u202egnp",
    "x" * 101, "ж" * 101, "\ud800", " a", "a ", "layersync", "vanilla", "checkpoint-5", "__pycache__",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_of_runs(runs, name):
    for start in (
        lambda: Jobs(runs).train(name, {}),
        lambda: Jobs(runs).run(name, "true", {}, "", "", {}),
    ):
        with pytest.raises(ConfigError) as told:
            start()
        assert "\n" not in str(told.value)
        assert "\x1b" not in str(told.value)
    assert list(runs.iterdir()) == []
    assert [path.name for path in runs.parent.iterdir()] == ["runs"]


def test_a_taken_name(runs):
    (runs / "mine").mkdir()
    (runs / "file").write_text("")
    (runs / "link").symlink_to(runs.parent)
    for name in ("mine", "file", "link"):
        with pytest.raises(ConfigError, match="already"):
            Jobs(runs).train(name, {})
    assert list((runs / "mine").iterdir()) == []


def test_what_the_page_gives_itself_is_refused(runs):
    with pytest.raises(ConfigError, match="output_dir"):
        Jobs(runs).train("a", {"--output-dir": "/tmp"})
    with pytest.raises(ConfigError, match="layersync_status_dir"):
        Jobs(runs).run("a", "true", {"layersync_status_dir": "x"}, "", "", {})
    assert list(runs.iterdir()) == []


def test_the_folder_of_a_command(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "project").mkdir()
    assert working_folder("~/project") == tmp_path / "project"
    monkeypatch.chdir(tmp_path)
    assert working_folder("") == tmp_path
    assert working_folder("project") == tmp_path / "project"
    for wrong in ("~/nothing", "~nobodyofthisname/x", "a\0b", str(__file__)):
        with pytest.raises(ConfigError):
            working_folder(wrong)


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_an_environment_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    monkeypatch.setenv("LAYERSYNC_RUN_FOLDER", "/another")
    with pytest.raises(ConfigError, match="has no bin/python"):
        variables_of({}, "~/venv")
    program(tmp_path / "venv/bin/python", f'#!/bin/sh\nPYTHONPATH= exec {sys.executable} -S "$@"\n')
    python, variables = variables_of({"PATH": "/mine"}, "~/venv")
    assert python == str(tmp_path / "venv/bin/python")
    assert variables["PATH"] == f"{tmp_path}/venv/bin:/mine"
    assert variables["VIRTUAL_ENV"] == f"{tmp_path}/venv"
    assert not {"PYTHONHOME", "LAYERSYNC_RUN_FOLDER"} & variables.keys()
    with pytest.raises(ConfigError, match=r"has no layersync; .*/venv/bin/python -m pip install layersync-core"):
        require_layersync(python, variables, tmp_path)
    # What lies in the working folder is not what the environment has.
    (tmp_path / "layersync_core").mkdir()
    (tmp_path / "layersync_core" / "cli.py").write_text("")
    with pytest.raises(ConfigError, match="has no layersync"):
        require_layersync(python, variables, tmp_path)
    program(tmp_path / "venv/bin/python", "no program")
    with pytest.raises(ConfigError):
        require_layersync(python, variables, tmp_path)


@pytest.mark.parametrize("name", ["", "A B", "1A", "A=B", "A\0", "Ä", "-A"])
def test_what_cannot_be_the_name_of_a_variable(name):
    with pytest.raises(ConfigError, match="cannot be the name") as told:
        check_variables({name: "hunter22"})
    assert "hunter22" not in str(told.value)


def test_values_are_not_shown_in_errors():
    with pytest.raises(ConfigError) as told:
        check_variables({"TOKEN": "hunter22\0"})
    assert "hunter22" not in str(told.value)


def test_values_are_masked(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "sk-of-the-page")
    monkeypatch.setenv("OTHER", "not a secret")
    text = "abcd abcdef 1 sk-of-the-page not a secret"
    assert masked(text, ["abcd", "abcdef", "1", ""]) == "•••• •••• 1 •••• not a secret"
