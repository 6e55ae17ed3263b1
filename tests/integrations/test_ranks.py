"""Two ranks under the libraries' own loops train what one process trains on the whole batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.run.processes import SCRIPTS, SETTINGS, run
from tests.run.test_ranks import TORCHRUN, Gradients
from tests.run.test_ranks import gradients as gradients


@pytest.mark.slow
@pytest.mark.parametrize("library", ["lightning", "transformers"])
def test_the_ranks_train_what_one_process_trains(
    library: str, tmp_path: Path, gradients: tuple[Gradients, Gradients]
) -> None:
    file = tmp_path / "gradients.pt"
    done = run([*TORCHRUN, str(SCRIPTS / "two_ranks_of_a_library.py"), library, str(file), json.dumps(SETTINGS)])
    found = torch.load(file, weights_only=True)
    plain, expected = gradients
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=0)
    assert max((expected[name] - plain[name]).abs().max().item() for name in plain) > 1e-3
    assert done.stderr.count("block 2 of 6") == 1  # one rank speaks for both
