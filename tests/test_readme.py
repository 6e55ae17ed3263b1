"""What the README shows is what the code does."""

import re
from pathlib import Path

import pytest
import torch

from layersync_core import LayerSyncConfig, attach
from layersync_core.cli.list_supported import families, markdown
from layersync_core.families.registry import load_tiny
from layersync_core.run.settings import LaunchSettings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [path for path in ROOT.glob("**/*.md") if not {".tox", "site-packages"} & {*path.parts}]


def test_the_table_of_families_is_the_listing() -> None:
    table = re.search(r"<!-- families -->\n(.*?)\n<!-- /families -->", README, re.DOTALL)
    assert table is not None
    assert table.group(1) == markdown(families())


def test_the_table_of_settings_has_every_key() -> None:
    table = README.split("| key | default | meaning |")[1].split("\n\n")[0]
    keys = re.findall(r"^\| `(layersync_\w+)` \|", table, re.MULTILINE)
    assert keys == list(LayerSyncConfig.model_fields)


def test_the_table_of_run_settings_has_every_key() -> None:
    table = README.split("| key of `layersync run` |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(layersync_\w+)` \|", table, re.MULTILINE) == list(LaunchSettings.model_fields)


def test_the_loop_runs_as_written() -> None:
    code = re.search(r"```python\n(from layersync_core import attach\n.*?)```", README, re.DOTALL)
    assert code is not None
    tiny = load_tiny("dit")
    model = tiny.tiny_model()
    loader = [tiny.example_inputs(model, 2) for _ in range(3)]
    shallow = (
        code.group(1)
        .replace('student_block": 8', 'student_block": 2')
        .replace('teacher_block": 16', 'teacher_block": 4')
    )
    names = {
        "transformer": model,
        "loader": loader,
        "target": 0.0,
        "mse": lambda output, target: (output - target).square().mean(),
    }
    exec(shallow, names)
    sync = names["sync"]
    assert set(sync.metrics()) == {"layersync_loss", "layersync_similarity"}
    assert str(sync.student) == "block 2 of 6 (transformer_blocks.1)"
    sync.remove()
    assert any(bool(parameter.grad.any()) for parameter in model.parameters() if parameter.grad is not None)
    with attach(model, {"layersync_enabled": False}) as off:
        loss = torch.ones(())
        assert off.apply(loss) is loss


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
