"""The conformance of HiDream: diffusers' class, and a stand-in for the original one that ai-toolkit trains."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layersync_adapter_hidream import adapter, tiny
from layersync_core import attach
from layersync_core.testing import AdapterConformance, raw_outputs

DUAL_TO_SINGLE = {
    "layersync_enabled": True,
    "layersync_student_block": 1,
    "layersync_teacher_block": 4,
    "layersync_lambda": 1.0,
}


class TestHiDream(AdapterConformance):
    family = "hidream"
    depth = 5

    @staticmethod
    def longer_text(inputs):
        return inputs | {
            "encoder_hidden_states_t5": torch.randn(2, 9, 12),
            "encoder_hidden_states_llama3": torch.randn(2, 2, 7, 10),
        }


class TestHiDreamNotSquare(TestHiDream):
    @staticmethod
    def example_inputs(model, batch_size):
        return tiny.example_inputs(model, batch_size, size=(6, 8))


def losses(model, inputs, real):
    """Return LayerSync's loss of a dual-stream and a single-stream block, and the same by hand over chosen tokens."""
    blocks = {"student": model.double_stream_blocks[0], "teacher": model.single_stream_blocks[1]}
    with attach(model, DUAL_TO_SINGLE, adapter=adapter) as sync, raw_outputs(blocks) as outputs:
        model(**inputs)
        loss = sync.loss()
    student, teacher = outputs["student"][0][0], outputs["teacher"][0]
    cosines = [
        F.cosine_similarity(student[sample, :count], teacher[sample, :count], dim=-1)
        for sample, count in enumerate(real)
    ]
    return loss, -torch.cat(cosines).mean()


@pytest.mark.parametrize("size", [(6, 8), (2, 8), (8, 6)])
def test_padding_of_latents_that_are_not_square_does_not_count(size):
    model = tiny.tiny_model().eval()
    inputs = tiny.example_inputs(model, 2, size=size)
    real = size[0] * size[1] // 4
    assert real < 16
    torch.testing.assert_close(*losses(model, inputs, [real, real]))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(*losses(model, inputs, [16, 16]))


def test_masks_of_the_caller_are_used():
    model = tiny.tiny_model().eval()
    inputs = tiny.example_inputs(model, 2, size=(6, 8))
    latents, masks, _, ids = model.patchify(inputs["hidden_states"])
    masks[1, 6:] = 0  # a second size in the batch
    inputs |= {
        "hidden_states": latents,
        "hidden_states_masks": masks,
        "img_ids": ids,
        "img_sizes": torch.tensor([[3, 4], [3, 2]]),
    }
    model.unpatchify = lambda states, sizes, training: states  # it can only stack equal sizes
    torch.testing.assert_close(*losses(model, inputs, [12, 6]))


# A stand-in for the original class: its names, signatures and outputs.


class HiDreamImageBlock(nn.Module):
    def __init__(self, width, single):
        super().__init__()
        self.single = single
        self.norm = nn.LayerNorm(width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out, self.adaln = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, image_tokens, image_tokens_masks=None, text_tokens=None, adaln_input=None, rope=None):
        joined = image_tokens if self.single else torch.cat([image_tokens, text_tokens], dim=1)
        x = self.norm(joined) + self.adaln(adaln_input)[:, None]
        keys = self.to_k(x)
        if image_tokens_masks is not None:
            length = image_tokens_masks.shape[1]
            keys = torch.cat([keys[:, :length] * image_tokens_masks[..., None], keys[:, length:]], dim=1)
        joined = joined + self.out(F.scaled_dot_product_attention(self.to_q(x), keys, self.to_v(x)))
        return joined if self.single else (joined[:, : image_tokens.shape[1]], joined[:, image_tokens.shape[1] :])


