"""The page of a training over HTTP, with what answers and what starts replaced."""

from __future__ import annotations

import json

import pytest

from layersync_core import ConfigError
from layersync_plugin_webui.jobs import PlacedError
from layersync_plugin_webui.training import routes
from layersync_plugin_webui.training.worker import WorkerError
from plugins.webui.tests.filling import Controls, FakeWorker, post

TYPED = {
    "page.way": "run",
    "page.command": "accelerate launch 'my train.py' --lr 1e-4 '<b>'",
    "page.directory": "/data/my trainer",
    "page.environment": "/envs/sd",
    "layersync_enabled": "true",
    "layersync_student_block": "8",
    "layersync_lambda": "0,2",
    "layersync_guard": "perhaps",
    "layersync_tokens": "all",
    "layersync_target": "Flux",
    "crepa_model": 'a "quoted" <name>',
    "max_train_steps": "77",
    "page.imported": '\n{"a": 1}',
    "page.filename": "a.json",
}
VARIABLES = [("page.variable", "HF_TOKEN"), ("page.value", "hf_secret"), ("page.variable", "B"), ("page.value", "")]


@pytest.fixture(autouse=True)
def worker(monkeypatch):
    found = FakeWorker()
    monkeypatch.setattr(routes, "Worker", lambda: found)
    return found


def test_it_is_the_first_page(reader):
    assert reader.get("/").headers["location"] == "/training"
    text = reader.get("/training").text
    assert text.index('href="/training"') < text.index('href="/runs"')
    for title in ("Model", "Data", "Training", "Loss functions", "Output"):
        assert f">{title}</h2>" in text


def test_all_that_was_typed_comes_back_with_an_error(reader, worker, jobs):
    worker.answers["check"] = {"error": "layersync_lambda is '0,2': input should be a valid number", "at": ""}
    answer = post(reader, pairs=VARIABLES, **TYPED)
    assert answer.status_code == 200
    page = Controls(answer.text)
    assert {name: page.value(name) for name in TYPED} == TYPED
    assert [pair for pair in page.sent if pair[0] in ("page.variable", "page.value")][:4] == VARIABLES
    assert page.attributes["layersync_lambda"]["aria-invalid"] == "true"
    assert page.attributes["layersync_lambda"]["aria-describedby"] == "help-layersync_lambda error-layersync_lambda"
    assert 'href="#layersync_lambda"' in answer.text
    place = answer.text.split('id="error-layersync_lambda"')[1].split("</div>")[0]
    assert "layersync_lambda is &#39;0,2&#39;: input should be a valid number" in place
    assert "aria-invalid" not in page.attributes["layersync_student_block"]
    assert jobs.started == []


def test_the_check_gets_what_was_given_and_nothing_else(reader, worker):
    post(reader, "/training/check", pairs=VARIABLES, **TYPED)
    (what, asked) = worker.asked[-1]
    assert (what, asked["way"]) == ("check", "run")
    assert asked["settings"] == {key: text for key, text in TYPED.items() if key.startswith(("layersync_", "crepa_"))}
    post(reader, "/training/check", **{**TYPED, "page.way": "train"})
    assert worker.asked[-1][1]["settings"]["max_train_steps"] == "77"
    assert "layersync_target" not in worker.asked[-1][1]["settings"]


def test_the_command_line_and_the_json_equal_the_form(reader, runs):
    found = post(reader, "/training/check", pairs=VARIABLES, **TYPED).json()
    assert found["command"].startswith(
        "cd '/data/my trainer' && \\\nHF_TOKEN=•••• B=•••• /envs/sd/bin/layersync run \\\n"
    )
    assert "--layersync_student_block 8 \\\n" in found["command"]
    assert found["command"].endswith("-- \\\n    accelerate launch 'my train.py' --lr 1e-4 '<b>'")
    assert "hf_secret" not in json.dumps(found)
    settings = json.loads(found["settings"])
    assert (settings["layersync_student_block"], settings["layersync_guard"]) == (8, "perhaps")
    assert "layersync_status_dir" not in settings
    found = post(reader, "/training/check", output_dir="mine", seed="-3").json()
    assert found["command"].split() == [
        "layersync",
        "train",
        "\\",
        "--output_dir",
        str(runs / "mine"),
        "\\",
        "--seed=-3",
    ]
    assert json.loads(found["settings"]) == {"output_dir": str(runs / "mine"), "seed": -3}
    assert found["name"] == "mine"


def test_train_starts_and_leads_to_the_run(reader, jobs, runs):
    (runs / "run-1").mkdir()
    answer = post(reader, layersync_student_block="2", layersync_target="T", output_dir="")
    assert answer.status_code == 303
    assert jobs.started == [("train", "run-2", {"layersync_student_block": "2"})]
    assert "run-2" in reader.get(answer.headers["location"]).text
    answer = post(reader, pairs=VARIABLES, **{**TYPED, "layersync_status_dir": str(runs / "mine")})
    way, name, command, settings, directory, environment, variables = jobs.started[-1]
    assert (way, name, command) == ("run", "mine", TYPED["page.command"])
    assert (directory, environment) == ("/data/my trainer", "/envs/sd")
    assert variables == {"HF_TOKEN": "hf_secret", "B": ""}
    assert "layersync_status_dir" not in settings
    assert "max_train_steps" not in settings


