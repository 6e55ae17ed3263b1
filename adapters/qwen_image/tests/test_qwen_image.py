from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_adapter_qwen_image import adapter, tiny
from layersync_core import attach
from layersync_core.testing import AdapterConformance, lively, look


def longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs | {
        "encoder_hidden_states": torch.randn(2, 9, 12),
        "encoder_hidden_states_mask": torch.ones(2, 9, dtype=torch.long),
    }


class TestQwenImage(AdapterConformance):
    family = "qwen_image"
    depth = 4
    longer_text = longer_text


class TestQwenImageEdit(TestQwenImage):
    example_inputs = partial(tiny.example_inputs, references=2)


class TestQwenImageEdit2511(TestQwenImage):
    tiny_model = tiny.tiny_edit
    example_inputs = partial(tiny.example_inputs, references=1)


class TestQwenImageLayered(TestQwenImage):
    tiny_model = tiny.tiny_layered


def attached_loss(model: nn.Module, inputs: dict[str, Any], tokens: str) -> Tensor:
    settings = {"enabled": True, "student_block": 1, "teacher_block": 4, "lambda": 1, "tokens": tokens}
    with attach(model, {f"layersync_{key}": value for key, value in settings.items()}, adapter=adapter) as sync:
        model(**inputs)
        return sync.loss()


def cosine(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Return the (B, S) cosine of the first block's image tokens with the last block's, written down by hand."""
    seen: list[Tensor] = []
    blocks = (model.transformer_blocks[0], model.transformer_blocks[-1])
    handles = [block.register_forward_hook(lambda module, args, output: seen.append(output[1])) for block in blocks]
    model(**inputs)
    for handle in handles:
        handle.remove()
    return torch.cosine_similarity(*seen, dim=-1)


@pytest.mark.parametrize(("tokens", "counted"), [("target", slice(16)), ("all", slice(None))])
@pytest.mark.parametrize("tiny_model", [tiny.tiny_model, tiny.tiny_edit])
def test_references_count_only_when_asked(tiny_model: Any, tokens: str, counted: slice) -> None:
    model = lively(tiny_model())
    inputs = tiny.example_inputs(model, 2, references=2)
    torch.testing.assert_close(attached_loss(model, inputs, tokens), -cosine(model, inputs)[:, counted].mean())


@pytest.mark.parametrize(("tokens", "counted"), [("target", slice(48)), ("all", slice(None))])
def test_the_last_of_a_layered_models_images_is_the_reference(tokens: str, counted: slice) -> None:
    model = lively(tiny.tiny_layered())
    inputs = tiny.example_inputs(model, 2, images=3)
    torch.testing.assert_close(attached_loss(model, inputs, tokens), -cosine(model, inputs)[:, counted].mean())


def test_shapes_of_one_sample_stand_for_the_batch() -> None:
    model = lively(tiny.tiny_model())
    inputs = tiny.example_inputs(model, 2, references=1)
    inputs["img_shapes"] = inputs["img_shapes"][:1]
    torch.testing.assert_close(attached_loss(model, inputs, "target"), -cosine(model, inputs)[:, :16].mean())


@pytest.mark.filterwarnings("ignore")  # the model's own rotary embedding is that of the first sample
def test_samples_may_divide_their_tokens_differently() -> None:
    model = lively(tiny.tiny_model())
    inputs = tiny.example_inputs(model, 2, references=1)
    inputs["img_shapes"] = [[(1, 4, 4), (1, 2, 4)], [(1, 2, 4), (1, 4, 4)]]
    cosine_BS = cosine(model, inputs)
    by_hand = torch.cat([cosine_BS[0, :16], cosine_BS[1, :8]]).mean()
    torch.testing.assert_close(attached_loss(model, inputs, "target"), -by_hand)


@pytest.mark.parametrize(
    ("shapes", "grid"), [([(1, 4, 4)] * 2, (1, 4, 4)), ([[(1, 2, 8)]] * 2, (1, 2, 8)), ([[(1, 4, 2)] * 2] * 2, None)]
)
def test_the_grid_is_that_of_a_lone_image(shapes: Any, grid: Any) -> None:
    model = tiny.tiny_model()
    assert look(adapter, model, tiny.example_inputs(model, 2) | {"img_shapes": shapes}).tokens.grid == grid


class QwenImageTransformerBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.img_mlp, self.txt_mlp = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor,
        temb: Tensor,
        image_rotary_emb: Any = None,
        txt_seq_lens: Tensor | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        timestep_zero_index: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        joint = torch.cat((encoder_hidden_states, hidden_states), dim=1)
        shared = temb[:, None] + 0.3 * joint.mean(dim=1, keepdim=True)
        text = encoder_hidden_states + self.txt_mlp(encoder_hidden_states + shared)
        return text, hidden_states + self.img_mlp(hidden_states + shared)


class QwenImageTransformer2DModel(nn.Module):
    """Stands in for musubi-tuner's class: no diffusers base, no config, text lengths in the call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner_dim = 16
        self.pos_embed = nn.Identity()
        self.img_in, self.txt_in, self.time_text_embed = nn.Linear(16, 16), nn.Linear(12, 16), nn.Linear(1, 16)
        self.transformer_blocks = nn.ModuleList(QwenImageTransformerBlock(16) for _ in range(4))
        self.proj_out = nn.Linear(16, 16)
        self.checkpoint: Any = None

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any) -> None:
        self.checkpoint = gradient_checkpointing_func

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor,
        timestep: Tensor,
        img_shapes: list[Any],
        txt_seq_lens: list[int] | None = None,
    ) -> Tensor:
        call = self.checkpoint or (lambda block, *args: block(*args))
        image, text = self.img_in(hidden_states), self.txt_in(encoder_hidden_states)
        temb = self.time_text_embed(timestep[:, None])
        for block in self.transformer_blocks:
            text, image = call(block, image, text, encoder_hidden_states_mask, temb)
        return self.proj_out(image)


