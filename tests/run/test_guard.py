"""What the guard finds in an unmodified program ends it before the first optimiser step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_core.errors import CaptureError
from layersync_core.families.registry import load_tiny
from layersync_core.testing import scatter_weights
from tests.run.inside import Launch, main_loss, sgd, train
from tests.run.processes import RUN, SUMMARY, Script, python, run


def ltx_2(references: int) -> tuple[nn.Module, dict[str, Any]]:
    tiny: Any = load_tiny("ltx_video")
    torch.manual_seed(0)
    model: nn.Module = tiny.tiny_2()
    scatter_weights(model)
    return model, tiny.example_inputs(model, 2, references=references)


def test_references_that_stand_first_are_an_error_before_the_first_step(launch: Launch) -> None:
    launch()
    model, inputs = ltx_2(references=1)
    optimiser = sgd(model)
    video: Tensor = model(**inputs)[0]
    video[:, video.shape[1] // 2 :].square().mean().backward()
    with pytest.raises(CaptureError, match="wrong end of the sequence"):
        optimiser.step()
    with pytest.raises(CaptureError, match="wrong end of the sequence"):
        optimiser.step()


def test_audio_alone_is_an_error_before_the_first_step(launch: Launch) -> None:
    launch()
    model, inputs = ltx_2(references=0)
    optimiser = sgd(model)
    model(**inputs)[1].square().mean().backward()
    with pytest.raises(CaptureError, match="another stream and none of those"):
        optimiser.step()


def test_two_backwards_through_one_forward_are_judged_together(launch: Launch) -> None:
    training = launch()
    model, inputs = ltx_2(references=0)
    optimiser = sgd(model)
    output = model(**inputs)
    video, audio = output[0], output[1]
    audio.square().mean().backward(retain_graph=True)
    video.square().mean().backward()
    optimiser.step()
    assert training.journal.status.steps == 1


def test_a_warning_is_one_line_and_said_once(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    launch()
    model, inputs = ltx_2(references=0)
    optimiser = sgd(model)
    for _ in range(2):
        model(**inputs)[0][:, 8:].square().mean().backward()
        optimiser.step()
    lines = [line for line in capsys.readouterr().err.splitlines() if "does not see 8 of the 24 tokens" in line]
    assert len(lines) == 1
    assert lines[0].startswith("layersync: ")


def test_the_last_line_says_what_was_not_measured(launch: Launch) -> None:
    training = launch()
    model, inputs = ltx_2(references=0)
    optimiser = sgd(model)
    head: Any = model.get_submodule("proj_out")
    nn.init.zeros_(head.weight)
    train(model, inputs, optimiser, steps=10)
    training.journal.finish()
    assert "no gradient of the main loss arrived" in training.journal.status.blind
    assert main_loss(model(**inputs)).grad_fn is not None


REFERENCES_FIRST = """
import torch
from layersync_adapter_ltx_video import tiny

torch.manual_seed(0)
model = tiny.tiny_2()
with torch.no_grad():
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
inputs = tiny.example_inputs(model, 2, references=1)
optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(2):
    video = model(**inputs)[0]
    video[:, video.shape[1] // 2 :].square().mean().backward()
    optimiser.step()
    print("a step was taken")
"""


@pytest.mark.slow
def test_a_program_that_is_misread_ends_in_one_line_before_its_first_step(script: Script) -> None:
    done = run([*RUN, *python(script(REFERENCES_FIRST))], 2)
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("layersync: error: ")]
    assert "layersync_generated_tokens N" in line
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_key_that_says_which_tokens_are_generated_makes_it_right(script: Script) -> None:
    words = [*RUN[:-1], "--layersync_generated_tokens", "-24", "--", *python(script(REFERENCES_FIRST))]
    done = run(words)
    assert done.stdout == "a step was taken\n" * 2
    assert SUMMARY in done.stderr
