"""The families that are refused, as data: each with its reason and how it is recognised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Identity:
    """What identifies a model's family: the names of its class and bases, and its configuration."""

    classes: tuple[str, ...]
    config: Mapping[str, Any]

    def is_a(self, *names: str) -> bool:
        """Return whether one of the names is the model's class or one of its base classes."""
        return any(name in self.classes for name in names)

    def setting(self, name: str, default: Any = None) -> Any:
        """Return a value of the configuration."""
        return self.config.get(name, default)


@dataclass(frozen=True)
class Refusal:
    """A family that cannot be aligned.

    Attributes:
        models: What users call the models.
        reason: Why, in a clause fit for a terminal.
        classes: Class names of the models.
        recognise: Whether a model of these classes belongs to the family; None where the class is enough.
    """

    models: str
    reason: str
    classes: tuple[str, ...]
    recognise: Callable[[Identity], bool] | None = None

    def matches(self, model: Identity) -> bool:
        """Return whether a model belongs to this family."""
        return model.is_a(*self.classes) and (self.recognise is None or self.recognise(model))


# Text embedding widths that Kolors' ChatGLM conditioning adds to the six size embeddings of SDXL.
_CHATGLM_WIDTH = 4096


def _kolors(model: Identity) -> bool:
    if model.setting("addition_embed_type") != "text_time":
        return False
    # Not by encoder_hid_dim_type: loading an IP-Adapter into an SDXL UNet rewrites it.
    if model.setting("encoder_hid_dim") is not None:
        return True
    projected = model.setting("projection_class_embeddings_input_dim")
    time = model.setting("addition_time_embed_dim")
    # A file may hold anything there.
    return isinstance(projected, int) and isinstance(time, int) and projected - 6 * time == _CHATGLM_WIDTH


_KANDINSKY_VIDEO = ((1792, 32), (4096, 60))


def _kandinsky_size(model: Identity) -> tuple[Any, Any]:
    return (model.setting("model_dim"), model.setting("num_visual_blocks"))


def _kandinsky5_image(model: Identity) -> bool:
    # Image and video share the class. Sizes that match neither release are refused too, unless the user names the
    # family.
    return not model.setting("visual_cond") or _kandinsky_size(model) not in _KANDINSKY_VIDEO


REFUSALS: dict[str, Refusal] = {
    "kolors": Refusal(
        "Kolors",
        "a UNet with a ChatGLM conditioning path, whose hidden states are not exposed for LayerSync",
        ("UNet2DConditionModel",),
        _kolors,
    ),
    "lumina2": Refusal(
        "Lumina 2",
        "its joint text-image sequence has no stable view of the image tokens",
        ("Lumina2Transformer2DModel", "NextDiT"),
    ),
    "stable_cascade_c": Refusal(
        "Stable Cascade, stages C and B",
        "a convolutional UNet without a stream of transformer tokens",
        ("StableCascadeUNet",),
    ),
    "kandinsky5_image": Refusal(
        "Kandinsky 5 Image",
        "declared unsupported; it shares the video model's class, and a configuration that fits no released "
        "video model counts as image: name the family kandinsky5_video if it is one",
        ("Kandinsky5Transformer3DModel", "DiffusionTransformer3D"),
        _kandinsky5_image,
    ),
    "omnigen": Refusal(
        "OmniGen",
        "text and image share one causal sequence",
        ("OmniGenTransformer2DModel",),
    ),
}


def refused_family(identity: Identity) -> str | None:
    """Return the refused family that a model belongs to, or None."""
    return next((family for family, refusal in REFUSALS.items() if refusal.matches(identity)), None)
