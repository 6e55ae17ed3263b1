"""The families that are refused, from configs, folders and instances; and their near neighbours, which are not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest

from layersync_core import AdapterNotInstalledError, UnknownFamilyError, UnsupportedFamilyError, attach, resolve
from layersync_core.families.known import KNOWN, known_family
from layersync_core.families.refusals import REFUSALS, refused_family
from layersync_core.families.registry import get_adapter, identify
from tests import fakes
from tests.startup_cases import (
    CASCADE_B,
    CASCADE_C,
    GOOD,
    KANDINSKY_CUSTOM,
    KANDINSKY_IMAGE,
    KANDINSKY_VIDEO_LITE,
    KANDINSKY_VIDEO_PRO,
    KOLORS,
    LUMINA2,
    OMNIGEN,
    SD15,
    SDXL,
    Json,
    instance,
)


def without(config: Json, *keys: str) -> Json:
    return {key: value for key, value in config.items() if key not in keys}


REFUSED: dict[str, tuple[str, Json]] = {
    "kolors": ("kolors", KOLORS),
    "kolors without encoder_hid_dim": ("kolors", KOLORS | {"encoder_hid_dim": None, "encoder_hid_dim_type": None}),
    "kolors with another projection": ("kolors", KOLORS | {"projection_class_embeddings_input_dim": 2816}),
    "kolors with an IP-Adapter": ("kolors", KOLORS | {"encoder_hid_dim_type": "ip_image_proj"}),
    "lumina2": ("lumina2", LUMINA2),
    "stable cascade C": ("stable_cascade_c", CASCADE_C),
    "stable cascade B": ("stable_cascade_c", CASCADE_B),
    "kandinsky 5 image": ("kandinsky5_image", KANDINSKY_IMAGE),
    "kandinsky 5 image by its size": ("kandinsky5_image", KANDINSKY_IMAGE | {"visual_cond": True}),
    "kandinsky 5 of the video's size": ("kandinsky5_image", KANDINSKY_VIDEO_LITE | {"visual_cond": False}),
    "kandinsky 5 that does not say": ("kandinsky5_image", without(KANDINSKY_VIDEO_LITE, "visual_cond")),
    "kandinsky 5 of no released size": ("kandinsky5_image", KANDINSKY_CUSTOM),
    "kandinsky 5 of a crossed size": ("kandinsky5_image", KANDINSKY_VIDEO_LITE | {"num_visual_blocks": 60}),
    "omnigen": ("omnigen", OMNIGEN),
}
NOT_REFUSED: dict[str, tuple[str | None, Json]] = {
    "sdxl": ("sdxl", SDXL),
    "sdxl with an IP-Adapter": ("sdxl", SDXL | {"encoder_hid_dim_type": "ip_image_proj"}),
    "sdxl refiner": ("sdxl", SDXL | {"projection_class_embeddings_input_dim": 2560}),
    "sdxl with a text for a number": ("sdxl", SDXL | {"projection_class_embeddings_input_dim": "2816"}),
    "sd 1.5": (None, SD15),
    "sd 1.5 with an IP-Adapter": (None, SD15 | {"encoder_hid_dim_type": "ip_image_proj"}),
    "deepfloyd": (None, SD15 | {"addition_embed_type": "text", "encoder_hid_dim": 4096}),
    "unclip": (None, SD15 | {"addition_embed_type": "image", "encoder_hid_dim": 1280}),
    "kandinsky 5 video lite": ("kandinsky5_video", KANDINSKY_VIDEO_LITE),
    "kandinsky 5 video pro": ("kandinsky5_video", KANDINSKY_VIDEO_PRO),
    "lumina next": ("lumina_next", {"_class_name": "LuminaNextDiT2DModel"}),
    "stable cascade's older kin": (None, {"_class_name": "WuerstchenPrior"}),
    "kandinsky 3": (None, {"_class_name": "Kandinsky3UNet"}),
}
refused = pytest.mark.parametrize(("family", "config"), REFUSED.values(), ids=REFUSED)
not_refused = pytest.mark.parametrize(("family", "config"), NOT_REFUSED.values(), ids=NOT_REFUSED)


def test_five_families_are_refused() -> None:
    assert set(REFUSALS) == {"kolors", "lumina2", "stable_cascade_c", "kandinsky5_image", "omnigen"}
    assert not set(REFUSALS) & set(KNOWN)


def assert_refused(family: str, model_or_config: Any) -> None:
    with pytest.raises(UnsupportedFamilyError) as error:
        resolve(model_or_config)
    message = str(error.value)
    assert f"family {family}" in message
    assert REFUSALS[family].reason in message
    assert "\n" not in message


@refused
class TestRefused:
    def test_from_a_config(self, family: str, config: Json) -> None:
        assert_refused(family, config)

    @pytest.mark.parametrize("part", [".", "transformer", "unet"])
    def test_from_a_folder(self, family: str, config: Json, part: str, tmp_path: Path) -> None:
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / "config.json").write_text(json.dumps(config))
        assert_refused(family, tmp_path)
        assert_refused(family, str(tmp_path))
        assert_refused(family, tmp_path / part / "config.json")

    @pytest.mark.parametrize("as_object", [False, True], ids=["mapping", "namespace"])
    def test_from_a_look_alike(self, family: str, config: Json, as_object: bool) -> None:
        """Only by the class's name and config: refusing needs no import of diffusers."""
        model = fakes.model(config["_class_name"], config=SimpleNamespace(**config) if as_object else config)
        assert_refused(family, model)
        before = fakes.hooks(model)
        with pytest.raises(UnsupportedFamilyError):
            attach(model, GOOD)
        assert fakes.hooks(model) == before

    def test_from_a_renamed_subclass(self, family: str, config: Json) -> None:
        base = type(fakes.model(config["_class_name"]))
        assert_refused(family, fakes.model(f"FSDP{base.__name__}", base, config))


