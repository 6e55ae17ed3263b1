"""From a trainer's wrapped model to the model itself, by class names alone; imports no torch."""

from __future__ import annotations

from typing import Any

from layersync_core.errors import ConfigError

# Class of the wrapper -> attribute path of the wrapped model.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "DeepSpeedEngine": "module",
    "_FabricModule": "_forward_module",
    "PeftModel": "base_model",
    "BaseTuner": "model",
    # Wrappers of trainers around diffusers' transformer and the layers that its text passes before.
    "AnimaTransformerModel": "core",  # SimpleTuner
    "AnimaTrainableModel": "transformer",  # ai-toolkit
}


def unwrap(model: Any) -> Any:
    """Return the model inside compile, DDP, FSDP, DeepSpeed, Fabric and PEFT wrappers.

    Raises:
        ConfigError: The model is in ``nn.DataParallel``, whose replicas cannot be captured.
    """
    # Stops at a model that was seen before: one trainer's compiled model has an _orig_mod that points to itself.
    seen: set[int] = set()
    while id(model) not in seen:
        seen.add(id(model))
        names = {base.__name__ for base in type(model).__mro__}
        if "DataParallel" in names:
            raise ConfigError(
                "the model is wrapped in nn.DataParallel, whose replicas LayerSync cannot capture; "
                "use DistributedDataParallel"
            )
        for wrapper, attribute in _WRAPPERS.items():
            inner = getattr(model, attribute, None) if wrapper in names else None
            if inner is not None:
                model = inner
                break
    return model
