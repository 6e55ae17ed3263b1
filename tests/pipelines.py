"""Tiny pipelines with random weights, as local folders, for the example scripts of diffusers; and data to train on.

Nothing is downloaded: the tokenizers' vocabularies are written here. Each transformer has six blocks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    Cosmos2_5_PredictBasePipeline,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
)
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.models import randomise

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_CLIP_WIDTH, _T5_WIDTH, _QWEN_WIDTH, _QWEN_LAYERS = 16, 32, 16, 2


def flux_pipeline(folder: Path) -> Path:
    """Save a Flux of 2 dual-stream and 4 single-stream blocks; the VAE halves an image once, to 4 channels."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16,  # 2x2 patches
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_T5_WIDTH,
        pooled_projection_dim=_CLIP_WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    clip, t5 = _clip_tokenizer(), _t5_tokenizer()
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_image_vae(),
        text_encoder=CLIPTextModel(_clip_config(clip)),
        tokenizer=clip,
        text_encoder_2=T5EncoderModel(_t5_config(t5)),
        tokenizer_2=t5,
        transformer=randomise(transformer),
    )
    pipeline.save_pretrained(folder)
    return folder


def sd3_pipeline(folder: Path) -> Path:
    """Save a Stable Diffusion 3 of 6 blocks; the VAE halves an image once, to 4 channels."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_projection_dim=32,
        joint_attention_dim=_T5_WIDTH,
        pooled_projection_dim=2 * _CLIP_WIDTH,
        pos_embed_max_size=32,
    )
    clip, t5 = _clip_tokenizer(), _t5_tokenizer()
    pipeline = StableDiffusion3Pipeline(
        transformer=randomise(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_image_vae(),
        text_encoder=CLIPTextModelWithProjection(_clip_config(clip)),
        tokenizer=clip,
        text_encoder_2=CLIPTextModelWithProjection(_clip_config(clip)),
        tokenizer_2=clip,
        text_encoder_3=T5EncoderModel(_t5_config(t5)),
        tokenizer_3=t5,
    )
    pipeline.save_pretrained(folder)
    return folder


def cosmos_pipeline(folder: Path) -> Path:
    """Save a Cosmos Predict 2.5 of 6 blocks; the VAE makes (1 + T / 4, H / 8, W / 8) of (1 + T, H, W)."""
    torch.manual_seed(0)
    channels, text = 4, _QWEN_WIDTH * _QWEN_LAYERS  # the states of every layer, side by side
    transformer = CosmosTransformer3DModel(
        in_channels=channels + 1,  # and the mask of conditioning frames
        out_channels=channels,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=6,
        mlp_ratio=2.0,
        text_embed_dim=12,
        adaln_lora_dim=4,
        max_size=(4, 16, 16),
        extra_pos_embed_type=None,
        concat_padding_mask=False,  # resizing the mask needs torchvision
        use_crossattn_projection=True,
        crossattn_proj_in_channels=text,
        encoder_hidden_states_channels=12,
    )
    vae = AutoencoderKLWan(
        base_dim=3,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
    )
    tokenizer = _qwen_tokenizer()
    pipeline = Cosmos2_5_PredictBasePipeline(
        text_encoder=Qwen2_5_VLForConditionalGeneration(_qwen_config(tokenizer)),
        tokenizer=tokenizer,
        transformer=randomise(transformer),
        vae=vae,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        safety_checker=_NoChecker(),
    )
    # It cannot be saved, and the scripts bring one of their own.
    pipeline.register_modules(safety_checker=None)
    pipeline.save_pretrained(folder)
    return folder


def images(folder: Path, count: int = 3, size: int = 40) -> Path:
    """Save square RGB images of smooth random colours."""
    folder.mkdir(parents=True)
    for index, frame in enumerate(_frames(count, size, size)):
        Image.fromarray(frame).save(folder / f"{index}.png")
    return folder


def videos(folder: Path, count: int = 3, frames: int = 9, height: int = 32, width: int = 32) -> Path:
    """Save videos with captions in the layout of the Cosmos script: videos/*.mp4 and metas/*.txt.

    The .mp4 files are arrays of (T, H, W, 3) bytes in numpy's format, which the stub of imageio reads.
    """
    for name in ("videos", "metas"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        with (folder / "videos" / f"{index}.mp4").open("wb") as file:
            np.save(file, _frames(frames, height, width, seed=index))
        (folder / "metas" / f"{index}.txt").write_text(f"a video of colours number {index}")
    return folder


class _NoChecker:
    """Stands in for the safety checker, which downloads its models."""


def _frames(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (255 * smooth).byte().permute(0, 2, 3, 1).numpy()


def _image_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
        sample_size=32,
    )


def _clip_tokenizer() -> CLIPTokenizer:
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *_LETTERS, *(f"{letter}</w>" for letter in _LETTERS)]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}, merges=[], model_max_length=77)


def _t5_tokenizer() -> T5Tokenizer:
    vocabulary = ["<pad>", "</s>", "<unk>", "▁", *_LETTERS]
    return T5Tokenizer(vocab=[(token, -1.0) for token in vocabulary], extra_ids=0, model_max_length=64)


def _qwen_tokenizer() -> Qwen2Tokenizer:
    vocabulary = ["<|endoftext|>", *sorted(ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(vocab={token: index for index, token in enumerate(vocabulary)}, merges=[])
    tokenizer.chat_template = "{% for message in messages %}{{ message.content[0].text }}\n{% endfor %}"
    return tokenizer


def _clip_config(tokenizer: PreTrainedTokenizerBase) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_CLIP_WIDTH,
        intermediate_size=_CLIP_WIDTH,
        projection_dim=_CLIP_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _t5_config(tokenizer: PreTrainedTokenizerBase) -> T5Config:
    return T5Config(vocab_size=len(tokenizer), d_model=_T5_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2)


def _qwen_config(tokenizer: PreTrainedTokenizerBase) -> Qwen2_5_VLConfig:
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": _QWEN_WIDTH,
        "intermediate_size": 16,
        "num_hidden_layers": _QWEN_LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": _QWEN_WIDTH}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision)
