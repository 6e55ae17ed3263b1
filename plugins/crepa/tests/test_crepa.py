# Shapes: B batch, T frames, P tokens a frame, C channels, H rows, W columns, N patch tokens, D channels
"""CREPA on models: the term and its gradients, encoder and pixels, the cut-off, checkpoints, and what is refused."""

from __future__ import annotations

import copy
import gc
import json
import re
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from layersync_core import Attachment, BlockStackAdapter, CaptureError, ConfigError, attach, load_tiny
from layersync_plugin_crepa import crepa_loss, pixels, regularizer
from layersync_plugin_crepa.encoder import _load
from layersync_plugin_crepa.loss import frame_scores
from tests.models import (
    TOY,
    Toy,
    assert_same_gradients,
    build,
    gradients,
    gradients_by_autograd,
    hooks_on,
    mean_cosine,
    randomise,
    settings,
    states_by_hand,
    toy,
    toy_input,
)

BACKBONE = {"crepa_enabled": True, "crepa_block_index": 0, "crepa_feature_source": "backbone"}
GRID = (3, 16)  # frames and tokens a frame of the small Wan


def by_frame(state_BSD: Tensor) -> Tensor:
    return state_BSD.unflatten(1, GRID)


def part(sync: Attachment) -> Any:
    return sync.modules()["crepa"]


# The term.
@pytest.mark.parametrize("case", ["wan", "wan vace"])
@pytest.mark.parametrize(
    ("more", "teacher", "options"),
    [
        ({}, 0, {}),
        ({"crepa_teacher_block_index": 2}, 2, {}),
        (
            {
                "crepa_teacher_block_index": 3,
                "crepa_lambda": 0.8,
                "crepa_adjacent_distance": 2,
                "crepa_adjacent_tau": 2,
                "crepa_cumulative_neighbors": True,
                "crepa_normalize_neighbour_sum": True,
                "crepa_normalize_by_frames": False,
                "crepa_spatial_align": False,
            },
            3,
            {
                "adjacent_distance": 2,
                "tau": 2.0,
                "cumulative": True,
                "normalize_neighbour_sum": True,
                "normalize_by_frames": False,
                "spatial_align": False,
            },
        ),
    ],
)
def test_backbone_features(case: str, more: dict[str, Any], teacher: int, options: dict[str, Any]) -> None:
    model, inputs = build(case)
    untouched = copy.deepcopy(model)
    with attach(model, BACKBONE | more) as sync:
        model(**inputs)
        loss = sync.loss()
        loss.backward()
        projector = copy.deepcopy(part(sync))
        metrics = sync.metrics()
    states = [by_frame(state) for state in states_by_hand(untouched, inputs)]
    unweighted, told = crepa_loss(states[0], states[teacher].detach(), projector=projector, **options)
    weight = more.get("crepa_lambda", 0.5)
    torch.testing.assert_close(loss, weight * unweighted)
    assert_same_gradients(gradients(model), gradients_by_autograd(weight * unweighted, untouched))
    torch.testing.assert_close({key: metrics[key] for key in told}, told)
    assert set(metrics) == {*told, "crepa_loss", "crepa_weight", "crepa_cutoff"}
    assert [float(metrics[f"crepa_{key}"]) for key in ("loss", "weight", "cutoff")] == pytest.approx(
        [float(loss.detach()), weight, 0]
    )


VIDEO = [
    ("wan", "tiny_model"),
    ("wan", "tiny_vace"),
    ("wan", "tiny_animate"),
    ("cosmos", "tiny_model"),
    ("cosmos", "tiny_2"),
    ("cosmos", "tiny_25"),
    ("hunyuan_video", "tiny_model"),
    ("hunyuan_video", "tiny_15"),
    ("hunyuan_video", "tiny_token_replace"),
    ("kandinsky5_video", "tiny_model"),
    ("ltx_video", "tiny_model"),
    ("ltx_video", "tiny_2"),
    ("sana", "tiny_video"),
]


