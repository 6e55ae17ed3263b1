"""The conformance of Stable Diffusion XL: of diffusers' UNet, and of a stand-in for sd-scripts' own."""

import diffusers
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layersync_adapter_sdxl import adapter, tiny
from layersync_core import ConfigError, attach
from layersync_core.testing import AdapterConformance

RELEASED = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "layers_per_block": 2,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}


class TestSdxl(AdapterConformance):
    family = "sdxl"
    depth = 7

    @staticmethod
    def longer_text(inputs):
        return inputs | {"encoder_hidden_states": torch.randn(2, 154, 12)}


class TestSdxlOddSize(TestSdxl):
    @staticmethod
    def example_inputs(model, batch_size):
        return tiny.example_inputs(model, batch_size, size=(10, 14))


class TestSdxlWithoutMiddle(TestSdxl):
    """Segmind Vega and KOALA, distilled."""

    depth = 6

    @staticmethod
    def tiny_model():
        config = {key: value for key, value in tiny.tiny_model().config.items() if not key.startswith("_")}
        return diffusers.UNet2DConditionModel(**config | {"mid_block_type": None})


def test_released_blocks():
    with torch.device("meta"):
        blocks = adapter.list_blocks(diffusers.UNet2DConditionModel.from_config(RELEASED))
    assert len(blocks) == 70
    coarse = range(4, 64)
    for block in blocks:
        expected = (1280, "1/4 resolution") if block.index in coarse else (640, "1/2 resolution")
        assert (block.width, block.stage) == expected, block
    assert [block.path.split(".")[0] for block in (blocks[23], blocks[24], blocks[33], blocks[34])] == [
        "down_blocks",
        "mid_block",
        "mid_block",
        "up_blocks",
    ]


def test_a_pair_shares_a_stage():
    settings = {"layersync_enabled": True, "layersync_student_block": 1, "layersync_teacher_block": 3}
    with pytest.raises(ConfigError, match=r"(?s)down_blocks\.1\..*mid_block\."):
        attach(tiny.tiny_model(), settings, adapter=adapter)
    settings["layersync_teacher_block"] = 7  # on the way up, with the student's resolution
    model = tiny.tiny_model()
    with attach(model, settings, adapter=adapter) as sync:
        model(**tiny.example_inputs(model, 2))
        assert sync.loss().isfinite()


def test_equal_widths_at_two_resolutions_are_two_stages():
    config = dict(tiny.tiny_model().config) | {"block_out_channels": (8, 16, 16), "attention_head_dim": (1, 2, 2)}
    stages = [block.stage for block in adapter.list_blocks(diffusers.UNet2DConditionModel.from_config(config))]
    assert stages == ["1/2 resolution"] + ["1/4 resolution"] * 4 + ["1/2 resolution"] * 2


def test_other_unets_are_not_sdxl():
    config = dict(tiny.tiny_model().config) | {"addition_embed_type": None}
    assert not adapter.supports_hidden_states(diffusers.UNet2DConditionModel.from_config(config))


# A stand-in for sd-scripts: the names, signatures and outputs of its classes.


class CrossAttention(nn.Module):
    def __init__(self, width, context=None):
        super().__init__()
        self.to_q, self.to_out = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.to_k, self.to_v = (nn.Linear(context or width, width, bias=False) for _ in range(2))

    def forward(self, x, context=None):
        context = x if context is None else context
        return self.to_out(F.scaled_dot_product_attention(self.to_q(x), self.to_k(context), self.to_v(context)))


