"""A small encoder, and data loaders that are restored after every test."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.data import DataLoader
from transformers import Dinov2Config, Dinov2Model

from layersync_plugin_crepa import pixels


@pytest.fixture(autouse=True)
def loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo the changes that watching data loaders makes."""
    import accelerate.data_loader as library

    for kind in (DataLoader, *DataLoader.__subclasses__(), library.DataLoaderShard, library.DataLoaderDispatcher):
        if "__iter__" in vars(kind):
            monkeypatch.setattr(kind, "__iter__", vars(kind)["__iter__"])
    monkeypatch.setattr(pixels, "_latest", pixels._MISSING)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A small random encoder."""
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=4, image_size=16)
    Dinov2Model(config).save_pretrained(tmp_path)
    return str(tmp_path)
