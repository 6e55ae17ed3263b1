"""The conformance kit on every family of the package, and tests of what is specific to one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_adapters_more.bria import tiny as bria
from layersync_adapters_more.consisid import tiny as consisid
from layersync_adapters_more.fibo import tiny as fibo
from layersync_adapters_more.joyimage import tiny as joyimage
from layersync_adapters_more.kandinsky6 import tiny as kandinsky6
from layersync_adapters_more.motif_video import tiny as motif_video
from layersync_adapters_more.stable_audio import tiny as stable_audio
from layersync_core import ConfigError, attach
from layersync_core.testing import AdapterConformance, randomise_weights


def longer(mask: str = "", dtype: torch.dtype = torch.bool, **more: Tensor) -> Callable[[dict[str, Any]], Any]:
    """Return a ``longer_text``: 9 text tokens of 12 channels, with a mask and more where the model takes them."""
    masks = {mask: torch.ones(2, 9, dtype=dtype)} if mask else {}
    return lambda inputs: inputs | {"encoder_hidden_states": torch.randn(2, 9, 12), **masks, **more}


class TestAllegro(AdapterConformance):
    family = "allegro"
    depth = 3

    @staticmethod
    def longer_text(inputs):
        return longer("encoder_attention_mask", torch.float)(inputs) | {
            "encoder_hidden_states": torch.randn(2, 1, 9, 12)
        }


class TestAnyFlow(AdapterConformance):
    family = "anyflow"
    depth = 3
    longer_text = longer()


class TestBria(AdapterConformance):
    family = "bria"
    depth = 3
    longer_text = longer(txt_ids=torch.zeros(9, 3))


class TestChronoEdit(AdapterConformance):
    family = "chronoedit"
    depth = 3
    longer_text = longer()


class TestCogView3(AdapterConformance):
    family = "cogview3"
    depth = 3
    longer_text = longer()


class TestConsisID(AdapterConformance):
    family = "consisid"
    tiny_model = partial(consisid.tiny_model, face=True)
    depth = 4
    longer_text = longer()


class TestEasyAnimate(AdapterConformance):
    family = "easyanimate"
    depth = 3
    longer_text = longer()


class TestFibo(AdapterConformance):
    family = "fibo"
    depth = 3

    @staticmethod
    def longer_text(inputs):
        layers = [torch.randn(2, 9, 8) for _ in range(3)]
        return longer(txt_ids=torch.zeros(9, 3))(inputs) | {"text_encoder_layers": layers}


class TestFiboWithReferences(TestFibo):
    example_inputs = partial(fibo.example_inputs, references=2)


class TestFibo2(AdapterConformance):
    family = "fibo"
    tiny_model = fibo.tiny_2
    example_inputs = fibo.inputs_2
    depth = 3


class TestFibo2WithReferences(TestFibo2):
    example_inputs = partial(fibo.inputs_2, references=2)


class TestFibo2WithGistsOfTwoLengths(TestFibo2):
    example_inputs = partial(fibo.inputs_2, references=1, text=9, lengths=(9, 5))


class TestGlmImage(AdapterConformance):
    family = "glm_image"
    depth = 3
    longer_text = longer()


class TestHunyuanDiT(AdapterConformance):
    family = "hunyuan_dit"
    depth = 4


class TestJoyImageEdit(AdapterConformance):
    family = "joyimage"
    depth = 3
    longer_text = longer()


class TestJoyImageEditWithReferences(TestJoyImageEdit):
    example_inputs = partial(joyimage.example_inputs, references=2)


class TestJoyImageEditPlus(AdapterConformance):
    family = "joyimage"
    tiny_model = joyimage.tiny_plus
    example_inputs = joyimage.inputs_plus
    depth = 3
    longer_text = longer("encoder_hidden_states_mask", torch.float)


class TestKandinsky6(AdapterConformance):
    family = "kandinsky6"
    depth = 3
    longer_text = longer()


class TestKandinsky6WithReference(TestKandinsky6):
    example_inputs = partial(kandinsky6.example_inputs, reference=True, sound=3)


class TestLuminaNext(AdapterConformance):
    family = "lumina_next"
    depth = 3
    longer_text = longer("encoder_mask", torch.long)


class TestMiniMaxMusic(AdapterConformance):
    family = "minimax_music"
    depth = 3
    text = ()  # its condition has a row for each position of the sound


class TestMotifVideo(AdapterConformance):
    family = "motif_video"
    depth = 4
    longer_text = longer("encoder_attention_mask")


class TestMotifVideoWithDecoder(TestMotifVideo):
    tiny_model = partial(motif_video.tiny_model, decoder=2)


class TestNucleus(AdapterConformance):
    family = "nucleus"
    depth = 3
    longer_text = longer("encoder_hidden_states_mask")


class TestOvis(TestBria):
    family = "ovis"


class TestPRX(AdapterConformance):
    family = "prx"
    depth = 3
    longer_text = longer("attention_mask")


class TestStableAudio(AdapterConformance):
    family = "stable_audio"
    depth = 3
    longer_text = longer()


class TestStableAudio3(TestStableAudio):
    tiny_model = stable_audio.tiny_3
    example_inputs = stable_audio.inputs_3


def attached_loss(
    model: nn.Module, inputs: dict[str, Any], tokens: str = "target", student: int = 1, teacher: int = 3
) -> Tensor:
    settings = {"enabled": True, "student_block": student, "teacher_block": teacher, "lambda": 1, "tokens": tokens}
    with attach(model, {f"layersync_{key}": value for key, value in settings.items()}) as sync:
        model(**inputs)
        return sync.loss()


def hooked_cosine(
    blocks: list[nn.Module], read: Callable[[Any], Tensor], model: nn.Module, inputs: dict[str, Any]
) -> Tensor:
    """Return the cosines (B, S) of what ``read`` takes from the first and the last block, by plain hooks."""
    seen: list[Tensor] = []
    handles = [block.register_forward_hook(lambda *call: seen.append(read(call[2]))) for block in blocks]
    model(**inputs)
    for handle in handles:
        handle.remove()
    return torch.cosine_similarity(*seen, dim=-1)


# The tokens of the generated image (16), and those plus the tokens of a reference (8).
GISTS = {
    "before": ({"text": 9}, slice(4, 20), slice(4, 28)),
    "before, by a mask": ({"text": 9, "lengths": (5, 4)}, slice(2, 18), slice(2, 26)),
    "behind": ({"text": 9, "lengths": (9, 5)}, slice(16), slice(24)),
}


@pytest.mark.parametrize("tokens", ["target", "all"])
@pytest.mark.parametrize(("given", "image", "images"), GISTS.values(), ids=GISTS)
def test_the_gist_of_the_text_is_never_aligned(given: dict[str, Any], image: slice, images: slice, tokens: str) -> None:
    model = randomise_weights(fibo.tiny_2()).eval()
    inputs = fibo.inputs_2(model, 2, references=1, **given)
    counted = image if tokens == "target" else images
    cosine = hooked_cosine([model.layers[0], model.layers[2]], lambda output: output[:, counted], model, inputs)
    torch.testing.assert_close(attached_loss(model, inputs, tokens), -cosine.mean())


@pytest.mark.parametrize(("tokens", "counted"), [("target", (8, 4)), ("all", (12, 14))])
def test_packed_images_count_up_to_their_own_lengths(tokens: str, counted: tuple[int, int]) -> None:
    model = randomise_weights(joyimage.tiny_plus()).eval()
    inputs = joyimage.inputs_plus(model, 2)
    blocks = [model.double_blocks[0], model.double_blocks[2]]
    cosine = hooked_cosine(blocks, lambda output: output[0], model, inputs)
    wanted = torch.cat([row[:length] for row, length in zip(cosine, counted, strict=True)]).mean()
    torch.testing.assert_close(attached_loss(model, inputs, tokens), -wanted)


def test_the_image_to_make_is_first_in_the_blocks_though_last_in_the_argument() -> None:
    model = randomise_weights(joyimage.tiny_model()).eval()
    inputs = joyimage.example_inputs(model, 2, references=2)
    seen: list[Tensor] = []
    model.img_in.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(**inputs)
    assert torch.equal(seen[0][:, :, 0], inputs["hidden_states"][:, -1, :, 0])


@pytest.mark.parametrize(("tokens", "counted"), [("target", slice(12)), ("all", slice(None))])
def test_a_reference_frame_counts_only_when_asked(tokens: str, counted: slice) -> None:
    model = randomise_weights(kandinsky6.tiny_model()).eval()
    inputs = kandinsky6.example_inputs(model, 2, reference=True, sound=3)
    blocks = [model.visual_transformer_blocks[0], model.visual_transformer_blocks[2]]
    cosine = hooked_cosine(blocks, lambda output: output[0][:, counted], model, inputs)
    torch.testing.assert_close(attached_loss(model, inputs, tokens), -cosine.mean())


def test_residuals_of_a_controlnet_are_not_captured() -> None:
    model = randomise_weights(bria.tiny_model()).eval()
    inputs = bria.example_inputs(model, 2)
    residuals = [100 * torch.randn(2, 16, 32)]
    controlled = inputs | {"controlnet_block_samples": residuals}
    seen: list[Tensor] = []
    for block in (model.transformer_blocks[0], model.single_transformer_blocks[1]):
        block.register_forward_hook(lambda module, args, output: seen.append(output[1].clone()))
    loss = attached_loss(model, controlled)
    torch.testing.assert_close(loss, -torch.cosine_similarity(*seen, dim=-1).mean())
    assert (loss - attached_loss(model, inputs)).abs() > 1e-3


def test_a_block_that_starts_again_is_not_a_teacher_of_one_before_it() -> None:
    model = motif_video.tiny_model(decoder=2)
    inputs = motif_video.example_inputs(model, 2)
    with pytest.raises(ConfigError, match="stage"):
        attached_loss(model, inputs, student=1, teacher=4)
    assert attached_loss(model, inputs, student=1, teacher=2).isfinite()
    assert attached_loss(model, inputs, student=3, teacher=4).isfinite()
    assert attached_loss(motif_video.tiny_model(), inputs, student=1, teacher=4).isfinite()


def test_what_is_padded_of_a_video_does_not_count() -> None:
    kit = TestAllegro
    model = randomise_weights(kit.tiny_model()).eval()
    inputs = kit.example_inputs(model, 2)
    inputs["attention_mask"][1, 2] = 0  # the last frame of one sample
    blocks = [model.transformer_blocks[0], model.transformer_blocks[2]]
    cosine = hooked_cosine(blocks, lambda output: output, model, inputs)
    torch.testing.assert_close(attached_loss(model, inputs), -torch.cat([cosine[0], cosine[1, :16]]).mean())
