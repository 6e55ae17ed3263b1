"""Whether only adapter weights are fine-tuned, for which the authors use a smaller loss weight."""

from __future__ import annotations

from torch import nn

# Substrings of the parameter names of common adapters, for adapters that aren't PEFT layers.
_NAMES = ("lora", "loha", "lokr", "hada", "oft", "adapter", "magnitude_vector")


def only_adapters_train(model: nn.Module) -> bool:
    """Return whether only adapter weights train, with biases at most beside them.

    With weights outside of the model, as in kohya's LoRA, nothing in the model itself trains.

    Args:
        model: The model, which is trained or through which something else is.
    """
    own = {
        id(parameter)
        for module in model.modules()
        # PEFT's layers list the names of what they add, whatever its kind: VeRA, IA3, FourierFT, layer norms.
        for name in getattr(module, "adapter_layer_names", ())
        if isinstance(added := getattr(module, name, None), nn.Module)
        for parameter in added.parameters()
    }
    trained = [(name.lower(), item) for name, item in model.named_parameters() if item.requires_grad]
    others = [name for name, item in trained if id(item) not in own and not any(part in name for part in _NAMES)]
    return len(others) < max(len(trained), 1) and all(name.endswith("bias") for name in others)
