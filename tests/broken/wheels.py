"""Third parties' distributions with one fault each, and how they are built and installed as wheels."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fakes import ADAPTERS, PLUGINS

# One process for all of them, by the hook that pip calls.
_BUILD = """
import os, sys
from hatchling.build import build_wheel
for project in sys.argv[2:]:
    os.chdir(project)
    build_wheel(sys.argv[1])
"""


@dataclass(frozen=True)
class Wheel:
    """A distribution of one package.

    Attributes:
        name: Of the distribution.
        source: Of the package.
        says: What is said where it is asked for.
        point: Name of its entry point: a family, or what a plugin's switch begins with.
        group: Of the entry point.
        asked: Settings that ask for a plugin.
        tiny: Source of the package's module ``tiny``.
    """

    name: str
    source: str
    says: str
    point: str
    group: str
    asked: Mapping[str, Any] = field(default_factory=dict)
    tiny: str = ""

    @property
    def title(self) -> str:
        """How it is named."""
        return f"{self.name} 9.8" + (f" ({self.point})" if self.group == PLUGINS else "")

    def write(self, folder: Path) -> Path:
        """Write the project that the wheel is built from."""
        project, package = folder / self.name, f"of_{self.name.replace('-', '_')}"
        (project / package).mkdir(parents=True)
        (project / package / "__init__.py").write_text(self.source)
        if self.tiny:
            (project / package / "tiny.py").write_text(self.tiny)
        value = package if self.group == PLUGINS else f"{package}:adapter"
        (project / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
            f'[project]\nname = "{self.name}"\nversion = "9.8"\n'
            f'[project.entry-points."{self.group}"]\n{self.point} = "{value}"\n'
            f'[tool.hatch.build.targets.wheel]\npackages = ["{package}"]\n'
        )
        return project


def install(wheels: Iterable[Wheel], folder: Path) -> Path:
    """Build wheels, install them into one folder as pip does it, without downloads, and return that folder."""
    out, target = folder / "wheels", folder / "installed"
    out.mkdir(parents=True)
    _python("-c", _BUILD, str(out), *(str(wheel.write(folder / "projects")) for wheel in wheels))
    files = map(str, sorted(out.glob("*.whl")))
    _python("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), *files)
    return target


def _python(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


PRINTS = "import os\nprint('HERE', flush=True)\nos.write(1, b'HERE')\nos.system('echo HERE')\n"
SLEEPS = "import time\ntime.sleep(5.2)\n"
_GONE = "class Gone(BaseException): ...\nraise Gone('gone')"
_MISSES = "import a_package_that_is_missing"

_ADAPTER = """
import sys
from layersync_core import get_adapter

class Adapter:
    family, api_version, model_classes = "{family}", 1, ("OddTransformer",)
    def supports_hidden_states(self, model): return True
    def list_blocks(self, model): return get_adapter("dit").list_blocks(model)
    def capture(self, model, layers, buffer): return get_adapter("dit").capture(model, layers, buffer)
    {wrong}

adapter = Adapter()
"""
_TINY = "from layersync_adapter_dit.tiny import *"


def adapter(fault: str, source: str, says: str, family: str = "") -> Wheel:
    """Return a wheel whose adapter has a fault."""
    return Wheel(f"adapter-{fault}", source, says, family or _point(fault), ADAPTERS)


def wrong(fault: str, line: str, says: str = "", classes: str = "", before: str = "") -> Wheel:
    """Return a wheel whose adapter has everything, and one line that is wrong."""
    line = line or f"model_classes = {classes}"
    source = before + _ADAPTER.format(family=_point(fault), wrong=line)
    return Wheel(f"adapter-{fault}", source, says, _point(fault), ADAPTERS, tiny=_TINY)


def _point(fault: str) -> str:
    return f"odd_{fault.replace('-', '_')}"


BROKEN_ADAPTERS = [
    # Cannot be loaded.
    adapter("raises", "raise RuntimeError('first\\nsecond')", "RuntimeError: first second"),
    adapter("raises-base", _GONE, "Gone: gone"),
    adapter("exits", "raise SystemExit(0)", "SystemExit: 0"),
    adapter("misses", _MISSES, "No module named 'a_package_that_is_missing'"),
    adapter("prints-and-raises", f"{PRINTS}1 / 0", "ZeroDivisionError"),
    adapter("shadows-a-refused-family", "1 / 0", "ZeroDivisionError", family="kolors"),
    adapter("is-called-as-ours", "1 / 0", "uninstall all but one", family="wan"),
    Wheel("layersync-core", "1 / 0", "ZeroDivisionError", "odd_core", ADAPTERS),
    # Are no adapters.
    adapter("is-a-number", "adapter = 7", "lacks family, api_version"),
    adapter("is-a-class", "class adapter: ...", "is a class; register an instance"),
    wrong("lacks-a-method", "list_blocks = property()", "lacks list_blocks"),
    wrong("has-no-method", "capture = None", "capture of of_adapter_has_no_method:adapter isn't a method"),
    wrong("has-wrong-classes", "model_classes = 7", "model_classes of of_adapter_has_wrong_classes:adapter is 7"),
    wrong("exits-in-a-property", "model_classes = property(lambda self: sys.exit(0))", "SystemExit: 0"),
    wrong("has-other-version", "api_version = 2", "adapter API 2, this layersync-core for 1"),
    wrong("says-another-family", "family = 'dit'", "its adapter says dit; the two must agree"),
    # Answer wrongly.
    wrong("fails", "def supports_hidden_states(self, model): return 1 / 0", "ZeroDivisionError"),
    wrong("lists-none", "def list_blocks(self, model): return None", "is not iterable"),
    wrong("lists-rubbish", "def list_blocks(self, model): yield from 'abc'", "expected a Block"),
    wrong("exits-when-it-lists", "def list_blocks(self, model): raise SystemExit(0)", "SystemExit: 0"),
    wrong("captures-none", "def capture(self, model, layers, buffer): return None", "lacks enabled"),
]
# These work, print, and claim classes that are not theirs.
GOOD_ADAPTERS = [
    wrong("prints", "", classes="('OddTransformer',)", before=PRINTS),
    wrong("claims-other-classes", "", classes="('DiTTransformer2DModel', 'DiT', 'Lumina2Transformer2DModel')"),
]

_HOOKS = """
import sys
from pydantic import BaseModel
from layersync_core import hookimpl

