"""The model that is trained: the small DiT, a family's tiny model, or a local diffusers folder; whole or as LoRA."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layersync_core import (
    Adapter,
    Block,
    ConfigError,
    LayerSyncError,
    Objective,
    Tiny,
    attach,
    blocks_of,
    build_on_meta,
    completed,
    find_model_config,
    get_adapter,
    load_tiny,
    read_model_config,
    resolve,
    suggest_pair,
)
from layersync_plugin_trainer import objective
from layersync_plugin_trainer.config import Settings, TrainerConfig
from layersync_plugin_trainer.feeding import LABEL_EMBEDDERS, declared

DEFAULT_FAMILY = "dit"

_ATTENTION = re.compile(r"(^|\.)(to_q|to_k|to_v|to_out\.0|to_qkv|qkv|q_proj|k_proj|v_proj|o_proj|q|k|v|o)$")


@dataclass(frozen=True)
class Source:
    """Where a model comes from, known before its weights are loaded.

    Attributes:
        family: Id of its family.
        adapter: The family's adapter.
        tiny: The family's tiny module: how the model is fed, and the model itself if there is no folder.
        folder: Local diffusers folder of the model itself; None for a tiny model.
    """

    family: str
    adapter: Adapter
    tiny: Tiny
    folder: Path | None = None

    def build(self, config: TrainerConfig) -> nn.Module:
        """Return the model with its weights, and with LoRA and gradient checkpointing if asked for.

        Raises:
            ConfigError: The weights cannot be loaded, or the model lacks what was asked for.
        """
        model = self.whole()
        _switch_off_label_dropout(model)
        if config.gradient_checkpointing:
            _checkpoint_gradients(model)
        if config.rank is not None:
            _add_lora(model, self.adapter.list_blocks(model), config.rank)
        return model.train()

    def outline(self) -> nn.Module:
        """Return the model without the folder's weights: on the meta device, or the tiny model itself.

        Raises:
            ConfigError: The model's class cannot be built from the folder's config.
        """
        if self.folder is None:
            return self._tiny()
        return build_on_meta(read_model_config(self.folder))  # type: ignore[no-any-return]

    def whole(self) -> nn.Module:
        """Return the model with its weights.

        Raises:
            ConfigError: They cannot be loaded.
        """
        if self.folder is None:
            return self._tiny()
        kind = _diffusers_class(read_model_config(self.folder))
        try:
            model: nn.Module = kind.from_pretrained(self.folder, local_files_only=True, torch_dtype=torch.float32)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"the weights in {self.folder} cannot be loaded: {reason}") from error
        missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
        if missing:
            raise ConfigError(
                f"the weights in {self.folder} are not those of its config: {len(missing)} are missing, such as "
                f"{missing[0]}"
            )
        return model

    def _tiny(self) -> nn.Module:
        try:
            return self.tiny.tiny_model()
        except LayerSyncError:
            raise
        except Exception as error:  # third-party modules may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"the tiny model of family {self.family} cannot be built: {reason}") from error


def find_source(model: str | None, family: str | None) -> Source:
    """Find out where the model comes from.

    Args:
        model: Local diffusers folder; None: the family's tiny model.
        family: Id of the family; None: read it from the folder, or use the default if there is no folder.

    Raises:
        LayerSyncError: The family or the folder is unknown, refused, not installed, or ships no tiny model, or one that
            does not say how it is fed.
    """
    if model is not None:
        file = find_model_config(model)
        adapter = get_adapter(family) if family else resolve(read_model_config(file))
        return Source(adapter.family, adapter, declared(adapter.family, load_tiny(adapter.family)), file.parent)
    family = family or DEFAULT_FAMILY
    adapter = get_adapter(family)
    if family == DEFAULT_FAMILY:
        from layersync_plugin_trainer import digits_dit

        return Source(family, adapter, digits_dit)
    return Source(family, adapter, declared(family, load_tiny(family)))


def regularizer_settings(settings: Settings, blocks: list[Block]) -> dict[str, Any]:
    """Return the regularizers' settings: those of a default run with the suggested pair, overridden by the user's."""
    student, teacher = suggest_pair(blocks)
    return settings.over_default(student.index + 1, teacher.index + 1)


@dataclass(frozen=True)
class Plan:
    """What a run would train, after every start-up check.

    Attributes:
        source: Where the model comes from.
        regularizers: Their settings, including a default pair.
        scheduled: The same with the run's length, at which a schedule may end.
        weights: The model's number of weights.
    """

    source: Source
    regularizers: dict[str, Any]
    scheduled: dict[str, Any]
    weights: int


def plan(settings: Settings, source: Source | None = None) -> Plan:
    """Return what a run would train, without writing anything or loading weights.

    Args:
        settings: The run's settings.
        source: Where the model comes from, if that is known.

    Raises:
        LayerSyncError: Any start-up error.
    """
    source = source or find_source(settings.trainer.model, settings.trainer.family)
    outline = source.outline()
    regularizers = regularizer_settings(settings, blocks_of(source.adapter, outline))
    # A schedule may end with the run.
    scheduled = {**regularizers, "max_train_steps": settings.trainer.max_train_steps}
    weights = sum(weight.numel() for weight in outline.parameters())
    check_attachable(outline, scheduled, source.family, objective.enabled(scheduled))
    return Plan(source, regularizers, scheduled, weights)


def check_attachable(model: nn.Module, regularizers: dict[str, Any], family: str, main: Objective) -> None:
    """Prepare a model for training only to raise start-up errors; the model must not be used afterwards."""
    # Whether it has a null class isn't known without its weights, so nothing is refused for that here.
    completed(main).begin(model, guided=True)
    attach(model, regularizers, family=family, objective=main).remove()


def model_config(model: nn.Module) -> dict[str, Any]:
    """Return the model's configuration as plain JSON values, without what differs between machines."""
    config = getattr(model, "config", {})
    values = dict(config) if hasattr(config, "keys") else dict(vars(config))
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return {key: value for key, value in plain.items() if not key.startswith("_")}


