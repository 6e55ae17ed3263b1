"""Weights that make every part of a new model contribute."""

from __future__ import annotations

import torch
from torch import nn


def scatter_weights(model: nn.Module) -> None:
    """Randomise every constant parameter, since zero-initialised modulations make blocks the identity."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn_like(parameter) * 0.1)
