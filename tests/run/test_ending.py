"""Programs that end suddenly, fork, or lose their terminal are reported correctly, and run as without LayerSync."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from layersync_core.run import status
from tests.models import build
from tests.run.inside import Launch, sgd, train
from tests.run.processes import FLAGS, LAYERSYNC, SUMMARY, Script, python, run

TRAIN = """
import logging, os, sys, time
logging.basicConfig(stream=sys.stdout, level=logging.WARNING)
import torch, tiny_dit

def train(steps, model=tiny_dit.build()):
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4)
    x, t = tiny_dit.batch()
    for _ in range(steps):
        optimiser.zero_grad()
        model(x, t).square().mean().backward()
        optimiser.step()
        yield
"""

ENDS = {
    "os._exit": "list(train(10)); os._exit(3)",
    "exec": "list(train(10)); os.execvp('sh', ['sh', '-c', 'exit 3'])",
    "fork": """
for number, _ in enumerate(train(10)):
    if number == 4:
        child = os.fork()
        if not child:
            sys.exit(0)
        os.waitpid(child, 0)
sys.exit(3)
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_every_step_is_told_of_and_measured_once(script: Script, tmp_path: Path, end: str) -> None:
    words = [LAYERSYNC, "run", *FLAGS, "--layersync_status_dir", str(tmp_path), "--"]
    done = run([*words, *python(script(TRAIN + ENDS[end]))], 3)
    assert f"10 steps {SUMMARY}" in done.stderr
    assert done.stdout == "", "advice on the pair is not the program's output"
    rows = [json.loads(line) for line in (tmp_path / "layersync_metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 11))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["2>&-", "2>&1 >/dev/null | head -c 1 >/dev/null"])
def test_a_standard_error_that_is_gone_ends_no_training(script: Script, tmp_path: Path, how: str) -> None:
    path = script(TRAIN + "list(train(3)); open('trained', 'w').close()")
    command = " ".join([LAYERSYNC, "run", *FLAGS, "--", *python(path), how])
    run(["sh", "-c", command], 0, cwd=tmp_path)
    assert (tmp_path / "trained").exists()


def test_a_line_stands_above_the_bars_of_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, object]] = []
    bars = SimpleNamespace(write=lambda line, file: written.append((line, file)))
    monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=bars))  # type: ignore[arg-type]
    status.say("a line")
    assert written == [("layersync: a line", sys.stderr)]


@pytest.mark.parametrize("stream", [None, "closed"])
def test_a_line_without_a_terminal_is_dropped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stream: object) -> None:
    if stream is not None:
        stream = (tmp_path / "closed").open("w")
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    status.say("nobody reads this")


def test_what_is_logged_is_a_line_of_ours(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    launch()
    logging.getLogger("layersync_core.losses.layersync").warning("advice on the pair")
    assert capsys.readouterr().err == "layersync: advice on the pair\n"


def test_figures_are_means_of_steps(launch: Launch) -> None:
    training = launch(layersync_accumulation_steps=2)
    model, inputs = build("dit")
    optimiser = sgd(model)
    for _ in range(2):
        train(model, inputs, optimiser)
    (record,) = [course.record(wait=True) for course in training.courses.all]
    assert record.first == pytest.approx(training.journal.log.first.wait())
    assert (record.terms, record.steps) == (2, 2)


def test_a_target_that_matches_nothing_is_said_to(launch: Launch) -> None:
    training = launch(layersync_target="Nope")
    model, inputs = build("dit")
    with pytest.raises(Exception, match="layersync_target Nope matches no model of this program; DiT"):
        train(model, inputs, sgd(model))
    assert training.journal.status.error
