"""Settings of the trainer, named as in diffusers' example scripts where those have one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from layersync_core import (
    ConfigError,
    LayerSyncConfig,
    Steps,
    canonical,
    not_boolean,
    overlay,
    taken_for_the_hosts,
    unknown_key,
    validate,
)

Count = Annotated[int, BeforeValidator(not_boolean), Field(ge=1)]
Seed = Annotated[int, BeforeValidator(not_boolean), Field(ge=0, le=2**32 - 1)]  # numpy's limit
Real = Annotated[float, BeforeValidator(not_boolean), Field(ge=0, allow_inf_nan=False)]


class TrainerConfig(BaseModel):
    """The trainer's own keys, given beside the ``layersync_*`` keys in one JSON file or on one command line."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    output_dir: str = Field("./layersync-output", description="folder for everything written; must be empty or absent")
    family: str | None = Field(
        None,
        examples=["wan"],
        description="installed family to train, as its tiny model (default: dit, a small DiT for digits)",
    )
    model: str | None = Field(
        None, examples=["./my-dit"], description="local diffusers folder (model or pipeline) to start from"
    )
    compare: bool = Field(False, description="also train a vanilla arm with the same data and noise, and compare")
    max_train_steps: Count = Field(400, description="optimiser steps")
    train_batch_size: Count | None = Field(
        None, examples=[64], description="samples per device and forward (default 64; 4 with --model)"
    )
    learning_rate: Real | None = Field(
        None, examples=[0.002], description="peak learning rate of AdamW (default 0.002; 0.0001 with --model or --rank)"
    )
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = Field("constant", description="learning-rate schedule, by diffusers' names")
    lr_warmup_steps: Steps = Field(0, description="optimiser steps of linear warm-up")
    adam_weight_decay: Real = Field(0.0, description="weight decay of AdamW")
    max_grad_norm: Annotated[float, BeforeValidator(not_boolean), Field(gt=0, allow_inf_nan=False)] = Field(
        1.0, description="gradients are clipped to this norm"
    )
    gradient_accumulation_steps: Count = Field(1, description="forwards per optimiser step")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    mixed_precision: Literal["no", "bf16", "fp16"] | None = Field(
        None, examples=["bf16"], description="no, bf16 or fp16 (default: what accelerate was launched with, else no)"
    )
    rank: Count | None = Field(
        None, examples=[8], description="train LoRA weights of this rank only (default: all weights)"
    )
    seed: Seed = Field(0, description="seed of weights, data order, noise and samples")
    report_to: str = Field("tensorboard", description="tracker: tensorboard, wandb, another of accelerate's, or none")
    logging_steps: Count = Field(10, description="optimiser steps between readings of the metrics")
    checkpointing_steps: Count = Field(200, description="optimiser steps between checkpoints; the last step has one")
    checkpoints_total_limit: Count | None = Field(None, examples=[3], description="checkpoints to keep (default: all)")
    resume_from_checkpoint: str | None = Field(None, examples=["latest"], description="checkpoint folder, or latest")
    guidance_scale: Real | None = Field(
        None,
        examples=[2.0],
        description="classifier-free guidance of the samples, for models with a null class (default 2; 1 is off)",
    )
    num_sampling_steps: Count = Field(40, description="Euler steps of the samples that are drawn at the end")

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> TrainerConfig:
        if self.lr_warmup_steps and self.lr_scheduler == "constant":
            raise ValueError(
                "lr_warmup_steps has no effect with lr_scheduler constant; add lr_scheduler constant_with_warmup"
            )
        return self

    @property
    def batch_size(self) -> int:
        """Samples per device and forward."""
        return self.train_batch_size or (4 if self.model else 64)

    @property
    def peak_rate(self) -> float:
        """Peak learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1e-4 if self.model or self.rank else 2e-3


def _levels(value: Any) -> Any:
    return value.replace(",", " ").split() if isinstance(value, str) else value


class SuggestConfig(BaseModel):
    """Settings of ``layersync suggest``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    output_dir: str = Field("./layersync-suggest", description="folder for suggest.json, suggest.html and suggest.png")
    batches: Count = Field(16, description="batches per noise level")
    batch_size: Count = Field(16, description="samples per batch")
    noise_levels: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], ...], BeforeValidator(_levels), Field(min_length=1)
    ] = Field((0.2, 0.5, 0.8), description="shares of noise in the samples, such as 0.2,0.5,0.8")
    data: str | None = Field(
        None,
        examples=["my-batches"],
        description="safetensors file, or a folder of them, each with the arguments of one forward by name, and labels "
        "(B,) if they are known; default: embedded data",
    )
    tokens: Count = Field(64, description="tokens to compare per forward")
    skip: Steps = Field(
        0, description="forwards to spend on measuring how much the loss rises without a block; 0: skip this"
    )
    seed: Seed = Field(0, description="seed of samples, noise and sub-samples")

    @field_validator("noise_levels")
    @classmethod
    def _each_once(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        # The same noisy samples twice would find themselves when one of them is left out of a probe.
        if len(set(levels)) < len(levels):
            raise ValueError("give each level once")
        return levels


RESERVED = "layersync train"
"""The owner that is named to plugins that claim one of these keys."""


class Settings:
    """A whole configuration: the trainer's part, the regularizers' part, and what the user wrote.

    Args:
        mapping: Settings by name, as from a JSON file and flags.

    Raises:
        ConfigError: An unknown key, or a value that cannot work.
    """

    def __init__(self, mapping: Mapping[str, Any]) -> None:
        from layersync_core import plugins  # needs torch, which the keys alone do not

        self.given = canonical(mapping)
        own = TrainerConfig.model_fields
        plugins().reserve(RESERVED, TrainerConfig)
        claimed = {name for model in plugins().config_models() for name in model.model_fields}
        claimed.update(LayerSyncConfig.model_fields)
        plugins().check_spelling(self.given)
        # Keys of a plugin that is not loaded are checked when the regularizers are requested.
        absent = tuple(plugins().absent_prefixes())
        for key in self.given:
            if key not in own and key not in claimed and not key.startswith(absent):
                raise ConfigError(unknown_key(key, sorted({*own, *claimed})) + taken_for_the_hosts(self.given))
        self.trainer = validate(TrainerConfig, {key: value for key, value in self.given.items() if key in own})
        self.regularizers = {key: value for key, value in self.given.items() if key not in own}
        # The default pair is unknown before the model is; any pair will do to check the user's settings.
        self.enabled = LayerSyncConfig.from_mapping(self.over_default(1, 1)).layersync_enabled
        if self.trainer.compare and not self.enabled:
            raise ConfigError("compare sets LayerSync against a vanilla arm, but layersync_enabled is false")

    def over_default(self, student: int, teacher: int) -> dict[str, Any]:
        """Return the regularizers' settings: LayerSync with a default pair, overridden by what the user gave.

        A user who sets ``layersync_enabled`` sets all of them, as everywhere else.

        Args:
            student: The default student, as users number blocks.
            teacher: The default teacher.
        """
        if "layersync_enabled" in self.regularizers:
            return self.regularizers
        default = {
            "layersync_enabled": True,
            "layersync_student_block": student,
            "layersync_teacher_block": teacher,
            "layersync_preset": "lora" if self.trainer.rank else "paper",
        }
        return overlay(default, self.regularizers)