def _diffusers_class(config: dict[str, Any]) -> Any:
    import diffusers

    name = config.get("_class_name")
    if not isinstance(name, str) or not hasattr(diffusers, name):
        raise ConfigError(
            f"diffusers {diffusers.__version__} has no class {name}, so this folder cannot be loaded here"
        )
    return getattr(diffusers, name)


def _switch_off_label_dropout(model: nn.Module) -> None:
    # Dropout draws from each process's own generator, so two processes would train differently from one.
    for module in model.modules():
        if type(module).__name__ in LABEL_EMBEDDERS and hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0  # type: ignore[assignment]


def _checkpoint_gradients(model: nn.Module) -> None:
    enable = getattr(model, "enable_gradient_checkpointing", None)
    if enable is None or not getattr(model, "_supports_gradient_checkpointing", True):
        raise ConfigError(f"{type(model).__name__} has no gradient checkpointing; leave gradient_checkpointing out")
    enable()


def _add_lora(model: Any, blocks: list[Block], rank: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    inside = tuple(f"{block.path}." for block in blocks)
    linear = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name.startswith(inside)
    ]
    targets = [name for name in linear if _ATTENTION.search(name)] or linear
    if not targets:
        raise ConfigError(f"{type(model).__name__} has no linear layers in its blocks, so there is nothing for LoRA")
    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)
    if hasattr(model, "add_adapter"):
        model.add_adapter(lora)
    else:
        # Also in place, so that the model keeps its class, its config and its blocks' paths.
        inject_adapter_in_model(lora, model)


def export(model: Any, folder: Path, lora: bool) -> None:
    """Write the trained model in diffusers' format: all of it, or only its LoRA weights.

    Args:
        model: The bare model.
        folder: Where to write.
        lora: Whether only LoRA weights were trained.
    """
    if lora and hasattr(model, "save_lora_adapter"):
        model.save_lora_adapter(folder)
    elif lora:
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        # In peft's own format, for PeftModel.from_pretrained.
        weights = {f"base_model.model.{name}": value for name, value in get_peft_model_state_dict(model).items()}
        model.peft_config["default"].save_pretrained(str(folder))
        save_file(weights, folder / "adapter_model.safetensors")
    elif hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
    else:
        from safetensors.torch import save_model

        folder.mkdir(parents=True, exist_ok=True)
        save_model(model, str(folder / "model.safetensors"))
