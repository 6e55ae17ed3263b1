"""LayerSync adapter for MiniMax Music 3: audio, one row of tokens in time, after one token for the timestep."""

from __future__ import annotations

from layersync_core import BlockStack, BlockStackAdapter

adapter = BlockStackAdapter(
    family="minimax_music",
    model_classes="MiniMaxMusic3Transformer1DModel",
    derived_block="MiniMaxMusic3TransformerBlock",
    stacks=[BlockStack("transformer_blocks", joined="last")],
    embedder="proj_in",
    width="proj_in.out_features",
    joined_tokens=lambda call: call.tokens + 1,
    grid=lambda call: (call.tokens, 1, 1),
    video=True,
)