@pytest.mark.parametrize(("family", "maker"), VIDEO)
def test_every_video_family(family: str, maker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tiny = load_tiny(family)
    model = randomise(getattr(tiny, maker)()).eval()
    seen: list[Tensor] = []

    def scores(student_BTPD: Tensor, target_BTND: Tensor, *more: Any) -> Any:
        seen.extend((student_BTPD.detach(), target_BTND))
        return frame_scores(student_BTPD, target_BTND, *more)

    monkeypatch.setattr(regularizer, "frame_scores", scores)
    with attach(model, BACKBONE | {"crepa_teacher_block_index": 1}, family=family) as sync:
        assert all(block.video for block in sync.blocks)
        model(**tiny.example_inputs(model, 2))
        loss = sync.loss()
        loss.backward()
        expected, _ = crepa_loss(*seen, projector=part(sync))
        torch.testing.assert_close(loss, 0.5 * expected)
        assert seen[0].shape[1] > 1
        assert part(sync).linear.weight.grad.any()
        assert any(gradient.any() for gradient in gradients(model).values())


def test_the_older_spelling_of_backbone_features() -> None:
    older = {"crepa_enabled": "yes", "crepa_block_index": "0", "crepa_use_backbone_features": "true"}
    with attach(toy(), older, adapter=TOY) as sync:
        assert sync.describe()[-2] == "crepa features: block 1 of 4 (blocks.0)"


def test_an_image_is_a_clip_of_one_frame() -> None:
    model, x = toy(), toy_input()
    with attach(model, BACKBONE | {"crepa_adjacent_distance": 4}, adapter=TOY) as sync:
        model(x)
        sync.loss()
        metrics = sync.metrics()
    torch.testing.assert_close(metrics["crepa_alignment_score"], metrics["crepa_similarity_self"])


def test_reference_tokens_do_not_count() -> None:
    model, inputs = build("flux references")
    keep = inputs["img_ids"][:, 0] == 0
    with attach(model, BACKBONE | {"crepa_teacher_block_index": 3}) as sync:
        model(**inputs)
        loss = sync.loss()
        states = [state[:, keep].unsqueeze(1) for state in states_by_hand(model, inputs)]
        torch.testing.assert_close(loss, 0.5 * crepa_loss(states[0], states[3], projector=part(sync))[0])


def test_the_hosts_weights_of_samples_count() -> None:
    model, x = toy(), toy_input()
    with attach(model, BACKBONE, adapter=TOY) as sync:
        model(x)
        whole = sync.loss()
        model(x)
        torch.testing.assert_close(sync.loss(sample_weight=torch.tensor([3.0, 3.0])), 3 * whole)


def test_the_weight_follows_the_schedule() -> None:
    model, x = toy(), toy_input()
    with attach(
        model, BACKBONE | {"crepa_warmup_steps": 4, "crepa_scheduler": "linear", "max_train_steps": 8}, adapter=TOY
    ) as sync:
        weights = []
        for _ in range(8):
            model(x)
            sync.loss()
            weights.append(float(sync.metrics()["crepa_weight"]))
        assert weights == pytest.approx([0, 0.125, 0.25, 0.375, 0.5, 0.375, 0.25, 0.125])
        assert sync.capture is not None
        assert not sync.capture.enabled


# The encoder.
@pytest.fixture(scope="module", params=["dinov2", "registers"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, int]:
    """A small random vision encoder in a folder, itself, and how many tokens stand before its patches."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
    sizes |= {"image_size": 16, "mlp_ratio": 2}
    if request.param == "dinov2":
        model, before = Dinov2Model(Dinov2Config(**sizes)), 1
    else:
        model, before = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, num_register_tokens=3)), 4
    folder = str(tmp_path_factory.mktemp("encoder"))
    model.save_pretrained(folder)
    return folder, model.eval(), before


@pytest.fixture(autouse=True)
def loaders(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what watching the data loaders changes."""
    import accelerate.data_loader as library

    for kind in (DataLoader, *DataLoader.__subclasses__(), library.DataLoaderShard, library.DataLoaderDispatcher):
        if "__iter__" in vars(kind):
            monkeypatch.setattr(kind, "__iter__", vars(kind)["__iter__"])
    monkeypatch.setattr(pixels, "_latest", pixels._MISSING)
    yield
    for state in (AcceleratorState, GradientState):
        state._reset_state(*([True] if state is AcceleratorState else []))


def encoding(folder: str, **more: Any) -> dict[str, Any]:
    return {
        "crepa_enabled": True,
        "crepa_block_index": 1,
        "crepa_model": folder,
        "crepa_encoder_image_size": 16,
        "crepa_pixels": "pixel_values",
        **more,
    }


def clip(samples: int = 2, frames: int = 5) -> Tensor:
    """Return (B, T, 3, H, W) from -1 to 1."""
    return torch.rand(samples, frames, 3, 20, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def features(model: Any, before: int, clip_BTCHW: Tensor, size: int = 16) -> Tensor:
    """Return (B, T, N, D) patch features."""
    frames = F.interpolate((clip_BTCHW.flatten(0, 1) + 1) / 2, size=(size, size), mode="bilinear")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    inputs = (frames - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        return model(pixel_values=inputs).last_hidden_state[:, before:].unflatten(0, clip_BTCHW.shape[:2])


@pytest.mark.parametrize(("size", "at_once"), [(16, -1), (16, 4), (12, 1)])
def test_encoder_features(encoder: tuple[str, Any, int], size: int, at_once: int) -> None:
    folder, reference, before = encoder
    model, inputs = build("wan")
    untouched = copy.deepcopy(model)
    more = {"crepa_encoder_image_size": size, "crepa_encoder_frames_batch_size": at_once}
    with attach(model, encoding(folder, **more)) as sync:
        for batch in DataLoader([{"pixel_values": it} for it in clip()], batch_size=2):
            model(**inputs)
            loss = sync.loss()
            loss.backward()
            assert batch["pixel_values"].shape == (2, 5, 3, 20, 24)
        state = by_frame(states_by_hand(untouched, inputs)[1])
        target = features(reference, before, clip(), size)
        assert target.shape == (2, 5, (size // 4) ** 2, 16)
        expected = 0.5 * crepa_loss(state, target, projector=copy.deepcopy(part(sync)))[0]
        assert part(sync).linear.weight.grad.any()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert_same_gradients(gradients(model), gradients_by_autograd(expected, untouched), 1e-4)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A small random encoder."""
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=4, image_size=16)
    Dinov2Model(config).save_pretrained(tmp_path)
    return str(tmp_path)


def wan_loss(config: dict[str, Any], batch: Any = None) -> Tensor:
    """Return the term of one step with a batch that a loader has just given."""
    model, inputs = build("wan")
    torch.manual_seed(1)
    with attach(model, config) as sync:
        if batch is not None:
            next(iter(DataLoader([batch], batch_size=None)))
        model(**inputs)
        return sync.loss().detach()


@pytest.mark.parametrize(
    ("given", "more"),
    [
        (clip().transpose(1, 2), {}),
        (clip() / 2 + 0.5, {"crepa_pixels_range": "0,1"}),
        ((clip() / 2 + 0.5) * 255, {"crepa_pixels_range": "0,255"}),
        (clip().double(), {}),
        (clip()[:, [0, 2, 4]], {}),  # as many frames as the states have
    ],
)
def test_pixels_of_all_kinds(folder: str, given: Tensor, more: dict[str, Any]) -> None:
    expected = wan_loss(encoding(folder), {"pixel_values": clip()})
    torch.testing.assert_close(wan_loss(encoding(folder, **more), {"pixel_values": given}), expected)


def test_pixels_may_be_bytes(folder: str) -> None:
    whole = ((clip() / 2 + 0.5) * 255).round()
    config = encoding(folder, crepa_pixels_range="0,255")
    torch.testing.assert_close(
        wan_loss(config, {"pixel_values": whole.byte()}), wan_loss(config, {"pixel_values": whole})
    )


def doubled(batch: Any) -> Tensor:
    """Return pixels, for a setting that names this function."""
    return batch["half"] * 2


def test_pixels_from_a_function(folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = wan_loss(encoding(folder), {"pixel_values": clip()})
    (tmp_path / "a_trainers_module.py").write_text("def doubled(batch):\n    return batch['half'] * 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    for source in (doubled, "a_trainers_module:doubled"):
        torch.testing.assert_close(wan_loss(encoding(folder, crepa_pixels=source), {"half": clip() / 2}), expected)
    torch.testing.assert_close(wan_loss(encoding(folder, crepa_pixels=lambda batch: clip())), expected)
    torch.testing.assert_close(wan_loss(encoding(folder, crepa_pixels="1"), [0, clip()]), expected)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (None, "no torch DataLoader gave one since attaching"),
        ({"latents": 0, "prompt": ""}, r"crepa_pixels is 'pixel_values', but the batch has keys latents, prompt"),
        ([1, 2], "but the batch has positions 0 to 1"),
        ({"pixel_values": "video.mp4"}, "is a str; expected a tensor"),
        ({"pixel_values": clip()[:, :, :1]}, r"has shape \(2, 5, 1, 20, 24\); expected"),
        ({"pixel_values": clip(samples=3)}, "has 3 samples, the hidden states 2"),
        ({"pixel_values": clip()[:, 0]}, "single images, but the hidden states have 3 frames"),
        ({"pixel_values": clip().byte()}, "set crepa_pixels_range: 0,255"),
    ],
)
def test_pixels_that_cannot_be_used(folder: str, batch: Any, said: str) -> None:
    with pytest.raises(CaptureError, match=said):
        wan_loss(encoding(folder), batch)


def test_single_images_are_clips_of_one_frame(folder: str) -> None:
    model, inputs = build("wan")
    inputs["hidden_states"] = inputs["hidden_states"][:, :, :1]
    with attach(model, encoding(folder)) as sync:
        for _ in DataLoader([{"pixel_values": it} for it in clip()[:, 0]], batch_size=2):
            model(**inputs)
            sync.loss()
            metrics = sync.metrics()
    torch.testing.assert_close(metrics["crepa_alignment_score"], metrics["crepa_similarity_self"])


@pytest.mark.parametrize("dispatch", [False, True])
def test_the_batch_is_the_loops_own_and_not_the_one_that_accelerate_fetched_ahead(dispatch: bool) -> None:
    pixels._watch_loaders()
    accelerator = accelerate.Accelerator(
        cpu=True, dataloader_config=accelerate.DataLoaderConfiguration(dispatch_batches=dispatch)
    )
    loader = accelerator.prepare(DataLoader([{"number": torch.tensor(it)} for it in range(6)], batch_size=2))
    for epoch in range(2):
        for index, batch in enumerate(loader):
            assert pixels._latest is batch, epoch
            assert batch["number"].tolist() == [2 * index, 2 * index + 1]
        assert index == 2
    for batch in accelerate.skip_first_batches(loader, 1):
        assert pixels._latest is batch


def test_loaders_are_otherwise_as_before() -> None:
    pixels._watch_loaders()
    loader = DataLoader(list(range(6)), batch_size=2, num_workers=1, persistent_workers=True)
    for _ in range(2):
        iterator = iter(loader)
        assert len(iterator) == 3
        assert iterator._num_workers == 1
        assert [it.tolist() for it in iterator] == [[0, 1], [2, 3], [4, 5]]


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device."""

    NAMES = ("aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::equal", "aten::is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket._qualified_op_name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("source", ["encoder", "backbone"])
def test_a_step_waits_for_nothing(folder: str, source: str) -> None:
    model, inputs = build("wan")
    config = encoding(folder) if source == "encoder" else BACKBONE | {"crepa_teacher_block_index": 2}
    # On CPU a cut-off for good is read at once, since that costs nothing there.
    config |= {"crepa_similarity_threshold": 0.9, "crepa_threshold_mode": "recoverable"}
    with attach(model, config) as sync:
        for _ in range(3):
            for _ in DataLoader([{"pixel_values": it} for it in clip()], batch_size=2):
                loss = model(**inputs).sample.square().mean()
                with Waits() as counting:
                    sync.apply(loss).backward()
                    sync.metrics()
                assert [counting.calls[name] for name in Waits.NAMES] == [0] * 5


# Errors at start-up.
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"crepa_enabled": True}, "crepa_block_index is missing"),
        ({"crepa_block_index": 1, "crepa_lambda": 1}, r"crepa_block_index, crepa_lambda given without crepa_enabled"),
        (BACKBONE | {"crepa_use_backbone_features": False}, "two feature sources"),
        (BACKBONE | {"crepa_feature_source": "encoder", "crepa_use_backbone_features": True}, "two feature sources"),
        (BACKBONE | {"crepa_feature_source": "encoder", "crepa_teacher_block_index": 2}, "is for backbone features"),
        (BACKBONE | {"crepa_pixels": "pixels"}, "crepa_pixels is for the encoder"),
        (BACKBONE | {"crepa_feature_source": "self_flow"}, "self_flow is not supported: .* EMA teacher"),
        (BACKBONE | {"crepa_feature_source": "dino"}, "crepa_feature_source is 'dino'"),
        ({"crepa_enabled": True, "crepa_block_index": 1}, r"crepa_pixels is missing: .*module:function"),
        (BACKBONE | {"crepa_blok_index": 1}, r"unknown setting crepa_blok_index; did you mean crepa_block_index"),
        (BACKBONE | {"crepa_block_index": 4}, r"crepa_block_index is 4.* 0, block 1 of 4 \(blocks\.0\), to 3, block 4"),
        (BACKBONE | {"crepa_teacher_block_index": 9}, r"crepa_teacher_block_index is 9, but the model has 4 blocks"),
        (BACKBONE | {"crepa_block_index": -1}, "crepa_block_index is -1"),
        (BACKBONE | {"crepa_block_index": True}, "a boolean is not a number"),
        (BACKBONE | {"crepa_lambda": 0}, "crepa_lambda is 0"),
        (BACKBONE | {"crepa_lambda": float("nan")}, "crepa_lambda is nan"),
        (BACKBONE | {"crepa_adjacent_tau": 0}, "crepa_adjacent_tau is 0"),
        (BACKBONE | {"crepa_similarity_threshold": 1.5}, "crepa_similarity_threshold is 1.5"),
        (BACKBONE | {"crepa_scheduler": "cosine"}, "set crepa_decay_steps"),
    ],
)
def test_settings_that_cannot_work(config: dict[str, Any], said: str) -> None:
    model = toy()
    with pytest.raises(ConfigError, match=said) as error:
        attach(model, config, adapter=TOY)
    assert "\n" not in str(error.value)
    assert hooks_on(model) == 0


def test_the_encoder_needs_frames(folder: str) -> None:
    for model in (toy(), build("dit")[0]):
        with pytest.raises(ConfigError, match="aligns the frames of a video, but the tokens of this model have none"):
            attach(model, encoding(folder), adapter=TOY if isinstance(model, Toy) else None)


class TestCodeOfAModel:
    """A folder may bring code along; it runs only where a setting says so, and nobody is asked on standard input."""

    @pytest.fixture
    def with_code(self, folder: str, tmp_path: Path) -> Iterator[tuple[str, Path]]:
        ran = tmp_path / "ran"
        (tmp_path / "theirs.py").write_text(
            f"open({str(ran)!r}, 'w').close()\n"
            "from transformers import Dinov2Config, Dinov2Model\n"
            "class Config(Dinov2Config):\n    model_type = 'theirs'\n"
            "class Model(Dinov2Model):\n    config_class = Config\n"
        )
        config = json.loads(Path(folder, "config.json").read_text())
        config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config", "AutoModel": "theirs.Model"}}
        Path(folder, "config.json").write_text(json.dumps(config))
        yield folder, ran
        _load.cache_clear()

    def test_does_not_run(self, with_code: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        folder, ran = with_code
        monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on standard input"))
        with pytest.raises(ConfigError, match=r"brings code of its own.*crepa_trust_remote_code: true") as error:
            attach(build("wan")[0], encoding(folder))
        assert "\n" not in str(error.value)
        assert not ran.exists()

    def test_runs_where_a_setting_says_so(
        self, with_code: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, ran = with_code
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
        monkeypatch.syspath_prepend(str(tmp_path / "modules"))
        assert wan_loss(encoding(folder, crepa_trust_remote_code=True), {"pixel_values": clip()}).isfinite()
        assert ran.exists()


def test_the_projector_needs_a_width() -> None:
    adapter = BlockStackAdapter(family="toy", model_classes="Toy", stacks="blocks")
    with pytest.raises(ConfigError, match=r"the width of block 1 of 4 \(blocks\.0\) is unknown"):
        attach(toy(), BACKBONE, adapter=adapter)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"crepa_model": "/nowhere/at/all"}, "crepa_model /nowhere/at/all cannot be loaded"),
        ({"crepa_encoder_image_size": 3}, "less than the encoder's patch of 4"),
        ({"crepa_pixels": "no_such_module:pixels"}, "no_such_module:pixels, which cannot be imported"),
        ({"crepa_pixels": "math:pi"}, "math:pi, which is a float and no function"),
        ({"crepa_pixels": 7}, "crepa_pixels is 7; it takes a key"),
    ],
)
def test_encoders_and_pixels_that_are_not_there(folder: str, more: dict[str, Any], said: str) -> None:
    model, _ = build("wan")
    with pytest.raises(ConfigError, match=said) as error:
        attach(model, encoding(folder, **more))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "config", [{"crepa_enabled": False, "crepa_block_index": 99}, {"crepa_drop_vae_encoder": True}]
)
def test_switched_off_it_leaves_others_keys_alone(config: dict[str, Any]) -> None:
    model = toy()
    with attach(model, config, adapter=TOY) as sync:
        assert hooks_on(model) == 0
        assert sync.describe() == ["LayerSync is off"]