class HiDreamImageTransformer2DModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.config, self.inner_dim, self.max_seq = SimpleNamespace(patch_size=2), 16, 16
        self.x_embedder, self.t_embedder, self.p_embedder = nn.Linear(16, 16), nn.Linear(1, 16), nn.Linear(8, 16)
        self.double_stream_blocks = nn.ModuleList(HiDreamImageBlock(16, single=False) for _ in range(2))
        self.single_stream_blocks = nn.ModuleList(HiDreamImageBlock(16, single=True) for _ in range(3))
        self.caption_projection = nn.ModuleList([*(nn.Linear(10, 16) for _ in range(5)), nn.Linear(12, 16)])
        self.final_layer = nn.Linear(16, 16)
        self.checkpoint = None

    def enable_gradient_checkpointing(self, gradient_checkpointing_func=None):
        self.checkpoint = gradient_checkpointing_func

    def patchify(self, x, max_seq, img_sizes=None):
        masks = None
        if img_sizes is not None:
            masks = torch.zeros(len(x), max_seq, dtype=x.dtype)
            for sample, (rows, columns) in enumerate(img_sizes):
                masks[sample, : rows * columns] = 1
            return x.permute(0, 2, 3, 1).flatten(2), masks
        return F.unfold(x, 2, stride=2).transpose(1, 2), masks

    def forward(
        self,
        hidden_states,
        timesteps=None,
        encoder_hidden_states=None,
        pooled_embeds=None,
        img_sizes=None,
        img_ids=None,
        joint_attention_kwargs=None,
        return_dict=True,
    ):
        run = self.checkpoint or (lambda block, *inputs: block(*inputs))
        adaln = self.t_embedder(timesteps[:, None].to(hidden_states.dtype)) + self.p_embedder(pooled_embeds)
        states, masks = self.patchify(hidden_states, self.max_seq, img_sizes)
        states = self.x_embedder(states)
        image = states.shape[1]
        t5, llama = encoder_hidden_states
        texts = [project(text) for project, text in zip(self.caption_projection, llama, strict=False)]
        fixed = torch.cat([self.caption_projection[-1](t5), texts[-1]], dim=1)
        for block, text in zip(self.double_stream_blocks, texts, strict=False):
            states, after = run(block, states, masks, torch.cat([fixed, text], dim=1), adaln, None)
            fixed = after[:, : fixed.shape[1]]
        states = torch.cat([states, fixed], dim=1)
        length = states.shape[1]
        for block, text in zip(self.single_stream_blocks, texts[2:], strict=True):
            states = run(block, torch.cat([states, text], dim=1), masks, None, adaln, None)[:, :length]
        return (self.final_layer(states[:, :image]), masks)


class TestOriginal(AdapterConformance):
    family = "hidream"
    tiny_model = HiDreamImageTransformer2DModel
    depth = 5

    @staticmethod
    def example_inputs(model, batch_size):
        return {
            "hidden_states": torch.randn(batch_size, 4, 8, 8),
            "timesteps": torch.rand(batch_size),
            "encoder_hidden_states": [torch.randn(batch_size, 5, 12), list(torch.randn(5, batch_size, 6, 10))],
            "pooled_embeds": torch.randn(batch_size, 8),
        }

    @staticmethod
    def longer_text(inputs):
        return inputs | {"encoder_hidden_states": [torch.randn(2, 9, 12), list(torch.randn(5, 2, 7, 10))]}


class TestOriginalNotSquare(TestOriginal):
    @staticmethod
    def example_inputs(model, batch_size):
        inputs = TestOriginal.example_inputs(model, batch_size)
        return inputs | {
            "hidden_states": torch.randn(batch_size, 4, 16, 4),  # (B, C, S, patch)
            "img_sizes": torch.tensor([[3, 4], *[[3, 2]] * (batch_size - 1)]),
            "img_ids": torch.zeros(batch_size, 16, 3),
        }


@pytest.mark.parametrize("form", [torch.tensor, list])
def test_sizes_of_the_original_are_used(form):
    model = HiDreamImageTransformer2DModel()
    inputs = TestOriginalNotSquare.example_inputs(model, 2) | {"img_sizes": form([[3, 4], [3, 2]])}
    torch.testing.assert_close(*losses(model, inputs, [12, 6]))
