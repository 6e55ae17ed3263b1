"""Which models are trained with LayerSync: when they are found, and which are refused or ambiguous."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from layersync_core.errors import CaptureError, ConfigError, UnsupportedFamilyError
from layersync_core.run import patches
from tests.fakes import model as fake_model
from tests.models import assert_same_gradients, build, gradients, gradients_by_autograd
from tests.run.inside import Launch, by_hand, main_loss, sgd
from tests.run.processes import RUN, Script, python, run


def test_experts_of_one_family_are_all_targets(launch: Launch) -> None:
    training = launch()
    (first, inputs), (second, _) = build("dit"), build("dit")
    untouched = copy.deepcopy(second)
    optimiser = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0)
    for model in (first, second):
        main_loss(model(**inputs)).backward()
        optimiser.step()
    assert_same_gradients(gradients(second), gradients_by_autograd(by_hand(untouched, inputs), untouched))
    assert [line.split(" ")[0] for line in training.journal.status.targets] == [
        "DiTTransformer2DModel#1",
        "DiTTransformer2DModel#2",
    ]


def test_models_of_two_families_in_one_loss_are_ambiguous(launch: Launch) -> None:
    launch()
    (dit, dit_inputs), (wan, wan_inputs) = build("dit"), build("wan")
    torch.optim.SGD([*dit.parameters(), *wan.parameters()], lr=0)
    with pytest.raises(ConfigError, match=r"DiTTransformer2DModel#1 \(dit\), WanTransformer3DModel#1 \(wan\)") as error:
        (main_loss(dit(**dit_inputs)) + main_loss(wan(**wan_inputs))).backward()
    assert "--layersync_target" in str(error.value)


@pytest.mark.parametrize("target", ["WanTransformer3DModel", "WanTransformer3DModel#1"])
def test_a_named_target_is_the_only_one(launch: Launch, target: str) -> None:
    training = launch(layersync_target=target)
    (dit, dit_inputs), (wan, wan_inputs) = build("dit"), build("wan")
    untouched = copy.deepcopy(wan)
    optimiser = torch.optim.SGD([*dit.parameters(), *wan.parameters()], lr=0)
    (main_loss(dit(**dit_inputs)) + main_loss(wan(**wan_inputs))).backward()
    optimiser.step()
    assert_same_gradients(gradients(wan), gradients_by_autograd(by_hand(untouched, wan_inputs), untouched))
    assert len(training.journal.status.targets) == 1


def test_a_target_that_is_not_there(launch: Launch) -> None:
    launch(layersync_target="FluxTransformer2DModel")
    model, inputs = build("dit")
    optimiser = sgd(model)
    main_loss(model(**inputs)).backward()
    with pytest.raises(CaptureError, match="DiTTransformer2DModel#1: not layersync_target FluxTransformer2DModel"):
        optimiser.step()


def test_a_family_that_is_named_tells_which_models_are_meant(launch: Launch) -> None:
    training = launch(layersync_family="dit")
    (dit, inputs), (wan, _) = build("dit"), build("wan")
    untouched = copy.deepcopy(dit)
    optimiser = torch.optim.SGD([*dit.parameters(), *wan.parameters()], lr=0)
    main_loss(dit(**inputs)).backward()
    optimiser.step()
    assert_same_gradients(gradients(dit), gradients_by_autograd(by_hand(untouched, inputs), untouched))
    assert {candidate.name for candidate in training.candidates.attached} == {"DiTTransformer2DModel"}


def test_a_family_that_no_model_is_of(launch: Launch) -> None:
    launch(layersync_family="flux")
    model, inputs = build("dit")
    optimiser = sgd(model)
    main_loss(model(**inputs)).backward()
    with pytest.raises(
        CaptureError, match="DiTTransformer2DModel#1: DiTTransformer2DModel isn't a model of family flux"
    ):
        optimiser.step()


def test_a_model_of_no_family_is_named(launch: Launch) -> None:
    launch()
    model = nn.Sequential(nn.Linear(3, 300_000))  # larger than anything that other tests may have left in this process
    optimiser = sgd(model)
    model(torch.randn(2, 3)).mean().backward()
    with pytest.raises(CaptureError, match=r"no model of a known family was built; models of this program: .*Seq"):
        optimiser.step()


def test_a_refused_family_is_refused_when_the_optimiser_is_made(launch: Launch) -> None:
    launch()
    model = fake_model("Lumina2Transformer2DModel", weights=nn.Linear(2, 2))
    with pytest.raises(UnsupportedFamilyError, match="Lumina 2"):
        sgd(model)


def test_a_refused_model_beside_the_trained_one_is_no_error(launch: Launch) -> None:
    launch()
    fake = fake_model("Lumina2Transformer2DModel", weights=nn.Linear(2, 2))
    model, inputs = build("dit")
    optimiser = sgd(model)
    main_loss(model(**inputs)).backward()
    optimiser.step()
    assert fake is not None


def test_a_block_deeper_than_the_model_is_refused_when_the_optimiser_is_made(launch: Launch) -> None:
    training = launch(layersync_teacher_block=99)
    model, _ = build("dit")
    with pytest.raises(ConfigError, match="LayerSync could not find layer 99"):
        sgd(model)
    assert "could not find layer 99" in training.journal.status.error


def test_a_model_that_is_built_and_used_without_any_sign_before_its_forward(launch: Launch) -> None:
    launch()
    model, inputs = build("dit")
    untouched = copy.deepcopy(model)
    main_loss(model(**inputs)).backward()
    assert_same_gradients(gradients(model), gradients_by_autograd(by_hand(untouched, inputs), untouched))


def test_a_forward_without_gradients_is_no_sign_of_a_training(launch: Launch) -> None:
    training = launch()
    model, inputs = build("dit")
    with torch.no_grad():
        model(**inputs)
    assert not training.candidates.attached
    model(**inputs)
    assert [str(candidate) for candidate in training.candidates.attached] == ["DiTTransformer2DModel#1"]


def test_an_optimiser_that_is_made_after_the_forward(launch: Launch) -> None:
    launch()
    model, inputs = build("dit")
    untouched = copy.deepcopy(model)
    loss = main_loss(model(**inputs))
    optimiser = sgd(model)
    loss.backward()
    optimiser.step()
    assert_same_gradients(gradients(model), gradients_by_autograd(by_hand(untouched, inputs), untouched))


def test_models_from_before_the_start_are_found(launch: Launch) -> None:
    model, inputs = build("dit")
    untouched = copy.deepcopy(model)
    optimiser = sgd(model)
    training = launch()
    patches.adopt()
    main_loss(model(**inputs)).backward()
    optimiser.step()
    assert_same_gradients(gradients(model), gradients_by_autograd(by_hand(untouched, inputs), untouched))
    assert training.journal.status.terms == 1


STRANGE = """
import tiny_dit
class OfMyOwn(tiny_dit.DiT):
    pass
OfMyOwn.__mro__[1].__name__ = "Base"
model = OfMyOwn()
before = [parameter.clone() for parameter in model.parameters()]
try:
    tiny_dit.train(model)
finally:
    print(all(map(lambda a, b: (a == b).all(), before, model.parameters())))
"""


@pytest.mark.slow
def test_a_model_of_no_known_family_is_named(script: Script) -> None:
    done = run([*RUN, *python(script(STRANGE))], 2)
    assert "no model of a known family was built; models of this program: OfMyOwn" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == "True\n"  # it stopped before the first step
