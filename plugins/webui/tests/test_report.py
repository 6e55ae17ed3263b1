"""The report of a run as offered by the page: a file with the content of the run's page."""

from __future__ import annotations

import json
import os
import re

import pytest

from layersync_plugin_webui import language
from layersync_plugin_webui.runs import report
from plugins.webui.tests.folders import add_rows, change_record, id_of

PNG = b"\x89PNG\r\n\x1a\n"


def fetched(reader, runs, folder, **headers):
    answer = reader.get(f"/runs/{id_of(runs, folder)}/report", headers=headers)
    assert answer.status_code == 200
    return answer


def test_it_is_a_file_to_be_kept_and_its_page_has_the_link(reader, runs, make_run):
    folder = make_run("mine/first", rows=7)
    (folder / "run.json").write_text(json.dumps({"model": {"class": "DiT"}, "given": {"seed": 3}}))
    answer = fetched(reader, runs, folder)
    assert answer.headers["content-disposition"] == 'attachment; filename="layersync-mine-first.html"'
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    for said in ("mine/first", "Finished", "step 7 of 3", "DiT", "layersync train --seed 3", "last 0.1429"):
        assert said in answer.text
    assert f"/runs/{id_of(runs, folder)}/report" in reader.get(f"/runs/{id_of(runs, folder)}").text


def test_the_state_is_derived(reader, runs, make_run):
    folder = make_run("mine", code=None)
    change_record(folder, boot="another", processes=[{"pid": 1, "started": 1}], host="elsewhere")
    os.utime(folder / "layersync_process.json", (1_700_000_000, 1_700_000_000))
    assert "Ended unexpectedly" in fetched(reader, runs, folder).text


def test_a_comparison_has_one_for_both_arms(reader, runs, make_run):
    folder = make_run("both", rows=0)
    (folder / "layersync_metrics.jsonl").unlink()
    for name in ("layersync", "vanilla"):
        (folder / name).mkdir()
        (folder / name / "run.json").write_text(json.dumps({"arm": name, "family": f"family of {name}"}))
        add_rows(folder / name, 3)
    (folder / "compare.json").write_text(
        json.dumps({"arms": ["layersync", "vanilla"], "rows": [["time per step", "7 ms", "6 ms"]], "note": "One run."})
    )
    (folder / "compare_samples.png").write_bytes(PNG)
    pages = [fetched(reader, runs, folder / name).text for name in ("layersync", "vanilla")]
    for page in pages:
        assert "7 ms" in page
        assert "family of layersync" in page
        assert page.count('class="line1"') == 4  # loss and similarity, and their legends
        assert page.count("data:image/png") == 1
    first, second = (re.sub(r'<p class="quiet">Written.*', "", page) for page in pages)
    assert first == second


def test_pictures_are_few_and_not_too_large(reader, runs, make_run, monkeypatch):
    folder = make_run("mine")
    (folder / "samples").mkdir()
    for step in range(20):
        (folder / "samples" / f"step_{step}.png").write_bytes(PNG + bytes(step))
    page = fetched(reader, runs, folder).text
    assert "left out: 15" in page
    assert [int(step) for step in re.findall(r'alt="Samples: step (\d+)', page)] == [3, 7, 11, 15, 19]
    monkeypatch.setattr(report, "LARGEST_PICTURES", len(PNG) + 19)
    assert "left out: 19" in fetched(reader, runs, folder).text


def test_nothing_outside_of_the_folder_is_in_it(reader, runs, make_run, tmp_path):
    folder = make_run("mine")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "samples.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "secret.json").write_text('{"family": "secret", "targets": ["secret"]}')
    for name in ("run.json", "layersync_status_1.json", "compare.json"):
        (folder / name).symlink_to(tmp_path / "secret.json")
    page = fetched(reader, runs, folder).text
    assert "secret" not in page
    assert "c2VjcmV0" not in page


def test_what_layersync_run_says_of_its_models(reader, runs, make_run):
    folder = make_run("mine")
    for number, targets in enumerate((["Flux#1: student block 8"], "text", [["<b>"]], None)):
        (folder / f"layersync_status_{number}.json").write_text(json.dumps({"targets": targets}))
    (folder / "layersync_status_9.json").write_text("[" * 100_000)
    page = fetched(reader, runs, folder).text
    assert "Flux#1: student block 8" in page
    assert "<b>" not in page


@pytest.mark.parametrize("name", ["<script>alert(1)<", 'a"; filename="x', "new\nline", "\u202egnp", "层", "-rf"])
def test_hostile_names(reader, runs, make_run, name):
    folder = make_run(name, **{name: 1})
    (folder / "run.json").write_text(json.dumps({"family": name, "given": {name: name}, "versions": {name: name}}))
    answer = fetched(reader, runs, folder)
    assert re.fullmatch(r'attachment; filename="[A-Za-z0-9._-]+\.html"', answer.headers["content-disposition"])
    assert "<script" not in answer.text
    assert "\u202e" not in answer.text


def test_a_long_run_gives_a_small_file(reader, runs, make_run):
    page = fetched(reader, runs, make_run("long", rows=30_000)).text
    assert len(page) < 60_000
    assert "step 30000" in page


def test_it_is_in_the_reader_s_language(reader, runs, make_run, monkeypatch):
    folder = make_run("mine")
    monkeypatch.setattr(language, "gettext", lambda text: f"«{text}»")
    page = fetched(reader, runs, folder).text
    assert "«Finished»" in page
    assert "«Curves»" in page


def test_values_of_the_environment_are_masked(reader, runs, make_run, monkeypatch):
    folder = make_run("mine")
    monkeypatch.setenv("MY_API_KEY", "hunter2hunter2")
    (folder / "run.json").write_text(json.dumps({"objective": "hunter2hunter2", "given": {"x": ["a hunter2hunter2"]}}))
    (folder / "layersync_status_1.json").write_text(json.dumps({"targets": ["of hunter2hunter2"]}))
    assert "hunter2" not in fetched(reader, runs, folder).text


def test_no_such_run(reader):
    assert reader.get("/runs/nothing/report").status_code == 404
