"""Errors of the program are shown as without us, and ours in one line."""

from __future__ import annotations

import sys

import pytest

from layersync_core.errors import LayerSyncError
from tests.run.inside import Launch
from tests.run.processes import RUN, Script, python, run, without_ours


def test_an_error_of_ours_is_one_line(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    launch()
    sys.excepthook(LayerSyncError, LayerSyncError("told in\none line"), None)
    assert capsys.readouterr().err == "layersync: error: told in one line\n"


RAISE = """
import torch, tiny_dit

def outer():
    try:
        tiny_dit.train(tiny_dit.build())
        1 / 0
    except ZeroDivisionError as error:
        raise ValueError("in the script: été") from error

outer()
"""


@pytest.mark.slow
def test_an_error_of_the_script_is_shown_as_without_us(script: Script) -> None:
    words = python(script(RAISE))
    plain, ours = run(words, 1), run([*RUN, *words], 1)
    assert without_ours(ours.stderr) == plain.stderr
    assert plain.stderr.startswith("Traceback")
    assert plain.stderr.endswith("ValueError: in the script: été\n")


RAISE_INSIDE = """
import traceback, torch, tiny_dit

def fail(*_):
    raise RuntimeError("of the program")

model = tiny_dit.build()
tiny_dit.train(model)
optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
for call in (
    lambda: model(torch.ones(1, 2, 8, 8), torch.ones(1)),
    lambda: tiny_dit.DiT(depth=None),
):
    try:
        call()
    except Exception:
        print(traceback.format_exc())
"""


@pytest.mark.slow
def test_errors_inside_torch_show_nothing_of_ours(script: Script) -> None:
    done = run([*RUN, *python(script(RAISE_INSIDE))])
    assert done.stdout.count("Traceback") == 2
    assert "layersync_core" not in done.stdout


# In a call of ours that the program waits for, its errors pass through a frame of ours, which is not shown.
RAISE_IN_CALL = """
import torch, tiny_dit

def fail(*_):
    raise RuntimeError("of the program")

tiny_dit.train(tiny_dit.build())
parameter = torch.ones(1, requires_grad=True)
"""
CALLS = {
    "backward": "parameter.register_hook(fail); parameter.sum().backward()",
    "closure": "torch.optim.SGD([parameter], lr=0.1).step(fail)",
}


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_error_in_a_call_of_ours_is_shown_as_without_us(script: Script, call: str) -> None:
    words = python(script(RAISE_IN_CALL + call))
    plain, ours = run(words, 1), run([*RUN, *words], 1)
    assert without_ours(ours.stderr) == plain.stderr
