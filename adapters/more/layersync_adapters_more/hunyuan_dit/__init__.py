"""LayerSync adapter for HunyuanDiT.

A ControlNet's residuals are added to the outputs of early blocks only where late blocks take them as skip connections,
so a block's output is what it was before them.
"""

from __future__ import annotations

from layersync_core import BlockStackAdapter, latent_grid

adapter = BlockStackAdapter(
    family="hunyuan_dit",
    model_classes="HunyuanDiT2DModel",
    derived_block="HunyuanDiTBlock",
    stacks="blocks",
    embedder="pos_embed",
    width="inner_dim",
    grid=latent_grid("hidden_states", lambda model: (1, model.config.patch_size, model.config.patch_size)),
)
