"""Each example runs as it stands, logs LayerSync's metrics, and trains otherwise than without LayerSync."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from layersync_core.errors import ConfigError
from layersync_core.run.settings import LaunchSettings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
PAGES = [EXAMPLES / "README.md", ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def run(name: str, weights: Path, enabled: str) -> str:
    """Run an example; return what it prints."""
    command = [sys.executable, str(EXAMPLES / name), "--weights", str(weights), "--layersync_enabled", enabled]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        command, env=environment, cwd=weights.parent, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stderr + done.stdout  # what an integration says of itself is on standard error


def check_metrics(output: str) -> None:
    """Check that it says which blocks it trains, and logs LayerSync's metrics."""
    assert "student: block 2 of " in output
    logged = re.findall(r"^step \d+ loss \S+ layersync_loss (\S+) layersync_similarity (\S+)$", output, re.MULTILINE)
    assert logged
    for loss, similarity in logged:
        assert 0 < float(similarity) < 1
        assert float(loss) == pytest.approx(-0.2 * float(similarity), abs=1e-4)


LOOPS = ["accelerate_loop.py", "lightning_module.py", "plain_loop.py"]
INTEGRATIONS = ["lightning_callback.py", "transformers_trainer.py"]


def test_every_example_is_run() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted([*LOOPS, *INTEGRATIONS])


@pytest.mark.parametrize("name", INTEGRATIONS)
def test_an_integration_trains_with_layersync(name: str, tmp_path: Path) -> None:
    check_metrics(run(name, tmp_path / "with.safetensors", "true"))


@pytest.mark.parametrize("name", LOOPS)
def test_an_example_trains_with_layersync(name: str, tmp_path: Path) -> None:
    check_metrics(run(name, tmp_path / "with.safetensors", "true"))
    plain = run(name, tmp_path / "without.safetensors", "false")
    assert "LayerSync is off" in plain
    assert "layersync_" not in plain
    trained, without = (load_file(tmp_path / f"{which}.safetensors") for which in ("with", "without"))
    assert trained.keys() == without.keys()
    assert not all(torch.equal(trained[key], without[key]) for key in trained)


def test_an_example_shows_the_same_twice(tmp_path: Path) -> None:
    first, second = (run("plain_loop.py", tmp_path / f"{number}.safetensors", "true") for number in range(2))
    assert first == second


def test_the_accelerate_example_restores_the_step(tmp_path: Path) -> None:
    assert run("accelerate_loop.py", tmp_path / "weights.safetensors", "true").endswith("back at step 5\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_flag_of_ours_on_a_page_exists(page: Path) -> None:
    from layersync_core import LayerSyncConfig

    # layersync_core and layersync_state.safetensors are names, and two more are metrics.
    known = {*LayerSyncConfig.model_fields, *LaunchSettings.model_fields, "layersync_loss", "layersync_similarity"}
    named = set(re.findall(r'--(layersync_\w+)|"(layersync_\w+)":', page.read_text(encoding="utf-8")))
    assert {flag or key for flag, key in named} <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_json_on_a_page_is_a_configuration(page: Path) -> None:
    import json

    from layersync_core.run.settings import read

    for text in re.findall(r"```json\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        try:
            read(json.loads(text))
        except ConfigError as error:
            pytest.fail(f"{text}: {error}")
