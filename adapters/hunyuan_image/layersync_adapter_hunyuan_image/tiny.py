"""A HunyuanImage of a few thousand weights, its other forms, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import HunyuanImageTransformer2DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "image"
sample, axes = "hidden_states", "BCHW"
timestep = "timestep"
_TEXT, _BYT5 = 12, 6


def tiny_model(**settings: Any) -> nn.Module:
    """Return a HunyuanImage of 2 dual-stream and 2 single-stream blocks for latents of 4 channels."""
    sizes: dict[str, Any] = {"in_channels": 4, "patch_size": (2, 2), "rope_axes_dim": (8, 8)}
    model: nn.Module = HunyuanImageTransformer2DModel(
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        mlp_ratio=1.0,
        text_embed_dim=_TEXT,
        **sizes | settings,
    )
    return model


def tiny_byt5() -> nn.Module:
    """Return the distilled form: a second text, guidance, and the timestep that mean flow aims at."""
    model: Any = tiny_model(text_embed_2_dim=_BYT5, guidance_embeds=True, use_meanflow=True)
    # The second text projection is 2048 wide whatever the configuration says: 4 million weights.
    model.context_embedder_2 = type(model.context_embedder_2)(_BYT5, 8, 32)
    return model  # type: ignore[no-any-return]


def tiny_refiner() -> nn.Module:
    """Return the refiner: latents with frames, and the image to refine in their last channels."""
    return tiny_model(in_channels=8, patch_size=(1, 2, 2), rope_axes_dim=(4, 6, 6))


variants = {"HunyuanImage": tiny_model, "HunyuanImage distilled": tiny_byt5, "HunyuanImage refiner": tiny_refiner}


def example_inputs(model: nn.Module, batch_size: int, text: int = 5) -> dict[str, Any]:
    """Return random arguments of the model's forward.

    Args:
        model: The model that one of the functions returned.
        batch_size: Samples.
        text: Text tokens, one of them padding.
    """
    mask = torch.ones(batch_size, text, dtype=torch.long)
    mask[:, -1] = 0
    config: Any = model.config
    frames = (1,) * (len(config.patch_size) - 2)
    inputs = {
        "hidden_states": torch.randn(batch_size, config.in_channels, *frames, 8, 8),
        "timestep": torch.randint(0, 1000, (batch_size,)).float(),  # determines the embedding's dtype
        "encoder_hidden_states": torch.randn(batch_size, text, _TEXT),
        "encoder_attention_mask": mask,
    }
    if config.text_embed_2_dim:
        inputs["encoder_hidden_states_2"] = torch.randn(batch_size, 3, _BYT5)
        inputs["encoder_attention_mask_2"] = torch.ones(batch_size, 3, dtype=torch.long)
    if config.guidance_embeds:
        inputs["guidance"] = torch.full((batch_size,), 3500.0)
    if config.use_meanflow:
        inputs["timestep_r"] = torch.randint(0, 1000, (batch_size,)).float()
    return inputs