@pytest.mark.parametrize(
    ("typed", "error", "field"),
    [
        ({"page.way": "run"}, None, "page.command"),
        ({"page.way": "run", "page.command": "python 'x"}, None, "page.command"),
        ({"page.way": "run", "page.command": "A=1 x"}, None, "page.command"),
        ({"output_dir": "run"}, PlacedError("there is run already", "name"), "output_dir"),
        (
            {"page.way": "run", "page.command": "x"},
            PlacedError("/x has no bin/python", "environment"),
            "page.environment",
        ),
        ({"page.way": "run", "page.command": "x"}, PlacedError("/x is not a folder", "directory"), "page.directory"),
        ({"page.way": "run", "page.command": "x"}, PlacedError("'1' cannot be the name", "variable"), "page.variable"),
        ({"seed": "1"}, ConfigError("seed is odd"), "seed"),
    ],
)
def test_what_starting_refuses_is_beside_its_field(reader, jobs, typed, error, field):
    jobs.error = error
    answer = post(reader, **typed)
    assert answer.status_code == 200
    place = answer.text.split(f'id="error-{field}"')[1].split("</div>")[0]
    assert "<p>" in place
    assert jobs.started == []


def test_a_value_without_a_name_is_refused_and_not_shown(reader, jobs):
    pairs = [("page.variable", ""), ("page.value", "hf_secret")]
    answer = post(reader, pairs=pairs, **{"page.way": "run", "page.command": "python x.py"})
    assert answer.status_code == 200
    assert answer.text.count("hf_secret") == 1, "in the field that it was typed into, which masks it"


def test_a_page_that_may_start_nothing_starts_nothing(reader, jobs):
    jobs.may_start = False
    jobs.why_not = lambda: "nothing is started from another machine"
    text = reader.get("/training").text
    assert "nothing is started from another machine" in text
    assert 'id="train" disabled' in text
    assert post(reader, "/training/measure", family="flux").status_code == 403
    assert post(reader, seed="1").status_code == 403
    assert jobs.started == []


def test_what_no_command_line_can_have_is_reported(reader):
    found = post(reader, "/training/check", output_dir="a", crepa_model="a\0b").json()
    assert "crepa_model has a character that no command line can have" in found["command"]


def test_plugins_that_break_everything_leave_a_page_that_says_so(reader, worker, monkeypatch):
    def broken():
        raise WorkerError("the process ended: <boom>")

    monkeypatch.setattr(worker, "fields", broken)
    for answer in (
        reader.get("/training"),
        post(reader),
        post(reader, "/training/import"),
        post(reader, "/training/export"),
    ):
        assert answer.status_code == 503
        assert "the process ended: &lt;boom&gt;" in answer.text
    assert post(reader, "/training/check").json()["errors"][0]["text"] == "the process ended: <boom>"
    assert reader.get("/runs").status_code == 200


def test_a_check_without_an_answer_is_reported_on_top(reader, worker):
    worker.answers["check"] = WorkerError("no answer after 90 seconds")
    found = post(reader, "/training/check", seed="1").json()
    assert found["errors"] == [{"key": "", "text": "no answer after 90 seconds", "shown": None}]
    assert "--seed 1" in found["command"]


def test_without_the_trainer_there_is_ones_own_command(reader, worker):
    worker.described = {**worker.described, "trainer": None, "no_trainer": "pip install layersync-plugin-trainer"}
    text = reader.get("/training").text
    assert "pip install layersync-plugin-trainer" in text
    assert 'id="layersync_target"' in text
    assert 'id="max_train_steps"' not in text


def test_a_form_that_is_too_large_or_comes_from_elsewhere_is_refused(reader):
    assert post(reader, seed="1" * 5_000_000).status_code == 413
    assert reader.post("/training", headers={"Origin": "http://evil.example"}).status_code == 403
    assert reader.get("/training/import").headers["location"] == "/training"
    assert reader.get("/training/check").status_code == 303


def test_in_another_language_the_original_is_shown_below(reader, worker, jobs):
    text = "layersync_lambda is '0,2': input should be a valid number"
    worker.answers["check"] = {"error": text, "at": ""}
    reader.cookies.set("layersync-language", "zh")
    answer = post(reader, layersync_lambda="0,2")
    place = answer.text.split('id="error-layersync_lambda"')[1].split("</div>")[0]
    assert 'lang="en">layersync_lambda is &#39;0,2&#39;: input should' in place
    assert not place.split("<p>")[1].startswith("layersync_lambda is")
