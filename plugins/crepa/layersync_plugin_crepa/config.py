"""CREPA's settings, with the names and defaults of SimpleTuner's documentation."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from layersync_core import BlockNumber, Steps, Weight, not_boolean

Count = Annotated[int, BeforeValidator(not_boolean), Field(ge=1)]
Positive = Annotated[Weight, Field(gt=0, allow_inf_nan=False)]

# SimpleTuner's synonyms for a feature source.
_SOURCES = {"external": "encoder", "internal": "backbone", "selfflow": "self_flow"}

# Settings that SimpleTuner's users may have, and why this plugin refuses them.
_THEIRS = {
    "crepa_self_flow_mask_ratio": "is for Self-Flow, which is not supported; use feature source encoder or backbone",
    "crepa_use_tae": "decodes latents with a tiny autoencoder in SimpleTuner; here nothing is decoded, and "
    "crepa_pixels says where the clip's pixels are",
    "crepa_drop_vae_encoder": "frees the encoder of SimpleTuner's VAE; here the VAE is the program's own, and CREPA "
    "does not touch it",
}


def _source(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    word = value.strip().lower()
    return _SOURCES.get(word, word)


class CrepaConfig(BaseModel):
    """Settings of CREPA. Blocks count from 0, unlike LayerSync's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    crepa_enabled: bool = Field(False, description="switch CREPA on or off")
    crepa_block_index: BlockNumber | None = Field(
        None, examples=[8], description="block whose frames are aligned; 0 is the first, unlike LayerSync's numbers"
    )
    crepa_feature_source: Annotated[Literal["encoder", "backbone", "self_flow"] | None, BeforeValidator(_source)] = (
        Field(
            None,
            examples=["backbone"],
            description="what it is aligned with: encoder (a frozen vision encoder; the default) or backbone",
        )
    )
    crepa_use_backbone_features: bool = Field(False, description="older spelling of crepa_feature_source backbone")
    crepa_teacher_block_index: BlockNumber | None = Field(
        None, examples=[16], description="block that backbone features come from; default: crepa_block_index"
    )
    crepa_model: str = Field(
        "dinov2_vitg14", description="vision encoder: dinov2_vitg14, _vitl14, _vitb14, _vits14, a folder or a hub name"
    )
    crepa_encoder: str | None = Field(None, examples=["dinov2_vitg14"], description="older spelling of crepa_model")
    crepa_trust_remote_code: bool = Field(
        False, description="let crepa_model run code that its folder or the hub brings along"
    )
    crepa_encoder_image_size: Count = Field(518, description="frames are resized to this for the encoder")
    crepa_encoder_frames_batch_size: Annotated[int, BeforeValidator(not_boolean)] = Field(
        -1, description="frames the encoder takes at once; 0 or less: all"
    )
    crepa_pixels: Any = Field(
        None,
        examples=["pixel_values"],
        description="where the clean clip's pixels are: a key of the batch, or module:function of the batch",
    )
    crepa_pixels_range: Literal["-1,1", "0,1", "0,255"] = Field("-1,1", description="range of those pixels")
    crepa_spatial_align: bool = Field(
        True,
        description="if states and features have different numbers of tokens: interpolate to the smaller; false: "
        "compare the frames' mean tokens instead",
    )
    crepa_adjacent_distance: Steps = Field(1, description="distance of the neighbouring frames; 0: no neighbours")
    crepa_adjacent_tau: Positive = Field(1.0, description="temperature of the neighbours' weight exp(-distance/tau)")
    crepa_cumulative_neighbors: bool = Field(False, description="take all distances up to crepa_adjacent_distance")
    crepa_normalize_neighbour_sum: bool = Field(False, description="divide by the sum of the weights used")
    crepa_normalize_by_frames: bool = Field(True, description="divide by the number of frames")
    crepa_lambda: Positive = Field(0.5, description="weight of the term")
    crepa_scheduler: Literal["constant", "linear", "cosine", "polynomial"] = Field(
        "constant", description="how the weight goes to crepa_lambda_end after the warm-up"
    )
    crepa_warmup_steps: Steps = Field(0, description="optimiser steps over which the weight rises linearly from 0")
    crepa_decay_steps: Steps = Field(
        0, description="optimiser step at which crepa_lambda_end is reached; 0: the run's last step"
    )
    crepa_lambda_end: Annotated[Weight, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="weight at the end of the decay"
    )
    crepa_power: Positive = Field(1.0, description="power of the polynomial decay")
    crepa_cutoff_step: Steps = Field(0, description="optimiser step from which CREPA is off; 0: never")
    crepa_similarity_threshold: Annotated[Weight, Field(allow_inf_nan=False)] | None = Field(
        None, examples=[0.9], description="cut CREPA off when the moving mean of crepa_alignment_score reaches this"
    )
    crepa_similarity_ema_decay: Annotated[float, BeforeValidator(not_boolean), Field(ge=0, lt=1)] = Field(
        0.99, description="decay of that moving mean"
    )
    crepa_threshold_mode: Literal["permanent", "recoverable"] = Field(
        "permanent", description="stay off, or come back when the similarity falls"
    )
    crepa_self_flow: bool = Field(False, description="older spelling of crepa_feature_source self_flow; refused")
    crepa_self_flow_mask_ratio: float | None = Field(
        None, examples=[], description="SimpleTuner's, for Self-Flow; refused"
    )
    crepa_use_tae: bool = Field(False, description="SimpleTuner's; refused if true: no latents are decoded here")
    crepa_drop_vae_encoder: bool = Field(
        False, description="SimpleTuner's; refused if true: CREPA does not touch the VAE"
    )

    @property
    def source(self) -> str:
        """Where the features come from: ``encoder`` or ``backbone``."""
        older = "backbone" if self.crepa_use_backbone_features else "self_flow" if self.crepa_self_flow else "encoder"
        return self.crepa_feature_source or older

    @property
    def encoder(self) -> str:
        """The vision encoder, from either spelling of the key."""
        return self.crepa_encoder or self.crepa_model

    @property
    def teacher(self) -> int | None:
        """The block that backbone features come from, from 0."""
        return self.crepa_block_index if self.crepa_teacher_block_index is None else self.crepa_teacher_block_index

    @model_validator(mode="after")
    def _consistent(self) -> CrepaConfig:
        if "crepa_enabled" not in self.model_fields_set and (ours := self.model_fields_set - _THEIRS.keys()):
            names = ", ".join(sorted(ours))
            raise ValueError(
                f"{names} given without crepa_enabled, so it would do nothing; add crepa_enabled: true, or false to "
                "switch CREPA off"
            )
        if self.crepa_enabled:
            self._check_source()
            self._check_theirs()
            self._check_schedule()
            self._check_threshold()
        return self

    def _check_source(self) -> None:
        if self.crepa_block_index is None:
            raise ValueError(
                "crepa_block_index is missing; it is required when CREPA is enabled, for example 8 (the first block "
                "is 0); the paper takes an early one"
            )
        older = {"crepa_use_backbone_features": "backbone", "crepa_self_flow": "self_flow"}
        if self.crepa_use_backbone_features and self.crepa_self_flow:
            raise ValueError(f"{' and '.join(older)} are both true: two feature sources; keep one of the two keys")
        for key, source in older.items():
            value = getattr(self, key)
            both = {"crepa_feature_source", key} <= self.model_fields_set
            if both and value != (self.crepa_feature_source == source):
                raise ValueError(
                    f"crepa_feature_source is {self.crepa_feature_source} and {key} is {str(value).lower()}: two "
                    "feature sources; keep one of the two keys"
                )
        if self.source == "self_flow":
            asked = "crepa_self_flow" if self.crepa_self_flow else "crepa_feature_source self_flow"
            raise ValueError(
                f"{asked} is not supported: it takes a further forward of an EMA teacher on a "
                "cleaner input in every step, which only the trainer can run; use encoder or backbone"
            )
        if self.source == "encoder" and self.crepa_teacher_block_index is not None:
            raise ValueError(
                "crepa_teacher_block_index is for backbone features, but the feature source is encoder; set "
                "crepa_feature_source: backbone, or leave it out"
            )
        if self.source == "backbone" and self.crepa_pixels is not None:
            raise ValueError(
                "crepa_pixels is for the encoder, but the feature source is backbone; set crepa_feature_source: "
                "encoder, or leave it out"
            )
        if self.source == "encoder" and self.crepa_pixels is None:
            raise ValueError(
                "crepa_pixels is missing: the encoder needs the clean clip's pixels; set it to the key under which the "
                "batches of the data loader have them, or to module:function, which gets the batch and returns them; "
                "crepa_feature_source: backbone needs none"
            )

    def _check_theirs(self) -> None:
        both = {"crepa_model", "crepa_encoder"} <= self.model_fields_set
        if both and self.crepa_model != self.crepa_encoder:
            raise ValueError(
                f"crepa_model is {self.crepa_model!r} and crepa_encoder is {self.crepa_encoder!r}: two spellings of "
                "one setting with different values; keep one"
            )
        for key, reason in _THEIRS.items():
            if getattr(self, key) not in (None, False):
                raise ValueError(f"{key} {reason}; leave it out")

    def _check_threshold(self) -> None:
        farthest = self.crepa_adjacent_distance
        distances = range(1 if self.crepa_cumulative_neighbors else max(farthest, 1), farthest + 1)
        # Each frame has at most two neighbours at each distance, and large distances have almost no weight.
        weights = 2 * sum(math.exp(-distance / self.crepa_adjacent_tau) for distance in distances[:1000])
        highest = 1 + (0 if self.crepa_normalize_neighbour_sum else weights)
        if self.crepa_similarity_threshold is not None and abs(self.crepa_similarity_threshold) > highest:
            raise ValueError(
                f"crepa_similarity_threshold is {self.crepa_similarity_threshold:g}, and with these neighbours "
                f"crepa_alignment_score is from {-highest:.4g} to {highest:.4g}, so it would be reached never or "
                "at once"
            )

    def _check_schedule(self) -> None:
        if self.crepa_scheduler != "constant" and 0 < self.crepa_decay_steps <= self.crepa_warmup_steps:
            raise ValueError(
                f"crepa_decay_steps is {self.crepa_decay_steps}, the step at which the decay ends; it must come after "
                f"crepa_warmup_steps {self.crepa_warmup_steps}"
            )
        if 0 < self.crepa_cutoff_step <= self.crepa_warmup_steps:
            raise ValueError(
                f"crepa_cutoff_step is {self.crepa_cutoff_step}, which is not after crepa_warmup_steps "
                f"{self.crepa_warmup_steps}: the term would be cut off before it has its weight"
            )
