"""Curves: of both kinds of logs, read on as they grow, whatever is in them."""

from __future__ import annotations

import json
import math
import random
import struct
import subprocess
import sys
import time

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from layersync_plugin_webui.runs import curves, events
from layersync_plugin_webui.runs.curves import Curve, Curves, beginning
from plugins.webui.tests.folders import add_rows


def values(folder, name="loss"):
    return dict(zip((curve := Curves(folder).read()[name]).steps, curve.values, strict=True))


def record(event):
    data = event.SerializeToString()
    return struct.pack("<QI", len(data), 0) + data + b"\0" * 4


def scalar(step, value, tag="loss"):
    return record(
        Event(step=step, wall_time=1000 + step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]))
    )


def test_torchs_writer_is_read(tmp_path):
    with SummaryWriter(str(tmp_path / "logs")) as writer:
        for step in range(3):
            writer.add_scalar("layersync_similarity", step / 2, step)
            writer.add_text("said", "hello", step)
    found = Curves(tmp_path).read()
    assert list(found) == ["layersync_similarity"]
    assert (found["layersync_similarity"].steps, found["layersync_similarity"].values) == ([0, 1, 2], [0, 0.5, 1])
    assert abs(beginning(found) - time.time()) < 60


def test_scalars_of_tensorflow_2_are_read():
    event = Event(step=3)
    for form, kind, text in (("<f", 1, "content"), ("<d", 2, "content"), (None, 1, "list")):
        value = event.summary.value.add(tag=f"{kind} {text}")
        value.tensor.dtype = kind
        if form:
            value.tensor.tensor_content = struct.pack(form, 0.5)
        else:
            value.tensor.float_val.append(0.5)
    event.summary.value.add(tag="text").tensor.string_val.append(b"no number")
    found = list(events.scalars(event.SerializeToString()))
    assert [(it.tag, it.step, it.value) for it in found] == [
        ("1 content", 3, 0.5),
        ("2 content", 3, 0.5),
        ("1 list", 3, 0.5),
    ]


def test_a_record_that_is_half_written_is_read_when_it_is_whole(tmp_path):
    path = tmp_path / "events.out.tfevents.1.host.1.0"
    whole = scalar(1, 1.0) + scalar(2, 2.0)
    read = Curves(tmp_path)
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        found = read.read()
    path.write_bytes(whole)
    found = read.read()["loss"]
    assert (found.steps, found.values, found.times) == ([1, 2], [1, 2], [1001, 1002])


@pytest.mark.parametrize(
    "noise",
    [
        b"\0" * 1000,
        b"\xff" * 1000,
        struct.pack("<QI", 5, 0) + b"\xff" * 5 + b"\0" * 4,
        struct.pack("<QI", 2**63, 0),
        bytes(random.Random(0).choices(range(256), k=999)),
    ],
    ids=["zeros", "ones", "wrong checksum", "a huge length", "noise"],
)
def test_noise_is_passed_over_or_ends_the_file(tmp_path, noise):
    (tmp_path / "events.out.tfevents.1.host.1.0").write_bytes(scalar(1, 1.0) + noise)
    (tmp_path / "events.out.tfevents.2.host.1.0").write_bytes(scalar(2, 2.0))
    read = Curves(tmp_path)
    for _ in range(3):
        assert read.read()["loss"].values == [1, 2]
    assert values(tmp_path) == {1: 1, 2: 2}


