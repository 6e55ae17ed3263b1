"""``layersync config``: a file of every key, which changes nothing until a key is taken out of its comment."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from layersync_core import ConfigError, LayerSyncConfig
from layersync_core.cli import application, config_file, main
from layersync_core.cli.config_file import text_for
from layersync_core.cli.options import models_of
from layersync_core.cli.plugin_commands import command_name
from layersync_core.files import parse_settings
from layersync_core.losses.plugins import third_parties
from layersync_core.run.settings import read
from layersync_core.session import plugins
from layersync_plugin_trainer.config import Settings
from tests import fakes
from tests.cli.support import Capture, error_of

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python's own reader of TOML")

COMMANDS = ("run", "train", "check", "env", "suggest", "webui")
ONLY_TRAINED = re.compile(r"twinflow_\w+")
NOT_WORTH_SHOWING = {"crepa_self_flow_mask_ratio"}
"""Refused whatever its value is."""

THEIRS = '''
import datetime
from typing import Annotated, Any, Literal, Optional
from pydantic import BaseModel, Field

class Odd:
    pass

class TheirConfig(BaseModel):
    """What their loss
    does. And how.

    More than the file needs.
    """

    model_config = {"arbitrary_types_allowed": True}

    theirs_enabled: bool = Field(False, description="switch it on")
    theirs_count: Annotated[int, Field(ge=3, le=9)] | None = Field(None, description="how many")
    theirs_share: Annotated[float, Field(gt=0, lt=3)] | None = None
    theirs_word: Literal["one, two", "three"] | None = Field(None, description="a word\\nof two lines")
    theirs_path: str = Field('C:\\\\a "b"\\n', description="# where")
    theirs_list: list[int] = Field(default_factory=lambda: [1, 2])
    theirs_odd: Optional[Odd] = Field(None, description="no file can have it")

@hookimpl
def layersync_config_models():
    return [TheirConfig]

@hookimpl
def layersync_regularizers(config):
    return []
'''


def keys_in(text: str) -> dict[str, str]:
    """Return the line of each key, without the comment's sign."""
    lines = [line[1:] for line in text.splitlines() if re.match(r"#[^# ]", line)]
    keyed = [(line.partition(" = ")[0], line) for line in lines]
    assert len(dict(keyed)) == len(keyed)
    return dict(keyed)


def settings_in(lines: list[str]) -> dict[str, Any]:
    return parse_settings("\n".join(lines), "layersync.toml")


def judge_run(given: dict[str, Any]) -> None:
    judge_plugins(read(given).config)


def judge_train(given: dict[str, Any]) -> None:
    judge_plugins(LayerSyncConfig.from_mapping(Settings(given).over_default(1, 2)))


def judge_plugins(config: LayerSyncConfig) -> None:
    """Judge their settings as they do themselves, without building what they bring."""
    for model in third_parties().config_models():
        config.of(model)


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Somebody's plugin, with fields of many kinds."""
    for loaded in (plugins, third_parties):
        loaded.cache_clear()
    fakes.plugin("their-loss", THEIRS, "theirs").install(tmp_path, monkeypatch)
    yield
    for loaded in (plugins, third_parties):
        loaded.cache_clear()


@pytest.mark.parametrize("command", COMMANDS)
def test_it_has_every_key_of_the_command_and_sets_none(command: str) -> None:
    text = text_for(command)
    (found,) = [item for item in application().registered_commands if command_name(item) == command]
    expected = {key for model in models_of(found) for key in model.model_fields} - NOT_WORTH_SHOWING
    if command in ("run", "check", "env"):  # which refuse what replaces a main loss
        assert "for layersync train: see --for train" in text
        expected = {key for key in expected if not ONLY_TRAINED.fullmatch(key)}
    assert keys_in(text).keys() == expected
    assert parse_settings(text, "layersync.toml") == {}
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_says_what_it_may_be_and_its_description(command: str) -> None:
    (found,) = [item for item in application().registered_commands if command_name(item) == command]
    text = text_for(command)
    paragraphs = {key: part for part in text.split("\n\n") for key in keys_in(part)}
    for model in models_of(found):
        for key, field in model.model_fields.items():
            if key in paragraphs:
                words = " ".join(paragraphs[key].replace("\n# ", " ").split())
                assert field.description is not None
                assert " ".join(field.description.split()) in words
                assert re.search(r"true or false|a whole number|a number|one of|a list|text", words)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_shown_is_a_value_of_the_field(command: str) -> None:
    given = settings_in([*keys_in(text_for(command)).values()])
    (found,) = [item for item in application().registered_commands if command_name(item) == command]
    for model in models_of(found):
        for key, field in model.model_fields.items():
            if key in given:
                TypeAdapter(field.annotation).validate_python(given[key])


