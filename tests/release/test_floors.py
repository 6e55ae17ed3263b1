"""The oldest versions that the distributions allow, and what may be skipped with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from release.__main__ import main
from release.distributions import distributions
from release.errors import ReleaseError
from release.floors import floors
from tests.lowest import absent


def project(folder: Path, name: str, requirements: list[str], extra: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\ndependencies = {requirements}\n{extra}')


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    extra = '[project.optional-dependencies]\ntesting = ["Pytest>=8"]\n'
    project(tmp_path, "layersync-core", ["torch>=2.4", "typer>=0.15,<1"], extra)
    project(tmp_path / "plugins/trainer", "layersync-plugin-trainer", ["layersync-core>=0.1", "torch>=2.10", "a>=1"])
    return tmp_path


def test_the_highest_bound_of_a_package_counts(checkout: Path) -> None:
    assert floors(checkout) == {"a": "1", "pytest": "8", "torch": "2.10", "typer": "0.15"}


def test_a_requirement_without_one_is_refused(checkout: Path) -> None:
    project(checkout / "adapters/x", "layersync-adapter-x", ["layersync-core>=0.1", "numpy<3"])
    with pytest.raises(ReleaseError, match="layersync-adapter-x: 'numpy<3' has no lower bound; write numpy>=VERSION"):
        floors(checkout)


def test_they_are_written_with_every_distribution(tmp_path: Path) -> None:
    file = tmp_path / "lowest.txt"
    assert main(["floors", str(file)]) == 0
    lines = file.read_text().splitlines()
    every = distributions()
    assert lines[: len(every)] == [f"-e {it.folder}" for it in every]
    assert lines[len(every) :] == [f"{name}=={version}" for name, version in floors().items()]
    assert {"torch", "diffusers", "transformers", "pydantic"} <= floors().keys()


NEW = "cannot import name 'NewTransformer2DModel' from 'diffusers' (/somewhere/diffusers/__init__.py)"
TOLD = f"family new: layersync_adapter_new.tiny needs newer versions of what it imports: {NEW}"


@pytest.mark.parametrize(
    ("message", "files", "skipped"),
    [
        (NEW, ["tests/test_session.py"], "NewTransformer2DModel"),
        (NEW, ["tests/models.py", "adapters/new/layersync_adapter_new/tiny.py"], "NewTransformer2DModel"),
        ("No module named 'torch.distributed.new'", ["tests/test_session.py"], "torch.distributed.new"),
        ("No module named 'mkdocs'", ["tests/test_readme.py", "handbook/hooks.py"], "mkdocs"),
        ("module 'torch' has no attribute 'new'", ["tests/test_session.py"], "new"),
        ("Block.forward() got an unexpected keyword argument 'new'", ["tests/models.py"], "new"),
        (TOLD, ["tests/test_session.py", "layersync_core/families/registry.py"], "NewTransformer2DModel"),
        ("error: NewModel is not a class of diffusers 0.33.0", ["layersync_core/cli/meta.py"], "NewModel"),
        # What a distribution itself asks for is not there at its floor, which is then too low.
        (NEW, ["tests/test_session.py", "layersync_core/session.py"], None),
        (NEW, ["plugins/trainer/layersync_plugin_trainer/train.py"], None),
        ("hook() got an unexpected keyword argument 'new'", ["tests/x.py", "layersync_core/capture/hooks.py"], None),
        ("cannot import name 'attach' from 'layersync_core'", ["tests/test_session.py"], None),
        (NEW, [], None),
    ],
)
def test_only_tests_and_tiny_models_may_want_what_is_newer(message: str, files: list[str], skipped: str | None) -> None:
    reason = absent(message, files)
    assert (reason is None) == (skipped is None)
    assert skipped is None or f" {skipped}" in str(reason)
