"""Discovery and resolution: what is installed, what is broken, which adapter is asked first."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import importlib_metadata
import pytest

from layersync_core import (
    AdapterNotInstalledError,
    ConfigError,
    UnknownFamilyError,
    UnsupportedFamilyError,
    get_adapter,
    list_families,
    resolve,
)
from layersync_core.errors import LayerSyncError
from layersync_core.families import registry
from layersync_core.families.folders import read_model_config
from layersync_core.families.known import KNOWN, RENAMED, KnownFamily, distribution_of
from layersync_core.families.registry import GUIDE, installed, load_tiny
from tests import fakes
from tests.fakes import Distribution
from tests.startup_cases import DIT, SD15, SDXL

Install = Callable[[Distribution], Path]
CLASS = "SomebodysTransformer"
CONFIG = {"_class_name": CLASS}
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "huggingface_hub")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution for one test."""
    return lambda distribution: distribution.install(tmp_path, monkeypatch)


def message_of(error: type[LayerSyncError], what: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(error) as info:
        what(*arguments)
    message = str(info.value)
    assert len(message.splitlines()) == 1
    return message


class TestListing:
    def test_the_first_families(self) -> None:
        assert {"dit", "flux", "wan"} <= set(list_families())
        assert list_families() == sorted(list_families())

    def test_what_comes_and_goes_in_a_folder_on_the_path_is_seen(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site = fakes.adapter("somebodys", "somebodys_family", CLASS).write(tmp_path)
        (info,) = site.glob("*.dist-info")
        place = tmp_path / "place"
        place.mkdir()
        monkeypatch.chdir(place)
        for on_path in (str(place), ""):
            monkeypatch.setattr(sys, "path", [on_path, *sys.path])
            assert "somebodys_family" not in list_families()
            installed_here = shutil.copytree(info, place / info.name)
            assert "somebodys_family" in list_families()
            shutil.rmtree(installed_here)
            assert "somebodys_family" not in list_families()
            monkeypatch.undo()
            monkeypatch.chdir(place)

    def test_metadata_is_read_once_while_nothing_changes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = list_families()
        monkeypatch.setattr(importlib_metadata, "distributions", lambda: pytest.fail("read again"))
        assert list_families() == before

    def test_a_third_party(self, install: Install) -> None:
        install(fakes.adapter("somebodys", "somebodys_family", CLASS))
        assert "somebodys_family" in list_families()
        (found,) = installed()["somebodys_family"]
        assert (found.distribution, found.version, str(found)) == ("somebodys", "9.8", "somebodys 9.8")

    def test_imports_no_adapter(self, install: Install) -> None:
        install(fakes.broken("somebodys", "somebodys_family", "raise SystemExit('imported')"))
        assert "somebodys_family" in list_families()

    def test_a_distribution_found_twice_counts_once(self, install: Install) -> None:
        for name in ("Some.Bodys", "some-bodys", "some_bodys"):
            install(fakes.adapter(name, "somebodys_family", CLASS))
        assert len(installed()["somebodys_family"]) == 1
        assert resolve(CONFIG).family == "somebodys_family"

    @pytest.mark.parametrize(
        "torn",
        [
            Distribution("torn", "", entry_points="no section\n[[[\n"),
            Distribution("torn", "", entry_points="[layersync.adapters]\nno value\n"),
            Distribution("torn", "", entry_points="[layersync.adapters]\nx = not a module!!:a b\n"),
            Distribution("torn", "", {"x": "{module}:adapter"}, metadata=None),
            Distribution("torn", "", {"x": "{module}:adapter"}, metadata="Metadata-Version: 2.1\nName: torn\n"),
            Distribution("torn", "", {"x": "{module}:adapter"}, metadata="Metadata-Version: 2.1\nVersion: 1\n"),
            Distribution("torn", "", {"x": "{module}:adapter"}, metadata=""),
        ],
        ids=["sections", "value", "reference", "no METADATA", "no version", "no name", "empty METADATA"],
    )
    def test_torn_metadata_harms_nobody(self, install: Install, torn: Distribution) -> None:
        install(torn)
        assert {"dit", "flux", "wan"} <= set(list_families())
        assert resolve(DIT).family == "dit"
        message_of(UnknownFamilyError, resolve, CONFIG)


class TestLoadVariable:
    def test_unset_loads_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("LAYERSYNC_LOAD", raising=False)
        assert {"dit", "flux", "wan"} <= set(list_families())

    @pytest.mark.parametrize("value", ["wan,flux", " wan , flux ", "flux,wan,", "flux,wan,no_such_family"])
    def test_names_limit(self, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        monkeypatch.setenv("LAYERSYNC_LOAD", value)
        assert list_families() == ["flux", "wan"]
        assert get_adapter("wan").family == "wan"
        message = message_of(AdapterNotInstalledError, get_adapter, "dit")
        assert "LAYERSYNC_LOAD" in message
        assert "dit" in message
        assert "pip install" not in message
        assert "DiTTransformer2DModel" in message_of(AdapterNotInstalledError, resolve, DIT)

    def test_empty_loads_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LAYERSYNC_LOAD", "")
        assert list_families() == []
        assert "installed families: none" in message_of(UnknownFamilyError, resolve, CONFIG)
        for family in ("dit", "flux", "wan"):
            message_of(AdapterNotInstalledError, get_adapter, family)

    def test_what_is_left_out_is_not_imported(self, monkeypatch: pytest.MonkeyPatch, install: Install) -> None:
        install(fakes.broken("somebodys", "somebodys_family", "raise SystemExit('imported')"))
        monkeypatch.setenv("LAYERSYNC_LOAD", "dit")
        assert "somebodys" not in message_of(UnknownFamilyError, resolve, CONFIG)


class TestGetAdapter:
    @pytest.mark.parametrize("family", ["dit", "flux", "wan"])
    def test_installed(self, family: str) -> None:
        assert get_adapter(family).family == family
        assert get_adapter(family) is get_adapter(family)

    @pytest.mark.parametrize("family", sorted(KNOWN))
    def test_known_but_not_installed_gives_the_remedy(self, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("layersync_core.families.registry.installed", dict)
        name = distribution_of(family)
        assert name in ("layersync-adapter-" + family.replace("_", "-"), "layersync-adapters-more")
        assert message_of(AdapterNotInstalledError, get_adapter, family).endswith(f"pip install {name}")
        if family in ("sdxl", "kandinsky5_video"):
            return  # they share their class with other models
        for class_name in KNOWN[family].classes:
            message = message_of(AdapterNotInstalledError, resolve, {"_class_name": class_name})
            assert class_name in message
            assert message.endswith(f"pip install {name}")

    @pytest.mark.parametrize("family", ["no_such_family", "", "Wan", "wan ", "../wan"])
    def test_unknown(self, family: str) -> None:
        message = message_of(UnknownFamilyError, get_adapter, family)
        assert repr(family) in message
        assert "dit, " in message
        assert GUIDE in message


class TestUnknownClass:
    def test_says_so_lists_families_and_points_to_the_guide(self) -> None:
        message = message_of(UnknownFamilyError, resolve, CONFIG)
        assert CLASS in message
        assert ", ".join(list_families()) in message
        assert GUIDE in message
        assert CLASS in message_of(UnknownFamilyError, resolve, fakes.model(CLASS))

    def test_the_class_that_is_told_is_the_model_s_own_and_no_base_s(self) -> None:
        with pytest.raises(UnknownFamilyError, match="no adapter knows the model class Derived;") as error:
            resolve(fakes.model("Derived", type(fakes.model(CLASS))))
        assert error.value.model_class == "Derived"

    @pytest.mark.parametrize("thing", [None, 3, object()])
    def test_what_is_no_model(self, thing: Any) -> None:
        assert type(thing).__name__ in message_of(UnknownFamilyError, resolve, thing)

    @pytest.mark.parametrize("config", [{}, {"_class_name": None}, {"_class_name": 3}, {"_class_name": ["A"]}])
    def test_a_config_without_a_class(self, config: Any) -> None:
        message = message_of(ConfigError, resolve, config)
        assert "_class_name" in message
        assert "family" in message


class TestPaths:
    @pytest.mark.parametrize("part", ["", "transformer", "unet", "model"])
    @pytest.mark.parametrize("as_type", [str, Path])
    def test_folder_pipeline_and_file(self, tmp_path: Path, part: str, as_type: Any) -> None:
        file = tmp_path / part / "config.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(DIT))
        assert resolve(as_type(tmp_path)).family == "dit"
        assert resolve(as_type(file)).family == "dit"
        assert read_model_config(as_type(tmp_path)) == DIT

    @pytest.mark.parametrize("content", ["", "{", "[]", "null", "\0"])
    def test_torn_configs(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "config.json").write_text(content)
        assert str(tmp_path / "config.json") in message_of(ConfigError, resolve, tmp_path)

    def test_none_there(self, tmp_path: Path) -> None:
        assert "has no config.json" in message_of(ConfigError, resolve, tmp_path)
        (tmp_path / "config.json").mkdir()
        assert "has no config.json" in message_of(ConfigError, resolve, tmp_path)
        assert "does not exist" in message_of(ConfigError, resolve, tmp_path / "no")

    def test_a_hub_name_is_not_downloaded(self) -> None:
        message = message_of(ConfigError, resolve, "black-forest-labs/FLUX.1-dev")
        assert "local model folder" in message
        assert "hf download black-forest-labs/FLUX.1-dev" in message
        assert "hf download" not in message_of(ConfigError, resolve, "./black-forest-labs/FLUX.1-dev")


class TestConflicts:
    def test_two_that_claim_an_installed_family(self, install: Install) -> None:
        install(fakes.adapter("somebodys-dit", "dit", "DiTTransformer2DModel"))
        for what, argument in ((get_adapter, "dit"), (resolve, DIT), (resolve, fakes.model("SiT"))):
            message = message_of(ConfigError, what, argument)
            assert "layersync-adapter-dit" in message
            assert "somebodys-dit" in message
        assert get_adapter("flux").family == "flux"
        message_of(UnknownFamilyError, resolve, CONFIG)

    def test_two_third_parties_for_one_family(self, install: Install) -> None:
        install(fakes.adapter("one-party", "somebodys_family", CLASS))
        install(fakes.adapter("other-party", "somebodys_family", CLASS))
        for what, argument in ((get_adapter, "somebodys_family"), (resolve, CONFIG)):
            message = message_of(ConfigError, what, argument)
            assert "one-party" in message
            assert "other-party" in message

    def test_two_third_parties_for_one_class(self, install: Install) -> None:
        install(fakes.adapter("one-party", "family_1", CLASS))
        install(fakes.adapter("other-party", "family_2", CLASS))
        message = message_of(ConfigError, resolve, CONFIG)
        assert CLASS in message
        assert "one-party" in message
        assert "other-party" in message
        assert get_adapter("family_1").family == "family_1"  # the way out
        derived = fakes.model("Derived", type(fakes.model(CLASS)))
        said = "Derived is claimed by one-party (family_1) and other-party (family_2); uninstall"
        assert message_of(ConfigError, resolve, derived).startswith(said)

    def test_two_families_of_one_distribution_for_one_class(self, install: Install) -> None:
        source = fakes.adapter("", "one", CLASS, more=f"other = BlockStackAdapter(family='other', "
                               f"model_classes={CLASS!r}, stacks='others')").source  # fmt: skip
        install(Distribution("somebodys", source, {"one": "{module}:adapter", "other": "{module}:other"}))
        message = message_of(ConfigError, resolve, CONFIG)
        assert f"{CLASS} is claimed by somebodys (one) and somebodys (other)" in message
        assert get_adapter("other").family == "other"

    def test_one_distribution_may_carry_two_families(self, install: Install) -> None:
        source = fakes.adapter("", "one", "OneTransformer", more="other = BlockStackAdapter(family='other', "
                               "model_classes='OtherTransformer', stacks='blocks')").source  # fmt: skip
        install(Distribution("somebodys", source, {"one": "{module}:adapter", "other": "{module}:other"}))
        assert resolve({"_class_name": "OneTransformer"}).family == "one"
        assert resolve({"_class_name": "OtherTransformer"}).family == "other"

    def test_a_conflict_among_others_harms_nobody(self, install: Install) -> None:
        install(fakes.adapter("one-party", "family_1", "One"))
        install(fakes.adapter("other-party", "family_1", "Two"))
        install(fakes.adapter("somebodys", "somebodys_family", CLASS))
        assert resolve(CONFIG).family == "somebodys_family"


_WHOLE = """
class Adapter:
    family = "somebodys_family"
    api_version = 1
    model_classes = ("SomebodysTransformer",)
    def supports_hidden_states(self, model): return True
    def list_blocks(self, model): return []
    def capture(self, model, layers, buffer): ...
adapter = Adapter()
"""
BROKEN = {
    "missing import": ("import a_package_that_is_missing", "a_package_that_is_missing"),
    "error at import": ("raise RuntimeError('first line\\nsecond line')", "RuntimeError: first line"),
    "error without text": ("assert False", "AssertionError"),
    "syntax": ("def :", "SyntaxError"),
    "exits": ("import sys\nsys.exit(3)", "SystemExit"),
    "no such attribute": ("", "has no attribute 'adapter'"),
    "nothing": ("adapter = None", "lacks family, api_version, model_classes"),
    "a method is none": (_WHOLE + "Adapter.capture = None", "capture of fake"),
    "a property that exits": (_WHOLE + "Adapter.family = property(lambda self: exit(0))", "SystemExit: 0"),
    "what a test runner raises": (
        "import pytest\npytest.skip('not here', allow_module_level=True)",
        "Skipped: not here",
    ),
    "lacks one method": (_WHOLE + "del Adapter.list_blocks", "lacks list_blocks"),
    "lacks its version": (_WHOLE + "del Adapter.api_version", "lacks api_version"),
    "newer version": (_WHOLE + "Adapter.api_version = 2", "adapter API 2"),
    "version as text": (_WHOLE + "Adapter.api_version = '1'", "adapter API '1'"),
    "another family": (_WHOLE + "Adapter.family = 'wan'", "adapter says wan"),
    "classes are None": (_WHOLE + "Adapter.model_classes = None", "model_classes"),
    "classes are one text": (_WHOLE + "Adapter.model_classes = 'SomebodysTransformer'", "model_classes"),
    "classes are classes": (_WHOLE + "Adapter.model_classes = (int,)", "model_classes"),
}


class TestBrokenAdapter:
    @pytest.fixture(params=BROKEN.values(), ids=BROKEN)
    def says(self, request: pytest.FixtureRequest, install: Install) -> str:
        source, says = request.param
        install(fakes.broken("somebodys-broken", "somebodys_family", source))
        return says  # type: ignore[no-any-return]

    def test_is_named_with_its_error_when_it_is_asked_for(self, says: str) -> None:
        message = message_of(AdapterNotInstalledError, get_adapter, "somebodys_family")
        assert "somebodys-broken 9.8" in message
        assert says in message

    def test_is_named_when_a_class_is_unknown_since_it_may_be_its(self, says: str) -> None:
        message = message_of(UnknownFamilyError, resolve, CONFIG)
        assert "somebodys-broken 9.8" in message
        assert says in message

    def test_harms_nobody(self, says: str, install: Install) -> None:
        install(fakes.adapter("good-party", "good_family", CLASS))
        assert resolve(CONFIG).family == "good_family"
        assert resolve(DIT).family == "dit"
        assert {"good_family", "dit"} <= set(list_families())

    def test_harms_none_that_claims_the_same_family(self, says: str, install: Install) -> None:
        install(fakes.adapter("somebodys-good", "somebodys_family", CLASS))
        assert resolve(CONFIG).family == "somebodys_family"

    def test_the_whole_one_works(self, install: Install) -> None:
        install(fakes.broken("somebodys", "somebodys_family", _WHOLE))
        assert resolve(CONFIG) is get_adapter("somebodys_family")

    def test_the_cause_is_kept_for_a_bug_report(self, install: Install) -> None:
        install(fakes.broken("somebodys-broken", "somebodys_family"))
        with pytest.raises(AdapterNotInstalledError) as error:
            get_adapter("somebodys_family")
        assert isinstance(error.value.__cause__, ModuleNotFoundError)


class TestOrder:
    """Third-party claims on the name, refusals, known classes, then the remaining third parties."""

    def test_a_third_party_may_provide_a_known_family(self, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(KNOWN, "nowhere", KnownFamily("Nowhere", (CLASS,)))
        assert "layersync-adapter-nowhere" in message_of(AdapterNotInstalledError, resolve, CONFIG)
        install(fakes.adapter("somebodys", "nowhere", CLASS))
        assert resolve(CONFIG).family == "nowhere"

    def test_a_third_party_that_provides_a_refused_family_is_told_once(
        self, install: Install, caplog: pytest.LogCaptureFixture
    ) -> None:
        install(fakes.adapter("somebodys-omnigen", "omnigen", "OmniGenTransformer2DModel"))
        registry._tell_refusal.cache_clear()
        for _ in range(2):
            assert resolve({"_class_name": "OmniGenTransformer2DModel"}).family == "omnigen"
        (line,) = caplog.messages
        assert line.startswith("LayerSync itself refuses family omnigen, since text and image share")
        assert line.endswith("the adapter of somebodys-omnigen 9.8 is used")

    def test_known_classes_come_before_third_parties(self, install: Install) -> None:
        install(fakes.adapter("somebodys", "somebodys_family", "DiTTransformer2DModel"))
        assert resolve(DIT).family == "dit"
        assert get_adapter("somebodys_family").family == "somebodys_family"

    def test_refusals_come_before_third_parties_with_another_name(self, install: Install) -> None:
        install(fakes.adapter("somebodys", "somebodys_family", "OmniGenTransformer2DModel"))
        with pytest.raises(LayerSyncError, match="does not support OmniGen"):
            resolve({"_class_name": "OmniGenTransformer2DModel"})
        assert get_adapter("somebodys_family").family == "somebodys_family"

    def test_an_adapter_of_a_known_family_may_describe_more_classes_than_the_table(
        self, install: Install, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Trainers ship forks of a family's class under other names."""
        monkeypatch.setitem(KNOWN, "nowhere", KnownFamily("Nowhere", ("NowhereTransformer",)))
        install(fakes.adapter("somebodys", "nowhere", "NowhereTransformer", CLASS))
        assert resolve(CONFIG).family == "nowhere"
        assert resolve(fakes.model(CLASS)).family == "nowhere"

    @pytest.mark.parametrize("family", list_families())
    def test_every_class_that_our_adapters_describe_is_found(self, family: str) -> None:
        """But those that need a config to tell are left to it, such as a UNet."""
        for name in get_adapter(family).model_classes:
            if name not in (*RENAMED, "UNet2DConditionModel", "Kandinsky5Transformer3DModel", "DiffusionTransformer3D"):
                assert resolve({"_class_name": name}).family == family

    def test_a_model_without_a_config_is_told_by_its_own_attributes(self) -> None:
        """The original Kandinsky 5, and musubi-tuner's, share one class for image and video."""
        model = fakes.model("DiffusionTransformer3D")
        model.model_dim, model.num_visual_blocks, model.visual_cond = 1792, 32, True
        assert resolve(model).family == "kandinsky5_video"
        model.model_dim, model.num_visual_blocks, model.visual_cond = 2560, 50, False
        assert "Kandinsky 5 Image" in message_of(UnsupportedFamilyError, resolve, model)

    def test_a_class_that_the_table_tells_apart_by_config_is_not_found_by_its_name(self, install: Install) -> None:
        """An adapter for SDXL lists UNet2DConditionModel, which Stable Diffusion 1.5 has too."""
        if "sdxl" not in list_families():
            install(fakes.adapter("somebodys", "sdxl", "UNet2DConditionModel"))
        message_of(UnknownFamilyError, resolve, SD15)
        assert resolve(SDXL).family == "sdxl"

    def test_the_nearest_base_decides(self, install: Install) -> None:
        """sd-scripts derives its Chroma from its Flux."""
        install(fakes.adapter("one-party", "family_1", "Base"))
        install(fakes.adapter("other-party", "family_2", "Derived"))
        derived = fakes.model("Derived", type(fakes.model("Base")))
        assert resolve(derived).family == "family_2"
        assert resolve(fakes.model("Further", type(derived))).family == "family_2"
        assert resolve(fakes.model("Base")).family == "family_1"

    def test_a_subclass_belongs_to_its_base_s_family(self, install: Install) -> None:
        base = type(fakes.model("FluxTransformer2DModel"))
        assert resolve(fakes.model("FluxForRoads", base)).family == "flux"
        install(fakes.adapter("somebodys", "somebodys_family", CLASS))
        base = type(fakes.model(CLASS))
        assert resolve(fakes.model("Sub", base)).family == "somebodys_family"


class TestTiny:
    @pytest.mark.parametrize("family", ["dit", "flux", "wan", "bria", "prx"])
    def test_of_ours(self, family: str) -> None:
        tiny = load_tiny(family)
        assert get_adapter(family).supports_hidden_states(tiny.tiny_model())

    def test_none_shipped(self, install: Install) -> None:
        install(fakes.adapter("somebodys", "somebodys_family", CLASS))
        message = message_of(ConfigError, load_tiny, "somebodys_family")
        assert "somebodys" in message
        assert "tiny" in message


@pytest.mark.parametrize(
    "statement",
    [
        "import layersync_core.families.registry, layersync_core.families.hub",
        "import layersync_core.config, layersync_core.cli",
        "import layersync_core.losses.plugins, layersync_core.losses.hookspecs",
        "import layersync_core.families.adapter, layersync_core.families.refusals, layersync_core.families.known",
        "import layersync_core.protocol, layersync_core.capture.layout",
        "from layersync_core import list_families, resolve; list_families(); resolve({'_class_name': 'SiT'})",
        "from layersync_core import LayerSyncConfig; LayerSyncConfig.from_mapping({'layersync_enabled': False})",
        "from layersync_core import get_adapter; [get_adapter(f) for f in ('dit', 'flux', 'wan')]",
        "from layersync_core.cli import main; main(['list-supported', '--json'])",
    ],
)
def test_needs_no_torch(statement: str) -> None:
    heavy = f"[name for name in {HEAVY} if name in sys.modules]"
    command = [sys.executable, "-c", f"import sys; {statement}; assert not (found := {heavy}), found"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
