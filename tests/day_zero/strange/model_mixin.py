"""The base class that marks a model, as opposed to a part of one, only by its name."""

from __future__ import annotations

from torch import nn


class ModelMixin(nn.Module):
    pass
