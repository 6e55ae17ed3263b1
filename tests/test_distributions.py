"""The published distributions: wheels and sdists, each adapter with only core, and broken installations."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from email import message_from_string
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from layersync_core import __version__
from release.building import check

ROOT = Path(__file__).resolve().parents[1]
ADAPTERS = sorted(path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("adapters/*/pyproject.toml"))
PLUGINS = sorted(path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("plugins/*/pyproject.toml"))
FOLDERS = [".", *ADAPTERS, *PLUGINS]
HEAVY = ["torch", "diffusers", "transformers", "accelerate"]

# Of each folder's metadata: one has several families.
FAMILIES = {
    folder: sorted(
        re.findall(r"^(\w+) = \"\w+(?:\.\w+)?:adapter\"$", (ROOT / folder / "pyproject.toml").read_text(), re.MULTILINE)
    )
    for folder in ADAPTERS
}
README_HOOK = ', "hatch-fancy-pypi-readme>=25.1"'
"""Of core alone, whose README is the repository's."""
EVERY = {family for families in FAMILIES.values() for family in families}

Build = Callable[[str], Any]
Install = Callable[[Sequence[Path]], Path]
Python = Callable[..., CompletedProcess[str]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def everything(build: Build, install: Install) -> Path:
    """Core and every adapter."""
    return install([build(folder).wheel for folder in (".", *ADAPTERS)])


@pytest.fixture(scope="module")
def core(build: Build, install: Install) -> Path:
    """Only core."""
    return install([build(".").wheel])


@pytest.fixture
def bad_distribution(tmp_path: Path) -> Callable[..., Path]:
    """Write an adapter distribution as pip would install it."""

    def write(name: str, family: str, module: str, source: str) -> Path:
        info = tmp_path / f"{name.replace('-', '_')}-9.8.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.8\n")
        (info / "entry_points.txt").write_text(f"[layersync.adapters]\n{family} = {module}:adapter\n")
        (tmp_path / f"{module}.py").write_text(source)
        return tmp_path

    return write


def listing(
    python: Python, *flags: str, path: Sequence[Path], code: int = 0, **variables: str
) -> dict[str, dict[str, str]]:
    """Return the rows of ``layersync list-supported`` by family."""
    done = python("-m", "layersync_core", "list-supported", "--json", *flags, path=path, **variables)
    assert done.returncode == code, done.stderr
    return rows_of(done.stdout)


def rows_of(text: str) -> dict[str, dict[str, str]]:
    return {row["family"]: row for row in json.loads(text)}


def installed_families(rows: dict[str, dict[str, str]]) -> dict[str, str]:
    return {family: row["distribution"] for family, row in rows.items() if row["state"] == "installed"}


