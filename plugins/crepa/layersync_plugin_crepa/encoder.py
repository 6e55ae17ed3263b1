"""A frozen vision encoder from transformers: frames in, patch tokens out."""

# Shapes: B batch, T frames, N patch tokens per frame, D channels

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from layersync_core import ConfigError

HUB_NAMES = {f"dinov2_vit{size[0]}14": f"facebook/dinov2-{size}" for size in ("small", "base", "large", "giant")}
"""SimpleTuner's names, the same as torch hub's."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class Encoder:
    """An encoder whose configuration is read at once, and whose weights are loaded at the first use.

    Args:
        name: SimpleTuner's name, a local folder, or a name on the hub.
        image_size: Frames are resized to this.
        frames_at_once: Frames per forward; 0 or less: all.
        trust_code: Whether the model's own code may run; never asked for on standard input.

    Raises:
        ConfigError: There is no such model, or it is not a vision transformer.
    """

    def __init__(self, name: str, image_size: int, frames_at_once: int, trust_code: bool = False) -> None:
        self.name = HUB_NAMES.get(name, name)
        self._size, self._frames_at_once, self._trust_code = image_size, frames_at_once, trust_code
        config = _read_config(self.name, trust_code)
        width, patch = getattr(config, "hidden_size", None), getattr(config, "patch_size", None)
        if not isinstance(width, int) or not isinstance(patch, int) or min(width, patch) < 1:
            raise ConfigError(
                f"crepa_model {self.name} is not a vision transformer of one width and one patch size "
                f"(model type {getattr(config, 'model_type', 'unknown')}); use one such as facebook/dinov2-base"
            )
        if image_size < patch:
            raise ConfigError(f"crepa_encoder_image_size is {image_size}, less than the encoder's patch of {patch}")
        self.width: int = width
        self._tokens = (image_size // patch) ** 2

    @torch.no_grad()
    def __call__(self, pixels_BTCHW: Tensor) -> Tensor:
        """Return (B, T, N, D) features of frames with values from 0 to 1."""
        model, accepts_size = _load(self.name, self._trust_code)
        model.to(pixels_BTCHW.device)
        more = {"interpolate_pos_encoding": True} if accepts_size else {}
        frames = pixels_BTCHW.flatten(0, 1)
        at_once = self._frames_at_once if self._frames_at_once > 0 else len(frames)
        tokens = [
            # The class token and registers come before the patches.
            model(pixel_values=self._prepare(chunk).to(model.dtype), **more).last_hidden_state[:, -self._tokens :]
            for chunk in frames.split(at_once)
        ]
        features: Tensor = torch.cat(tokens).unflatten(0, pixels_BTCHW.shape[:2])
        return features

    def _prepare(self, frames_FCHW: Tensor) -> Tensor:
        frames_FCHW = F.interpolate(frames_FCHW.float(), size=(self._size, self._size), mode="bilinear")
        mean, std = _statistics(frames_FCHW.device)
        return (frames_FCHW - mean) / std


@cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values, device=device).reshape(3, 1, 1) for values in (_MEAN, _STD))
    return mean, std


def _read_config(name: str, trust_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_code)
    except Exception as error:  # a third-party configuration may make transformers raise anything
        raise _cannot_load(name, error) from None


@cache
def _load(name: str, trust_code: bool) -> tuple[Any, bool]:
    """Return the frozen model, shared by all attachments, and whether other image sizes need a flag in its forward."""
    from transformers import AutoModel

    try:
        model = AutoModel.from_pretrained(name, trust_remote_code=trust_code).eval().requires_grad_(False)
    except Exception as error:  # third-party weights may make transformers raise anything
        raise _cannot_load(name, error) from None
    return model, "interpolate_pos_encoding" in inspect.signature(model.forward).parameters


def _cannot_load(name: str, error: BaseException) -> ConfigError:
    if "trust_remote_code" in str(error):
        return ConfigError(
            f"crepa_model {name} brings its own code, which would run here; read it and set "
            "crepa_trust_remote_code: true, or use a model that transformers knows, such as facebook/dinov2-base"
        )
    reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
    return ConfigError(
        f"crepa_model {name} cannot be loaded: {reason}; give the folder of a transformers vision model, or a "
        "name on the hub that is in the cache or can be fetched"
    )