class Config(BaseModel):
    {point}_enabled: bool = False
    {field}

class Odd:
    name, order = "{name}", 100
    def layers(self, blocks): return set()
    def compute(self, states, step): return None
    {member}

@hookimpl
def layersync_config_models(): return {models}

@hookimpl
def layersync_regularizers(config): {body}
"""


def plugin(fault: str, source: str, says: str, point: str = "") -> Wheel:
    """Return a wheel whose plugin has a fault; the switch of its entry point asks for it."""
    point = point or _point(fault)
    return Wheel(f"plugin-{fault}", source, says, point, PLUGINS, {f"{point}_enabled": True})


def hooks(fault: str, says: str = "", before: str = "", **parts: str) -> Wheel:
    """Return a wheel whose plugin has the hooks of a regularizer, and parts that are wrong."""
    right = {
        "point": _point(fault),
        "field": "",
        "name": _point(fault),
        "member": "",
        "models": "[Config]",
        "body": "return [Odd()] if config.of(Config) else []",
    }
    return plugin(fault, before + _HOOKS.format(**(right | parts)), says)


_HOOK = "from layersync_core import hookimpl\n@hookimpl\ndef {name}({argument}): return []"

BROKEN_PLUGINS = [
    # Cannot be loaded.
    plugin("raises", "raise RuntimeError('first\\nsecond')", "RuntimeError: first second"),
    plugin("raises-base", _GONE, "Gone: gone"),
    plugin("exits", "raise SystemExit(0)", "SystemExit: 0"),
    plugin("misses", _MISSES, "No module named 'a_package_that_is_missing'"),
    plugin("prints-and-raises", f"{PRINTS}1 / 0", "ZeroDivisionError"),
    # Are no plugins.
    plugin("has-no-hook", "def layersync_regularizers(config): return []", "implements no hook"),
    plugin(
        "misspells",
        _HOOK.format(name="layersync_regularisers", argument="config"),
        "did you mean",
    ),
    plugin("has-other-arguments", _HOOK.format(name="layersync_regularizers", argument="confg"), "confg"),
    hooks("has-other-version", "API 2, this layersync-core for 1", before="api_version = 2\n"),
    # Claim what they cannot have.
    hooks("claims-our-key", "claims layersync_lambda", field="layersync_lambda: float = 9"),
    hooks("claims-crepa-key", "it claims crepa_lambda, which belongs to", field="crepa_lambda: float = 9"),
    hooks("one-of-two", "plugin-two-of-two 9.8 (odd_two_of_two) claim shared", field="shared: int = 1"),
    hooks("two-of-two", "plugin-one-of-two 9.8 (odd_one_of_two) and", field="shared: int = 2"),
    hooks("returns-no-models", "7, which isn't a pydantic model", models="[7]"),
    hooks("exits-in-models", "SystemExit: 0", models="sys.exit(0)"),
    hooks("has-a-wrong-default", "odd_x is 'much'", field="odd_x: float = 'much'"),
    # Answer wrongly, asked or not.
    hooks("raises-in-a-hook", "ZeroDivisionError", body="return 1 / 0"),
    hooks("exits-in-a-hook", "SystemExit: 0", body="raise SystemExit(0)"),
    hooks("returns-rubbish", "it returned 7, which lacks name, order", body="return [7]"),
    hooks("returns-no-list", "'int' object is not iterable", body="return 7"),
    hooks("yields-and-raises", "ZeroDivisionError", body="yield Odd(); 1 / 0"),
    hooks("has-a-wrong-member", "Odd.compute is None", member="compute = None", body="return [Odd()]"),
    hooks("is-called-as-our-loss", "uses the name layersync", name="layersync", body="return [Odd()]"),
]
# Left out, and no switch asks for them: a name that is taken by a plugin that works, or nothing wrong once it is on.
UNASKED_PLUGINS = [
    plugin("is-called-layersync", "", "", "layersync"),
    plugin("is-called-crepa", "1 / 0", "", "crepa"),
    hooks("brings-it-unasked", body="return [Odd()]"),
]
# Wrong only when it is asked for.
SILENT_PLUGINS = [hooks("returns-none", "brings no regularizer, so it would do nothing", body="return None")]
GOOD_PLUGINS = [hooks("prints", before=PRINTS, body=f"{PRINTS.splitlines()[1]}; return []")]

WHEELS = [
    *BROKEN_ADAPTERS,
    *GOOD_ADAPTERS,
    *BROKEN_PLUGINS,
    *UNASKED_PLUGINS,
    *SILENT_PLUGINS,
    *GOOD_PLUGINS,
]
SLOW_WHEELS = [wrong("sleeps", "", classes="()", before=SLEEPS), hooks("takes-long", before=SLEEPS)]
