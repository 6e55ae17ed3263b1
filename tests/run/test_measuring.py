"""``layersync run --layersync_suggest N``: a program's own forwards are measured, and it stops."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from layersync_core import attach
from layersync_core.errors import CaptureError, ConfigError
from layersync_core.run import patches
from layersync_core.run.settings import read
from tests.models import build
from tests.run.inside import Launch, main_loss, sgd, train
from tests.run.processes import LAYERSYNC, RUN, SCRIPTS, Done, Script, python, run
from tests.run.test_ranks import TORCHRUN, TWO_RANKS
from tests.scripts import tiny_dit

SUGGEST = [LAYERSYNC, "run", "--layersync_suggest"]
LOOP = """
import sys
sys.path.insert(0, {scripts!r})
import torch
from tiny_dit import batch, build, loss_of

model = build()
optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range({steps}):
    with torch.no_grad():
        loss_of(model, *batch(4, seed=99))  # validation
    loss = loss_of(model, *batch(4, seed=step))
    loss.backward()
    print(step, loss.item())
    {end}
"""


def loop(steps: int, end: str = "optimiser.step(); optimiser.zero_grad()") -> str:
    return LOOP.format(scripts=str(SCRIPTS), steps=steps, end=end)


def content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "suggest.json").read_text())
    return found


def expected(steps: int) -> tuple[dict[str, Any], list[str]]:
    """Return what a probe measures in the same loop, and what the program prints without us."""
    model = tiny_dit.build()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    printed = []
    with attach(model, {"layersync_enabled": False}).probe() as probe:
        for step in range(steps):
            loss = tiny_dit.loss_of(model, *tiny_dit.batch(4, seed=step))
            loss.backward()
            printed.append(f"{step} {loss.item()}")
            optimiser.step()
            optimiser.zero_grad()
    return json.loads(json.dumps(probe.findings().content())), printed


@pytest.mark.parametrize("switched", [[], RUN[2:-1]], ids=["alone", "with the term's settings"])
def test_a_program_is_measured_without_the_term_and_stopped(
    switched: list[str], script: Script, tmp_path: Path
) -> None:
    done = run([*SUGGEST, "3", *switched, "--", script(loop(1000))], cwd=tmp_path)
    found, printed = expected(3)
    assert content(tmp_path / "layersync-suggest") == found
    assert done.stdout.splitlines() == printed
    told = done.stderr.splitlines()
    assert told[0] == (
        "layersync: measuring DiT#1 (family dit, 6 blocks) for 3 steps without the term, then the program is stopped"
    )
    assert told[1].startswith("layersync: DiT: 6 blocks, 3 forwards, noise levels ")
    assert any("does it favour LayerSync?" in line for line in told)
    assert "suggest.json, suggest.html" in told[-1]
    assert all(line.startswith("layersync: ") for line in told)


def test_in_the_same_process(script: Script, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "layersync_core", "run", "--layersync_suggest", "2", script(loop(9))]
    done = run(words, cwd=tmp_path)
    assert content(tmp_path / "layersync-suggest") == expected(2)[0]
    assert len(done.stdout.splitlines()) == 2


def test_a_program_that_ends_earlier(script: Script, tmp_path: Path) -> None:
    done = run([*SUGGEST, "50", "--layersync_suggest_dir", "out", "--", script(loop(2))], cwd=tmp_path)
    assert content(tmp_path / "out") == expected(2)[0]
    assert "layersync: the program ended after 2 of 50 steps\n" in done.stderr


def test_a_program_that_fails_keeps_its_exit_code_and_what_was_measured(script: Script, tmp_path: Path) -> None:
    text = loop(2) + "raise RuntimeError('its own')\n"
    done = run([*SUGGEST, "5", "--", script(text)], code=1, cwd=tmp_path)
    assert "RuntimeError: its own" in done.stderr
    assert content(tmp_path / "layersync-suggest")["forwards"] == 2


@pytest.mark.parametrize(("given", "forwards"), [(["--layersync_accumulation_steps", "2"], 6), ([], 100)])
def test_a_program_that_never_steps_an_optimiser(
    given: list[str], forwards: int, script: Script, tmp_path: Path
) -> None:
    by_hand = "[p.data.sub_(0.01 * p.grad) for p in model.parameters()]; model.zero_grad()"
    done = run([*SUGGEST, "3", *given, "--", script(loop(1000, by_hand))], cwd=tmp_path)
    assert content(tmp_path / "layersync-suggest")["forwards"] == forwards
    assert len(done.stdout.splitlines()) == forwards - 1  # it was stopped in the last backward


def test_a_program_that_catches_everything(script: Script, tmp_path: Path) -> None:
    end = "\n    try:\n        optimiser.step()\n    except BaseException as error:\n        print(repr(error))"
    done = run([*SUGGEST, "2", "--", script(loop(4, end))], cwd=tmp_path)
    assert done.stdout.count("SystemExit(0)") == 3
    assert content(tmp_path / "layersync-suggest")["forwards"] == 2
    assert done.stderr.count("does it favour LayerSync?") == 1
    assert done.stderr.count("the program caught the end of the measurement and goes on") == 1


@pytest.mark.slow
def test_of_several_ranks_the_first_tells(tmp_path: Path) -> None:
    done = run([*SUGGEST, "1", "--", *TORCHRUN, TWO_RANKS, "env", str(tmp_path / "gradients.pt")], cwd=tmp_path)
    assert done.stderr.count("does it favour LayerSync?") == 1
    assert content(tmp_path / "layersync-suggest")["forwards"] == 1


@pytest.mark.parametrize("how", ["signal", "raised"])
def test_an_interrupt_stays_one(how: str, script: Script, tmp_path: Path) -> None:
    end = (
        "optimiser.step()\n    if step == 3: "
        + {
            "signal": "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
            "raised": "raise KeyboardInterrupt",
        }[how]
    )
    plain = run(python(script(loop(9, end))), code=None)
    done = run([*SUGGEST, "50", "--", script(loop(9, end))], code=None, cwd=tmp_path)
    assert done.returncode == plain.returncode != 0
    assert content(tmp_path / "layersync-suggest")["forwards"] == 4


# Nothing to measure.


def refused(words: list[str], where: Path) -> Done:
    done = run(words, code=2, cwd=where)
    assert "Traceback" not in done.stderr
    return done


def test_a_program_without_a_known_model_is_told(script: Script, tmp_path: Path) -> None:
    text = """
