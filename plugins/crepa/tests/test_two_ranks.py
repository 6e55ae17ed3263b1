"""CREPA and LayerSync together on two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("two_ranks.py")
ROOT = SCRIPT.parents[3]
FAMILIES = ["wan", "kandinsky5_video", "ltx_video"]


@pytest.mark.slow
def test_with_checkpointing_the_gradients_are_the_sum_of_the_two_alone(tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), rank, str(tmp_path / "meeting")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    for rank in ranks:
        out, err = rank.communicate(timeout=300)
        assert rank.returncode == 0, err
        assert out.splitlines() == [f"{family} is right" for family in FAMILIES]
