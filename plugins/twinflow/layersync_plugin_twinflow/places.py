"""Where the models of each family embed their time."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from layersync_core import ConfigError, resolve


@dataclass(frozen=True)
class Place:
    """One module that embeds the time.

    Attributes:
        path: The embedder's path in the model.
        projection: Path of the module before it, which gets the time itself.
        width: Channels of the embedding.
        scale: The projection's input for a time of 1.
    """

    path: str
    projection: str
    width: int
    scale: float


_PLACES = {
    "dit": (r"transformer_blocks\.\d+\.norm1\.emb\.timestep_embedder", "time_proj"),  # one in each block
    "qwen_image": (r"time_text_embed\.timestep_embedder", "time_proj"),
    "sana": (r"time_embed(\.emb)?\.timestep_embedder", "time_proj"),
    "sd3": (r"time_text_embed\.timestep_embedder", "time_proj"),
    "wan": (r"condition_embedder\.time_embedder", "timesteps_proj"),
}
"""Family -> path of the embedder and name of the projection next to it, in diffusers' classes."""


def places_of(model: nn.Module) -> list[Place]:
    """Return where a model embeds its time.

    Raises:
        ConfigError: Its family or its class is not one of those known here.
        LayerSyncError: Its family is not known, as for ``resolve``.
    """
    family = resolve(model).family
    if family not in _PLACES:
        raise ConfigError(
            f"TwinFlow cannot train family {family}: it adds a target time to a model's time embedding, and where "
            f"models of this family have theirs is not known here; known are {', '.join(_PLACES)}"
        )
    pattern, sibling = _PLACES[family]
    found = []
    for path, module in model.named_modules():
        if re.fullmatch(pattern, path):
            projection = f"{path.rpartition('.')[0]}.{sibling}"
            width = getattr(getattr(module, "linear_2", None), "out_features", None)
            if width is not None and projection in dict(model.named_modules()):
                # A projection that scales the time itself gets times from 0 to 1.
                scale = 1000 / getattr(model.get_submodule(projection), "scale", 1)
                found.append(Place(path, projection, width, scale))
    if not found:
        raise ConfigError(
            f"TwinFlow cannot train a {type(model).__name__}: it has no time embedder at {pattern}, where diffusers' "
            f"models of family {family} have theirs; use such a model"
        )
    return found
