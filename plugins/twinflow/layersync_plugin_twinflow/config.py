"""TwinFlow's settings, with the names and defaults of SimpleTuner's documentation where it has them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from layersync_core import Weight, not_boolean

Order = Annotated[int, BeforeValidator(not_boolean), Field(ge=1)]
Positive = Annotated[Weight, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[Weight, Field(ge=0, allow_inf_nan=False)]

_ADVERSARIAL = ("twinflow_adversarial_weight", "twinflow_rectify_weight")


class TwinFlowConfig(BaseModel):
    """Settings of TwinFlow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    twinflow_enabled: bool = Field(False, description="train for samples in few steps, instead of flow matching")
    twinflow_target_step_count: Annotated[Order, Field(le=8)] = Field(
        1, description="number of steps of the samples, from 1 to 8; the run's samples are also drawn with this many"
    )
    twinflow_estimate_order: Order = Field(2, description="the teacher's steps in the consistency target")
    twinflow_enhanced_ratio: Share = Field(
        0.5, description="share of the teacher's guidance in the target, if the model has a null class; 0: off"
    )
    twinflow_delta_t: Annotated[Positive, Field(le=1)] = Field(
        0.01, description="how far before the time the inner steps of the consistency target end"
    )
    twinflow_target_clamp: Positive = Field(1.0, description="bound of the consistency target's correction")
    twinflow_require_ema: bool = Field(
        True, description="the teacher is a moving average of the weights; false: with twinflow_allow_no_ema_teacher"
    )
    twinflow_allow_no_ema_teacher: bool = Field(
        False, description="keep no moving average: the model itself is its teacher"
    )
    twinflow_ema_decay: Annotated[float, BeforeValidator(not_boolean), Field(ge=0, lt=1)] = Field(
        0.99, description="decay of that moving average; lower in the first steps"
    )
    twinflow_adversarial_enabled: bool = Field(
        False, examples=[True], description="also train the path to the model's own samples, and compare the two"
    )
    twinflow_adversarial_weight: Share = Field(1.0, description="weight of that path's velocity loss")
    twinflow_rectify_weight: Share = Field(1.0, description="weight of the comparison")
    twinflow_time_embedding: Literal["delta", "sign"] = Field(
        "delta",
        description="what the model gets besides the time: delta, the distance to the target time (a second embedder), "
        "or sign, whether the time is negative, without the target time, as in SimpleTuner",
    )
    twinflow_sampler: Literal["few", "mul", "any"] = Field(
        "any", description="target time of a sampling step: few 0, mul its own time, any the next step's"
    )
    twinflow_allow_diff2flow: bool = Field(
        False, description="SimpleTuner's; refused if true: only models that predict a velocity are trained here"
    )

    @property
    def ema(self) -> bool:
        """Whether the teacher is a moving average of the weights."""
        return not self.twinflow_allow_no_ema_teacher

    @model_validator(mode="after")
    def _consistent(self) -> TwinFlowConfig:
        given = self.model_fields_set
        if "twinflow_enabled" not in given and given:
            raise ValueError(
                f"{', '.join(sorted(given))} given without twinflow_enabled, so it would do nothing; add "
                "twinflow_enabled: true, or false to switch TwinFlow off"
            )
        if not self.twinflow_enabled:
            return self
        if self.twinflow_allow_diff2flow:
            raise ValueError(
                "twinflow_allow_diff2flow bridges models that predict noise, but layersync train trains every model "
                "by flow matching; leave it out"
            )
        self._check_teacher()
        if not self.twinflow_adversarial_enabled and (idle := [key for key in _ADVERSARIAL if key in given]):
            raise ValueError(
                f"{idle[0]} has no effect without the adversarial loss; add twinflow_adversarial_enabled: true"
            )
        return self

    def _check_teacher(self) -> None:
        given = self.model_fields_set
        if not self.twinflow_require_ema and not self.twinflow_allow_no_ema_teacher:
            raise ValueError(
                "twinflow_require_ema is false, so there would be no teacher; add twinflow_allow_no_ema_teacher: "
                "true, which makes the model its own teacher, or leave it out"
            )
        if self.twinflow_allow_no_ema_teacher and self.twinflow_require_ema and "twinflow_require_ema" in given:
            raise ValueError(
                "twinflow_require_ema and twinflow_allow_no_ema_teacher are both true: one asks for a moving average "
                "of the weights, the other for none; keep one of the two keys"
            )
        if self.twinflow_allow_no_ema_teacher and "twinflow_ema_decay" in given:
            raise ValueError("twinflow_ema_decay has no effect with twinflow_allow_no_ema_teacher; keep one of the two")
