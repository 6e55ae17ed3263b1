"""Distributions and models that exist only in a test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from torch import nn

ADAPTERS, PLUGINS = "layersync.adapters", "layersync.plugins"
_numbers = count()


@dataclass(frozen=True)
class Distribution:
    """An installed distribution: its name, the source of its one module, and its entry points.

    ``{module}`` in an entry point stands for the module, whose name is new each time. ``metadata`` and
    ``entry_points`` replace the text of those files; None leaves the file out.
    """

    name: str
    source: str
    points: Mapping[str, str] = field(default_factory=dict)
    group: str = ADAPTERS
    version: str = "9.8"
    metadata: str | None = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    entry_points: str | None = None

    def write(self, folder: Path) -> Path:
        """Write it as pip would install it and return the folder to put on the path."""
        number = next(_numbers)
        module, site = f"fake_{number}", folder / f"site-{number}"
        info = site / f"{self.name.replace('-', '_')}-{self.version}.dist-info"
        info.mkdir(parents=True)
        if self.metadata is not None:
            (info / "METADATA").write_text(self.metadata.format(name=self.name, version=self.version))
        points = "".join(f"{name} = {value.format(module=module)}\n" for name, value in self.points.items())
        text = f"[{self.group}]\n{points}" if self.entry_points is None else self.entry_points
        (info / "entry_points.txt").write_text(text)
        (site / f"{module}.py").write_text(self.source)
        return site

    def install(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Write it and put it on the path of this process, for one test."""
        site = self.write(folder)
        monkeypatch.syspath_prepend(site)
        return site


def adapter(name: str, family: str, *classes: str, stacks: Any = "blocks", more: str = "") -> Distribution:
    """Return a distribution with a working adapter; ``more`` is appended to its module."""
    source = (
        "from layersync_core import BlockStack, BlockStackAdapter\n"
        f"adapter = BlockStackAdapter(family={family!r}, model_classes={classes!r}, stacks={stacks!r})\n{more}\n"
    )
    return Distribution(name, source, {family: "{module}:adapter"})


def add_tiny(site: Path, source: str) -> None:
    """Give the one module of a distribution that is written in a folder a module ``tiny``."""
    (module,) = site.glob("fake_*.py")
    package = site / module.stem
    package.mkdir()
    module.rename(package / "__init__.py")
    (package / "tiny.py").write_text(source)


def broken(name: str, family: str, source: str = "import a_package_that_is_missing") -> Distribution:
    """Return a distribution whose adapter cannot be used."""
    return Distribution(name, source, {family: "{module}:adapter"})


def plugin(name: str, source: str, point: str | None = None) -> Distribution:
    """Return a distribution with a plugin."""
    header = "from layersync_core import hookimpl\n"
    return Distribution(name, header + source, {point or name: "{module}"}, PLUGINS)


def model(class_name: str, base: type[nn.Module] = nn.Module, config: Any = None, **modules: nn.Module) -> nn.Module:
    """Return an instance of a new class with a name, a config and submodules."""
    instance: nn.Module = type(class_name, (base,), {})()
    if config is not None:
        instance.config = config
    for name, module in modules.items():
        setattr(instance, name, module)
    return instance


def blocks(count: int = 3, width: int = 4) -> nn.ModuleList:
    """Return a stack of small blocks."""
    return nn.ModuleList(nn.Linear(width, width) for _ in range(count))


def hooks(model: nn.Module) -> dict[str, Any]:
    """Return whatever is attached to any module of a model, to compare before and after."""
    return {
        f"{path}.{name}": len(value) if name.endswith("hooks") else value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if name.endswith("hooks") or callable(value)
    }
