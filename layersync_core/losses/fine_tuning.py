"""Whether a training is a fine-tuning by adapter weights, for which the authors use another weight."""

from __future__ import annotations

from torch import nn

# Parts of parameter names that adapters of the common kinds carry where no PEFT layer says which are its own.
_NAMES = ("lora", "loha", "lokr", "hada", "oft", "adapter", "magnitude_vector")


def only_adapters_train(model: nn.Module) -> bool:
    """Return whether adapter weights are all that trains, and biases beside them at most.

    Weights that stand outside of the model, as LoRA of the kohya kind does, leave nothing in it that trains.

    Args:
        model: The model, which does train or is trained through.
    """
    own = {
        id(parameter)
        for module in model.modules()
        # PEFT's layers name what they add, of whatever kind it is: VeRA, IA3, FourierFT, layer norms.
        for name in getattr(module, "adapter_layer_names", ())
        if isinstance(added := getattr(module, name, None), nn.Module)
        for parameter in added.parameters()
    }
    trained = [(name.lower(), item) for name, item in model.named_parameters() if item.requires_grad]
    others = [name for name, item in trained if id(item) not in own and not any(part in name for part in _NAMES)]
    return len(others) < max(len(trained), 1) and all(name.endswith("bias") for name in others)
