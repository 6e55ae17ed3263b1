"""The fields of the form, from what the helper process read in the settings' models."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cached_property
from typing import Any

from layersync_plugin_webui.training import labels

WAYS = ("train", "run")
"""The reference trainer, and the user's own command."""


@dataclass(frozen=True)
class Field:
    """A setting.

    Attributes:
        key: Its name in files and flags.
        kind: ``bool``, ``int``, ``float``, ``choice``, ``list`` or ``text``.
        default: Its value if it is not given, as it would be typed; empty for none.
        help: What it does, in English.
        limits: ``least``, ``above``, ``most`` and ``below``, those that there are.
        choices: The values of a choice.
        switch: Whether it switches a loss on.
    """

    key: str
    kind: str
    default: str
    help: str
    limits: Mapping[str, float]
    choices: tuple[str, ...] = ()
    switch: bool = False

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Field:
        """Return a field from its description."""
        key = str(described["key"])
        limits = {name: described[name] for name in ("least", "above", "most", "below") if name in described}
        default = text_of(described["default"]) or labels.DEFAULTS.get(key, "")
        help = labels.HELP.get(key, described["description"])
        return cls(
            key, described["kind"], default, help, limits, tuple(described.get("choices", ())), described["switch"]
        )

    @property
    def label(self) -> str:
        """Its label, in English."""
        return labels.LABELS.get(self.key) or labels.made_of(self.key)

    @property
    def options(self) -> tuple[str, ...]:
        """Its possible values, if they can be listed."""
        return ("true", "false") if self.kind == "bool" else self.choices

    @property
    def is_plain(self) -> bool:
        """Whether it is visible at once."""
        return self.switch or self.key in labels.PLAIN

    @property
    def first_block(self) -> int | None:
        """The number of the model's first block in this field; None if it doesn't number blocks."""
        return labels.BLOCKS.get(self.key)

    def typed(self, text: str) -> Any:
        """Return the JSON value of a text if it means exactly the same; else the text, for the models to check."""
        try:
            value = json.loads(text) if self.kind in ("bool", "int", "float", "list") else text
        except (ValueError, RecursionError):
            return text
        if self.kind == "bool":
            return value if isinstance(value, bool) else text
        if self.kind == "list":
            return value if isinstance(value, list) else text
        if self.kind in ("int", "float"):
            # A number that would be written differently stays as it was typed.
            same = not isinstance(value, bool) and isinstance(value, (int, float)) and _is_exact(text, value)
            return value if same and (self.kind == "float" or isinstance(value, int)) else text
        return value


@dataclass(frozen=True)
class Loss:
    """A loss, with a sub-section of its own."""

    name: str
    package: str
    fields: tuple[Field, ...]

    @property
    def switch(self) -> Field | None:
        """The field that switches it on."""
        return next((field for field in self.fields if field.switch), None)

    @property
    def plain(self) -> list[Field]:
        """Fields that are visible at once while it is on."""
        chosen = [field for field in self._others if field.is_plain]
        return chosen or self._others

    @property
    def advanced(self) -> list[Field]:
        """The others."""
        plain = self.plain
        return [field for field in self._others if field not in plain]

    @property
    def _others(self) -> list[Field]:
        return [field for field in self.fields if not field.switch]


@dataclass(frozen=True)
class Family:
    """A family of models, and whether it can be trained here: ``installed``, ``refused`` or something between."""

    family: str
    models: str
    state: str
    detail: str


class Fields:
    """Every field.

    Args:
        described: The answer of the helper process.
    """

    def __init__(self, described: Mapping[str, Any]) -> None:
        self.trainer = _fields(described["trainer"]) if described["trainer"] else ()
        self.no_trainer = str(described["no_trainer"])
        self.run = _fields(described["run"])
        self.losses = tuple(Loss(_name(loss), loss["package"], _fields(loss)) for loss in described["losses"])
        self.missing = str(described["missing"])
        self.families = tuple(Family(**family) for family in described["families"])

    def section(self, name: str) -> tuple[list[Field], list[Field]]:
        """Return the trainer's fields in a section: those that are visible at once, and the advanced ones."""
        order = labels.SECTIONS[name]
        known = {key for keys in labels.SECTIONS.values() for key in keys}
        own = sorted((field for field in self.trainer if field.key in order), key=lambda field: order.index(field.key))
        if name == "training":
            own += [field for field in self.trainer if field.key not in known]
        return [field for field in own if field.is_plain], [field for field in own if not field.is_plain]

    @property
    def launch(self) -> tuple[list[Field], list[Field]]:
        """Fields of ``layersync run`` only."""
        return [field for field in self.run if field.is_plain], [field for field in self.run if not field.is_plain]

    @cached_property
    def by_key(self) -> dict[str, Field]:
        """Every field by its key."""
        return {field.key: field for way in WAYS for field in self.of(way)}

    def of(self, way: str) -> Iterator[Field]:
        """Yield the fields whose values are used in one of the ways to train."""
        yield from self.trainer if way == "train" else self.run
        for loss in self.losses:
            yield from loss.fields


def text_of(value: Any) -> str:
    """Return a value as a user would type it; empty for none."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _fields(model: Mapping[str, Any]) -> tuple[Field, ...]:
    return tuple(map(Field.of, model["fields"]))


def _name(loss: Mapping[str, Any]) -> str:
    prefix = (loss["switch"] or "").removesuffix("_enabled") or loss["name"].removesuffix("Config").lower()
    return labels.NAMES.get(prefix, prefix.replace("_", " ").capitalize())


def _is_exact(text: str, value: float) -> bool:
    try:
        return math.isfinite(value) and Decimal(text) == Decimal(repr(value))
    except InvalidOperation:
        return False