def test_the_block_is_named(folder: str) -> None:
    with attach(build("wan")[0], encoding(folder, **settings())) as sync:
        assert sync.describe() == [
            "family: wan",
            "crepa: block 2 of 4 (blocks.1), crepa_block_index 1",
            f"crepa features: {folder}, pixels from pixel_values",
            "crepa weight: 0.5",
            "student: block 1 of 4 (blocks.0)",
            "teacher: block 3 of 4 (blocks.2)",
            "weight: 0.5",
        ]


# Beside LayerSync.
def test_a_layer_that_both_want_is_captured_once_and_the_gradients_add_up() -> None:
    model, inputs = build("wan")
    untouched = copy.deepcopy(model)
    with attach(model, settings(1, 3)) as sync:
        alone = hooks_on(model.blocks[0])
    with attach(model, BACKBONE | settings(1, 3) | {"crepa_teacher_block_index": 2}) as sync:
        assert hooks_on(model.blocks[0]) == alone
        model(**inputs)
        sync.loss().backward()
        projector = copy.deepcopy(part(sync))
    states = states_by_hand(untouched, inputs)
    expected = 0.5 * crepa_loss(by_frame(states[0]), by_frame(states[2]), projector=projector)[0]
    expected = expected - 0.5 * mean_cosine(states[0], states[2])
    assert_same_gradients(gradients(model), gradients_by_autograd(expected, untouched))


