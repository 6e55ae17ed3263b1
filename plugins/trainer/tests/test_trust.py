"""Which distributions a run was done with: in run.json and in checkpoints, and said where a resumed run has others."""

from __future__ import annotations

import json
import zlib
from importlib.metadata import version

from safetensors import safe_open
from safetensors.torch import save_file

from layersync_core import __version__

STATE = "layersync_state.safetensors"


def test_run_json_and_checkpoints_say_it(finished):
    run = json.loads((finished / "run.json").read_text())
    names = {record["name"]: (record["version"], record["role"]) for record in run["distributions"]}
    assert names == {"layersync-core": (__version__, "core"), "layersync-adapter-dit": (__version__, "adapter")}
    assert f"layersync-plugin-webui {__version__}" in run["only_loaded"]
    assert f"layersync-plugin-trainer {__version__}" not in run["only_loaded"]
    assert run["versions"]["layersync-plugin-trainer"] == __version__
    assert run["versions"]["torch"] == version("torch")
    manifest = json.loads((finished / "checkpoint-3" / "manifest.json").read_text())
    assert manifest["distributions"] == run["distributions"]
    assert {"torch", "diffusers", "accelerate"} <= manifest["libraries"].keys()
    with safe_open(finished / "checkpoint-3" / STATE, framework="pt") as file:
        about = json.loads(file.metadata()["layersync"])
    assert about["states"][""]["distributions"] == run["distributions"]


def test_a_resumed_run_says_what_has_another_version(copy, train, caplog):
    written(copy, lambda records: [{**record, "version": "0.0.1"} for record in records])
    done = train(output_dir=copy, resume_from_checkpoint="latest", max_train_steps=4)
    assert done.code == 0, done.err
    (line,) = [line for line in caplog.messages if "the checkpoint was written with" in line]
    assert f"layersync-core 0.0.1 (now {__version__}), layersync-adapter-dit 0.0.1 (now {__version__})" in line


def test_a_checkpoint_of_an_earlier_version_goes_on_without_a_word(copy, train, caplog):
    written(copy, None)
    done = train(output_dir=copy, resume_from_checkpoint="latest", max_train_steps=4)
    assert done.code == 0, done.err
    assert not any("was written with" in line for line in caplog.messages)


def written(run, change):
    """Write the record of the newest checkpoint anew; None for a file of an earlier version, which has none."""
    folder = run / "checkpoint-3"
    with safe_open(folder / STATE, framework="pt") as file:
        about = json.loads(file.metadata()["layersync"])
    entry, manifest = about["states"][""], json.loads((folder / "manifest.json").read_text())
    if change is None:
        del entry["distributions"], about["libraries"], manifest["distributions"], manifest["libraries"]
    else:
        entry["distributions"] = change(entry["distributions"])
    save_file({}, folder / STATE, metadata={"layersync": json.dumps(about)})
    content = (folder / STATE).read_bytes()
    manifest["files"][STATE] = {"size": len(content), "crc32": zlib.crc32(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