@pytest.mark.parametrize("folder", FOLDERS)
class TestBuild:
    def test_wheel_holds_the_package_and_nothing_else(self, build: Build, folder: str) -> None:
        distribution = build(folder)
        with zipfile.ZipFile(distribution.wheel) as wheel:
            names = wheel.namelist()
        info = f"{distribution.package}-{__version__}.dist-info"
        assert distribution.wheel.name == f"{distribution.package}-{__version__}-py3-none-any.whl"
        assert {name.split("/")[0] for name in names} == {distribution.package, info}
        assert {f"{distribution.package}/__init__.py", f"{distribution.package}/py.typed"} <= set(names)
        assert f"{info}/licenses/LICENSE" in names
        assert not [name for name in names if "/tests/" in name or "__pycache__" in name]

    def test_wheel_has_every_module(self, build: Build, folder: str) -> None:
        distribution = build(folder)
        with zipfile.ZipFile(distribution.wheel) as wheel:
            names = set(wheel.namelist())
        package = distribution.folder / distribution.package
        files = [*package.rglob("*.py"), *package.rglob("*.tmpl")]  # templates of new packages as well
        assert {file.relative_to(distribution.folder).as_posix() for file in files} <= names

    def test_sdist_holds_what_it_takes_to_build(self, build: Build, folder: str) -> None:
        distribution = build(folder)
        with tarfile.open(distribution.sdist) as sdist:
            names = {name.partition("/")[2].split("/")[0] for name in sdist.getnames()}
        needed = {distribution.package, "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
        assert needed <= names <= needed | {"CHANGELOG.md", "tests", ".gitignore"}

    def test_metadata(self, build: Build, folder: str) -> None:
        distribution = build(folder)
        with zipfile.ZipFile(distribution.wheel) as wheel:
            text = wheel.read(f"{distribution.package}-{__version__}.dist-info/METADATA").decode()
        metadata = message_from_string(text)
        assert metadata["Name"] == distribution.name
        assert metadata["License-Expression"] == "Apache-2.0"
        if folder != ".":
            assert "layersync-core<1,>=0.1" in metadata.get_all("Requires-Dist", [])
        if folder in ADAPTERS:
            assert metadata.get_all("Requires-Dist") == ["layersync-core<1,>=0.1"]

    def test_is_built_as_core_is(self, folder: str) -> None:
        system, core = (
            (ROOT / it / "pyproject.toml").read_text().split("\n\n")[0].replace(README_HOOK, "") for it in (folder, ".")
        )
        assert system == core

    def test_is_installed_for_development(self, folder: str) -> None:
        requirements = (ROOT / "requirements.txt").read_text().splitlines()
        assert f"-e {folder}" in requirements

    def test_licence_is_the_repositorys(self, folder: str) -> None:
        assert (ROOT / folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_indexes_and_readers_will_accept_them(build: Build) -> None:
    files = [path for it in map(build, FOLDERS) for path in (it.wheel, it.sdist)]
    check(files)


def members(built: Path) -> list[str]:
    if built.suffix == ".whl":
        with zipfile.ZipFile(built) as wheel:
            return sorted(wheel.namelist())
    with tarfile.open(built) as sdist:
        return sorted(sdist.getnames())


def test_a_build_by_the_front_end_is_the_same(build: Build, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT / ADAPTERS[0])]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for ours in (build(ADAPTERS[0]).wheel, build(ADAPTERS[0]).sdist):
        assert members(tmp_path / ours.name) == members(ours)


ALONE = """
import sys
from layersync_core import get_adapter
from layersync_core.cli import main
assert main(["list-supported", "--json"]) == 0
print([get_adapter(family).family for family in sys.argv[1:]], file=sys.stderr)
"""


@pytest.mark.parametrize("folder", ADAPTERS)
def test_adapter_alone_brings_its_families(
    build: Build, core: Path, isolated_python: Python, folder: str, tmp_path: Path
) -> None:
    families = FAMILIES[folder]
    assert families
    # As pip leaves a wheel that brings no commands; pip itself installs every one of them in `everything`.
    with zipfile.ZipFile(build(folder).wheel) as wheel:
        wheel.extractall(tmp_path)
    done = isolated_python("-c", ALONE, *families, path=[core, tmp_path])
    assert (done.returncode, done.stderr) == (0, f"{families}\n")
    assert installed_families(rows_of(done.stdout)) == dict.fromkeys(families, build(folder).name)


def test_core_alone_names_the_remedy(core: Path, isolated_python: Python) -> None:
    rows = listing(isolated_python, path=[core])
    assert installed_families(rows) == {}
    assert rows["wan"]["detail"] == "pip install layersync-adapter-wan"
    assert rows["prx"]["detail"] == "pip install layersync-adapters-more"


def test_all_adapters_work_from_their_wheels(everything: Path, build: Build, isolated_python: Python) -> None:
    rows = listing(isolated_python, "--check", path=[everything])
    assert installed_families(rows) == {
        family: build(folder).name for folder, families in FAMILIES.items() for family in families
    }
    assert all("similarity" in row["detail"] for row in rows.values() if row["state"] == "installed")


def test_command_of_the_wheel(everything: Path, isolated_python: Python) -> None:
    done = isolated_python(str(everything / "bin" / "layersync"), "list-supported", path=[everything])
    assert done.returncode == 0, done.stderr
    assert "layersync-adapter-dit" in done.stdout


ATTACH = """
import sys
from layersync_core import attach
from layersync_core.families.registry import load_tiny
tiny = load_tiny(sys.argv[1])
model = tiny.tiny_model()
with attach(model, {"layersync_enabled": True, "layersync_student_block": 1, "layersync_teacher_block": 3}) as sync:
    model(**tiny.example_inputs(model, 2))
    sync.loss().backward()
print(sync.family)
"""

RESOLVE = """
import sys
from layersync_core import LayerSyncError, resolve
try:
    resolve({"_class_name": sys.argv[1]})
except LayerSyncError as error:
    print(type(error).__name__, error)
"""


class TestBrokenAdapter:
    """A distribution whose module cannot be imported, beside the good ones."""

    @pytest.fixture
    def path(self, everything: Path, bad_distribution: Callable[..., Path]) -> list[Path]:
        source = "raise RuntimeError('compiled for another planet')"
        return [everything, bad_distribution("layersync-adapter-lumina2", "lumina2", "broken_lumina2", source)]

    def test_is_listed_as_installed_without_being_imported(self, isolated_python: Python, path: list[Path]) -> None:
        rows = listing(isolated_python, path=path)
        assert rows["lumina2"]["state"] == "installed"
        assert rows["lumina2"]["version"] == "9.8"
        assert installed_families(rows).keys() == EVERY | {"lumina2"}

    def test_check_shows_its_error_and_the_others_work(self, isolated_python: Python, path: list[Path]) -> None:
        rows = listing(isolated_python, "--check", path=path, code=2, LAYERSYNC_LOAD="dit,lumina2,wan")
        assert rows["lumina2"]["state"] == "broken"
        assert "layersync-adapter-lumina2 9.8" in rows["lumina2"]["detail"]
        assert "RuntimeError: compiled for another planet" in rows["lumina2"]["detail"]
        assert all("similarity" in rows[family]["detail"] for family in ("dit", "wan"))

    def test_attach_on_another_family_does_not_notice(self, isolated_python: Python, path: list[Path]) -> None:
        done = isolated_python("-c", ATTACH, "dit", path=path)
        assert (done.returncode, done.stdout) == (0, "dit\n"), done.stderr

    def test_asking_for_it_names_it(self, isolated_python: Python, path: list[Path]) -> None:
        done = isolated_python("-c", RESOLVE, "Lumina2Transformer2DModel", path=path)
        assert done.stdout.startswith("AdapterNotInstalledError "), done.stderr
        assert "layersync-adapter-lumina2 9.8" in done.stdout
        assert "compiled for another planet" in done.stdout


class TestTwoDistributionsOfOneFamily:
    @pytest.fixture
    def path(self, everything: Path, bad_distribution: Callable[..., Path]) -> list[Path]:
        source = "from layersync_adapter_wan import adapter"
        return [everything, bad_distribution("someones-wan", "wan", "someones_wan", source)]

    def test_both_are_listed(self, isolated_python: Python, path: list[Path]) -> None:
        row = listing(isolated_python, path=path)["wan"]
        assert row["state"] == "conflict"
        assert row["distribution"] == "layersync-adapter-wan and someones-wan"

    def test_check_fails_on_it_alone(self, isolated_python: Python, path: list[Path]) -> None:
        rows = listing(isolated_python, "--check", path=path, code=2, LAYERSYNC_LOAD="dit,flux,wan")
        assert all("similarity" in rows[family]["detail"] for family in ("dit", "flux"))
        assert [family for family, row in rows.items() if row["state"] in ("broken", "conflict")] == ["wan"]

    def test_asking_for_the_family_names_both(self, isolated_python: Python, path: list[Path]) -> None:
        done = isolated_python("-c", RESOLVE, "WanTransformer3DModel", path=path)
        assert done.stdout.startswith("ConfigError "), done.stderr
        assert "layersync-adapter-wan and someones-wan" in done.stdout


LISTS = "from layersync_core.cli import main; assert main(['list-supported']) == 0"
REFUSES = """
from layersync_core import UnsupportedFamilyError, resolve
try:
    resolve({"_class_name": "Lumina2Transformer2DModel"})
except UnsupportedFamilyError:
    pass
"""
LIGHT = {
    "core": "import layersync_core",
    "list-supported": LISTS,
    "list-supported --json": LISTS.replace("]", ", '--json']"),
    "a refusal": REFUSES,
    "every adapter": f"""
import sys
from layersync_core import get_adapter
for family in {sorted(EVERY)}:
    get_adapter(family)
    assert not set({HEAVY}) & set(sys.modules), family
""",
}


@pytest.mark.parametrize("what", LIGHT)
def test_needs_no_torch(everything: Path, isolated_python: Python, what: str) -> None:
    code = f"{LIGHT[what]}\nimport sys\nprint(sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)"
    done = isolated_python("-c", code, path=[everything])
    assert (done.returncode, done.stderr) == (0, "[]\n")
