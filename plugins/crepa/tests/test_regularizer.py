# Shapes: B batch, T frames, P tokens per frame, C channels, H rows, W columns, N patch tokens, D channels
"""CREPA on models: the term and its gradients, beside LayerSync, the cut-off, and checkpoints."""

from __future__ import annotations

import copy
import gc
import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from layersync_core import Attachment, CaptureError, ConfigError, attach, load_tiny
from layersync_plugin_crepa import crepa_loss, regularizer
from layersync_plugin_crepa.loss import frame_scores
from plugins.crepa.tests.support import BACKBONE, GRID, by_frame, clip, encoding, part
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


def test_an_image_is_a_clip_of_one_frame() -> None:
    model, x = toy(), toy_input()
    with attach(model, BACKBONE | {"crepa_adjacent_distance": 4}, adapter=TOY) as sync:
        model(x)
        sync.loss()
        metrics = sync.metrics()
    torch.testing.assert_close(metrics["crepa_alignment_score"], metrics["crepa_similarity_self"])


@pytest.mark.parametrize("spatial_align", [True, False])
def test_reference_tokens_do_not_count(spatial_align: bool) -> None:
    model, inputs = build("flux references")
    keep = inputs["img_ids"][:, 0] == 0
    more = {"crepa_teacher_block_index": 3, "crepa_spatial_align": spatial_align}
    with attach(model, BACKBONE | more) as sync:
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
        assert not sync.due


class Waits(TorchDispatchMode):
    """Counts operations that make the host wait for a device."""

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
    # On CPU a permanent cut-off is read at once, since that costs nothing there.
    config |= {"crepa_similarity_threshold": 0.9, "crepa_threshold_mode": "recoverable"}
    calls = []
    with attach(model, config) as sync:
        for _ in range(3):
            for _ in DataLoader([{"pixel_values": it} for it in clip()], batch_size=2):
                loss = model(**inputs).sample.square().mean()
                with Waits() as counting:
                    sync.apply(loss).backward()
                    sync.metrics()
                calls.append([counting.calls[name] for name in Waits.NAMES])
    # The first step loads the encoder.
    assert calls[1:] == [[0] * 5] * (len(calls) - 1)
    assert len(calls) > 2


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
        assert sync.due
        first, *others = run(sync, model, 3)
        assert (first["crepa_cutoff"], first["crepa_weight"], first["crepa_loss"]) == (1, 0, 0)
        assert others == [{}, {}]
        assert not sync.due
        state = sync.state_dict()
    with attach(toy(), BACKBONE | more, adapter=TOY) as again:
        again.load_state_dict(state)
        assert not again.due, "what is off for good is off after resuming"


@pytest.mark.parametrize("ratio", [0.99, 1.01])
def test_a_cut_off_is_judged_by_the_score_with_its_neighbours(ratio: float) -> None:
    def once(**more: Any) -> dict[str, float]:
        model, inputs = build("wan")
        torch.manual_seed(1)
        with attach(model, BACKBONE | {"crepa_normalize_by_frames": False} | more) as sync:
            torch.nn.init.eye_(part(sync).linear.weight)
            torch.nn.init.zeros_(part(sync).linear.bias)
            model(**inputs)
            sync.loss()
            return {key: float(value) for key, value in sync.metrics().items()}

    told = once()
    assert told["crepa_alignment_score"] == pytest.approx(-told["crepa_loss"] / 0.5 / GRID[0], rel=1e-5)
    assert told["crepa_alignment_score"] > 1 > told["crepa_similarity_self"]
    found = once(crepa_similarity_threshold=ratio * told["crepa_alignment_score"])
    assert found["crepa_cutoff"] == (ratio < 1)


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