@pytest.mark.parametrize("size", [5000, events.LARGEST - 100, events.LARGEST + 100, 3 * curves._PIECE])
def test_a_picture_among_the_records_is_passed_over_while_it_is_written_too(tmp_path, size):
    picture = Event(summary=Summary(value=[Summary.Value(tag="picture")]))
    picture.summary.value[0].image.encoded_image_string = b"x" * size
    whole = scalar(1, 1.0) + record(picture) + scalar(2, 2.0)
    path, read = tmp_path / "events.out.tfevents.1.host.1.0", Curves(tmp_path)
    for length in (100, len(whole) // 2, len(whole)):
        path.write_bytes(whole[:length])
        found = read.read()
    assert found["loss"].values == [1, 2]


def test_a_resumed_run_shows_its_later_attempt(tmp_path):
    (tmp_path / "events.out.tfevents.1.host.1.0").write_bytes(b"".join(scalar(step, 1.0) for step in range(1, 6)))
    (tmp_path / "events.out.tfevents.2.host.1.0").write_bytes(b"".join(scalar(step, 2.0) for step in range(3, 5)))
    assert values(tmp_path) == {1: 1, 2: 1, 3: 2, 4: 2}


def test_two_loggers_of_one_metric_are_two_curves(tmp_path):
    for name in ("train", "eval"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "events.out.tfevents.1.host.1.0").write_bytes(scalar(1, 1.0))
    assert set(Curves(tmp_path).read()) == {"loss (train)", "loss (eval)"}


def test_rows_are_read_as_they_come(tmp_path):
    read = Curves(tmp_path)
    assert read.read() == {}
    add_rows(tmp_path, 2)
    assert read.read()["loss"].values == [1, 0.5]
    with (tmp_path / "layersync_metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert read.read()["loss"].steps == [1, 2]
    with (tmp_path / "layersync_metrics.jsonl").open("a") as file:
        file.write('ss": 0.1}\n')
    found = read.read()["loss"]
    assert (found.steps, found.times[2]) == ([1, 2, 3], None)


def test_rows_of_anybody_are_passed_over(tmp_path):
    lines = [
        "",
        "{",
        "[]",
        '{"step": "x"}',
        '{"no": 1}',
        '{"step": 1, "a": "b"}',
        "[" * 5000,
        '{"step": 1e999, "a": 1}',
    ]
    (tmp_path / "layersync_metrics.jsonl").write_text("\n".join([*lines, '{"step": 4, "loss": NaN}', ""]))
    assert values(tmp_path) == {4: None}


def test_a_file_that_was_replaced_or_removed_is_read_again(tmp_path):
    read = Curves(tmp_path)
    add_rows(tmp_path, 5)
    assert len(read.read()["loss"].steps) == 5
    (tmp_path / "layersync_metrics.jsonl").unlink()
    assert read.read() == {}
    add_rows(tmp_path, 2)
    assert len(read.read()["loss"].steps) == 2
    (tmp_path / "layersync_metrics.jsonl").write_text('{"step": 9, "loss": 1}\n')
    assert read.read()["loss"].steps == [9]


def test_what_is_looked_at_first_comes_first(tmp_path):
    row = {"step": 1} | dict.fromkeys(
        ("lr", "grad_norm", "crepa_loss", "layersync_similarity", "layersync_loss", "loss"), 1
    )
    (tmp_path / "layersync_metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert list(Curves(tmp_path).read()) == [
        "loss", "layersync_loss", "layersync_similarity", "crepa_loss", "grad_norm", "lr",
    ]  # fmt: skip


def test_a_long_curve_is_sent_thinned_with_its_last_point():
    curve = Curve()
    for step in range(25_000):
        curve.add(step, 60.0 * step, math.inf if step == 24_999 else step)
    assert len(curve.steps) <= 20_000
    sent = curve.sent(0.0)
    assert len(sent["steps"]) <= 1000
    assert (sent["steps"][-1], sent["minutes"][-1], sent["values"][-1]) == (24_999, 24_999, None)
    assert sent["steps"] == sorted(sent["steps"])
    assert Curve().sent(None) == {"steps": [], "minutes": [], "values": []}


def test_a_large_file_is_read_in_pieces_over_several_looks(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "_PIECE", 300)
    add_rows(tmp_path, 100)
    read = Curves(tmp_path)
    counts = [len(read.read()["loss"].steps) for _ in range(10)]
    assert counts[0] < 100
    assert counts[-1] == 100
    assert counts == sorted(counts)


def test_neither_torch_nor_tensorflow_is_imported(tmp_path):
    (tmp_path / "events.out.tfevents.1.host.1.0").write_bytes(scalar(1, 1.0))
    code = (
        "import sys; from pathlib import Path; from layersync_plugin_webui.runs.curves import Curves;"
        "from layersync_plugin_webui import app;"
        "assert Curves(Path(sys.argv[1])).read()['loss'].steps == [1];"
        "print(sorted({'torch', 'tensorflow', 'numpy', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
