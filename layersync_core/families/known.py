"""The families this project knows, as data: enough to name the remedy when an adapter is missing."""

from __future__ import annotations

from dataclasses import dataclass

from layersync_core.families.refusals import Identity


@dataclass(frozen=True)
class KnownFamily:
    """A family with an adapter of ours, installed or not.

    Attributes:
        models: What users call the models.
        classes: Class names of their transformers.
    """

    models: str
    classes: tuple[str, ...]


KNOWN: dict[str, KnownFamily] = {
    "ace_step": KnownFamily(
        "ACE-Step 1.5, 1.0", ("AceStepTransformer1DModel", "ACEStepTransformer2DModel", "AceStepDiTModel")
    ),
    "auraflow": KnownFamily("AuraFlow", ("AuraFlowTransformer2DModel",)),
    "chroma": KnownFamily("Chroma", ("ChromaTransformer2DModel", "Chroma")),
    "cosmos": KnownFamily("Cosmos Predict 1, 2", ("CosmosTransformer3DModel",)),
    "dit": KnownFamily("DiT, SiT", ("DiTTransformer2DModel", "DiT", "SiT")),
    "flux": KnownFamily("Flux, Flux Kontext", ("FluxTransformer2DModel", "Flux", "FluxDiT")),
    "flux2": KnownFamily("Flux.2", ("Flux2Transformer2DModel", "Flux2", "Flux2DiT")),
    "hidream": KnownFamily("HiDream", ("HiDreamImageTransformer2DModel",)),
    "hunyuan_video": KnownFamily(
        "HunyuanVideo 1.0, 1.5, FramePack",
        (
            "HunyuanVideoTransformer3DModel",
            "HunyuanVideo15Transformer3DModel",
            "HunyuanVideoFramepackTransformer3DModel",
            "HunyuanVideoTransformer3DModelPacked",
            "HYVideoDiffusionTransformer",
            "HunyuanVideo_1_5_DiffusionTransformer",
        ),
    ),
    "kandinsky5_video": KnownFamily(
        "Kandinsky 5 Video Lite, Pro", ("Kandinsky5Transformer3DModel", "DiffusionTransformer3D")
    ),
    "longcat": KnownFamily(
        "LongCat Image, Video", ("LongCatImageTransformer2DModel", "LongCatVideoTransformer3DModel")
    ),
    "ltx_video": KnownFamily(
        "LTX-Video, LTX-2", ("LTXVideoTransformer3DModel", "LTX2VideoTransformer3DModel", "LTXModel")
    ),
    "pixart": KnownFamily("PixArt Sigma, Alpha", ("PixArtTransformer2DModel",)),
    "qwen_image": KnownFamily("Qwen Image, Edit", ("QwenImageTransformer2DModel", "QwenImageDiT")),
    "sana": KnownFamily("Sana, Sana Video", ("SanaTransformer2DModel", "SanaVideoTransformer3DModel")),
    "sd3": KnownFamily("Stable Diffusion 3, 3.5", ("SD3Transformer2DModel", "MMDiT", "MMDiTX")),
    "sdxl": KnownFamily("Stable Diffusion XL", ("UNet2DConditionModel", "SdxlUNet2DConditionModel")),
    "wan": KnownFamily(
        "Wan 2.1, 2.2, VACE, Animate",
        ("WanTransformer3DModel", "WanVACETransformer3DModel", "WanAnimateTransformer3DModel", "WanModel"),
    ),
    "z_image": KnownFamily("Z-Image", ("ZImageTransformer2DModel", "ZImageDiT")),
}
"""Classes of diffusers first, then those of original repositories and trainers."""

RENAMED: dict[str, dict[str, str]] = {
    "Transformer2DModel": {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}
}
"""Classes that released configurations still name: by ``norm_type``, what diffusers loads in their place. Others of the
class are parts of UNets."""


def distribution_of(family: str) -> str:
    """Return the name of the distribution that carries our adapter for a family."""
    return f"layersync-adapter-{family.replace('_', '-')}"


def known_family(identity: Identity) -> str | None:
    """Return the family whose class a model has, or None."""
    # The nearest base decides: trainers derive one family's class from another's.
    for name in identity.classes:
        current = current_name(name, identity.setting("norm_type"))
        for family, known in KNOWN.items():
            if current in known.classes and _is_member(current, identity):
                return family
    return None


def current_name(name: str, norm_type: object) -> str:
    """Return the class that diffusers loads for a configuration with this ``_class_name`` and ``norm_type``."""
    return RENAMED.get(name, {}).get(str(norm_type), name)


def why_unknown(identity: Identity) -> str:
    """Return what a model is whose class is a known family's, or part of one, though it is none; empty for others."""
    if identity.is_a("UNet2DConditionModel"):
        added = identity.setting("addition_embed_type")
        return (
            f"this UNet2DConditionModel is {_unet(identity)} (addition_embed_type {added!r}); of that class only "
            "SDXL's ('text_time') has transformers of several blocks for a student and a deeper teacher: those of the "
            "others are one block deep, if there are any"
        )
    if identity.is_a(*RENAMED):
        norms = " and ".join(norm for norms in RENAMED.values() for norm in norms)
        return (
            f"this {identity.classes[0]} has norm_type {identity.setting('norm_type')!r}, as the parts of UNets have; "
            f"DiT and PixArt have {norms}"
        )
    return ""


def _unet(identity: Identity) -> str:
    added, text = identity.setting("addition_embed_type"), identity.setting("cross_attention_dim")
    if added in ("text", "image"):
        return {"text": "DeepFloyd IF's", "image": "Kandinsky 2's or unCLIP's"}[added]
    versions = {768: "Stable Diffusion 1.x's", 1024: "Stable Diffusion 2.x's"}
    return versions.get(text, "none of SDXL's") if added is None and isinstance(text, int) else "none of SDXL's"


def _is_member(name: str, identity: Identity) -> bool:
    # SD 1.x, 2.x and DeepFloyd share SDXL's class; only SDXL (and Kolors, refused before) has this embedding.
    return name != "UNet2DConditionModel" or identity.setting("addition_embed_type") == "text_time"
