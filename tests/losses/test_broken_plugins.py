"""A plugin that fails when it is asked harms nobody but those who have switched it on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from layersync_core import ConfigError, attach, entrypoints
from layersync_core.losses import layersync
from layersync_core.losses.plugins import Plugins
from tests import fakes
from tests.fakes import Distribution
from tests.startup_cases import DIT, GOOD, instance

Install = Callable[[Distribution], Path]

SWITCH = """
from pydantic import BaseModel

class Config(BaseModel):
    odd_enabled: bool = False

@hookimpl
def layersync_config_models(): return [Config]
"""
# What is wrong with a plugin that loads -> the source of its hook, and what is said of it.
FAILING = {
    "raises": ("def layersync_regularizers(config): return 1 / 0", "ZeroDivisionError: division by zero"),
    "exits": ("def layersync_regularizers(config): raise SystemExit(0)", "SystemExit: 0"),
    "rubbish": (
        "def layersync_regularizers(config): return [7]",
        "it returned 7, which lacks name, order, layers, compute",
    ),
    "no list": ("def layersync_regularizers(config): return 7", "'int' object is not iterable"),
    "an objective that raises": ("def layersync_objectives(config): return 1 / 0", "ZeroDivisionError"),
    "an objective without a name": ("def layersync_objectives(config): return [object()]", "lacks name, compute"),
}


@pytest.mark.parametrize("name", FAILING)
def test_it_is_left_out_and_named_where_nobody_asked_for_it(
    install: Install, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    source, failure = FAILING[name]
    install(fakes.plugin("odd-plugin", f"{SWITCH}\n@hookimpl\n{source}", point="odd"))
    with caplog.at_level(logging.WARNING), attach(instance(DIT), GOOD) as sync:
        assert sync.pairs
    assert "plugin odd-plugin 9.8 (odd) is left out" in caplog.text
    assert failure in caplog.text


@pytest.mark.parametrize("name", FAILING)
def test_it_is_an_error_where_it_is_switched_on(install: Install, name: str) -> None:
    source, failure = FAILING[name]
    install(fakes.plugin("odd-plugin", f"{SWITCH}\n@hookimpl\n{source}", point="odd"))
    with pytest.raises(ConfigError, match="switched on, but it fails") as error:
        attach(instance(DIT), {**GOOD, "odd_enabled": True})
    assert "plugin odd-plugin 9.8 (odd)" in str(error.value)
    assert failure in str(error.value)


def test_models_that_exit_are_no_end_of_the_program(install: Install) -> None:
    install(fakes.plugin("odd-plugin", "@hookimpl\ndef layersync_config_models(): raise SystemExit(0)", point="odd"))
    with attach(instance(DIT), GOOD) as sync:
        assert sync.pairs


def test_what_a_plugin_prints_is_no_output_of_the_program(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(fakes.plugin("loud-plugin", "print('here I am')", point="loud"))
    Plugins(builtins=[layersync])
    assert capsys.readouterr() == ("", "here I am\n")


def test_a_plugin_that_is_slow_is_told(
    install: Install, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(entrypoints, "_SLOW", -1)
    install(fakes.plugin("slow-plugin", "", point="slow"))
    with caplog.at_level(logging.WARNING):
        Plugins()
    assert "plugin slow-plugin 9.8 (slow) took 0 s to load; LAYERSYNC_LOAD leaves it out" in caplog.text