def musubi_inputs(model: nn.Module, batch_size: int, references: int = 0) -> dict[str, Any]:
    shapes = [[(1, 2, 4)] * (1 + references)]  # one entry for the batch
    return {
        "hidden_states": torch.randn(batch_size, 8 * (1 + references), 16),
        "encoder_hidden_states": torch.randn(batch_size, 5, 12),
        "encoder_hidden_states_mask": torch.ones(batch_size, 5, dtype=torch.bool),
        "timestep": torch.rand(batch_size),
        "img_shapes": shapes,
        "txt_seq_lens": [5] * batch_size,
    }


class TestQwenImageOfMusubi(TestQwenImage):
    tiny_model = QwenImageTransformer2DModel
    example_inputs = musubi_inputs


class TestQwenImageOfMusubiWithReferences(TestQwenImageOfMusubi):
    example_inputs = partial(musubi_inputs, references=1)

    def test_references_are_no_targets(self) -> None:
        model = lively(QwenImageTransformer2DModel())
        inputs = musubi_inputs(model, 2, references=1)
        torch.testing.assert_close(attached_loss(model, inputs, "target"), -cosine(model, inputs)[:, :8].mean())


class QwenEmbedRope(nn.Module):
    reference = False

    def forward(self, video_fhw: list[tuple[int, int, int]], txt_seq_lens: list[int], device: torch.device) -> Any:
        angles = list(range(len(video_fhw) - self.reference)) + [-1] * self.reference
        turns = [
            torch.polar(torch.ones(rows * columns, 2), torch.full((rows * columns, 2), float(angle)))
            for angle, (_, rows, columns) in zip(angles, video_fhw, strict=True)
        ]
        return torch.cat(turns), torch.ones(max(txt_seq_lens), 2)


class QwenEmbedLayer3DRope(QwenEmbedRope):
    reference = True


class DiffSynthBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.img_mlp, self.txt_mlp = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, image: Tensor, text: Tensor, temb: Tensor, image_rotary_emb: Any) -> tuple[Tensor, Tensor]:
        shared = temb[:, None] + 0.3 * torch.cat((text, image), dim=1).mean(dim=1, keepdim=True)
        return text + self.txt_mlp(text + shared), image + self.img_mlp(image + shared)


DiffSynthBlock.__name__ = "QwenImageTransformerBlock"


class QwenImageDiT(nn.Module):
    """Stands in for the class of DiffSynth-Studio: its forward never runs, the trainer calls the parts one by one."""

    def __init__(self, layered: bool = False) -> None:
        super().__init__()
        self.pos_embed = QwenEmbedLayer3DRope() if layered else QwenEmbedRope()
        self.img_in, self.txt_in, self.time_text_embed = nn.Linear(16, 16), nn.Linear(12, 16), nn.Linear(1, 16)
        self.transformer_blocks = nn.ModuleList(DiffSynthBlock(16) for _ in range(4))
        self.proj_out = nn.Linear(16, 16)
        self.checkpoint: Any = None

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any) -> None:
        self.checkpoint = gradient_checkpointing_func

    def forward(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("this forward never runs")

    def __call__(
        self, latents: Tensor, prompt_emb: Tensor, timestep: Tensor, img_shapes: list[tuple[int, int, int]]
    ) -> Tensor:
        call = self.checkpoint or (lambda block, *args: block(*args))
        image, text = self.img_in(latents), self.txt_in(prompt_emb)
        temb = self.time_text_embed(timestep[:, None])
        rotary = self.pos_embed(img_shapes, [text.shape[1]], device=latents.device)
        for block in self.transformer_blocks:
            text, image = call(block, image, text, temb, rotary)
        return self.proj_out(image)


def diffsynth_inputs(model: nn.Module, batch_size: int, references: int = 0) -> dict[str, Any]:
    return {
        "latents": torch.randn(batch_size, 8 * (1 + references), 16),
        "prompt_emb": torch.randn(batch_size, 5, 12),
        "timestep": torch.rand(batch_size),
        "img_shapes": [(1, 2, 4)] * (1 + references),
    }


class TestQwenImageDiT(AdapterConformance):
    family = "qwen_image"
    tiny_model = QwenImageDiT
    example_inputs = diffsynth_inputs
    depth = 4

    @staticmethod
    def longer_text(inputs):
        return inputs | {"prompt_emb": torch.randn(2, 9, 12)}

    # Re-entrant, the first block would run without gradients, so that nothing tells training from validation.
    @pytest.mark.parametrize("mode", ["non-reentrant", "no early stop"])
    def test_checkpointing_keeps_the_gradient(self, model: nn.Module, inputs: dict[str, Any], mode: str) -> None:
        super().test_checkpointing_keeps_the_gradient(model, inputs, mode)


class TestQwenImageDiTWithReferences(TestQwenImageDiT):
    example_inputs = partial(diffsynth_inputs, references=2)

    @pytest.mark.parametrize(
        ("layered", "tokens", "counted"),
        [(False, "target", slice(8)), (True, "target", slice(16)), (False, "all", slice(None))],
    )
    def test_references_count_only_when_asked(self, layered: bool, tokens: str, counted: slice) -> None:
        model = lively(QwenImageDiT(layered))
        inputs = diffsynth_inputs(model, 2, references=2)
        torch.testing.assert_close(attached_loss(model, inputs, tokens), -cosine(model, inputs)[:, counted].mean())
