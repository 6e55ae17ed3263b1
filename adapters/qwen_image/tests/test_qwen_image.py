from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_adapter_qwen_image import adapter, tiny
from layersync_core import ConfigError, attach, resolve
from layersync_core.testing import AdapterConformance, look, randomise_weights


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


def longer_text_21(inputs: dict[str, Any], text: int = 9) -> dict[str, Any]:
    references = len(inputs["img_shapes"][0]) - 1
    longer = tiny.example_inputs(tiny.tiny_21(), 2, references=references, text=text)
    return inputs | {name: longer[name] for name in ("encoder_hidden_states", "img_mask")}


class TestQwenImage21(AdapterConformance):
    family = "qwen_image"
    tiny_model = tiny.tiny_21
    depth = 4
    longer_text = longer_text_21


class TestQwenImage21WithReferences(TestQwenImage21):
    example_inputs = partial(tiny.example_inputs, references=2)
    longer_text = None  # the references are inside the text, so all of it is used
    text = ("encoder_hidden_states",)


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
    model = randomise_weights(tiny_model())
    inputs = tiny.example_inputs(model, 2, references=2)
    torch.testing.assert_close(attached_loss(model, inputs, tokens), -cosine(model, inputs)[:, counted].mean())


@pytest.mark.parametrize(("tokens", "counted"), [("target", slice(48)), ("all", slice(None))])
def test_the_last_of_a_layered_models_images_is_the_reference(tokens: str, counted: slice) -> None:
    model = randomise_weights(tiny.tiny_layered())
    inputs = tiny.example_inputs(model, 2, images=3)
    torch.testing.assert_close(attached_loss(model, inputs, tokens), -cosine(model, inputs)[:, counted].mean())


def test_shapes_of_one_sample_stand_for_the_batch() -> None:
    model = randomise_weights(tiny.tiny_model())
    inputs = tiny.example_inputs(model, 2, references=1)
    inputs["img_shapes"] = inputs["img_shapes"][:1]
    torch.testing.assert_close(attached_loss(model, inputs, "target"), -cosine(model, inputs)[:, :16].mean())


@pytest.mark.filterwarnings("ignore")  # the model's own rotary embedding is that of the first sample
def test_samples_may_divide_their_tokens_differently() -> None:
    model = randomise_weights(tiny.tiny_model())
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
        model = randomise_weights(QwenImageTransformer2DModel())
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

    # With re-entrant checkpoints the first block would run without gradients, indistinguishable from validation.
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
        model = randomise_weights(QwenImageDiT(layered))
        inputs = diffsynth_inputs(model, 2, references=2)
        torch.testing.assert_close(attached_loss(model, inputs, tokens), -cosine(model, inputs)[:, counted].mean())


def cosine_21(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Return the (B, S) cosine of the first block's whole sequence with the last block's."""
    seen: list[Tensor] = []
    blocks = (model.transformer_blocks[0], model.transformer_blocks[-1])
    handles = [block.register_forward_hook(lambda module, args, output: seen.append(output)) for block in blocks]
    model(**inputs)
    for handle in handles:
        handle.remove()
    return torch.cosine_similarity(*seen, dim=-1)


@pytest.mark.parametrize("tokens", ["target", "all"])
@pytest.mark.parametrize("references", [0, 1, 3])
def test_references_of_21_stand_in_the_text(references: int, tokens: str) -> None:
    model = randomise_weights(tiny.tiny_21())
    inputs = tiny.example_inputs(model, 2, references=references)
    # [text, reference, text, reference, text, ..., generated]: 5 of text, 8 of each reference, 16 generated.
    image = torch.tensor([False, *([True] * 8 + [False]) * references, *[False] * (4 - references), *[True] * 16])
    counted = image if tokens == "all" else torch.arange(len(image)) >= len(image) - 16
    by_hand = -cosine_21(model, inputs)[:, counted].mean()
    torch.testing.assert_close(attached_loss(model, inputs, tokens), by_hand)


class QwenImage21TransformerBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.img_mlp = nn.Linear(width, width)

    def forward(self, x: Tensor, modulation: Tensor, rope: Any, segments: Any, target_mask: Tensor) -> Tensor:
        real = torch.tensor([runs[-1][1] for runs in segments])
        kept = torch.arange(x.shape[1]) < real[:, None]
        mean = (x * kept[..., None]).sum(1, keepdim=True) / real[:, None, None]
        return x + torch.tanh(self.img_mlp(x + 0.3 * mean + modulation[:, None] * target_mask[..., None]))


class QwenImage21Transformer2DModel(QwenImageTransformer2DModel):
    """Stands in for musubi-tuner's class of 2.1, which is derived from its class of the other models."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList(QwenImage21TransformerBlock(16) for _ in range(4))

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        img_shapes: list[Any],
        txt_seq_lens: list[int] | None = None,
        reference_latents: list[Tensor] | None = None,
        image_slots: list[list[int]] | None = None,
        encoder_hidden_states_mask: Tensor | None = None,
    ) -> Tensor:
        call = self.checkpoint or (lambda block, *args: block(*args))
        lengths = txt_seq_lens or encoder_hidden_states_mask.sum(1).tolist()
        target, text = self.img_in(hidden_states), self.txt_in(encoder_hidden_states)
        images = [*map(self.img_in, reference_latents or ()), target]
        rows, runs = [], []
        for sample, length in enumerate(lengths):
            slots = [0, *(image_slots[sample] if image_slots else ()), length]
            parts = [
                part
                for (start, stop), image in zip(pairwise(slots), images, strict=True)
                for part in (text[sample, start:stop], image[sample])
            ]
            rows.append(torch.cat(parts))
            runs.append([(len(rows[-1]) - target.shape[1], len(rows[-1]), False)])
        x = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        starts = torch.tensor([run[-1][0] for run in runs])[:, None]
        places = torch.arange(x.shape[1])
        target_mask = (places >= starts) & (places < starts + target.shape[1])
        modulation = self.time_text_embed(timestep[:, None])
        for block in self.transformer_blocks:
            x = call(block, x, modulation, None, runs, target_mask)
        return self.proj_out(x[target_mask].unflatten(0, (len(x), -1)))


