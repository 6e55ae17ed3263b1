"""From what a trainer holds to the model itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layersync_core import ConfigError, attach, resolve
from layersync_core.families.unwrap import unwrap
from tests import fakes
from tests.startup_cases import DIT, GOOD, instance

WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "DeepSpeedEngine": "module",
    "_FabricModule": "_forward_module",
}


def wrap(name: str, inner: nn.Module) -> nn.Module:
    return fakes.model(name, **{WRAPPERS[name]: inner})


@pytest.fixture
def model() -> nn.Module:
    return instance(DIT)


def test_a_bare_model_is_itself(model: nn.Module) -> None:
    assert unwrap(model) is model


@pytest.mark.parametrize("name", WRAPPERS)
def test_each_wrapper(name: str, model: nn.Module) -> None:
    assert unwrap(wrap(name, model)) is model
    assert resolve(wrap(name, model)).family == "dit"


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_subclass_of_a_wrapper(name: str, model: nn.Module) -> None:
    base = type(wrap(name, model))
    assert unwrap(fakes.model("Custom", base, **{WRAPPERS[name]: model})) is model


def test_several_around_each_other(model: nn.Module) -> None:
    wrapped = model
    for name in (*WRAPPERS, *reversed(WRAPPERS)):
        wrapped = wrap(name, wrapped)
    assert unwrap(wrapped) is model


def test_real_compile(model: nn.Module) -> None:
    compiled = torch.compile(model, backend="eager")
    assert unwrap(compiled) is model
    with attach(compiled, GOOD) as sync:
        assert sync.family == "dit"


def test_compile_in_place_does_not_wrap(model: nn.Module) -> None:
    model.compile(backend="eager")
    assert unwrap(model) is model


def test_an_orig_mod_that_points_to_itself() -> None:
    """One trainer sets it so; it must not go round for ever."""
    model = fakes.model("OptimizedModule")
    object.__setattr__(model, "_orig_mod", model)
    assert unwrap(model) is model


def test_an_attribute_of_that_name_on_the_model_itself(model: nn.Module) -> None:
    object.__setattr__(model, "_orig_mod", model)
    object.__setattr__(model, "module", nn.Linear(1, 1))
    assert unwrap(model) is model


def test_wrappers_in_a_circle_end() -> None:
    one, other = fakes.model("OptimizedModule"), fakes.model("DistributedDataParallel")
    object.__setattr__(one, "_orig_mod", other)
    object.__setattr__(other, "module", one)
    assert unwrap(one) in (one, other)


@pytest.mark.parametrize("kind", ["lora", "loha", "dora"])
def test_real_peft(model: nn.Module, kind: str) -> None:
    peft = pytest.importorskip("peft")
    settings = {"target_modules": ["to_q"], "r": 2}
    config = peft.LoHaConfig(**settings) if kind == "loha" else peft.LoraConfig(**settings, use_dora=kind == "dora")
    wrapped = peft.get_peft_model(model, config)
    assert unwrap(wrapped) is model
    assert unwrap(torch.compile(wrapped, backend="eager")) is model
    with attach(wrapped, GOOD) as sync:
        assert str(sync.student) == "block 2 of 6 (transformer_blocks.1)"


def test_a_fully_sharded_model_of_torch_2_has_another_class(model: nn.Module) -> None:
    """FSDP2 keeps the module and renames its class; the family is found along the bases."""
    sharded = type("FSDPDiTTransformer2DModel", (type("FSDPModule", (), {}), type(model)), {})
    model.__class__ = sharded
    assert unwrap(model) is model
    assert resolve(model).family == "dit"
    with attach(model, GOOD) as sync:
        assert sync.family == "dit"


def test_data_parallel_is_refused(model: nn.Module) -> None:
    for wrapped in (nn.DataParallel(model), fakes.model("DataParallel", module=model)):
        with pytest.raises(ConfigError, match="DistributedDataParallel"):
            attach(wrapped, GOOD)


def test_attaching_through_a_wrapper_and_to_the_model_is_the_same_attachment(model: nn.Module) -> None:
    with attach(wrap("DistributedDataParallel", model), GOOD), pytest.raises(ConfigError, match="attachment already"):
        attach(model, GOOD)


@pytest.mark.parametrize("thing", [None, "a path", {"_class_name": "DiTTransformer2DModel"}, object()])
def test_what_is_no_module_is_refused(thing: object) -> None:
    with pytest.raises(ConfigError, match="torch module"):
        attach(thing, GOOD)  # type: ignore[arg-type]
