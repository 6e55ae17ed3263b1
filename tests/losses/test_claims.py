"""The keys that plugins claim: what cannot be used, or belongs to somebody else, harms only those who ask for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layersync_core import ConfigError, LayerSyncConfig, LayerSyncError, attach
from layersync_core.cli import main
from layersync_core.losses import layersync
from layersync_core.losses.plugins import Plugins
from layersync_core.session import plugins
from tests import fakes
from tests.fakes import Distribution
from tests.startup_cases import DIT, GOOD, StartupCase, instance

Install = Callable[[Distribution], Path]

MODEL = """
from pydantic import BaseModel, Field, model_validator

class Config(BaseModel):
    {name}_enabled: bool = False
    {field}

class Nothing:
    name, order = "{name}", 100
    def layers(self, blocks): return set()
    def compute(self, states, step): return None

@hookimpl
def layersync_config_models(): return [{models}]

@hookimpl
def layersync_regularizers(config): return [Nothing()] if config.of(Config) else []
"""


OTHERS = """
from pydantic import BaseModel

class Config(BaseModel):
    {switch}: bool = False
    {key}: float = 0

@hookimpl
def layersync_config_models(): return [Config]
"""


def model(field: str = "", models: str = "Config", name: str = "odd") -> str:
    return MODEL.format(name=name, field=field, models=models)


# What is wrong with the models of a plugin -> its source, and what is said of it.
UNUSABLE = {
    "no pydantic model": (model(models="Config, dict"), "returned <class 'dict'>, which isn't a pydantic model"),
    "an instance": (model(models="Config()"), "which isn't a pydantic model"),
    "no list": (model().replace("[Config]", "7"), "TypeError"),
    "a key of ours": (
        model("layersync_lambda: float = 1"),
        "Config claims layersync_lambda, which a plugin may not use",
    ),
    "a key like ours": (model("layersync_odd: float = 1"), "Config claims layersync_odd"),
    "a spelling of ours": (model("reg_weight: float = 1"), "Config claims reg_weight"),
    "a flag of a command": (model("config: str = ''"), "Config claims config"),
    "a default that is none": (
        model("odd_weight: float = 'much'"),
        "odd_weight is 'much': input should be a valid num",
    ),
    "no default": (model("odd_weight: float"), "odd_weight"),
    "fails when it is built": (
        model("@model_validator(mode='after')\n    def check(self): raise RuntimeError('never')"),
        "RuntimeError: never",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
class TestUnusable:
    @pytest.fixture(autouse=True)
    def odd(self, install: Install, name: str) -> None:
        install(fakes.plugin("odd-plugin", UNUSABLE[name][0], point="odd"))

    def test_it_is_left_out_and_named_where_nobody_asked_for_it(
        self, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING), attach(instance(DIT), {**GOOD, "layersync_lambda": 0.3}) as sync:
            assert sync.pairs[0].weight == 0.3
        (line,) = caplog.messages
        assert line.startswith("plugin odd-plugin 9.8 (odd) is left out")
        assert UNUSABLE[name][1] in line
        assert "\n" not in line

    def test_it_is_an_error_where_it_is_switched_on(self, name: str) -> None:
        with pytest.raises(ConfigError) as error:
            attach(instance(DIT), {**GOOD, "odd_enabled": True})
        assert "odd_enabled" in str(error.value)
        assert "plugin odd-plugin 9.8 (odd)" in str(error.value)
        assert UNUSABLE[name][1] in str(error.value)

    def test_commands_work_without_its_flags(
        self, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path, settings = StartupCase("", GOOD, ()).write(tmp_path)
        assert main(["check", str(path), "--config", str(settings)]) == 0
        assert main(["run", "--layersync_enabled", "false", "--", "a_command_that_is_missing"]) == 2
        assert "no command 'a_command_that_is_missing'" in capsys.readouterr().err


class TestOneKeyOfTwo:
    @pytest.fixture(autouse=True)
    def two(self, install: Install) -> None:
        install(fakes.plugin("one-plugin", model("shared_weight: float = 1", name="one"), point="one"))
        install(fakes.plugin("other-plugin", model("shared_weight: int = 2", name="other"), point="other"))
        install(fakes.plugin("third-plugin", model("third_weight: int = 2", name="third"), point="third"))

    def test_both_are_left_out_and_named_in_one_line(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING), attach(instance(DIT), {**GOOD, "third_enabled": True}) as sync:
            assert sync.pairs
        (line,) = caplog.messages
        assert "one-plugin 9.8 (one)" in line
        assert "other-plugin 9.8 (other)" in line
        assert "shared_weight" in line

    @pytest.mark.parametrize("switch", ["one_enabled", "other_enabled"])
    def test_it_is_an_error_where_one_of_them_is_switched_on(self, switch: str) -> None:
        with pytest.raises(ConfigError, match=f"{switch} is set, but .* shared_weight") as error:
            attach(instance(DIT), {**GOOD, switch: True})
        assert "one-plugin 9.8 (one)" in str(error.value)
        assert "other-plugin 9.8 (other)" in str(error.value)

    def test_the_third_has_its_key(self) -> None:
        loaded = Plugins(builtins=[layersync])
        keys = [key for model in loaded.config_models() for key in model.model_fields]
        assert "third_weight" in keys
        assert "shared_weight" not in keys


CREPA = {"crepa_enabled": True, "crepa_block_index": 1, "crepa_use_backbone_features": True}


@pytest.mark.parametrize(
    ("switch", "key"),
    [("odd_enabled", "crepa_lambda"), ("odd_enabled", "crepa_of_my_own"), ("crepa_enabled", "odd_weight")],
    ids=["a key of its", "a key that begins as its", "its switch"],
)
class TestKeyOfOurs:
    """A third party that claims what belongs to CREPA, or would be refused as CREPA's."""

    @pytest.fixture(autouse=True)
    def odd(self, install: Install, switch: str, key: str) -> None:
        install(fakes.plugin("odd-plugin", OTHERS.format(switch=switch, key=key), point="odd"))

    @pytest.mark.parametrize("more", [{}, CREPA], ids=["LayerSync alone", "with CREPA"])
    def test_it_is_left_out_and_crepa_works(
        self, switch: str, key: str, more: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            regularizers = Plugins(builtins=[layersync]).regularizers(LayerSyncConfig.from_mapping(GOOD | more))
        assert [item.name for item in regularizers] == [*(["crepa"] if more else []), "layersync"]
        (line,) = [line for line in caplog.messages if "left out" in line]
        claimed = key if switch == "odd_enabled" else switch
        assert line.startswith(f"plugin odd-plugin 9.8 (odd) is left out: it claims {claimed}, which belongs to")
        assert "layersync-plugin-crepa" in line

    def test_it_is_an_error_where_it_is_asked_for(self, switch: str, key: str) -> None:
        with pytest.raises(ConfigError, match=r"odd_enabled is set, but plugin odd-plugin .* layersync-plugin-crepa"):
            attach(instance(DIT), {**GOOD, "odd_enabled": True})


class TestKeyOfAnotherThirdParty:
    @pytest.fixture(autouse=True)
    def two(self, install: Install) -> None:
        install(fakes.plugin("good-plugin", model("good_weight: float = 1", name="good"), point="good"))
        install(fakes.plugin("odd-plugin", OTHERS.format(switch="mine_enabled", key="good_weight"), point="odd"))

    def test_who_claims_it_under_another_s_prefix_is_left_out(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING), attach(instance(DIT), GOOD | {"good_enabled": True, "good_weight": 2}):
            pass
        (line,) = caplog.messages
        assert "plugin odd-plugin 9.8 (odd) is left out: it claims good_weight, which belongs to good-plugin" in line

    @pytest.mark.parametrize("switch", ["odd_enabled", "mine_enabled"])
    def test_either_of_its_switches_asks_for_it(self, switch: str) -> None:
        with pytest.raises(ConfigError, match=rf"{switch} is set, but plugin odd-plugin 9\.8"):
            attach(instance(DIT), {**GOOD, switch: True})


def test_a_broken_one_of_the_same_name_as_a_working_one_is_not_asked_for(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install(fakes.plugin("a-broken-plugin", "1 / 0", point="good"))
    install(fakes.plugin("good-plugin", model(name="good"), point="good"))
    with caplog.at_level(logging.WARNING):
        attach(instance(DIT), GOOD | {"good_enabled": True}).remove()
    assert caplog.messages == ["plugin a-broken-plugin 9.8 (good) is left out: ZeroDivisionError: division by zero"]
    assert "good_" not in Plugins(builtins=[layersync]).absent_prefixes()


def test_a_key_of_the_trainer_s(install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(fakes.plugin("odd-plugin", OTHERS.format(switch="odd_enabled", key="learning_rate"), point="odd"))
    settings = tmp_path / "settings.json"
    settings.write_text('{"odd_enabled": true, "learning_rate": 0.1}')
    attach(instance(DIT), GOOD).remove()
    assert main(["train", "--config", str(settings), "--output_dir", str(tmp_path / "out")]) == 2
    assert "plugin odd-plugin 9.8 (odd) cannot be used: it claims learning_rate" in capsys.readouterr().err
    assert all("learning_rate" not in model.model_fields for model in plugins().config_models())


@pytest.mark.parametrize("source", ["raise RuntimeError('odd')", model(name="layersync"), ""])
def test_a_plugin_with_layersync_s_own_name_is_not_what_layersync_enabled_asks_for(
    install: Install, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    install(fakes.plugin("odd-plugin", source, point="layersync"))
    with caplog.at_level(logging.WARNING), attach(instance(DIT), GOOD) as sync:
        assert sync.pairs
    (line,) = caplog.messages
    assert "plugin odd-plugin 9.8 (layersync) is left out" in line


WRONG: dict[str, Any] = {
    "name": ("name = 3", "Odd.name is 3"),
    "order": ("order = 'first'", "Odd.order is 'first'"),
    "layers": ("layers = {1}", "Odd.layers is {1}"),
    "compute": ("compute = None", "Odd.compute is None"),
}


@pytest.mark.parametrize("member", WRONG)
def test_a_regularizer_of_wrong_types(install: Install, member: str, caplog: pytest.LogCaptureFixture) -> None:
    line, says = WRONG[member]
    source = f"""
class Odd:
    name, order = "odd", 100
    def layers(self, blocks): return set()
    def compute(self, states, step): return None
    {line}

@hookimpl
def layersync_regularizers(config): return [Odd()]
"""
    install(fakes.plugin("odd-plugin", source, point="odd"))
    with caplog.at_level(logging.WARNING), attach(instance(DIT), GOOD) as sync:
        assert sync.pairs
    assert says in caplog.text
    with pytest.raises(ConfigError, match=r"plugin odd-plugin 9\.8"):
        attach(instance(DIT), {**GOOD, "odd_enabled": True})


@pytest.mark.parametrize("body", ["return 1 / 0", "return None", "return {'first'}"])
def test_a_regularizer_whose_layers_fail(install: Install, body: str) -> None:
    source = f"""
class Odd:
    name, order = "odd", 100
    def layers(self, blocks): {body}
    def compute(self, states, step): return None

@hookimpl
def layersync_regularizers(config): return [Odd()] if config.given.get("odd_enabled") else []
"""
    install(fakes.plugin("odd-plugin", source, point="odd"))
    attach(instance(DIT), GOOD).remove()
    with pytest.raises(LayerSyncError, match="regularizer odd") as error:
        attach(instance(DIT), {**GOOD, "odd_enabled": True})
    assert "\n" not in str(error.value)


COMMAND = """
@hookimpl
def layersync_commands(app):
    @app.command("hello")
    def hello() -> None: print("{word}")
"""


def test_a_command_of_two_is_the_first_s(
    install: Install, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    install(fakes.plugin("b-plugin", COMMAND.format(word="b"), point="b"))
    install(fakes.plugin("a-plugin", COMMAND.format(word="a"), point="a"))
    assert main(["hello"]) == 0
    assert capsys.readouterr().out == "a\n"
    assert caplog.messages == ["plugin b-plugin 9.8 (b): a command hello already exists, so the plugin's is left out"]


@pytest.mark.parametrize("name", ["train", "check"])
def test_a_command_of_ours_stays_ours(
    install: Install, name: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    install(fakes.plugin("a-plugin", COMMAND.replace("hello", name), point="a"))
    assert main(["train", "--help"]) == 0
    assert "flow matching" in capsys.readouterr().out
    assert main(["--help"]) == 0  # which asks every plugin
    assert f"plugin a-plugin 9.8 (a): a command {name} already exists" in caplog.text


# What a plugin does to the application -> whether its own command is there in spite of it.
HARMFUL = {
    "clears it": ("app.registered_commands.clear()", True),
    "replaces the callback": ("app.callback()(lambda: exit(0))", True),
    "a parameter of no type for a flag": ("app.command('odd')(odd)", False),
    "exits": ("raise SystemExit(0)", False),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_what_a_plugin_does_to_the_application_harms_no_other(
    install: Install, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line, works = HARMFUL[name]
    source = f"""
def odd(x: list[list[int]]) -> None: ...

@hookimpl
def layersync_commands(app):
    {line}
    @app.command()
    def say_hello() -> None: print("hello")
"""
    install(fakes.plugin("a-plugin", source, point="a"))
    assert main(["train", "--help"]) == 0
    assert "flow matching" in capsys.readouterr().out
    assert main(["say-hello"]) == (0 if works else 2)
    out, err = capsys.readouterr()
    assert out == ("hello\n" if works else "")
    assert works or "plugin a-plugin 9.8 (a) cannot be used" in err


def test_an_objective_that_nobody_asked_for(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    source = """
class Odd:
    name = "odd"
    def compute(self, predict, batch, step): return None

@hookimpl
def layersync_objectives(config): return [Odd()]
"""
    install(fakes.plugin("odd-plugin", source, point="odd"))
    attach(instance(DIT), GOOD).remove()
    assert caplog.messages == ["plugin odd-plugin 9.8 (odd) is left out: it brings odd, though odd_enabled is off"]
    with pytest.raises(ConfigError, match="objective odd replaces the main loss"):
        attach(instance(DIT), GOOD | {"odd_enabled": True})


def test_what_a_plugin_says_of_its_settings_is_for_whoever_gives_them(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    source = """
from layersync_core import ConfigError

@hookimpl
def layersync_regularizers(config): raise ConfigError("odd_weight is missing")
"""
    install(fakes.plugin("odd-plugin", source, point="odd"))
    attach(instance(DIT), GOOD).remove()
    assert caplog.messages == ["plugin odd-plugin 9.8 (odd) is left out: odd_weight is missing"]
    with pytest.raises(ConfigError, match=r"^odd_weight is missing$"):
        attach(instance(DIT), GOOD | {"odd_enabled": True})
