"""Discovery on small models: shapes that no adapter has, ways of training, and what is asked or refused."""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

import gc
import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor, nn

from layersync_core import CaptureError, ConfigError, attach
from layersync_core.losses.parts import refuse_parts
from layersync_core.testing import seed_everything
from tests.discovery.models import IMAGE, D, Mix, Model, image_of, inputs
from tests.discovery.ranks import gradients

ON = {
    "layersync_enabled": True,
    "layersync_student_block": 2,
    "layersync_teacher_block": 4,
    "layersync_lambda": 1.0,
}
FORMS = ["registers", "dataclass", "mapping", "sequence", "plain"]


@contextmanager
def watched(model: Any) -> Any:
    """Collect what the student and the teacher return, by plain hooks."""
    seen: dict[int, Any] = {}
    blocks = [(index, model.blocks[index]) for index in (1, 3)]
    handles = [
        block.register_forward_hook(lambda module, args, output, index=index: seen.setdefault(index, output))
        for index, block in blocks
    ]
    yield seen
    for handle in handles:
        handle.remove()


def term_of(form: str, seen: Any, length: int = IMAGE, count: slice = slice(None)) -> Tensor:
    student, teacher = (image_of(form, seen[index], length)[:, count] for index in (1, 3))
    return -torch.cosine_similarity(student, teacher.detach(), dim=-1).mean()


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def assert_right(model: Any, sync: Any, given: Any, length: int = IMAGE, count: slice = slice(None)) -> None:
    """Compare the gradients of a step with those of plain hooks; the loss is of the counted tokens alone."""
    with watched(model) as seen:
        output = model(*given)
    main = (output[:, count] - 1).pow(2).mean()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    total = sync.apply(main)
    for weight in weights:
        weight.grad = None
    total.backward(retain_graph=True)
    got = [None if weight.grad is None else weight.grad.clone() for weight in weights]
    for weight in weights:
        weight.grad = None
    (main + term_of(model.form, seen, length, count)).backward()
    for mine, weight in zip(got, weights, strict=True):
        if weight.grad is not None:
            torch.testing.assert_close(mine, weight.grad)
        else:
            assert mine is None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reentrant", [None, False, True], ids=["plain", "checkpointed", "re-entrant"])
def test_every_form_of_block_in_calls_of_other_lengths(form: str, reentrant: bool | None) -> None:
    if reentrant and form in ("dataclass", "mapping"):
        pytest.skip("torch keeps no graph of what a re-entrant checkpoint returns in an object")
    seed_everything()
    model = Model(form, reentrant)
    sync = attach(model, ON, family="auto")
    assert_right(model, sync, inputs())
    assert_right(model, sync, inputs(3, image=9, text=7), length=9)
    assert_right(model, sync, inputs(3, image=5, text=5), length=5)
    assert [block.path for block in sync.blocks] == [f"blocks.{index}" for index in range(4)]
    sync.remove()
    assert not hooks_of(model)