def test_one_that_raises_leaves_no_tensor_behind_and_the_next_step_works(folder: str) -> None:
    model, inputs = build("wan")
    seen: list[Any] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output)))
    with attach(model, encoding(folder) | settings()) as sync:
        next(iter(DataLoader([{"latents": 0}], batch_size=None)))
        model(**inputs)
        with pytest.raises(CaptureError, match="the batch has keys latents"):
            sync.loss()
        gc.collect()
        assert [reference() for reference in seen] == [None] * 4
        next(iter(DataLoader([{"pixel_values": clip()}], batch_size=None)))
        model(**inputs)
        sync.loss().backward()
        assert set(sync.metrics()) >= {"crepa_loss", "layersync_loss"}


# The cut-off.
def run(sync: Attachment, model: nn.Module, steps: int) -> list[dict[str, float]]:
    told = []
    for _ in range(steps):
        model(toy_input())
        sync.loss()
        told.append({key: float(value) for key, value in sync.metrics().items()})
    return told


def test_a_cut_off_by_similarity_is_at_the_very_step_and_stops_the_capture() -> None:
    model = toy()
    more = {"crepa_similarity_threshold": -0.99, "crepa_similarity_ema_decay": 0.5}
    with attach(model, BACKBONE | more, adapter=TOY) as sync:
        assert sync.capture is not None
        assert sync.capture.enabled
        first, *others = run(sync, model, 3)
        assert (first["crepa_cutoff"], first["crepa_weight"], first["crepa_loss"]) == (1, 0, 0)
        assert others == [{}, {}]
        assert not sync.capture.enabled
        state = sync.state_dict()
    with attach(toy(), BACKBONE | more, adapter=TOY) as again:
        again.load_state_dict(state)
        assert again.capture is not None
        assert not again.capture.enabled, "what is off for good is off after resuming"


