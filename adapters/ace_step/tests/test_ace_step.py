"""The conformance of ACE-Step: diffusers' 1.5, and stand-ins for the original 1.5 and 1.0 and for ai-toolkit's 1.5."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layersync_adapter_ace_step import adapter, tiny
from layersync_core import attach
from layersync_core.testing import AdapterConformance, raw_outputs

SETTINGS = {
    "layersync_enabled": True,
    "layersync_student_block": 2,
    "layersync_teacher_block": 3,
    "layersync_lambda": 1.0,
}


class TestAceStep(AdapterConformance):
    family = "ace_step"
    depth = 4
    text = ("encoder_hidden_states",)

    @staticmethod
    def longer_text(inputs):
        return inputs | {"encoder_hidden_states": torch.randn(2, 30, 10)}


class TestAceStepOdd(TestAceStep):
    @staticmethod
    def example_inputs(model, batch_size):
        return tiny.example_inputs(model, batch_size, length=17)


def losses(model, blocks, inputs, real):
    """Return LayerSync's loss, and the same computed by hand over the real tokens of each sample."""
    with attach(model, SETTINGS, adapter=adapter) as sync, raw_outputs(dict(enumerate(blocks))) as outputs:
        model(**inputs)
        loss = sync.loss()
    student, teacher = (outputs[index][0] for index in (1, 2))
    if isinstance(student, tuple):
        (student,), (teacher,) = student, teacher
    cosines = [
        F.cosine_similarity(student[sample, :count], teacher[sample, :count], dim=-1)
        for sample, count in enumerate(real)
    ]
    return loss, -torch.cat(cosines).mean()


@pytest.mark.parametrize(("length", "tokens"), [(17, 9), (18, 9), (1, 1)])
def test_a_partly_filled_last_token_counts(length, tokens):
    model = tiny.tiny_model()
    inputs = tiny.example_inputs(model, 2, length=length)
    torch.testing.assert_close(*losses(model, model.layers, inputs, [tokens, tokens]))
    if length == 17:
        with pytest.raises(AssertionError):
            torch.testing.assert_close(*losses(model, model.layers, inputs, [tokens - 1] * 2))


# Stand-ins with the names, signatures and outputs of the other classes.


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.modulation, self.o_proj = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.to_q, self.to_k, self.to_v = (nn.Linear(16, 16, bias=False) for _ in range(3))

    def mix(self, states, temb, text):
        y = torch.cat([self.norm(states) * (1 + self.modulation(temb)[:, None]), text], dim=1)
        y = F.scaled_dot_product_attention(self.to_q(y), self.to_k(y), self.to_v(y))
        return states + self.o_proj(y[:, : states.shape[1]])


class Root(nn.Module):
    checkpoint = None

    def enable_gradient_checkpointing(self, gradient_checkpointing_func=None):
        self.checkpoint = gradient_checkpointing_func

    def run(self, block, *inputs):
        return self.checkpoint(block, *inputs) if self.checkpoint else block(*inputs)


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class AceStepDiTLayer(Layer):
    def forward(
        self,
        hidden_states,
        position_embeddings,
        temb,
        attention_mask=None,
        encoder_hidden_states=None,
        encoder_attention_mask=None,
    ):
        return (self.mix(hidden_states, temb, encoder_hidden_states),)


class AceStepDiTModel(Root):
    """The original 1.5's, and DiffSynth-Studio's."""

    def __init__(self):
        super().__init__()
        self.patch_size = 2
        self.layers = nn.ModuleList(AceStepDiTLayer() for _ in range(4))
        self.proj_in = nn.Sequential(
            Lambda(lambda x: x.transpose(1, 2)), nn.Conv1d(12, 16, 2, stride=2), Lambda(lambda x: x.transpose(1, 2))
        )
        self.time_embed, self.condition_embedder, self.proj_out = nn.Linear(1, 16), nn.Linear(10, 16), nn.Linear(16, 16)

    def forward(
        self,
        hidden_states,
        timestep,
        timestep_r,
        attention_mask,
        encoder_hidden_states,
        encoder_attention_mask,
        context_latents,
        use_cache=False,
        past_key_values=None,
        **flash_attn_kwargs,
    ):
        length, temb = hidden_states.shape[1], self.time_embed(timestep[:, None])
        states = F.pad(torch.cat([context_latents, hidden_states], dim=-1), (0, 0, 0, length % 2))
        states, text = self.proj_in(states), self.condition_embedder(encoder_hidden_states)
        for layer in self.layers:
            states = self.run(layer, states, None, temb, None, text, None)[0]
        return self.proj_out(states).reshape(len(states), -1, 8)[:, :length], past_key_values


class TestAceStepOriginal(AdapterConformance):
    family = "ace_step"
    tiny_model = AceStepDiTModel
    depth = 4
    text = ("encoder_hidden_states",)

    @staticmethod
    def example_inputs(model, batch_size):
        inputs = tiny.example_inputs(model, batch_size, length=17)
        return inputs | {"attention_mask": torch.ones(batch_size, 17), "encoder_attention_mask": None}

    @staticmethod
    def longer_text(inputs):
        return inputs | {"encoder_hidden_states": torch.randn(2, 30, 10)}


class DiTLayer(Layer):
    def forward(self, x, temb, enc, position_embeddings):
        return self.mix(x, temb, enc)


