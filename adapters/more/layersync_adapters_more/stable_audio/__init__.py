"""LayerSync adapter for Stable Audio and Stable Audio 3: audio, one row of tokens in time.

The tokens of the sound come after one with global conditions, or after the memory tokens in version 3.
"""

from __future__ import annotations

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall, ModelLayout


def _joined(call: ForwardCall) -> int | None:
    """Return the length of a joined sequence, which has the global conditions in front."""
    conditions = call.arguments.get("global_hidden_states")
    return None if conditions is None else call.tokens + int(conditions.shape[1])


adapter = BlockStackAdapter(
    family="stable_audio",
    model_classes="StableAudioDiTModel",
    derived_block="StableAudioDiTBlock",
    stacks=[BlockStack("transformer_blocks", joined="last")],
    embedder="proj_in",
    width="inner_dim",
    joined_tokens=_joined,
    grid=lambda call: (call.tokens, 1, 1),
    video=True,
    forks=[
        ModelLayout(
            model_classes="StableAudio3DiTModel",
            derived_block="StableAudio3DiTBlock",
            stacks=[BlockStack("transformer_blocks", joined="last")],
            embedder="proj_in",
            width="config.embed_dim",
            joined_tokens=lambda call: call.tokens + call.model.config.num_memory_tokens,
            grid=lambda call: (call.tokens, 1, 1),
            video=True,
        )
    ],
)
