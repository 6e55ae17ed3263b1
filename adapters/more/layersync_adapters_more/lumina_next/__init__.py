"""LayerSync adapter for Lumina-Next."""

from __future__ import annotations

from math import prod

from layersync_core import BlockStackAdapter, latent_grid

_grid = latent_grid("hidden_states", lambda model: (1, model.patch_size, model.patch_size))

adapter = BlockStackAdapter(
    family="lumina_next",
    model_classes="LuminaNextDiT2DModel",
    derived_block="LuminaNextDiTBlock",
    stacks="layers",
    width="hidden_size",
    image_tokens=lambda call: prod(_grid(call)),
    grid=_grid,
)