class BasicTransformerBlock(nn.Module):
    checkpoint = None

    def __init__(self, width, context):
        super().__init__()
        self.attn1, self.attn2 = CrossAttention(width), CrossAttention(width, context)
        self.ff = nn.Linear(width, width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward_body(self, hidden_states, context=None, timestep=None):
        hidden_states = self.attn1(self.norm1(hidden_states)) + hidden_states
        hidden_states = self.attn2(self.norm2(hidden_states), context=context) + hidden_states
        return self.ff(self.norm3(hidden_states)) + hidden_states

    def forward(self, hidden_states, context=None, timestep=None):
        if self.checkpoint:  # inside the block
            return self.checkpoint(self.forward_body, hidden_states, context, timestep)
        return self.forward_body(hidden_states, context, timestep)


class Transformer2DModel(nn.Module):
    def __init__(self, width, context, depth):
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.proj_in, self.proj_out = nn.Linear(width, width), nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList(BasicTransformerBlock(width, context) for _ in range(depth))

    def forward(self, hidden_states, encoder_hidden_states=None, timestep=None):
        batch, channels, rows, columns = hidden_states.shape
        x = self.norm(hidden_states).permute(0, 2, 3, 1).reshape(batch, rows * columns, channels)
        x = self.proj_in(x)
        for block in self.transformer_blocks:
            x = block(x, context=encoder_hidden_states, timestep=timestep)
        return hidden_states + self.proj_out(x).reshape(batch, rows, columns, channels).permute(0, 3, 1, 2)


class ResnetBlock2D(nn.Module):
    def __init__(self, inner, outer):
        super().__init__()
        self.norm, self.conv, self.emb = nn.GroupNorm(4, inner), nn.Conv2d(inner, outer, 1), nn.Linear(8, outer)

    def forward(self, x, emb):
        return 4 * self.conv(self.norm(x)) + self.emb(emb)[:, :, None, None]


class Downsample2D(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, hidden_states):
        return self.conv(hidden_states)


class Upsample2D(nn.Module):
    def forward(self, x, output_size=None):
        return F.interpolate(x, scale_factor=2.0)


class SdxlUNet2DConditionModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.time_embed, self.label_emb = nn.Linear(1, 8), nn.Linear(6, 8)
        self.input_blocks = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(4, 8, 1)),
                nn.Sequential(Downsample2D(8)),
                nn.ModuleList([ResnetBlock2D(8, 16), Transformer2DModel(16, 12, 1)]),
                nn.Sequential(Downsample2D(16)),
                nn.ModuleList([ResnetBlock2D(16, 24), Transformer2DModel(24, 12, 2)]),
            ]
        )
        self.middle_block = nn.ModuleList([ResnetBlock2D(24, 24), Transformer2DModel(24, 12, 1), ResnetBlock2D(24, 24)])
        self.output_blocks = nn.ModuleList(
            [
                nn.ModuleList([ResnetBlock2D(48, 24), Transformer2DModel(24, 12, 1)]),
                nn.ModuleList([ResnetBlock2D(40, 24), Upsample2D()]),
                nn.ModuleList([ResnetBlock2D(40, 16), Transformer2DModel(16, 12, 1), Upsample2D()]),
                nn.ModuleList([ResnetBlock2D(24, 8)]),
            ]
        )
        self.out = nn.ModuleList([nn.Conv2d(8, 4, 1)])

    def enable_gradient_checkpointing(self, gradient_checkpointing_func=None):
        for module in self.modules():
            if isinstance(module, BasicTransformerBlock):
                module.checkpoint = gradient_checkpointing_func

    def forward(self, x, timesteps=None, context=None, y=None, **kwargs):
        def call_module(module, h, emb, context):
            for layer in module:
                if isinstance(layer, ResnetBlock2D):
                    h = layer(h, emb)
                else:
                    h = layer(h, context) if isinstance(layer, Transformer2DModel) else layer(h)
            return h

        emb = self.time_embed(timesteps[:, None].to(x.dtype)) + self.label_emb(y)
        h, skipped = x, []
        for module in self.input_blocks:
            h = call_module(module, h, emb, context)
            skipped.append(h)
        h = call_module(self.middle_block, h, emb, context)
        skipped = [skipped[4], skipped[3], skipped[2], skipped[0]]
        for module, skip in zip(self.output_blocks, skipped, strict=True):
            h = call_module(module, torch.cat([h, F.interpolate(skip, h.shape[-2:])], dim=1), emb, context)
        return call_module(self.out, h, emb, context)


class TestSdScripts(AdapterConformance):
    family = "sdxl"
    tiny_model = SdxlUNet2DConditionModel
    depth = 6

    @staticmethod
    def example_inputs(model, batch_size):
        return {
            "x": torch.randn(batch_size, 4, 16, 16),
            "timesteps": torch.rand(batch_size),
            "context": torch.randn(batch_size, 77, 12),
            "y": torch.randn(batch_size, 6),
        }

    @staticmethod
    def longer_text(inputs):
        return inputs | {"context": torch.randn(2, 154, 12)}


def test_stages_of_sd_scripts():
    blocks = adapter.list_blocks(SdxlUNet2DConditionModel())
    assert [(block.width, block.stage) for block in blocks] == (
        [(16, "1/2 resolution")] + [(24, "1/4 resolution")] * 4 + [(16, "1/2 resolution")]
    )
