"""The weekly workflow runs the command as it is, and never for a change."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import yaml

from tests.day_zero import __main__ as day_zero
from tests.day_zero.listing import ROOT

FILE = ROOT / ".github" / "workflows" / "day-zero.yml"


@pytest.fixture(scope="module")
def workflow() -> dict[Any, Any]:
    read: dict[Any, Any] = yaml.safe_load(FILE.read_text())
    return read


def test_it_runs_weekly_and_by_hand_alone(workflow: dict[Any, Any]) -> None:
    when = workflow[True]  # YAML 1.1 reads "on" so
    assert when.keys() == {"schedule", "workflow_dispatch"}
    assert [entry["cron"].split()[2:] for entry in when["schedule"]] == [["*", "*", "1"]]
    assert workflow["permissions"] == {"contents": "read"}
    assert "day_zero" not in (ROOT / ".ci" / "run").read_text() + (ROOT / "tox.ini").read_text()


def test_it_takes_the_newest_diffusers_and_runs_the_command(workflow: dict[Any, Any]) -> None:
    commands = [shlex.split(step["run"]) for step in workflow["jobs"]["day-zero"]["steps"] if "run" in step]
    assert ["pip", "install", "--upgrade", "diffusers"] in commands
    python, m, module, *arguments = commands[-1]
    assert (python, m, module) == ("python", "-m", day_zero.__package__)
    assert day_zero.parser().parse_args(arguments).output is not None
