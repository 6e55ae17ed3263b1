"""The pixels of a step: where they come from, and what they may look like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from layersync_core import CaptureError, attach
from layersync_plugin_crepa import pixels
from plugins.crepa.tests.support import clip, encoding, wan_loss
from tests.models import build


@pytest.mark.parametrize(
    ("given", "more"),
    [
        (clip().transpose(1, 2), {}),
        (clip() / 2 + 0.5, {"crepa_pixels_range": "0,1"}),
        ((clip() / 2 + 0.5) * 255, {"crepa_pixels_range": "0,255"}),
        (clip().double(), {}),
        (clip()[:, [0, 2, 4]], {}),  # as many frames as the states have
    ],
)
def test_pixels_of_all_kinds(folder: str, given: Tensor, more: dict[str, Any]) -> None:
    expected = wan_loss(encoding(folder), {"pixel_values": clip()})
    torch.testing.assert_close(wan_loss(encoding(folder, **more), {"pixel_values": given}), expected)


def test_pixels_may_be_bytes(folder: str) -> None:
    whole = ((clip() / 2 + 0.5) * 255).round()
    config = encoding(folder, crepa_pixels_range="0,255")
    torch.testing.assert_close(
        wan_loss(config, {"pixel_values": whole.byte()}), wan_loss(config, {"pixel_values": whole})
    )


def doubled(batch: Any) -> Tensor:
    """Return pixels, for a setting that names this function."""
    return batch["half"] * 2


def test_pixels_from_a_function(folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = wan_loss(encoding(folder), {"pixel_values": clip()})
    (tmp_path / "a_trainers_module.py").write_text("def doubled(batch):\n    return batch['half'] * 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    for source in (doubled, "a_trainers_module:doubled"):
        torch.testing.assert_close(wan_loss(encoding(folder, crepa_pixels=source), {"half": clip() / 2}), expected)
    torch.testing.assert_close(wan_loss(encoding(folder, crepa_pixels=lambda batch: clip())), expected)
    torch.testing.assert_close(wan_loss(encoding(folder, crepa_pixels="1"), [0, clip()]), expected)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (None, "no torch DataLoader gave one since attaching"),
        ({"latents": 0, "prompt": ""}, r"crepa_pixels is 'pixel_values', but the batch has keys latents, prompt"),
        ([1, 2], "but the batch has positions 0 to 1"),
        ({"pixel_values": "video.mp4"}, "is a str; expected a tensor"),
        ({"pixel_values": clip()[:, :, :1]}, r"has shape \(2, 5, 1, 20, 24\); expected"),
        ({"pixel_values": clip(samples=3)}, "has 3 samples, the hidden states 2"),
        ({"pixel_values": clip()[:, 0]}, "single images, but the hidden states have 3 frames"),
        ({"pixel_values": clip().byte()}, "set crepa_pixels_range: 0,255"),
    ],
)
def test_pixels_that_cannot_be_used(folder: str, batch: Any, said: str) -> None:
    with pytest.raises(CaptureError, match=said):
        wan_loss(encoding(folder), batch)


def test_single_images_are_clips_of_one_frame(folder: str) -> None:
    model, inputs = build("wan")
    inputs["hidden_states"] = inputs["hidden_states"][:, :, :1]
    with attach(model, encoding(folder)) as sync:
        for _ in DataLoader([{"pixel_values": it} for it in clip()[:, 0]], batch_size=2):
            model(**inputs)
            sync.loss()
            metrics = sync.metrics()
    torch.testing.assert_close(metrics["crepa_alignment_score"], metrics["crepa_similarity_self"])


@pytest.mark.parametrize("dispatch", [False, True])
def test_the_batch_is_the_loops_own_and_not_the_one_that_accelerate_fetched_ahead(dispatch: bool) -> None:
    pixels._watch_loaders()
    accelerator = accelerate.Accelerator(
        cpu=True, dataloader_config=accelerate.DataLoaderConfiguration(dispatch_batches=dispatch)
    )
    loader = accelerator.prepare(DataLoader([{"number": torch.tensor(it)} for it in range(6)], batch_size=2))
    for epoch in range(2):
        for index, batch in enumerate(loader):
            assert pixels._latest is batch, epoch
            assert batch["number"].tolist() == [2 * index, 2 * index + 1]
        assert index == 2
    for batch in accelerate.skip_first_batches(loader, 1):
        assert pixels._latest is batch


def test_loaders_are_otherwise_as_before() -> None:
    pixels._watch_loaders()
    loader = DataLoader(list(range(6)), batch_size=2, num_workers=1, persistent_workers=True)
    for _ in range(2):
        iterator = iter(loader)
        assert len(iterator) == 3
        assert iterator._num_workers == 1
        assert [it.tolist() for it in iterator] == [[0, 1], [2, 3], [4, 5]]
