"""A small model of a class: its settings scaled down, and repaired where the constructor or the forward fails."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from layersync_core.documentation import docs_page
from layersync_core.entrypoints import describe_failure, foreign
from layersync_core.errors import ConfigError
from layersync_core.scaffold.classes import ModelClass, can_be_written
from layersync_core.scaffold.feeding import Fed, feed, parameters_of
from layersync_core.scaffold.guessing import Guesses
from layersync_core.scaffold.scaling import Size, guessed, role_of, scaled
from layersync_core.scaffold.weights import scatter_weights

_LARGEST = 20_000_000
"""The most weights of a model to try on this machine."""
_SECONDS = 90.0
_FED = 8
"""The most sizes of a model whose forward is tried."""

_SIZES = (
    *(
        Size(heads, width)
        for heads, width in ((2, 16), (2, 32), (2, 24), (4, 16), (2, 64), (2, 128), (0, 16), (2, 0), (0, 0))
    ),
    *(
        Size(kept=frozenset({role}))
        for role in ("outer", "channels", "time", "mlp", "hidden", "axes", "text_length", "size")
    ),
    Size(2, 0, kept=frozenset({"outer", "channels", "time", "mlp", "axes"})),
    Size(0, 0, kept=frozenset({"outer", "channels", "time", "mlp", "hidden", "axes", "text_length", "size", "groups"})),
)
"""Smallest first, then with one kind of setting unchanged, and finally the large model's widths with few blocks."""


_NUMBERS = ("channels", "patch", "axes", "hidden", "size")
"""Roles of settings that are guessed if they are None and nothing else could be built or run."""


@dataclass(frozen=True)
class Built:
    """A small model that runs, or the furthest that it could be brought.

    Attributes:
        model: The model.
        settings: The arguments of its constructor.
        fed: The arguments of its forward, and what is wrong with them.
        guesses: What was known about the forward.
    """

    model: nn.Module
    settings: Mapping[str, Any]
    fed: Fed
    guesses: Guesses


def build(kind: ModelClass) -> Built:
    """Return a small model of a class and example inputs for it.

    Raises:
        ConfigError: The constructor refuses every size, or needs a setting about which nothing is known; or the forward
            takes no named arguments, or fails whatever they are.
    """
    best: Built | None = None
    refusals: list[str] = []
    tried, until = 0, time.monotonic() + _SECONDS
    waiting = iter(_settings(kind))
    mended: list[dict[str, Any]] = []
    while (settings := mended.pop(0) if mended else next(waiting, None)) is not None:
        model = _construct(kind, settings, refusals)
        if model is None:
            continue
        parameters = parameters_of(model)
        if not parameters:
            raise ConfigError(
                f"{kind.name}: its forward takes no arguments by name, so nothing can be fed to it; write the adapter "
                f"by hand, {docs_page('adapters')}"
            )
        scatter_weights(model)
        guesses = Guesses(kind.name, {**kind.values(), **_config(model), **settings}, parameters)
        found = Built(model, settings, feed(model.eval(), guesses), guesses)
        if not found.fed.error:
            return found
        if best is None or found.fed.progress > best.fed.progress:
            best = found
            # A width that the forward expected may belong to a setting rather than to an argument.
            mended = [
                {**settings, name: there}
                for there, wanted in found.fed.sizes
                for name, value in settings.items()
                if value == wanted and there != wanted
            ]
        tried += 1
        if tried == _FED or time.monotonic() > until:
            break
    if best is None:
        raise ConfigError(
            f"{kind.name} cannot be built from its constructor's defaults and the settings of --config, scaled down: "
            f"{refusals[0]}; give --config FILE with settings that work"
        )
    if not best.fed.inputs.unknown:  # there is nothing that the author could fill in
        raise ConfigError(
            f"{kind.name}: its forward takes nothing that was tried: {best.fed.error}; give --config FILE with "
            f"settings of a model that runs, or write the adapter by hand, {docs_page('adapters')}"
        )
    return best


def _settings(kind: ModelClass) -> Iterator[dict[str, Any]]:
    """Yield settings to try, small ones first; if all are refused, with guesses in place of None."""
    values = kind.values()
    for setting in kind.settings.values():
        if setting.required and setting.name not in kind.given:
            values[setting.name] = guessed(setting.name, setting.annotation, Size())
            if values[setting.name] is None:
                raise ConfigError(
                    f"{kind.name}: nothing is known about its constructor's {setting.name}"
                    f"{f': {setting.annotation}' if setting.annotation else ''}; give it in a JSON file with --config "
                    "FILE"
                )
    required = {name: values[name] for name, setting in kind.settings.items() if setting.required}
    written = {name: value for name, value in {**required, **kind.given}.items() if can_be_written(value)}
    absent = [setting for setting in kind.settings.values() if values.get(setting.name) is None]
    seen: list[dict[str, Any]] = []
    for roles in ((), _NUMBERS, (*_NUMBERS, "outer", "table")):
        for size in _SIZES:
            new = {
                item.name: guessed(item.name, item.annotation, size) for item in absent if role_of(item.name) in roles
            }
            if "out_channels" in new:  # equal to the input channels, unless a setting says otherwise
                new["out_channels"] = new.get("in_channels", values.get("in_channels"))
            settings = {**written, **new, **scaled({**values, **new}, size)}
            settings = {name: value for name, value in settings.items() if name not in new or value is not None}
            if settings not in seen:
                seen.append(settings)
                yield settings


def _construct(kind: ModelClass, settings: Mapping[str, Any], refusals: list[str]) -> nn.Module | None:
    """Return a model; None, with the reason recorded, if the constructor refuses or the model is too large."""
    try:
        with foreign(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if (weights := _weights(kind, settings)) > _LARGEST:
                refusals.append(f"it still has {weights:,} weights")
                return None
            model: nn.Module = kind.kind(**settings)
    except Exception as error:  # a constructor may raise anything at settings that do not fit
        refusals.append(describe_failure(error))
        return None
    return model


def _weights(kind: ModelClass, settings: Mapping[str, Any]) -> int:
    """Return how many weights a model would have; 0 if that is unknown without creating them."""
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in kind.kind(**settings).parameters())
    except Exception:  # the constructor may compute with its tensors; building it for real shows what is wrong
        return 0


def _config(model: nn.Module) -> dict[str, Any]:
    """Return the settings that a model itself stores, as diffusers' models do."""
    config = getattr(model, "config", None)
    if not isinstance(config, Mapping):
        return {}
    return {name: value for name, value in config.items() if not name.startswith("_") and value is not None}
