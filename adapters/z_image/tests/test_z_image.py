"""The conformance of Z-Image: diffusers' class, and stand-ins for musubi-tuner's and DiffSynth-Studio's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layersync_adapter_z_image import adapter, tiny
from layersync_core import CaptureError, attach
from layersync_core.testing import AdapterConformance, raw_outputs

SETTINGS = {
    "layersync_enabled": True,
    "layersync_student_block": 2,
    "layersync_teacher_block": 3,
    "layersync_lambda": 1.0,
}
TWO_SIZES = ((8, 8), (4, 6))  # 16 and 6 tokens


class TestZImage(AdapterConformance):
    family = "z_image"
    depth = 4

    @staticmethod
    def longer_text(inputs):
        return inputs | {"cap_feats": [torch.randn(40, 10) for _ in inputs["cap_feats"]]}


class TestZImageTwoSizes(TestZImage):
    @staticmethod
    def example_inputs(model, batch_size):
        return tiny.example_inputs(model, batch_size, sizes=TWO_SIZES)


class TestZImageLongerThanItsPadding(TestZImage):
    """The larger image has more than 32 tokens, so the smaller one's caption lies at positions of image tokens."""

    @staticmethod
    def example_inputs(model, batch_size):
        return tiny.example_inputs(model, batch_size, sizes=((12, 16), (4, 6)), text=40)


def losses(model, inputs, real):
    """Return LayerSync's loss, and the same computed by hand over the real tokens of each sample."""
    blocks = {"student": model.layers[1], "teacher": model.layers[2]}
    with attach(model, SETTINGS, adapter=adapter) as sync, raw_outputs(blocks) as outputs:
        model(**inputs)
        loss = sync.loss()
    student, teacher = outputs["student"][0], outputs["teacher"][0]
    cosines = [
        F.cosine_similarity(student[sample, :count], teacher[sample, :count], dim=-1)
        for sample, count in enumerate(real)
    ]
    return loss, -torch.cat(cosines).mean()


@pytest.mark.parametrize(
    ("sizes", "real"), [(TWO_SIZES, [16, 6]), (((4, 6), (12, 16)), [6, 48]), (((8, 8),), [16, 16])]
)
def test_the_loss_is_the_mean_over_real_tokens(sizes, real):
    model = tiny.tiny_model()
    inputs = tiny.example_inputs(model, 2, sizes=sizes)
    torch.testing.assert_close(*losses(model, inputs, real))
    if len(sizes) == 2:
        with pytest.raises(AssertionError):
            torch.testing.assert_close(*losses(model, inputs, [max(real)] * 2))


def test_the_omni_form_is_refused():
    model = tiny.tiny_model()
    with attach(model, SETTINGS, adapter=adapter) as sync:
        model(
            x=[[torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8)]],
            t=torch.rand(1),
            cap_feats=[[torch.randn(5, 10), torch.randn(3, 10)]],
            siglip_feats=[None],
            image_noise_mask=[[0, 1]],
        )
        with pytest.raises(CaptureError, match="omni"):
            sync.loss()


# Stand-ins for other trainers' classes: their names, signatures and outputs.


class ZImageTransformerBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm, self.adaLN_modulation = nn.LayerNorm(dim), nn.Linear(dim, dim)
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.feed_forward = nn.Linear(dim, dim)
        self.checkpoint = None

    def _forward(self, x, freqs_cis, adaln_input=None, attn_params=None):
        y = self.norm(x)
        if adaln_input is not None:
            y = y * (1 + self.adaLN_modulation(adaln_input)[:, None])
        y = F.scaled_dot_product_attention(self.to_q(y), self.to_k(y), self.to_v(y), attn_mask=attn_params)
        return x + self.feed_forward(y)

    def forward(self, x, freqs_cis, adaln_input=None, attn_params=None):
        if self.checkpoint:  # inside the block
            return self.checkpoint(self._forward, x, freqs_cis, adaln_input, attn_params)
        return self._forward(x, freqs_cis, adaln_input, attn_params)


