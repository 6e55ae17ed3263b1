"""What a training says, once each, and how its end is summed up."""

from __future__ import annotations

import signal
import subprocess
import warnings
from collections.abc import Callable

import pytest

from layersync_core.errors import CaptureError
from tests.models import build
from tests.run.inside import Launch, main_loss, sgd, train
from tests.run.processes import RUN, SUMMARY, Script, python, run


def test_an_error_that_the_program_catches_is_said_at_once_and_raised_again(
    launch: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch()
    model, inputs = build("dit")
    optimiser = sgd(model)
    for _ in range(3):
        (main_loss(model(**inputs)) / 3).backward()
        with pytest.raises(CaptureError, match="the loss is multiplied with"):
            optimiser.step()
    assert capsys.readouterr().err.count("layersync: error: the loss is multiplied with") == 1


def test_warnings_are_one_line_and_said_once(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    launch(layersync_teacher_block=None)
    model, inputs = build("dit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, inputs, sgd(model), 2)
    assert capsys.readouterr().err.count("layersync: warning: student and teacher are the same block") == 1


TRAIN_ON = """
import signal, sys, tiny_dit
signal.signal(signal.SIGINT, lambda number, frame: sys.exit())
model = tiny_dit.build()
tiny_dit.train(model)
print("ready", flush=True)
while True:
    tiny_dit.train(model)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_run_cut_short_is_summed_up(
    start: Callable[..., subprocess.Popen[str]], script: Script, number: signal.Signals, code: int
) -> None:
    process = start([*RUN, *python(script(TRAIN_ON))])
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert SUMMARY in err
    assert process.returncode == code


@pytest.mark.slow
def test_a_program_that_leaves_without_clearing_up_is_summed_up(script: Script) -> None:
    done = run([*RUN, *python(script("import os, tiny_dit; tiny_dit.train(tiny_dit.build(), 5); os._exit(0)"))])
    assert SUMMARY in done.stderr
