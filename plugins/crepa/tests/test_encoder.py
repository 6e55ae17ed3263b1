# Shapes: B batch, T frames, P tokens per frame, C channels, H rows, W columns, N patch tokens, D channels
"""The vision encoder: its features, and what it must not do."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from layersync_core import ConfigError, attach
from layersync_plugin_crepa import crepa_loss
from layersync_plugin_crepa.encoder import _load
from plugins.crepa.tests.support import by_frame, clip, encoding, part, wan_loss
from tests.models import TOY, Toy, assert_same_gradients, build, gradients, gradients_by_autograd, states_by_hand, toy


@pytest.fixture(scope="module", params=["dinov2", "registers"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, int]:
    """A small random vision encoder: its folder, the model, and how many tokens come before its patches."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
    sizes |= {"image_size": 16, "mlp_ratio": 2}
    if request.param == "dinov2":
        model, before = Dinov2Model(Dinov2Config(**sizes)), 1
    else:
        model, before = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, num_register_tokens=3)), 4
    folder = str(tmp_path_factory.mktemp("encoder"))
    model.save_pretrained(folder)
    return folder, model.eval(), before


def features(model: Any, before: int, clip_BTCHW: Tensor, size: int = 16) -> Tensor:
    """Return (B, T, N, D) patch features."""
    frames = F.interpolate((clip_BTCHW.flatten(0, 1) + 1) / 2, size=(size, size), mode="bilinear")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    inputs = (frames - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        return model(pixel_values=inputs).last_hidden_state[:, before:].unflatten(0, clip_BTCHW.shape[:2])


@pytest.mark.parametrize(("size", "at_once"), [(16, -1), (16, 4), (12, 1)])
def test_encoder_features(encoder: tuple[str, Any, int], size: int, at_once: int) -> None:
    folder, reference, before = encoder
    model, inputs = build("wan")
    untouched = copy.deepcopy(model)
    more = {"crepa_encoder_image_size": size, "crepa_encoder_frames_batch_size": at_once}
    with attach(model, encoding(folder, **more)) as sync:
        for batch in DataLoader([{"pixel_values": it} for it in clip()], batch_size=2):
            model(**inputs)
            loss = sync.loss()
            loss.backward()
            assert batch["pixel_values"].shape == (2, 5, 3, 20, 24)
        state = by_frame(states_by_hand(untouched, inputs)[1])
        target = features(reference, before, clip(), size)
        assert target.shape == (2, 5, (size // 4) ** 2, 16)
        expected = 0.5 * crepa_loss(state, target, projector=copy.deepcopy(part(sync)))[0]
        assert part(sync).linear.weight.grad.any()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert_same_gradients(gradients(model), gradients_by_autograd(expected, untouched), 1e-4)


def test_the_encoder_needs_frames(folder: str) -> None:
    for model in (toy(), build("dit")[0]):
        with pytest.raises(ConfigError, match="aligns the frames of a video, but the tokens of this model have none"):
            attach(model, encoding(folder), adapter=TOY if isinstance(model, Toy) else None)


class TestCodeOfAModel:
    """A folder may contain code; it runs only if a setting allows it, and nothing is asked on standard input."""

    @pytest.fixture
    def with_code(self, folder: str, tmp_path: Path) -> Iterator[tuple[str, Path]]:
        ran = tmp_path / "ran"
        (tmp_path / "theirs.py").write_text(
            f"open({str(ran)!r}, 'w').close()\n"
            "from transformers import Dinov2Config, Dinov2Model\n"
            "class Config(Dinov2Config):\n    model_type = 'theirs'\n"
            "class Model(Dinov2Model):\n    config_class = Config\n"
        )
        config = json.loads(Path(folder, "config.json").read_text())
        config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config", "AutoModel": "theirs.Model"}}
        Path(folder, "config.json").write_text(json.dumps(config))
        yield folder, ran
        _load.cache_clear()

    def test_does_not_run(self, with_code: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        folder, ran = with_code
        monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on standard input"))
        with pytest.raises(ConfigError, match=r"brings its own code.*crepa_trust_remote_code: true") as error:
            attach(build("wan")[0], encoding(folder))
        assert "\n" not in str(error.value)
        assert not ran.exists()

    def test_runs_where_a_setting_says_so(
        self, with_code: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, ran = with_code
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
        monkeypatch.syspath_prepend(str(tmp_path / "modules"))
        assert wan_loss(encoding(folder, crepa_trust_remote_code=True), {"pixel_values": clip()}).isfinite()
        assert ran.exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"crepa_model": "/nowhere/at/all"}, "crepa_model /nowhere/at/all cannot be loaded"),
        ({"crepa_encoder_image_size": 3}, "less than the encoder's patch of 4"),
        ({"crepa_pixels": "no_such_module:pixels"}, "no_such_module:pixels, which cannot be imported"),
        ({"crepa_pixels": "math:pi"}, "math:pi, which is a float, not a function"),
        ({"crepa_pixels": 7}, "crepa_pixels is 7; it takes a key"),
    ],
)
def test_encoders_and_pixels_that_are_not_there(folder: str, more: dict[str, Any], said: str) -> None:
    model, _ = build("wan")
    with pytest.raises(ConfigError, match=said) as error:
        attach(model, encoding(folder, **more))
    assert "\n" not in str(error.value)
