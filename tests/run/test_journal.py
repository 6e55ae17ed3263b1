"""What a training says, once each, and how its end is summed up."""

from __future__ import annotations

import signal
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from layersync_core.errors import CaptureError
from layersync_core.run.journal import Journal
from layersync_core.run.status import read_all
from tests.models import build
from tests.run.inside import Launch, attach_lora, main_loss, sgd, train
from tests.run.processes import RUN, SUMMARY, Script, python, run


def test_an_error_that_the_program_catches_is_said_at_once_and_raised_again(
    launch: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch()
    model, inputs = build("dit")
    optimiser = sgd(model)
    for _ in range(3):
        (main_loss(model(**inputs)) / 3).backward()
        with pytest.raises(CaptureError, match="the loss is multiplied by"):
            optimiser.step()
    assert capsys.readouterr().err.count("layersync: error: the loss is multiplied by") == 1


def test_warnings_are_one_line_and_said_once(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    launch(layersync_teacher_block=None)
    model, inputs = build("dit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, inputs, sgd(model), 2)
    assert capsys.readouterr().err.count("layersync: warning: student and teacher are the same block") == 1


def test_a_warning_at_the_first_term_is_one_line_as_well(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    launch(layersync_lambda=None)
    model, inputs = build("wan")
    optimiser = torch.optim.SGD([attach_lora(model)], lr=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, inputs, optimiser, 2)
    assert capsys.readouterr().err.count("layersync: warning: only adapter weights train") == 1


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], Journal]:
    """Return a journal that does nothing at the end of this process."""
    monkeypatch.setattr("atexit.register", lambda function: None)
    return lambda folder: Journal(folder, lambda: ["Last"])


def test_the_status_is_written_early_and_then_rarely(
    journal: Callable[[str | None], Journal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, seen = 100.0, []
    monkeypatch.setattr("layersync_core.run.journal.time", SimpleNamespace(monotonic=lambda: now))
    journal_of = journal(str(tmp_path))
    for now, terms in ((101, 1), (102, 2), (103, 3), (106, 4), (108, 5), (109, 6)):  # noqa: B007
        journal_of.status.terms = terms
        journal_of.write_now_and_then()
        seen.append(read_all(tmp_path)[0].terms)
    assert seen == [1, 2, 2, 2, 5, 5]


@pytest.mark.parametrize(
    ("terms", "error", "rank", "said"), [(2, "", "0", 1), (0, "", "0", 0), (2, "wrong", "0", 0), (2, "", "1", 0)]
)
def test_a_process_without_a_parent_sums_itself_up(
    journal: Callable[[str | None], Journal],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terms: int,
    error: str,
    rank: str,
    said: int,
) -> None:
    monkeypatch.setenv("RANK", rank)
    alone = journal(None)
    alone.status.terms, alone.status.error = terms, error
    alone.finish()
    assert capsys.readouterr().err.count("2 losses with the term") == said


def test_a_process_with_a_parent_leaves_the_summary_to_it(
    journal: Callable[[str | None], Journal], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_parent = journal(str(tmp_path))
    with_parent.seen["Prepared"] = None
    with_parent.finish()
    assert read_all(tmp_path)[0].seen == ["Prepared", "Last"]
    with_parent.status.terms = 2
    with_parent.finish()
    assert read_all(tmp_path)[0].terms == 2
    assert capsys.readouterr().err == ""


TRAIN_ON = """
import signal, sys, torch, tiny_dit
signal.signal(signal.SIGINT, lambda number, frame: sys.exit())
model = tiny_dit.build()
optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(10**9):
    tiny_dit.loss_of(model, *tiny_dit.batch()).backward()
    optimiser.step()
    if step == 3:
        print("ready", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_run_cut_short_is_summed_up(
    start: Callable[..., subprocess.Popen[str]], script: Script, number: signal.Signals, code: int
) -> None:
    process = start([*RUN, *python(script(TRAIN_ON))])
    process.send_signal(number)
    _, err = process.communicate(timeout=240)
    assert SUMMARY in err
    assert process.returncode == code


@pytest.mark.slow
def test_a_program_that_leaves_without_clearing_up_is_summed_up(script: Script) -> None:
    done = run([*RUN, *python(script("import os, tiny_dit; tiny_dit.train(tiny_dit.build(), 5); os._exit(0)"))])
    assert SUMMARY in done.stderr
