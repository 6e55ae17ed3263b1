"""Plugins: third parties on the same footing as LayerSync, and broken ones that harm nobody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from layersync_core import ConfigError, LayerSyncConfig, Objective, attach
from layersync_core.cli import main
from layersync_core.losses import layersync
from layersync_core.losses.layersync import LayerSync
from layersync_core.losses.plugins import Plugins
from layersync_core.session import plugins
from tests import fakes
from tests.fakes import Distribution
from tests.startup_cases import DIT, GOOD, StartupCase, instance

Install = Callable[[Distribution], Path]

# A regularizer that pulls a layer's tokens to zero, with keys of its own.
NORM = """
from pydantic import BaseModel, Field
from layersync_core.config import unknown_key, validate
from layersync_core.errors import ConfigError
from layersync_core.protocol import Term

class NormConfig(BaseModel):
    norm_enabled: bool = Field(False, description="pull a layer's tokens to zero")
    norm_layer: int = 0
    norm_weight: float = 1.0

class Norm:
    name, order = "norm", 100
    def __init__(self, config): self.config = config
    def layers(self, blocks): return {self.config.norm_layer}
    def compute(self, states, step):
        loss = self.config.norm_weight * states.trainable_tokens(self.config.norm_layer).square().mean()
        return Term(loss, {"norm_loss": loss})

@hookimpl
def layersync_config_models(): return [NormConfig]

@hookimpl
def layersync_regularizers(config):
    mine = {key: value for key, value in config.given.items() if key.startswith("norm_")}
    for key in mine:
        if key not in NormConfig.model_fields:
            raise ConfigError(unknown_key(key, NormConfig.model_fields))
    settings = validate(NormConfig, mine)
    return [Norm(settings)] if settings.norm_enabled else []
"""
# An objective that trains the model to predict nothing; {name} stands for its name.
OBJECTIVE = """
from pydantic import BaseModel
from layersync_core import Term, is_on

class Config(BaseModel):
    {name}_enabled: bool = False

class Nothing:
    name = "{name}"
    def compute(self, predict, batch, step):
        return Term(predict(batch.noisy, batch.time, batch.labels).square().mean())

@hookimpl
def layersync_config_models(): return [Config]

@hookimpl
def layersync_objectives(config): return [Nothing()] if is_on(config.given.get("{name}_enabled")) else []
"""
HELLO = """
@hookimpl
def layersync_commands(app):
    @app.command("hello")
    def hello(name: str = "you") -> None:
        if name == "error":
            from layersync_core.errors import ConfigError
            raise ConfigError("not\\nyou")
        if name == "bug":
            raise RuntimeError("bug")
        print(f"hello {name}")
"""
FAILS_IN_A_HOOK = """
@hookimpl
def layersync_commands(app):
    import a_package_that_is_missing
@hookimpl
def layersync_config_models():
    import a_package_that_is_missing
