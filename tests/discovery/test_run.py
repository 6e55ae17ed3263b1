"""An unmodified script that trains a class without an adapter, under ``layersync run``."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.run.processes import FLAGS, LAYERSYNC, SCRIPTS, python, run

SCRIPT = str(SCRIPTS / "train_unknown.py")


def layersync(*words: str) -> list[str]:
    return [LAYERSYNC, "run", *FLAGS, *words, "--", *python(SCRIPT)]


def by_hand(target: Path) -> list[dict[str, torch.Tensor]]:
    """Return the gradients of the same script with the term written into it: plain hooks, and plain torch."""
    script = target / "by_hand.py"
    hooks = """
seen = {}
for index in (1, 3):
    model.transformer_blocks[index].register_forward_hook(
        lambda module, args, output, index=index: seen.update({index: output[0]})
    )
"""
    term = "loss = loss - 0.5 * torch.cosine_similarity(seen[1], seen[3].detach(), dim=-1).mean()\n    loss.backward()"
    source = Path(SCRIPT).read_text().replace("optimiser = ", f"{hooks}\noptimiser = ").replace("loss.backward()", term)
    script.write_text(source)
    run(python(str(script), str(target / "by_hand.pt")))
    return torch.load(target / "by_hand.pt")


def test_it_is_refused_with_the_offer(tmp_path: Path) -> None:
    done = run([*layersync(), str(tmp_path / "g.pt")], code=2)
    assert "models of this program: PairTransformer" in done.stderr
    assert "--layersync_family auto" in done.stderr
    assert not (tmp_path / "g.pt").exists()


def test_with_auto_its_gradients_are_those_of_plain_hooks(tmp_path: Path) -> None:
    file = tmp_path / "pair.json"
    done = run(
        [*layersync("--layersync_family", "auto", "--layersync_save_adapter", str(file)), str(tmp_path / "g.pt")]
    )
    assert "PairTransformer: blocks: transformer_blocks (4)" in done.stderr
    assert "PairTransformer: element: element 0" in done.stderr
    assert "PairTransformer: tokens: 0 to 15 of 16 in the last block" in done.stderr
    assert "3 steps with the term" in done.stderr or "with the term" in done.stderr
    expected = by_hand(tmp_path)
    for got, wanted in zip(torch.load(tmp_path / "g.pt"), expected, strict=True):
        assert got.keys() == wanted.keys()
        for name in wanted:
            torch.testing.assert_close(got[name], wanted[name], rtol=1e-4, atol=1e-6)
    assert json.loads(file.read_text())["stacks"][0]["path"] == "transformer_blocks"
    run([*layersync("--layersync_family", str(file)), str(tmp_path / "again.pt")])
    for got, wanted in zip(torch.load(tmp_path / "again.pt"), expected, strict=True):
        for name in wanted:
            torch.testing.assert_close(got[name], wanted[name], rtol=1e-4, atol=1e-6)
