"""Who may import whom: our adapters and plugins use a third party's door, and core goes round in no circle."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import grimp
import pytest

import layersync_core
from tests import face

ROOT = Path(__file__).parent.parent
DISTRIBUTIONS = sorted(
    path.parent for kind in ("adapters", "plugins") for path in (ROOT / kind).glob("*/pyproject.toml")
)
HEAVY = ("diffusers", "transformers", "accelerate")


PACKAGES = [next(folder.glob("layersync_*/__init__.py")).parent.name for folder in DISTRIBUTIONS]


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(
        "layersync_core", *PACKAGES, include_external_packages=True, exclude_type_checking_imports=False, cache_dir=None
    )


@cache
def core() -> grimp.ImportGraph:
    return grimp.build_graph("layersync_core", exclude_type_checking_imports=False, cache_dir=None)


def imports(package: str) -> dict[str, set[str]]:
    """Return what each module of a package imports."""
    modules = {package, *graph().find_descendants(package)}
    return {module: set(graph().find_modules_directly_imported_by(module)) for module in modules}


@pytest.mark.parametrize("package", PACKAGES)
def test_adapters_and_plugins_import_the_public_face_alone(package: str) -> None:
    for module, imported in imports(package).items():
        ours = {name for name in imported if name.split(".")[0] == "layersync_core"}
        assert ours <= {"layersync_core", "layersync_core.testing"}, module
        others = {name for name in imported if name.split(".")[0] in PACKAGES and name.split(".")[0] != package}
        assert not others, module


@pytest.mark.parametrize("package", [name for name in PACKAGES if name.startswith("layersync_adapter")])
def test_adapters_import_diffusers_in_their_tiny_models_alone(package: str) -> None:
    # A function may import torch when it is called; that importing an adapter does not is another test's.
    for module, imported in imports(package).items():
        assert module.endswith(".tiny") or not {name.split(".")[0] for name in imported} & {*HEAVY}, module


def test_core_imports_no_adapter_and_no_plugin() -> None:
    for module, imported in imports("layersync_core").items():
        assert not {name.split(".")[0] for name in imported} & {*PACKAGES}, module


def test_core_has_no_import_circle() -> None:
    modules = sorted(core().modules)
    circles = []
    for module in modules:
        for imported in core().find_modules_directly_imported_by(module):
            back = core().find_shortest_chain(imported, module)
            if back:
                circles.append((module, *back))
    assert not circles


def test_every_name_of_the_face_is_there() -> None:
    assert [name for name in layersync_core.__all__ if not hasattr(layersync_core, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = layersync_core.nothing


def test_type_checkers_read_the_same_names() -> None:
    assert face.FILE.read_text() == face.stub()


PRIVATE = re.compile(
    r"torch\._|\._C\b|runpy\._|\._saved_|distributed_c10d|(?<!self)\._version\b|\._forward_(pre_)?hooks"
)


@pytest.mark.parametrize("path", sorted((ROOT / "layersync_core").rglob("*.py")), ids=lambda path: path.name)
def test_what_is_private_to_torch_stands_in_one_module(path: Path) -> None:
    code = [line for line in path.read_text().splitlines() if PRIVATE.search(line) and "call torch._dynamo" not in line]
    assert path.name == "_compat.py" or "testing" in path.parts or not code


CODE = [
    path
    for folder in ("layersync_core", "adapters", "plugins", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "tests" not in path.parts
]


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_short_or_say_why(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 300 or "# Longer than others: " in text


@pytest.mark.parametrize("path", sorted(ROOT.rglob("test_*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_of_tests_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500