"""
BROKEN = {
    "missing import": "import a_package_that_is_missing",
    "exits": "raise SystemExit(3)",
    "syntax": "def :",
    "wrong arguments": "@hookimpl\ndef layersync_config_models(a_package_that_is_missing): ...",
    "in its hooks": FAILS_IN_A_HOOK,
}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    model, settings = StartupCase("", GOOD, ()).write(tmp_path)
    return ["check", str(model), "--config", str(settings)]


def load() -> Plugins:
    """Load what is installed now."""
    return Plugins(builtins=[layersync])


def read(**more: Any) -> LayerSyncConfig:
    return LayerSyncConfig.from_mapping(GOOD | more)


class TestOurs:
    def test_layersync_comes_through_the_same_door(self) -> None:
        (regularizer,) = load().regularizers(read())
        assert isinstance(regularizer, LayerSync)
        assert load().regularizers(LayerSyncConfig()) == []

    def test_layersync_claims_its_keys_first(self) -> None:
        assert load().config_models()[0] is LayerSyncConfig

    def test_are_loaded_once(self) -> None:
        assert plugins() is plugins()


class TestRegularizer:
    @pytest.fixture(autouse=True)
    def norm(self, install: Install) -> None:
        install(fakes.plugin("layersync-plugin-norm", NORM, "norm"))

    def test_finds_its_keys_in_given(self) -> None:
        norm, ours = load().regularizers(read(**{"--norm-enabled": "true", "norm_layer": "3"}))
        assert (norm.name, ours.name) == ("norm", "layersync")  # 100 before 200
        assert norm.layers([]) == {3}

    def test_is_off_until_it_is_enabled(self) -> None:
        assert [item.name for item in load().regularizers(read(norm_layer=3))] == ["layersync"]

    def test_runs_without_layersync(self) -> None:
        (norm,) = load().regularizers(LayerSyncConfig.from_mapping({"norm_enabled": True}))
        assert norm.name == "norm"

    def test_its_mistakes_are_told_by_attach(self) -> None:
        model = instance(DIT)
        before = fakes.hooks(model)
        for settings, says in (
            ({"norm_layr": 3}, "did you mean norm_layer"),
            ({"norm_layer": "x"}, "norm_layer is 'x'"),
        ):
            with pytest.raises(ConfigError, match=says) as error:
                attach(model, GOOD | {"norm_enabled": True} | settings)
            assert "\n" not in str(error.value)
        assert fakes.hooks(model) == before

    def test_adds_its_term(self) -> None:
        from layersync_adapter_dit import tiny

        torch.manual_seed(0)
        model = tiny.tiny_model()
        inputs = tiny.example_inputs(model, 2)
        losses = {}
        for name, settings in (
            ("layersync", GOOD),
            ("norm", {"norm_enabled": True}),
            ("both", GOOD | {"norm_enabled": True}),
        ):
            with attach(model.eval(), settings) as sync:
                model(**inputs)
                losses[name] = sync.loss()
                assert ("norm_loss" in sync.metrics()) is (name != "layersync")
        assert losses["both"].item() == pytest.approx(losses["layersync"].item() + losses["norm"].item(), rel=1e-6)

    def test_its_keys_are_flags(self, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*files, "--norm-enabled", "--norm_layer", "3"]) == 0
        assert main([*files, "--norm-enabled", "--norm_layer", "x"]) == 2
        assert "norm_layer is 'x'" in capsys.readouterr().err

    def test_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LAYERSYNC_LOAD", "dit")
        assert [item.name for item in load().regularizers(read())] == ["layersync"]
        with pytest.raises(ConfigError, match="norm_enabled is set, but LAYERSYNC_LOAD leaves out"):
            load().regularizers(read(norm_enabled=True))
        for off in (False, "false", "no", 0):
            assert [item.name for item in load().regularizers(read(norm_enabled=off))] == ["layersync"]

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ({"NORM_ENABLED": True}, "NORM_ENABLED would do nothing; the setting is norm_enabled"),
            ({"norm": {"enabled": True}}, "norm is a section, .* as norm_enabled"),
            ({"CREPA_ENABLED": True}, "the setting is crepa_enabled"),
        ],
    )
    def test_its_keys_in_capitals_or_a_section(self, given: dict[str, Any], says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            load().regularizers(read(**given))
        assert len(load().regularizers(read(normal={"enabled": 1}, norms=2, norm=3))) == 1

    def test_another_of_its_name_is_refused(self, install: Install) -> None:
        install(fakes.plugin("somebodys-norm", NORM, "norm2"))
        with pytest.raises(ConfigError, match=r"norm_enabled is set, but .* and somebodys-norm .* claim norm_enabled"):
            load().regularizers(read(norm_enabled=True))


class TestObjective:
    @pytest.fixture(autouse=True)
    def two(self, install: Install) -> None:
        for name in ("nothing", "naught"):
            install(fakes.plugin(f"layersync-plugin-{name}", OBJECTIVE.replace("{name}", name), name))

    def test_is_new_each_time_and_off_until_it_is_enabled(self) -> None:
        loaded = load()
        one, other = (loaded.objective(read(nothing_enabled="true")) for _ in range(2))
        assert isinstance(one, Objective)
        assert one.name == "nothing"
        assert one is not other
        assert loaded.objective(read()) is None
        assert loaded.objective(read(nothing_enabled=False)) is None

    def test_two_are_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"objectives naught and nothing are enabled, .* switch all but one"):
            load().objective(read(nothing_enabled=True, naught_enabled=True))

    @pytest.mark.parametrize("given", [GOOD, {}], ids=["with LayerSync", "alone"])
    def test_attach_cannot_offer_it(self, given: dict[str, Any]) -> None:
        model = instance(DIT)
        before = fakes.hooks(model)
        with pytest.raises(ConfigError, match=r"objective nothing replaces .* only layersync train can") as error:
            attach(model, given | {"nothing_enabled": True})
        assert "\n" not in str(error.value)
        assert fakes.hooks(model) == before
        attach(model, GOOD | {"nothing_enabled": False}).remove()

    def test_a_loop_that_runs_it_attaches(self) -> None:
        objective = plugins().objective(read(nothing_enabled=True))
        with attach(instance(DIT), GOOD | {"nothing_enabled": True}, objective=objective) as sync:
            assert str(sync.student) == "block 2 of 6 (transformer_blocks.1)"

    def test_check_says_so(self, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*files, "--nothing_enabled"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "objective nothing replaces the main loss" in line
        assert "layersync run" in line

    def test_run_says_so_before_it_starts_anything(
        self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("layersync_core.run.settings.third_parties", load)
        flags = [word for key, value in GOOD.items() for word in (f"--{key}", str(value))]
        assert main(["run", *flags, "--nothing_enabled", "true", "--", "python", "-c", "print('it ran')"]) == 2
        said = capfd.readouterr()
        (line,) = said.err.splitlines()
        assert "nothing_enabled is set, but objective nothing replaces the main loss" in line
        assert "it ran" not in said.out


@pytest.mark.parametrize("value", [True, "true", 1])
def test_a_known_regularizer_that_is_not_installed(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layersync_core.losses.plugins.providers", lambda group: [])
    alone = load()
    with pytest.raises(ConfigError, match=r"crepa_enabled is set, .* pip install layersync-plugin-crepa"):
        alone.regularizers(read(crepa_enabled=value))
    for off in (False, "false", None):
        assert [item.name for item in alone.regularizers(read(crepa_enabled=off))] == ["layersync"]


class TestCommand:
    @pytest.fixture(autouse=True)
    def hello(self, install: Install) -> None:
        install(fakes.plugin("layersync-plugin-hello", HELLO, "hello"))

    def test_runs(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["hello", "--name", "there"]) == 0
        assert capsys.readouterr().out == "hello there\n"

    def test_is_listed(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--help"]) == 0
        assert "hello" in capsys.readouterr().out

    def test_its_errors_are_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["hello", "--name", "error"]) == 2
        assert capsys.readouterr().err == "error: not you\n"
        assert main(["hello", "--nam", "x"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert "--nam" in line

    def test_its_bugs_come_through(self) -> None:
        with pytest.raises(RuntimeError, match="bug"):
            main(["hello", "--name", "bug"])

    def test_beside_a_broken_one(self, install: Install, capsys: pytest.CaptureFixture[str]) -> None:
        install(fakes.plugin("somebodys-plugin", FAILS_IN_A_HOOK, "somebodys"))
        assert main(["hello"]) == 0
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("source", BROKEN.values(), ids=BROKEN)
class TestBroken:
    @pytest.fixture(autouse=True)
    def broken(self, install: Install, source: str) -> None:
        install(fakes.plugin("somebodys-plugin", source, "somebodys"))

    def test_harms_nobody(self, source: str, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(files) == 0
        assert main(["--help"]) == 0
        assert main(["inspect", files[1]]) == 0
        assert capsys.readouterr().err == ""
        with attach(instance(DIT), GOOD) as sync:
            assert str(sync.student) == "block 2 of 6 (transformer_blocks.1)"

    def test_is_named_when_a_command_is_missing(self, source: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["somebodys-command"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert "'somebodys-command'" in line
        assert "somebodys-plugin 9.8" in line
        assert ("SyntaxError" if source == "def :" else "SystemExit: 3" if "Exit" in source else "missing") in line

    def test_another_with_the_same_name_is_named_too(
        self, source: str, install: Install, capsys: pytest.CaptureFixture[str]
    ) -> None:
        install(fakes.plugin("other-plugin", "1 / 0", "somebodys"))
        assert main(["somebodys-command"]) == 2
        message = capsys.readouterr().err
        assert "somebodys-plugin 9.8" in message
        assert "other-plugin 9.8" in message
        assert "ZeroDivisionError" in message


def test_a_plugin_refused_half_way_takes_no_part(install: Install) -> None:
    install(
        fakes.plugin(
            "somebodys-plugin",
            "@hookimpl\ndef layersync_config_models(): raise RuntimeError('asked')\n"
            "@hookimpl\ndef layersync_regularizers(confg): ...\n",
            "somebodys",
        )
    )
    loaded = load()
    assert loaded.config_models()[0] is LayerSyncConfig
    (failure,) = loaded.broken.values()
    assert "confg" in failure


def test_two_distributions_with_one_name_of_a_plugin(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(fakes.plugin("somebodys-plugin", HELLO, "hello"))
    install(fakes.plugin("other-plugin", HELLO.replace("hello", "goodbye"), "hello"))
    assert main(["hello"]) == main(["goodbye"]) == 0
    assert capsys.readouterr().out == "hello you\ngoodbye you\n"


def test_two_plugins_of_one_distribution(install: Install) -> None:
    source = (
        "from pydantic import BaseModel, create_model\n"
        "def plugin(name):\n"
        "    class Plugin:\n"
        "        @hookimpl\n"
        "        def layersync_config_models(self): return [create_model(name, **{f'{name}_enabled': (bool, False)})]\n"
        "    return Plugin()\n"
        "one, other = plugin('one'), plugin('other')\n"
    )
    header = "from layersync_core import hookimpl\n"
    points = {"one": "{module}:one", "other": "{module}:other"}
    install(Distribution("somebodys-plugin", header + source, points, fakes.PLUGINS))
    loaded = load()
    assert loaded.broken == {}
    assert {"one", "other"} < {model.__name__ for model in loaded.config_models()}
