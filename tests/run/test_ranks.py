"""Several ranks: together they train what one process trains, or say why not."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from layersync_core import _compat, attach
from layersync_core.errors import CaptureError
from layersync_core.run import ranks
from tests.run.processes import FLAGS, LAYERSYNC, RUN, SCRIPTS, SETTINGS, Script, python, run
from tests.scripts import tiny_dit

Gradients = dict[str, Tensor]
TWO_RANKS = str(SCRIPTS / "two_ranks.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
# What launches several processes is called --multi_gpu; with --cpu accelerate starts one, whatever the number.
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
ACCELERATE += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
WAYS = {
    "one process": [*RUN, *python(TWO_RANKS, "one")],
    "torchrun": [*RUN, *TORCHRUN, TWO_RANKS, "env"],
    "torchrun, FSDP2": [*RUN, *TORCHRUN, TWO_RANKS, "sharded"],
    "accelerate": [*RUN, *ACCELERATE, TWO_RANKS, "accelerate"],
    "spawned by the script": [*RUN, *python(TWO_RANKS, "spawn")],
    "inside torchrun": [*TORCHRUN, "-m", "layersync_core", "run", *FLAGS, TWO_RANKS, "env"],
    "inside accelerate": [*ACCELERATE, "-m", "layersync_core", "run", *FLAGS, TWO_RANKS, "accelerate"],
}


@pytest.fixture(scope="module")
def gradients() -> tuple[Gradients, Gradients]:
    """The gradients of one process on the whole batch: without the term, and with it."""
    found = []
    for enabled in (False, True):
        model = tiny_dit.build()
        loss = tiny_dit.loss_of
        sync = attach(model, {**SETTINGS, "layersync_enabled": enabled})
        sync.apply(loss(model, *tiny_dit.batch())).backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    return found[0], found[1]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_the_ranks_train_what_one_process_trains(
    way: str, tmp_path: Path, gradients: tuple[Gradients, Gradients]
) -> None:
    file = tmp_path / "gradients.pt"
    done = run([*WAYS[way], str(file)])
    found = torch.load(file, weights_only=True)
    plain, expected = gradients
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=0)
    assert max((expected[name] - plain[name]).abs().max().item() for name in plain) > 1e-3
    assert done.stderr.count("student block 2 of 6") == 1  # one rank speaks for both
    summary = next(line for line in done.stderr.splitlines() if "with the term" in line)
    # Without a parent nobody sees what the other ranks did.
    ranks = "2 ranks" if WAYS[way][0] == LAYERSYNC and way != "one process" else "1 rank,"
    assert ranks in summary


@pytest.mark.slow
def test_a_rank_that_fails(script: Script) -> None:
    words = [*TORCHRUN, script("import os, sys; sys.exit(5 if os.environ['RANK'] == '1' else 0)")]
    plain, ours = run(words, None), run([*RUN, *words], None)
    assert ours.returncode == plain.returncode == 1
    assert "exitcode  : 5" in ours.stderr


@pytest.mark.slow
def test_ranks_with_different_models_disagree(tmp_path: Path) -> None:
    done = run([*RUN, *python(TWO_RANKS, "spawn", str(tmp_path / "gradients.pt"), "5")], 2)
    error = next(line for line in done.stderr.splitlines() if line.startswith("layersync: error: ranks disagree: "))
    assert "block 2 of 6" in error
    assert "block 2 of 5" in error


# Starts two ranks by hand; the test replaces the placeholders.
BY_HAND = """
import json, os, socket, subprocess, sys, time
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ |= {{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}}
code = '''
import datetime, runpy, sys
{first}
sys.path.insert(0, {folder!r})
sys.argv[:] = [{script!r}, "env", {file!r}]
runpy.run_path({script!r}, run_name="__main__")
'''
weights = json.loads(os.environ["LAYERSYNC_RUN"])
other = json.dumps(weights | {second})
ranks = [
    subprocess.Popen([sys.executable, "-c", code], env=os.environ | {{"RANK": "0"}}),
    subprocess.Popen(
        [sys.executable, *{flags}, "-c", code.replace({first!r}, "")],
        env=os.environ | {{"RANK": "1", "LAYERSYNC_RUN": other}},
    ),
]
while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
    time.sleep(0.1)
for rank in ranks:  # as launchers do: a rank whose peer is gone may wait for ever
    if rank.poll() is None:
        rank.kill()
sys.exit(max(rank.wait() for rank in ranks))
"""


def by_hand(tmp_path: Path, first: str = "", second: Any = None, flags: Sequence[str] = ()) -> str:
    return BY_HAND.format(
        first=first,
        second=second or {},
        flags=list(flags),
        folder=str(SCRIPTS),
        script=TWO_RANKS,
        file=str(tmp_path / "gradients.pt"),
    )


@pytest.mark.slow
def test_ranks_with_different_settings_disagree(script: Script, tmp_path: Path) -> None:
    done = run([*RUN, *python(script(by_hand(tmp_path, second={"layersync_lambda": "0.25"})))], 2)
    error = next(line for line in done.stderr.splitlines() if line.startswith("layersync: error: ranks disagree: "))
    assert "weight 0.5" in error
    assert "weight 0.25" in error


@pytest.mark.slow
def test_a_rank_without_the_hook_is_no_endless_wait(script: Script, tmp_path: Path) -> None:
    shorter = "from layersync_core.run import ranks; ranks._WAIT = datetime.timedelta(seconds=2)"
    started = time.monotonic()
    done = run([*RUN, *python(script(by_hand(tmp_path, first=shorter, flags=["-I"])))], 2)
    assert "rank 1 has not said what it trains with LayerSync for 2 s" in done.stderr.splitlines()[-1]
    assert time.monotonic() - started < 120


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.Store:
    """The store of two ranks, of which this process is the second."""
    store = dist.HashStore()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(_compat, "first_store", lambda: store)
    monkeypatch.setattr(ranks, "_WAIT", timedelta(milliseconds=50))
    return store


def test_the_rank_is_that_of_the_process_group(store: dist.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "7")
    assert ranks.rank() == 1


@pytest.mark.parametrize(("variable", "rank"), [("7", 7), ("", 0), (None, 0)])
def test_without_a_process_group_the_rank_is_the_launchers(
    variable: str | None, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if variable is not None:
        monkeypatch.setenv("RANK", variable)
    assert ranks.rank() == rank
    ranks.compare("one process has nobody to compare with")


def test_ranks_compare_what_they_train(store: dist.Store) -> None:
    with pytest.raises(CaptureError, match="rank 0 has not said what it trains with LayerSync"):
        ranks.compare("DiT")
    store.set("layersync/rank0", "DiT")
    ranks.compare("DiT")
    assert store.get("layersync/rank1") == b"DiT"
    store.set("layersync/rank0", "Wan")
    with pytest.raises(CaptureError, match="ranks disagree: rank 1 trains DiT, rank 0 trains Wan"):
        ranks.compare("DiT")
