"""A misbehaving class is reported in its row, and affects nothing else."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.classes.finding import Module
from tests.day_zero import __main__ as day_zero
from tests.day_zero.drafts import Draft, draft, family
from tests.day_zero.listing import ROOT, uncovered
from tests.day_zero.processes import python

pytestmark = pytest.mark.slow

STRANGE = "tests.day_zero.strange"
MODELS = f"{STRANGE}.models"
LONG = 300.0


@pytest.fixture(autouse=True)
def repository_is_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")


def test_every_class_is_listed_whatever_its_neighbours_do() -> None:
    found = {item.name.rpartition(".")[2]: item for item in uncovered(STRANGE, LONG)}
    assert found["a_ends_at_import"] == Module(f"{STRANGE}.a_ends_at_import", error="it ended with exit code 3")
    assert "No module named 'a_library_that_nobody_has'" in found["b_needs_a_library"].error
    assert "Passes" in found["models"].classes
    assert "Part" not in found["models"].classes
    assert found.keys() == {"a_ends_at_import", "b_needs_a_library", "models"}


def test_one_that_works_is_drafted_and_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    day_zero.main(["Passes", "--package", STRANGE, "--output", str(tmp_path / "drafts")])
    printed = capsys.readouterr().out
    assert re.search(r"^\| `Passes` \| yes \| blocks \(4\) \| passed \(11, 3 skipped\) \| 0 \|$", printed, re.M)
    assert re.search(r"^\| `\S*a_ends_at_import` \| no: the module cannot be imported: it ended", printed, re.M)
    assert printed.endswith("\n3 classes: 1 drafted, 1 of them pass the kit with no line edited.\n")
    assert summary.read_text() == printed
    assert (tmp_path / "drafts" / "layersync-adapter-passes" / "pyproject.toml").is_file()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("NeedsAnEngine", r"no: NeedsAnEngine: nothing is known about its constructor's engine: Engine"),
        ("Crashes", r"no: it ended by SIGSEGV"),
        ("EndsTheProcess", r"no: it ended and wrote nothing"),
        ("SaysNothing", r"no: it ended with exit code 2"),
    ],
)
def test_one_that_cannot_be_drafted(kind: str, says: str, tmp_path: Path) -> None:
    assert re.match(says, draft(kind, MODELS, tmp_path, LONG).drafted)


def test_one_that_hangs_is_left_when_its_time_is_up(tmp_path: Path) -> None:
    began = time.monotonic()
    assert draft("Hangs", MODELS, tmp_path, 8) == Draft("Hangs", "no: its time was up")
    assert time.monotonic() - began < 30


def test_one_that_ends_its_tests(tmp_path: Path) -> None:
    found = draft("RunsOnceOnly", MODELS, tmp_path, LONG)
    assert (found.drafted, found.blocks) == ("yes", "blocks (4)")
    assert re.fullmatch(r"test_\w+(\[.*\])?: it ended by SIGKILL", found.kit)


def test_what_no_row_could_tell_is_told_in_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(day_zero, "uncovered", lambda package, seconds: [Module(MODELS, ("Passes", "Hangs"))])
    monkeypatch.setattr(day_zero, "draft", lambda *_: 1 / 0)
    found = [one.drafted for one in day_zero.drafts(STRANGE, (), tmp_path, LONG)]
    assert found == ["no: ZeroDivisionError: division by zero"] * 2


def test_a_package_that_cannot_be_imported_is_an_error() -> None:
    with pytest.raises(SystemExit, match=r"error: not_there cannot be listed: ModuleNotFoundError"):
        day_zero.main(["--package", "not_there"])


def test_where_memory_runs_out_the_command_stays(tmp_path: Path) -> None:
    score = "print(open('/proc/self/oom_score_adj').read())"
    assert python("-c", score, folder=tmp_path, path="", seconds=LONG).out == "1000\n\n"


def test_a_row_is_one_line_of_a_table() -> None:
    assert Draft("A", "yes", "a|b\nc", "x" * 400).row() == f"| `A` | yes | a\\|b c | {'x' * 300} … | 0 |"


def test_families_are_called_by_the_class_and_no_name_is_taken() -> None:
    names = {
        "StableAudio3DiTModel": "stable_audio3",
        "HunyuanDiT2DModel": "hunyuan",
        "SkyReelsV2Transformer3DModel": "sky_reels_v2",
        "WanTransformer4DModel": "wan_transformer4d_model",
    }
    assert {kind: family(kind) for kind in names} == names
