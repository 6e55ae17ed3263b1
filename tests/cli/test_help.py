"""The help of every command: a flag shows what its value may be."""

from __future__ import annotations

import re
from typing import Any

import pytest
from typer.main import get_command

from layersync_core.cli import application, main
from layersync_core.cli.options import models_of
from layersync_core.cli.plugin_commands import command_name
from tests.cli.support import Capture

COMMANDS = {command_name(item): item for item in application().registered_commands}


def options_of(name: str) -> list[Any]:
    group: Any = get_command(application())
    return [item for item in group.commands[name].params if item.param_type_name == "option" and not item.hidden]


@pytest.mark.parametrize("name", COMMANDS)
def test_no_flag_is_of_just_any_text(name: str, capsys: Capture) -> None:
    assert main([name, "--help"]) == 0
    (flags,) = re.findall(r"\nOptions:\n(.*)", capsys.readouterr().out, re.DOTALL)
    assert re.findall(r"--\w+ (<str>|TEXT|<path>|PATH)\s", flags) == []
    for option in options_of(name):
        assert option.is_flag or option.metavar, option.name


@pytest.mark.parametrize("name", [name for name, item in COMMANDS.items() if models_of(item)])
def test_a_setting_s_flag_shows_its_type_or_choices(name: str) -> None:
    shown = {option.name: option.metavar for option in options_of(name)}
    for model in models_of(COMMANDS[name]):
        for key, field in model.model_fields.items():
            told = str(field.annotation)
            if "Literal" in told:
                choices = re.search(r"Literal\[(.*?)\]", told)
                assert choices is not None
                assert shown[key] == "|".join(re.findall(r"'(.*?)'", choices[1]))
            elif field.annotation is bool:
                assert shown[key] == "[true|false]"
            elif "list" in told or "tuple" in told:
                assert shown[key] == "<list>"
            else:
                kind = next((kind for kind in ("int", "float") if kind in told), "text")
                assert shown[key] == {"int": "<int>", "float": "<number>", "text": "<text>"}[kind]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("train", "optimiser steps [at least 1; default: 400]"),
        ("train", "linear warm-up [at least 0; default: 0]"),
        ("train", "switch LayerSync on or off [default: true]"),
        ("run", "switch LayerSync on or off --"),
        ("run", "weight of the term (default: the preset's) [above 0]"),
        ("run", "rises linearly from 0 [at least 0; default: 0]"),
        ("suggest", "such as 0.2,0.5,0.8 [default: [0.2, 0.5, 0.8]]"),
    ],
)
def test_limits_and_defaults(name: str, says: str, capsys: Capture) -> None:
    assert main([name, "--help"]) == 0
    assert says in " ".join(capsys.readouterr().out.split())
