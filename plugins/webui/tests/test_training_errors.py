"""Errors are those of the command line, and are shown beside the field that they name."""

from __future__ import annotations

import pytest

from layersync_core import ConfigError, LayerSyncConfig
from layersync_core.cli import main
from layersync_plugin_webui import language
from layersync_plugin_webui.training.answering import checks, facts
from layersync_plugin_webui.training.errors import key_in, split_error
from plugins.webui.tests.filling import fields

KEYS = [field.key for field in fields().by_key.values()]


def of_the_command_line(capsys, *arguments):
    assert main([*arguments]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1].removeprefix("error: ")


@pytest.fixture
def flags(tmp_path):
    def flags(settings):
        return [word for key, value in settings.items() for word in (f"--{key}", value)]

    return flags


ON = {"layersync_enabled": "true"}
BAD = [
    ({**ON, "layersync_student_block": "-1"}, "layersync_student_block"),
    ({**ON, "layersync_student_block": "2", "layersync_lambda": "0"}, "layersync_lambda"),
    ({**ON, "layersync_student_block": "99"}, "layersync_student_block"),
    ({**ON, "layersync_student_block": "2", "layersync_teacher_block": "99"}, "layersync_teacher_block"),
    (ON, "layersync_student_block"),
    ({**ON, "layersync_pairs": "[[1, 2]", "layersync_student_block": "1"}, "layersync_pairs"),
    ({"crepa_enabled": "true"}, "crepa_block_index"),
    ({"crepa_lambda": "1"}, "crepa_lambda"),
    ({"max_train_steps": "0"}, "max_train_steps"),
    ({"seed": "x"}, "seed"),
    ({"model": "/there/is/none"}, "model"),
    ({"family": "kolors"}, "family"),
    ({"family": "nothing"}, "family"),
    ({"lr_warmup_steps": "5"}, "lr_warmup_steps"),
    ({"compare": "true", "layersync_enabled": "false"}, "compare"),
    ({"dispersive_enabled": "true", "dispersive_block": "77"}, "dispersive_block"),
]


@pytest.mark.parametrize(("settings", "key"), BAD, ids=str)
def test_the_trainers_error_to_the_letter_beside_its_field(settings, key, capsys, flags, tmp_path):
    found = checks.check("train", settings, "", "")
    command_line = of_the_command_line(capsys, "train", *flags(settings), "--output_dir", str(tmp_path / "out"))
    assert found["error"] == command_line
    assert [error.key for error in split_error(found["error"], KEYS, found["at"])] == [key]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({}, ""),
        ({"layersync_target": "T"}, "layersync_target"),
        ({**ON, "layersync_student_block": "2", "layersync_accumulation_steps": "0"}, "layersync_accumulation_steps"),
        ({**ON, "layersync_student_block": "x"}, "layersync_student_block"),
        ({"layersync_suggest_dir": "x"}, "layersync_suggest_dir"),
    ],
    ids=str,
)
def test_the_error_of_ones_own_command(settings, key, capsys, flags):
    found = checks.check("run", settings, "", "")
    assert found["error"] == of_the_command_line(capsys, "run", *flags(settings), "--", "python", "-c", "")
    if key:
        assert [error.key for error in split_error(found["error"], KEYS, found["at"])] == [key]


def test_with_a_model_named_its_blocks_are_the_limit_of_ones_own_command():
    settings = {**ON, "layersync_student_block": "9"}
    assert checks.check("run", settings, "", "")["error"] == ""
    assert "could not find layer 9" in checks.check("run", settings, "", "flux")["error"]
    assert checks.check("run", {**ON, "layersync_student_block": "2"}, "/there/is/none", "")["error"] == ""


def test_warnings_and_what_stands_for_what_is_not_given():
    found = checks.check("train", {**ON, "layersync_student_block": "3"}, "", "")
    assert found["error"] == ""
    assert "same block" in found["warnings"][0]
    force = checks.check("train", {"rank": "4"}, "", "")["in_force"]
    assert (force["layersync_student_block"], force["layersync_lambda"]) == ("2", "0.002")
    assert "layersync_lambda" not in checks.check("train", {"layersync_lambda": "0.5"}, "", "")["in_force"]


def test_each_of_several_errors_is_beside_its_field():
    with pytest.raises(ConfigError) as found:
        LayerSyncConfig.from_mapping({**ON, "layersync_student_block": "x", "layersync_warmup_steps": "-1"})
    parts = split_error(str(found.value), KEYS)
    assert [part.key for part in parts] == ["layersync_student_block", "layersync_warmup_steps"]
    assert "; ".join(part.text for part in parts) == str(found.value)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("a block deeper than the model of this family", ""),
        ("model is none", "model"),
        ("the seed of the family", ""),
        ("two spellings of layersync_lambda", "layersync_lambda"),
        ("unknown", ""),
    ],
)
def test_a_plain_word_is_a_field_only_at_the_beginning(text, key):
    assert key_in(text, KEYS) == key


def test_another_language_has_the_original_beneath(monkeypatch):
    monkeypatch.setattr(language, "error_in_the_readers_language", str.upper)
    assert [(part.shown, part.text) for part in split_error("seed is x", KEYS)] == [("SEED IS X", "seed is x")]


def test_what_is_said_of_a_model():
    found = facts.of("train", "", "")
    assert (found["family"], len(found["blocks"]), found["suggested"]) == ("dit", 8, [2, 5])
    assert [2, 5] in found["allowed"]
    assert not found["measurable"]
    assert facts.of("run", "", "") == {}
    assert facts.of("run", "", "flux")["blocks"][0]["path"] == "transformer_blocks.0"
