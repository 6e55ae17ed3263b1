"""Building and trying: what is refused, and what a failure shows."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from release import trying
from release.building import build, check, python
from release.distributions import Distribution
from release.errors import ReleaseError


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.whl").touch()
    with pytest.raises(ReleaseError, match="is not empty; name a new folder, or remove it"):
        build(tmp_path)


def test_a_failure_shows_what_was_printed_last() -> None:
    code = "import sys; print(*range(100), sep='\\n'); sys.exit('because')"
    with pytest.raises(ReleaseError, match=r"(?s)failed:\n.*99\nbecause$") as failed:
        python(["-c", code])
    assert "\n50\n" not in str(failed.value)


def test_a_wheel_with_more_than_its_package_is_refused(tmp_path: Path) -> None:
    info, metadata = "it-1.0.dist-info", "Metadata-Version: 2.1\nName: it\nVersion: 1.0\nDescription: It.\n"
    files = {
        "it/__init__.py": "",
        "tests/__init__.py": "",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\n",
    }
    with zipfile.ZipFile(tmp_path / "it-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]))
    with pytest.raises(ReleaseError):
        check([tmp_path / "it-1.0-py3-none-any.whl"])


WORKS = {"family": "dit", "state": "installed", "detail": "similarity 0.5"}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (WORKS | {"state": "not installed"}, "list-supported does not have dit"),
        (WORKS | {"detail": ""}, "dit was not tried"),
        (WORKS, None),
    ],
)
def test_an_adapter_that_was_not_tried_fails(
    monkeypatch: pytest.MonkeyPatch, row: dict[str, str], why: str | None
) -> None:
    monkeypatch.setattr(trying, "python", lambda *_: json.dumps([row]))
    project = {"name": "layersync-adapter-dit", "entry-points": {"layersync.adapters": {"dit": "it:adapter"}}}
    distribution = Distribution(Path(), project)
    if why is None:
        assert trying._works("python", distribution) == "1 families work"
    else:
        with pytest.raises(ReleaseError, match=why):
            trying._works("python", distribution)


def test_what_is_tried_does_not_see_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("LAYERSYNC_LOAD", "dit")
    assert not {"PYTHONPATH", "LAYERSYNC_LOAD"} & trying._variables().keys()
