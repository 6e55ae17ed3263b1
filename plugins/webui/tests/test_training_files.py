"""A trainer's file in and out: its own keys stay as they are, byte for byte."""

from __future__ import annotations

import base64
import json

import pytest

from layersync_core import canonical
from layersync_plugin_webui.training import routes
from plugins.webui.tests.filling import Controls, FakeWorker, post

SIMPLETUNER = """{
    "--model_type": "lora",
    "--layersync_enabled": true,
    "--layersync_student_block": 8,
    "layersync_lambda"  :  0.20,
    "--reg_weight": 5, "output_dir": "theirs",
    "--learning_rate": 1e-4,
    "crepa_enabled": false, "crepa_lambda": 0.5,
    "seed": 42
}
"""


@pytest.fixture(autouse=True)
def worker(monkeypatch):
    found = FakeWorker()
    monkeypatch.setattr(routes, "Worker", lambda: found)
    return found


def read_in(reader, text, **typed):
    answer = post(reader, "/training/import", **{"page.imported": text, **typed})
    assert answer.status_code == 200, answer.text
    return dict(Controls(answer.text).sent)


def written(reader, typed):
    answer = post(reader, "/training/export", pairs=[*typed.items()])
    assert answer.status_code == 200, answer.text
    assert "attachment" in answer.headers["content-disposition"]
    return answer.text


def test_a_file_fills_the_form_and_takes_nothing_of_the_hosts(reader):
    typed = read_in(
        reader, SIMPLETUNER, layersync_teacher_block="3", seed="7", **{"page.way": "run", "page.command": "x"}
    )
    ours = {key: value for key, value in typed.items() if key.startswith(("layersync_", "crepa_")) and value}
    assert ours == {
        "layersync_enabled": "true",
        "layersync_student_block": "8",
        "layersync_lambda": "0.2",
        "crepa_enabled": "false",
        "crepa_lambda": "0.5",
    }
    assert (typed["seed"], typed["output_dir"], typed["learning_rate"]) == ("7", "", "")
    assert (typed["page.way"], typed["page.command"]) == ("run", "x")
    assert typed["page.imported"] == SIMPLETUNER.removeprefix("\n")


def test_saving_what_was_read_changes_no_byte(reader):
    for text in (SIMPLETUNER, "\n" + SIMPLETUNER.replace("\n", "\r\n"), '{"layersync_enabled": "yes", "a": 1}'):
        typed = read_in(reader, text)
        assert written(reader, typed) == text.replace("\r\n", "\n")


@pytest.mark.parametrize("ends", ["\r\n", "\r", "\n"])
def test_a_file_stays_itself_whatever_a_text_field_makes_of_it(reader, ends):
    text = "\ufeff" + SIMPLETUNER.replace("\n", ends)
    typed = read_in(reader, text, **{"page.original": base64.b64encode(text.encode()).decode()})
    assert written(reader, typed).encode() == text.encode()
    changed = written(reader, {**typed, "layersync_lambda": "0.3"})
    assert changed.encode() == text.replace('"layersync_lambda"  :  0.20', '"layersync_lambda"  :  0.3').encode()
    # What is typed into the field over it counts.
    assert "a" in json.loads(written(reader, {**typed, "page.imported": '{"a": 1}'}))


def test_a_file_that_is_not_utf8_is_refused(reader):
    text = '{"layersync_enabled": true, "name": "caf\xe9"}'
    sent = {"page.imported": text, "page.original": base64.b64encode(text.encode("latin-1")).decode()}
    for path in ("import", "export"):
        answer = post(reader, f"/training/{path}", **sent)
        assert "is not valid UTF-8" in answer.text.split('id="error-page.imported"')[1].split("</div>")[0]
    assert post(reader, "/training/import", **{"page.original": "%"}).status_code == 422


def test_only_what_was_changed_changes(reader):
    typed = read_in(reader, SIMPLETUNER)
    typed |= {"layersync_teacher_block": "16", "layersync_lambda": "0.3", "layersync_guard": "true"}
    text = written(reader, typed)
    changes = {"layersync_lambda": 0.3, "layersync_teacher_block": 16, "layersync_guard": True}
    assert canonical(json.loads(text)) == canonical(json.loads(SIMPLETUNER)) | changes
    assert '"layersync_lambda"  :  0.3,' in text
    assert text.startswith(SIMPLETUNER[: SIMPLETUNER.index('"layersync_lambda"')])
    del typed["layersync_student_block"]
    assert "layersync_student_block" not in written(reader, typed)


def test_a_file_of_the_trainers_own_is_read_whole(reader):
    own = '{"max_train_steps": 50, "--learning_rate": 1e-3, "layersync_student_block": 2}'
    typed = read_in(reader, own, seed="7", layersync_lambda="1", **{"page.way": "run"})
    assert (typed["max_train_steps"], typed["learning_rate"], typed["layersync_student_block"]) == ("50", "0.001", "2")
    assert (typed["seed"], typed["layersync_lambda"], typed["page.way"]) == ("", "", "train")
    assert written(reader, typed) == own
    typed["max_train_steps"] = "60"
    saved = json.loads(written(reader, typed))
    assert saved == {"max_train_steps": 60, "learning_rate": 0.001, "layersync_student_block": 2}


def test_without_a_file_what_was_given_is_saved(reader):
    assert json.loads(written(reader, {"layersync_enabled": "true", "seed": "0", "layersync_pairs": "[[1, 2]]"})) == {
        "layersync_enabled": True,
        "seed": 0,
        "layersync_pairs": [[1, 2]],
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not valid JSON"),
        ("[1]", "expected an object"),
        ('{"layersync_enabled": true, "layersync_stundent_block": 1}', "did you mean layersync_student_block"),
        ('{"crepa_enabled": true, "crepa_nothing": 1}', "unknown setting crepa_nothing"),
        ('{"a": 1, "a": 2}', "twice"),
        ('{"layersync": {"enabled": true}}', "section"),
    ],
)
def test_a_file_that_cannot_be_read_is_reported_and_nothing_is_lost(reader, text, told):
    answer = post(reader, "/training/import", **{"page.imported": text, "layersync_lambda": "3"})
    assert answer.status_code == 200
    place = answer.text.split('id="error-page.imported"')[1].split("</div>")[0]
    assert told in place
    assert Controls(answer.text).value("layersync_lambda") == "3"
    assert Controls(answer.text).value("page.imported") == text


def test_keys_of_a_plugin_that_is_off_may_be_the_hosts(reader):
    text = '{"crepa_enabled": false, "crepa_nothing": 1, "layersync_enabled": false}'
    typed = read_in(reader, text)
    assert written(reader, typed) == text


def test_yaml_is_read_by_the_ending_of_its_name(reader):
    typed = read_in(reader, "layersync_enabled: true\nlayersync_lambda: 0.1\n", **{"page.filename": "a.yaml"})
    assert typed["layersync_lambda"] == "0.1"
    answer = post(reader, "/training/export", pairs=[*{**typed, "layersync_lambda": "1"}.items()])
    assert answer.status_code == 200
    assert "export the settings as JSON" in answer.text
