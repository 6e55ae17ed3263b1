"""Classes where no adapter is, trained with ``family="auto"``."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

from layersync_core import ConfigError, UnknownFamilyError, UnsupportedFamilyError, attach
from layersync_core.capture.graph import tensors_in
from layersync_core.families.discovered import adapter_named
from tests.discovery.classes import UNKNOWN, Unknown
from tests.discovery.gradients import backward_as_with_plain_hooks, settings

pytestmark = pytest.mark.usefixtures("unknown_classes")


def hooks_of(model: Any) -> list[Any]:
    return [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]


@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")  # Mochi asks for one in fp32
@pytest.mark.parametrize("unknown", UNKNOWN, ids=lambda unknown: unknown.kind)
def test_five_steps_have_the_gradient_that_plain_hooks_give(unknown: Unknown) -> None:
    model = unknown.build()
    sync = attach(model, settings(model, unknown), family="auto")
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(5):
        backward_as_with_plain_hooks(sync, model, unknown)
        optimiser.step()
    assert sync.family == "auto"
    sync.remove()
    assert not hooks_of(model)


def test_an_unknown_class_is_refused_with_the_offer() -> None:
    model = UNKNOWN[0].build()
    with pytest.raises(UnknownFamilyError, match="give the family auto"):
        attach(model, settings(model, UNKNOWN[0]))


def test_what_was_found_is_saved_and_used_from_the_first_step(tmp_path: Any) -> None:
    unknown = next(item for item in UNKNOWN if item.kind.startswith("Krea2"))
    model = unknown.build()
    inputs, file = unknown.inputs(), tmp_path / "krea2.json"
    sync = attach(model, settings(model, unknown), family="auto")
    with pytest.raises(ConfigError, match="nothing was discovered"):
        sync.save_adapter(file)
    found = sync.apply(tensors_in(model(**inputs))[0].mean())
    sync.save_adapter(file)
    sync.remove()
    with attach(model, settings(model, unknown), family=str(file)) as again:
        assert [block.path for block in again.blocks] == [f"transformer_blocks.{index}" for index in range(4)]
        torch.testing.assert_close(again.apply(tensors_in(model(**inputs))[0].mean()), found)


@pytest.mark.parametrize("text", ["{}", '{"layersync_adapter": 1, "stacks": 3}', "no JSON", '{"layersync_adapter": 1}'])
def test_a_file_that_is_no_adapter_is_refused(tmp_path: Any, text: str) -> None:
    file = tmp_path / "adapter.json"
    file.write_text(text)
    model = UNKNOWN[0].build()
    with pytest.raises(ConfigError, match=r"adapter\.json"):
        attach(model, settings(model, UNKNOWN[0]), family=str(file))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"depth": 0}, "depth: input should be greater than 0"),
        ({"offset": -1}, "offset: input should be greater than or equal to 0"),
        ({"latents": {"argument": "x", "axes": "BXYZ", "patch": [1, 2, 2]}}, "latents.axes: input should be 'BCHW'"),
        (
            {"latents": {"argument": "x", "axes": "BCHW", "patch": [1, 0, 2]}},
            "latents.patch.1: input should be greater",
        ),
    ],
)
def test_numbers_of_a_file_that_cannot_be_are_named(tmp_path: Any, change: dict[str, Any], told: str) -> None:
    stack: dict[str, Any] = {"path": "blocks", "depth": 4, "width": None}
    content: dict[str, Any] = {"layersync_adapter": 1, "model_class": "X", "stacks": [stack]}
    (stack if change.keys() <= {"depth", "offset"} else content).update(change)
    file = tmp_path / "adapter.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=re.escape(told)):
        adapter_named(str(file))


def test_refused_families_stay_refused_and_known_ones_use_their_adapter() -> None:
    from diffusers import Lumina2Transformer2DModel

    from layersync_core import load_tiny

    with torch.device("meta"):
        refused = Lumina2Transformer2DModel(num_layers=2)
    on = {"layersync_enabled": True, "layersync_student_block": 1, "layersync_teacher_block": 2}
    with pytest.raises(UnsupportedFamilyError, match="Lumina 2"):
        attach(refused, on, family="auto")
    with attach(load_tiny("wan").tiny_model(), on, family="auto") as sync:
        assert sync.family == "wan"