def musubi_21_inputs(
    model: nn.Module, batch_size: int, references: int = 0, text: int = 5, lengths: bool = False
) -> dict[str, Any]:
    """Return arguments of its forward.

    Args:
        model: The model.
        batch_size: Samples.
        references: Reference images, after the first text tokens.
        text: Text tokens of the longest sample.
        lengths: Whether the second sample has fewer.
    """
    texts = [text - (sample if lengths else 0) for sample in range(batch_size)]
    found = {
        "hidden_states": torch.randn(batch_size, 8, 16),
        "encoder_hidden_states": torch.randn(batch_size, text, 12),
        "timestep": torch.rand(batch_size),
        "img_shapes": [[(1, 2, 3)] * references + [(1, 2, 4)]],
        "txt_seq_lens": texts,
    }
    if references:
        found["reference_latents"] = [torch.randn(batch_size, 6, 16) for _ in range(references)]
        found["image_slots"] = [list(range(1, 1 + references))] * batch_size
    return found


class TestQwenImage21OfMusubi(AdapterConformance):
    family = "qwen_image"
    tiny_model = QwenImage21Transformer2DModel
    example_inputs = musubi_21_inputs
    depth = 4

    @staticmethod
    def longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs | {"encoder_hidden_states": torch.randn(2, 9, 12), "txt_seq_lens": [9, 9]}


class TestQwenImage21OfMusubiWithReferences(TestQwenImage21OfMusubi):
    example_inputs = partial(musubi_21_inputs, references=2, lengths=True)
    longer_text = None
    text = ("encoder_hidden_states",)


def test_musubis_21_is_none_of_the_models_that_its_class_is_derived_from() -> None:
    model = QwenImage21Transformer2DModel()
    assert resolve(model).family == "qwen_image"
    assert next(layout for layout in adapter.layouts if layout.fits(model)).image_tokens


class Derived(QwenImage21Transformer2DModel):
    """A third party's model with the blocks of the other models."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList(QwenImageTransformerBlock(16) for _ in range(4))


def test_a_class_derived_from_21_with_the_blocks_of_the_others_is_refused() -> None:
    settings = {"layersync_enabled": True, "layersync_student_block": 1, "layersync_teacher_block": 4}
    with pytest.raises(ConfigError, match="QwenImageTransformerBlock, not a QwenImage21TransformerBlock"):
        attach(Derived(), settings)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("references", [0, 2])
def test_generated_tokens_of_musubis_21_stand_behind_each_samples_own_text(references: int, mask: bool) -> None:
    model = randomise_weights(QwenImage21Transformer2DModel())
    inputs = musubi_21_inputs(model, 2, references=references, lengths=True)
    if mask:
        lengths = torch.tensor(inputs.pop("txt_seq_lens"))
        inputs["encoder_hidden_states_mask"] = torch.arange(5) < lengths[:, None]
    cosine_BS, first = cosine_21(model, inputs), 5 + 6 * references
    expected = torch.stack([cosine_BS[0, first : first + 8], cosine_BS[1, first - 1 : first + 7]]).mean()
    torch.testing.assert_close(attached_loss(model, inputs, "target"), -expected)
