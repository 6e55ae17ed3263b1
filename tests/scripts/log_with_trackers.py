"""Train a tiny DiT in a loop of accelerate's that logs to three trackers, without a network.

Usage: log_with_trackers.py FOLDER [attach]; without the word nothing here knows of LayerSync.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import tiny_dit
import torch
from accelerate import Accelerator

folder, *words = sys.argv[1:]
accelerator = Accelerator(cpu=True, log_with=["tensorboard", "wandb", "trackio"], project_dir=folder)
options = {"wandb": {"mode": "offline", "dir": folder}, "trackio": {"embed": False}}
accelerator.init_trackers("layersync-test", init_kwargs=options)
model = tiny_dit.build()
metrics = dict
if words:
    from layersync_core import attach

    pair = {"layersync_student_block": 2, "layersync_teacher_block": 4}
    sync = attach(model, {"layersync_enabled": True, "layersync_lambda": 0.5, **pair})
    apply, metrics = sync.apply, sync.metrics
model, optimiser = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.01))
for step in range(3):
    loss = tiny_dit.loss_of(model, *tiny_dit.batch(seed=step))
    accelerator.backward(apply(loss) if words else loss)
    optimiser.step()
    optimiser.zero_grad()
    accelerator.log({"loss": loss.item(), **{name: float(value) for name, value in metrics().items()}}, step=step)
accelerator.end_training()

# wandb reads its file in a program of its own: blocks of 32 KiB with a header before each record, as LevelDB's log has.
from wandb.proto.wandb_internal_pb2 import Record  # noqa: E402

(file,) = Path(folder).glob("wandb/offline-run-*/*.wandb")
content, place, whole, rows = file.read_bytes(), 7, b"", []
while place + 7 <= len(content):
    if (left := 32768 - place % 32768) < 7:
        place += left
        continue
    _, length, kind = struct.unpack_from("<IHB", content, place)
    whole += content[place + 7 : place + 7 + length]
    place += 7 + length
    if kind in (1, 4):  # whole, or the last part
        record, whole = Record.FromString(whole), b""
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({"".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items})
Path(folder, "wandb_history.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