class _Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.dim = 24
        self.all_x_embedder = nn.ModuleDict({"2-1": nn.Linear(16, 24)})
        self.t_embedder, self.cap_embedder = nn.Linear(1, 24), nn.Linear(10, 24)
        self.noise_refiner, self.context_refiner, self.layers = (
            nn.ModuleList(ZImageTransformerBlock(24) for _ in range(count)) for count in (1, 1, 4)
        )
        self.all_final_layer = nn.ModuleDict({"2-1": nn.Linear(24, 16)})

    def enable_gradient_checkpointing(self, gradient_checkpointing_func=None):
        for block in [*self.noise_refiner, *self.context_refiner, *self.layers]:
            block.checkpoint = gradient_checkpointing_func


class ZImageTransformer2DModel(_Parts):
    """musubi-tuner's: one tensor, no padding of the image."""

    def forward(self, x, t, cap_feats, cap_mask, patch_size=2, f_patch_size=1):
        temb = self.t_embedder(t[:, None])
        image = self.all_x_embedder["2-1"](F.unfold(x[:, :, 0], patch_size, stride=patch_size).transpose(1, 2))
        length = image.shape[1]
        for block in self.noise_refiner:
            image = block(image, None, temb)
        caption = self.cap_embedder(cap_feats)
        for block in self.context_refiner:
            caption = block(caption, None)
        unified = torch.cat([image, caption], dim=1)
        for block in self.layers:
            unified = block(unified, None, temb)
        return self.all_final_layer["2-1"](unified)[:, :length]


class TestMusubi(AdapterConformance):
    family = "z_image"
    tiny_model = ZImageTransformer2DModel
    depth = 4

    @staticmethod
    def example_inputs(model, batch_size, text=5):
        return {
            "x": torch.randn(batch_size, 4, 1, 8, 8),
            "t": torch.rand(batch_size),
            "cap_feats": torch.randn(batch_size, text, 10),
            "cap_mask": torch.ones(batch_size, text, dtype=torch.bool),
        }

    @staticmethod
    def longer_text(inputs):
        return inputs | {"cap_feats": torch.randn(2, 9, 10), "cap_mask": torch.ones(2, 9, dtype=torch.bool)}


class ZImageDiT(_Parts):
    """DiffSynth-Studio's, whose trainer calls the blocks itself."""


def run_blocks(model, latents, caption):
    """Pad one image and its caption to multiples of 32 tokens and run the blocks over both, as that trainer does."""
    temb = model.t_embedder(torch.rand(1, 1))
    image = model.all_x_embedder["2-1"](F.unfold(latents, 2, stride=2)[0].T)
    freqs = torch.cat([_frequencies(len(image)), _frequencies(len(caption))], dim=1)
    image = F.pad(image, (0, 0, 0, -len(image) % 32))[None]
    for block in model.noise_refiner:
        image = block(x=image, freqs_cis=freqs[:, : image.shape[1]], adaln_input=temb)
    caption = model.cap_embedder(caption)
    unified = torch.cat([image, F.pad(caption, (0, 0, 0, -len(caption) % 32))[None]], dim=1)
    for block in model.layers:
        unified = block(x=unified, freqs_cis=freqs, adaln_input=temb)
    return model.all_final_layer["2-1"](unified)


def _frequencies(length):
    """Return (1, S, 3) rotary frequencies of a padded run of tokens: 1 at padding, which is at position 0."""
    padded = torch.ones(1, length + -length % 32, 3, dtype=torch.complex64)
    padded[:, :length] = torch.polar(torch.ones(length, 3), torch.rand(length, 3) + 0.1)
    return padded


@pytest.mark.parametrize("side", [8, 12])
def test_blocks_called_one_by_one_are_aligned_without_text_and_padding(side):
    model, tokens = ZImageDiT(), (side // 2) ** 2
    modules = {block.index: model.get_submodule(block.path) for block in adapter.list_blocks(model)}
    with attach(model, SETTINGS, adapter=adapter) as sync, raw_outputs(modules) as outputs:
        for _ in range(2):
            outputs.clear()
            run_blocks(model, torch.randn(1, 4, side, side), torch.randn(5, 10))
            student, teacher = (outputs[block.index][0][:, :tokens] for block in (sync.student, sync.teacher))
            expected = sync.pairs[0].weight * F.cosine_similarity(student, teacher, dim=-1).mean()
            assert sync.loss().item() == pytest.approx(-expected.item(), abs=1e-6)
            with torch.no_grad():  # a sample of another size in between
                run_blocks(model, torch.randn(1, 4, 16, 16), torch.randn(5, 10))
