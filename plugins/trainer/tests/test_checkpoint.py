from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from layersync_core import ConfigError
from layersync_plugin_trainer import checkpoint, resume_point


def make(folder, step=1, **identity):
    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True)
    (place / "model.safetensors").write_bytes(b"weights" * 100)
    (place / checkpoint.STATE).write_text(json.dumps({"step": step, "settings": {}, "history": []}))
    files = {file.name: checkpoint._fingerprint(file) for file in place.iterdir()}
    manifest = {"format": checkpoint.FORMAT, "step": step, "identity": identity, "files": files}
    (place / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    return place


def remove(place):
    (place / "model.safetensors").unlink()


def truncate(place):
    (place / "model.safetensors").write_bytes(b"weights" * 99)


def alter(place):
    (place / "model.safetensors").write_bytes(b"weighty" + b"weights" * 99)


def without_manifest(place):
    (place / checkpoint.MANIFEST).unlink()


def half_a_manifest(place):
    text = (place / checkpoint.MANIFEST).read_text()
    (place / checkpoint.MANIFEST).write_text(text[: len(text) // 2])


def of_another_program(place):
    (place / checkpoint.MANIFEST).write_text('{"format": "theirs"}')


def odd_manifest(place):
    (place / checkpoint.MANIFEST).write_text(json.dumps({"format": checkpoint.FORMAT}))


def naming(name, **entry):
    def damage(place):
        manifest = json.loads((place / checkpoint.MANIFEST).read_text())
        manifest["files"][name] = entry or checkpoint._fingerprint(place / "model.safetensors")
        (place / checkpoint.MANIFEST).write_text(json.dumps(manifest))

    return damage


def saying(**entries):
    def damage(place):
        manifest = json.loads((place / checkpoint.MANIFEST).read_text())
        (place / checkpoint.MANIFEST).write_text(json.dumps(manifest | entries))

    return damage


def leaving_out(place):
    manifest = json.loads((place / checkpoint.MANIFEST).read_text())
    del manifest["files"]["model.safetensors"]
    (place / checkpoint.MANIFEST).write_text(json.dumps(manifest))


DAMAGE = [
    (saying(step="2"), "has step '2'"),
    (saying(step=-5), "has step -5"),
    (saying(step=3), "says step 3, its trainer_state.json 1"),
    (saying(identity=None), "identity None"),
    (leaving_out, "does not list model.safetensors"),
    (naming("x" * 5000), "is missing"),
    (naming("../../etc/passwd"), "names '../../etc/passwd', which is not a file of a checkpoint"),
    (naming("/etc/passwd"), "names '/etc/passwd'"),
    (naming("..\\model.safetensors"), "which is not a file of a checkpoint"),
    (naming(".."), "which is not a file of a checkpoint"),
    (naming("model.safetensors", size=700), "no size and checksum of model.safetensors"),
    (remove, "model.safetensors is missing"),
    (truncate, "has 693 bytes instead of 700"),
    (alter, "content of model.safetensors"),
    (without_manifest, "has no manifest.json"),
    (half_a_manifest, "is not JSON"),
    (of_another_program, "not a checkpoint of this trainer"),
    (odd_manifest, "manifest.json lacks"),
]


@pytest.mark.parametrize(("damage", "text"), DAMAGE)
def test_damage_is_reported(tmp_path, damage, text):
    place = make(tmp_path)
    checkpoint.verify(place)
    damage(place)
    with pytest.raises(ConfigError, match=text) as caught:
        checkpoint.verify(place)
    assert "\n" not in str(caught.value)


def test_latest_is_the_highest_step(tmp_path):
    for step in (9, 10, 2):
        make(tmp_path, step)
    assert checkpoint.locate("latest", tmp_path).step == 10


def test_a_torn_latest_names_the_newest_whole_one(tmp_path):
    places = {step: make(tmp_path, step) for step in (2, 9, 10)}
    truncate(places[10])
    remove(places[9])
    with pytest.raises(ConfigError, match=r"checkpoint-10 is torn.*newest whole one is .*checkpoint-2"):
        checkpoint.locate("latest", tmp_path)
    remove(places[2])
    with pytest.raises(ConfigError, match="no whole one"):
        checkpoint.locate("latest", tmp_path)


def test_latest_in_an_empty_folder_is_a_start_and_in_another_an_error(tmp_path):
    assert checkpoint.locate("latest", tmp_path) is None
    assert checkpoint.locate("latest", tmp_path / "absent") is None
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="no checkpoint"):
        checkpoint.locate("latest", tmp_path)


def test_a_half_written_folder_is_not_taken_for_a_checkpoint(tmp_path):
    whole = make(tmp_path, 1)
    shutil.copytree(whole, tmp_path / ".checkpoint-2.partial")
    assert checkpoint.found(tmp_path) == [whole]


def test_another_identity_is_refused_by_name(tmp_path):
    place = checkpoint.verify(make(tmp_path, family="dit", model={"layers": 4, "width": 8}))
    checkpoint.check_identity(place, {"family": "dit", "model": {"layers": 4, "width": 8}})
    with pytest.raises(ConfigError, match="family was 'dit', is 'flux'"):
        checkpoint.check_identity(place, {"family": "flux"})
    with pytest.raises(ConfigError, match=r"differs in 1 place\(s\): layers was 4, is 6"):
        checkpoint.check_identity(place, {"model": {"layers": 6, "width": 8}})


def test_where_a_run_goes_on_is_known_without_torch(train, copy, tmp_path):
    code = (
        "import sys; from pathlib import Path; from layersync_plugin_trainer import resume_point;"
        "print(resume_point(Path(sys.argv[1]))); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(copy)], capture_output=True, text=True, check=False)
    assert done.stdout == "(3, 'latest')\n", done.stderr
    (copy / "checkpoint-3" / "optimizer.bin").write_bytes(b"torn")
    assert resume_point(copy) == (2, str(copy / "checkpoint-2"))
    assert train(output_dir=copy, resume_from_checkpoint=resume_point(copy)[1], max_train_steps=3).code == 0
    for name in ("nothing", "empty"):
        assert resume_point(tmp_path / name) is None
        (tmp_path / "empty").mkdir(exist_ok=True)


def test_where_a_comparison_goes_on(train):
    folder = train("--compare", checkpointing_steps=1).folder
    assert resume_point(folder) == (2, "latest")
    assert resume_point(folder / "vanilla") is None, "an arm isn't a run of its own"
