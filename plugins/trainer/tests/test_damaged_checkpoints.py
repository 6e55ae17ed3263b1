"""Damaged or edited checkpoints: one line that names the file, and nothing is written."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from layersync_plugin_trainer import checkpoint

WEIGHTS, OPTIMISER, RANDOM = "model.safetensors", "optimizer.bin", "random_states_0.pkl"
LAYERSYNC = "layersync_state.safetensors"
READ = [WEIGHTS, OPTIMISER, "scheduler.bin", RANDOM, LAYERSYNC, checkpoint.STATE]
"""The files that a resumed run reads besides the manifest."""


def remove(file):
    file.unlink()


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


def rubbish(file):
    file.write_bytes(b"\x80\xff rubbish " * 40)


def another(file):
    """Replace it with a file of the same kind that holds something else."""
    if file.suffix == ".json":
        file.write_text('["something", "else"]')
    elif file.suffix == ".safetensors":
        save_file({"something": torch.zeros(2)}, file)
    else:
        torch.save({"something": "else"}, file)


def folder(file):
    file.unlink()
    file.mkdir()


def seal(place):
    """Make the manifest agree with the files, as someone who edits a checkpoint by hand may do."""
    manifest = json.loads((place / checkpoint.MANIFEST).read_text())
    files = [file for file in place.iterdir() if file.is_file() and file.name != checkpoint.MANIFEST]
    manifest["files"] = {file.name: checkpoint._fingerprint(file) for file in files}
    (place / checkpoint.MANIFEST).write_text(json.dumps(manifest))


def contents(place):
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def refusal(train, copy, **settings):
    """Return the one line that a resumed run ends with, having written nothing."""
    before = contents(copy)
    result = train(output_dir=copy, resume_from_checkpoint="latest", max_train_steps=4, **settings)
    assert result.code == 2, result.err
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, result.err
    assert contents(copy) == before
    assert str(copy / "checkpoint-3") in lines[0]
    return lines[0]


@pytest.mark.parametrize("damage", [remove, cut, empty, rubbish, another, folder])
@pytest.mark.parametrize("name", [checkpoint.MANIFEST, *READ])
def test_a_file_that_is_not_what_was_written(train, copy, name, damage):
    damage(copy / "checkpoint-3" / name)
    line = refusal(train, copy)
    assert name in line
    assert f"the newest whole one is {copy / 'checkpoint-2'}" in line


@pytest.mark.parametrize("damage", [remove, cut, empty, rubbish, another])
@pytest.mark.parametrize("name", READ)
def test_a_file_that_the_manifest_vouches_for(train, copy, name, damage):
    damage(copy / "checkpoint-3" / name)
    seal(copy / "checkpoint-3")
    assert name in refusal(train, copy)


def test_weights_that_are_not_all_there(train, copy):
    file = copy / "checkpoint-3" / WEIGHTS
    weights = load_file(file)
    del weights["proj_out_2.weight"]
    save_file(weights, file)
    seal(copy / "checkpoint-3")
    assert "has no proj_out_2.weight" in refusal(train, copy)


def test_random_numbers_of_which_one_is_missing(train, copy):
    """accelerate silently skips what it cannot read."""
    file = copy / "checkpoint-3" / RANDOM
    states = torch.load(file, weights_only=False)
    del states["torch_manual_seed"]
    torch.save(states, file)
    seal(copy / "checkpoint-3")
    assert f"{RANDOM} cannot be read: KeyError: 'torch_manual_seed'" in refusal(train, copy)


@pytest.mark.parametrize(
    "entries",
    [
        {"settings": None},
        {"settings": ["seed"]},
        {"history": None},
        {"history": {"loss": 1}},
        {"history": [1]},
        {"history": [{"loss": 1.0}]},
        {"history": [{"step": 3, "loss": "low"}]},
        {"step": "3"},
    ],
    ids=str,
)
def test_a_state_that_was_edited(train, copy, entries):
    file = copy / "checkpoint-3" / checkpoint.STATE
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
    seal(copy / "checkpoint-3")
    assert checkpoint.STATE in refusal(train, copy)


def test_a_setting_that_was_edited(train, copy):
    file = copy / "checkpoint-3" / checkpoint.STATE
    state = json.loads(file.read_text())
    state["settings"]["train_batch_size"] = "many"
    file.write_text(json.dumps(state))
    seal(copy / "checkpoint-3")
    assert "train_batch_size is 'many'" in refusal(train, copy)


def test_a_state_of_another_program_s_models(train, copy):
    file = copy / "checkpoint-3" / LAYERSYNC
    about = {"version": 2, "states": {"WanModel#1": {"step": 3, "modules": []}}}
    save_file({}, file, metadata={"layersync": json.dumps(about)})
    seal(copy / "checkpoint-3")
    assert LAYERSYNC in refusal(train, copy)
