"""Krea 2: diffusers' class, and stand-ins for those of musubi-tuner, ai-toolkit and DiffSynth-Studio."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layersync_adapter_krea2 import adapter, tiny
from layersync_core import attach
from layersync_core.testing import AdapterConformance, randomise_weights


class TestKrea2(AdapterConformance):
    family = "krea2"
    depth = 4

    @staticmethod
    def longer_text(inputs):
        given = {name: inputs[name] for name in ("hidden_states", "timestep")}
        references = inputs["hidden_states"].shape[1] // 16 - 1
        return tiny.example_inputs(nn.Module(), 2, references, text=9) | given


class TestKrea2WithReferences(TestKrea2):
    example_inputs = partial(tiny.example_inputs, references=1)


@pytest.mark.parametrize("references", [0, 1, 2])
@pytest.mark.parametrize("by_model", [True, False])
def test_a_reference_repeats_the_places_of_the_image(references: int, by_model: bool) -> None:
    model = randomise_weights(tiny.tiny_model())
    inputs = tiny.example_inputs(model, 2, references)
    seen: list[Tensor] = []
    for at in (0, 2):
        model.transformer_blocks[at].register_forward_hook(lambda module, args, output: seen.append(output))
    settings = {"layersync_enabled": True, "layersync_student_block": 1, "layersync_teacher_block": 3}
    with attach(model, settings | {"layersync_lambda": 1}, adapter=adapter) as sync:
        if by_model:
            model(**inputs)
        else:  # like programs that call a model's parts
            image = model.img_in(inputs["hidden_states"])
            states = torch.cat([torch.randn(2, 5, 16), image], dim=1)
            for block in model.transformer_blocks:
                states = block(states, torch.randn(2, 1, 96), model.rotary_emb(inputs["position_ids"]))
        loss = sync.loss()
    images = [state[:, 5:21] for state in seen]
    torch.testing.assert_close(loss, -torch.cosine_similarity(*images, dim=-1).mean())


class SingleStreamBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.mod = nn.Linear(width, width)
        self.attn, self.mlp = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, vec: Any, freqs: Tensor, mask: Tensor) -> Tensor:
        scale = self.mod(vec)
        real = mask[..., None].to(x.dtype)
        shared = (x * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True)
        return x + scale * self.mlp(x + 0.3 * self.attn(shared) + freqs)


class SingleStreamDiT(nn.Module):
    """Stands in for the class of ai-toolkit and DiffSynth-Studio: [text, image, references, padding]."""

    image_first = False

    def __init__(self) -> None:
        super().__init__()
        self.first, self.txtfusion, self.tmlp = nn.Linear(8, 16), nn.Linear(12, 16), nn.Linear(1, 16)
        self.blocks = nn.ModuleList(SingleStreamBlock(16) for _ in range(4))
        self.last = nn.Linear(16, 8)
        self.checkpoint: Any = None

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any) -> None:
        self.checkpoint = gradient_checkpointing_func

    def forward(
        self, img: Tensor, context: Tensor, t: Tensor, pos: Tensor, mask: Tensor | None = None, reflen: int = 0
    ) -> Tensor:
        call = self.checkpoint or (lambda block, *args: block(*args))
        assert mask is not None
        img, context = self.first(img), self.txtfusion(context)
        start = 0 if self.image_first else context.shape[1]
        combined = torch.cat((img, context) if self.image_first else (context, img), dim=1)
        filling = -combined.shape[1] % 256
        combined, mask = F.pad(combined, (0, 0, 0, filling)), F.pad(mask, (0, filling))
        freqs = F.pad(pos, (0, 0, 0, filling)).sum(dim=-1, keepdim=True) / 10
        vec = self.tmlp(t[:, None])[:, None]
        for block in self.blocks:
            combined = call(block, combined, vec, freqs, mask)
        return self.last(combined)[:, start : start + img.shape[1] - reflen]


class ImageFirst(SingleStreamDiT):
    """Stands in for the class of musubi-tuner: [image, text, padding]."""

    image_first = True

    def __init__(self) -> None:
        super().__init__()
        self.attn_mode = "torch"


ImageFirst.__name__ = "SingleStreamDiT"


def single_stream_inputs(model: Any, batch_size: int, references: int = 0, text: int = 5) -> dict[str, Any]:
    """Return arguments of a forward; the last sample has one text token and one reference token less."""
    image_ids = torch.cartesian_prod(torch.arange(1 + references), torch.arange(3), torch.arange(4)).float()
    parts = [(torch.zeros(text, 3), text), (image_ids, len(image_ids))]
    masks = [torch.ones(batch_size, length, dtype=torch.bool) for _, length in parts]
    for mask in masks[: 2 if references else 1]:
        mask[-1, -1] = False
    order = (1, 0) if model.image_first else (0, 1)
    inputs = {
        "img": torch.randn(batch_size, len(image_ids), 8),
        "context": torch.randn(batch_size, text, 12),
        "t": torch.rand(batch_size),
        "pos": torch.cat([parts[at][0] for at in order]).expand(batch_size, -1, -1),
        "mask": torch.cat([masks[at] for at in order], dim=1),
    }
    return inputs | ({"reflen": 12 * references} if references else {})


class TestSingleStreamDiTWithReferences(AdapterConformance):
    family = "krea2"
    tiny_model = SingleStreamDiT
    example_inputs = partial(single_stream_inputs, references=1)
    depth = 4
    text = ("context",)


class TestSingleStreamDiTOfMusubi(TestSingleStreamDiTWithReferences):
    tiny_model = ImageFirst
    example_inputs = single_stream_inputs


@pytest.mark.parametrize(
    ("kind", "references", "tokens"),
    [
        (SingleStreamDiT, 0, "target"),
        (SingleStreamDiT, 2, "target"),
        (SingleStreamDiT, 2, "all"),
        (ImageFirst, 0, "target"),
    ],
)
def test_the_loss_is_that_of_the_image_tokens(kind: type[SingleStreamDiT], references: int, tokens: str) -> None:
    model = randomise_weights(kind())
    inputs = single_stream_inputs(model, 2, references)
    seen: list[Tensor] = []
    for at in (0, 2):
        model.blocks[at].register_forward_hook(lambda module, args, output: seen.append(output))
    settings = {"enabled": True, "student_block": 1, "teacher_block": 3, "lambda": 1, "tokens": tokens}
    with attach(model, {f"layersync_{key}": value for key, value in settings.items()}, adapter=adapter) as sync:
        model(**inputs)
        loss = sync.loss()
    start = 0 if kind.image_first else 5
    count = 12 * (1 + references if tokens == "all" else 1)
    student, teacher = (state[:, start : start + count] for state in seen)
    real = inputs["mask"][:, start : start + count]
    torch.testing.assert_close(loss, -torch.cosine_similarity(student, teacher, dim=-1)[real].mean())


def test_another_model_of_that_class_name_is_none() -> None:
    other = SingleStreamDiT()
    del other.txtfusion
    assert not adapter.supports_hidden_states(other)
