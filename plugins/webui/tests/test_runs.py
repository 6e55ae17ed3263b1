"""The pages of runs: what they show, and that anything in a run's folder is shown as text."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from layersync_core import PROCESS_FILE
from layersync_plugin_webui.runs import logs
from layersync_plugin_webui.runs.files import read_part
from layersync_plugin_webui.runs.samples import samples
from plugins.webui.tests.folders import add_rows, change_record, id_of, make_old

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def text_of(reader, path, **more):
    answer = reader.get(path, **more)
    assert answer.status_code == 200, answer.text
    return answer.text


def test_an_empty_folder_says_what_to_do(reader, runs):
    page = text_of(reader, "/runs")
    assert "0 runs below" in page
    assert f"layersync train --output_dir {runs}/first" in page


@pytest.mark.parametrize(
    ("code", "said"),
    [(0, "Finished"), (2, "Failed"), (130, "Stopped"), (-9, "Ended: killed"), (None, "Running")],
)
def test_the_list_says_how_a_run_stands(reader, make_run, code, said):
    make_run("mine", code=code)
    page = text_of(reader, "/runs")
    assert said in page
    assert "3 / 3" in page
    assert "0.3333" in page


def test_a_run_that_was_killed_with_9_shows_as_ended_within_five_seconds(reader, runs):
    code = (
        "import sys, time; from pathlib import Path; from layersync_core import ProcessRecord;"
        "ProcessRecord(Path(sys.argv[1]), 'train').begin(); print(flush=True); time.sleep(60)"
    )
    (runs / "killed").mkdir()
    with subprocess.Popen([sys.executable, "-c", code, str(runs / "killed")], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert "Running" in text_of(reader, "/runs/table")
        process.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        while "Ended unexpectedly" not in text_of(reader, "/runs/table"):
            assert time.monotonic() - killed < 5
            time.sleep(0.1)


def test_logs_without_a_record_promise_nothing(reader, runs):
    folder = runs / "simpletuner"
    folder.mkdir()
    add_rows(folder, 1)
    assert "Seems to be running" in text_of(reader, "/runs")
    make_old(folder / "layersync_metrics.jsonl")
    assert "No sign of life" in text_of(reader, "/runs")


def test_a_finished_run_of_a_version_without_records_is_finished(reader, runs):
    (runs / "old" / "checkpoint-1").mkdir(parents=True)
    (runs / "old" / "run.json").write_text("{}")
    assert "Finished" in text_of(reader, "/runs")


def test_a_page_that_is_reloaded_shows_what_was_chosen(reader, runs, make_run):
    ids = [id_of(runs, make_run(name)) for name in ("one", "two", "three")]
    page = text_of(reader, "/runs", params={"show": ids[:2], "page": 1})
    assert page.count("checked aria-label") == 2
    assert text_of(reader, "/runs?page=1").count("checked aria-label") == 0


def test_until_somebody_chooses_the_latest_run_is_chosen(reader, runs, make_run):
    change_record(make_run("old"), since=1e9)
    for path in ("/runs", "/runs/table?follow=latest&page=1"):
        page = text_of(reader, path)
        assert page.count("checked aria-label") == 1
    make_run("new")
    time.sleep(0.6)
    assert 'checked aria-label="Show the curves of new"' in text_of(reader, "/runs/table?follow=latest&page=1")


def test_curves_of_several_runs(reader, runs, make_run):
    ids = [id_of(runs, make_run(name)) for name in ("one", "two")]
    answer = reader.get("/runs/curves", params={"show": [*ids, "gone", ids[0]]}).json()["runs"]
    assert [(run["name"], run["colour"]) for run in answer] == [("one", 0), ("two", 1)]
    loss, similarity = answer[0]["curves"]
    assert (loss["metric"], loss["steps"], loss["values"][:2]) == ("loss", [1, 2, 3], [1, 0.5])
    assert loss["minutes"] == pytest.approx([0, 1 / 60, 2 / 60], abs=1e-3)
    assert similarity["metric"] == "layersync_similarity"


PATHS = [
    "/runs/..", "/runs/../..", "/runs/..%2f..%2fetc%2fpasswd", "/runs/%2e%2e/%2e%2e/etc/passwd",
    "/runs/%2fetc%2fpasswd", "/runs/mine", "/runs/%00", "/static/../app.py",
    "/static/..%2fapp.py", "/static/%2e%2e/%2e%2e/pyproject.toml",
    "/runs/{id}/samples/..%2f..%2flayersync_process.json", "/runs/{id}/samples/%2fetc%2fpasswd", "/runs/{id}/../..",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out_of_the_runs(reader, runs, make_run, path):
    folder = make_run("mine")
    (runs / "samples.png").write_bytes(b"secret")
    answer = reader.get("http://127.0.0.1:8765" + path.format(id=id_of(runs, folder)))
    assert answer.status_code in (303, 404)
    assert not any(word in answer.text for word in ("root:", "secret", "import", "[project]"))


def test_links_out_of_a_runs_folder_are_not_followed(reader, runs, make_run, tmp_path):
    folder = make_run("mine")
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("secret.log", "secret.png", "run.json"):
        (outside / name).write_text('{"family": "topsecret"}')
    (folder / "train.log").symlink_to(outside / "secret.log")
    (folder / "samples.png").symlink_to(outside / "secret.png")
    (folder / "run.json").symlink_to(outside / "run.json")
    (folder / "samples").symlink_to(outside)
    page = text_of(reader, f"/runs/{id_of(runs, folder)}")
    assert "topsecret" not in page
    assert "<img" not in page
    for name in ("process", "run", "mine"):
        (runs / "link").unlink(missing_ok=True)
        (runs / "link").symlink_to(outside / name)
    assert samples(folder) == []
    assert logs.tail(folder) is None


def test_pipes_and_devices_are_not_waited_for(reader, runs, make_run):
    folder = make_run("mine")
    for name in ("a.log", "samples.png", "events.out.tfevents.1.host.1.0", "run.json"):
        os.mkfifo(folder / name)
    text_of(reader, f"/runs/{id_of(runs, folder)}")
    with pytest.raises(OSError, match="not a regular file"):
        read_part(folder / "a.log", 0, 10)


def test_names_and_logs_stay_text(reader, runs, make_run):
    folder = make_run(EVIL.replace("/", "⁄"), **{EVIL: 1})
    change_record(folder, host=EVIL, kind=EVIL)
    (folder / "run.json").write_text(
        '{"family": "<script>alert(1)</script>", "model": 3, "blocks": [1, {"student": "<b>"}]}'
    )
    (folder / "<b>.log").write_text(f"{EVIL}\n</pre><script>alert(2)</script>\n")
    (folder / "samples").mkdir()
    (folder / "samples" / '"><script>.png').write_bytes(b"GIF89a<script>")
    id = id_of(runs, folder)
    for path in ("/runs", "/runs/table", f"/runs/{id}", f"/runs/{id}/live", f"/runs/{id}/samples"):
        page = text_of(reader, path)
        assert "alert" in page or path.endswith("samples")
        for script in page.split("<script")[1:]:
            assert script.startswith(' defer src="/static/')
        assert "onerror=alert(1)>" not in page
        assert "<b>" not in page
    answer = reader.get("/runs/curves", params={"show": id})
    assert answer.headers["content-type"] == "application/json"
    assert EVIL in [curve["metric"] for curve in answer.json()["runs"][0]["curves"]]


def test_no_page_has_a_script_or_style_within(reader, runs, make_run):
    folder = make_run("mine")
    for path in ("/runs", f"/runs/{id_of(runs, folder)}", "/nothing"):
        page = reader.get(path).text
        assert "style=" not in page
        assert "<style" not in page
        assert " onclick" not in page
        assert "//" not in page.replace("<!--", "")


@pytest.mark.parametrize(
    "text", ["", "[]", '"x"', "[" * 100_000, "\0" * 100, '{"config": [], "data": "x", "blocks": 3}']
)
def test_a_run_json_of_anybody_breaks_no_page(reader, runs, make_run, text):
    folder = make_run("mine")
    (folder / "run.json").write_text(text)
    text_of(reader, f"/runs/{id_of(runs, folder)}")


def test_times_that_no_clock_has_break_no_page(reader, runs, make_run):
    folder = make_run("mine")
    change_record(folder, since=1e300, until=-1e300, total_steps=10**30)
    text_of(reader, "/runs")
    text_of(reader, f"/runs/{id_of(runs, folder)}")


def test_half_characters_and_times_of_no_clock_break_no_curves(reader, runs, make_run):
    folder = make_run("mine")
    (folder / "run.json").write_text('{"family": "\\ud800"}')
    rows = [
        '{"step": 4, "time": 1e308, "\\ud800": 1}',
        '{"step": 5, "time": -1e308, "loss": 1e308}',
        '{"step": 6, "loss": 1e999}',
    ]
    with (folder / "layersync_metrics.jsonl").open("a") as file:
        file.write("\n".join(rows) + "\n")
    id = id_of(runs, folder)
    text_of(reader, f"/runs/{id}")
    curves = reader.get("/runs/curves", params={"show": id}).json()["runs"][0]["curves"]
    assert curves[0]["minutes"][-3:] == [pytest.approx(2 / 60, abs=1e-3), None, None]
    assert curves[0]["values"][-2:] == [1e308, None]


def test_the_latest_run_is_the_one_that_began_last(reader, runs, make_run):
    for number, name in enumerate(("b", "c", "a")):
        change_record(make_run(name), since=1e9 + number)
    (runs / "b" / "new").write_text("")
    page = text_of(reader, "/runs")
    places = [page.index(f">{name}</a>") for name in ("a", "c", "b")]
    assert places == sorted(places)


def test_only_the_end_of_a_log_of_a_gigabyte_is_read(reader, runs, make_run):
    folder = make_run("mine")
    with (folder / "train.log").open("wb") as file:
        file.truncate(1 << 30)
        file.seek(0, os.SEEK_END)
        file.write(b"\n10%|#\r20%|##\r30%|###\n\x1b[31mred\x1b[0m \x1b]0;title\x07\xff\nlast line\n")
    id, started = id_of(runs, folder), time.process_time()
    page = text_of(reader, f"/runs/{id}/live")
    assert time.process_time() - started < 2
    assert len(page) < 100_000
    assert "30%|###\nred �\nlast line</pre>" in page
    assert "10%" not in page


def test_of_a_log_the_last_lines_are_shown(make_run):
    folder = make_run("mine")
    (folder / "train.log").write_text("".join(f"line {number}\n" for number in range(100_000)))
    lines = logs.tail(folder).lines
    assert (len(lines), lines[0], lines[-1]) == (200, "line 99800", "line 99999")
    (folder / "train.log").write_text("x" * 1_000_000)
    assert [len(line) for line in logs.tail(folder).lines] == [2000]


def test_the_newest_log_is_shown(make_run):
    folder = make_run("mine")
    for name in ("old.log", "new.out"):
        (folder / name).write_text(name)
    make_old(folder / "old.log")
    assert logs.tail(folder) == ("new.out", ["new.out"])


def test_samples_come_by_step(reader, runs, make_run):
    folder = make_run("mine")
    (folder / "samples").mkdir()
    (folder / "validation_images").mkdir()
    names = ("samples/step_20.png", "samples/step-3.png", "validation_images/100_prompt.jpg", "samples.png")
    for name in (*names, "samples/evil.svg", "samples/page.html", "curves.png"):
        (folder / name).write_bytes(name.encode())
    found = samples(folder)
    assert [(sample.step, sample.name) for sample in found] == [
        (3, "samples/step-3.png"),
        (20, "samples/step_20.png"),
        (100, "validation_images/100_prompt.jpg"),
        (None, "samples.png"),
    ]
    id = id_of(runs, folder)
    assert 'max="3" value="3"' in text_of(reader, f"/runs/{id}/samples")
    assert "step 20" in text_of(reader, f"/runs/{id}/samples", params={"at": 1})
    assert 'value="3"' in text_of(reader, f"/runs/{id}/samples", params={"at": 99})
    answer = reader.get(f"/runs/{id}/samples/{found[2].id}")
    assert (answer.headers["content-type"], answer.content) == ("image/jpeg", b"validation_images/100_prompt.jpg")


def test_500_runs_are_there_within_two_seconds(reader, make_run):
    for number in range(500):
        make_run(f"sweep/run-{number:03}", rows=50)
    started = time.process_time()
    page = text_of(reader, "/runs")
    assert time.process_time() - started < 2
    assert "500 runs below" in page
    assert "page 1 of 10" in page
    assert page.count("<tr id=") == 50
    assert text_of(reader, "/runs?page=10").count("<tr id=") == 50
    assert text_of(reader, "/runs?page=11").count("<tr id=") == 50


@pytest.mark.parametrize("query", ["page=0", "page=x", "page=99999999999", "&".join(["show=x"] * 65)])
def test_requests_that_this_page_does_not_make_are_refused(reader, query):
    assert reader.get(f"/runs?{query}").status_code == 422


def test_a_run_that_is_gone_is_a_page_that_says_so(reader, runs, make_run):
    folder = make_run("mine")
    id = id_of(runs, folder)
    text_of(reader, f"/runs/{id}")
    (folder / PROCESS_FILE).unlink()
    (folder / "layersync_metrics.jsonl").unlink()
    deadline = time.monotonic() + 5
    while reader.get(f"/runs/{id}").status_code != 404:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "moved or removed" in reader.get(f"/runs/{id}").text