def test_hooks_that_recorded_are_gone_and_nothing_is_held() -> None:
    model = Model("plain")
    sync = attach(model, ON, family="auto")
    with watched(model) as seen:
        total = sync.apply(model(*inputs()).mean())
    states = [ref(state) for state in seen.values()]
    seen.clear()
    total.backward()
    del total
    gc.collect()
    assert not any(state() is not None for state in states)
    assert hooks_of(model) < 12  # those of two blocks, of the first, the last and the model


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_a_head_at_zero_does_not_hide_the_tokens(reentrant: bool | None) -> None:
    seed_everything()
    model = Model("registers", reentrant)
    nn.init.zeros_(model.head.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sync = attach(model, ON, family="auto")
    given = inputs()
    with watched(model) as seen:
        output = model(*given)
    main = (output - 1).pow(2).mean()
    state = torch.get_rng_state()
    total = sync.apply(main)
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(total - main, term_of("registers", seen))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    total.backward()
    assert model.blocks[0].inner.weight.grad.any()


def test_references_that_the_loss_leaves_out_are_left_out_in_every_step() -> None:
    seed_everything()
    model = Model("dataclass")
    sync = attach(model, ON, family="auto")
    for count in (slice(4), slice(4), slice(2, None), slice(3)):
        assert_right(model, sync, inputs(), count=count)
    model = Model("dataclass")
    sync = attach(model, {**ON, "layersync_tokens": "all"}, family="auto")
    output = model(*inputs())
    with pytest.raises(CaptureError, match="layersync_tokens all"):
        sync.apply(output[:, :4].mean())


def test_references_that_come_later_are_noticed() -> None:
    seed_everything()
    model = Model("plain")
    sync = attach(model, ON, family="auto")
    assert_right(model, sync, inputs())
    assert_right(model, sync, inputs(image=9), length=9, count=slice(6))
    assert_right(model, sync, inputs(image=9), length=9, count=slice(3))


@pytest.mark.parametrize("form", ["registers", "sequence"])
def test_frozen_embedders(form: str) -> None:
    """As with LoRA: nothing before the first block gets a gradient."""
    seed_everything()
    model = Model(form)
    model.requires_grad_(False)
    model.blocks.requires_grad_(True)
    sync = attach(model, ON, family="auto")
    assert_right(model, sync, inputs())
    assert_right(model, sync, inputs(image=9), length=9)


def test_a_loss_of_two_streams_is_asked_about() -> None:
    model = Model("dataclass")
    sync = attach(model, ON, family="auto")
    image, text = model(*inputs(), other=True)
    with pytest.raises(ConfigError, match=r"several of the tensors .* element 'text' or element 'image'"):
        sync.apply(image.mean() + text.mean())
    assert not hooks_of(model)


def test_lists_in_turns_are_asked_about() -> None:
    model = Model("turns")
    sync = attach(model, ON, family="auto")
    output = model(*inputs(3))
    with pytest.raises(ConfigError, match=r"run in turns.*blocks or others"):
        sync.apply(output.mean())


def test_a_layer_in_pieces_before_the_blocks_is_no_list_of_blocks() -> None:
    """A feed-forward is a list as well; were it one of blocks, every number would be off by one."""
    seed_everything()
    model = Model("plain")
    model.embed = nn.Sequential(nn.Linear(2, D), Mix(), nn.Dropout(0.0))
    with attach(model, ON, family="auto") as sync:
        assert_right(model, sync, inputs())
        assert [block.path for block in sync.blocks] == [f"blocks.{index}" for index in range(4)]


class WithPositions(Model):
    def forward(self, sample: Tensor, text: Tensor, positions: list[Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(sample, text + sum(item.mean() for item in positions))


def test_arguments_without_an_axis_of_samples_do_not_turn_the_tokens(tmp_path: Path) -> None:
    seed_everything()
    model = WithPositions("plain")
    with attach(model, ON, family="auto") as sync:
        assert_right(model, sync, (*inputs(), [torch.randn(IMAGE, 3) for _ in range(5)]))
        sync.save_adapter(tmp_path / "found.json")
    (stack,) = json.loads((tmp_path / "found.json").read_text())["stacks"]
    assert not stack["sequence_first"]


def test_a_block_that_is_deeper_than_what_was_found_is_an_error() -> None:
    model = Model("plain")
    sync = attach(model, {**ON, "layersync_teacher_block": 9}, family="auto")
    with pytest.raises(ConfigError, match="could not find layer 9"):
        sync.apply(model(*inputs()).mean())


def test_a_loss_is_needed() -> None:
    model = Model("plain")
    sync = attach(model, ON, family="auto")
    model(*inputs())
    with pytest.raises(CaptureError, match=r"apply\(loss\)"):
        sync.loss()


@pytest.mark.parametrize("scale", [0.0, float("nan")])
def test_a_loss_that_shows_nothing_is_waited_for_and_then_an_error(scale: float, caplog: Any) -> None:
    model = Model("plain")
    sync = attach(model, ON, family="auto")
    main = model(*inputs()).mean() * scale
    assert sync.apply(main) is main
    assert "LayerSync waits for a later forward" in caplog.text
    assert_right(model, sync, inputs())
    model = Model("plain")
    sync = attach(model, ON, family="auto")
    for _ in range(7):
        sync.apply(model(*inputs()).mean() * scale)
    output = model(*inputs())
    with pytest.raises(CaptureError, match=r"in 8 forwards no gradient .* is scaled to zero or is not finite"):
        sync.apply(output.mean() * scale)


def test_other_forwards_are_left_alone() -> None:
    model = Model("plain")
    sync = attach(model, ON, family="auto")
    with torch.no_grad():
        model(*inputs())
    with sync.paused():
        model(*inputs())
    with pytest.raises(CaptureError, match="inside paused"):
        sync.apply(torch.zeros((), requires_grad=True) * 1)
    assert_right(model, sync, inputs())


@pytest.mark.parametrize("at", ["model", "block"])
def test_a_compiled_model_is_refused(at: str) -> None:
    model = Model("plain")
    (model if at == "model" else model.blocks[0]).compile(backend="eager")
    with pytest.raises(CaptureError, match=r"is compiled.*--save adapter\.json"):
        attach(model, ON, family="auto")


def test_a_sharded_model_is_refused() -> None:
    model = Model("plain")
    kind = type(model.blocks[0])
    model.blocks[0].__class__ = type("FSDPMix", (type("FSDPModule", (), {}), kind), {})
    with pytest.raises(CaptureError, match="sharded by FSDP"):
        attach(model, ON, family="auto")


def test_blocks_that_are_called_one_by_one_need_an_adapter() -> None:
    model = Model("plain")
    sync = attach(model, ON, family="auto")
    image = model.embed(inputs()[0])
    for block in model.blocks:
        image = block(image)
    with pytest.raises(CaptureError, match="did not run as a whole"):
        sync.apply(model.head(image).mean())


def test_two_ranks_of_ddp(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.discovery.ranks", str(tmp_path / "store")]
    ranks = [subprocess.Popen([*words, str(rank), str(tmp_path / f"{rank}.pt")]) for rank in range(2)]
    assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]
    torch.testing.assert_close(torch.load(tmp_path / "0.pt"), gradients(0, 1))
    torch.testing.assert_close(torch.load(tmp_path / "1.pt"), gradients(0, 1))


def test_a_file_of_a_model_whose_references_are_measured(tmp_path: Path) -> None:
    seed_everything()
    model, file = Model("dataclass"), str(tmp_path / "mine.json")
    with attach(model, ON, family="auto") as sync:
        assert_right(model, sync, inputs(), count=slice(4))
        sync.save_adapter(file)
    sync = attach(model, ON, family=file)
    assert_right(model, sync, inputs(), count=slice(4))
    assert_right(model, sync, inputs(image=9), length=9, count=slice(2, 7))
    model(*inputs())
    with pytest.raises(CaptureError, match="measured from the main loss, which was not passed"):
        sync.loss()


def test_parts_that_come_after_the_optimiser_are_refused() -> None:
    late = SimpleNamespace(item=SimpleNamespace(name="projector"), module=nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="projector brings a trainable part"):
        refuse_parts([late])