class DiTModel(Root):
    """ai-toolkit's."""

    def __init__(self):
        super().__init__()
        self.patch_size = 2
        self.proj_in = nn.Sequential(nn.Identity(), nn.Conv1d(12, 16, 2, stride=2))
        self.time_embed, self.condition_embedder, self.proj_out = nn.Linear(1, 16), nn.Linear(10, 16), nn.Linear(16, 16)
        self.layers = nn.ModuleList(DiTLayer() for _ in range(4))

    def forward(self, x, timestep, timestep_r, attention_mask, enc_h, enc_m, context):
        length, temb = x.shape[1], self.time_embed(timestep[:, None])
        h = F.pad(torch.cat([context, x], dim=-1), (0, 0, 0, length % 2))
        h, enc = self.proj_in(h.transpose(1, 2)).transpose(1, 2), self.condition_embedder(enc_h)
        for layer in self.layers:
            h = self.run(layer, h, temb, enc, None)
        return self.proj_out(h).reshape(len(h), -1, 8)[:, :length]


class TestAiToolkit(AdapterConformance):
    family = "ace_step"
    tiny_model = DiTModel
    depth = 4
    text = ("enc_h",)

    @staticmethod
    def example_inputs(model, batch_size):
        inputs = TestAceStepOriginal.example_inputs(model, batch_size)
        names = {"hidden_states": "x", "encoder_hidden_states": "enc_h", "context_latents": "context"}
        del inputs["encoder_attention_mask"]
        return {names.get(name, name): value for name, value in inputs.items()} | {"enc_m": None}

    @staticmethod
    def longer_text(inputs):
        return inputs | {"enc_h": torch.randn(2, 30, 10)}


class LinearTransformerBlock(Layer):
    def forward(
        self,
        hidden_states,
        encoder_hidden_states=None,
        attention_mask=None,
        encoder_attention_mask=None,
        rotary_freqs_cis=None,
        rotary_freqs_cis_cross=None,
        temb=None,
    ):
        return self.mix(hidden_states, temb, encoder_hidden_states)


class PatchEmbed(nn.Module):
    def __init__(self):
        super().__init__()
        self.early_conv_layers = nn.Conv2d(2, 16, (4, 1), stride=(4, 1))

    def forward(self, latent):
        return self.early_conv_layers(latent).flatten(2).transpose(1, 2)


class ACEStepTransformer2DModel(Root):
    """1.0's own."""

    def __init__(self):
        super().__init__()
        self.inner_dim, self.patch_size = 16, [4, 1]
        self.transformer_blocks = nn.ModuleList(LinearTransformerBlock() for _ in range(4))
        self.proj_in, self.genre_embedder = PatchEmbed(), nn.Linear(10, 16)
        self.t_block, self.final_layer = nn.Linear(1, 16), nn.Linear(16, 8)

    def forward(
        self,
        hidden_states,
        attention_mask,
        encoder_text_hidden_states=None,
        text_attention_mask=None,
        speaker_embeds=None,
        lyric_token_idx=None,
        lyric_mask=None,
        timestep=None,
        return_dict=True,
    ):
        states, temb = self.proj_in(hidden_states), self.t_block(timestep[:, None])
        text = self.genre_embedder(encoder_text_hidden_states)
        for block in self.transformer_blocks:
            states = self.run(block, states, text, attention_mask, text_attention_mask, None, None, temb)
        return (self.final_layer(states), [])


class TestAceStep1(AdapterConformance):
    family = "ace_step"
    tiny_model = ACEStepTransformer2DModel
    depth = 4

    @staticmethod
    def example_inputs(model, batch_size):
        return {
            "hidden_states": torch.randn(batch_size, 2, 4, 9),
            "attention_mask": torch.ones(batch_size, 9),
            "encoder_text_hidden_states": torch.randn(batch_size, 5, 10),
            "timestep": torch.rand(batch_size),
        }

    @staticmethod
    def longer_text(inputs):
        return inputs | {"encoder_text_hidden_states": torch.randn(2, 12, 10)}


@pytest.mark.parametrize(
    ("test", "blocks", "frames", "tokens"),
    [
        (TestAceStepOriginal, "layers", [17, 8], [9, 4]),
        (TestAceStepOriginal, "layers", [12, 7], [6, 4]),  # half of the last token is real
        (TestAiToolkit, "layers", [17, 7], [9, 4]),
        (TestAceStep1, "transformer_blocks", [9, 4], [9, 4]),
    ],
)
def test_padding_does_not_count(test, blocks, frames, tokens):
    model = test.tiny_model()
    inputs = test.example_inputs(model, 2)
    length = inputs["attention_mask"].shape[1]
    inputs["attention_mask"] = torch.stack([(torch.arange(length) < count).float() for count in frames])
    torch.testing.assert_close(*losses(model, getattr(model, blocks), inputs, tokens))
    inputs["attention_mask"] = None
    torch.testing.assert_close(*losses(model, getattr(model, blocks), inputs, [9, 9]))


def test_another_dit_model_is_not_ai_toolkits():
    class Other(DiTModel):
        pass

    model = Other()
    model.layers = nn.ModuleList(AceStepDiTLayer() for _ in range(2))
    assert not adapter.supports_hidden_states(model)