def test_a_cascade_pipeline_keeps_stage_c_in_prior(tmp_path: Path) -> None:
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "config.json").write_text(json.dumps(CASCADE_C))
    assert_refused("stable_cascade_c", tmp_path)


@pytest.mark.parametrize("config", [KOLORS, LUMINA2, CASCADE_C, CASCADE_B, KANDINSKY_CUSTOM, OMNIGEN])
def test_an_instance_of_diffusers_is_refused(config: Json) -> None:
    model = instance(config)
    if not hasattr(diffusers, config["_class_name"]):
        pytest.skip(f"diffusers {diffusers.__version__} has no {config['_class_name']} yet")
    assert type(model).__module__.startswith("diffusers.")
    family = refused_family(identify(model))
    assert family is not None
    assert_refused(family, model)


def test_a_kolors_unet_after_an_ip_adapter_was_loaded() -> None:
    model = instance(KOLORS)
    model.register_to_config(encoder_hid_dim_type="ip_image_proj")
    assert_refused("kolors", model)


@not_refused
class TestNotRefused:
    def check(self, family: str | None, model_or_config: Any) -> None:
        identity = identify(model_or_config)
        assert refused_family(identity) is None
        assert known_family(identity) == family
        if family is None:
            with pytest.raises(UnknownFamilyError):
                resolve(model_or_config)
            return
        try:
            assert resolve(model_or_config).family == family
        except AdapterNotInstalledError as error:
            assert "pip install layersync-adapter" in str(error)  # noqa: PT017

    def test_from_a_config(self, family: str | None, config: Json) -> None:
        self.check(family, config)

    def test_from_a_look_alike(self, family: str | None, config: Json) -> None:
        self.check(family, fakes.model(config["_class_name"], config=config))


@pytest.mark.parametrize(("config", "family"), [(SDXL, "sdxl"), (SD15, None)])
def test_a_unet_of_diffusers_is_not_refused_even_with_an_ip_adapter(config: Json, family: str | None) -> None:
    model = instance(config)
    assert known_family(identify(model)) == family
    model.register_to_config(encoder_hid_dim_type="ip_image_proj")
    assert refused_family(identify(model)) is None
    assert known_family(identify(model)) == family


class TestNamedByTheUser:
    @pytest.mark.parametrize("family", REFUSALS)
    def test_a_refused_family(self, family: str) -> None:
        with pytest.raises(UnsupportedFamilyError, match=f"family {family}"):
            get_adapter(family)

    def test_a_custom_video_model_of_kandinsky(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A custom size is refused unless the user names the family; then it is not."""
        with monkeypatch.context() as patch:
            patch.setattr("layersync_core.families.registry.installed", dict)
            with pytest.raises(AdapterNotInstalledError, match="pip install layersync-adapter-kandinsky5-video"):
                attach(instance(KANDINSKY_CUSTOM), GOOD, family="kandinsky5_video")


class TestAThirdPartyThatClaimsTheName:
    @pytest.fixture(autouse=True)
    def somebodys(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fakes.adapter("somebodys-lumina", "lumina2", "Lumina2Transformer2DModel", stacks="layers").install(
            tmp_path, monkeypatch
        )

    def test_is_used(self) -> None:
        adapter = resolve(LUMINA2)
        assert adapter.family == "lumina2"
        assert get_adapter("lumina2") is adapter
        with attach(instance(LUMINA2 | {"num_layers": 4}), GOOD) as sync:
            assert str(sync.teacher) == "block 4 of 4 (layers.3)"

    def test_changes_nothing_for_the_others(self) -> None:
        assert_refused("kolors", KOLORS)
        assert_refused("omnigen", OMNIGEN)
