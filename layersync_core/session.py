"""Attach LayerSync to a model: configuration → forward → buffer → regularizers → one total loss."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import nn

from layersync_core.attachment import Attachment, attached
from layersync_core.capture.discovery.search import Search
from layersync_core.capture.identity import is_same
from layersync_core.capture.policy import Policy, exactly_one
from layersync_core.config import LayerSyncConfig
from layersync_core.errors import ConfigError, UnknownFamilyError
from layersync_core.families.asking import blocks_of
from layersync_core.families.discovered import AUTO, adapter_named
from layersync_core.families.registry import resolve
from layersync_core.families.unwrap import unwrap
from layersync_core.losses import layersync
from layersync_core.losses.claims import ONLY_TRAINED_HERE
from layersync_core.losses.plugins import Plugins
from layersync_core.objective import Objective, completed
from layersync_core.protocol import API_VERSION, Adapter
from layersync_core.spelling import PREFIX

log = logging.getLogger(__name__)


@cache
def plugins() -> Plugins:
    """Return the plugins of this process, LayerSync first, loaded on first use."""
    return Plugins(builtins=[layersync])


def attach(
    model: nn.Module,
    config: LayerSyncConfig | Mapping[str, Any],
    *,
    family: str | None = None,
    adapter: Adapter | None = None,
    objective: Objective | None = None,
    policy: Policy = exactly_one,
) -> Attachment:
    """Attach LayerSync, and every other enabled regularizer, to a model.

    Args:
        model: The model to train, possibly inside DDP, FSDP, compile or PEFT wrappers.
        config: Settings; a mapping is read by ``LayerSyncConfig.from_mapping``.
        family: Family to use instead of the one that the model's class indicates; an adapter file; or ``auto``, which
            finds the blocks and tokens of a class that no adapter knows at its first loss.
        adapter: Adapter for your own model, instead of an installed one.
        objective: What the caller's loop computes its main loss with, as ``plugins().objective`` returned it; its
            module is among ``modules()``, and in the state.
        policy: For hosts that find the forward of a loss themselves and pass it, ``loss(forward=…)``.

    Raises:
        ConfigError: The settings are wrong or do not fit the model, they enable an objective that the caller does not
            run, or the model already has an attachment.
        UnsupportedFamilyError: The model's family is refused.
        AdapterNotInstalledError: The family is known but its adapter is missing or broken.
        UnknownFamilyError: No installed adapter describes the model.

    Examples:
        >>> from layersync_core import attach, load_tiny
        >>> tiny = load_tiny("dit")
        >>> model = tiny.tiny_model()
        >>> config = {"layersync_enabled": True, "layersync_student_block": 2, "layersync_teacher_block": 4}
        >>> with attach(model, config) as sync:
        ...     print(sync.student, "->", sync.teacher)
        block 2 of 6 (transformer_blocks.1) -> block 4 of 6 (transformer_blocks.3)
    """
    if not isinstance(config, (LayerSyncConfig, Mapping)):
        raise ConfigError(f"attach() takes a LayerSyncConfig or a mapping; got a {type(config).__name__}")
    if not isinstance(config, LayerSyncConfig):
        config = LayerSyncConfig.from_mapping(config)
    regularizers = plugins().regularizers(config)
    if objective is None and (enabled := plugins().objective(config)) is not None:
        raise ConfigError(ONLY_TRAINED_HERE.format(enabled.name))
    root = unwrap(model)
    if not isinstance(root, nn.Module):
        raise ConfigError(f"attach() takes a torch module; got a {type(root).__name__}")
    own = None if objective is None else completed(objective).module
    providers = plugins().switched_on(config.given)
    part = {} if objective is None or own is None else {objective.name: own}
    if not regularizers:
        if f"{PREFIX}enabled" not in config.given:
            log.warning(
                "no layersync_* setting was given to attach(), so LayerSync is off; layersync_enabled switches it"
            )
        return Attachment(root, None, [], [], policy, part=part, plugins=providers)
    if any(is_same(root, model) for model in attached):
        raise ConfigError(
            f"this {type(root).__name__} has an attachment already; call remove() on it before attaching again "
            "(a program that attaches by itself needs no layersync run)"
        )
    if adapter is not None and not isinstance(adapter, Adapter):
        raise ConfigError(f"adapter= takes an adapter such as BlockStackAdapter; got a {type(adapter).__name__}")
    search = None
    if adapter is None and family == AUTO:
        try:
            adapter = resolve(root)
        except UnknownFamilyError:
            search = Search(root)
    if search is None:
        adapter = fitting(root, family, adapter)
    return Attachment(
        root,
        adapter,
        [] if adapter is None else blocks_of(adapter, root),
        regularizers,
        policy,
        config.layersync_guard,
        config.layersync_generated_tokens,
        part,
        search,
        providers,
    )


def fitting(root: nn.Module, family: str | None, adapter: Adapter | None = None) -> Adapter:
    """Return the adapter to attach a model with.

    Raises:
        LayerSyncError: There is none, or it does not fit, as for ``attach``.
    """
    if adapter is None:
        adapter = adapter_named(family) if family else resolve(root)
    if adapter.api_version != API_VERSION:
        raise ConfigError(
            f"adapter {adapter.family} is written for adapter API {adapter.api_version!r}, this layersync-core for "
            f"{API_VERSION}"
        )
    return adapter
