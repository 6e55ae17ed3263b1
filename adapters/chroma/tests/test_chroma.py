from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_adapter_chroma import adapter, tiny
from layersync_core import attach
from layersync_core.testing import AdapterConformance, randomise_weights


def longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs | {
        "encoder_hidden_states": torch.randn(2, 9, 12),
        "txt_ids": torch.zeros(9, 3),
        "attention_mask": torch.ones(2, 9 + 16, dtype=torch.bool),
    }


class TestChroma(AdapterConformance):
    family = "chroma"
    depth = 4
    longer_text = longer_text


def losses(student: int, teacher: int, checkpointed: bool = False, **more: Any) -> tuple[Tensor, Tensor]:
    """Return the attached loss, and the same computed by hand from the blocks' outputs in that forward."""
    model = randomise_weights(tiny.tiny_model())
    if checkpointed:
        model.enable_gradient_checkpointing()
    seen: list[Any] = []
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    for block in (blocks[student], blocks[teacher]):
        block.register_forward_hook(lambda module, args, output: seen.append(output))
    settings = {"enabled": True, "student_block": student + 1, "teacher_block": teacher + 1, "lambda": 1}
    with attach(model, {f"layersync_{key}": value for key, value in settings.items()}, adapter=adapter) as sync:
        model(**tiny.example_inputs(model, 2, padding=2), **more)
        loss = sync.loss()
    images = [output[1] if isinstance(output, tuple) else output[:, 5:] for output in seen[:2]]
    return loss, -torch.cosine_similarity(*images, dim=-1).mean()


@pytest.mark.parametrize("checkpointed", [False, True])  # checkpointed, the model itself forgets the mask
def test_padding_of_the_text_changes_no_count(checkpointed: bool) -> None:
    torch.testing.assert_close(*losses(0, 3, checkpointed))


def test_residuals_of_a_controlnet() -> None:
    residuals = [torch.randn(2, 16, 32) for _ in range(2)]
    torch.testing.assert_close(*losses(0, 1, controlnet_block_samples=residuals))
    torch.testing.assert_close(*losses(2, 3, controlnet_single_block_samples=residuals))


class DoubleStreamBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.img_mlp, self.txt_mlp = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self, img: Tensor, txt: Tensor, pe: Tensor, distill_vec: list[Tensor], mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        shared = 0.3 * torch.cat((txt, img), dim=1).mean(dim=1, keepdim=True) + pe.mean()
        img_mod, txt_mod = distill_vec
        return img + img_mod * self.img_mlp(img + shared), txt + txt_mod * self.txt_mlp(txt + shared)


class SingleStreamBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.linear1 = nn.Linear(width, width)

    def forward(self, x: Tensor, pe: Tensor, distill_vec: Tensor, mask: Tensor) -> Tensor:
        return x + distill_vec * self.linear1(x + 0.3 * x.mean(dim=1, keepdim=True) + pe.mean())


class OriginalChroma(nn.Module):
    """Stands in for the class of the original repository and of ai-toolkit: [text, image]."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 16
        self.img_in, self.txt_in = nn.Linear(16, 16), nn.Linear(12, 16)
        self.distilled_guidance_layer = nn.Linear(1, 16)
        self.distilled_guidance_layer.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(16) for _ in range(2))
        self.single_blocks = nn.ModuleList(SingleStreamBlock(16) for _ in range(2))
        self.final_layer = nn.Linear(16, 16)
        self.checkpoint: Any = None

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any) -> None:
        self.checkpoint = gradient_checkpointing_func

    def embed(self, img: Tensor) -> Tensor:
        return self.img_in(img)

    def forward(
        self,
        img: Tensor,
        img_ids: Tensor,
        txt: Tensor,
        txt_ids: Tensor,
        txt_mask: Tensor,
        timesteps: Tensor,
        guidance: Tensor,
    ) -> Tensor:
        call = self.checkpoint or (lambda block, *args: block(*args))
        img, txt = self.embed(img), self.txt_in(txt)
        with torch.no_grad():
            mod = self.distilled_guidance_layer(timesteps[:, None])[:, None]
        pe = torch.cat((txt_ids, img_ids), dim=1)
        for block in self.double_blocks:
            img, txt = call(block, img, txt, pe, [mod, mod], txt_mask)
        img = torch.cat((txt, img), dim=1)
        for block in self.single_blocks:
            img = call(block, img, pe, mod, txt_mask)
        return self.final_layer(img[:, txt.shape[1] :])


OriginalChroma.__name__ = "Chroma"


class Radiance(OriginalChroma):
    """Stands in for Radiance, which cuts pixels into patches with a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.params = SimpleNamespace(patch_size=4)
        self.img_in_patch = nn.Conv2d(3, 16, 4, 4)
        self.nerf_blocks = nn.ModuleList([nn.Linear(2, 2)])
        del self.img_in

    def embed(self, img: Tensor) -> Tensor:
        return self.img_in_patch(img).flatten(2).transpose(1, 2)


