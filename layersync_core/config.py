"""The configuration: one pydantic model for JSON, flags and forms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from layersync_core.errors import ConfigError
from layersync_core.files import read_json
from layersync_core.pairs import Pair, check_pair, check_weight, kept_in_single_precision, refuse_twice
from layersync_core.schedule import Schedule
from layersync_core.spelling import ALIASES as ALIASES
from layersync_core.spelling import PREFIX, SWITCH, absent, canonical, is_on, taken_for_the_hosts
from layersync_core.spelling import unknown_key as unknown_key  # for plugins

_Model = TypeVar("_Model", bound=BaseModel)

PRESETS = {"paper": 0.2, "lora": 0.002}
"""Weights from the paper (arXiv 2510.12581, section 4) and from the authors' fine-tuning recipe."""


def not_boolean(value: Any) -> Any:
    """Refuse a boolean where a number is expected."""
    # Python and pydantic accept True as 1; in a form or a JSON file it is a mistake.
    if isinstance(value, bool):
        raise ValueError("a boolean is not a number")
    return value


def _some(value: int) -> int:
    if not value:
        raise ValueError("it is N for the first N tokens, -N for the last N; leave it out where all are generated")
    return value


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("expected a JSON list such as [[8, 16], [4, 12, 0.1]]") from None


BlockNumber = Annotated[int, BeforeValidator(not_boolean), Field(ge=0)]
GeneratedTokens = Annotated[int, BeforeValidator(not_boolean), AfterValidator(_some)]
Weight = Annotated[float, BeforeValidator(not_boolean), AfterValidator(kept_in_single_precision)]
Steps = Annotated[int, BeforeValidator(not_boolean), Field(ge=0)]