@pytest.mark.parametrize(("command", "judge"), [("run", judge_run), ("train", judge_train)])
def test_any_single_key_is_accepted_or_names_the_one_that_it_needs(
    command: str, judge: Callable[[dict[str, Any]], None]
) -> None:
    lines = keys_in(text_for(command))
    for key in lines:
        wanted = [key]
        while (error := refusal(judge, [lines[name] for name in wanted])) is not None:
            named = [name for name in re.findall(r"\w+", error) if name in lines and name not in wanted]
            assert named, f"{wanted}: {error}"
            wanted.append(named[0])
            assert len(wanted) < 8, f"{wanted}: {error}"


def refusal(judge: Callable[[dict[str, Any]], None], lines: list[str]) -> str | None:
    """Return why the lines of a file are refused; None where they are accepted."""
    try:
        judge(settings_in(lines))
    except ConfigError as error:
        return str(error)
    return None


def test_with_the_printed_file_a_run_is_what_it_is_without(tmp_path: Path, capsys: Capture) -> None:
    assert main(["config"]) == 0
    file = tmp_path / "layersync.toml"
    file.write_text(capsys.readouterr().out)
    without = error_of(capsys, "run", "--", "true")
    assert error_of(capsys, "run", "--config", str(file), "--", "true") == without
    file.write_text(text_for("train"))
    with_it, without_it = Settings(parse_settings(file.read_text(), file.name)), Settings({})
    assert with_it.trainer == without_it.trainer
    assert with_it.over_default(2, 5) == without_it.over_default(2, 5)
    assert with_it.given == {}


@pytest.mark.usefixtures("theirs")
@pytest.mark.parametrize("command", ["run", "train"])
def test_a_third_party_s_keys(command: str) -> None:
    text = text_for(command)
    lines = {key: line for key, line in keys_in(text).items() if key.startswith("theirs_")}
    assert "---- theirs (their-loss 9.8) ----\n# What their loss\n# does. And how.\n\n" in text
    assert settings_in([*lines.values()]) == {
        "theirs_enabled": True,
        "theirs_count": 3,
        "theirs_share": 1,
        "theirs_word": "one, two",
        "theirs_path": 'C:\\a "b"\n',
        "theirs_list": [1, 2],
    }
    assert "# no file can have it\n# text; no default\n" in text + "\n"
    assert 'a word\n# of two lines\n# one of "one, two", "three"; no default\n' in text
    assert "a whole number, at least 3, at most 9; no default\n#theirs_count" in text
    assert parse_settings(text, "layersync.toml") == {}


def test_defaults_of_layersync_train() -> None:
    assert "# true or false; default: true\n#layersync_enabled = true\n" in text_for("train")
    assert "# true or false; default: false\n#layersync_enabled = true\n" in text_for("run")


def test_for_a_command_that_takes_no_file(capsys: Capture) -> None:
    said = error_of(capsys, "config", "--for", "inspect")
    assert "no such command takes a file of settings" in said
    assert "known: check, run, env, train, suggest, webui" in said or "did you mean" in said


def test_for_a_command_whose_plugin_is_not_there(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_file, "_commands", lambda: {"run": None})
    said = error_of(capsys, "config", "--for", "train")
    assert said == "error: --for train: that command is not installed; pip install layersync-plugin-trainer"


def test_it_needs_no_torch() -> None:
    program = (
        "import sys\nfrom layersync_core.cli import main\n"
        "for words in (['config'], ['config', '--for', 'train'], ['--help'], ['train', '--help'], ['run', '--help']):\n"
        "    assert main(words) == 0\n"
        "print(*sorted({'torch', 'diffusers', 'accelerate'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""
