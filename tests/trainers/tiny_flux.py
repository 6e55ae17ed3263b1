"""A Flux of 5 dual-stream and 2 single-stream blocks as a folder of diffusers, written in a trainer's environment."""

from __future__ import annotations

import json
from pathlib import Path

_CLIP_WIDTH, _T5_WIDTH = 16, 32


def save_flux_pipeline(folder: Path) -> None:
    """Write the pipeline's parts; its VAE makes 16 channels of an eighth of the size, as the real one does."""
    import tiny_data  # beside this file
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=5,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_T5_WIDTH,
        pooled_projection_dim=_CLIP_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    with torch.no_grad():  # so that no block is the identity, and the head lets gradients through
        for parameter in transformer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )
    size = {"vocab_size": 100, "num_attention_heads": 2, "num_heads": 2, "num_hidden_layers": 2, "num_layers": 2}
    clip = CLIPTextConfig(**size, hidden_size=_CLIP_WIDTH, intermediate_size=16, bos_token_id=0, eos_token_id=1)
    t5 = T5Config(**size, d_model=_T5_WIDTH, d_kv=16, d_ff=32)
    parts = {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        "text_encoder": CLIPTextModel(clip),
        "text_encoder_2": T5EncoderModel(t5),
        "transformer": transformer,
        "vae": vae,
    }
    classes = {"tokenizer": ("transformers", "CLIPTokenizer"), "tokenizer_2": ("transformers", "T5TokenizerFast")}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        classes[name] = (type(part).__module__.partition(".")[0], type(part).__name__)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline", **classes}))
    tiny_data.save_clip_tokenizer(folder / "tokenizer")
    (folder / "tokenizer" / "tokenizer_config.json").write_text('{"model_max_length": 77}')
    tiny_data.save_t5_tokenizer(folder / "tokenizer_2")
