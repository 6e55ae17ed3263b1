"""SimpleTuner has LayerSync and CREPA of its own: a run in which both are on is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.run.processes import FLAGS, LAYERSYNC, RUN, SUMMARY, python, run

# The classes that it makes before it trains, as far as it matters here.
THEIRS = """
class {name}:
    def __init__(self, config, *others):
        self.enabled = bool(getattr(config, "{switch}", False))
"""
TRAINS = """
import argparse
import sys
from pathlib import Path

from simpletuner.helpers.training.{module} import {name}

parser = argparse.ArgumentParser()
parser.add_argument("--{switch}", type=lambda text: text.lower() == "true", default=False)
config = parser.parse_args()
regularizer = {name}(config, None)
from tiny_dit import build, train

train(build())
print("ended", regularizer.enabled)
"""


@pytest.fixture(params=["layersync", "crepa"])
def theirs(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """Return the name of the loss and a program that looks like SimpleTuner's."""
    module = str(request.param)
    name = {"layersync": "LayerSyncRegularizer", "crepa": "CrepaRegularizer"}[module]
    names = {"module": module, "name": name, "switch": f"{module}_enabled"}
    folder = tmp_path / "simpletuner" / "helpers" / "training"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent, folder.parent.parent):
        (package / "__init__.py").touch()
    (folder / f"{module}.py").write_text(THEIRS.format(**names))
    (tmp_path / "train.py").write_text(TRAINS.format(**names))
    return module, str(tmp_path / "train.py")


CREPA = {"enabled": "true", "block_index": "1", "feature_source": "backbone", "teacher_block_index": "3"}
CREPA_FLAGS = [part for key, value in CREPA.items() for part in (f"--crepa_{key}", value)]
OURS = {"layersync": RUN, "crepa": [LAYERSYNC, "run", *FLAGS, *CREPA_FLAGS, "--"]}
OFF = [LAYERSYNC, "run", "--layersync_enabled", "false", "--"]


def test_both_at_once_are_refused_by_name_before_the_first_step(theirs: tuple[str, str]) -> None:
    module, program = theirs
    done = run([*OURS[module], *python(program, f"--{module}_enabled=true")], code=2)
    loss = {"layersync": "LayerSync", "crepa": "CREPA"}[module]
    said = f"layersync: error: SimpleTuner has its own {loss}, and {module}_enabled is on in its configuration"
    assert done.stderr.count(said) == 1
    assert "ended" not in done.stdout


def test_ours_alone_is_none_of_its_business(theirs: tuple[str, str]) -> None:
    module, program = theirs
    done = run([*OURS[module], *python(program, f"--{module}_enabled=false")])
    assert "ended False" in done.stdout
    assert SUMMARY in done.stderr


def test_theirs_alone_is_none_of_ours(theirs: tuple[str, str]) -> None:
    module, program = theirs
    done = run([*(RUN if module == "crepa" else OFF), *python(program, f"--{module}_enabled=true")])
    assert "ended True" in done.stdout