def test_a_recoverable_cut_off_goes_on_measuring() -> None:
    model = toy()
    more = {"crepa_similarity_threshold": -0.99, "crepa_threshold_mode": "recoverable"}
    with attach(model, BACKBONE | more, adapter=TOY) as sync:
        assert [told["crepa_cutoff"] for told in run(sync, model, 3)] == [1, 1, 1]


def test_after_the_cut_off_nothing_is_kept() -> None:
    model, x = toy(), toy_input()
    ends = {"crepa_cutoff_step": 1, "layersync_cutoff_step": 1}
    seen: list[Any] = []
    with attach(model, BACKBONE | settings() | ends, adapter=TOY) as sync:
        model(x)
        sync.loss()
        for block in model.blocks:
            block.register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output)))
        output = model(x)
        del output
        gc.collect()
        assert [reference() for reference in seen] == [None] * 4
        assert sync.metrics().keys() >= {"crepa_loss", "layersync_loss"}
        assert sync.loss() == 0


# Checkpoints.
def test_the_projector_is_trained_saved_and_restored() -> None:
    model, x = toy(), toy_input()
    with attach(model, BACKBONE | {"crepa_teacher_block_index": 2}, adapter=TOY) as sync:
        optimiser = torch.optim.AdamW([*model.parameters(), *sync.modules().parameters()])
        for _ in range(3):
            before = part(sync).linear.weight.detach().clone()
            sync.apply(model(x).square().mean()).backward()
            optimiser.step()
            assert not torch.equal(part(sync).linear.weight, before)
        state = copy.deepcopy(sync.state_dict())
    with attach(toy(), BACKBONE, adapter=TOY) as again:
        again.load_state_dict(state)
        for name, value in state["modules"]["crepa"].items():
            assert torch.equal(again.state_dict()["modules"]["crepa"][name], value)


