"""Which folders are runs, whatever else is there."""

from __future__ import annotations

import os
import time

from layersync_core import printable
from layersync_plugin_webui.runs.finding import Finder, find_runs
from plugins.webui.tests.folders import id_of


def names(runs):
    return sorted(run.name for run in find_runs(runs))


def test_each_kind_of_run_is_found_at_any_depth(runs, make_run):
    make_run("of run")
    make_run("a/b/c")
    (runs / "simpletuner" / "logs" / "project").mkdir(parents=True)
    (runs / "simpletuner" / "logs" / "project" / "events.out.tfevents.1.host.1.0").write_bytes(b"")
    (runs / "bare").mkdir()
    (runs / "bare" / "events.out.tfevents.1.host.1.0").write_bytes(b"")
    (runs / "old" / "checkpoint-2").mkdir(parents=True)
    (runs / "old" / "run.json").write_text("{}")
    assert names(runs) == ["a/b/c", "bare", "of run", "old", "simpletuner"]


def test_what_is_not_a_run_is_not_listed(runs):
    for folder in ("empty", "project/.git", "venv/logs"):
        (runs / folder).mkdir(parents=True)
    (runs / "project" / "run.json").write_text("{}")
    (runs / "project" / "layersync_process.json.txt").write_text("")
    assert names(runs) == []


def test_the_folder_itself_may_be_a_run(runs, make_run):
    folder = make_run("one")
    assert names(folder) == ["one"]


def test_the_arms_of_a_comparison_share_their_process(runs, make_run):
    both = make_run("both", rows=0)
    (both / "layersync_metrics.jsonl").unlink()
    for arm in ("layersync", "vanilla"):
        (both / arm / "logs").mkdir(parents=True)
    assert names(runs) == ["both/layersync", "both/vanilla"]
    assert {run.process for run in find_runs(runs)} == {both}


def test_a_status_folder_may_be_in_the_folder_of_the_programs_logs(runs, make_run):
    status = make_run("mine/status")
    (runs / "mine" / "logs").mkdir()
    (runs / "mine" / "logs" / "events.out.tfevents.1.host.1.0").write_bytes(b"")
    ((run,)) = find_runs(runs)
    assert (run.name, run.process) == ("mine", status)


def test_links_lead_nowhere(runs, make_run, tmp_path):
    make_run("real")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "layersync_metrics.jsonl").write_text('{"step": 1, "secret": 1}\n')
    (runs / "link").symlink_to(outside)
    (runs / "circle").symlink_to(runs)
    (runs / "files").mkdir()
    (runs / "files" / "layersync_metrics.jsonl").symlink_to(outside / "layersync_metrics.jsonl")
    assert names(runs) == ["real"]


def test_hostile_names_are_distinguished_and_harmless(runs, make_run):
    for name in ("<script>alert(1)<", "new\nline", "\u202egnp", "a b", "é", "%2e%2e", "-rf"):
        make_run(name)
    os.makedirs(os.fsencode(runs) + b"/\xff\xfe")
    with open(os.fsencode(runs) + b"/\xff\xfe/layersync_metrics.jsonl", "w"):
        pass
    found = find_runs(runs)
    assert len({run.id for run in found}) == len(found) == 8
    assert all(run.id.isalnum() and run.name.isprintable() for run in found)
    assert printable("new\nline") == "new\\nline"


def test_a_folder_that_cannot_be_read_hides_no_other(runs, make_run, monkeypatch):
    make_run("good")
    (runs / "closed").mkdir()
    scan = os.scandir

    def refuse(folder):
        if str(folder).endswith("closed"):
            raise PermissionError
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert names(runs) == ["good"]


def test_a_new_run_is_found_soon(runs, make_run):
    finder = Finder(runs)
    make_run("one")
    assert len(finder.runs()) == 1
    folder = make_run("two")
    deadline = time.monotonic() + 5
    while len(finder.runs()) == 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert finder.run(id_of(runs, folder)).folder == folder
    assert finder.run("../two") is None


def test_a_comparison_goes_by_its_first_id_when_its_arms_are_there(runs, make_run):
    folder, finder = make_run("both", rows=0), Finder(runs)
    (run,) = finder.runs()
    (folder / "layersync_metrics.jsonl").unlink(missing_ok=True)
    (folder / "layersync" / "logs").mkdir(parents=True)
    finder.look_again()
    assert finder.run(run.id).folder == folder / "layersync"
    assert finder.run("0" * 20) is None