Radiance.__name__ = "Chroma"


class Flux(nn.Module):
    pass


class Chroma(Flux):
    """Stands in for the class of sd-scripts: [image, text], the text cut to the longest in the batch."""

    def __init__(self) -> None:
        super().__init__()
        for name, module in OriginalChroma().named_children():
            setattr(self, name, module)
        self.hidden_size = 16
        self.checkpoint: Any = None

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any) -> None:
        self.checkpoint = gradient_checkpointing_func

    def forward(
        self,
        img: Tensor,
        img_ids: Tensor,
        txt: Tensor,
        txt_ids: Tensor,
        timesteps: Tensor,
        y: Tensor | None,
        guidance: Tensor | None = None,
        txt_attention_mask: Tensor | None = None,
    ) -> Tensor:
        call = self.checkpoint or (lambda block, *args: block(*args))
        assert txt_attention_mask is not None
        lengths = txt_attention_mask.sum(dim=1)
        img, txt = self.img_in(img), self.txt_in(txt)[:, : int(lengths.max())]
        mod = self.distilled_guidance_layer(timesteps[:, None])[:, None]
        pe = torch.cat((img_ids, txt_ids), dim=1)
        for block in self.double_blocks:
            img, txt = call(block, img, txt, pe, [mod, mod], lengths)
        img = torch.cat((img, txt), dim=1)
        for block in self.single_blocks:
            img = call(block, img, pe, mod, lengths)
        return self.final_layer(img[:, : -txt.shape[1]])


def original_inputs(model: nn.Module, batch_size: int, **more: Any) -> dict[str, Any]:
    return {
        "img": torch.randn(batch_size, 16, 16),
        "img_ids": torch.zeros(batch_size, 16, 3),
        "txt": torch.randn(batch_size, 5, 12),
        "txt_ids": torch.zeros(batch_size, 5, 3),
        "txt_mask": torch.ones(batch_size, 5),
        "timesteps": torch.rand(batch_size) + 1,
        "guidance": torch.zeros(batch_size),
        **more,
    }


def sd_scripts_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    inputs = original_inputs(model, batch_size, y=None)
    inputs["txt_attention_mask"] = inputs.pop("txt_mask")
    inputs["txt_attention_mask"][:, 4:] = 0
    return inputs


def longer_txt(inputs: dict[str, Any], mask: str = "txt_mask") -> dict[str, Any]:
    return inputs | {"txt": torch.randn(2, 9, 12), "txt_ids": torch.zeros(2, 9, 3), mask: torch.ones(2, 9)}


class TestOriginalChroma(AdapterConformance):
    family = "chroma"
    tiny_model = OriginalChroma
    example_inputs = original_inputs
    depth = 4
    longer_text = longer_txt


class TestRadiance(TestOriginalChroma):
    tiny_model = Radiance

    @staticmethod
    def example_inputs(model, batch):
        return original_inputs(model, batch, img=torch.randn(batch, 3, 8, 12))


class TestChromaOfSdScripts(TestOriginalChroma):
    tiny_model = Chroma
    example_inputs = sd_scripts_inputs
    longer_text = partial(longer_txt, mask="txt_attention_mask")


def test_a_flux_is_not_a_chroma() -> None:
    assert not adapter.supports_hidden_states(Flux())