def test_a_state_without_the_projector_or_with_another_is_refused() -> None:
    with attach(toy(), settings(), adapter=TOY) as sync:
        without = sync.state_dict()
    with attach(Toy(width=16), BACKBONE, adapter=TOY) as sync:
        other = sync.state_dict()
    with attach(toy(), BACKBONE, adapter=TOY) as sync:
        with pytest.raises(ConfigError, match=r"trainable parts \[\], this attachment has \['crepa'\]"):
            sync.load_state_dict(without)
        with pytest.raises(ConfigError, match=r"the state of crepa does not fit: .*size mismatch"):
            sync.load_state_dict(other)


def test_a_projector_that_no_optimiser_has_is_an_error() -> None:
    model, x = toy(), toy_input()
    optimiser = torch.optim.AdamW(model.parameters())
    with attach(model, BACKBONE, adapter=TOY) as sync:
        for _ in range(3):
            sync.apply(model(x).square().mean()).backward()
            optimiser.step()
        loss = model(x).square().mean()
        with pytest.raises(CaptureError, match="the trainable part of crepa gets gradients but is never updated"):
            sync.apply(loss)


def test_the_readme_has_every_key_and_its_default() -> None:
    from layersync_plugin_crepa.config import CrepaConfig

    readme = (Path(__file__).parents[1] / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(crepa_\w+)` \| (\S+)", readme, re.MULTILINE))
    fields = CrepaConfig.model_fields
    told = {key: default.strip("`") for key, default in rows.items() if key in fields}
    assert told.keys() == fields.keys()
    for key, field in fields.items():
        if field.default is not None:
            assert told[key] == str(field.default).lower(), key


def test_its_keys_are_read_without_torch() -> None:
    code = "import sys, layersync_plugin_crepa as it; it.layersync_config_models(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
