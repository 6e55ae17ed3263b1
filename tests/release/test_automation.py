"""Workflows and the Dockerfile: neither can run here, so their linters read them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from release.distributions import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def tool(name: str, *words: str) -> str:
    """Run a tool of this environment that must find nothing."""
    program = Path(sys.executable).with_name(name)
    done = subprocess.run([program, *words], capture_output=True, text=True, cwd=ROOT, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_zizmor_finds_nothing(tmp_path: Path) -> None:
    words = ["--offline", "--persona", "pedantic", "--no-progress", "--cache-dir", str(tmp_path)]
    assert "No findings to report" in tool("zizmor", *words, ".github")


def test_workflows_are_workflows() -> None:
    tool("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *map(str, WORKFLOWS))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda it: it.stem)
def test_actions_are_pinned_and_say_to_which_version(workflow: Path) -> None:
    uses = re.findall(r"uses: *(.*)", workflow.read_text())
    assert uses
    assert not [line for line in uses if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)]


def test_an_action_has_one_version_everywhere() -> None:
    every = {line for it in WORKFLOWS for line in re.findall(r"uses: *(.*)", it.read_text())}
    assert len(every) == len({line.split("@")[0] for line in every})


def jobs(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())["jobs"]
    return found


def test_only_publishing_may_sign_and_it_runs_nothing_of_the_repository() -> None:
    build, publish = jobs("release")["build"], jobs("release")["publish"]
    assert build["permissions"] == {"contents": "read"}
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["environment"] == "pypi"
    assert publish["needs"] == "build"
    assert not [step for step in publish["steps"] if "run" in step or "checkout" in step["uses"]]


def test_environments_that_workflows_run_exist() -> None:
    tox = (ROOT / "tox.ini").read_text()
    named = {name for it in WORKFLOWS for name in re.findall(r"tox -e (\w+)", it.read_text())}
    assert named == {"docs", "lowest", "next"}
    assert all(f"\n[testenv:{name}]\n" in tox for name in named)


def test_hadolint_finds_nothing() -> None:
    tool("hadolint", "--failure-threshold", "style", "Dockerfile")


def test_the_image_installs_every_distribution(tmp_path: Path) -> None:
    """As the Dockerfile turns the list into folders, from what .dockerignore lets through."""
    (command,) = re.findall(r"&& (sed .*?) >", (ROOT / "Dockerfile").read_text())
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=ROOT, check=True)
    folders = {line for line in done.stdout.splitlines() if line.startswith("./")}
    editable = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("-e ")]
    assert len(folders) == len(editable)
    assert "-e " not in done.stdout
    through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    needed = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "requirements.txt"}
    assert through == needed | {"layersync_core"} | {folder.split("/")[1] for folder in folders - {"./."}}


def test_it_runs_as_nobody_in_particular() -> None:
    last = (ROOT / "Dockerfile").read_text().split("\nFROM ")[-1]
    assert re.search(r"^USER [1-9]\d*$", last, re.MULTILINE)
    assert "--no-cache-dir" in (ROOT / "Dockerfile").read_text()
