"""The families this project knows, as data: enough to name the remedy when an adapter is missing."""

from __future__ import annotations

from dataclasses import dataclass

from layersync_core.families.refusals import Identity


@dataclass(frozen=True)
class KnownFamily:
    """A family for which this project has an adapter, installed or not.

    Attributes:
        models: What users call the models.
        classes: Class names of their transformers.
        distribution: The distribution that has their adapter among others; empty where the adapter has its own.
    """

    models: str
    classes: tuple[str, ...]
    distribution: str = ""


def _more(models: str, *classes: str) -> KnownFamily:
    """Return a family that few people train."""
    return KnownFamily(models, classes, "layersync-adapters-more")


KNOWN: dict[str, KnownFamily] = {
    "ace_step": KnownFamily(
        "ACE-Step 1.5, 1.0", ("AceStepTransformer1DModel", "ACEStepTransformer2DModel", "AceStepDiTModel")
    ),
    "auraflow": KnownFamily("AuraFlow", ("AuraFlowTransformer2DModel",)),
    "chroma": KnownFamily("Chroma", ("ChromaTransformer2DModel", "Chroma")),
    "cogvideox": KnownFamily("CogVideoX 1.0, 1.5", ("CogVideoXTransformer3DModel",)),
    "cogview4": KnownFamily("CogView4", ("CogView4Transformer2DModel",)),
    "cosmos": KnownFamily(
        "Cosmos Predict 1, 2, Anima", ("CosmosTransformer3DModel", "MiniTrainDIT", "Anima", "AnimaDiT")
    ),
    "dit": KnownFamily("DiT, SiT", ("DiTTransformer2DModel", "DiT", "SiT")),
    "ernie_image": KnownFamily("ERNIE-Image", ("ErnieImageTransformer2DModel", "ErnieImageDiT")),
    "flux": KnownFamily("Flux, Flux Kontext", ("FluxTransformer2DModel", "Flux", "FluxDiT")),
    "flux2": KnownFamily("Flux.2", ("Flux2Transformer2DModel", "Flux2", "Flux2DiT")),
    "flux3": KnownFamily("Flux.3", ("Flux3Transformer2DModel",)),
    "hidream": KnownFamily("HiDream", ("HiDreamImageTransformer2DModel",)),
    "hunyuan_image": KnownFamily("HunyuanImage 2.1", ("HunyuanImageTransformer2DModel", "HYImageDiffusionTransformer")),
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
    "ideogram4": KnownFamily("Ideogram 4", ("Ideogram4Transformer2DModel", "Ideogram4Transformer", "Ideogram4DiT")),
    "kandinsky5_video": KnownFamily(
        "Kandinsky 5 Video Lite, Pro", ("Kandinsky5Transformer3DModel", "DiffusionTransformer3D")
    ),
    "krea2": KnownFamily("Krea 2", ("Krea2Transformer2DModel", "SingleStreamDiT")),
    "longcat": KnownFamily(
        "LongCat Image, Video", ("LongCatImageTransformer2DModel", "LongCatVideoTransformer3DModel")
    ),
    "ltx_video": KnownFamily(
        "LTX-Video, LTX-2", ("LTXVideoTransformer3DModel", "LTX2VideoTransformer3DModel", "LTXModel")
    ),
    "minimax_h3": KnownFamily("MiniMax H3", ("MiniMaxH3Transformer3DModel", "MiniMaxH3Transformer", "MiniMaxH3DiT")),
    "mochi": KnownFamily("Mochi", ("MochiTransformer3DModel", "AsymmDiTJoint")),
    "pixart": KnownFamily("PixArt Sigma, Alpha", ("PixArtTransformer2DModel",)),
    "qwen_image": KnownFamily(
        "Qwen Image, Edit, 2.1", ("QwenImageTransformer2DModel", "QwenImage21Transformer2DModel", "QwenImageDiT")
    ),
    "sana": KnownFamily("Sana, Sana Video", ("SanaTransformer2DModel", "SanaVideoTransformer3DModel")),
    "sd3": KnownFamily("Stable Diffusion 3, 3.5", ("SD3Transformer2DModel", "MMDiT", "MMDiTX")),
    "sdxl": KnownFamily("Stable Diffusion XL", ("UNet2DConditionModel", "SdxlUNet2DConditionModel")),
    "skyreels_v2": KnownFamily("SkyReels V2", ("SkyReelsV2Transformer3DModel",)),
    "wan": KnownFamily(
        "Wan 2.1, 2.2, VACE, Animate",
        ("WanTransformer3DModel", "WanVACETransformer3DModel", "WanAnimateTransformer3DModel", "WanModel"),
    ),
    "z_image": KnownFamily("Z-Image", ("ZImageTransformer2DModel", "ZImageDiT")),
    "allegro": _more("Allegro", "AllegroTransformer3DModel"),
    "anyflow": _more("AnyFlow", "AnyFlowTransformer3DModel"),
    "bria": _more("Bria 3.2", "BriaTransformer2DModel"),
    "chronoedit": _more("ChronoEdit", "ChronoEditTransformer3DModel"),
    "cogview3": _more("CogView3-Plus", "CogView3PlusTransformer2DModel"),
    "consisid": _more("ConsisID", "ConsisIDTransformer3DModel"),
    "easyanimate": _more("EasyAnimate 5.1", "EasyAnimateTransformer3DModel"),
    "fibo": _more("FIBO, FIBO 2", "BriaFiboTransformer2DModel", "BriaFibo2Transformer2DModel"),
    "glm_image": _more("GLM-Image", "GlmImageTransformer2DModel"),
    "hunyuan_dit": _more("HunyuanDiT", "HunyuanDiT2DModel"),
    "joyimage": _more(
        "JoyImage Edit, Edit Plus", "JoyImageEditTransformer3DModel", "JoyImageEditPlusTransformer3DModel"
    ),
    "kandinsky6": _more("Kandinsky 6", "Kandinsky6Transformer3DModel"),
    "lumina_next": _more("Lumina-Next", "LuminaNextDiT2DModel"),
    "minimax_music": _more("MiniMax Music 3", "MiniMaxMusic3Transformer1DModel"),
    "motif_video": _more("Motif-Video", "MotifVideoTransformer3DModel"),
    "nucleus": _more("Nucleus-Image", "NucleusMoEImageTransformer2DModel"),
    "ovis": _more("Ovis-Image", "OvisImageTransformer2DModel"),
    "prx": _more("PRX", "PRXTransformer2DModel"),
    "stable_audio": _more("Stable Audio, Stable Audio 3", "StableAudioDiTModel", "StableAudio3DiTModel"),
}
"""By family; classes of diffusers first, then those of original repositories and trainers."""

RENAMED: dict[str, dict[str, str]] = {
    "Transformer2DModel": {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}
}
"""Old classes that released configurations still name: by ``norm_type``, the class that diffusers loads instead. With
any other ``norm_type`` they are parts of UNets."""


def distribution_of(family: str) -> str:
    """Return the name of the distribution with this project's adapter for a family, known or not."""
    known = KNOWN.get(family)
    return (known and known.distribution) or f"layersync-adapter-{family.replace('_', '-')}"


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
    """Return why a model isn't of a known family although its class is one of that family's; empty for the rest."""
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
