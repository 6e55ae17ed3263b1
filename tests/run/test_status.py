"""Status files: their folder, what is made of them, and what their absence says of a command that trained nothing."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import pytest

from layersync_core.run.status import UNREACHED, Record, Status, read_all, summary, why_nothing
from tests.run.processes import FLAGS, LAYERSYNC, RUN, SETTINGS, SUMMARY, Script, python, run


@pytest.mark.slow
def test_a_folder_for_status_files_loses_nothing_of_the_users(script: Script, tmp_path: Path) -> None:
    path = script("import tiny_dit; tiny_dit.train(tiny_dit.build(), 5)")
    (tmp_path / "layersync.json").write_text(json.dumps(SETTINGS))
    for name in ("1.json", "hook", "metrics.jsonl"):
        (tmp_path / name).write_text("mine")
    words = [LAYERSYNC, "run", *FLAGS, "--layersync_status_dir", ".", *python(path)]
    for _ in range(2):
        assert f"5 steps {SUMMARY}" in run(words, cwd=tmp_path).stderr
    assert json.loads((tmp_path / "layersync.json").read_text()) == SETTINGS
    assert all((tmp_path / name).read_text() == "mine" for name in ("1.json", "hook", "metrics.jsonl"))
    assert len((tmp_path / "layersync_metrics.jsonl").read_text().splitlines()) == 10


NOTHING = {
    "no Python": (["true"], "no Python of this command ran the start-up hook"),
    "isolated": ([sys.executable, "-I", "-c", "pass"], "python -I"),
    "no torch": ([sys.executable, "-c", "pass"], "no process of this command imported torch"),
    "no training": (
        [sys.executable, "-c", "import tiny_dit; tiny_dit.build()(*tiny_dit.batch())"],
        "no process of this command trained a model with LayerSync; model classes seen: DiT",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", NOTHING)
def test_a_command_that_trains_nothing_fails(case: str) -> None:
    words, said = NOTHING[case]
    done = run([*RUN, *words], 2)
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_links_in_a_status_folder_are_not_followed(script: Script, tmp_path: Path) -> None:
    folder, mine = tmp_path / "status", tmp_path / "mine"
    folder.mkdir()
    mine.write_text("precious")
    for name in ("layersync_hook", "layersync_metrics.jsonl", "layersync_settings.json", "layersync_settings.tmp"):
        (folder / name).symlink_to(mine)
    # The trainer's own process number is not known beforehand.
    path = script(
        f"import os; os.symlink({str(mine)!r}, f{str(folder)!r} + f'/layersync_status_{{os.getpid()}}.tmp')\n"
        "import tiny_dit; tiny_dit.train(tiny_dit.build())"
    )
    done = run([LAYERSYNC, "run", *FLAGS, "--layersync_status_dir", str(folder), *python(path)])
    assert SUMMARY in done.stderr
    assert mine.read_text() == "precious"
    assert "metrics could not be written" in done.stderr


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (Status(terms=5, steps=5, first=0.1, last=0.25), "5 steps with the term, 1 rank, similarity 0.1000 -> 0.2500"),
        (Status(terms=4, steps=1), "1 step with the term, 1 rank"),
        (Status(terms=1, steps=1, idle=1), "1 of 2 steps with the term, 1 rank"),
        (Status(terms=1), "1 loss with the term, 1 rank"),
        (Status(terms=2, first=0.5), "2 losses with the term, 1 rank, similarity 0.5000 -> 0.5000"),
        (
            Status(terms=6, steps=6, first=0.9, last=math.nan),
            "6 steps with the term, 1 rank, similarity 0.9000 -> not finite",
        ),
        (Status(terms=1, steps=1, tracker="logged to wandb"), "1 step with the term, 1 rank; logged to wandb"),
    ],
)
def test_the_summary_is_of_a_process_that_trained(status: Status, line: str, tmp_path: Path) -> None:
    assert summary([Status(), status]) == line
    status.write(tmp_path)
    assert summary(read_all(tmp_path)) == line


def test_the_summary_counts_the_ranks_that_trained() -> None:
    trained = [Status(terms=2, steps=2, rank=rank) for rank in (0, 1, 1)]
    assert summary([*trained, Status(rank=2)]) == "2 steps with the term, 2 ranks"


@pytest.mark.parametrize(
    ("processes", "reached", "said"),
    [
        ([Status(), Status(error="the first"), Status(error="the second")], True, "the first"),
        ([], False, UNREACHED),
        ([], True, "no process of this command imported torch, so nothing was trained"),
        ([Status()], True, "model classes seen: none"),
        ([Status(seen=["DiT", "B"]), Status(seen=["A", "B"])], True, "model classes seen: A, B, DiT"),
    ],
)
def test_why_nothing_was_trained(processes: list[Status], reached: bool, said: str) -> None:
    assert why_nothing(processes, reached).endswith(said)


def test_what_processes_wrote_is_read_by_rank(tmp_path: Path) -> None:
    Status(rank=1, terms=3, seen=["DiT"]).write(tmp_path)
    (own,) = read_all(tmp_path)
    assert (own.rank, own.terms, own.seen, own.pid) == (1, 3, ["DiT"], os.getpid())
    others = {1: {"rank": 2, "pid": 1}, 3: {"rank": 0, "pid": 3}, 2: {"rank": 0, "pid": 2}, 4: {"unknown": 1}}
    for number, content in others.items():
        (tmp_path / f"layersync_status_{number}.json").write_text(json.dumps(content))
    (tmp_path / "layersync_status_5.json").write_text('{"rank": ')  # killed while it wrote
    (tmp_path / "layersync_status_6.json").symlink_to(tmp_path / "layersync_status_1.json")
    assert [(status.rank, status.pid) for status in read_all(tmp_path)] == [(0, 2), (0, 3), (1, own.pid), (2, 1)]


def test_a_status_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    Status().write(None)
    Status().write(tmp_path / "missing")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        "[1, 2]",
        "null",
        '{"rank": "x"}',
        '{"terms": "many"}',
        '{"trainings": 5, "terms": 1}',
        '{"first": "a", "terms": 1}',
    ],
)
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "layersync_status_1.json").write_text(content)
    assert read_all(tmp_path) == []


def test_a_last_line_of_many_trainings_can_be_read() -> None:
    trainings = [Record(f"DiT#{number}", 2, 2, 0, None, None) for number in range(1, 21)]
    line = summary([Status(terms=40, steps=40, trainings=trainings)])
    assert line.count("steps with the term") == 8
    assert "DiT#4: 2 steps with the term; 12 more trainings; DiT#17: 2 steps with the term" in line
