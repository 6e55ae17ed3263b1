from __future__ import annotations

import json

import pytest

PAIR = {"layersync_enabled": "true", "layersync_student_block": 2, "layersync_teacher_block": 5}


def test_a_single_setting_changes_the_default_run(train):
    run = train("--layersync_lambda", "0.5")
    assert run.code == 0, run.err
    assert json.loads((run.folder / "run.json").read_text())["config"]["layersync_lambda"] == "0.5"
    teacher = train("--layersync_teacher_block", "7", folder="teacher")
    assert teacher.code == 0, teacher.err
    default = train(folder="default")
    blocks, ours = (json.loads((it.folder / "run.json").read_text())["blocks"][0] for it in (default, teacher))
    assert ours == blocks | {"teacher": "block 7 of 8 (transformer_blocks.6)"}
    assert blocks["teacher"] != ours["teacher"]


@pytest.mark.parametrize("flag", ["--layersync_teacher_block", "--layersync-student-block", "--gt-encoder-depth"])
def test_one_setting_that_does_not_fit_is_reported(train, flag):
    run = train(flag, "99")
    assert run.code == 2
    assert "LayerSync could not find layer 99" in run.err


def test_a_resumed_run_takes_one_setting_over_its_own(train):
    first = train(max_train_steps=2, **PAIR)
    assert first.code == 0, first.err
    again = train("--layersync_lambda", "0.05", resume_from_checkpoint="latest", max_train_steps=3)
    assert again.code == 0, again.err
    assert "regularizer settings change from here on: layersync_lambda 0.05" in again.out
    run = json.loads((again.folder / "run.json").read_text())
    assert run["blocks"][0]["student"].startswith("block 2 ")
    assert run["blocks"][0]["teacher"].startswith("block 5 ")