import torch

model = torch.nn.Linear(2, 2)
optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(20):
    model(torch.ones(2)).sum().backward()
    optimiser.step()
"""
    done = refused([*SUGGEST, "5", "--", script(text)], tmp_path)
    assert "no forward was measured in 10 steps: no model of a known family was built" in done.stderr


@pytest.mark.parametrize("steps", [3, 20])
def test_forwards_without_gradients_are_none(steps: int, script: Script, tmp_path: Path) -> None:
    text = loop(steps).replace("loss = loss_of", "with torch.no_grad(): loss = loss_of")
    text = text.replace("loss.backward()", "model.final_layer.weight.sum().backward()")
    done = refused([*SUGGEST, "5", "--", script(text)], tmp_path)
    assert done.stderr.count("no forward was measured") == 1
    assert "DiT#1: the last forward ran under torch.no_grad()" in done.stderr
    assert not (tmp_path / "layersync-suggest").exists()


def test_a_model_that_never_runs_is_told(script: Script, tmp_path: Path) -> None:
    text = loop(20).replace("loss = loss_of(model, *batch(4, seed=step))", "loss = model.final_layer.weight.sum()")
    done = refused([*SUGGEST, "5", "--", script(text.replace("loss_of(model, *batch(4, seed=99))", "pass"))], tmp_path)
    assert "no forward was measured in 10 steps: DiT#1: it has not run since" in done.stderr


def test_a_folder_that_cannot_be_made_is_told_before_the_first_step(script: Script, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = refused([*SUGGEST, "5", "--layersync_suggest_dir", "file", "--", script(loop(9))], tmp_path)
    assert f"folder {tmp_path / 'file'} cannot be made: File exists" in done.stderr
    assert not done.stdout


def test_weights_that_are_not_finite(script: Script, tmp_path: Path) -> None:
    text = loop(9).replace("model = build()", "model = build(); model.blocks[0].linear.weight.data.fill_(torch.nan)")
    done = refused([*SUGGEST, "2", "--", script(text)], tmp_path)
    assert "returned hidden states that are not finite" in done.stderr


def test_settings_that_would_do_nothing() -> None:
    with pytest.raises(ConfigError, match="layersync_suggest_dir given without layersync_suggest"):
        read({"layersync_enabled": False, "layersync_suggest_dir": "x"})
    for wrong in (0, -1, True, "many"):
        with pytest.raises(ConfigError, match="layersync_suggest is"):
            read({"layersync_suggest": wrong})


# Kinds of programs, in this process.


def measured(folder: Path, train_on: Callable[[], object]) -> dict[str, Any]:
    """Run a program that would never end, and return what was measured."""
    with pytest.raises(SystemExit) as end:
        train_on()
    assert end.value.code == 0
    return content(folder)


def test_accelerate_and_accumulation(launch: Launch, tmp_path: Path) -> None:
    launch(layersync_suggest=2, layersync_suggest_dir=str(tmp_path))
    model, inputs = build("flux")
    accelerator = Accelerator(gradient_accumulation_steps=3, cpu=True)
    wrapped, optimiser = accelerator.prepare(model, sgd(model))

    def program() -> None:
        while True:
            with accelerator.accumulate(wrapped):
                accelerator.backward(main_loss(wrapped(**inputs)))
                optimiser.step()

    assert measured(tmp_path, program)["forwards"] == 6


def test_a_scaler_whose_first_steps_overflow(launch: Launch, tmp_path: Path) -> None:
    launch(layersync_suggest=2, layersync_suggest_dir=str(tmp_path))
    model, inputs = build("dit")
    optimiser, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=2.0)

    def program() -> None:
        for step in count():
            scaler.scale(main_loss(model(**inputs)) * (float("inf") if step == 0 else 1)).backward()
            scaler.step(optimiser)
            scaler.update()
            optimiser.zero_grad()

    assert measured(tmp_path, program)["forwards"] == 3


def test_a_discriminator_may_step_first(launch: Launch, tmp_path: Path) -> None:
    launch(layersync_suggest=2, layersync_suggest_dir=str(tmp_path))
    model, inputs = build("dit")
    other = torch.nn.Linear(2, 1)
    optimiser, others = sgd(model), torch.optim.SGD(other.parameters(), lr=0.1)

    def program() -> None:
        while True:
            other(torch.ones(2)).backward()
            others.step()
            train(model, inputs, optimiser)

    assert measured(tmp_path, program)["forwards"] == 2


def test_two_models_have_a_folder_each(launch: Launch, tmp_path: Path) -> None:
    launch(layersync_suggest=2, layersync_suggest_dir=str(tmp_path / "out"))
    (one, inputs), (other, _) = build("dit"), build("dit")
    optimiser = torch.optim.SGD([*one.parameters(), *other.parameters()], lr=0)

    def program() -> None:
        while True:
            (main_loss(one(**inputs)) + main_loss(other(**inputs))).backward()
            optimiser.step()

    assert measured(tmp_path / "out" / "DiTTransformer2DModel-1", program)["forwards"] == 2
    assert content(tmp_path / "out" / "DiTTransformer2DModel-2")["forwards"] == 2
    assert not (tmp_path / "out" / "suggest.json").exists()


def test_the_target_alone_is_measured(launch: Launch, tmp_path: Path) -> None:
    launch(layersync_suggest=1, layersync_suggest_dir=str(tmp_path), layersync_target="DiTTransformer2DModel#2")
    (one, inputs), (other, _) = build("dit"), build("dit")
    optimiser = sgd(other)
    main_loss(one(**inputs)).backward()
    assert measured(tmp_path, lambda: train(other, inputs, optimiser))["forwards"] == 1


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_model(launch: Launch, tmp_path: Path) -> None:
    plain, inputs = build("dit")
    compiled = copy.deepcopy(plain)
    with attach(plain, {"layersync_enabled": False}).probe() as probe:
        train(plain, inputs, sgd(plain), steps=2)
    launch(layersync_suggest=2, layersync_suggest_dir=str(tmp_path))
    patches.adopt()
    called = torch.compile(compiled, backend="eager")
    optimiser = sgd(compiled)
    found = measured(tmp_path, lambda: train(called, inputs, optimiser, steps=9))
    assert found["forwards"] == 2
    assert found["cka"][0][1][3] == pytest.approx(probe.findings().cka[0][1][3], abs=1e-4)


def test_a_family_that_the_model_is_not_of(launch: Launch) -> None:
    launch(layersync_suggest=1, layersync_family="flux")
    model, inputs = build("dit")
    optimiser = sgd(model)
    with pytest.raises(CaptureError, match="isn't a model of family flux"):
        train(model, inputs, optimiser, steps=10)