class LayerSyncConfig(BaseModel):
    """Settings of LayerSync. Blocks count from 1; 0 is the first block as well.

    Examples:
        >>> from layersync_core import LayerSyncConfig
        >>> config = LayerSyncConfig(layersync_enabled=True, layersync_student_block=8, layersync_teacher_block=16)
        >>> config.weight
        0.2
        >>> config.pairs
        [Pair(student=8, teacher=16, weight=0.2)]
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=True)

    layersync_enabled: bool = Field(False, description="switch LayerSync on or off")
    layersync_student_block: BlockNumber | None = Field(
        None, examples=[8], description="block that is pulled towards the teacher; 1 is the first block"
    )
    layersync_teacher_block: BlockNumber | None = Field(
        None,
        examples=[16],
        description="deeper block that the student is pulled towards; default: the student block itself",
    )
    layersync_lambda: Weight | None = Field(
        None,
        examples=[0.2],
        description="weight of the term (default: the preset's)",
        json_schema_extra={"exclusiveMinimum": 0},
    )
    layersync_preset: Literal["paper", "lora"] | None = Field(
        None, examples=["lora"], description="weight where none is given: paper 0.2, lora 0.002"
    )
    layersync_tokens: Literal["target", "all"] = Field(
        "target", description="tokens that count: target, or all to add reference tokens"
    )
    layersync_generated_tokens: GeneratedTokens | None = Field(
        None,
        examples=[4096],
        description="number of generated image or video tokens, if the call does not distinguish them from references: "
        "N for the first N, -N for the last N",
    )
    layersync_guard: bool = Field(
        True, description="measure in the first steps whether the tokens that count are those that the main loss trains"
    )
    layersync_pairs: Annotated[list[list[Any]] | None, BeforeValidator(_parsed)] = Field(
        None,
        examples=[[[8, 16], [4, 12, 0.1]]],
        description="several pairs: [[student, teacher], [student, teacher, weight], ...]",
    )
    layersync_warmup_steps: Steps = Field(0, description="optimiser steps over which the weight rises linearly from 0")
    layersync_decay_steps: Steps = Field(0, description="optimiser steps after the warm-up of a cosine decay to 0")
    layersync_cutoff_step: Steps = Field(0, description="optimiser step from which LayerSync is off; 0: never")
    layersync_log_grad_ratio: bool = Field(
        False, description="also log the gradient norm relative to the main loss, and the centred similarity"
    )

    # The whole mapping this was read from, in which plugins find their own keys.
    _given: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _only_given(cls, values: Any) -> Any:
        return (
            {key: value for key, value in values.items() if not absent(value)} if isinstance(values, dict) else values
        )

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> LayerSyncConfig:
        if "layersync_enabled" not in self.model_fields_set and self.model_fields_set:
            names = ", ".join(sorted(self.model_fields_set))
            raise ValueError(
                f"{names} given without layersync_enabled, so it would do nothing; "
                "add layersync_enabled: true, or false to switch LayerSync off"
            )
        if not self.layersync_enabled:
            return self
        if self.layersync_lambda is not None:
            check_weight("layersync_lambda", self.layersync_lambda)
        blocks = {"layersync_student_block", "layersync_teacher_block"}
        if self.layersync_pairs is not None:
            if any(getattr(self, name) is not None for name in blocks):
                raise ValueError(
                    "layersync_pairs and layersync_student_block or layersync_teacher_block exclude each other; "
                    "keep one of the two ways"
                )
            if not self.layersync_pairs:
                raise ValueError("layersync_pairs is empty; give at least one [student, teacher]")
            for pair in self.layersync_pairs:
                check_pair(pair)
            refuse_twice(self.layersync_pairs)
        elif self.layersync_student_block is None:
            hint = (info.context or {}).get("hint", "")
            raise ValueError(
                "layersync_student_block is missing; it is required when LayerSync is enabled, "
                f"for example 8 with layersync_teacher_block 16 for 24 to 28 blocks{hint}"
            )
        if self.layersync_generated_tokens is not None and self.layersync_tokens == "all":
            raise ValueError(
                "layersync_tokens all counts every token, so layersync_generated_tokens would do nothing; keep one"
            )
        if 0 < self.layersync_cutoff_step <= self.layersync_warmup_steps:
            raise ValueError(
                f"layersync_cutoff_step is {self.layersync_cutoff_step}, which is not after layersync_warmup_steps "
                f"{self.layersync_warmup_steps}: the term would be cut off before it has its weight"
            )
        return self

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> LayerSyncConfig:
        """Read a mapping in the form that trainers have: aliases, a leading ``--``, other keys beside LayerSync's.

        Args:
            mapping: Settings; None and "" mean not given, and keys of others are ignored.

        Raises:
            ConfigError: An unknown ``layersync_*`` key, a value that cannot work, or settings that contradict each
                other.

        Examples:
            >>> from layersync_core import LayerSyncConfig
            >>> trainers = {"learning_rate": 1e-4, "--layersync_enabled": "true", "layersync_student_block": "8"}
            >>> LayerSyncConfig.from_mapping(trainers).layersync_student_block
            8
            >>> LayerSyncConfig.from_mapping({"layersync_enabled": True, "layersync_lamda": 0.1})
            Traceback (most recent call last):
            layersync_core.errors.ConfigError: unknown setting layersync_lamda; did you mean layersync_lambda?
        """
        given = canonical(mapping)
        ours = {key: value for key, value in given.items() if key.startswith(PREFIX)}
        for key in ours:
            if key not in cls.model_fields:
                raise ConfigError(unknown_key(key, cls.model_fields))
        config = validate(cls, ours, hint=taken_for_the_hosts(given))
        config._given = given
        return config

    @classmethod
    def from_json(cls, path: str | Path) -> LayerSyncConfig:
        """Read a JSON file like ``from_mapping``.

        Raises:
            ConfigError: The file is missing or isn't a JSON object, or as in ``from_mapping``.
        """
        return cls.from_mapping(read_json(path))

    def of(self, model: type[_Model]) -> _Model | None:
        """Return a plugin's own settings if its switch ``<prefix>_enabled`` is on, or None if it is off.

        Args:
            model: What the plugin claims in ``layersync_config_models``.

        Raises:
            ConfigError: The plugin is on and an unknown key has its prefix, or values do not fit the model.
        """
        switch = switch_of(model)
        if switch is None:
            raise ConfigError(f"{model.__name__} has no switch: a field called <prefix>{SWITCH}")
        own = {key: value for key, value in self.given.items() if key.startswith(switch.removesuffix("enabled"))}
        if is_on(own.get(switch)):
            for key in own:
                if key not in model.model_fields:
                    raise ConfigError(unknown_key(key, model.model_fields))
        # While it is off, other keys with its prefix are the host's concern.
        settings = validate(model, {key: value for key, value in own.items() if key in model.model_fields})
        return settings if getattr(settings, switch) else None

    @property
    def given(self) -> dict[str, Any]:
        """Every setting this was read from, including plugins' and the host's keys."""
        return self._given or self.model_dump(exclude_unset=True)

    @property
    def weight(self) -> float:
        """The weight in force: ``layersync_lambda``, else the preset's, else the paper's."""
        return PRESETS[self.layersync_preset or "paper"] if self.layersync_lambda is None else self.layersync_lambda

    @property
    def pairs(self) -> list[Pair]:
        """The pairs in force, numbered as the user numbers blocks."""
        if self.layersync_pairs is not None:
            return [
                Pair(int(student), int(teacher), float(weight[0]) if weight else self.weight)
                for student, teacher, *weight in self.layersync_pairs
            ]
        if self.layersync_student_block is None:
            return []
        student = self.layersync_student_block
        teacher = student if self.layersync_teacher_block is None else self.layersync_teacher_block
        return [Pair(student, teacher, self.weight)]

    @property
    def has_schedule(self) -> bool:
        """Whether the weight depends on the step."""
        return self.schedule != Schedule()

    @property
    def schedule(self) -> Schedule:
        """The weight's schedule."""
        return Schedule(self.layersync_warmup_steps, self.layersync_decay_steps, self.layersync_cutoff_step)


def switch_of(model: Any) -> str | None:
    """Return the field of a plugin's settings that switches it on; None if it has none."""
    return next((name for name in getattr(model, "model_fields", ()) if name.endswith(SWITCH)), None)


def validate(model: type[_Model], values: Mapping[str, Any], hint: str = "") -> _Model:
    """Build a pydantic model, turning its complaints into one line.

    Args:
        model: The model's class.
        values: The values of its fields.
        hint: Text that the model may add if a setting is missing.

    Raises:
        ConfigError: The values do not fit the model.
    """
    try:
        return model.model_validate(dict(values), context={"hint": hint})
    except ValidationError as error:
        raise ConfigError("; ".join(dict.fromkeys(map(_one_line, error.errors())))) from None


def _one_line(error: Any) -> str:
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return str(message)
    return f"{error['loc'][0]} is {error['input']!r}: {message[0].lower()}{message[1:]}"
